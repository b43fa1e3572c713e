"""``ecgfeat fit-head``: heads on cached features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import EvaluationSettings, HeadKind, HeadSettings, SweepSettings

from ._app import app
from ._console import Output
from ._options import CACHE_FILE, OUT, command
from ._results import runs_as_json, show_runs

__all__ = ["fit_head"]

_EXAMPLES = """
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --layers layer3,layer4
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head logreg --C 0.01 --cv 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --head both --sweep default --folds 5
ecgfeat fit-head cache/pages-resnet18-1a2b3c4d.h5 --grid "lr=1e-4,1e-3 weight_decay=0,1e-3"
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


@command(app, "fit-head", examples=_EXAMPLES)
def fit_head(
    cache: CACHE_FILE,
    *,
    head: Annotated[
        Head,
        typer.Option(
            "--head",
            help="linear: one layer trained by Adam, as the study did; logreg: logistic "
            "regression on standardised features; both: a run of each, or a choice between them.",
        ),
    ] = Head.linear,
    out: OUT = Path("runs"),
    settings: HeadSettings,
    sweep: SweepSettings,
    evaluation: EvaluationSettings,
    output: Output,
) -> None:
    """Train a head on the features of a cache, or hundreds and choose one; no image is opened."""
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.heads import fit_heads

    features = open_cache(cache)
    with output.reporting() as report:
        runs = fit_heads(
            features,
            kinds=_KINDS[head],
            head=settings,
            sweep=sweep,
            evaluation=evaluation,
            out_dir=out,
            report=report,
        )
    show_runs(output, runs)
    output.result(runs_as_json(runs))
