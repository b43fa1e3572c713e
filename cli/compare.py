"""``ecgfeat compare``: runs side by side on the same test rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from ecgfeat.config import FigureFormat, FigureSettings
from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import FORCE, Given, check_figure, command
from ._results import show_comparison

__all__ = ["compare"]

TableFormat = Literal["markdown", "latex", "csv"]

_EXAMPLES = """
ecgfeat compare runs/20260131-120000-linear-pages runs/20260131-121500-finetune-pages
ecgfeat compare runs/* --figure comparison.pdf --no-title
ecgfeat compare runs/* --format latex
"""


@command(app, "compare", examples=_EXAMPLES)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Two or more runs' folders. Of more than two, those that "
            "can't be compared with most others are left aside, with the reason.",
        ),
    ],
    *,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            help="PNG, PDF or SVG to draw the comparison in, by its suffix.",
            show_default="comparison.png, or as --figure-format says",
        ),
    ] = None,
    form: Annotated[
        TableFormat | None,
        typer.Option(
            "--format",
            help="Print tables to be pasted, and draw no figure but with --figure. csv: a row for "
            "each score, numbers alone.",
            show_default=False,
        ),
    ] = None,
    force: FORCE = False,
    figures: Given[FigureSettings],
    output: Output,
) -> None:
    """Compare runs on the same test rows: scores, paired differences and cost."""
    from ecgfeat.comparison import compare
    from ecgfeat.figures import comparison_plot
    from ecgfeat.methods import paper_tables
    from ecgfeat.runs import open_run

    if form is not None and output.as_json:
        raise ConfigError("--format and --json are two forms of the same: give one of the two")
    look = figures.over(FigureSettings())
    is_drawn = figure is not None or form is None
    figure = figure or Path(f"comparison.{look.figure_format}")
    check_figure(figure, force=force, suffixes=[f".{kind}" for kind in get_args(FigureFormat)])
    if "figure_format" in figures.by_hand and figure.suffix.lower() != f".{look.figure_format}":
        raise ConfigError(
            f"--figure {figure} and --figure-format {look.figure_format} are of two kinds: give "
            "one of the two"
        )
    comparison = compare(runs, leave_aside=True)
    if is_drawn:
        named = replace(comparison, classes=look.rename(comparison.classes))
        comparison_plot(named.as_json(), figure, named.title if look.title else "")
    if form is not None:
        by_name = {run.resolve().name: run for run in runs}
        compared = [open_run(by_name[run.name]) for run in comparison.runs]
        output.say(paper_tables(comparison, compared, form).rstrip("\n"))
        for aside in comparison.left_aside:
            output.log(f"left aside: {aside.name}: {aside.reason}")
        return
    show_comparison(output, comparison, figure)
    output.result({**comparison.as_json(), "figure": str(figure)})
