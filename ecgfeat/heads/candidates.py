"""The heads that are tried: every combination of a grid's values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ecgfeat.config import EvaluationSettings, HeadKind, HeadSettings, SweepSettings
from ecgfeat.errors import ConfigError
from ecgfeat.heads.grids import AXES, Grid
from ecgfeat.heads.linear import LinearSpec

__all__ = ["Candidate", "candidates", "seeds_of"]

MAX_CANDIDATES = 10_000
"""More are an axis too many rather than a wish."""
SETTINGS = tuple(name for name in AXES if name != "seed")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One head with all its settings; seeds repeat it, and are no part of it."""

    kind: HeadKind
    head: HeadSettings

    @property
    def n_epochs(self) -> int:
        """Epochs it is trained for; logistic regression has one end, not several."""
        return self.head.epochs if self.kind == "linear" else 1

    def spec(self, seed: int) -> LinearSpec:
        """What `fit_linear_heads` takes."""
        return LinearSpec(
            lr=self.head.lr,
            weight_decay=self.head.weight_decay,
            label_smoothing=self.head.label_smoothing,
            balanced=self.is_balanced,
            seed=seed,
        )

    @property
    def is_balanced(self) -> bool:
        """Whether classes count alike, however many rows they have."""
        return self.head.class_weights == "balanced"

    def as_json(self) -> dict[str, Any]:
        """The settings that a grid may vary; None where this kind of head has none such."""
        values = {
            name: getattr(self.head, name) if self.kind in AXES[name] else None for name in SETTINGS
        }
        return {"head": self.kind, **values}

    def in_words(self) -> str:
        """The head for people: ``linear, layers layer4, lr 0.001, …``."""
        fields = self.as_json()
        kind = fields.pop("head")
        words = [f"{name} {value}" for name, value in fields.items() if value is not None]
        return ", ".join([kind, *words])


def candidates(kinds: Sequence[HeadKind], head: HeadSettings, grid: Grid) -> list[Candidate]:
    """Every combination of the grid's values, the others as in `head`.

    Linear heads come first. Those that share layers stand together.

    Raises
    ------
    ConfigError
        When there are more than 10,000.
    """
    axes = {kind: _axes_of(kind, grid) for kind in kinds}
    n_heads = sum(math.prod(map(len, axes[kind].values())) for kind in kinds)
    if n_heads > MAX_CANDIDATES:
        raise ConfigError(
            f"the grid holds {n_heads} heads; at most {MAX_CANDIDATES} are tried: give fewer values"
        )
    return [
        Candidate(kind=kind, head=replace(head, **dict(zip(axes[kind], values))))
        for kind in kinds
        for values in itertools.product(*axes[kind].values())
    ]


def _axes_of(kind: HeadKind, grid: Grid) -> Mapping[str, tuple[Any, ...]]:
    return {
        name: values for name, values in grid.items() if name in SETTINGS and kind in AXES[name]
    }


def seeds_of(grid: Grid, sweep: SweepSettings, evaluation: EvaluationSettings) -> tuple[int, ...]:
    """The seeds with which every head is trained; the first one's is the head reported.

    Raises
    ------
    ConfigError
        When they would go beyond the largest seed there is.
    """
    if "seed" in grid:
        return grid["seed"]
    last = evaluation.seed + sweep.seeds - 1
    replace(evaluation, seed=last)
    return tuple(range(evaluation.seed, last + 1))
