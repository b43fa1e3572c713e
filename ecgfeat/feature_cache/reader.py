"""Reading a cache: columns and features, only as much as is asked for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import h5py
import msgspec
import numpy as np
from h5py import h5a, h5d, h5l, h5s, h5t
from numpy.typing import NDArray

from ecgfeat.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheLockedError,
    ConfigError,
    DataError,
    storage_error,
)
from ecgfeat.feature_cache.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    GROUPS,
    HDF5_TYPES,
    MAX_ATTRIBUTES,
    MAX_LINKS,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    OPEN_GROUPS,
    ROOT,
    Attributes,
    Header,
    column_name,
    decode_texts,
    required,
)
from ecgfeat.protocol import group_numbers
from ecgfeat.runtime import as_frame, html_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["FeatureCache", "Listing", "Quarantined", "open_cache", "part_paths"]


BLOCK_BYTES = 2**20
"""Features are read in blocks of about this size, which bounds the memory beside the result."""


@dataclass(frozen=True)
class Quarantined:
    """An image that was left out."""

    path: str
    label: str
    split: str
    reason: str
    n_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """The images that were there, with features or without, in the data's order.

    Who trains and who is tested is decided over these, so that an image without features takes
    nobody else's place, and fine-tuning on the same data decides alike.

    Attributes
    ----------
    paths, labels, splits, groups : tuples of str, length n
    has_features : ndarray of shape (n,), bool
        False for a quarantined image. The others are the cache's rows, in order.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    has_features: NDArray[np.bool_]


def open_cache(path: Path | str, *, verify: bool = True) -> FeatureCache:
    """Open a feature cache.

    Parameters
    ----------
    path : path-like
    verify : bool, default True
        Compare every byte with the file's digest first (a third of a second for 200 MB). Turn
        it off only for a file that was just verified.

    Raises
    ------
    CacheError
        When there is no such file.
    CacheFormatError
        When it isn't a cache, has another format version, or an object that doesn't belong.
    CacheDamagedError
        When its bytes aren't those that were written.
    StorageError

    Examples
    --------
    >>> cache = open_cache("cache/pages-resnet18-1b4e8c2a.h5")  # doctest: +SKIP
    >>> X, y, groups = cache.arrays("train", ["layer4"])  # doctest: +SKIP
    """
    path = Path(path)
    with _opened(path) as file:
        block = read_block(file, path)
        if verify:
            check_file(file, block, path)
        return FeatureCache(path, block.digest, read_layout(file, block, path))


class FeatureCache:
    """The features of a data set's images. Made by `open_cache`; opens its file when asked.

    Pickled, it is its path and digest: worker processes open the file by themselves.

    Attributes
    ----------
    path : Path
    digest : str
        SHA-256 that stands for all of the file's bytes, hexadecimal.
    header : Header
        What decides the numbers.
    data_name, data_digest : str
        Name of the data, and digest of its listed rows (`Manifest.digest`).
    created : str
        When the file was put together, UTC.
    extraction_s : float
        Seconds that computing the features took, over all processes and interruptions.
    versions : mapping of str to str
        Of the libraries at the time, by name.
    root : Path or None
        Folder that `paths` were relative to; None in caches of earlier versions.
    ignored : mapping of str to int
        How many files of each class's folder weren't taken for images.
    """

    def __init__(self, path: Path, digest: str, layout: Layout) -> None:
        attributes = layout.attributes
        try:
            self.header = Header.from_attributes(attributes, _widths(layout))
            self.data_name = required(attributes, "data_name", str)
            self.data_digest = required(attributes, "data_digest", str)
            self.created = required(attributes, "created", str)
            self.extraction_s = required(attributes, "extraction_s", float)
        except TypeError as error:
            raise CacheFormatError(
                f"{path} is refused: its attribute {str(error)!r} is missing or of another type. "
                "Use a cache made by `ecgfeat extract`, or see docs/cache-format.md."
            ) from None
        root = attributes.get("data_root")
        self.root = Path(root) if isinstance(root, str) and root else None
        self.ignored = _counts(attributes.get("ignored"))
        self.path = path
        self.digest = digest
        self.versions = {name: str(value) for name, value in layout.versions.items()}
        self._layout = layout

    def __len__(self) -> int:
        return self._layout.data_sets["path"].shape[0]

    def __repr__(self) -> str:
        layers = ", ".join(f"{tap} ({width})" for tap, width in self.header.taps.items())
        return f"FeatureCache {self.path}\n  {self._made}\n  {self._parts}\n  layers: {layers}"

    def _repr_html_(self) -> str:
        rows = [
            ("images", self._parts),
            ("made", self._made),
            *(("layer", f"{tap}, {width} features") for tap, width in self.header.taps.items()),
        ]
        return html_table(str(self.path), ("", ""), rows)

    @property
    def _made(self) -> str:
        how = self.header
        return (
            f"{how.arch} ({how.weights}), {how.crop_mode} {how.size}, {how.precision}, "
            f"{self.created}"
        )

    @property
    def _parts(self) -> str:
        """Images by part and class."""
        counts = Counter(zip(self.splits, self.labels))
        parts = [
            f"{split} " + ", ".join(f"{counts[split, label]} {label}" for label in self.classes)
            for split in ("train", "val", "test")
            if split in self.splits
        ]
        return f"{len(self)} images of {self.data_name}: {'; '.join(parts)}"

    def to_frame(self, taps: Sequence[str] | str = ()) -> DataFrame:
        """The rows as a pandas DataFrame: path, label, split, group, the data's other columns.

        Parameters
        ----------
        taps : sequence of str
            Layers whose features are added, a column each, such as ``layer4[0]``.

        Raises
        ------
        ConfigError
            When pandas isn't installed, or there is no such layer.
        """
        names = (taps,) if isinstance(taps, str) else tuple(taps)
        columns: dict[str, Sequence[object]] = {
            "path": self.paths,
            "label": self.labels,
            "split": self.splits,
            "group": self.groups,
            **self.metadata,
        }
        for tap in names:
            features = self.features(tap)
            columns |= {f"{tap}[{number}]": column for number, column in enumerate(features.T)}
        return as_frame(columns)

    def __reduce__(self) -> tuple[Callable[[Path, str], FeatureCache], tuple[Path, str]]:
        return _reopen, (self.path.absolute(), self.digest)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Every class of the data, in order."""
        return self._texts("classes")

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Each row's image, relative to the data's root."""
        return self._texts("path")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Each row's class."""
        return self._texts("label")

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """``"train"``, ``"val"`` or ``"test"`` for each row."""
        return self._texts("split")

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Each row's group; empty where the row is its own."""
        return self._texts("group")

    @cached_property
    def metadata(self) -> Mapping[str, tuple[str, ...]]:
        """The data's other columns."""
        names = [name for name in self._layout.data_sets if name.startswith("metadata/")]
        return {column_name(name.partition("/")[2]): self._texts(name) for name in names}

    @cached_property
    def missing(self) -> Mapping[tuple[str, str], int]:
        """How many listed images were absent, by (label, split)."""
        keys = zip(self._texts("missing/label"), self._texts("missing/split"))
        return dict(zip(keys, self.column("missing/count").tolist()))

    @cached_property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """The images that were left out, and why."""
        texts = (self._texts(f"quarantine/{name}") for name in ("path", "label", "split", "reason"))
        n_bytes = self.column("quarantine/n_bytes").tolist()
        return tuple(Quarantined(*row) for row in zip(*texts, n_bytes))

    @property
    def pictures(self) -> list[bytes]:
        """The digest of each row's image file: equal for equal files."""
        return [digest.tobytes() for digest in self.column("digest")]

    @cached_property
    def listing(self) -> Listing:
        """The rows and, where they would stand among them, the quarantined images."""
        before = self.column("quarantine/before")
        columns = []
        for name in ("path", "label", "split", "group"):
            rows = np.array(self._texts(name), dtype=object)
            columns.append(np.insert(rows, before, self._texts(f"quarantine/{name}")))
        has_features = np.insert(np.ones(len(self), dtype=bool), before, False)
        paths, labels, splits, groups = (tuple(column.tolist()) for column in columns)
        return Listing(
            paths=paths, labels=labels, splits=splits, groups=groups, has_features=has_features
        )

    def features(
        self, taps: Sequence[str] | str, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """The features of some layers side by side.

        Parameters
        ----------
        taps : sequence of str
            Names of layers, in the order wanted.
        rows : ndarray of shape (n,), int64, optional
            Row numbers, in the order wanted; all rows by default.

        Returns
        -------
        ndarray of shape (n, sum of the layers' widths), float32

        Raises
        ------
        ConfigError
            When the cache has no such layer.
        IndexError
            When there is no such row.
        CacheError, CacheDamagedError, StorageError
        """
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        self.require(taps)
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}")
        ends = np.cumsum([0, *(self.header.taps[tap] for tap in taps)])
        out = np.empty((len(rows), ends[-1]), np.float32)
        with self._file() as file:
            for tap, start, end in zip(taps, ends, ends[1:]):
                self._read_features(file, tap, rows, out[:, start:end])
        return out

    def arrays(
        self, split: str, taps: Sequence[str] | str
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """The rows of one split, ready for scikit-learn.

        Returns
        -------
        X : ndarray of shape (n, width), float32
        y : ndarray of shape (n,), int64
            Index into `classes`.
        groups : ndarray of shape (n,), int64
            Number of each row's group; rows without one are groups by themselves.

        Raises
        ------
        DataError
            When the split has no rows.
        """
        rows = np.flatnonzero(np.array(self.splits) == split)
        if not len(rows):
            names = " and ".join(sorted(set(self.splits))) or "no rows at all"
            raise DataError(f"the split {split!r} is empty; {self.path} has {names}")
        number = {name: index for index, name in enumerate(self.classes)}
        for label in set(self.labels) - set(number):
            raise CacheFormatError(
                f"{self.path} is refused: the label {label!r} isn't one of the classes "
                f"{', '.join(self.classes)}. Extract again."
            )
        y = np.array([number[label] for label in self.labels], dtype=np.int64)
        groups = group_numbers(self.paths, self.groups)
        return self.features(taps, rows), y[rows], groups[rows]

    def column(self, name: str) -> NDArray[Any]:
        """One data set as it is in the file, by its path there, such as ``"mtime_ns"``."""
        item = self._layout.data_sets[name]
        with self._file() as file:
            return _read(file, item, 0, item.shape[0], self.path)

    def columns(self) -> tuple[str, ...]:
        """Paths of all data sets but the features."""
        return tuple(name for name in self._layout.data_sets if not name.startswith("features/"))

    def _texts(self, name: str) -> tuple[str, ...]:
        return decode_texts(self.column(name))

    def require(self, taps: Sequence[str]) -> None:
        """Refuse layers that the cache doesn't hold.

        Raises
        ------
        ConfigError
        """
        for tap in taps:
            if tap not in self.header.taps:
                raise ConfigError(
                    f"--layers names {tap!r}, but {self.path} holds {', '.join(self.header.taps)}"
                )

    def _read_features(
        self, file: BufferedReader, tap: str, rows: NDArray[np.int64], out: NDArray[np.float32]
    ) -> None:
        item = self._layout.data_sets[f"features/{tap}"]
        step = max(1, BLOCK_BYTES // (4 * item.shape[1]))
        starts = np.arange(0, len(self) + step, step)
        order = np.argsort(rows, kind="stable")
        by_block = np.split(order, np.searchsorted(rows[order], starts[1:-1]))
        for first, asked in zip(starts.tolist(), by_block):
            if not len(asked):
                continue
            last = min(first + step, len(self))
            block = _read(file, item, first, last, self.path)[rows[asked] - first]
            if not np.isfinite(block).all():
                raise CacheDamagedError(
                    f"{self.path} is damaged: features/{tap} holds values that aren't finite. "
                    "Delete the file and extract again."
                )
            out[asked] = block

    @contextlib.contextmanager
    def _file(self) -> Iterator[BufferedReader]:
        """The file, which must still be the one that was opened first."""
        with _opened(self.path) as file:
            if read_block(file, self.path).digest != self.digest:
                raise CacheError(
                    f"{self.path} was written anew since it was opened. Open it again, or run "
                    "the same command again."
                )
            yield file


def _reopen(path: Path, digest: str) -> FeatureCache:
    cache = open_cache(path, verify=False)
    # Any use compares the file with this digest.
    cache.digest = digest
    return cache


def _widths(layout: Layout) -> dict[str, int]:
    features = ((n, item) for n, item in layout.data_sets.items() if n.startswith("features/"))
    return {name.partition("/")[2]: item.shape[1] for name, item in features}


def _counts(text: object) -> dict[str, int]:
    """Counts by class from a cache's attribute; none where it holds something else."""
    kind = dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        return msgspec.json.decode(str(text), type=kind)
    return {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CacheFormatError(f"{path} isn't a file. Give the cache's .h5 file.")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise CacheError(_absent(path)) from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error


def _absent(path: Path) -> str:
    n_parts = len(part_paths(path))
    if n_parts:
        return (
            f"{path} isn't put together yet: {n_parts} parts of it are in {parts_folder(path)}. "
            "Run the same `ecgfeat extract` again to finish it."
        )
    return f"there is no cache {path}. Make one with `ecgfeat extract`."


def _read(file: BufferedReader, item: Stored, first: int, last: int, path: Path) -> NDArray[Any]:
    """Rows `first` to `last` of a data set."""
    out = np.empty((last - first, *item.shape[1:]), item.dtype)
    row_bytes = item.n_bytes // max(1, item.shape[0])
    file.seek(item.offset + first * row_bytes)
    if out.nbytes and file.readinto(out.reshape(-1).view(np.uint8).data) != out.nbytes:
        raise CacheDamagedError(f"{path} is damaged: it became shorter. Extract again.")
    return out


def parts_folder(cache: Path) -> Path:
    """Where parts of `cache` wait to be put together."""
    return cache.with_name(f"{cache.name}.parts")


def part_paths(cache: Path) -> list[Path]:
    """Parts of `cache`, in order."""
    return sorted(parts_folder(cache).glob("*.h5"))


# Reading a cache's structure, which may come from a stranger.
#
# Every object is looked at before any of its contents is read, and what docs/cache-format.md
# doesn't name is refused: links to elsewhere, storage in other files, filters, types of variable
# length. What is left are data sets that are plain bytes at a known place.

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
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """What is in a cache: attributes of the root and of ``versions``, and data sets by path."""

    attributes: Attributes
    versions: Attributes
    data_sets: Mapping[str, Stored]


def read_layout(file: BufferedReader, block: UserBlock, path: Path) -> Layout:
    """Look at every object of a cache without reading any contents.

    CacheFormatError names an object that isn't as docs/cache-format.md says.
    """
    try:
        with h5py.File(file, "r") as hdf5:
            if hdf5.userblock_size != block.n_bytes:
                raise _Refused("the file", "its user block has another length than HDF5 says")
            layout = _walk(hdf5)
        _check_places(layout, block, file)
        _check_lengths(layout)
    except _Refused as refused:
        place, fault = refused.args
        raise CacheFormatError(
            f"{path} is refused: {place}: {fault}. Use a cache made by `ecgfeat extract`, or see "
            "docs/cache-format.md."
        ) from None
    except _HDF5_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise CacheFormatError(f"{path} is refused: HDF5 can't read it ({error})") from error
    return layout


class _Refused(Exception):
    """Its arguments are the object's place in the file, and what is wrong with it."""


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
        group = name.rpartition("/")[0]
        expected = n_rows
        if group == "features":
            if len(item.shape) != 2 or not item.shape[1]:
                raise _Refused(name, f"shape {item.shape}, where ({n_rows[0]}, width) belongs")
            expected = (*n_rows, item.shape[1])
        elif group in ("missing", "quarantine"):
            expected = layout.data_sets[f"{group}/label"].shape[:1]
        elif name == "digest":
            expected = (*n_rows, 16)
        elif name == "classes":
            expected = item.shape[:1]
        if item.shape != expected:
            raise _Refused(name, f"shape {item.shape}, where {expected} belongs")


# The user block: what the file is, and a digest that covers every byte of it.
#
# HDF5 leaves the bytes before its own signature to the user. There stand, as text, the format
# version, a digest over the whole file, and one for each data set, which tells where a damage is.
# All of it is checked before HDF5 parses anything. docs/cache-format.md is the specification.

MAX_BLOCK_BYTES = 2**20
NO_DIGEST = "0" * 64
_START = re.compile(
    FORMAT_NAME.encode() + rb"\nformat (\d{1,9})\nblock (\d{1,9})\nsha256 ([0-9a-f]{64})\n"
)
_SECTION = re.compile(r"(\d{1,19}) (\d{1,19}) ([0-9a-f]{64}) (\S.*)")


@dataclass(frozen=True)
class Section:
    """One data set's bytes in the file."""

    offset: int
    n_bytes: int
    digest: str
    name: str


@dataclass(frozen=True)
class UserBlock:
    """The first bytes of a cache, `n_bytes` of them: a power of two from 512.

    The digest is SHA-256 over all bytes after the block, then the block itself with 64 zeros in
    place of this digest; hexadecimal.
    """

    n_bytes: int
    digest: str
    sections: tuple[Section, ...]

    def encode(self) -> bytes:
        lines = [
            FORMAT_NAME,
            f"format {FORMAT_VERSION}",
            f"block {self.n_bytes}",
            f"sha256 {self.digest}",
            *(f"{s.offset} {s.n_bytes} {s.digest} {s.name}" for s in self.sections),
        ]
        text = "".join(f"{line}\n" for line in lines).encode()
        return text.ljust(self.n_bytes, b"\0")


def block_size(names: Sequence[str]) -> int:
    """Bytes for a user block with a section for each of `names`: a power of two from 512."""
    longest_line = len(f"{2**63} {2**63} {NO_DIGEST} \n")
    n_bytes = 256 + sum(longest_line + len(name.encode()) for name in names)
    return max(512, 1 << (n_bytes - 1).bit_length())


def read_block(file: BufferedReader, path: Path) -> UserBlock:
    """Read the user block; CacheFormatError where the file is none of this format version."""
    file.seek(0)
    start = file.read(512)
    match = _START.match(start)
    if match is None:
        raise CacheFormatError(
            f"{path} isn't a feature cache of ecgfeat, or its first bytes are damaged. Give a "
            "file that `ecgfeat extract` made."
        )
    if int(match[1]) != FORMAT_VERSION:
        raise CacheFormatError(
            f"{path} is written in format version {int(match[1])}, but this ecgfeat reads "
            f"version {FORMAT_VERSION}. Install the ecgfeat that wrote it, or extract to "
            "another file with --cache."
        )
    n_bytes = int(match[2])
    if not 512 <= n_bytes <= MAX_BLOCK_BYTES or n_bytes & (n_bytes - 1):
        raise _damaged(path, "its first 512 bytes aren't what was written")
    text = (start + file.read(n_bytes - 512))[match.end() :].rstrip(b"\0")
    found = (_SECTION.fullmatch(line) for line in text.decode(errors="replace").split("\n"))
    sections = tuple(Section(int(m[1]), int(m[2]), m[3], m[4]) for m in found if m)
    return UserBlock(n_bytes, match[3].decode(), sections)


def check_file(file: BufferedReader, block: UserBlock, path: Path) -> None:
    """Compare every byte with the file's digest; CacheDamagedError names the damaged data sets."""
    if _digest(file, block) != block.digest:
        if _digest(file, block, unmarked=True) != block.digest:
            raise _damaged(path, _damaged_place(file, block))
        if _is_locked(file):
            raise CacheLockedError(
                f"{path} is open for writing in another process, such as a notebook: close it "
                "there. What ecgfeat wrote is whole."
            )


_MARK = slice(20, 24)
"""Where a superblock of version 0 says that the file is open for writing (HDF5 file format 3.0,
section II.A); a killed process leaves it so. Nothing else depends on it."""


def _digest(file: BufferedReader, block: UserBlock, *, unmarked: bool = False) -> str:
    """The digest of what is in the file; `unmarked`, as if HDF5's mark of an open one were not."""
    file.seek(block.n_bytes)
    superblock = bytearray(file.read(_MARK.stop))
    if unmarked and superblock[_MARK] == b"\1\0\0\0":
        superblock[_MARK] = bytes(4)
    digest = hashlib.file_digest(file, lambda: hashlib.sha256(superblock))
    file.seek(0)
    digest.update(file.read(block.n_bytes).replace(block.digest.encode(), NO_DIGEST.encode(), 1))
    return digest.hexdigest()


def _is_locked(file: BufferedReader) -> bool:
    """Whether another process holds the lock that HDF5 takes on what it writes to."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    return False


def _damaged_place(file: BufferedReader, block: UserBlock) -> str:
    n_bytes = os.fstat(file.fileno()).st_size
    ends = max((section.offset + section.n_bytes for section in block.sections), default=0)
    if n_bytes < ends:
        return f"it ends after {n_bytes} of at least {ends} bytes"
    names = [section.name for section in block.sections if _section_differs(file, section)]
    if not names:
        return f"its first {block.n_bytes} bytes or its HDF5 structure aren't what was written"
    return f"{', '.join(names)} {'aren' if len(names) > 1 else 'isn'}'t what was written"


def _section_differs(file: BufferedReader, section: Section) -> bool:
    digest = hashlib.sha256()
    file.seek(section.offset)
    left = section.n_bytes
    while left:
        data = file.read(min(left, 2**20))
        if not data:
            return True
        digest.update(data)
        left -= len(data)
    return digest.hexdigest() != section.digest


def _damaged(path: Path, place: str) -> CacheDamagedError:
    return CacheDamagedError(
        f"{path} is damaged: {place}. Restore the file from a copy, or delete it and extract again."
    )
