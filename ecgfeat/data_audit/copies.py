"""Copies: the same file twice, and nearly the same page, found by features and told by the traces.

A page scanned or saved again has other bytes and other features, but its traces lie where they
lay. So its nearest neighbours in feature space are only asked: the two pages are laid over one
another, and their upstrokes compared cell by cell.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfeat.data_audit.shortcuts import TRAITS, traits
from ecgfeat.errors import ImageError, StorageError
from ecgfeat.feature_cache import FeatureCache
from ecgfeat.files import replacing
from ecgfeat.images import decode_with_digest, dpi_of
from ecgfeat.protocol import hash_place
from ecgfeat.runtime import Progress, Report, n_cpus

__all__ = [
    "FINE_PX",
    "LEAST_LIKENESS",
    "MAX_PAIRS",
    "N_WHITENED",
    "Maps",
    "Pages",
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


class Pair(NamedTuple):
    """Two rows of the cache, the lower one first, and the `likeness` of their pages."""

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


# The pages behind a cache, read only where a check needs them; what they gave is remembered

T = TypeVar("T")
U = TypeVar("U")
Rows = NDArray[np.int64]

CHUNK = 128
PATIENCE = 1000
"""Pairs without a copy among them, after which the farther ones aren't compared any more."""
N_MAPS = 512
"""Pages whose maps are kept at hand: 350 MB."""
UNLIKE = LEAST_LIKENESS - 0.01
"""At most what is said of a pair that wasn't compared to the end."""
MEMORY_VERSION = 1
_WIDTH = sum(TRAITS.values())


class Pages:
    """Reads the pages of a cache's rows.

    What was measured lies beside the cache, in a file ending in ``-audit.npz``, by the pages'
    digests; it may be deleted at any time.

    Parameters
    ----------
    cache : FeatureCache
    root : Path or None
        Where the images are; None where nobody knows.
    report : callable
        Told the progress.

    Attributes
    ----------
    lost : dict of int to str
        Rows whose page couldn't be read, or is another by now, and why.
    """

    def __init__(self, cache: FeatureCache, root: Path | None, report: Report) -> None:
        self._cache = cache
        self._root = root
        self._report = report
        self._digests = cache.pictures
        self._dpi = dpi_of(cache.header.decoder)
        self._memory = cache.path.with_name(f"{cache.path.stem}-audit.npz")
        self._traits, self._likenesses = self._remembered()
        self._maps: dict[int, Maps] = {}
        self.lost: dict[int, str] = {}

    def path(self, row: int) -> Path:
        """Where a row's image lies."""
        return (self._root or Path()) / self._cache.paths[row]

    def traits(self, rows: Rows) -> tuple[Rows, NDArray[np.float32]]:
        """Those of some rows whose pages could be had, and the `traits` of each, (m, width)."""
        new = [row for row in rows.tolist() if self._digests[row] not in self._traits]
        try:
            for row, found in self._read(new, traits, "measuring"):
                self._traits[self._digests[row]] = found
        finally:  # also where it is interrupted: the next audit goes on from there
            self._remember()
        there = [row for row in rows.tolist() if self._digests[row] in self._traits]
        measured = [self._traits[self._digests[row]] for row in there]
        return np.array(there, np.int64), np.array(measured, np.float32).reshape(-1, _WIDTH)

    def near_copies(self, pairs: Rows) -> tuple[list[Pair], int]:
        """Which pairs, shape (m, 2), are nearly the same page, and how many were compared.

        The likeliest come first: of the others no more are compared than pay.
        """
        found: list[Pair] = []
        n_tried = n_compared = n_since = 0
        total = min(len(pairs), MAX_PAIRS)
        try:
            while n_tried < total and n_since < PATIENCE:
                chunk = pairs[n_tried : min(n_tried + CHUNK, total)].tolist()
                compared = list(self._compared(chunk))
                copies = [pair for pair in compared if pair.likeness >= LEAST_LIKENESS]
                found += copies
                n_tried += len(chunk)
                n_compared += len(compared)
                n_since = 0 if copies else n_since + len(chunk)
                self._tell("comparing", n_tried, total, "pairs")
        finally:
            self._remember()
            self._maps.clear()
        return found, n_compared

    def _compared(self, pairs: Sequence[Sequence[int]]) -> Iterator[Pair]:
        keys = {(a, b): self._digests[a] + self._digests[b] for a, b in pairs}
        new = [pair for pair, key in keys.items() if key not in self._likenesses]
        wanted = sorted({row for pair in new for row in pair} - self._maps.keys())
        if len(self._maps) + len(wanted) > N_MAPS:
            self._maps.clear()
            wanted = sorted({row for pair in new for row in pair})
        for row, maps in self._read(wanted, lambda page, _: trace_maps(page)):
            self._maps[row] = maps
        new = [pair for pair in new if self._maps.keys() >= set(pair)]
        laid = list(_in_threads(lambda pair: laid_over(*(self._maps[row] for row in pair)), new))
        likely = {pair: place for pair, (_, place) in zip(new, laid) if place is not None}
        fine = dict(
            self._read(
                sorted({row for pair in likely for row in pair}),
                lambda page, _: trace_map(page, FINE_PX),
            )
        )
        for pair, (alike, place) in zip(new, laid):
            if place is not None and fine.keys() >= set(pair):
                alike = likeness(fine[pair[0]], fine[pair[1]], place)
            self._likenesses[keys[pair]] = alike if place is not None else min(alike, UNLIKE)
        for (a, b), key in keys.items():
            if key in self._likenesses:
                yield Pair(a, b, self._likenesses[key])

    def _read(
        self, rows: Sequence[int], measure: Callable[[NDArray[np.uint8], int], T], stage: str = ""
    ) -> Iterator[tuple[int, T]]:
        """Decode pages in threads; those that can't be had are noted in `lost`."""

        def one(row: int) -> T | ImageError:
            try:
                if self._root is None:
                    raise ImageError("it isn't known where the images are")
                page, digest, n_bytes = decode_with_digest(self.path(row), dpi=self._dpi)
                if digest != self._digests[row]:
                    raise ImageError("it changed since its features were extracted")
                return measure(page, n_bytes)
            except ImageError as error:
                return error

        for done, (row, found) in enumerate(zip(rows, _in_threads(one, rows)), start=1):
            if stage:
                self._tell(stage, done, len(rows), "images")
            if isinstance(found, ImageError):
                self.lost[row] = str(found)
            else:
                yield row, found

    def _tell(self, stage: str, done: int, total: int, unit: str) -> None:
        self._report(Progress(stage=stage, done=done, total=total, unit=unit))

    def _remembered(self) -> tuple[dict[bytes, NDArray[np.float32]], dict[bytes, float]]:
        """What an earlier audit measured; nothing where its file is damaged or of another one."""
        damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, MemoryError)
        with (
            contextlib.suppress(*damaged),
            self._memory.open("rb") as opened,  # which numpy leaves open where it is damaged
            np.load(opened, allow_pickle=False) as file,
        ):
            digests, measured = file["pages"], file["traits"]
            pairs, values = file["pairs"], file["likeness"]
            shapes = digests.shape[1:], measured.shape[1:], pairs.shape[1:]
            if int(file["version"]) == MEMORY_VERSION and shapes == ((16,), (_WIDTH,), (32,)):
                measured = measured.astype(np.float32)
                return (
                    {key.tobytes(): row for key, row in zip(digests, measured)},
                    {key.tobytes(): float(value) for key, value in zip(pairs, values)},
                )
        return {}, {}

    def _remember(self) -> None:
        try:
            with replacing(self._memory) as aside, aside.open("wb") as file:
                np.savez(
                    file,
                    version=np.int64(MEMORY_VERSION),
                    pages=_as_rows(self._traits, 16),
                    traits=np.array(list(self._traits.values()), np.float32).reshape(-1, _WIDTH),
                    pairs=_as_rows(self._likenesses, 32),
                    likeness=np.array(list(self._likenesses.values()), np.float32),
                )
        except StorageError as error:  # such as a folder that is only read: the next one measures
            message = f"what was measured isn't kept: {error}"
            self._report(Progress(stage="measuring", done=0, total=0, message=message))


def _as_rows(keys: Iterable[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, width)


def _in_threads(work: Callable[[U], Any], items: Sequence[U]) -> Iterator[Any]:
    """`work` of each item, in order; each thread computes by itself alone."""
    from threadpoolctl import threadpool_limits

    pool = ThreadPoolExecutor(n_cpus(), thread_name_prefix="ecgfeat-audit")
    try:
        with threadpool_limits(1):
            yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
