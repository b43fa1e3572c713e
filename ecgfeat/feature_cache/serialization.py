"""Writing a cache: HDF5 lays the file out in memory, the contents go straight to the disk.

HDF5 is asked for the structure only; the data sets are plain bytes at the places it reserves
for them. Its own code never touches the disk, so a full one can't take it by surprise, and
memory doesn't grow with the cache.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from ecgfeat.feature_cache.integrity import NO_DIGEST, Section, UserBlock, block_size
from ecgfeat.feature_cache.schema import GROUPS, HDF5_TYPES, Attributes, encode_texts
from ecgfeat.feature_cache.storage import writing

__all__ = ["DataSet", "write_cache"]


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


def write_cache(
    path: Path, attributes: Attributes, versions: Attributes, contents: Mapping[str, DataSet]
) -> None:
    """Write a whole cache: aside, sealed with its digest, then renamed.

    Raises
    ------
    StorageError
    """
    block_bytes = block_size(list(contents))
    image = _Skeleton()
    offsets = _lay_out(image, block_bytes, attributes, versions, contents)
    with writing(path) as file:
        seal = _Seal(file, block_bytes)
        for name, offset in sorted(offsets.items(), key=lambda pair: pair[1]):
            seal.fill(image, offset)
            seal.add(name, contents[name])
        seal.fill(image, image.n_bytes)
        seal.close()


class _Seal:
    """Writes a file from its user block on, and the block at last."""

    def __init__(self, file: io.RawIOBase, block_bytes: int) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._digest = hashlib.sha256()
        self._sections: list[Section] = []
        self._position = file.seek(block_bytes)

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._position += len(data)

    def fill(self, image: _Skeleton, end: int) -> None:
        """Write what HDF5 put between the current position and `end`."""
        for data in image.pieces(self._position, end):
            self._write(data)

    def add(self, name: str, item: DataSet) -> None:
        """Write a data set's contents."""
        start = self._position
        digest = hashlib.sha256()
        for block in item.blocks:
            data = np.ascontiguousarray(block, dtype=item.dtype).reshape(-1).view(np.uint8).data
            digest.update(data)
            self._write(data)
        if self._position != start + item.n_bytes:
            raise ValueError(f"{self._position - start} bytes for {name}, not {item.n_bytes}")
        self._sections.append(Section(start, item.n_bytes, digest.hexdigest(), name))

    def close(self) -> None:
        """Write the user block."""
        unsealed = UserBlock(self._block_bytes, NO_DIGEST, tuple(self._sections))
        self._digest.update(unsealed.encode())
        self._file.seek(0)
        self._file.write(replace(unsealed, digest=self._digest.hexdigest()).encode())


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
    # The oldest file format is the one that every HDF5 library reads, and it holds no clock.
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

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.n_bytes}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.n_bytes = self._position if size is None else size
        return self.n_bytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, inside, start, stop in self._spans(len(view)):
            target = self._pages.setdefault(page, bytearray(self.PAGE))
            target[inside : inside + stop - start] = view[start:stop]
        self._position += len(view)
        self.n_bytes = max(self.n_bytes, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n_bytes = max(0, min(len(view), self.n_bytes - self._position))
        for page, inside, start, stop in self._spans(n_bytes):
            source = self._pages.get(page, bytes(self.PAGE))
            view[start:stop] = source[inside : inside + stop - start]
        self._position += n_bytes
        return n_bytes

    def _spans(self, n_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """Page, place in it, and the range of the buffer, for bytes at the current position."""
        start = 0
        while start < n_bytes:
            page, inside = divmod(self._position + start, self.PAGE)
            stop = min(n_bytes, start + self.PAGE - inside)
            yield page, inside, start, stop
            start = stop

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to `stop`, a page at a time."""
        self.seek(start)
        while self._position < stop:
            yield self.read(min(self.PAGE, stop - self._position))
