"""The weights a backbone starts from: torchvision's, random ones, or a file's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones.imagenet import imagenet_file
from ecgfeat.backbones.networks import (
    build_network,
    expected_shapes,
    feature_width,
    fit,
    new_network,
    without_head,
)
from ecgfeat.backbones.state_dicts import read_state_dict
from ecgfeat.config import NetworkSettings
from ecgfeat.errors import WeightsError

__all__ = ["Weights", "load_network", "load_weights", "network_from_tensors"]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights that fit their architecture, without its classification layer.

    Attributes
    ----------
    arch : str
    name : str
        ``imagenet``, ``random:SEED``, or the absolute path of the file.
    tensors : mapping of str to Tensor, float32
    """

    arch: str
    name: str
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def from_state_dict(cls, arch: str, name: str, found: Mapping[str, torch.Tensor]) -> Weights:
        """Take them from a state dict, with a classification layer or none.

        Raises
        ------
        WeightsError
            When they don't fit the architecture or aren't finite.
        """
        tensors = fit(without_head(found), expected_shapes(arch), arch=arch, source=name)
        return cls(arch, name, tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every tensor's name, shape and float32 bytes, hexadecimal.

        The same weights have the same digest, whatever file they came in.
        """
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            values = self.tensors[name].numpy()
            total.update(f"{name} {values.shape}\n".encode())
            total.update(np.ascontiguousarray(values, dtype="<f4").data)
        return total.hexdigest()


def load_weights(settings: NetworkSettings) -> Weights:
    """Get the weights asked for: downloaded, drawn, or read from a file.

    Raises
    ------
    WeightsError
        When they can't be had or don't fit the architecture; the message names the ways out.
    StorageError
        When the disk refuses.
    """
    arch, asked = settings.arch, settings.weights
    if asked == "imagenet":
        return Weights.from_state_dict(arch, asked, read_state_dict(imagenet_file(arch)))
    if asked == "random" or asked.startswith("random:"):
        seed = _seed(asked)
        drawn = _drawn(lambda: new_network(arch), seed)
        return Weights.from_state_dict(arch, f"random:{seed}", drawn)
    path = Path(asked).expanduser()
    return Weights.from_state_dict(arch, str(path.resolve()), read_state_dict(path))


def _seed(asked: str) -> int:
    text = asked.partition(":")[2] if ":" in asked else "0"
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise WeightsError(
            f"--weights random:SEED needs a whole number, such as random:0; found {asked!r}"
        )
    return int(text)


def _drawn(make: Callable[[], torch.nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """State dict of a module made under `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in make().state_dict().items()}


def load_network(settings: NetworkSettings, n_classes: int, seed: int) -> torch.nn.Module:
    """Make a torchvision ResNet to be fine-tuned: the weights asked for under a new last layer.

    Parameters
    ----------
    settings : NetworkSettings
    n_classes : int
    seed : int
        Of the last layer's weights; the global random state is left alone.

    Raises
    ------
    WeightsError, StorageError
        As `load_weights`.
    """
    tensors = dict(load_weights(settings).tensors)
    width = feature_width(settings.arch)
    head = _drawn(lambda: torch.nn.Linear(width, n_classes), seed)
    tensors.update({f"fc.{name}": value for name, value in head.items()})
    return build_network(settings.arch, tensors)


def network_from_tensors(
    arch: str, n_classes: int, tensors: Mapping[str, NDArray[Any]]
) -> torch.nn.Module:
    """Make a torchvision ResNet of `n_classes` from the tensors that a run kept.

    Raises
    ------
    WeightsError
        When they don't fit.
    """
    head = {"fc.weight": (n_classes, feature_width(arch)), "fc.bias": (n_classes,)}
    found = {name: torch.from_numpy(values) for name, values in tensors.items()}
    expected = {**expected_shapes(arch), **head}
    return build_network(arch, fit(found, expected, arch=arch, source="the run's model"))
