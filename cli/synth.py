"""``ecgfeat synth``: labelled synthetic ECG pages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import SynthSettings

from ._app import app
from ._console import Output
from ._options import command

__all__ = ["synth"]

_EXAMPLES = """
ecgfeat synth pages/
ecgfeat synth pages/ --train 65600 --test 18136 --difficulty hard --seed 7
ecgfeat synth faulty/ --copies 20 --undecodable 6 --missing 10
"""


@command(app, "synth", examples=_EXAMPLES)
def synth(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new or empty folder.", show_default=False)
    ],
    *,
    settings: SynthSettings,
    output: Output,
) -> None:
    """Draw labelled synthetic twelve-lead ECG pages and their manifest.csv."""
    from ecgfeat.synth import synthesize

    with output.reporting() as report:
        summary = synthesize(out, settings, report=report)
    n_pages = summary.n_train + summary.n_test
    output.say(
        f"{n_pages} pages ({summary.n_train} train, {summary.n_test} test; "
        f"classes {', '.join(summary.classes)}) in {summary.seconds:.1f} s"
    )
    planted = {
        "copies of training pages among the test pages": summary.n_copies,
        "undecodable files": summary.n_undecodable,
        "rows of missing files": summary.n_missing,
    }
    if any(planted.values()):
        output.say("planted: " + ", ".join(f"{n} {what}" for what, n in planted.items() if n))
    output.say(f"manifest: {summary.manifest_path}")
    output.log(f"next: ecgfeat extract {summary.manifest_path}")
    output.result({**asdict(summary), "manifest_path": str(summary.manifest_path)})
