"""The ResNet family: its weights, its four layers, and the frozen feature extractor.

`imagenet` finds torchvision's files and `state_dicts` reads a user's; `weights` makes either, or
random ones, fit the networks of `networks`; `extractor` freezes one and takes its layers' pools.
`kernels` is what frozen and trained networks share on a device.
"""

from ecgfeat.backbones.extractor import Backbone, load_backbone
from ecgfeat.backbones.kernels import memory_format, repeatable_kernels
from ecgfeat.backbones.weights import Weights, load_network, load_weights, network_from_tensors

__all__ = [
    "Backbone",
    "Weights",
    "load_backbone",
    "load_network",
    "load_weights",
    "memory_format",
    "network_from_tensors",
    "repeatable_kernels",
]
