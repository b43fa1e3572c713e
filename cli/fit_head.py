"""``ecgfeat fit-head``: heads on cached features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import (
    RECIPE_OF_OLD_CACHES,
    EvaluationSettings,
    FigureSettings,
    HeadChoice,
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
from ._results import runs_as_json, show_later_notices, show_runs

if TYPE_CHECKING:
    from ecgfeat.runs import Run

__all__ = ["fit_head"]

_EXAMPLES = """
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --recipe paper
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --layers layer3,layer4
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head logreg --C 0.1 --cv 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --sweep default --folds 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head linear --grid lr=1e-4,1e-3
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --figure-format pdf --no-title
"""


def _head_of(recipe: Recipe) -> str:
    return ",".join(recipe.kinds)


@command(app, "fit-head", examples=_EXAMPLES)
def fit_head(
    cache: CACHE_FILE,
    *,
    head: Annotated[
        HeadChoice | None,
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
    figures: FigureSettings,
    output: Output,
) -> None:
    """Train a head on the features of a cache, or hundreds and choose one; no image is opened."""
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.heads import fit_heads

    features = open_cache(cache)
    chosen = recipe.chosen(features.header.recipe or RECIPE_OF_OLD_CACHES)
    kinds = head or _head_of(chosen)
    _refuse_idle(settings.over(chosen.head), chosen, kinds)
    shown: list[Run] = []

    def show(run: Run) -> None:
        shown.append(run)
        show_runs(output, [run])

    with output.reporting() as report:
        runs = fit_heads(
            features,
            kinds=kinds,
            head=settings.over(chosen.head),
            sweep=sweep,
            evaluation=evaluation,
            figures=figures,
            out_dir=out,
            recipe=chosen.name,
            report=report,
            on_written=show,
        )
    show_later_notices(output, shown, runs)
    output.result(runs_as_json(runs))


def _refuse_idle(asked: HeadSettings, recipe: Recipe, kinds: str) -> None:
    """Refuse to change by hand what would do nothing, since no such head is fitted."""
    from ecgfeat.heads import HEADS

    for kind, head in HEADS.items():
        idle = [n for n in head.options if getattr(asked, n) != getattr(recipe.head, n)]
        if idle and kinds not in (kind, "both"):
            options = " and ".join(map(option_name, idle))
            raise ConfigError(
                f"only a {kind} head has {options}, and here a {kinds} head is fitted: leave it "
                f"out, or give --head {kind} or both"
            )
