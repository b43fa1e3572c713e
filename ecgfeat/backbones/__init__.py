"""Pretrained networks: their weights, their four layers, and the frozen feature extractor.

`weights` makes torchvision's, random or a file's tensors fit one of `ecgfeat.architectures`, and
`extractor` freezes it, takes its layers' pools and runs it on a device.
"""

from ecgfeat.backbones.extractor import (
    Backbone,
    CheckPages,
    Lanes,
    cell_spans,
    default_batch_size,
    filled,
    pooled,
    tap_widths,
)
from ecgfeat.backbones.weights import Weights, load_network, load_weights, network_from_tensors

__all__ = [
    "Backbone",
    "CheckPages",
    "Lanes",
    "Weights",
    "cell_spans",
    "default_batch_size",
    "filled",
    "load_network",
    "load_weights",
    "network_from_tensors",
    "pooled",
    "tap_widths",
]
