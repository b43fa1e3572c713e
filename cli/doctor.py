"""``ecgfeat doctor``: the machine, what is installed, and what to mend."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import ComputeSettings

from ._app import app
from ._console import Output
from ._options import CACHE, OUT, command

if TYPE_CHECKING:
    from ._diagnosis import Finding

__all__ = ["doctor"]

_EXAMPLES = """
ecgfeat doctor
ecgfeat doctor --weights resnet18.pth
ecgfeat doctor --cache /scratch/caches --device cpu
"""

_WIDTH = 80
"""Of a line of prose at most, so that it may be pasted anywhere."""
_INDENT = 23
"""Columns before what was found: the level and the title."""
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "cyan", "ok": "green"}


@command(app, "doctor", examples=_EXAMPLES)
def doctor(
    *,
    cache: CACHE = Path("cache"),
    out: OUT = Path("runs"),
    weights: Annotated[
        str, typer.Option("--weights", metavar="imagenet|PATH", help="Weights to look into.")
    ] = "imagenet",
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Look at the machine and what is installed, measure its speed, and say what to mend.

    Takes some twenty seconds, downloads nothing and leaves nothing behind.
    What it prints may be pasted into a bug report. Ends with 1 on an error.
    """
    from ._diagnosis import diagnose

    with output.reporting() as report:
        findings = diagnose(
            cache=cache, out_dir=out, weights=weights, compute=compute, report=report
        )
    for finding in findings:
        _show(output, finding)
    faults = {
        level: [finding.title for finding in findings if finding.level == level]
        for level in ("error", "warning")
    }
    words = [f"{level}s: {', '.join(titles)}" for level, titles in faults.items() if titles]
    output.say("; ".join(words) or "no errors, no warnings")
    output.result({"findings": [vars(finding) for finding in findings]})
    if faults["error"]:
        raise typer.Exit(1)


def _show(output: Output, finding: Finding) -> None:
    """The level, the title and what was found; below it what to do."""
    from rich.text import Text

    is_grave = finding.level in ("error", "warning")
    word = finding.level.upper() if is_grave else finding.level
    first, *lines = _wrapped(output, finding.found) or [""]
    output.show(
        Text()
        .append(f"{word:8} ", _STYLES[finding.level])
        .append(f"{finding.title:<{_INDENT - 10}} ", "bold")
        .append(first)
    )
    for line in lines:
        output.say(" " * _INDENT + line)
    # A command stays in one piece, a sentence needn't.
    is_sentence = finding.remedy.endswith(".")
    remedy = _wrapped(output, finding.remedy) if is_sentence else [finding.remedy]
    for number, line in enumerate(filter(None, remedy)):
        output.say(f"{'' if number else '->':>{_INDENT - 1}} {line}")


def _wrapped(output: Output, text: str) -> list[str]:
    width = max(20, min(output.width, _WIDTH) - _INDENT)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
