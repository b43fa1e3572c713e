"""``ecgfeat demo``: the whole study on synthetic pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import NetworkSettings, SynthSettings

from ._app import app
from ._console import Output
from ._options import command
from ._results import runs_as_json, show_comparison, show_runs

if TYPE_CHECKING:
    from ecgfeat.extraction import Extraction
    from ecgfeat.manifest import Manifest
    from ecgfeat.runtime import Report

__all__ = ["demo"]

# Few and easy enough that two cores see a result within minutes.
_PAGES = SynthSettings(train=600, test=200, difficulty="easy")
_EXAMPLES = """
ecgfeat demo
ecgfeat demo my-demo
"""


@command(app, "demo", examples=_EXAMPLES)
def demo(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the pages, the cache and the runs."),
    ] = Path("demo"),
    *,
    output: Output,
) -> None:
    """Run the whole study on a small synthetic set: synth, extract, fit-head, finetune, compare."""
    from ecgfeat.comparison import compare
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.figures import comparison_plot
    from ecgfeat.finetuning import finetune
    from ecgfeat.heads import fit_heads
    from ecgfeat.manifest import read_manifest
    from ecgfeat.synth import synthesize

    with output.reporting() as report:
        listing = out / "pages" / "manifest.csv"
        if not listing.exists():
            output.log("1/5 synth: drawing pages")
            synthesize(out / "pages", _PAGES, report=report)
        manifest = read_manifest(listing)
        output.log("2/5 extract: every page through the frozen network")
        extraction, network = _extract(manifest, out / "cache", output, report)
        output.log("3/5 fit-head: the linear head and logistic regression")
        runs = fit_heads(
            open_cache(extraction.cache),
            kinds=("linear", "logreg"),
            out_dir=out / "runs",
            report=report,
        )
        output.log("4/5 finetune: the whole network")
        runs.append(finetune(manifest, network=network, out_dir=out / "runs", report=report))
    output.log("5/5 compare")
    comparison = compare(runs)
    figure = out / "comparison.png"
    comparison_plot(comparison.as_json()["runs"], figure, comparison.title)
    show_runs(output, runs)
    show_comparison(output, comparison, figure)
    for run in runs:
        output.say(f"figures: {run.path}/*.png")
    output.result({**runs_as_json(runs), "comparison": comparison.as_json(), "figure": str(figure)})


def _extract(
    manifest: Manifest, cache: Path, output: Output, report: Report
) -> tuple[Extraction, NetworkSettings]:
    """Extract with ImageNet weights, or random ones where they can't be had."""
    from ecgfeat.errors import WeightsError
    from ecgfeat.extraction import extract

    network = NetworkSettings()
    try:
        return extract(manifest, cache=cache, network=network, report=report), network
    except WeightsError as error:
        output.log(str(error))
        output.log(
            "The demo goes on with RANDOM weights: its figures show how things work, not how "
            "well a pretrained network does."
        )
    network = NetworkSettings(weights="random")
    return extract(manifest, cache=cache, network=network, report=report), network
