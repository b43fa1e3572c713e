"""The ResNet family: its weights, its four layers, and the frozen feature extractor.

`imagenet` finds torchvision's files and `state_dicts` reads a user's; `weights` makes either, or
random ones, fit the networks of `networks`; `trunk` freezes one and takes its layers' pools,
`fusion` makes it faster on the CPU, `engine` lays it out for a device and checks it there, and
`extractor` runs it. `kernels` and `memory` are what frozen and trained networks share on a device.
"""

from ecgfeat.backbones.extractor import (
    Backbone,
    CheckPages,
    Lanes,
    default_batch_size,
    filled,
    memory_format,
    repeatable_kernels,
    tap_widths,
)
from ecgfeat.backbones.weights import Weights, load_network, load_weights, network_from_tensors

__all__ = [
    "Backbone",
    "CheckPages",
    "Lanes",
    "Weights",
    "default_batch_size",
    "filled",
    "load_network",
    "load_weights",
    "memory_format",
    "network_from_tensors",
    "repeatable_kernels",
    "tap_widths",
]
