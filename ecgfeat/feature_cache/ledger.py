"""Which images a cache and its parts know already, and where each one's features are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfeat.feature_cache.reader import FeatureCache
from ecgfeat.manifest import Manifest
from ecgfeat.runtime import Progress, Report

__all__ = ["Ledger", "hash_images"]

BLOCK_BYTES = 2**23
"""Features gathered at a time: 1,024 rows of a ResNet-50's layer4."""
_PENDING, _QUARANTINED = -1, -2

Rows = NDArray[np.int64]


class Ledger:
    """The rows of a manifest against some sources (a cache and its parts).

    Attributes
    ----------
    sources : list of FeatureCache
    reasons : dict of int to str
        Why rows are quarantined.
    passing : set of int
        Those of them that are left out by this writer only; the next one tries them again.
    """

    def __init__(self, manifest: Manifest, hashed: Mapping[int, bytes]) -> None:
        self.sources: list[FeatureCache] = []
        self.reasons: dict[int, str] = {}
        self.passing: set[int] = set()
        self._row_of = {name: row for row, name in enumerate(manifest.paths)}
        self._size_and_time = list(zip(manifest.n_bytes, manifest.mtime_ns))
        self._hashed = dict(hashed)
        # Where each row's features are: number of the source (or one of two signs), row in it.
        self._source = np.full(len(manifest.paths), _PENDING, dtype=np.int64)
        self._source_row = np.zeros(len(manifest.paths), dtype=np.int64)

    @property
    def pending(self) -> Rows:
        """Rows that no source knows."""
        return np.flatnonzero(self._source == _PENDING).astype(np.int64)

    @property
    def kept(self) -> Rows:
        """Rows that have features."""
        return np.flatnonzero(self._source >= 0).astype(np.int64)

    def adopt(self, source: FeatureCache) -> None:
        """Take note of what `source` knows of images that haven't changed; the latest wins."""
        number = len(self.sources)
        self.sources.append(source)
        columns = (source.column(name).tolist() for name in ("n_bytes", "mtime_ns"))
        digests = (digest.tobytes() for digest in source.column("digest"))
        for at, (name, *size_and_time, digest) in enumerate(zip(source.paths, *columns, digests)):
            row = self._row_of.get(name)
            if row is not None and self._is_unchanged(row, size_and_time, digest):
                self._source[row], self._source_row[row] = number, at
                self.reasons.pop(row, None)
        times = source.column("quarantine/mtime_ns").tolist()
        for item, mtime_ns in zip(source.quarantined, times):
            row = self._row_of.get(item.path)
            if row is not None and self._is_unchanged(row, [item.n_bytes, mtime_ns], None):
                self._source[row] = _QUARANTINED
                self.reasons[row] = item.reason

    def leave_out(self, row: int, reason: str) -> None:
        """Quarantine a row for now, though no source knows it."""
        self._source[row] = _QUARANTINED
        self.reasons[row] = reason
        self.passing.add(row)

    def _is_unchanged(self, row: int, size_and_time: list[int], digest: bytes | None) -> bool:
        if row in self._hashed:
            return self._hashed[row] == digest
        return tuple(size_and_time) == self._size_and_time[row]

    def forget_hashes(self, rows: Sequence[int]) -> None:
        """From now on, size and time tell whether these images changed: they were just read."""
        for row in rows:
            self._hashed.pop(row, None)

    def is_copy_of(self, cache: FeatureCache) -> bool:
        """Whether the rows kept are the rows of `cache`, the first source, in their order."""
        rows = self.kept
        return (
            self.sources[0] is cache
            and not self._source[rows].any()
            and np.array_equal(self._source_row[rows], np.arange(len(cache)))
        )

    def digests(self) -> NDArray[np.uint8]:
        """Digests of the images kept, shape (n, 16)."""
        rows = self.kept
        digests = np.empty((len(rows), 16), np.uint8)
        for number, chosen in self._by_source(rows):
            found = self.sources[number].column("digest")
            digests[chosen] = found[self._source_row[rows[chosen]]]
        return digests

    def features(self, tap: str, width: int) -> Iterator[NDArray[np.float32]]:
        """Features of the images kept, in blocks of shape (some, width), `BLOCK_BYTES` long."""
        rows = self.kept
        n_rows = max(1, BLOCK_BYTES // (4 * width))
        for start in range(0, len(rows), n_rows):
            some = rows[start : start + n_rows]
            block = np.empty((len(some), width), np.float32)
            for number, chosen in self._by_source(some):
                source = self.sources[number]
                block[chosen] = source.features(tap, self._source_row[some[chosen]])
            yield block

    def _by_source(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Each source's number, and which of `rows` it holds."""
        numbers = self._source[rows]
        for number in np.unique(numbers).tolist():
            yield number, np.flatnonzero(numbers == number)


def hash_images(
    manifest: Manifest, sources: Sequence[FeatureCache], report: Report
) -> dict[int, bytes]:
    """Digest of every image that a source knows, by row."""
    known = {name for source in sources for name in source.paths}
    known.update(item.path for source in sources for item in source.quarantined)
    rows = [row for row, name in enumerate(manifest.paths) if name in known]
    hashed = {}
    for done, row in enumerate(rows):
        report(Progress(stage="comparing", done=done, total=len(rows)))
        hashed[row] = _image_digest(manifest.image_path(row))
    return hashed


def _image_digest(path: Path) -> bytes:
    """BLAKE2b of the file's bytes; empty where there are none to be had."""
    try:
        # Opening a pipe would wait for its other end.
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        pass
    return b""
