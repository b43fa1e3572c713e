"""Reading a cache: columns and features, only as much as is asked for."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    ConfigError,
    DataError,
    storage_error,
)
from ecgfeat.feature_cache.header import Header
from ecgfeat.feature_cache.integrity import check_file, read_block
from ecgfeat.feature_cache.parsing import Layout, Stored, read_layout
from ecgfeat.feature_cache.schema import Attributes, column_name, decode_texts
from ecgfeat.protocol import group_numbers

__all__ = ["FeatureCache", "Listing", "Quarantined", "open_cache", "part_paths", "parts_folder"]

T = TypeVar("T")

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
    """

    def __init__(self, path: Path, digest: str, layout: Layout) -> None:
        attributes = layout.attributes
        try:
            self.header = Header.from_attributes(attributes, _widths(layout))
            self.data_name = _of_type(attributes, "data_name", str)
            self.data_digest = _of_type(attributes, "data_digest", str)
            self.created = _of_type(attributes, "created", str)
            self.extraction_s = _of_type(attributes, "extraction_s", float)
        except TypeError as error:
            raise CacheFormatError(
                f"{path} is refused: its attribute {str(error)!r} is missing or of another type. "
                "Use a cache made by `ecgfeat extract`, or see docs/cache-format.md."
            ) from None
        self.path = path
        self.digest = digest
        self.versions = {name: str(value) for name, value in layout.versions.items()}
        self._layout = layout

    def __len__(self) -> int:
        return self._layout.data_sets["path"].shape[0]

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
        """``"train"`` or ``"test"`` for each row."""
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


def _of_type(attributes: Attributes, name: str, kind: type[T]) -> T:
    value = attributes.get(name)
    if not isinstance(value, kind):
        raise TypeError(name)
    return value


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
