"""The ResNet family: its weights, its four layers, and the frozen feature extractor."""

from ecgfeat.backbones.extractor import Backbone, load_backbone
from ecgfeat.backbones.weights import Weights, load_network, load_weights, network_from_tensors

__all__ = [
    "Backbone",
    "Weights",
    "load_backbone",
    "load_network",
    "load_weights",
    "network_from_tensors",
]
