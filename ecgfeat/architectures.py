"""The backbone families, one row each; the one table of what networks there are.

Standard library only: settings and ``--help`` are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "FAMILIES", "LAYERS", "Family", "family_of"]

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""What the four stages of every backbone are called, in order."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks of torchvision that are built alike; parts are named as torchvision does.

    Attributes
    ----------
    widths : mapping of str to int
        Channels of the last stage, by architecture; each stage has twice as many as the one
        before.
    stem : tuple of str
        What comes before the first stage, in order; the first is a convolution of the pixels.
    stages : tuple of tuples of str
        The parts of each of `LAYERS`, in order.
    classifier : str
        The last, linear layer.
    """

    widths: Mapping[str, int]
    stem: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    classifier: str

    def stage(self, layer: str) -> tuple[str, ...]:
        """The parts of the stage called `layer`."""
        return self.stages[LAYERS.index(layer)]

    def up_to(self, layer: str) -> tuple[str, ...]:
        """All parts before and in ``stem`` or one of `LAYERS`, in order."""
        n_stages = 0 if layer == "stem" else 1 + LAYERS.index(layer)
        return self.stem + tuple(part for stage in self.stages[:n_stages] for part in stage)


_RESNETS = Family(
    widths={
        "resnet18": 512,
        "resnet34": 512,
        "resnet50": 2048,
        "resnet101": 2048,
        "resnet152": 2048,
        "resnext50_32x4d": 2048,
        "resnext101_32x8d": 2048,
        "resnext101_64x4d": 2048,
        "wide_resnet50_2": 2048,
        "wide_resnet101_2": 2048,
    },
    stem=("conv1", "bn1", "relu", "maxpool"),
    stages=(("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    classifier="fc",
)

FAMILIES = (_RESNETS,)
ARCHITECTURES = tuple(arch for family in FAMILIES for arch in family.widths)
"""By torchvision's names: those that it has ImageNet weights for."""


def family_of(arch: str) -> Family:
    """The row of one of `ARCHITECTURES`."""
    return next(family for family in FAMILIES if arch in family.widths)
