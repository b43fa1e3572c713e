"""``ecgfeat preview``: what the network sees of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecgfeat.config import DataSettings, PageSettings, PreviewSettings, RecipeSettings

from ._app import app
from ._console import Output
from ._data import read_data
from ._options import DATA, FORCE, Given, check_figure, command

__all__ = ["preview"]

_EXAMPLES = """
ecgfeat preview pages/
ecgfeat preview pages/ --recipe paper --n 5
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
    recipe: RecipeSettings,
    page: Given[PageSettings],
    source: DataSettings,
    output: Output,
) -> None:
    """Draw a few pages of each class beside exactly what the network sees of them."""
    check_figure(figure, force=force)
    seen = page.over(recipe.chosen().page)
    manifest = read_data(data, source, output)
    from ecgfeat.contact_sheet import preview  # late: it loads matplotlib

    with output.reporting() as report:
        shown = preview(manifest, figure=figure, page=seen, sheet=sheet, report=report)
    for line in shown.summary():
        output.say(line)
    output.result({"data": manifest.as_json(), **shown.as_json()})
