"""torchvision's ResNets, and whether a state dict fits one of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TypeVar

import torch

from ecgfeat.config import ARCHITECTURES
from ecgfeat.errors import WeightsError

__all__ = [
    "Shapes",
    "build_network",
    "expected_shapes",
    "feature_width",
    "fit",
    "new_network",
    "without_head",
]

HEAD = "fc."
"""Beginning of the classification layer's names."""
COUNTER = "num_batches_tracked"
"""Ending of batch norm's step counters: nothing reads them, and old state dicts lack them."""
N_NAMED = 3
"""Tensors that an error names; the others it counts."""

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]


def new_network(arch: str) -> torch.nn.Module:
    """A torchvision ResNet for 1000 classes, with random weights."""
    from torchvision.models import get_model

    network: torch.nn.Module = get_model(arch, weights=None)
    return network


def _skeleton(arch: str) -> torch.nn.Module:
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        return new_network(arch)


@functools.cache
def _shapes(arch: str) -> Shapes:
    return _shapes_of(_without_counters(_skeleton(arch).state_dict()))


def feature_width(arch: str) -> int:
    """Width of layer4's average pool."""
    return _shapes(arch)["fc.weight"][1]


def without_head(tensors: Mapping[str, T]) -> dict[str, T]:
    """Leave out the classification layer."""
    return {name: value for name, value in tensors.items() if not name.startswith(HEAD)}


def expected_shapes(arch: str) -> Shapes:
    """Shape of each tensor that decides `arch`'s features."""
    return without_head(_shapes(arch))


def build_network(arch: str, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Make a torchvision ResNet that takes over `tensors`.

    Parameters
    ----------
    arch : str
    tensors : mapping of str to Tensor, float32
        As `fit` returns them; without a classification layer, the network has none.
    """
    network = _skeleton(arch)
    if "fc.weight" in tensors:
        n_classes, width = tensors["fc.weight"].shape
        network.fc = torch.nn.Linear(width, n_classes, device="meta")
    else:
        network.fc = torch.nn.Identity()
    names = [name for name in network.state_dict() if name.endswith(COUNTER)]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in names}
    network.load_state_dict({**counters, **tensors}, assign=True)
    return network


def fit(
    found: Mapping[str, torch.Tensor], expected: Shapes, *, arch: str, source: str
) -> dict[str, torch.Tensor]:
    """Check a state dict against the shapes it should have, and copy it in float32.

    Raises
    ------
    WeightsError
        When it doesn't fit `arch` or isn't finite; the message names the architecture it does
        fit, or what is wrong with it. `source` stands at its beginning.
    """
    found = _without_counters(found)
    if _shapes_of(found) != expected:
        raise _misfit(_shapes_of(found), expected, arch, source)
    return {name: _float32(name, found[name], source) for name in expected}


def _without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}


def _shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _float32(name: str, value: torch.Tensor, source: str) -> torch.Tensor:
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if not plain or not value.is_floating_point():
        raise WeightsError(
            f"{source}: {name} must hold plain floating-point numbers; found {value.dtype} "
            f"({value.layout}). Save the weights before quantising or pruning them."
        )
    value = value.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(value).all():
        raise WeightsError(
            f"{source}: {name} holds NaN or infinity, so every feature would be meaningless. The "
            "training that made it diverged, or the file is damaged: give other weights."
        )
    return value


def _misfit(found: Shapes, expected: Shapes, arch: str, source: str) -> WeightsError:
    other = _fitting_architecture(found)
    if other is not None and other != arch:
        return WeightsError(
            f"{source} holds the weights of {other}, but the architecture asked for is {arch}. "
            f"Take --arch {other}, or give weights of {arch}."
        )
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {_words(found[name])} instead of {_words(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    findings = [
        missing and f"{len(missing)} of {len(expected)} tensors are missing ({_some(missing)})",
        unexpected and f"{len(unexpected)} don't belong to it ({_some(unexpected)})",
        misshapen and f"{len(misshapen)} have another shape ({_some(misshapen)})",
    ]
    return WeightsError(
        f"{source} doesn't fit {arch}: {', '.join(text for text in findings if text)}. "
        f"Give a state dict of torchvision's {arch}, or the --arch that it was saved from."
    )


def _fitting_architecture(found: Shapes) -> str | None:
    features = without_head(found)
    return next((arch for arch in ARCHITECTURES if expected_shapes(arch) == features), None)


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _some(names: list[str]) -> str:
    rest = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {rest} more" if rest > 0 else "")
