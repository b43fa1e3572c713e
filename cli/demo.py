"""``ecgfeat demo``: the whole study on synthetic pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import (
    DEFAULT_RECIPE,
    RECIPES,
    HeadKind,
    HeadSettings,
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
_PAGES = SynthSettings(train=600, test=200, difficulty="easy")
_RECIPE = RECIPES[DEFAULT_RECIPE]
# Raw features of several layers differ too much in size for the study's few steps of Adam.
_LAST = "layer4" if "layer4" in _RECIPE.extraction.taps else _RECIPE.extraction.taps[-1]
_LINEAR = HeadSettings(layers=_LAST)
# A training step on the recipe's page costs four times as much, and on two cores minutes more.
_TUNED_PAGE = PageSettings(crop_mode="squash", size="224x160")
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
        output.log(f"2/5 extract: every page through the frozen network, recipe {_RECIPE.name}")
        extraction, network = _extract(manifest, out / "cache", output, report)
        output.log("3/5 fit-head: the study's linear head, and logistic regression")
        features = open_cache(extraction.cache)
        heads: dict[HeadKind, HeadSettings] = {"linear": _LINEAR, "logreg": _RECIPE.head}
        runs = []
        for kind, head in heads.items():
            runs += fit_heads(
                features,
                kinds=[kind],
                head=head,
                out_dir=out / "runs",
                recipe=_RECIPE.name,
                report=report,
            )
        output.log(
            f"4/5 finetune: the whole network, on pages of {_TUNED_PAGE.size} pixels to be quick"
        )
        runs.append(
            finetune(
                manifest,
                network=network,
                page=_TUNED_PAGE,
                out_dir=out / "runs",
                report=report,
            )
        )
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
