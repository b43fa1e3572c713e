"""Photographs of pages made like scans: the page found and straightened, its ink alone kept.

The page is lighter than what it lies on, so that each of its edges is a step in the picture's
lightness. A straight line is looked for on each side; near it the step is then followed point by
point, and a curve laid through, for sheets that curl. A scan has no such edges, and stays as it is.

What is left of the light is what the network would stumble over: shadows, the lamp's colour, a
fainter grid. So each place is divided by the paper's colour around it, the most of its three
channels taken, in which a grid of any colour is faint and ink is not, and what is then faint is
taken for paper. Scans are treated the same, or the two would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ecgfeat.images.formats import Page, as_image

__all__ = ["Sheet", "find_sheet", "inked"]

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]

FINE_PX = 350
"""The longer side, about, at which edges are followed; they are looked for at a quarter of it."""
LEAST_PX = 200
"""Pictures with a longer side below this aren't photographs of pages."""
REACH = 0.36
"""How far from the picture's side the page's may be, as a share of the picture."""
STEEPEST = math.tan(math.radians(22))
"""An edge against the picture's side."""
STEP_PX = 2
"""Lightness is compared over so many pixels on either side."""
WHOLE_STEP = 0.25
"""Of the logarithm of lightness: no step counts for more, so that an edge must be long."""
LEAST_STEP = 0.2
"""The mean along one edge at least, of the whole step: scans had 0.16 at most, mostly below 0.1."""
OTHER_STEP = 0.1
"""The same along the others: white paper on a white desk has little more."""
NEAR = 0.025
"""How far from the straight line an edge is followed, as a share of the picture."""
DEGREE = 3
"""Of the polynomial that an edge is."""
LEAST_AREA = 0.15
"""Share of the picture that a page has at least."""
CELLS = (8, 6)
"""The page is straightened in so many pieces across and down."""
BLOCKS_ACROSS = 112
"""Of the page, for the light on it: a block is wider than ink and finer than a shadow's edge."""
FAINT = 0.25
"""What has less than this share of the ink's darkness is paper, or its grid."""
INK_SHARE = 0.003
"""The darkest part of a page, by which its ink is told; a page of leads has 3 % ink or more."""
LEAST_INK = 0.15
"""Least darkness of ink, so that an empty page's noise isn't taken for it."""
RIM = 0.006
"""Of a page that was found, what of its edge may be table, as a share of its width."""


# Where the page is


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Where a page lies in a picture.

    Attributes
    ----------
    x, y : ndarrays of shape (rows + 1, columns + 1), float64
        Corners of `CELLS` equal pieces of the page, as shares of the picture.
    size_px : tuple of int
        (width, height) of the straight page, at the scale of the picture in which it was found.
    """

    x: Floats
    y: Floats
    size_px: tuple[int, int]

    def straightened(self, picture: Page, to_px: tuple[int, int]) -> Bytes:
        """The page alone, at a width and height.

        Returns
        -------
        ndarray of shape (height, width, 3), uint8
        """
        image = as_image(picture)
        # Averaged first where it is shrunk much, or fine lines would be missed.
        shrink = max(1, min(size // to for size, to in zip(self.size_px, to_px)))
        x, y = self.x * (image.width / shrink), self.y * (image.height / shrink)
        if shrink > 1:
            image = image.reduce(shrink)
        corners = np.stack((x, y), axis=-1)
        quads = np.concatenate(  # from upper left, counterclockwise
            (corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]), axis=-1
        ).tolist()
        rights, lowers = (
            np.rint(np.linspace(0, size, n + 1)).astype(int).tolist()
            for size, n in zip(to_px, CELLS)
        )
        mesh = [
            ((rights[column], lowers[row], rights[column + 1], lowers[row + 1]), quad)
            for row, line in enumerate(quads)
            for column, quad in enumerate(line)
        ]
        straight = image.transform(to_px, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
        return np.asarray(straight)


def find_sheet(picture: Page) -> Sheet | None:
    """Find the page in a photograph.

    A side of the page that isn't seen is taken to be the picture's.

    Returns
    -------
    Sheet or None
        None where no side is seen, as in a scan.
    """
    image = as_image(picture)
    if max(image.size) < LEAST_PX or max(image.size) > 4 * min(image.size):
        return None
    fine = _without_lines(_darkest_channel(image))
    coarse = _halved(_without_lines(_halved(fine)))
    found = [_line(_steps(view)) for view in _from_each_side(_logarithm(coarse))]
    if max(score for score, _ in found) < LEAST_STEP:
        return None
    lines = [line if score >= OTHER_STEP else None for score, line in found]
    left, right, top, bottom = (sum(line) / 2 if line else 0.0 for line in lines)
    bounds = ((top, 1 - bottom), (top, 1 - bottom), (left, 1 - right), (left, 1 - right))
    edges = [
        _followed(line, _steps(view), bound) if line else _Edge((0.0,), bound)
        for line, view, bound in zip(lines, _from_each_side(_logarithm(fine)), bounds)
    ]
    return _between(edges[0], edges[1].mirrored(), edges[2], edges[3].mirrored(), image.size)


def _darkest_channel(image: Image.Image) -> Bytes:
    """The least of red, green and blue, small: paper has much of all, wood and cloth have not."""
    small = np.asarray(image.reduce(max(1, round(max(image.size) / FINE_PX))))
    least: Bytes = np.minimum(np.minimum(small[..., 0], small[..., 1]), small[..., 2])
    return least


def _without_lines(lightness: Bytes) -> Bytes:
    """Without dark lines of two pixels, such as traces: the lightest within three, and back."""
    return _within_three(_within_three(lightness, np.maximum), np.minimum)


def _within_three(values: Bytes, which: np.ufunc) -> Bytes:
    for _ in range(2):
        padded = np.pad(values, ((1, 1), (0, 0)), mode="edge")
        values = which(which(padded[:-2], padded[2:]), padded[1:-1]).T
    return values


def _halved(lightness: Bytes) -> Bytes:
    return np.asarray(Image.fromarray(lightness).reduce(2))


def _logarithm(lightness: Bytes) -> Floats:
    """Of which a shadow over both sides of an edge leaves the difference as it is."""
    logarithms: Floats = np.log(np.arange(256, dtype=np.float32) + 8)[lightness]
    return logarithms


def _from_each_side(lightness: Floats) -> Iterator[Floats]:
    """Turned so that the left, right, upper and lower side in turn is at the left."""
    for turned in (lightness, lightness.T):
        yield turned
        yield turned[:, ::-1]


def _steps(lightness: Floats) -> Floats:
    """By how much it is lighter right of each border between columns than left of it.

    Returns
    -------
    ndarray of shape (rows, columns + 1), float32
    """
    padded = np.pad(lightness, ((0, 0), (STEP_PX, STEP_PX)), mode="edge")
    n_borders = lightness.shape[1] + 1
    steps = np.zeros((len(lightness), n_borders), np.float32)
    for offset in range(STEP_PX):
        steps -= padded[:, offset : offset + n_borders]
        steps += padded[:, STEP_PX + offset : STEP_PX + offset + n_borders]
    steps /= STEP_PX
    return steps


def _line(steps: Floats) -> tuple[float, tuple[float, float]]:
    """The straight line along which lightness steps up most.

    Returns
    -------
    score : float
        The mean step along it, as a share of the whole one.
    line : tuple of float
        Where it crosses the first and the last row, as shares of the columns.
    """
    n_rows, n_borders = steps.shape
    share = np.clip(steps / WHOLE_STEP, -1, 1)
    ends = np.arange(1, round(REACH * n_borders))
    down = ((np.arange(n_rows) + 0.5) / n_rows).astype(np.float32)
    first, last = (ends[:, None, None], ends[None, :, None])
    borders = np.rint(first + (last - first) * down).astype(np.intp)
    scores = share[np.arange(n_rows), borders].mean(axis=2)
    scores[np.abs(ends[:, None] - ends) > STEEPEST * n_rows] = -1
    best = int(scores.argmax())
    line = ends[list(divmod(best, len(ends)))] / (n_borders - 1)
    return float(scores.flat[best]), (float(line[0]), float(line[1]))


@dataclass(frozen=True)
class _Edge:
    """An edge: how far across the picture it lies, by how far along it.

    Attributes
    ----------
    coefficients : tuple of float
        Of a polynomial in ``2 * along - 1``, the lowest first.
    bounds : tuple of float
        Between which the polynomial holds; it goes straight on beyond.
    """

    coefficients: tuple[float, ...]
    bounds: tuple[float, float]

    def mirrored(self) -> _Edge:
        """The same seen from the picture's other side."""
        first, *others = self.coefficients
        return replace(self, coefficients=(1 - first, *(-other for other in others)))

    def at(self, along: Floats) -> Floats:
        """How far across it lies."""
        held = np.clip(along, *self.bounds)
        across = np.zeros_like(held)
        slope = np.zeros_like(held)
        for coefficient in reversed(self.coefficients):
            slope = slope * (2 * held - 1) + across
            across = across * (2 * held - 1) + coefficient
        return across + 2 * slope * (along - held)


def _followed(line: tuple[float, float], steps: Floats, bounds: tuple[float, float]) -> _Edge:
    """The edge near a line: the steepest step in each row, and a smooth curve through them."""
    n_rows, n_borders = steps.shape
    rows = np.arange(n_rows)
    along = (rows + 0.5) / n_rows
    reach = max(3, round(NEAR * n_borders))
    on_line = np.rint((line[0] + (line[1] - line[0]) * along) * (n_borders - 1)).astype(np.intp)
    borders = on_line[:, None] + np.arange(-reach, reach + 1)
    near = np.clip(steps[rows[:, None], np.clip(borders, 0, n_borders - 1)], 0, 2 * WHOLE_STEP)
    best = near.argmax(axis=1)
    across = np.clip(borders[rows, best] + _peak(near, best), 0, n_borders - 1) / (n_borders - 1)
    inside = (along > bounds[0] + 0.02) & (along < bounds[1] - 0.02)
    along, across, weights = along[inside], across[inside], near[rows, best][inside] + 1e-6
    if len(along) < 4 * (DEGREE + 1):
        return _Edge((sum(line) / 2, (line[1] - line[0]) / 2), bounds)
    powers = np.vander(2 * along - 1, DEGREE + 1, increasing=True)
    # Weighed anew by how far off each point is, so that what isn't the edge counts little.
    kept = weights
    for degree in (1, 1, 1, DEGREE, DEGREE, DEGREE):
        weighed = powers[:, : degree + 1] * kept[:, None]
        found = np.linalg.solve(
            weighed.T @ powers[:, : degree + 1] + 1e-9 * np.eye(degree + 1), weighed.T @ across
        )
        off = across - powers[:, : degree + 1] @ found
        usual = max(1.5 * float(np.median(np.abs(off))), 0.001)
        kept = weights / (1 + (off / usual) ** 2) ** 2
    return _Edge(tuple(found.tolist()), (float(along[0]), float(along[-1])))


def _peak(values: Floats, best: NDArray[np.intp]) -> Floats:
    """How far beside each row's highest value a parabola through it and the next has its top."""
    rows = np.arange(len(values))
    inner = np.clip(best, 1, values.shape[1] - 2)
    before, here, after = (values[rows, inner + offset] for offset in (-1, 0, 1))
    bend = before - 2 * here + after
    tops = 0.5 * (before - after) / np.where(bend < 0, bend, -1)
    return np.where((bend < 0) & (inner == best), np.clip(tops, -1, 1), 0)


def _between(
    left: _Edge, right: _Edge, top: _Edge, bottom: _Edge, picture_px: tuple[int, int]
) -> Sheet | None:
    """The page between four edges: seen in perspective, and then bent as its edges are."""
    corners = np.array([_meeting(side, end) for end in (top, bottom) for side in (left, right)])
    upper_left, upper_right, lower_left, lower_right = corners * picture_px
    across, down = lower_right - upper_left, lower_left - upper_right
    area = abs(across[0] * down[1] - across[1] * down[0]) / 2
    if area < LEAST_AREA * picture_px[0] * picture_px[1] or not _is_convex(corners):
        return None
    wide = np.hypot(*(upper_right - upper_left)) + np.hypot(*(lower_right - lower_left))
    high = np.hypot(*(lower_left - upper_left)) + np.hypot(*(lower_right - upper_right))
    seen = _perspective(corners)
    u, v = np.meshgrid(*(np.linspace(0, 1, n + 1) for n in CELLS))
    x, y = seen(u, v)
    # What an edge bends its own side by, the page between two sides is bent by in proportion.
    bent_x = x + (1 - u) * (left.at(y[:, :1]) - x[:, :1]) + u * (right.at(y[:, -1:]) - x[:, -1:])
    bent_y = y + (1 - v) * (top.at(x[:1]) - y[:1]) + v * (bottom.at(x[-1:]) - y[-1:])
    size_px = (max(1, round(wide / 2)), max(1, round(high / 2)))
    return Sheet(x=bent_x, y=bent_y, size_px=size_px)


def _meeting(side: _Edge, end: _Edge) -> tuple[float, float]:
    """Where a left or right edge and an upper or lower one meet."""
    x, y = np.array(0.5), np.array(0.5)
    for _ in range(5):  # neither is steep, so each step is a small part of the last
        y = end.at(x)
        x = side.at(y)
    return float(x), float(y)


def _is_convex(corners: Floats) -> bool:
    around = corners[[0, 1, 3, 2]]
    ahead = np.roll(around, -1, axis=0) - around
    after = np.roll(ahead, -1, axis=0)
    return bool((ahead[:, 0] * after[:, 1] - ahead[:, 1] * after[:, 0] > 0).all())


def _perspective(corners: Floats) -> Callable[[Floats, Floats], tuple[Floats, Floats]]:
    """From the unit square to a quadrilateral (Heckbert 1989, section 2.2.3).

    Parameters
    ----------
    corners : ndarray of shape (4, 2)
        Upper left, upper right, lower left, lower right.
    """
    origin, right, below, opposite = corners
    to_right, to_below = right - opposite, below - opposite
    excess = origin - right - below + opposite
    scale = to_right[0] * to_below[1] - to_right[1] * to_below[0]
    g = (excess[0] * to_below[1] - excess[1] * to_below[0]) / scale
    h = (to_right[0] * excess[1] - to_right[1] * excess[0]) / scale
    along_u, along_v = right - origin + g * right, below - origin + h * below

    def seen(u: Floats, v: Floats) -> tuple[Floats, Floats]:
        depth = g * u + h * v + 1
        x, y = ((along_u[i] * u + along_v[i] * v + origin[i]) / depth for i in (0, 1))
        return x, y

    return seen


# What is on it


def inked(page: Bytes, *, has_rim: bool) -> Bytes:
    """A page's ink in black on white, whatever light falls on it and whatever grid it has.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
        At the size at which the network takes it.
    has_rim : bool
        Whether it was cut out of a picture, so that its edge may be table.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        Grey: all channels are the same.
    """
    paper = _paper_around(page)
    light = page[..., 0] / paper[..., 0]
    for channel in (1, 2):
        np.maximum(light, page[..., channel] / paper[..., channel], out=light)
    ink = 1 - light
    if has_rim:
        rim = max(1, round(RIM * page.shape[1]))
        ink[:rim] = ink[-rim:] = ink[:, :rim] = ink[:, -rim:] = 0
    grey = Image.fromarray((np.clip(ink, 0, 1) * 255 + 0.5).astype(np.uint8))
    grey = _scaled(grey, FAINT, 255 * LEAST_INK)
    # A photograph's lines are blurred by more or less than this; after it they differ less.
    grey = _scaled(grey.filter(SMOOTHING), 0, 1)
    return np.repeat(255 - np.asarray(grey)[..., None], 3, axis=2)


def _paper_around(page: Bytes) -> Floats:
    """The colour of the paper around each place, of the page's shape, float32."""
    height, width = page.shape[:2]
    block = max(2, round(width / BLOCKS_ACROSS))
    beyond = ((0, -height % block), (0, -width % block), (0, 0))
    whole = np.pad(page, beyond, mode="edge")
    for axis in (0, 1):  # rows first: they lie in one piece
        parts = [
            whole[start::block] if axis == 0 else whole[:, start::block] for start in range(block)
        ]
        lightest = parts[0].copy()
        for part in parts[1:]:
            np.maximum(lightest, part, out=lightest)
        whole = lightest
    blocks = Image.fromarray(whole).reduce(2).filter(ImageFilter.MedianFilter(3))
    whole_px = (width + beyond[1][1], height + beyond[0][1])
    around = np.asarray(blocks.resize(whole_px, Image.Resampling.BILINEAR))
    paper: Floats = np.maximum(around[:height, :width], 8).astype(np.float32)
    return paper


SMOOTHING = ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1))
"""A Gaussian's nearest kin on three pixels, of standard deviation 0.7."""


def _scaled(grey: Image.Image, faint: float, least: float) -> Image.Image:
    """Darkness as a share of the ink's, which becomes 255, beyond what is `faint`."""
    from_darkest = np.cumsum(grey.histogram()[::-1])
    ink = 255 - int(np.searchsorted(from_darkest, INK_SHARE * from_darkest[-1]))
    shares = np.arange(256) / max(ink, least)
    table = np.clip((shares - faint) / (1 - faint), 0, 1) * 255 + 0.5
    return grey.point(table.astype(np.uint8).tolist())
