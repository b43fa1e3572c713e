"""``ecgfeat fit-head``: heads on cached features."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import (
    EvaluationSettings,
    HeadKind,
    HeadSettings,
    Recipe,
    RecipeSettings,
    SweepSettings,
    option_name,
)
from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import CACHE_FILE, OUT, Given, by_recipe, command
from ._results import runs_as_json, show_runs

__all__ = ["fit_head"]

_EXAMPLES = """
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --recipe paper
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --layers layer3,layer4
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head logreg --C 0.1 --cv 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --sweep default --folds 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head linear --grid lr=1e-4,1e-3
"""


class Head(StrEnum):
    """Which heads to fit."""

    linear = "linear"
    logreg = "logreg"
    both = "both"


_KINDS: dict[Head, tuple[HeadKind, ...]] = {
    Head.linear: ("linear",),
    Head.logreg: ("logreg",),
    Head.both: ("linear", "logreg"),
}
_OWN: dict[HeadKind, tuple[str, ...]] = {
    "linear": ("epochs", "lr", "batch_size", "weight_decay", "label_smoothing"),
    "logreg": ("C",),
}
"""Settings that only one kind of head has."""


def _head_of(recipe: Recipe) -> Head:
    (head,) = (head for head, kinds in _KINDS.items() if kinds == recipe.kinds)
    return head


@command(app, "fit-head", examples=_EXAMPLES)
def fit_head(
    cache: CACHE_FILE,
    *,
    head: Annotated[
        Head | None,
        typer.Option(
            "--head",
            help="linear: one layer trained by Adam, as the study did; logreg: logistic "
            "regression on standardised features; both: a run of each, or a choice between them.",
            show_default=by_recipe(_head_of),
        ),
    ] = None,
    out: OUT = Path("runs"),
    recipe: RecipeSettings,
    settings: Given[HeadSettings],
    sweep: SweepSettings,
    evaluation: EvaluationSettings,
    output: Output,
) -> None:
    """Train a head on the features of a cache, or hundreds and choose one; no image is opened."""
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.heads import fit_heads

    features = open_cache(cache)
    chosen = recipe.chosen(features.header.recipe or "paper")
    kinds = _KINDS[head or _head_of(chosen)]
    _refuse_idle(settings.over(chosen.head), chosen, kinds)
    with output.reporting() as report:
        runs = fit_heads(
            features,
            kinds=kinds,
            head=settings.over(chosen.head),
            sweep=sweep,
            evaluation=evaluation,
            out_dir=out,
            recipe=chosen.name,
            report=report,
        )
    show_runs(output, runs)
    output.result(runs_as_json(runs))


def _refuse_idle(asked: HeadSettings, recipe: Recipe, kinds: Sequence[HeadKind]) -> None:
    """Refuse to change by hand what would do nothing, since no such head is fitted."""
    for kind, names in _OWN.items():
        idle = [name for name in names if getattr(asked, name) != getattr(recipe.head, name)]
        if idle and kind not in kinds:
            options = " and ".join(map(option_name, idle))
            raise ConfigError(
                f"only a {kind} head has {options}, and here a {' and '.join(kinds)} head is "
                f"fitted: leave it out, or give --head {kind} or both"
            )
