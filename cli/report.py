"""``ecgfeat report``: one page about runs that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import ReportSettings
from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import FORCE, command

__all__ = ["report"]

_EXAMPLES = """
ecgfeat report runs/20260131-120000-logreg-pages
ecgfeat report runs/* --audit audits/pages-resnet18-1a2b3c4d --out pages.html
"""


@command(app, "report", examples=_EXAMPLES)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="One or several runs' folders.", show_default=False),
    ],
    *,
    audit: Annotated[
        Path | None,
        typer.Option("--audit", metavar="FOLDER", help="An audit's folder, to be shown too."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path(
        "report.html"
    ),
    force: FORCE = False,
    settings: ReportSettings,
    output: Output,
) -> None:
    """Write one HTML page about runs: the answer, the data, scores, mistakes, how to repeat it.

    The page holds all its pictures, opens without a network, and prints.
    """
    from ecgfeat.files import refuse_overwriting

    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out must end in .html; found {out}")
    refuse_overwriting(out, b'name="generator" content="ecgfeat"', name="--out", force=force)
    from ecgfeat.html_report import report  # late: it loads torch

    with output.reporting() as tell:
        page = report(runs, out=out, audit=audit, settings=settings, report=tell)
    for sentence in page.answer:
        output.say(sentence)
    for line in page.lacking:
        output.log(f"not on the page: {line}")
    output.say(f"report: {page.path}")
    output.result(page.as_json())
