"""Writing a cache: part by part, so that nothing committed is ever lost, then as one file.

A part is a cache of its own, of the rows computed since the part before. The state of an
extraction is what its files say: the cache, if there is one, and the parts beside it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from ecgfeat.errors import (
    CacheError,
    CacheLockedError,
    CacheMismatchError,
    DataError,
    StorageError,
    storage_error,
)
from ecgfeat.feature_cache.format import (
    F32,
    GROUPS,
    HDF5_TYPES,
    Attributes,
    Header,
    attributes,
    check_texts,
    columns,
    encode_texts,
)
from ecgfeat.feature_cache.reader import (
    NO_DIGEST,
    FeatureCache,
    Section,
    UserBlock,
    block_size,
    open_cache,
    part_paths,
    parts_folder,
)
from ecgfeat.files import make_folder, page_named, replacing
from ecgfeat.locking import hold, refuse_if_held
from ecgfeat.manifest import Manifest
from ecgfeat.runtime import Progress, Report, silent, versions

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["CacheWriter", "existing_header", "hold_cache", "open_writer"]


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
    with hold_cache(path, shard):
        _remove_unfinished(path, shard)
        sources = [open_cache(file) for file in (path, *part_paths(path)) if file.exists()]
        for source in sources:
            header.require(source.header, path)
        _refuse_other_data(sources, manifest, path)
        ledger = Ledger(manifest, hash_images(manifest, sources, report) if rehash else {})
        for source in sources:
            ledger.adopt(source)
        yield CacheWriter(path, header, manifest, ledger, shard)


@contextlib.contextmanager
def hold_cache(cache: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Be the one writer of `cache`, or the one that computes `shard` of it.

    Shards don't exclude each other; a plain writer excludes them, and they exclude it.

    Raises
    ------
    CacheLockedError
        When another process is at it; the message says who.
    StorageError
    """

    def refusal(who: str, remedy: str) -> CacheLockedError:
        return CacheLockedError(
            f"{cache} is being written by {who}. Wait for it to end, or give another file with "
            f"--cache. {remedy}".rstrip()
        )

    plain = cache.with_name(f"{cache.name}.lock")
    if shard is None:
        with hold(plain, refusal):
            for path in cache.parent.glob(f"{escape(cache.name)}.shard-*.lock"):
                with hold(path, refusal):
                    pass  # which also removes what a killed shard left
            yield
    else:
        own = cache.with_name(f"{cache.name}.shard-{shard[0]}-of-{shard[1]}.lock")
        with hold(own, refusal):
            refuse_if_held(plain, refusal)
            yield


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
        cache = self._ledger.sources[0]
        return (
            cache.path == self._path
            and self._ledger.is_first_source()
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


BLOCK_BYTES = 2**23
"""Features gathered at a time: 1,024 rows of a ResNet-50's layer4."""
_PENDING, _QUARANTINED = -1, -2


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
        rows = zip(source.paths, *columns, source.pictures)
        for at, (name, *size_and_time, digest) in enumerate(rows):
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

    def is_first_source(self) -> bool:
        """Whether the rows kept are the rows of the first source, in their order."""
        rows = self.kept
        return not self._source[rows].any() and np.array_equal(
            self._source_row[rows], np.arange(len(self.sources[0]))
        )

    def digests(self) -> NDArray[np.uint8]:
        """Digests of the images kept, shape (n, 16)."""
        rows = self.kept
        digests = np.empty((len(rows), 16), np.uint8)
        for source, chosen, source_rows in self._by_source(rows):
            digests[chosen] = source.column("digest")[source_rows]
        return digests

    def features(self, tap: str, width: int) -> Iterator[NDArray[np.float32]]:
        """Features of the images kept, in blocks of shape (some, width), `BLOCK_BYTES` long."""
        rows = self.kept
        n_rows = max(1, BLOCK_BYTES // (4 * width))
        for start in range(0, len(rows), n_rows):
            some = rows[start : start + n_rows]
            block = np.empty((len(some), width), np.float32)
            for source, chosen, source_rows in self._by_source(some):
                block[chosen] = source.features(tap, source_rows)
            yield block

    def _by_source(self, rows: Rows) -> Iterator[tuple[FeatureCache, Rows, Rows]]:
        """Each source, which of `rows` it holds, and where."""
        numbers = self._source[rows]
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            yield self.sources[number], chosen, self._source_row[rows[chosen]]


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
    """BLAKE2b of the file's bytes and the page's mark; empty where there are none to be had."""
    named = page_named(path)
    path = Path(named.file)
    try:
        # Opening a pipe would wait for its other end.
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            found.update(named.mark)
            return found.digest()
    except OSError:
        pass
    return b""


# Writing a cache: HDF5 lays the file out in memory, the contents go straight to the disk.
#
# HDF5 is asked for the structure only; the data sets are plain bytes at the places it reserves
# for them. Its own code never touches the disk, so a full one can't take it by surprise, and
# memory doesn't grow with the cache.


@dataclass(frozen=True)
class DataSet:
    """One data set to be written: its blocks in order, row by row, never all in memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterable[NDArray[Any]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> DataSet:
        """A data set that is in memory."""
        return cls(array.dtype, array.shape, (array,))

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, a block at a time."""
        for block in self.blocks:
            yield np.ascontiguousarray(block, self.dtype).reshape(-1).view(np.uint8).data


def write_cache(
    path: Path, attributes: Attributes, versions: Attributes, contents: Mapping[str, DataSet]
) -> None:
    """Write a whole cache: aside, sealed with its digest, then renamed."""
    block_bytes = block_size(list(contents))
    image = _Skeleton()
    offsets = _lay_out(image, block_bytes, attributes, versions, contents)
    digest = hashlib.sha256()
    sections: list[Section] = []
    with writing(path) as file:
        position = file.seek(block_bytes)
        for name, offset in sorted(offsets.items(), key=lambda pair: pair[1]):
            _copy(image.pieces(position, offset), file, digest)
            section = hashlib.sha256()
            n_bytes = _copy(contents[name].pieces(), file, digest, section)
            if n_bytes != contents[name].n_bytes:
                raise ValueError(f"{n_bytes} bytes for {name}, not {contents[name].n_bytes}")
            sections.append(Section(offset, n_bytes, section.hexdigest(), name))
            position = offset + n_bytes
        _copy(image.pieces(position, image.n_bytes), file, digest)
        unsealed = UserBlock(block_bytes, NO_DIGEST, tuple(sections))
        digest.update(unsealed.encode())
        file.seek(0)
        file.write(replace(unsealed, digest=digest.hexdigest()).encode())


def _copy(pieces: Iterable[bytes | memoryview], file: io.RawIOBase, *digests: _Hash) -> int:
    """Write pieces to a file and into digests; returns how many bytes they were."""
    start = file.tell()
    for piece in pieces:
        for digest in digests:
            digest.update(piece)
        file.write(piece)
    return file.tell() - start


def _lay_out(
    image: _Skeleton,
    block_bytes: int,
    attributes: Attributes,
    versions: Attributes,
    contents: Mapping[str, DataSet],
) -> dict[str, int]:
    """Let HDF5 lay out the file in `image`; returns the offset of each data set with contents."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_layout(h5d.CONTIGUOUS)
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same contents are the same bytes
    # The oldest file format is the one that every HDF5 library reads.
    with h5py.File(image, "w", userblock_size=block_bytes, libver=("earliest", "v108")) as file:
        for group in GROUPS:
            file.create_group(group)
        _set_attributes(file, attributes)
        _set_attributes(file["versions"], versions)
        offsets = {}
        for name, item in contents.items():
            space = h5s.create_simple(item.shape)
            stored = h5d.create(file.id, name.encode(), _hdf5_type(item.dtype), space, properties)
            if item.n_bytes:
                offsets[name] = stored.get_offset()
    return offsets


def _hdf5_type(dtype: np.dtype[Any]) -> h5t.TypeID:
    if dtype.kind == "S":
        return h5t.py_create(h5py.string_dtype("utf-8", dtype.itemsize), logical=True)
    return HDF5_TYPES[dtype]


def _set_attributes(target: h5py.Group, attributes: Attributes) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            data = encode_texts([value], name)
            target.attrs.create(name, data[0], dtype=h5py.string_dtype("utf-8", data.itemsize))
        elif isinstance(value, int):
            target.attrs.create(name, value, dtype="<i8")
        else:
            target.attrs.create(name, value, dtype="<f8")


class _Skeleton(io.RawIOBase):
    """A file in memory that keeps only the pages written to: HDF5's own structures."""

    PAGE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.n_bytes = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.n_bytes}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.n_bytes = self._position if size is None else size
        return self.n_bytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, place, part in self._spans(len(view)):
            self._pages.setdefault(page, bytearray(self.PAGE))[place] = view[part]
        self.n_bytes = max(self.n_bytes, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n_bytes = max(0, min(len(view), self.n_bytes - self._position))
        for page, place, part in self._spans(n_bytes):
            view[part] = self._pages.get(page, bytes(self.PAGE))[place]
        return n_bytes

    def _spans(self, n_bytes: int) -> Iterator[tuple[int, slice, slice]]:
        """For the bytes that come next: the page, the place in it, and the part of the buffer."""
        done = 0
        while done < n_bytes:
            page, inside = divmod(self._position, self.PAGE)
            length = min(n_bytes - done, self.PAGE - inside)
            yield page, slice(inside, inside + length), slice(done, done + length)
            self._position += length
            done += length

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`, a page at a time."""
        self.seek(start)
        while self._position < stop:
            yield self.read(min(self.PAGE, stop - self._position))


# The one place where the cache's bytes reach the disk: aside, flushed, then renamed.
#
# A file therefore exists under its own name only once it is whole and on the disk, and a reader
# never sees one being written.

# One family of calls, each of which the tests make fail:
# ruff: noqa: PTH106, PTH108


ASIDE = ".writing"
"""Ending of a file that isn't finished; what a killed process leaves is named so."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[io.RawIOBase]:
    """A seekable file that takes the name `path` when the block ends, and is gone if it fails.

    What stood under `path` before still stands there when the disk refuses (StorageError).
    """
    with (
        replacing(path, path.with_name(path.name + ASIDE)) as aside,
        _Unbuffered(aside, "rb+") as file,
    ):
        yield file


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a folder with something in it stays."""
    try:
        if path.is_dir():
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY):
            return
        raise storage_error(error, "removing", path) from error


class _Unbuffered(io.FileIO):
    """A file whose `write` takes everything it is given, or raises."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        while left:
            left = left[os.write(self.fileno(), left) :]
        return n_bytes
