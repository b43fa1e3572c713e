"""Copies: the same file twice, and nearly the same page, found by features and told by the traces.

A page scanned or saved again has other bytes and other features, but its traces lie where they
lay. So its nearest neighbours in feature space are only asked: the two pages are laid over one
another, and their upstrokes compared cell by cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecgfeat.feature_cache import FeatureCache
from ecgfeat.protocol import hash_place

__all__ = [
    "FINE_PX",
    "LEAST_LIKENESS",
    "MAX_PAIRS",
    "N_WHITENED",
    "Maps",
    "Pair",
    "laid_over",
    "likeness",
    "near_pairs",
    "principal_components",
    "trace_map",
    "trace_maps",
    "whitened",
]

Floats = NDArray[np.float32]
Maps = tuple[Floats, ...]
Projection = NDArray[np.float64]
"""By how much a plane's projection differs from none, shape (8,)."""

N_NEIGHBOURS = 6
"""Of each page, those that may be a copy of it. Of 175 copies of two sets (saved again, resized,
rotated by up to two degrees, rescanned askew) all had their original among the first five."""
N_AROUND = 20
"""Neighbours whose farther half says how far apart pages are thereabouts."""
MAX_PAIRS = 6000
"""Pairs laid over one another at most, the nearest first: about four minutes on two cores."""
LEAST_LIKENESS = 0.88
"""Of 135 such copies 134 had 0.89 to 1 and one 0.85; of the 13,460 nearest pairs of other pages of
synthetic and real sets two had more than 0.87: 0.89 and 0.91, strangers of one heart rate."""


@dataclass(frozen=True)
class Pair:
    """Two rows whose pages are nearly the same.

    Attributes
    ----------
    first, second : int
        Rows of the cache, the lower one first.
    likeness : float
        Correlation of their upstrokes once one page lies over the other; 1 for the same picture.
    """

    first: int
    second: int
    likeness: float


N_COMPONENTS, N_WHITENED = 256, 128
N_FITTED = 10_000
"""Rows that the components are found on: more change them hardly."""
BLOCK_ROWS = 4096


def principal_components(cache: FeatureCache, seed: int) -> NDArray[np.float32]:
    """Principal components of the standardised features, the strongest first, (n, d)."""
    from sklearn.decomposition import PCA

    taps = list(cache.header.taps)
    n = len(cache)
    order = np.array(sorted(range(n), key=lambda row: hash_place(cache.paths[row])))
    fitted = cache.features(taps, np.sort(order[:N_FITTED]))
    mean, scale = fitted.mean(axis=0), fitted.std(axis=0)
    scale[scale < 1e-6] = 1.0
    n_components = max(1, min(N_COMPONENTS, len(fitted) // 2, fitted.shape[1]))
    fitted -= mean
    fitted /= scale
    components = PCA(n_components, svd_solver="randomized", random_state=seed).fit(fitted)
    del fitted
    found = np.empty((n, n_components), np.float32)
    for first in range(0, n, BLOCK_ROWS):
        rows = np.arange(first, min(first + BLOCK_ROWS, n))
        found[rows] = components.transform((cache.features(taps, rows) - mean) / scale)
    return found


def whitened(components: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first components at equal strength, each row of unit length.

    Equal strength finds copies: what scanning changes lies in the strongest components, and whose
    recording it is in the weaker ones.
    """
    parts = components[:, : min(N_WHITENED, max(1, len(components) // 2))]
    white = parts / np.maximum(parts.std(axis=0), 1e-6)
    unit: NDArray[np.float32] = white / np.linalg.norm(white, axis=1, keepdims=True)
    return unit


def near_pairs(embedding: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Pairs of rows that may be copies, the nearest for their surroundings first.

    Parameters
    ----------
    embedding : ndarray of shape (n, d), float32
        Whitened features of unit length; one row per picture.

    Returns
    -------
    pairs : ndarray of shape (m, 2), int64
        The lower row first.
    ratios : ndarray of shape (m,), float32
        Their distance over that to the rows next to both: far below 1 for copies in a dense set.
    """
    from sklearn.neighbors import NearestNeighbors

    n_asked = min(N_AROUND + 1, len(embedding))
    search = NearestNeighbors(n_neighbors=n_asked, algorithm="brute").fit(embedding)
    distances, neighbours = search.kneighbors(embedding)
    around = distances[:, n_asked // 2 :].mean(axis=1)
    rows = np.repeat(np.arange(len(embedding)), n_asked)
    others, distance = neighbours.ravel(), distances.ravel()
    near = np.tile(np.arange(n_asked) <= N_NEIGHBOURS, len(embedding)) & (rows != others)
    rows, others, distance = rows[near], others[near], distance[near]
    keys = np.minimum(rows, others) * len(embedding) + np.maximum(rows, others)
    ratio = distance / np.sqrt(np.maximum(around[rows] * around[others], 1e-12))
    keys, first = np.unique(keys, return_index=True)
    order = np.argsort(ratio[first], kind="stable")
    pairs = np.stack([keys // len(embedding), keys % len(embedding)], axis=1)[order]
    return pairs, ratio[first][order].astype(np.float32)


# Whether two pages are the same

SIZES_PX = ((128, 96), (256, 192), (384, 288))
"""Of the maps on which one page is laid over the other, roughly first."""
FINE_PX = (672, 504)
"""Of the map that decides: recordings of one heart rate differ in little but the exact places."""
LEAST_AT = (0.5, 0.8, 0.84)
"""Likeness below which a pair isn't looked at any more: rotated and shifted, laid down roughly,
and well. Copies had 0.6, 0.9 and 0.88 or more; nine of ten other pairs end at the first."""
SURELY_LAID = 0.9
MAX_SHIFT_PX = 9
"""On the smallest map: 7 % of the page's width."""
ANGLES_DEG = np.arange(-4.0, 4.1)
N_STARTS = 3
N_CELLS = 4
SLACK_PX = 3
"""What the upstrokes of a cell may still be off: paper bends, and no plane does."""


def trace_map(page: NDArray[np.uint8], size_px: tuple[int, int]) -> Floats:
    """How dark the traces are where, (height, width) float32 from 0 to 1.

    The paper and its grid are taken away: what is left is darker than its surroundings, and
    darker than four fifths of the page.
    """
    from PIL import Image
    from scipy.ndimage import uniform_filter

    grey = Image.fromarray(page).convert("L")
    dark = 255 - np.asarray(grey.resize(size_px, Image.Resampling.BOX), np.float32)
    dark = np.maximum(dark - uniform_filter(dark, round(size_px[0] / 17)), 0)
    least, most = np.percentile(dark, [80, 99.5])
    clipped: Floats = np.clip((dark - least) / max(most - least, 1.0), 0, 1).astype(np.float32)
    return clipped


def trace_maps(page: NDArray[np.uint8]) -> Maps:
    """`trace_map` at each of `SIZES_PX`."""
    return tuple(trace_map(page, size_px) for size_px in SIZES_PX)


def laid_over(one: Maps, other: Maps) -> tuple[float, Projection | None]:
    """Lay one page over another, and say how alike they are.

    Turned, shifted, resized and askew pages are laid back by a plane's projection, found by
    rotation and phase correlation on the small maps and refined by Gauss-Newton steps (Baker &
    Matthews 2004, "Lucas-Kanade 20 years on").

    Returns
    -------
    alike : float
        See `likeness`, on smaller maps.
    projection : ndarray of shape (8,), float64, or None
        None where the pages are too unlike to go on.
    """
    starts = _starts(one[0], other[0])
    alike = likeness(one[1], other[1], starts[0])
    if alike < LEAST_AT[0]:
        return alike, None
    best, projection = 0.0, starts[0]
    for start in starts:
        if best < SURELY_LAID:
            laid = _refined(one[0], other[0], start, (1.5, 0.7))
            alike = likeness(one[1], other[1], laid)
            best, projection = max((best, projection), (alike, laid), key=lambda pair: pair[0])
    if best < LEAST_AT[1]:
        return best, None
    projection = _refined(one[1], other[1], projection, (1.5, 0.8))
    projection = _refined(one[2], other[2], projection, (1.0,))
    alike = likeness(one[2], other[2], projection)
    return alike, (projection if alike >= LEAST_AT[2] else None)


def _starts(one: Floats, other: Floats) -> list[Projection]:
    """The likeliest rotations, each with its likeliest shift, as projections."""
    height, width = one.shape
    spectrum = np.conj(np.fft.rfft2(_unit(_blurred(one, 0.7))))
    found = []
    for angle in np.deg2rad(ANGLES_DEG):
        turn = np.array([np.cos(angle) - 1, -np.sin(angle), 0, np.sin(angle), np.cos(angle) - 1])
        turned = np.concatenate([turn, np.zeros(3)])
        moved = _unit(_blurred(_projected(other, turned), 0.7))
        near = np.fft.irfft2(spectrum * np.fft.rfft2(moved), s=(height, width))
        near = np.roll(near, (MAX_SHIFT_PX, MAX_SHIFT_PX), (0, 1))
        near = near[: 2 * MAX_SHIFT_PX + 1, : 2 * MAX_SHIFT_PX + 1]
        dy, dx = np.array(np.unravel_index(near.argmax(), near.shape)) - MAX_SHIFT_PX
        x, y = 2 * dx / width, 2 * dy / width
        turned[2] = (1 + turn[0]) * x + turn[1] * y
        turned[5] = turn[3] * x + (1 + turn[4]) * y
        found.append((near.max(), turned))
    return [start for _, start in sorted(found, key=lambda pair: -pair[0])[:N_STARTS]]


def _refined(
    one: Floats, other: Floats, projection: Projection, blurs: Sequence[float]
) -> Projection:
    """A projection under which the maps are more alike."""
    x, y = _coordinates(*one.shape)
    for blur in blurs:
        wanted, moving = _unit(_blurred(one, blur)), _blurred(other, blur)
        for _ in range(6):
            seen = _unit(_projected(moving, projection))
            down, right = np.gradient(seen)
            down, right = down * one.shape[1] / 2, right * one.shape[1] / 2
            slope = -(right * x + down * y)
            parts = (right * x, right * y, right, down * x, down * y, down, slope * x, slope * y)
            jacobian = np.stack(parts).reshape(8, -1)
            normal = jacobian @ jacobian.T
            # Levenberg's damping: a map of one stroke says nothing of some directions.
            normal += np.eye(8) * max(1e-3 * np.trace(normal) / 8, 1e-12)
            step = np.linalg.solve(normal, jacobian @ (wanted - seen).ravel())
            if np.abs(projection + step).max() > 0.3:
                break  # no scan is so far off
            projection = projection + step
            if np.abs(step).max() < 2e-4:
                break
    return projection


def likeness(one: Floats, other: Floats, projection: Projection) -> float:
    """How alike the traces of two pages are, one laid over the other; 1 for the same picture.

    The maps' derivative along the page is correlated in 4x4 cells, each at its best shift: it
    shows upstrokes, whose places tell a recording, and neither baselines nor grid.
    """
    from scipy.ndimage import gaussian_filter

    covered = _projected(np.ones_like(other), projection) > 0.5
    moved = _projected(other, projection)
    strokes = [
        gaussian_filter(_blurred(part, 1) * covered, 1.2, order=(0, 1)) for part in (one, moved)
    ]
    height, width = one.shape[0] // N_CELLS, one.shape[1] // N_CELLS
    shape = (height + 2 * SLACK_PX, width + 2 * SLACK_PX)  # so that no shift wraps around
    alike = whole = 0.0
    for top in range(0, one.shape[0], height):
        for left in range(0, one.shape[1], width):
            cells = [part[top : top + height, left : left + width] for part in strokes]
            spectra = [np.fft.rfft2(cell, s=shape) for cell in cells]
            at_shift = np.fft.irfft2(spectra[0] * np.conj(spectra[1]), s=shape)
            at_shift = np.roll(at_shift, (SLACK_PX, SLACK_PX), (0, 1))
            alike += float(at_shift[: 2 * SLACK_PX + 1, : 2 * SLACK_PX + 1].max())
            whole += float(np.linalg.norm(cells[0]) * np.linalg.norm(cells[1]))
    return min(1.0, alike / whole) if whole > 0 else 0.0


@lru_cache
def _coordinates(height: int, width: int) -> tuple[Floats, Floats]:
    """X and y of a map's pixels, 0 in its middle and 1 at its right edge."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return (x - width / 2) / (width / 2), (y - height / 2) / (width / 2)


def _projected(values: Floats, projection: Projection) -> Floats:
    """What lies at each place of a map under a plane's projection: its deviation from none."""
    from scipy.ndimage import map_coordinates

    x, y = _coordinates(*values.shape)
    a, b, c, d, e, f, g, h = projection.astype(np.float32)
    depth = 1 + g * x + h * y
    half = values.shape[1] / 2
    right = ((1 + a) * x + b * y + c) / depth * half + values.shape[1] / 2
    down = (d * x + (1 + e) * y + f) / depth * half + values.shape[0] / 2
    moved: Floats = map_coordinates(values, [down, right], order=1, mode="constant")
    return moved


def _blurred(values: Floats, sigma: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    blurred: Floats = gaussian_filter(values, sigma)
    return blurred


def _unit(values: Floats) -> Floats:
    centred = values - values.mean()
    unit: Floats = centred / (np.sqrt((centred * centred).sum()) + 1e-9)
    return unit
