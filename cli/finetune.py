"""``ecgfeat finetune``: the whole network, trained on the images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import (
    DEFAULT_RECIPE,
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    FigureSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
    RecipeSettings,
)

from ._app import app
from ._console import Output
from ._data import read_data
from ._options import OUT, Given, command
from ._results import runs_as_json, show_later_notices, show_runs

if TYPE_CHECKING:
    from ecgfeat.runs import Run

__all__ = ["finetune"]

_EXAMPLES = """
ecgfeat finetune pages/
ecgfeat finetune pages.csv --lr 1e-4 --epochs 10 --val-fraction 0.2
ecgfeat finetune pages/ --recipe paper
ecgfeat finetune pages.csv --from-head runs/20260131-110000-linear-pages --lr 1e-4
ecgfeat finetune --resume runs/20260131-120000-finetune-pages
torchrun --nproc-per-node 4 -m ecgfeat.cli finetune pages.csv
"""


@command(app, "finetune", examples=_EXAMPLES)
def finetune(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder or CSV, as for extract.", show_default=False),
    ] = None,
    *,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on with an interrupted run: its folder. The run keeps its own data and "
            "settings.",
            show_default=False,
        ),
    ] = None,
    from_head: Annotated[
        Path | None,
        typer.Option(
            "--from-head",
            metavar="RUN",
            help="Begin with a fitted head as the last layer, and with its backbone and pages: "
            "the first steps then have no random weights to make up for. Try it where the frozen "
            "features are good already.",
            show_default=False,
        ),
    ] = None,
    out: OUT = Path("runs"),
    recipe: RecipeSettings,
    training: Given[FinetuneSettings],
    evaluation: Given[EvaluationSettings],
    figures: Given[FigureSettings],
    page: Given[PageSettings],
    network: Given[NetworkSettings],
    source: Given[DataSettings],
    compute: Given[ComputeSettings],
    output: Output,
) -> None:
    """Train all weights of the network, streamed from the images.

    Every step is kept: a stopped or killed run goes on with --resume. Under torchrun, several GPUs
    or machines share the work.
    """
    from ecgfeat.errors import ConfigError

    if os.environ.get("RANK", "") not in ("", "0"):
        output.hush()  # under torchrun the first process speaks for all
    if (data is None) == (resume is None):
        raise ConfigError("give either DATA (a new run) or --resume RUN (to go on with one)")
    given = (training, evaluation, figures, page, network, source, compute)
    changed = from_head or recipe.recipe or any(section.by_hand for section in given)
    if resume is not None and (changed or out != Path("runs")):
        raise ConfigError(
            "--resume goes on with the run's own settings: leave the others out, or start a new "
            "run with DATA"
        )
    if training.by_hand.get("tensorboard"):
        from ecgfeat.runs import refuse_without_tensorboard

        refuse_without_tensorboard()
    manifest = None if data is None else read_data(data, source.over(DataSettings()), output)
    from ecgfeat.finetuning import finetune, read_head, resume_finetune  # late: it loads torch

    shown: list[Run] = []

    def show(run: Run) -> None:
        shown.append(run)
        show_runs(output, [run])

    with output.reporting() as report:
        if resume is not None:
            run = resume_finetune(resume, report=report, on_written=show)
        else:
            assert manifest is not None
            head = None if from_head is None else read_head(from_head)
            # A head's run of before there were recipes was made by the study's.
            usual = str(head.run.config.get("recipe") or "paper") if head else DEFAULT_RECIPE
            chosen = recipe.chosen(usual)
            run = finetune(
                manifest,
                network=network.over(head.network if head else NetworkSettings()),
                page=page.over(head.page if head else chosen.page),
                compute=compute.over(ComputeSettings()),
                training=training.over(chosen.training),
                evaluation=evaluation.over(EvaluationSettings()),
                figures=figures.over(FigureSettings()),
                from_head=from_head,
                out_dir=out,
                recipe=chosen.name,
                report=report,
                on_written=show,
            )
    show_later_notices(output, shown, [run])
    data_said = {"data": manifest.as_json()} if manifest else {}
    output.result({**data_said, **runs_as_json([run])})
