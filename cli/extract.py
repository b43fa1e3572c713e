"""``ecgfeat extract``: every image through the frozen network, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    RecipeSettings,
)

from ._app import app
from ._console import Output
from ._data import read_data
from ._options import CACHE, DATA, Given, command

__all__ = ["extract"]

_EXAMPLES = """
ecgfeat extract pages/
ecgfeat extract pages/ --recipe paper
ecgfeat extract pages.csv --root /data/ecg --arch resnet50 --size 896x640
ecgfeat extract pages/ --weights resnet18.pth --precision fp32 --cache features.h5
"""


@command(app, "extract", examples=_EXAMPLES)
def extract(
    data: DATA,
    *,
    cache: CACHE = Path("cache"),
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash",
            help="Read every image again to see whether it changed, not just its "
            "size and time of change.",
        ),
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Compute only this share (from 0/N to N-1/N); a "
            "plain extract then puts the cache together.",
            show_default=False,
        ),
    ] = "",
    recipe: RecipeSettings,
    page: Given[PageSettings],
    network: NetworkSettings,
    source: DataSettings,
    work: Given[ExtractionSettings],
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Run the frozen network over every image once and keep the features.

    A killed or interrupted extraction goes on where it was: run the same command again.
    """
    chosen = recipe.chosen()
    asked = work.over(chosen.extraction)
    manifest = read_data(data, source, output)
    seen = page.over(_page_of_run(network, output) or chosen.page)
    from ecgfeat.extraction import extract  # late: it loads torch

    with output.reporting() as report:
        extraction = extract(
            manifest,
            cache=cache,
            page=seen,
            network=network,
            work=asked,
            compute=compute,
            rehash=rehash,
            shard=shard,
            recipe=chosen.name,
            report=report,
        )
    output.say(f"recipe {chosen.name}: {seen.in_words()} --layers {asked.layers}")
    for line in extraction.summary():
        output.say(line)
    if Path(network.weights).is_dir():
        output.say(
            "its network was fine-tuned and knows the rows that it was trained and validated on: "
            "only the test rows of that run's own split are unseen"
        )
    output.result({"recipe": chosen.name, "data": manifest.as_json(), **extraction.as_json()})


def _page_of_run(network: NetworkSettings, output: Output) -> PageSettings | None:
    """The page that a fine-tuned network was trained on; None for other weights."""
    folder = Path(network.weights).expanduser()
    if not (folder / "config.json").exists():
        return None
    from ecgfeat.runs import open_run

    run = open_run(folder)
    if run.kind != "finetune":
        return None
    page = run.page
    output.log(
        f"{folder} was trained on pages by {page.in_words()}: taken here too, unless given by hand"
    )
    return page
