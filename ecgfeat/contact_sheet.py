"""A contact sheet: pages of a data set beside the very pixels that the network is given of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ecgfeat.config import PageSettings, PreviewSettings
from ecgfeat.errors import ConfigError, ImageError
from ecgfeat.figures.style import import_matplotlib
from ecgfeat.files import replacing
from ecgfeat.images import MAX_PIXELS, decode, prepare, straightened, straightened_in_words
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.preprocessing import Geometry, Preprocessing
from ecgfeat.protocol import hash_place
from ecgfeat.runtime import Progress, Report, silent

__all__ = ["Preview", "Seen", "Shown", "picture_sheet", "preview"]

PAPER, INK, GREY, RULE, OUTLINE = "#ffffff", "#222222", "#666666", "#cccccc", "#0072B2"
MARGIN_PX, GAP_PX, LINE_PX, FONT_PX, LETTER_PX = 24, 8, 18, 13, 8
MIN_ROW_PX = 160
"""Height of the pages on the sheet, where the network's input is smaller than that."""
MIN_WIDTH_PX, MAX_WIDTH_PX = 640, 1600
"""Width of a preview: room for its title at least, and at most what a screen shows. A network's
input is drawn pixel for pixel, and may need more."""
PAGE_ASPECT = 1.5
"""Width over height of the room for a page: between A4 (1.41) and a printed sheet (1.73)."""
PALER = 0.55
"""How far what the network doesn't see is drawn towards white."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image of the sheet.

    Attributes
    ----------
    path, label : str
    page_px : tuple of int
        (width, height) of the page; zeros where it can't be had.
    scale : tuple of float
        (horizontal, vertical) pixels of the input per pixel of the page.
    kept : float
        Share of the page's area that is in the input.
    padding : float
        Share of the input's area that is not page.
    is_straightened : bool
        Whether it is a photograph, in which the page was found; the rest is then of that page.
    reason : str
        Why the image can't be had; empty where it can.
    """

    path: str
    label: str
    page_px: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (0.0, 0.0)
    kept: float = 0.0
    padding: float = 0.0
    is_straightened: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a contact sheet shows, and where it is.

    Attributes
    ----------
    figure : Path
        The PNG.
    page : PageSettings
        How the pages were prepared.
    images : tuple of Seen
        Class by class.
    n_images : mapping of str to int
        How many images each class has in all.
    missing : int
        Listed files that are absent.
    recipe : str
        Name of the recipe that `page` began as; empty where it was none.
    beside : tuple of Preview
        The same pages by other recipes, in the same figure.
    """

    figure: Path
    page: PageSettings
    images: tuple[Seen, ...]
    n_images: Mapping[str, int]
    missing: int
    recipe: str = ""
    beside: tuple[Preview, ...] = ()

    @property
    def undecodable(self) -> list[Seen]:
        """The chosen images that can't be had."""
        return [seen for seen in self.images if seen.reason]

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        found = asdict(self)
        others = [other.as_json() for other in self.beside]
        return {**found, **found.pop("page"), "figure": str(self.figure), "beside": others}

    def summary(self) -> list[str]:
        """The same in words, one line each."""
        shown = [seen.label for seen in self.images]
        counts = ", ".join(
            f"{label} {shown.count(label)} of {n}" for label, n in self.n_images.items()
        )
        lines = [f"{len(self.images)} images: {counts}"]
        if self.missing:
            lines.append(f"{self.missing} listed images are missing")
        lines += [f"can't be decoded: {seen.path}: {seen.reason}" for seen in self.undecodable]
        lines += [line for each in (self, *self.beside) for line in each._kept_in_words()]
        return [*lines, f"sheet: {self.figure}"]

    def _kept_in_words(self) -> list[str]:
        seen = [seen for seen in self.images if not seen.reason]
        if not seen:
            return []
        lines = [
            f"{in_words(self.recipe, self.page)}: "
            f"{_range([s.kept for s in seen])} of the page is kept, at "
            f"{_range([s.scale[0] for s in seen])} of its width and "
            f"{_range([s.scale[1] for s in seen])} of its height; "
            f"{_range([s.padding for s in seen])} of the input is padding"
        ]
        if self.page.clean != "none":
            lines.append(straightened_in_words(sum(s.is_straightened for s in seen), len(seen)))
        return lines


def in_words(recipe: str, page: PageSettings) -> str:
    """How pages were prepared, as options have it, after the recipe that they began as."""
    return f"recipe {recipe}, {page.in_words()}" if recipe else page.in_words()


def _range(shares: Sequence[float]) -> str:
    least, most = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return least if least == most else f"{least} to {most}"


def preview(
    manifest: Manifest | str | Path,
    *,
    figure: str | Path = "preview.png",
    page: PageSettings = PageSettings(),
    recipe: str = "",
    beside: Mapping[str, PageSettings] = MappingProxyType({}),
    sheet: PreviewSettings = PreviewSettings(),
    report: Report = silent,
) -> Preview:
    """Draw pages of each class beside the network's input, pixel for pixel.

    Parameters
    ----------
    manifest : Manifest, str or Path
        What `read_manifest` gives, or takes.
    figure : Path
        The PNG to write.
    page, sheet : settings
    recipe : str
        Name of the recipe that `page` began as, for the title.
    beside : mapping of str to PageSettings
        By their names, other recipes' pages, drawn beside the first one's.
    report : callable
        Told the progress; may raise `Interrupted`.

    Returns
    -------
    Preview

    Raises
    ------
    ConfigError
        When `figure` is no PNG, or the sheet would have too many pixels.
    StorageError
        When the disk refuses.

    Examples
    --------
    >>> preview("pages", page=PageSettings(crop_mode="squash"))  # doctest: +SKIP
    """
    figure = Path(figure)
    if figure.suffix.lower() != ".png":
        raise ConfigError(f"--figure must end in .png; found {figure}")
    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest)
    manifest.refuse_inside(figure, "--figure")
    chosen = {label: _chosen(manifest, label, sheet.n) for label in manifest.classes}
    pages = {recipe or ("by hand" if beside else ""): page, **beside}
    views = {name: Preprocessing.from_settings(each) for name, each in pages.items()}
    drawing = _Sheet(views, [len(rows) for rows in chosen.values()])
    words = [in_words(name, each) for name, each in pages.items()]
    drawing.title(f"{manifest.name}, {'; beside it '.join(words)}")
    n_images = {label: manifest.labels.count(label) for label in chosen}
    n_chosen = sum(map(len, chosen.values()))
    seen: list[list[Seen]] = []
    for band, (label, rows) in enumerate(chosen.items()):
        drawing.heading(band, f"{label}: {len(rows)} of {n_images[label]}")
        for number, row in enumerate(rows):
            report(Progress(stage="drawing", done=len(seen), total=n_chosen))
            path = manifest.paths[row]
            decoded = cache(partial(decode, manifest.image_path(row)))
            seen.append(
                [_draw(drawing, (band, number), view, decoded, path, label) for view in views]
            )
    drawing.save(figure)
    first, *others = (
        Preview(
            figure=figure,
            page=replace(pages[name], size=views[name].size),
            images=tuple(images),
            n_images=n_images,
            missing=len(manifest.missing),
            recipe=name,
        )
        for name, images in zip(pages, zip(*seen))
    )
    return replace(first, beside=tuple(others))


def _chosen(manifest: Manifest, label: str, n: int) -> list[int]:
    """The first `n` of a class in the order of a hash of their paths."""
    rows = [row for row, found in enumerate(manifest.labels) if found == label]
    return sorted(rows, key=lambda row: hash_place(manifest.paths[row]))[:n]


def _draw(
    sheet: _Sheet,
    place: Place,
    view: str,
    decoded: Callable[..., NDArray[np.uint8]],
    path: str,
    label: str,
) -> Seen:
    """Draw a page, which `decoded` gives at a resolution, as a view has it."""
    preprocessing = sheet.views[view]
    try:
        given = decoded(dpi=preprocessing.dpi)
        pixels = prepare(given, preprocessing)
        page = straightened(given, preprocessing)
    except ImageError as error:
        sheet.fail(place, view, path, str(error))
        return Seen(path=path, label=label, reason=str(error))
    height, width = page.shape[:2]
    size_px = (pixels.shape[1], pixels.shape[0])
    geometry = preprocessing.geometry((width, height))
    box = _kept_box(geometry, (width, height), size_px)
    covered_px = [min(r, s) for r, s in zip(geometry.resized_px, size_px)]
    seen = Seen(
        path=path,
        label=label,
        page_px=(width, height),
        scale=(geometry.resized_px[0] / width, geometry.resized_px[1] / height),
        kept=(box[2] - box[0]) * (box[3] - box[1]) / (width * height),
        padding=1 - covered_px[0] * covered_px[1] / (size_px[0] * size_px[1]),
        is_straightened=page is not given,
    )
    caption = f"{width} x {height} px, {seen.kept:.0%} kept"
    sheet.show(place, view, (path, caption), page, box, pixels)
    return seen


Box = tuple[float, float, float, float]


def _kept_box(geometry: Geometry, page_px: tuple[int, int], size_px: tuple[int, int]) -> Box:
    """Left, top, right and bottom, on the page, of what of it is in the input."""
    starts, ends = [], []
    for axis in (0, 1):
        page_per_resized = page_px[axis] / geometry.resized_px[axis]
        start, end = geometry.offset_px[axis], geometry.offset_px[axis] + size_px[axis]
        starts.append(max(start, 0) * page_per_resized)
        ends.append(min(end, geometry.resized_px[axis]) * page_per_resized)
    return (starts[0], starts[1], ends[0], ends[1])


Place = tuple[int, int]
"""Of a page on the sheet: the number of its class, and its own in the class."""


class _Canvas:
    """A white picture to write on and to paste others on."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self._image = Image.new("RGB", (width_px, height_px), PAPER)
        self.pencil = ImageDraw.Draw(self._image)
        self._regular, self._bold = _font("DejaVuSans.ttf"), _font("DejaVuSans-Bold.ttf")

    def write(
        self, at: tuple[int, int], text: str, room_px: int, *, bold: bool = False, colour: str = INK
    ) -> None:
        """Write one line; where there is no room for all of it, its end: a path's tells most."""
        font = self._bold if bold else self._regular
        line = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
        shown = line
        while line and font.getlength(shown) > room_px:
            line = line[1:]
            shown = f"…{line}"
        self.pencil.text(at, shown, fill=colour, font=font)

    def paste(self, picture: Image.Image, left: int, top: int) -> None:
        around = (left - 1, top - 1, left + picture.width, top + picture.height)
        self.pencil.rectangle(around, outline=RULE)
        self._image.paste(picture, (left, top))

    def save(self, path: Path) -> None:
        mark = PngInfo()  # by which a later sheet may take this one's place
        mark.add_text("Software", "ecgfeat")
        with replacing(path) as aside:
            self._image.save(aside, format="PNG", pnginfo=mark)


def _font(name: str) -> ImageFont.FreeTypeFont:
    # matplotlib's own: it has far more letters than Pillow's, and is the same on every machine.
    import_matplotlib()
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, FONT_PX)


class _Sheet(_Canvas):
    """The picture under way: bands of classes, and in each its pages with their inputs.

    `views` are the ways to prepare a page that are drawn beside each other, by name; `n_pages` are
    counted by class.
    """

    def __init__(self, views: Mapping[str, Preprocessing], n_pages: Sequence[int]) -> None:
        self.views = views
        self._row_px = max(MIN_ROW_PX, *(view.height_px for view in views.values()))
        input_px = [max(view.width_px, MIN_ROW_PX) for view in views.values()]
        room_px = MAX_WIDTH_PX - MARGIN_PX
        pages_px = room_px - sum(width + GAP_PX + MARGIN_PX for width in input_px)
        # Inputs are shown pixel for pixel: only the pages beside them may be smaller.
        fitting_px = max(MIN_ROW_PX, pages_px // len(views))
        self._page_px = min(round(self._row_px * PAGE_ASPECT), fitting_px)
        self._cells_px = [self._page_px + GAP_PX + width for width in input_px]
        self._group_px = sum(width + MARGIN_PX for width in self._cells_px)
        self._n_columns = max(1, min(max(n_pages), room_px // self._group_px))
        self._line_px = 2 * LINE_PX + self._row_px + MARGIN_PX
        width = max(MIN_WIDTH_PX, MARGIN_PX + self._n_columns * self._group_px)
        self._tops_px = [2 * MARGIN_PX + 2 * LINE_PX]
        for n in n_pages:
            n_lines = math.ceil(n / self._n_columns)
            self._tops_px.append(self._tops_px[-1] + LINE_PX + n_lines * self._line_px)
        height = self._tops_px[-1]
        self._room_px = width - 2 * MARGIN_PX
        if width * height > MAX_PIXELS:
            raise ConfigError(
                f"the sheet would have {width:,} x {height:,} pixels, at most "
                f"{MAX_PIXELS / 1e6:.0f} million are drawn: take a smaller --n or --size"
            )
        super().__init__(width, height)

    def title(self, text: str) -> None:
        note = "left: the page, what is kept of it outlined; right: the input, pixel for pixel"
        self.write((MARGIN_PX, MARGIN_PX), text, self._room_px, bold=True)
        self.write((MARGIN_PX, MARGIN_PX + LINE_PX), note, self._room_px, colour=GREY)

    def heading(self, band: int, text: str) -> None:
        self.write((MARGIN_PX, self._tops_px[band]), text, self._room_px, bold=True)

    def show(
        self,
        place: Place,
        view: str,
        caption: Sequence[str],
        page: NDArray[np.uint8],
        box: Box,
        pixels: NDArray[np.uint8],
    ) -> None:
        left, top, _ = self._caption(place, view, caption)
        scale = min(1.0, self._page_px / page.shape[1], self._row_px / page.shape[0])
        shown_px = [max(1, round(side * scale)) for side in (page.shape[1], page.shape[0])]
        shown = Image.fromarray(page).resize((shown_px[0], shown_px[1]), reducing_gap=3.0)
        kept = [round(edge * scale) for edge in box]
        frame = (kept[0], kept[1], max(kept[2], kept[0] + 1), max(kept[3], kept[1] + 1))
        if frame != (0, 0, *shown.size):
            kept_part = shown.crop(frame)
            shown = Image.blend(shown, Image.new("RGB", shown.size, PAPER), PALER)
            shown.paste(kept_part, frame[:2])
            outline = (frame[0], frame[1], frame[2] - 1, frame[3] - 1)
            ImageDraw.Draw(shown).rectangle(outline, outline=OUTLINE, width=2)
        self.paste(shown, left, top)
        self.paste(Image.fromarray(pixels), left + shown.width + GAP_PX, top)

    def fail(self, place: Place, view: str, path: str, reason: str) -> None:
        left, top, cell_px = self._caption(place, view, (path, "can't be decoded"))
        self.pencil.rectangle((left, top, left + cell_px - 1, top + self._row_px - 1), outline=GREY)
        room_px = cell_px - 2 * GAP_PX
        for number, line in enumerate(textwrap.wrap(reason, room_px // LETTER_PX)):
            at = (left + GAP_PX, top + GAP_PX + number * LINE_PX)
            self.write(at, line, room_px)

    def _caption(self, place: Place, view: str, lines: Sequence[str]) -> tuple[int, int, int]:
        """Write a cell's lines; returns where its pictures begin, and its width."""
        (band, number), position = place, list(self.views).index(view)
        line, column = divmod(number, self._n_columns)
        before_px = sum(width + MARGIN_PX for width in self._cells_px[:position])
        left = MARGIN_PX + column * self._group_px + before_px
        top = self._tops_px[band] + LINE_PX + line * self._line_px
        cell_px = self._cells_px[position]
        first, *others = lines
        named = f"{view}: {first}" if len(self.views) > 1 else first
        for row, text in enumerate((named, *others)):
            self.write((left, top + row * LINE_PX), text, cell_px, colour=GREY)
        return left, top + 2 * LINE_PX, cell_px


@dataclass(frozen=True)
class Shown:
    """A picture of a sheet: its file, and the lines above it."""

    path: Path
    caption: Sequence[str]


CELL_PX = (380, 270)
MAX_CELLS = 400


def picture_sheet(path: Path, title: str, rows: Sequence[Sequence[Shown]]) -> None:
    """Draw rows of pictures, each as large as fits into its cell, into a PNG.

    Parameters
    ----------
    path : Path
    title : str
    rows : sequence of sequences of Shown
        `MAX_CELLS` pictures at most.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    n_lines = max(len(shown.caption) for row in rows for shown in row)
    n_columns = max(map(len, rows))
    row_px = n_lines * LINE_PX + CELL_PX[1] + MARGIN_PX
    width = max(MIN_WIDTH_PX, MARGIN_PX + n_columns * (CELL_PX[0] + MARGIN_PX))
    sheet = _Canvas(width, 2 * MARGIN_PX + LINE_PX + len(rows) * row_px)
    sheet.write((MARGIN_PX, MARGIN_PX), title, width - 2 * MARGIN_PX, bold=True)
    for number, row in enumerate(rows):
        top = 2 * MARGIN_PX + LINE_PX + number * row_px
        for column, shown in enumerate(row):
            left = MARGIN_PX + column * (CELL_PX[0] + MARGIN_PX)
            for line, text in enumerate(shown.caption):
                sheet.write((left, top + line * LINE_PX), text, CELL_PX[0], colour=GREY)
            below = top + n_lines * LINE_PX
            try:
                picture = Image.fromarray(decode(shown.path))
            except ImageError as error:
                sheet.write((left, below), str(error), CELL_PX[0])
                continue
            picture.thumbnail(CELL_PX, reducing_gap=3.0)
            sheet.paste(picture, left, below)
    sheet.save(path)
