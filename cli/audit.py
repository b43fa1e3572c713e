"""``ecgfeat audit``: what is wrong with the data."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecgfeat.config import AuditSettings

from ._app import app
from ._console import Output
from ._options import CACHE_FILE, command

if TYPE_CHECKING:
    from ecgfeat.data_audit import Audit, Level

__all__ = ["audit"]

_EXAMPLES = """
ecgfeat audit cache/pages-resnet18-1a2b3c4d.h5
ecgfeat audit cache/pages-resnet18-1a2b3c4d.h5 --run runs/20260131-120000-linear-pages --by sex,age
ecgfeat audit cache/pages-resnet18-1a2b3c4d.h5 --root /mnt/pages --pages 5000
"""

_WIDTH = 100
"""Of a line of prose at most, however wide the terminal."""
_WORDS: Mapping[Level, tuple[str, str]] = {
    "error": ("ERROR", "bold red"),
    "warning": ("WARNING", "bold yellow"),
    "note": ("note", "cyan"),
    "unknown": ("unknown", "dim"),
    "fine": ("fine", "green"),
}


@command(app, "audit", examples=_EXAMPLES)
def audit(
    cache: CACHE_FILE,
    *,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="A run on these data: its results in every stratum."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Parent folder of the audit's folder.")] = Path(
        "audits"
    ),
    settings: AuditSettings,
    output: Output,
) -> None:
    """Look for leaks, copies, shortcuts and doubtful labels before anyone trains on the data.

    Ends with 1 where an error was found: the same picture in train and test or under two labels,
    a patient on both sides.
    """
    from ecgfeat.data_audit import audit

    with output.reporting() as report:
        found = audit(cache, run=run, out_dir=out, settings=settings, report=report)
    _show(output, found)
    output.result(found.as_json() | {"folder": str(found.folder)})
    if found.of("error"):
        raise typer.Exit(1)


def _show(output: Output, found: Audit) -> None:
    """The findings, the gravest first, each with what it means and what mends it."""
    from rich.text import Text

    output.say(f"{found.data_name}: {found.n_images} images")
    for level, (word, style) in _WORDS.items():
        for finding in found.of(level):
            output.show(Text(f"{word:8}", style).append(finding.check, "bold"))
            for text in (finding.number, finding.meaning):
                for line in textwrap.wrap(text, min(output.width, _WIDTH) - 8):
                    output.say(f"        {line}")
            if finding.remedy:
                output.say(f"     -> {finding.remedy}")  # a command stays in one piece
            if "strata" in finding.details:
                _show_strata(output, finding.details["strata"])
    n_errors, n_warnings = len(found.of("error")), len(found.of("warning"))
    verdict = "clean" if found.is_clean else f"errors: {n_errors}, warnings: {n_warnings}"
    output.say(f"{verdict}; lists and sheets: {found.folder}")


def _show_strata(output: Output, strata: Sequence[Mapping[str, Any]]) -> None:
    """A run's results in each stratum; counts alone are in the list."""
    from ecgfeat.metrics import in_words

    if not any("scores" in stratum for stratum in strata):
        return
    heads = {"": "left", "value": "left", "tested": "right", "accuracy": "left", "AUROC": "left"}
    table = output.table("", heads)
    for stratum in strata:
        scores = stratum["scores"]
        table.add_row(
            stratum["column"],
            stratum["value"],
            str(stratum["n_tested"]),
            in_words(scores.get("accuracy")),
            in_words(scores.get("auroc")),
        )
    output.show(table)
