"""Writing a cache: part by part, so that nothing committed is ever lost, then as one file.

A part is a cache of its own, of the rows computed since the part before. The state of an
extraction is what its files say: the cache, if there is one, and the parts beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import CacheError, CacheMismatchError, DataError, StorageError
from ecgfeat.feature_cache.description import attributes, check_texts, columns
from ecgfeat.feature_cache.header import Header
from ecgfeat.feature_cache.ledger import Ledger, hash_images
from ecgfeat.feature_cache.locking import hold
from ecgfeat.feature_cache.reader import FeatureCache, open_cache, part_paths, parts_folder
from ecgfeat.feature_cache.schema import F32
from ecgfeat.feature_cache.serialization import DataSet, write_cache
from ecgfeat.feature_cache.storage import ASIDE, make_folder, remove
from ecgfeat.manifest import Manifest
from ecgfeat.runtime import Report, silent, versions

__all__ = ["CacheWriter", "existing_header", "open_writer"]

SHARD_ROWS = 64
"""Rows dealt to the shards at a time: few enough that each gets its share of small data."""

Rows = NDArray[np.int64]


class Failure(Protocol):
    """An image that is to be left out."""

    @property
    def row(self) -> int:
        """Row of the manifest."""

    @property
    def reason(self) -> str:
        """Why, for people."""

    @property
    def passing(self) -> bool:
        """Whether the next writer is to try it again, though the file be unchanged."""


@contextlib.contextmanager
def open_writer(
    path: Path,
    header: Header,
    manifest: Manifest,
    *,
    rehash: bool = False,
    shard: tuple[int, int] | None = None,
    report: Report = silent,
) -> Iterator[CacheWriter]:
    """Begin a cache, or go on with one.

    Parameters
    ----------
    path : Path
        The cache's file; its folder is made if need be.
    header : Header
        How the features will be computed; what is already there must agree.
    manifest : Manifest
    rehash : bool, default False
        Read every image to tell whether it changed; else its size and time of change tell.
    shard : (index, count), optional
        Compute only this share of the rows, beside other shards, and don't put them together.
    report : callable
        Told the progress of `rehash`.

    Raises
    ------
    CacheLockedError
        When another process writes this cache.
    CacheMismatchError
        When the cache was computed another way, or from other data.
    CacheDamagedError, CacheFormatError
        When the cache or a part of it isn't whole; nothing is overwritten.
    DataError
        When the manifest holds a text that a cache can't.
    StorageError
    """
    path = path.resolve() if path.is_symlink() else path
    check_texts(manifest)
    make_folder(path.parent)
    with hold(path, shard):
        _remove_unfinished(path, shard)
        sources = [open_cache(file) for file in (path, *part_paths(path)) if file.exists()]
        for source in sources:
            header.require(source.header, path)
        _refuse_other_data(sources, manifest, path)
        ledger = Ledger(manifest, hash_images(manifest, sources, report) if rehash else {})
        for source in sources:
            ledger.adopt(source)
        yield CacheWriter(path, header, manifest, ledger, shard)


def existing_header(path: Path) -> Header | None:
    """The header of the cache or of its first part; None where nothing is there yet.

    Raises
    ------
    CacheDamagedError, CacheFormatError, StorageError
    """
    # A writer that finishes meanwhile replaces the parts by the cache.
    for file in (path, *part_paths(path), path):
        try:
            return open_cache(file).header
        except CacheError:
            if file.exists():
                raise
    return None


class CacheWriter:
    """What a cache lacks, and where it goes. Made by `open_writer`.

    Attributes
    ----------
    n_rows : int
        Rows of the manifest.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        manifest: Manifest,
        ledger: Ledger,
        shard: tuple[int, int] | None,
    ) -> None:
        self.n_rows = len(manifest.paths)
        self._path = path
        self._header = header
        self._manifest = manifest
        self._facts = attributes(header, manifest)
        self._versions = versions()
        self._ledger = ledger
        self._shard = shard
        self._n_parts = _last_number(path, shard)
        self._clock = time.monotonic()

    @property
    def pending(self) -> Rows:
        """Rows of the manifest still to be computed, ascending; a shard's own only."""
        rows = self._ledger.pending
        if self._shard is None:
            return rows
        index, count = self._shard
        own: Rows = rows[rows // SHARD_ROWS % count == index]
        return own

    def commit(
        self,
        rows: Rows,
        features: Mapping[str, NDArray[np.float32]],
        digests: NDArray[np.uint8],
        failures: Sequence[Failure] = (),
    ) -> None:
        """Keep some rows for good: when this returns, neither a kill nor a power cut loses them.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64
            Pending rows of the manifest.
        features : mapping of str to ndarray of shape (n, width), float32
            Every layer of the header.
        digests : ndarray of shape (n, 16), uint8
            BLAKE2b of the bytes of each image's file.
        failures : sequence of Failure
            Pending rows to be left out.

        Raises
        ------
        CacheError
            When features aren't finite.
        StorageError
            When the disk refuses; what was committed before is safe.
        """
        reasons = {failure.row: failure.reason for failure in failures}
        passing = {failure.row for failure in failures if failure.passing}
        if not len(rows) and not reasons:
            return
        features = {tap: np.asarray(values, np.float32) for tap, values in features.items()}
        self._check_part(rows, features, digests, reasons)
        contents = _in_memory(columns(self._manifest, rows, digests, reasons, passing))
        for tap in sorted(self._header.taps):
            contents[f"features/{tap}"] = DataSet.of(features[tap])
        self._n_parts += 1
        part = parts_folder(self._path) / f"{_part_prefix(self._shard)}-{self._n_parts:06d}.h5"
        make_folder(part.parent)
        elapsed_s = time.monotonic() - self._clock
        self._write(part, contents, elapsed_s)
        self._clock += elapsed_s
        self._ledger.forget_hashes([*rows.tolist(), *reasons])
        self._ledger.adopt(open_cache(part))
        for row in passing:
            self._ledger.leave_out(row, reasons[row])

    def finish(self) -> FeatureCache:
        """Put everything together in the manifest's order, as one file, and remove the parts.

        Labels, splits, groups and metadata are the manifest's; rows that it no longer lists are
        left out. When all that is there already, nothing is written.

        Raises
        ------
        DataError
            When no image could be used.
        StorageError, CacheDamagedError
            All that was committed is kept.
        """
        if self._shard is not None or len(self.pending):
            raise RuntimeError("finish() is for a plain writer with nothing pending")
        rows, reasons = self._ledger.kept, self._ledger.reasons
        if not len(rows):
            row, reason = min(reasons.items())
            raise DataError(
                f"none of the {self.n_rows} images can be used; the first, "
                f"{self._manifest.paths[row]}: {reason}"
            )
        described = columns(
            self._manifest, rows, self._ledger.digests(), reasons, self._ledger.passing
        )
        if not self._is_written(described):
            self._assemble(described)
        for part in part_paths(self._path):
            remove(part)
        remove(parts_folder(self._path))
        return open_cache(self._path)

    def _check_part(
        self,
        rows: Rows,
        features: Mapping[str, NDArray[np.float32]],
        digests: NDArray[np.uint8],
        reasons: Mapping[int, str],
    ) -> None:
        given = [*rows.tolist(), *reasons]
        if len(set(given)) != len(given) or not np.isin(given, self.pending).all():
            raise ValueError("a part's rows must be pending, and each there once")
        expected = {tap: (len(rows), width) for tap, width in self._header.taps.items()}
        found = {tap: values.shape for tap, values in features.items()}
        if found != expected or digests.shape != (len(rows), 16):
            raise ValueError(
                f"features of shapes {found} and digests {digests.shape}, where {expected} and "
                f"{(len(rows), 16)} belong"
            )
        for tap, values in features.items():
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                name = self._manifest.paths[rows[~finite][0]]
                raise CacheError(f"the features {tap} of {name} aren't finite: not kept")

    def _is_written(self, described: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the cache holds exactly this already."""
        cache = next(iter(self._ledger.sources))
        return (
            cache.path == self._path
            and self._ledger.is_copy_of(cache)
            and cache.header == self._header
            and cache.data_name == self._manifest.name
            and cache.data_digest == self._facts["data_digest"]
            and set(described) == set(cache.columns())
            and all(np.array_equal(cache.column(name), described[name]) for name in described)
        )

    def _assemble(self, described: Mapping[str, NDArray[Any]]) -> None:
        # They were whole when this writer began, which may be days ago.
        for source in self._ledger.sources:
            open_cache(source.path)
        n_images = len(self._ledger.kept)
        contents = _in_memory(described)
        for tap, width in sorted(self._header.taps.items()):
            blocks = self._ledger.features(tap, width)
            contents[f"features/{tap}"] = DataSet(F32, (n_images, width), blocks)
        extraction_s = sum(source.extraction_s for source in self._ledger.sources)
        try:
            self._write(self._path, contents, extraction_s)
        except StorageError as error:
            raise StorageError(
                f"{error}. All computed features are kept in {parts_folder(self._path)}: then "
                "run the same command again."
            ) from error

    def _write(self, path: Path, contents: Mapping[str, DataSet], extraction_s: float) -> None:
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts = {**self._facts, "created": created, "extraction_s": float(extraction_s)}
        write_cache(path, facts, self._versions, contents)


def _in_memory(arrays: Mapping[str, NDArray[Any]]) -> dict[str, DataSet]:
    return {name: DataSet.of(array) for name, array in arrays.items()}


def _part_prefix(shard: tuple[int, int] | None) -> str:
    return "part" if shard is None else f"shard-{shard[0]}-of-{shard[1]}"


def _last_number(path: Path, shard: tuple[int, int] | None) -> int:
    prefix = f"{_part_prefix(shard)}-"
    numbers = (part.stem.removeprefix(prefix) for part in part_paths(path))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _remove_unfinished(path: Path, shard: tuple[int, int] | None) -> None:
    """Remove files that a killed writer was in the middle of."""
    pattern = f"*{ASIDE}" if shard is None else f"{_part_prefix(shard)}-*{ASIDE}"
    for file in parts_folder(path).glob(pattern):
        remove(file)
    if shard is None:
        remove(path.with_name(f"{path.name}{ASIDE}"))


def _refuse_other_data(sources: Sequence[FeatureCache], manifest: Manifest, path: Path) -> None:
    """A cache that shares no image with the manifest is some other data's."""
    listed = set(manifest.paths)
    filled = [source for source in sources if len(source)]
    if filled and all(listed.isdisjoint(source.paths) for source in filled):
        found = filled[0]
        raise CacheMismatchError(
            "data",
            f"{manifest.name} ({manifest.paths[0]}, …)",
            f"{found.data_name} ({found.paths[0]}, …)",
            path,
        )
