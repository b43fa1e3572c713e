"""What else tells the class: how a page looks without its traces, and the data's other columns.

`traits` measures a page's paper, grid, pen and edges. `telling` asks how well some numbers tell
classes apart, against what they tell of shuffled ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfeat.metrics import Z_95, area_with_error

__all__ = [
    "MAX_VALUES",
    "TRAITS",
    "Telling",
    "as_number",
    "columns_telling",
    "telling",
    "traits",
    "values_of",
]

Floats = NDArray[np.float32]

N_COLOURS = 3
_STRIP = (48, 4)
_EDGE = 12
_THUMB = 16
_MARKS = (12, 8)
TRAITS: Mapping[str, int] = {
    "page size and shape": 3,
    "file size": 1,
    "amount of drawing": 4,
    "paper colour": N_COLOURS,
    "grid colour": N_COLOURS + 1,
    "trace colour": N_COLOURS + 1,
    "noise and sharpness": 3,
    "border": 4 * _EDGE + 4 * N_COLOURS,
    "header": _STRIP[0] * _STRIP[1],
    "footer": _STRIP[0] * _STRIP[1],
    "coloured marks": 2 * _MARKS[0] * _MARKS[1],
    "16x16 thumbnail": _THUMB * _THUMB,
}
"""What is measured of a page, and how many numbers each is."""

STRIP_PX = 24
"""Rows at the top and at the foot, where a page has text and seldom traces."""
BORDER_PX = 12
INK_DEPTH = 0.55
"""Of the way from paper to the darkest pixels, from where on a pixel is ink: grids are lighter."""
SEEN_PX = (480, 320)
"""Pixels of the page that are looked at, evenly spaced: every grid of cells divides them."""


def traits(page: NDArray[np.uint8], n_bytes: int) -> Floats:
    """Everything in `TRAITS` of a page, side by side, shape (sum of its numbers,), float32.

    Traces are kept out as far as can be: a taller R wave is no shortcut. Paper is the median of
    the page; the grid what is neither paper nor trace; the thumbnail has the medians of its cells.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
    n_bytes : int
        Size of its file.
    """
    height, width = page.shape[:2]
    rows = np.linspace(0, height - 1, SEEN_PX[1]).astype(int)
    columns = np.linspace(0, width - 1, SEEN_PX[0]).astype(int)
    seen = page[rows][:, columns].astype(np.float32)
    grey = seen.mean(axis=2)
    paper = np.median(seen.reshape(-1, 3), axis=0)
    depth = max(float(paper.mean()) - float(np.percentile(grey, 0.5)), 30.0)
    ink = grey < paper.mean() - INK_DEPTH * depth
    found = {
        "page size and shape": [math.log(width), math.log(height), math.log(width / height)],
        "file size": [math.log(max(1, n_bytes) / (width * height))],
        "amount of drawing": _drawing(grey, ink),
        "paper colour": paper,
        "grid colour": _grid(seen, paper.mean() - grey, ink),
        "trace colour": _trace(seen, grey, paper),
        "noise and sharpness": _noise(page, float(paper.mean()), depth),
        "border": _border(seen),
        "header": _strip(grey[:STRIP_PX]),
        "footer": _strip(grey[-STRIP_PX:]),
        "coloured marks": _marks(seen),
        "16x16 thumbnail": np.median(_cells(grey, _THUMB, _THUMB), axis=-1),
    }
    return np.concatenate([np.ravel(found[name]) for name in TRAITS]).astype(np.float32)


def values_of(trait: str, measured: Floats) -> Floats:
    """One trait of many pages, shape (n, its numbers).

    File size is what the amount of drawing doesn't explain: more beats are more bytes.
    """
    values = measured[:, columns_of(trait)]
    if trait != "file size":
        return values
    drawing = measured[:, columns_of("amount of drawing")]
    pairs = [drawing[:, i] * drawing[:, j] for i in range(4) for j in range(i + 1)]
    known = np.column_stack([np.ones(len(drawing)), drawing, *pairs])
    explained, *_ = np.linalg.lstsq(known, values, rcond=None)
    rest: Floats = (values - known @ explained).astype(np.float32)
    return rest


def columns_of(name: str) -> slice:
    """Where a trait's numbers are among those of `traits`."""
    names = list(TRAITS)
    start = sum(TRAITS[before] for before in names[: names.index(name)])
    return slice(start, start + TRAITS[name])


def _drawing(grey: Floats, ink: NDArray[np.bool_]) -> list[float]:
    """How much there is to store: steps along and across the page, ink and its outline."""
    steps = [math.log(1 + float(np.abs(np.diff(grey, axis=axis)).mean())) for axis in (0, 1)]
    outline = float((ink[1:] != ink[:-1]).mean() + (ink[:, 1:] != ink[:, :-1]).mean())
    return [*steps, math.log(1e-3 + float(ink.mean())), math.log(1e-3 + outline)]


def _grid(seen: Floats, dark: Floats, ink: NDArray[np.bool_]) -> Floats:
    """Colour of what is darker than paper and away from any trace; how much of the rest it is."""
    from scipy.ndimage import binary_dilation

    rest = ~binary_dilation(ink, iterations=4)
    lines = rest & (dark > 6)
    share = lines.sum() / max(1, rest.sum())
    # The soft edge of a trace is no grid: a grid is much of the page.
    colour = np.median(seen[lines], axis=0) if share > 0.02 else np.zeros(N_COLOURS)
    return np.append(colour, share if share > 0.02 else 0).astype(np.float32)


def _trace(seen: Floats, grey: Floats, paper: Floats) -> Floats:
    """Tint of the darkest pixels beside the paper's, and how dark they get."""
    darkest = np.median(seen[grey <= np.percentile(grey, 0.5)], axis=0) - paper
    tint = darkest - darkest.mean()
    return np.append(tint, float(np.percentile(grey, 0.1)))


def _noise(page: NDArray[np.uint8], paper: float, depth: float) -> list[float]:
    """How much neighbouring pixels of paper differ, and how sharp the edges of traces are."""
    grey = page[:1024].mean(axis=2, dtype=np.float32)
    # Across the page: the edges of baselines, which every page has, and not those of R waves.
    steps = np.abs(np.diff(grey, axis=0))
    ink = grey < paper - INK_DEPTH * depth
    edges = steps[ink[1:] != ink[:-1]]
    sharp = float(np.median(edges)) / depth if edges.size else 0.0
    light = steps[~(ink[1:] | ink[:-1])]
    light = light if light.size else np.zeros(1, np.float32)
    return [float(np.median(light)), float(np.percentile(light, 75)), sharp]


def _border(seen: Floats) -> Floats:
    """Along the four edges of the page its grey in a dozen pieces each; the corners' colours."""
    grey = seen.mean(axis=2)
    edges = (grey[:BORDER_PX], grey[-BORDER_PX:], grey[:, :BORDER_PX].T, grey[:, -BORDER_PX:].T)
    pieces = [
        edge[:, : edge.shape[1] // _EDGE * _EDGE].reshape(len(edge), _EDGE, -1).mean(axis=(0, 2))
        for edge in edges
    ]
    ends = (slice(BORDER_PX), slice(-BORDER_PX, None))
    corners = [seen[rows, columns].reshape(-1, 3).mean(axis=0) for rows in ends for columns in ends]
    return np.concatenate([*pieces, *corners])


def _strip(grey: Floats) -> Floats:
    """Where a strip is darker than its paper."""
    text = np.maximum(np.median(grey) - grey - 30, 0)
    strip: Floats = _cells(text, _STRIP[1], _STRIP[0]).mean(axis=-1)
    return strip


def _marks(seen: Floats) -> Floats:
    """How far each cell's colour is from the page's: stamps, pens, labels."""
    chroma = seen[:, :, [0, 2]] - seen[:, :, [1]]
    cells = [_cells(part, _MARKS[1], _MARKS[0]).mean(axis=-1) for part in chroma.transpose(2, 0, 1)]
    return np.concatenate([np.ravel(cell - np.median(cell)) for cell in cells])


def _cells(values: Floats, n_rows: int, n_columns: int) -> Floats:
    """The values of each cell of a grid that divides them, shape (n_rows, n_columns, of a cell)."""
    height, width = values.shape[0] // n_rows, values.shape[1] // n_columns
    tiles = values.reshape(n_rows, height, n_columns, width).transpose(0, 2, 1, 3)
    return tiles.reshape(n_rows, n_columns, height * width)


# How well some numbers tell classes apart

N_FOLDS = 5
N_SHUFFLES = 200
PENALTY = (0.05, 0.5)
"""Of ridge regression, for each row and for each column: of many columns each may say little."""
CHANCE_PERCENTILE = 99.5
N_BINS = 8
FEW = 12
"""Up to so many numbers each is also cut into bins: a class may lie between two others."""
MAX_VALUES = 12
"""Of a column that is no number, or whose values are strata."""
LEAST_AREA, N_ERRORS = 0.6, 2.8
"""An AUROC that isn't so many standard errors above this, and above chance, is said, but no
warning: a dozen things are tried, and 1.96 would err in one of forty."""


@dataclass(frozen=True)
class Telling:
    """How well something tells a class from the others.

    Attributes
    ----------
    what : str
    label : str
        The class told best.
    auroc, low, high : float
        Out of fold, with its 95 % interval (DeLong).
    chance : float
        What shuffled classes hardly ever reach, the best of them again.
    n_rows : int
    """

    what: str
    label: str
    auroc: float
    low: float
    high: float
    chance: float
    n_rows: int

    @property
    def is_telling(self) -> bool:
        """Whether it is clearly more than chance, and enough to matter."""
        error = (self.auroc - self.low) / Z_95
        return self.auroc - N_ERRORS * error > max(self.chance, LEAST_AREA)

    def __str__(self) -> str:
        return (
            f"{self.what}: AUROC {self.auroc:.3f} [{self.low:.3f}, {self.high:.3f}] for "
            f"{self.label} (shuffled classes: up to {self.chance:.3f}; {self.n_rows} images)"
        )


def telling(what: str, values: Floats, labels: Sequence[str], *, seed: int = 0) -> Telling | None:
    """How well `values` tell the best told class from the others, on rows not learnt from.

    Ridge regression on the classes, whose folds are factored once and then solved for the true
    classes and `N_SHUFFLES` shuffled ones together.

    Parameters
    ----------
    what : str
        What the values are.
    values : ndarray of shape (n, d), float32
        One row per unit: a patient, or an image that is its own.
    labels : sequence of str, length n
    seed : int

    Returns
    -------
    Telling or None
        None where too few rows of two classes are left, or all values are the same.
    """
    X = _expanded(values)
    names, targets = np.unique(np.array(labels), return_inverse=True)
    n_rows = np.bincount(targets)
    usable = np.flatnonzero(n_rows >= 2 * N_FOLDS)
    if len(names) < 2 or not len(usable) or not X.shape[1]:
        return None
    rng = np.random.default_rng(seed)
    shuffled = np.stack([targets, *(rng.permutation(targets) for _ in range(N_SHUFFLES))])
    wanted = shuffled[:, :, np.newaxis] == usable  # (1 + shuffles, n, classes)
    columns = wanted.transpose(1, 0, 2).reshape(len(targets), -1).astype(np.float32)
    scores = np.empty_like(columns)
    for rows in _dealt(targets, rng):
        rest = np.ones(len(targets), dtype=bool)
        rest[rows] = False
        scores[rows] = _ridge(X[rest], columns[rest], X[rows])
    areas = _areas(columns, scores).reshape(1 + N_SHUFFLES, len(usable))
    best = int(areas[0].argmax())
    chance = float(np.percentile(areas[1:].max(axis=1), CHANCE_PERCENTILE))
    area, error = area_with_error(wanted[0, :, best], scores[:, best].astype(np.float64))
    # Where all are told apart the error is nothing: what so few rows may have missed is allowed.
    error = max(error, 0.5 / min(n_rows[usable[best]], len(targets) - n_rows[usable[best]]))
    low, high = max(0.0, area - Z_95 * error), min(1.0, area + Z_95 * error)
    return Telling(what, str(names[usable[best]]), area, low, high, chance, len(targets))


def columns_telling(
    columns: Mapping[str, Sequence[str]],
    rows: NDArray[np.int64],
    labels: Sequence[str],
    *,
    seed: int = 0,
) -> list[Telling]:
    """How well each column tells the labels of some rows apart, where that can be said."""
    found = []
    for name, cells in columns.items():
        values = _as_numbers([cells[row] for row in rows.tolist()])
        found.append(telling(name, values, labels, seed=seed))
    return [one for one in found if one]


def _as_numbers(values: Sequence[str]) -> NDArray[np.float32]:
    """A column's values: numbers as they are, words as one column each; empty for names."""
    counts = Counter(values)
    numbers = [as_number(value) for value in values]
    n_numbers = sum(number is not None for number in numbers)
    if n_numbers > 0.9 * len(values) and len(counts) > MAX_VALUES:
        known = [number for number in numbers if number is not None]
        middle = float(np.median(known))
        filled = [[middle if n is None else n, float(n is None)] for n in numbers]
        return np.array(filled, np.float32)
    if len(counts) > max(MAX_VALUES, len(values) / 10):
        return np.empty((len(values), 0), np.float32)
    words = [word for word, _ in counts.most_common(50)]
    return np.array([[value == word for word in words] for value in values], np.float32)


def as_number(text: str) -> float | None:
    """A cell's number; None for a word, and for what stands for no number."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e30 else None


def _expanded(values: Floats) -> Floats:
    """Standardised columns; few ones also as steps at their quantiles."""
    values = values[:, values.std(axis=0) > 1e-6 * (1 + np.abs(values).mean(axis=0))]
    parts = [values]
    if values.shape[1] <= FEW:
        for column in values.T:
            edges = np.unique(np.quantile(column, np.linspace(0, 1, N_BINS + 1)[1:-1]))
            parts.append((column[:, np.newaxis] > edges).astype(np.float32))
            parts.append((column[:, np.newaxis] == edges).astype(np.float32))
    X = np.hstack(parts)
    X = X[:, X.std(axis=0) > 0]
    standard: Floats = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-6)
    return np.clip(standard, -8, 8).astype(np.float32)


def _dealt(targets: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of each fold, every class dealt out evenly."""
    order = rng.permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    return [np.sort(order[fold::N_FOLDS]) for fold in range(N_FOLDS)]


def _ridge(X: Floats, wanted: Floats, held_out: Floats) -> Floats:
    """What ridge regression from `X` to `wanted` says of the rows held out."""
    mean = wanted.mean(axis=0)
    penalty = PENALTY[0] * len(X) + PENALTY[1] * X.shape[1]
    if X.shape[1] <= len(X):
        weights = np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T @ (wanted - mean))
    else:
        weights = X.T @ np.linalg.solve(X @ X.T + penalty * np.eye(len(X)), wanted - mean)
    said: Floats = (held_out @ weights + mean).astype(np.float32)
    return said


def _areas(columns: Floats, scores: Floats) -> NDArray[np.float64]:
    """AUROC of each column of scores: the share of pairs in the right order (Mann-Whitney)."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    n_positive = columns.sum(axis=0, dtype=np.float64)
    n_negative = len(columns) - n_positive
    above = (ranks * columns).sum(axis=0) - n_positive * (n_positive + 1) / 2
    areas: NDArray[np.float64] = above / (n_positive * n_negative)
    return areas
