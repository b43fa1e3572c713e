"""``ecgfeat finetune``: the whole network, trained on the images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
)

from ._app import app
from ._console import Output
from ._options import OUT, command
from ._results import runs_as_json, show_runs

__all__ = ["finetune"]

_EXAMPLES = """
ecgfeat finetune pages/
ecgfeat finetune pages.csv --lr 1e-4 --epochs 10 --crop-mode squash --val-fraction 0.2
ecgfeat finetune --resume runs/20260131-120000-finetune-pages
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
    out: OUT = Path("runs"),
    training: FinetuneSettings,
    evaluation: EvaluationSettings,
    page: PageSettings,
    network: NetworkSettings,
    source: DataSettings,
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Train all weights of the network, streamed from the images.

    A checkpoint is kept after every epoch.
    """
    from ecgfeat.errors import ConfigError
    from ecgfeat.finetuning import finetune, resume_finetune
    from ecgfeat.manifest import read_manifest

    if (data is None) == (resume is None):
        raise ConfigError("give either DATA (a new run) or --resume RUN (to go on with one)")
    given = (training, evaluation, page, network, source, compute)
    if resume is not None and any(settings != type(settings)() for settings in given):
        raise ConfigError(
            "--resume goes on with the run's own settings: leave the others out, or start a new "
            "run with DATA"
        )
    with output.reporting() as report:
        if resume is not None:
            run = resume_finetune(resume, report=report)
        else:
            assert data is not None
            run = finetune(
                read_manifest(data, source),
                network=network,
                page=page,
                compute=compute,
                training=training,
                evaluation=evaluation,
                out_dir=out,
                report=report,
            )
    show_runs(output, [run])
    output.result(runs_as_json([run]))
