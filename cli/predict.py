"""``ecgfeat predict``: a run applied to new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from ecgfeat.config import ComputeSettings, DataSettings
from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import FORCE, IMAGES, RUN, WEIGHTS, command
from ._results import refuse_unread

__all__ = ["predict"]

_EXAMPLES = """
ecgfeat predict runs/20260131-120000-linear-pages new/page1.jpg new/page2.png
ecgfeat predict runs/20260131-120000-linear-pages new/ --out predictions.csv
ecgfeat predict runs/20260131-120000-linear-pages new.csv --json
"""


@command(app, "predict", examples=_EXAMPLES)
def predict(
    run: RUN,
    images: IMAGES,
    *,
    weights: WEIGHTS = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="CSV",
            help="Also write a CSV: a row per image, with what a CSV given said of it.",
            show_default=False,
        ),
    ] = None,
    pages: Annotated[
        str,
        typer.Option(
            "--pages",
            metavar="first|all",
            help="Of a file of several pages (TIFF, PDF, DICOM): the first, or all; "
            "scan.tif#page=2 names one.",
        ),
    ] = "first",
    force: FORCE = False,
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Tell the class and probability of new images by any run."""
    from ecgfeat.files import refuse_overwriting
    from ecgfeat.runs import open_run

    chosen = DataSettings(pages=cast(Literal["first", "all"], pages)).pages  # refuses other words
    opened = open_run(run)
    if out is not None:
        if out.resolve() in (image.resolve() for image in images):
            raise ConfigError(f"--out {out} is one of the images given: give another file")
        refuse_overwriting(out, b",predicted,", name="--out", force=force)
    from ecgfeat.inference import predict  # late: it loads torch

    with output.reporting() as report:
        result = predict(
            opened,
            images,
            compute=compute,
            weights=weights or None,
            pages=chosen,
            report=report,
        )
    decision = result.decision.in_words()
    n_images = len(result.paths) + len(result.failures)
    parts = [f"{len(result.paths)} of {n_images} images"]
    parts += [f"positive: {result.positive}"] if result.positive else []
    parts += [f"mean of {result.n_models} folds"] if result.n_models > 1 else []
    parts += [decision] if decision else []
    # Lines, whose names a narrow terminal doesn't break; those come last, of whatever length.
    output.say(", ".join(parts))
    if result.cleaning:
        output.say(result.cleaning)
    width = max(map(len, result.classes))
    heads = [f"{name:>{max(6, len(name))}}" for name in result.classes]
    output.say("  ".join([f"{'class':<{width}}", *heads, "image"]))
    for path, name, row in zip(result.paths, result.predicted, result.probabilities.tolist()):
        cells = [f"{value:>{len(head)}.4f}" for value, head in zip(row, heads)]
        output.say("  ".join([f"{name:<{width}}", *cells, str(path)]))
    if out is not None:
        result.write_csv(out)
        output.say(f"predictions: {out}")
    output.result(result.as_json())
    for warning in result.warnings:
        output.log(f"warning: {warning}")
    if result.unlike:
        output.log(
            f"warning: {len(result.unlike)} of {len(result.paths)} images are unlike the training "
            f"images, farther from them than any of those, such as {result.unlike[0]}: look at "
            "them; their answers may mean nothing"
        )
    refuse_unread(output, result.failures, n_images)
