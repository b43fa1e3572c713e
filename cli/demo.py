"""``ecgfeat demo``: the whole study on synthetic pages."""

from __future__ import annotations

import time
import timeit
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import (
    DEFAULT_RECIPE,
    RECIPES,
    NetworkSettings,
    PageSettings,
    SynthSettings,
)

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
_PAGES = SynthSettings(train=300, test=150, difficulty="easy")
_RECIPE = RECIPES[DEFAULT_RECIPE]
# A training step on the recipe's page costs eight times as much, and on two cores minutes more.
_TUNED_PAGE = PageSettings(crop_mode="squash", size="160x112")
_TRAINING = replace(_RECIPE.training, lr=1e-3, epochs=5)
_STARTING_S = 30.0
"""Seconds of what isn't the network's: drawing, heads, figures, loading torch."""
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
    """Run the whole study on a small synthetic set: synth, extract, heads, finetune, report."""
    from ecgfeat.comparison import compare
    from ecgfeat.feature_cache import open_cache
    from ecgfeat.figures import comparison_plot
    from ecgfeat.finetuning import finetune
    from ecgfeat.heads import fit_heads
    from ecgfeat.html_report import report as write_report
    from ecgfeat.manifest import read_manifest
    from ecgfeat.synth import synthesize

    output.log(f"the whole takes about {_minutes_here()} on this machine")
    with output.reporting() as report:
        listing = out / "pages" / "manifest.csv"
        if not listing.exists():
            output.log("1/5 synth: drawing pages")
            synthesize(out / "pages", _PAGES, report=report)
        manifest = read_manifest(listing)
        output.log(f"2/5 extract: every page through the frozen network, recipe {_RECIPE.name}")
        extraction, network = _extract(manifest, out / "cache", output, report)
        output.log("3/5 fit-head: a linear head, and logistic regression")
        runs = fit_heads(
            open_cache(extraction.cache), kinds="both", out_dir=out / "runs", report=report
        )
        output.log(
            f"4/5 finetune: the whole network, on pages of {_TUNED_PAGE.size} pixels to be quick"
        )
        runs.append(
            finetune(
                manifest,
                network=network,
                page=_TUNED_PAGE,
                training=_TRAINING,
                out_dir=out / "runs",
                report=report,
            )
        )
        output.log("5/5 compare and report")
        comparison = compare(runs)
        figure = out / "comparison.png"
        comparison_plot(comparison.as_json(), figure, comparison.title)
        page = write_report(runs, out=out / "report.html", report=report)
    show_runs(output, runs)
    show_comparison(output, comparison, figure)
    for run in runs:
        output.say(f"figures: {run.path}/*.png")
    output.say(f"report: {page.path} (open it in a browser)")
    output.result(
        {
            **runs_as_json(runs),
            "comparison": comparison.as_json(),
            "figure": str(figure),
            "report": str(page.path),
        }
    )


def _minutes_here() -> str:
    """How long the demo takes, by a few passes of the network through pages of noise."""
    import torch
    from torchvision.models import resnet18

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return "a minute"
    network = resnet18().eval()
    pages = torch.rand(4, 3, _TUNED_PAGE.height_px, _TUNED_PAGE.width_px)
    n_threads = torch.get_num_threads()
    # One thread's own time: whatever else the machine does at the moment doesn't lengthen it.
    torch.set_num_threads(1)
    with torch.inference_mode():
        passes = timeit.repeat(lambda: network(pages), timer=time.thread_time, number=1, repeat=4)
    torch.set_num_threads(n_threads)
    pass_s = min(passes) / len(pages) / n_threads
    n_extracted, n_trained = _PAGES.train + _PAGES.test, _PAGES.train * _TRAINING.epochs
    larger = _n_pixels(_RECIPE.page) / _n_pixels(_TUNED_PAGE)
    # Training takes a pass back too, which costs twice the pass forth.
    seconds = _STARTING_S + pass_s * (n_extracted * larger + 3 * n_trained)
    minutes = max(1.0, round(seconds / 30) / 2)
    return "a minute" if minutes == 1 else f"{minutes:g} minutes"


def _n_pixels(page: PageSettings) -> int:
    return page.width_px * page.height_px


def _extract(
    manifest: Manifest, cache: Path, output: Output, report: Report
) -> tuple[Extraction, NetworkSettings]:
    """Extract with ImageNet weights, or random ones where they can't be had."""
    from ecgfeat.errors import WeightsError
    from ecgfeat.extraction import extract

    extract_with = partial(
        extract,
        manifest,
        cache=cache,
        page=_RECIPE.page,
        work=_RECIPE.extraction,
        recipe=_RECIPE.name,
        report=report,
    )
    network = NetworkSettings()
    try:
        return extract_with(network=network), network
    except WeightsError as error:
        output.log(str(error))
        output.log(
            "The demo goes on with RANDOM weights: its figures show how things work, not how "
            "well a pretrained network does."
        )
    network = NetworkSettings(weights="random")
    return extract_with(network=network), network
