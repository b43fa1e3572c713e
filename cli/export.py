"""``ecgfeat export``: a run's model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._app import app
from ._console import Output
from ._options import FORCE, RUN, WEIGHTS, command

__all__ = ["export"]

_EXAMPLES = """
ecgfeat export runs/20260131-120000-linear-pages model.onnx
ecgfeat export runs/20260131-120000-finetune-pages model.onnx --json
"""


@command(app, "export", examples=_EXAMPLES)
def export(
    run: RUN,
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="File to write, ending in .onnx.", show_default=False),
    ],
    *,
    weights: WEIGHTS = "",
    force: FORCE = False,
    output: Output,
) -> None:
    """Write the model of any run as one ONNX file, checked in ONNX Runtime.

    The file takes prepared pages and gives calibrated probabilities and answers.
    Neither ecgfeat nor torch is needed to use it. Writing it needs the extra onnx.
    """
    from ecgfeat.files import refuse_overwriting
    from ecgfeat.onnx_export import MARK, export_onnx, refuse_other_name

    refuse_other_name(model)
    refuse_overwriting(model, MARK, name="MODEL", force=force)
    with output.reporting() as report:
        done = export_onnx(run, model, weights=weights or None, report=report)
    folds = f", mean of {done.n_models} folds" if done.n_models > 1 else ""
    output.say(f"model: {done.path} ({done.n_bytes / 1e6:.1f} MB){folds}")
    output.say(f"classes: {', '.join(done.classes)}")
    output.say(f"input: {done.input_in_words}")
    output.say(
        f"checked in ONNX Runtime on {done.n_pages} pages: no probability is off by more than "
        f"{done.largest_difference:.1e}"
    )
    output.result(done.as_json())
