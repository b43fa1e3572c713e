"""Taps: where in a ResNet features are taken, and how its maps are pooled there.

A tap's name is ``LAYER[-POOL][-ROWSxCOLUMNS]``: ``layer4`` is the average of each of the layer's
channels over the whole page, ``layer4-max`` and ``layer4-std`` are their maximum and standard
deviation, and ``layer2-4x4`` is the average in each cell of a 4×4 grid on the page, so that a
feature keeps its place: leads live in places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ecgfeat.errors import ConfigError

__all__ = ["LAYERS", "TAPS", "Tap", "parse_tap"]

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""A ResNet's four layers, in order."""
TAPS = LAYERS
"""The taps of a cache where no others are asked for."""

_NAME = re.compile(r"(layer[1-4])(?:-(max|std))?(?:-([1-8])x([1-8]))?")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tap.

    Attributes
    ----------
    name : str
        As in the cache.
    layer : str
        ``layer1`` to ``layer4``.
    pool : str
        ``avg``, ``max`` or ``std``.
    rows, columns : int
        Cells of the grid; 1 and 1 for the whole page.
    """

    name: str
    layer: str
    pool: str
    rows: int
    columns: int

    @property
    def n_cells(self) -> int:
        """Pools per channel."""
        return self.rows * self.columns


def parse_tap(name: str) -> Tap:
    """Read a tap's name.

    Raises
    ------
    ConfigError
        When it is none.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name!r} is no tap: give layer1 to layer4, with -max or -std for another pool than "
            "the average, and -ROWSxCOLUMNS (each 1 to 8) for a grid, such as layer4-max or "
            "layer2-4x4"
        )
    layer, pool, rows, columns = match.groups(default="")
    return Tap(
        name=name, layer=layer, pool=pool or "avg", rows=int(rows or 1), columns=int(columns or 1)
    )
