"""A page of ECG paper: layout, grid, pen, text, scan.

Everything is laid out in millimetres and drawn to scale: 25 mm to the second, a grid of 1 and
5 mm, and 10 mm (with twelve rows, 5 mm) to the millivolt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ecgfeat.synth.heart import DURATION_S, LEADS, SAMPLES_PER_S, Signal

__all__ = ["LAYOUTS", "Style", "draw", "draw_style", "trace_coverage"]

Colour = tuple[int, int, int]
Mask = NDArray[np.uint8]

MM_PER_S = 25.0
# What the ten seconds, the calibration pulse and the margins need, about an A4 page.
_CONTENT_MM = (276.0, 207.0)
_HEAD_MM, _FOOT_MM = 14.0, 4.0
_PULSE_MM = (2.0, 5.0, 2.0)  # Flat, 1 mV for 0.2 s, flat.


class Layout(NamedTuple):
    """Rows of leads that share the ten seconds, and the gain."""

    rows: tuple[tuple[str, ...], ...]
    mm_per_mv: float


_THREE_BY_FOUR = (
    ("I", "aVR", "V1", "V4"),
    ("II", "aVL", "V2", "V5"),
    ("III", "aVF", "V3", "V6"),
)
LAYOUTS = {
    "3x4+1": Layout((*_THREE_BY_FOUR, ("II",)), 10.0),
    "3x4+3": Layout((*_THREE_BY_FOUR, ("V1",), ("II",), ("V5",)), 10.0),
    "6x2": Layout(tuple(zip(LEADS[:6], LEADS[6:])), 10.0),
    "12x1": Layout(tuple((lead,) for lead in LEADS), 5.0),
}

_GRID_COLOURS: dict[str, Colour] = {
    "red": (226, 120, 120),
    "pink": (240, 160, 175),
    "orange": (236, 160, 110),
    "green": (130, 190, 140),
    "blue": (140, 170, 215),
    "grey": (165, 165, 165),
}
_PEN_COLOURS: dict[str, Colour] = {
    "black": (20, 20, 22),
    "grey": (70, 70, 74),
    "blue": (28, 34, 110),
    "brown": (72, 36, 30),
}
_GRID_STYLES = ("lines", "major", "dots")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a page looks: drawn without knowing the class.

    Attributes
    ----------
    layout : str
        A key of `LAYOUTS`.
    grid, grid_style, pen : str
        Colour of the grid; lines, 5 mm lines only, or dots; colour of the pen.
    grid_strength : float
        Opacity of the grid.
    pen_mm : float
        Thickness of the line.
    paper : tuple of int
        RGB.
    pulse : bool
        Whether each row begins with the 1 mV calibration pulse.
    header : str
        Text above the traces; may be empty.
    shift_mm : tuple of float
        Of the grid and traces on the page, to the right and down.
    rotation_deg : float
        Of the whole page, as by a scanner; counterclockwise.
    shade : tuple of float
        Share of light lost at the right and at the lower edge; negative at the opposite one.
    """

    layout: str
    grid: str
    grid_style: str
    grid_strength: float
    pen: str
    pen_mm: float
    paper: Colour
    pulse: bool
    header: str
    shift_mm: tuple[float, float]
    rotation_deg: float
    shade: tuple[float, float]


def draw_style(rng: np.random.Generator, *, spread: float) -> Style:
    """Draw a page's looks; `spread` scales the scan's faults (1 is ordinary)."""
    whiteness = rng.uniform(226, 255)
    warmth = rng.uniform(0, 14)
    return Style(
        layout=str(rng.choice(tuple(LAYOUTS), p=(0.5, 0.15, 0.2, 0.15))),
        grid=str(rng.choice(tuple(_GRID_COLOURS))),
        grid_style=str(rng.choice(_GRID_STYLES, p=(0.7, 0.15, 0.15))),
        grid_strength=rng.uniform(0.45, 1.0),
        pen=str(rng.choice(tuple(_PEN_COLOURS), p=(0.6, 0.15, 0.15, 0.1))),
        pen_mm=rng.uniform(0.25, 0.55),
        paper=(round(whiteness), round(whiteness - warmth / 3), round(whiteness - warmth)),
        pulse=bool(rng.random() < 0.7),
        header=_header(rng) if rng.random() < 0.8 else "",
        shift_mm=(rng.uniform(-4, 4), rng.uniform(-3, 3)),
        rotation_deg=rng.normal(0, 0.6 * spread) if rng.random() < 0.5 else 0.0,
        shade=(rng.normal(0, 0.05 * spread), rng.normal(0, 0.05 * spread)),
    )


def _header(rng: np.random.Generator) -> str:
    number, year, month, day = rng.integers((10000, 1998, 1, 1), (99999, 2025, 13, 29))
    text = f"SYNTHETIC {number}   {year}-{month:02}-{day:02}   25 mm/s"
    return text + "   0.05-150 Hz" if rng.random() < 0.5 else text


def draw(signal: Signal, style: Style, size_px: tuple[int, int]) -> Image.Image:
    """Draw twelve leads on a page.

    Parameters
    ----------
    signal : ndarray of shape (12, n_samples), float32
        Ten seconds in mV, in the order of `LEADS`.
    style : Style
    size_px : tuple of int
        Width and height; the scale is the largest at which the content fits.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    plan = _Plan(style, size_px)
    ink = Image.fromarray(_pen_mask(signal, plan))
    _write(ink, plan)
    grid = Image.fromarray(_grid_mask(plan))
    # The paper is even, so turning what is printed on it turns the page.
    if style.rotation_deg:
        ink, grid = (
            mask.rotate(style.rotation_deg, Image.Resampling.BILINEAR) for mask in (ink, grid)
        )
    return _develop(np.asarray(grid), np.asarray(ink), style)


def _develop(grid: Mask, ink: Mask, style: Style) -> Image.Image:
    """Colour the paper, the grid over it and the ink over both, and let light fall on them."""
    grid_share, ink_share = (mask.astype(np.float32) / 255 for mask in (grid, ink))
    light = _light(style.shade, grid.shape)
    planes = []
    for paper, line, pen in zip(style.paper, _GRID_COLOURS[style.grid], _PEN_COLOURS[style.pen]):
        # In place: fresh memory for each step would cost more than the sums.
        plane = grid_share * (line - paper)
        plane += paper
        plane *= 1 - ink_share
        plane += pen * ink_share
        plane *= light
        planes.append(Image.fromarray(plane.astype(np.uint8)))
    return Image.merge("RGB", planes)


class _Plan:
    """Where things are on one page: millimetres are the paper's, pixels the image's."""

    def __init__(self, style: Style, size_px: tuple[int, int]) -> None:
        self.style = style
        self.size_px = size_px
        self.layout = LAYOUTS[style.layout]
        self.scale = min(size_px[0] / _CONTENT_MM[0], size_px[1] / _CONTENT_MM[1])  # px per mm
        self.pulse_mm = sum(_PULSE_MM) if style.pulse else 0.0
        width_mm, height_mm = (n_px / self.scale for n_px in size_px)
        length_mm = self.pulse_mm + MM_PER_S * DURATION_S
        self.left_px = ((width_mm - length_mm) / 2 + style.shift_mm[0]) * self.scale
        n_rows = len(self.layout.rows)
        self.row_mm = (height_mm - _HEAD_MM - _FOOT_MM) / n_rows
        # Just below a row's middle, since most of the heart's waves point up.
        self.baselines_px = [
            (_HEAD_MM + style.shift_mm[1] + (row + 0.55) * self.row_mm) * self.scale
            for row in range(n_rows)
        ]

    def column_px(self, row: int, column: int) -> float:
        """Where a lead of a row begins."""
        share = column / len(self.layout.rows[row])
        return self.left_px + (self.pulse_mm + share * MM_PER_S * DURATION_S) * self.scale


def _pen_mask(signal: Signal, plan: _Plan) -> Mask:
    """Ink of the traces, shape (height, width)."""
    rows_mm = np.stack([_row_mm(signal, row, plan) for row in plan.layout.rows])
    baselines_px = np.array(plan.baselines_px, dtype=np.float32)[:, None]
    return trace_coverage(
        baselines_px - np.float32(plan.scale) * rows_mm,
        left_px=plan.left_px,
        px_per_sample=plan.scale * MM_PER_S / SAMPLES_PER_S,
        # A line thinner than a pixel would fade on small pages.
        pen_px=max(plan.style.pen_mm * plan.scale, 1.0),
        size_px=plan.size_px,
    )


def _row_mm(signal: Signal, leads: tuple[str, ...], plan: _Plan) -> Signal:
    """One row's height over its baseline in mm: the calibration pulse, then its leads in turn."""
    n_each = signal.shape[1] // len(leads)
    parts = [
        signal[LEADS.index(lead), column * n_each : (column + 1) * n_each]
        for column, lead in enumerate(leads)
    ]
    if plan.style.pulse:
        n_flat, n_high, n_rest = (round(mm / MM_PER_S * SAMPLES_PER_S) for mm in _PULSE_MM)
        pulse = np.zeros(n_flat + n_high + n_rest, dtype=np.float32)
        pulse[n_flat : n_flat + n_high] = 1.0
        parts.insert(0, pulse)
    return np.concatenate(parts) * np.float32(plan.layout.mm_per_mv)


def _write(ink: Image.Image, plan: _Plan) -> None:
    """Write the leads' names and the header."""
    font = _font(max(8, round(3.3 * plan.scale)))
    pencil = ImageDraw.Draw(ink)
    above_px = min(0.45 * plan.row_mm, 13.0) * plan.scale
    for row, leads in enumerate(plan.layout.rows):
        top = plan.baselines_px[row] - above_px
        for column, lead in enumerate(leads):
            pencil.text((plan.column_px(row, column) + plan.scale, top), lead, 255, font)
    if plan.style.header:
        pencil.text((plan.left_px, 4 * plan.scale), plan.style.header, 255, font)


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _grid_mask(plan: _Plan) -> Mask:
    """Opacity of the grid, shape (height, width); a thick line runs under the last row."""
    axes = ((plan.size_px[1], plan.baselines_px[-1]), (plan.size_px[0], plan.left_px))
    scale = plan.scale
    down, across = (_lines(*axis, 5 * scale, max(0.3 * scale, 0.8)) for axis in axes)
    thin_down, thin_across = (_lines(*axis, scale, max(0.16 * scale, 0.35)) for axis in axes)
    if plan.style.grid_style == "lines":
        down, across = np.maximum(down, 0.6 * thin_down), np.maximum(across, 0.6 * thin_across)
    bare = np.outer(1 - down, 1 - across)
    if plan.style.grid_style == "dots":
        bare *= 1 - np.outer(thin_down, thin_across)
    opacity = 255 * plan.style.grid_strength
    bare *= -opacity
    bare += opacity
    return bare.astype(np.uint8)


def _lines(n_px: int, origin_px: float, period_px: float, width_px: float) -> Signal:
    """Share of each of `n_px` pixels that lines of one width at equal distances cover."""
    edges = np.arange(n_px + 1) - origin_px + width_px / 2
    whole = np.floor(edges / period_px)
    covered = whole * width_px + np.minimum(edges - whole * period_px, width_px)
    shares: Signal = np.diff(covered).astype(np.float32)
    return shares


def _light(shade: tuple[float, float], shape: tuple[int, int]) -> Signal:
    """Illumination that falls off evenly to one side and to one edge, shape (height, width)."""
    across, down = (
        1 - np.linspace(max(-loss, 0), max(loss, 0), n_px, dtype=np.float32)
        for loss, n_px in zip(shade, reversed(shape))
    )
    light: Signal = down[:, None] * across
    return light


# Columns per pixel: they antialias steep strokes from side to side.
_COLUMNS_PER_PX = 4


def trace_coverage(
    y_px: Signal, *, left_px: float, px_per_sample: float, pen_px: float, size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """How much of each pixel the traces cover, from 0 to 255.

    Within a narrow column a trace is one vertical interval: from its lowest to its highest
    value there, widened by the pen. An interval's coverage is a step up at its top and a step
    down at its bottom, each shared between two pixels. The steps of all traces are dropped into
    an empty page, and one running sum down the page draws everything.

    Parameters
    ----------
    y_px : ndarray of shape (n_traces, n_samples), float32
        Heights, downwards from the page's upper edge.
    left_px, px_per_sample : float
        Where the first sample lies, and the distance between samples.
    pen_px : float
        Diameter of the pen.
    size_px : tuple of int
        Width and height of the page.

    Returns
    -------
    ndarray of shape (height, width), uint8
    """
    width, height = size_px
    n_columns = round((y_px.shape[1] - 1) * px_per_sample * _COLUMNS_PER_PX)
    top, bottom = _extent(y_px, n_columns)
    top, bottom = _widened(top, bottom, pen_px / 2)
    columns = (round(left_px * _COLUMNS_PER_PX) + np.arange(n_columns)) // _COLUMNS_PER_PX
    inside = (columns >= 0) & (columns < width)
    steps = _steps(top[:, inside], bottom[:, inside], columns[inside], size_px)
    coverage = np.cumsum(steps, axis=0, out=steps)[:height]
    coverage *= 255 / _COLUMNS_PER_PX
    coverage += 0.5
    ink: NDArray[np.uint8] = np.minimum(coverage, 255, out=coverage).astype(np.uint8)
    return ink


def _extent(y: Signal, n_columns: int) -> tuple[Signal, Signal]:
    """Least and greatest value of each polyline within each of `n_columns` equal columns."""
    last = y.shape[1] - 1
    edges = np.linspace(0, last, n_columns + 1)
    left = np.minimum(edges.astype(np.int64), last - 1)
    at_edges = y[:, left] + (y[:, left + 1] - y[:, left]) * (edges - left).astype(np.float32)
    least = np.minimum(at_edges[:, :-1], at_edges[:, 1:])
    greatest = np.maximum(at_edges[:, :-1], at_edges[:, 1:])
    # Columns that hold whole samples reach as far as those do.
    starts = np.ceil(edges).astype(np.int64)
    holding = np.flatnonzero(starts[:-1] < starts[1:])
    groups = starts[holding]
    least[:, holding] = np.minimum(least[:, holding], np.minimum.reduceat(y, groups, axis=1))
    greatest[:, holding] = np.maximum(greatest[:, holding], np.maximum.reduceat(y, groups, axis=1))
    return least, greatest


def _widened(top: Signal, bottom: Signal, radius_px: float) -> tuple[Signal, Signal]:
    """Widen the intervals to what a disc moved along them covers."""
    n_columns = top.shape[1]
    wide_top, wide_bottom = top - radius_px, bottom + radius_px
    for offset in range(1, min(int(radius_px * _COLUMNS_PER_PX), n_columns - 1) + 1):
        half = np.float32((radius_px**2 - (offset / _COLUMNS_PER_PX) ** 2) ** 0.5)
        early, late = slice(0, n_columns - offset), slice(offset, n_columns)
        for here, there in ((early, late), (late, early)):
            np.minimum(wide_top[:, here], top[:, there] - half, out=wide_top[:, here])
            np.maximum(wide_bottom[:, here], bottom[:, there] + half, out=wide_bottom[:, here])
    return wide_top, wide_bottom


def _steps(
    top: Signal, bottom: Signal, columns: NDArray[np.int64], size_px: tuple[int, int]
) -> NDArray[Any]:
    """Steps whose running sum down the page is 1 between `top` and `bottom` in each column."""
    width, height = size_px
    edges = np.clip(np.stack((top, bottom)), 0, height)
    pixel = edges.astype(np.int64)
    below = edges - pixel
    above = 1 - below
    where = pixel * width + columns
    weights = np.stack((above[0], -above[1], below[0], -below[1]))
    # One row more than the page has for what lies below its foot, one for the shared part.
    steps = np.bincount(
        np.concatenate((where, where + width)).ravel(),
        weights=weights.ravel(),
        minlength=(height + 2) * width,
    )
    return steps.reshape(height + 2, width)
