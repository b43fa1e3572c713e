"""``ecgfeat explain``: where a run's model looked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.config import ComputeSettings
from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import FORCE, IMAGES, RUN, WEIGHTS, check_figure, command
from ._results import refuse_unread

if TYPE_CHECKING:
    from ecgfeat.attribution import Explanation

__all__ = ["explain"]

_EXAMPLES = """
ecgfeat explain runs/20260131-120000-logreg-pages new/page1.jpg
ecgfeat explain runs/20260131-120000-finetune-pages new/ --out looked --class normal
"""


@command(app, "explain", examples=_EXAMPLES)
def explain(
    run: RUN,
    images: IMAGES,
    *,
    label: Annotated[
        str,
        typer.Option(
            "--class",
            metavar="NAME",
            help="The class to speak of: by default the positive one; of more than two the answer.",
            show_default=False,
        ),
    ] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Draw the map with random weights beside it: one that stays the same tells of "
            "the page, and not of what was learned.",
        ),
    ] = True,
    weights: WEIGHTS = "",
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures.")] = Path(
        "explanations"
    ),
    force: FORCE = False,
    compute: ComputeSettings,
    output: Output,
) -> None:
    """Show where the model looked: what each place of a page contributes to the answer.

    The heads are linear in places, and so is the end of a fine-tuned network (Grad-CAM): the
    contributions are exact, and sum up to the log odds.
    """
    from ecgfeat.files import page_named
    from ecgfeat.runs import open_run

    opened = open_run(run)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: give a folder for the pictures")
    from ecgfeat.attribution import explain, explanation_plot  # late: it loads torch

    with output.reporting() as report:
        found = explain(
            opened,
            images,
            label=label,
            check=check,
            compute=compute,
            weights=weights or None,
            report=report,
        )
    pictures: list[Path] = []
    for one in found.explanations:
        named = page_named(one.path)
        stem = Path(named.file).stem + (f"-page{named.page}" if named.page else "")
        pictures.append(_free(out, stem, pictures))
        check_figure(pictures[-1], force=force, option="--out")
    for one, picture in zip(found.explanations, pictures):
        explanation_plot(one, picture)
        _show(output, one, picture)
    precision = opened.checked_card.precision
    if found.explanations and precision != "fp32":
        output.say(
            f"computed in fp32, to sum up exactly; predict takes the run's {precision}, whose "
            "probabilities differ a little"
        )
    described = found.as_json()
    for image, picture in zip(described["images"], pictures):
        image["picture"] = str(picture)
    output.result(described)
    refuse_unread(output, found.failures, len(found.failures) + len(pictures))


def _free(folder: Path, stem: str, taken: list[Path]) -> Path:
    """A picture's name that no other image of this call has."""
    picture, number = folder / f"{stem}.png", 1
    while picture in taken:
        number += 1
        picture = folder / f"{stem}-{number}.png"
    return picture


def _show(output: Output, found: Explanation, picture: Path) -> None:
    from ecgfeat.attribution import UNCHANGED

    output.say(f"{found.path}")
    output.say(f"  {found.label} {found.probability:.4f}, answer: {found.predicted}")
    output.say(
        f"  {found.measure} {found.logit:+.2f}: {found.offset:+.2f} for the average training page, "
        "and"
    )
    for tap, cells in found.cells.items():
        words = f"{tap} {cells.sum():+.2f}"
        if cells.size > 1:
            most, least = (divmod(int(i), cells.shape[1]) for i in (cells.argmax(), cells.argmin()))
            words += (
                f" (most for it: row {most[0] + 1}, column {most[1] + 1}, {cells[most]:+.2f}; "
                f"against: row {least[0] + 1}, column {least[1] + 1}, {cells[least]:+.2f})"
            )
        output.say(f"    {words}")
    if found.random_heat.size:
        output.say(f"  rank correlation with random weights: {found.likeness_to_random:.2f}")
    if found.likeness_to_random > UNCHANGED:
        output.log(
            f"warning: {found.path}: the map is much the same with random weights, so it tells of "
            "the page more than of what the network learned"
        )
    output.say(f"  picture: {picture}")
