"""``ecgfeat compare``: runs side by side on the same test rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._app import app
from ._console import Output
from ._options import FORCE, check_figure, command
from ._results import show_comparison

__all__ = ["compare"]

_EXAMPLES = """
ecgfeat compare runs/20260131-120000-linear-pages runs/20260131-121500-finetune-pages
ecgfeat compare runs/* --figure comparison.png
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
    figure: Annotated[Path, typer.Option("--figure", help="PNG to draw the comparison in.")] = Path(
        "comparison.png"
    ),
    force: FORCE = False,
    output: Output,
) -> None:
    """Compare runs on the same test rows: scores, paired differences and cost."""
    from ecgfeat.comparison import compare
    from ecgfeat.figures import comparison_plot

    check_figure(figure, force=force)
    comparison = compare(runs, leave_aside=True)
    shown = comparison.as_json()
    comparison_plot(shown["runs"], figure, comparison.title)
    show_comparison(output, comparison, figure)
    output.result({**shown, "figure": str(figure)})
