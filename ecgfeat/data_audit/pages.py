"""The pages behind a cache, read only where a check needs them; what they gave is remembered."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import PageSettings
from ecgfeat.data_audit.copies import (
    FINE_PX,
    LEAST_LIKENESS,
    MAX_PAIRS,
    Maps,
    Pair,
    laid_over,
    likeness,
    trace_map,
    trace_maps,
)
from ecgfeat.data_audit.shortcuts import TRAITS, traits
from ecgfeat.errors import ImageError, StorageError
from ecgfeat.feature_cache import FeatureCache
from ecgfeat.files import replacing
from ecgfeat.images import decode_with_digest, dpi_of
from ecgfeat.runtime import Progress, Report, n_cpus

__all__ = ["Pages"]

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
        self._dpi = dpi_of(cache.header.decoder) or PageSettings.dpi
        self._memory = cache.path.with_name(f"{cache.path.stem}-audit.npz")
        self._traits, self._likenesses = self._remembered()
        self._maps: dict[int, Maps] = {}
        self.lost: dict[int, str] = {}

    def path(self, row: int) -> Path:
        """Where a row's image lies."""
        return (self._root or Path()) / self._cache.paths[row]

    def traits(self, rows: Rows) -> tuple[Rows, NDArray[np.float32]]:
        """What was measured of some rows' pages, and of which of them it could be had.

        Returns
        -------
        rows : ndarray of shape (m,), int64
        traits : ndarray of shape (m, width), float32
            As `shortcuts.traits` gives them.
        """
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
        """Which pairs are nearly the same page, and how many of them were compared.

        Parameters
        ----------
        pairs : ndarray of shape (m, 2), int64
            The likeliest first: of the others no more are compared than pay.
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
            self._write_memory()
        except StorageError as error:  # such as a folder that is only read: the next one measures
            message = f"what was measured isn't kept: {error}"
            self._report(Progress(stage="measuring", done=0, total=0, message=message))

    def _write_memory(self) -> None:
        with replacing(self._memory) as aside, aside.open("wb") as file:
            np.savez(
                file,
                version=np.int64(MEMORY_VERSION),
                pages=_as_rows(self._traits, 16),
                traits=np.array(list(self._traits.values()), np.float32).reshape(-1, _WIDTH),
                pairs=_as_rows(self._likenesses, 32),
                likeness=np.array(list(self._likenesses.values()), np.float32),
            )


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
