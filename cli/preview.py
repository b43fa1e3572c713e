"""``ecgfeat preview``: what the network sees of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import DataSettings, PageSettings, PreviewSettings, RecipeListSettings

from ._app import app
from ._console import Output
from ._data import read_data
from ._options import DATA, FORCE, Given, check_figure, command

__all__ = ["preview"]

_EXAMPLES = """
ecgfeat preview pages/
ecgfeat preview pages/ --recipe paper --n 5
ecgfeat preview pages/ --recipe paper,ecg
ecgfeat preview pages.csv --root /data/ecg --crop-mode border --size 448
"""


@command(app, "preview", examples=_EXAMPLES)
def preview(
    data: DATA,
    *,
    figure: Annotated[Path, typer.Option("--figure", help="PNG to draw the sheet in.")] = Path(
        "preview.png"
    ),
    force: FORCE = False,
    sheet: PreviewSettings,
    recipe: RecipeListSettings,
    page: Given[PageSettings],
    source: DataSettings,
    output: Output,
) -> None:
    """Draw a few pages of each class beside exactly what the network sees of them."""
    check_figure(figure, force=force)
    first, *others = recipe.chosen()
    # Options by hand alone are no recipe's, whatever they were put over.
    is_recipe = recipe.recipe or not page.by_hand
    manifest = read_data(data, source, output)
    from ecgfeat.contact_sheet import preview  # late: it loads matplotlib

    with output.reporting() as report:
        shown = preview(
            manifest,
            figure=figure,
            page=page.over(first.page),
            recipe=first.name if is_recipe else "",
            beside={other.name: page.over(other.page) for other in others},
            sheet=sheet,
            report=report,
        )
    for line in shown.summary():
        output.say(line)
    output.result({"data": manifest.as_json(), **shown.as_json()})
