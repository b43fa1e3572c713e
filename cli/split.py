"""``ecgfeat split``: a clean manifest."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import DataSettings, SplitSettings

from ._app import app
from ._console import Output
from ._options import FORCE, command

__all__ = ["split"]

_EXAMPLES = """
ecgfeat split pages/ --group-by folder --val-fraction 0.2
ecgfeat split cache/pages-resnet18-1a2b3c4d.h5 --copies group
ecgfeat split cache/pages-resnet18-1a2b3c4d.h5 --audit audits/pages-resnet18-1a2b3c4d
ecgfeat split pages/manifest.csv --keep-split --out clean.csv
ecgfeat split pages/manifest.csv --folds 10
"""


@command(app, "split", examples=_EXAMPLES)
def split(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|CACHE",
            help="A folder or CSV as extract takes, or a cache made of it, which is quicker.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The CSV to write (default: NAME-split.csv here)."),
    ] = None,
    force: FORCE = False,
    settings: SplitSettings,
    data: DataSettings,
    output: Output,
) -> None:
    """Write a manifest in which no picture and no patient is on two sides of the split."""
    from ecgfeat.clean_split import split

    done = split(source, out=out, data=data, settings=settings, force=force)
    for part, counts in done.counts.items():
        shown = ", ".join(f"{label} {n}" for label, n in counts.items())
        output.say(f"{part:5} {sum(counts.values()):6}  {shown}")
    output.say(f"{done.n_groups} groups of more than one image, each on one side")
    for reason, n in done.as_json()["left_out"].items():
        output.say(f"left out: {n} images, {reason}")
    if done.left_out:
        output.say(f"  listed in {done.left_out_path}")
    output.say(f"manifest: {done.manifest_path}")
    is_beside = done.manifest_path.absolute().parent == done.root.absolute()
    root = "" if is_beside else f" --root {shlex.quote(str(done.root))}"
    folds = " --test-folds 1" if settings.folds else ""
    output.log(f"next: ecgfeat extract {shlex.quote(str(done.manifest_path))}{root}{folds}")
    output.result(done.as_json())
