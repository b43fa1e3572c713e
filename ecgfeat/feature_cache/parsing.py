"""Reading a cache's structure, which may come from a stranger.

Every object is looked at before any of its contents is read, and what docs/cache-format.md
doesn't name is refused: links to elsewhere, storage in other files, filters, types of variable
length. What is left are data sets that are plain bytes at a known place.
"""

from __future__ import annotations

import errno
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t
from numpy.typing import NDArray

from ecgfeat.errors import CacheFormatError
from ecgfeat.feature_cache.integrity import UserBlock
from ecgfeat.feature_cache.schema import (
    GROUPS,
    HDF5_TYPES,
    MAX_ATTRIBUTES,
    MAX_LINKS,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    OPEN_GROUPS,
    ROOT,
    Attributes,
    decode_texts,
)

__all__ = ["Layout", "Stored", "read_layout"]

_HDF5_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    MemoryError,
    OverflowError,
)
"""How HDF5 says that it can't make sense of a file. An `OSError` with a number is the disk's,
but for EINVAL: the file sent HDF5 to a place that no file has."""


@dataclass(frozen=True)
class Stored:
    """One data set in a file: plain bytes at `offset`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """What is where in a cache.

    Attributes
    ----------
    attributes, versions : mapping
        Of the root, and of the group ``versions``.
    data_sets : mapping of str to Stored
        By the path in the file, such as ``"features/layer4"``.
    """

    attributes: Attributes
    versions: Attributes
    data_sets: Mapping[str, Stored]


def read_layout(file: BufferedReader, block: UserBlock, path: Path) -> Layout:
    """Look at every object of a cache without reading any contents.

    Raises
    ------
    CacheFormatError
        When anything isn't as docs/cache-format.md says; the message names the object.
    """
    try:
        with h5py.File(file, "r") as hdf5:
            if hdf5.userblock_size != block.n_bytes:
                raise _Refused("the file", "its user block has another length than HDF5 says")
            layout = _walk(hdf5)
        _check_places(layout, block, file)
        _check_lengths(layout)
    except _Refused as refused:
        raise CacheFormatError(
            f"{path} is refused: {refused.place}: {refused.fault}. Use a cache made by "
            "`ecgfeat extract`, or see docs/cache-format.md."
        ) from None
    except _HDF5_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise CacheFormatError(f"{path} is refused: HDF5 can't read it ({error})") from error
    return layout


class _Refused(Exception):
    def __init__(self, place: str, fault: str) -> None:
        super().__init__(place, fault)
        self.place = place
        self.fault = fault


def _walk(file: h5py.File) -> Layout:
    data_sets: dict[str, Stored] = {}
    for name in _links(file, ""):
        if name in ROOT:
            data_sets[name] = _inspect(file, name, name, ROOT[name])
        elif name not in GROUPS:
            raise _Refused(name, "the format has no such object")
    for name, members in GROUPS.items():
        group = _group(file, name)
        for link in _links(group, name):
            dtype = members.get(link, OPEN_GROUPS.get(name))
            if dtype is None:
                raise _Refused(f"{name}/{link}", "the format has no such object")
            data_sets[f"{name}/{link}"] = _inspect(group, link, f"{name}/{link}", dtype)
    needed = [*ROOT, *(f"{group}/{name}" for group, names in GROUPS.items() for name in names)]
    for name in needed:
        if name not in data_sets:
            raise _Refused(name, "it is missing")
    if not len(file["features"]):
        raise _Refused("features", "it is empty")
    return Layout(_attributes(file, "/"), _attributes(file["versions"], "versions"), data_sets)


def _links(group: h5py.Group, place: str) -> list[str]:
    """Names in `group`, all of them objects of this very file."""
    if len(group) > MAX_LINKS:
        raise _Refused(place or "the root", f"more than {MAX_LINKS} objects")
    names: list[bytes] = []
    group.id.links.iterate(names.append)
    for name in names:
        if len(name) > MAX_NAME_BYTES:
            fault = f"a name of {len(name)} bytes, above {MAX_NAME_BYTES}"
            raise _Refused(place or "the root", fault)
        if group.id.links.get_info(name).type != h5l.TYPE_HARD:
            shown = name.decode(errors="replace")
            raise _Refused(f"{place}/{shown}".lstrip("/"), "it is a link to elsewhere")
    return [name.decode(errors="surrogateescape") for name in names]


def _group(file: h5py.File, name: str) -> h5py.Group:
    if name not in file:
        raise _Refused(name, "it is missing")
    if file.get(name, getclass=True) is not h5py.Group:
        raise _Refused(name, "it isn't a group")
    return file[name]


def _inspect(group: h5py.Group, link: str, place: str, expected: np.dtype[Any]) -> Stored:
    if group.get(link, getclass=True) is not h5py.Dataset:
        raise _Refused(place, "it isn't a data set")
    stored = h5d.open(group.id, link.encode(errors="surrogateescape"))
    # The layout comes first: asking a virtual data set for its shape may open other files.
    properties = stored.get_create_plist()
    if properties.get_layout() != h5d.CONTIGUOUS or properties.get_nfilters():
        raise _Refused(place, "its layout isn't contiguous and uncompressed")
    if properties.get_external_count():
        raise _Refused(place, "its contents lie in another file")
    dtype = _numpy_type(stored.get_type(), expected, place)
    space = stored.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE:
        raise _Refused(place, "it has no shape")
    item = Stored(dtype, space.get_simple_extent_dims(), stored.get_offset() or 0)
    if item.n_bytes != stored.get_storage_size():
        raise _Refused(place, f"shape {item.shape} doesn't fit {stored.get_storage_size()} bytes")
    return item


def _numpy_type(found: h5t.TypeID, expected: np.dtype[Any], place: str) -> np.dtype[Any]:
    if expected.kind != "S":
        if found.get_class() not in (h5t.INTEGER, h5t.FLOAT) or found != HDF5_TYPES[expected]:
            raise _Refused(place, f"its type isn't {expected.name}, little-endian")
        return expected
    if not _is_plain_text(found):
        raise _Refused(place, f"its type isn't text of fixed length up to {MAX_TEXT_BYTES} bytes")
    return np.dtype(f"S{found.get_size()}")


def _is_plain_text(found: h5t.TypeID) -> bool:
    return (
        found.get_class() == h5t.STRING
        and not found.is_variable_str()
        and found.get_strpad() in (h5t.STR_NULLPAD, h5t.STR_NULLTERM)
        and found.get_size() <= MAX_TEXT_BYTES
    )


def _attributes(target: h5py.Group, place: str) -> Attributes:
    if h5a.get_num_attrs(target.id) > MAX_ATTRIBUTES:
        raise _Refused(place, f"more than {MAX_ATTRIBUTES} attributes")
    names: list[bytes] = []
    h5a.iterate(target.id, names.append)
    return {name.decode(): _attribute(target, name, place) for name in names}


def _attribute(
    target: h5py.Group, name: bytes, place: str
) -> str | int | float | tuple[float, ...]:
    found = h5a.open(target.id, name)
    shape = found.get_space().get_simple_extent_dims()
    kind = found.get_type()
    array: NDArray[Any]
    if _is_plain_text(kind) and shape == ():
        array = np.empty((), f"S{kind.get_size()}")
    elif kind == h5t.STD_I64LE and shape == ():
        array = np.empty((), "<i8")
    elif kind == h5t.IEEE_F64LE and shape in ((), (3,)):
        array = np.empty(shape, "<f8")
    else:
        shown = name.decode(errors="replace")
        raise _Refused(f"{place}, attribute {shown[:40]}", "its type or shape isn't the format's")
    found.read(array, kind)
    if array.dtype.kind == "S":
        return decode_texts(array.reshape(1))[0]
    return tuple(array.tolist()) if shape else array.item()


def _check_places(layout: Layout, block: UserBlock, file: BufferedReader) -> None:
    """Every data set lies inside the file, and no two share a byte."""
    end_of_file = file.seek(0, io.SEEK_END)
    end, previous = block.n_bytes, "the user block"
    filled = ((name, item) for name, item in layout.data_sets.items() if item.n_bytes)
    for name, item in sorted(filled, key=lambda pair: pair[1].offset):
        if item.offset < end:
            raise _Refused(name, f"its bytes overlap those of {previous}")
        end, previous = item.offset + item.n_bytes, name
        if end > end_of_file:
            raise _Refused(name, f"it reaches to byte {end} of {end_of_file}")


def _check_lengths(layout: Layout) -> None:
    n_rows = layout.data_sets["path"].shape[:1]
    for name, item in layout.data_sets.items():
        group, _, member = name.rpartition("/")
        if group == "features" and (len(item.shape) != 2 or not item.shape[1]):
            raise _Refused(name, f"shape {item.shape}, where ({n_rows[0]}, width) belongs")
        if group in ("missing", "quarantine"):
            expected: tuple[int, ...] = layout.data_sets[f"{group}/label"].shape[:1]
        elif group == "features":
            expected = (*n_rows, item.shape[1])
        elif member == "digest":
            expected = (*n_rows, 16)
        else:
            expected = item.shape[:1] if member == "classes" else n_rows
        if item.shape != expected:
            raise _Refused(name, f"shape {item.shape}, where {expected} belongs")
