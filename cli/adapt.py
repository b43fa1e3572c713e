"""``ecgfeat adapt``: a backbone taught on synthetic pages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import AdaptSettings, ComputeSettings, NetworkSettings

from ._app import app
from ._console import Output
from ._options import command

__all__ = ["adapt"]

_EXAMPLES = """
ecgfeat adapt ecg-resnet18
ecgfeat adapt ecg-resnet50 --arch resnet50 --pages 50000
ecgfeat extract pages/ --weights ecg-resnet18/weights.safetensors
"""


@command(app, "adapt", examples=_EXAMPLES)
def adapt(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A new or empty folder, or one that the same command has begun.",
            show_default=False,
        ),
    ],
    *,
    settings: AdaptSettings,
    network: NetworkSettings,
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Teach a backbone what an ECG is, on synthetic pages drawn as it learns.

    What comes out is for --weights of extract and finetune. A stopped one goes on with the same
    command.
    """
    output.log("loading torch and the weights")
    from ecgfeat.adaptation import adapt  # late: it loads torch

    with output.reporting() as report:
        made = adapt(out, network=network, compute=compute, settings=settings, report=report)
    if made.was_done:
        output.say(f"{out} was finished already")
    output.say(f"weights: {made.weights_path} ({made.digest[:12]})")
    output.log(f"next: ecgfeat extract DATA --weights {made.weights_path}")
    output.result(
        {
            "weights": str(made.weights_path),
            "digest": made.digest,
            "was_done": made.was_done,
            "history": [asdict(exam) for exam in made.history],
        }
    )
