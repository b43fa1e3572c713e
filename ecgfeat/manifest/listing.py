"""From DATA to a manifest: list the rows, split them, and look which files are there."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ecgfeat.config import DataSettings
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.manifest.manifest import Manifest, MissingImage
from ecgfeat.protocol import class_order, hash_place, n_kept_out

__all__ = [
    "IMAGE_SUFFIXES",
    "ListedRows",
    "list_csv",
    "list_folder",
    "read_manifest",
    "refuse_straddling_groups",
    "split_by_hash",
]


_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_EXPECTED = (
    "Expected a folder of class folders (train/<class>/… and test/<class>/…, or <class>/…), or a "
    ".csv file with the columns path and label."
)


def read_manifest(data: Path | str, settings: DataSettings = DataSettings()) -> Manifest:
    """List the images of a folder tree or a CSV.

    Parameters
    ----------
    data : Path
        A folder (``train/<class>/…`` and ``test/<class>/…``, or ``<class>/…``), or a CSV with
        the columns ``path`` and ``label`` and optionally ``split`` and ``group``; its other
        columns are kept as metadata. Paths are relative to the CSV, or to ``settings.root``.
    settings : DataSettings

    Returns
    -------
    Manifest
        The images that are there, split into train and test; and those that are missing.

    Raises
    ------
    DataError
        When the data are not what they should be; the message says where.
    ConfigError
        When a root is given for a folder.
    StorageError
        When something can't be read.

    Examples
    --------
    >>> manifest = read_manifest("pages/manifest.csv")  # doctest: +SKIP
    >>> len(manifest), manifest.classes  # doctest: +SKIP
    (1000, ('normal', 'pathological'))
    """
    source = Path(os.path.abspath(data))
    _refuse_folder_of_a_csv(source)
    listing = _list(source, settings)
    if len(set(listing.labels)) < 2:
        raise DataError(
            f"{source} holds one class only ({listing.labels[0]!r}), and at least two are needed. "
            "Check the label column or the folder names."
        )
    if listing.splits is not None:
        splits, split_source = listing.splits, "column" if listing.row_numbers else "folders"
    else:
        splits = split_by_hash(listing, settings)
        split_source = (
            f"hash (test fraction {settings.test_fraction:g}, seed {settings.split_seed})"
        )
    refuse_straddling_groups(listing, splits)
    return _look(listing, settings, splits, split_source)


def _refuse_folder_of_a_csv(source: Path) -> None:
    """Refuse a folder whose images are listed by the ``manifest.csv`` that lies in it."""
    listing = source / "manifest.csv"
    if listing.is_file() and not any((source / split).is_dir() for split in ("train", "test")):
        raise DataError(f"{source} holds a manifest.csv, which lists its images: give {listing}.")


def _list(source: Path, settings: DataSettings) -> ListedRows:
    if _is_folder(source):
        if settings.root is not None:
            raise ConfigError(
                f"--root goes with a .csv file, but {source} is a folder: leave it out"
            )
        return list_folder(source)
    if source.suffix.lower() != ".csv":
        raise DataError(f"{source} is neither a folder nor a .csv file. {_EXPECTED}")
    root = Path(os.path.abspath(settings.root or source.parent))
    if not root.is_dir():
        raise DataError(f"--root must be the folder that the paths are relative to; found {root}.")
    return list_csv(source, root)


def _is_folder(source: Path) -> bool:
    try:
        return stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        if error.errno in _ABSENT:
            raise DataError(f"{source} does not exist. {_EXPECTED}") from error
        raise storage_error(error, "reading", source) from error


def _look(
    listing: ListedRows, settings: DataSettings, splits: list[str], split_source: str
) -> Manifest:
    tree = _Tree(listing)
    there: list[int] = []
    found: list[os.stat_result] = []
    missing: list[MissingImage] = []
    for index, path in enumerate(listing.paths):
        status = tree.look(index, path)
        if status is None:
            missing.append(
                MissingImage(path, listing.labels[index], splits[index], listing.groups[index])
            )
        else:
            there.append(index)
            found.append(status)
    if not there:
        raise DataError(
            f"none of the {len(missing)} images that {listing.source} lists is there; the first "
            f"would be {listing.root / missing[0].path}. Give --root the folder that the paths "
            "are relative to."
        )
    return Manifest(
        source=listing.source,
        settings=settings,
        root=listing.root,
        name=_name(listing.source),
        paths=tuple(listing.paths[index] for index in there),
        labels=tuple(listing.labels[index] for index in there),
        splits=tuple(splits[index] for index in there),
        groups=tuple(listing.groups[index] for index in there),
        metadata={
            name: tuple(cells[index] for index in there) for name, cells in listing.metadata.items()
        },
        n_bytes=tuple(status.st_size for status in found),
        mtime_ns=tuple(status.st_mtime_ns for status in found),
        missing=tuple(missing),
        split_source=split_source,
        n_ignored=listing.n_ignored,
    )


def _name(source: Path) -> str:
    own = source.parent if source.name.lower() == "manifest.csv" else source
    stem = own.stem if own.suffix.lower() == ".csv" else own.name
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:64] or "data"


class _Tree:
    """Looks at files under a root, which no symbolic link may lead out of.

    It takes one system call for a file and one for a folder, where resolving every path would
    take seconds on a large data set.
    """

    def __init__(self, listing: ListedRows) -> None:
        self._listing = listing
        self._root = os.path.realpath(listing.root).rstrip("/")
        self._real = {"": self._root}  # of each folder met

    def look(self, index: int, path: str) -> os.stat_result | None:
        """The status of a listed file, or None where there is none."""
        folder, _, name = path.rpartition("/")
        real = f"{self._real_folder(folder)}/{name}"
        try:
            status = os.lstat(real)
            if stat.S_ISLNK(status.st_mode):
                real = os.path.realpath(real)
                status = os.lstat(real)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise storage_error(error, "reading", self._listing.root / path) from error
        if not real.startswith(f"{self._root}/"):
            raise DataError(
                f"{self._listing.where(index)}: {path!r} leads out of {self._listing.root} by a "
                f"symbolic link, to {real}. List the images in a .csv file, and give --root a "
                "folder that holds them all."
            )
        return None if stat.S_ISLNK(status.st_mode) else status

    def _real_folder(self, folder: str) -> str:
        if folder in self._real:
            return self._real[folder]
        real, walked = self._root, ""
        for name in folder.split("/"):
            walked = f"{walked}/{name}" if walked else name
            if walked not in self._real:
                path = f"{real}/{name}"
                self._real[walked] = os.path.realpath(path) if os.path.islink(path) else path
            real = self._real[walked]
        return real


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""What counts as an image in a folder tree, in any case. A CSV may name any file."""
SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ListedRows:
    """The listed rows; `splits` is None where the data name no split."""

    source: Path
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    groups: list[str]
    metadata: dict[str, list[str]] = field(default_factory=dict)
    row_numbers: list[int] = field(default_factory=list)  # in the CSV, whose header is row 1
    n_ignored: int = 0

    def where(self, index: int) -> str:
        """Name a row in a message."""
        if not self.row_numbers:
            return str(self.source)
        return f"{self.source}, row {self.row_numbers[index]}"


def list_folder(root: Path) -> ListedRows:
    """List the images of ``[train|test/]<class>/…/*``.

    Raises
    ------
    DataError
        When there are no images, or the folders can't be told into splits and classes.
    StorageError
        When a folder can't be read.
    """
    files = sorted(_walk(root))
    has_splits = _has_splits(root, files)
    n_folders = 2 if has_splits else 1
    paths: list[str] = []
    folders: list[list[str]] = []
    others: set[str] = set()
    for path in files:
        *above, _ = path.split("/", n_folders)
        if len(above) == n_folders and path.lower().endswith(IMAGE_SUFFIXES):
            paths.append(path)
            folders.append(above)
        elif len(above) == n_folders:
            others.add(above[-1])
    labels = [above[-1] for above in folders]
    _refuse_without_images(root, labels, others)
    _refuse_names_that_are_not_text(root, paths)
    return ListedRows(
        source=root,
        root=root,
        paths=paths,
        labels=labels,
        splits=[above[0].lower() for above in folders] if has_splits else None,
        groups=[""] * len(paths),
        n_ignored=len(files) - len(paths),
    )


def _walk(root: Path) -> Iterator[str]:
    """Relative paths of the files under `root`, hidden ones apart."""
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _visible_entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_symlink() and os.path.isdir(root / path):
                raise DataError(
                    f"{root / path} is a symbolic link to a folder, which could lead outside "
                    f"{root} or list images twice. Move the folder itself there, or list the "
                    "images in a .csv file."
                )
            else:
                yield path


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise storage_error(error, "reading", folder) from error


def _has_splits(root: Path, files: list[str]) -> bool:
    tops = list(dict.fromkeys(path.split("/")[0] for path in files if "/" in path))
    splits = [name for name in tops if name.lower() in SPLITS]
    classes = [name for name in tops if name.lower() not in SPLITS]
    if splits and classes:
        raise DataError(
            f"{root} holds {', '.join(splits)} beside {', '.join(classes)}: it isn't clear which "
            "folders are splits and which are classes. Move the others elsewhere, or list the "
            "images in a .csv file with the columns path, label and split."
        )
    return bool(splits)


def _refuse_without_images(root: Path, labels: list[str], others: set[str]) -> None:
    suffixes = ", ".join(IMAGE_SUFFIXES)
    if not labels:
        raise DataError(
            f"{root} holds no images ({suffixes}) in class folders: expected <class>/… or "
            "train/<class>/… and test/<class>/… ."
        )
    empty = sorted(others.difference(labels))
    if empty:
        raise DataError(
            f"{root} has files in {', '.join(empty)} but no image there ({suffixes}), and every "
            "folder is a class. Move such folders elsewhere, or list the images in a .csv file."
        )


def _refuse_names_that_are_not_text(root: Path, paths: list[str]) -> None:
    text = "\0".join(paths)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = paths[text.count("\0", 0, error.start)]
        raise DataError(
            f"{root} holds a file whose name is not UTF-8: {os.fsencode(name)!r}. Rename it."
        ) from error


def list_csv(source: Path, root: Path) -> ListedRows:
    """List the rows of a CSV with the columns path and label, and perhaps split and group.

    Raises
    ------
    DataError
        When the file, its columns or a row are not what they should be.
    StorageError
        When it can't be read.
    """
    header, rows = _read_rows(source)
    _check_header(source, header)
    numbers = list(rows)
    for number, row in rows.items():
        if len(row) != len(header):
            raise DataError(
                f"{source}, row {number} has {len(row)} cells, but the header has {len(header)}."
            )
    columns = {
        name: [cell.strip() for cell in cells]
        for name, cells in zip(header, zip(*rows.values()))
        if name  # an index column without a name, as pandas writes it, says nothing
    }
    for name in ("path", "label"):
        if "" in columns[name]:
            number = numbers[columns[name].index("")]
            raise DataError(f"{source}, row {number}: the {name} is empty.")
    splits = columns.pop("split", None)
    return ListedRows(
        source=source,
        root=root,
        paths=_relative_paths(source, root, columns.pop("path"), numbers),
        labels=columns.pop("label"),
        splits=_checked_splits(source, splits, numbers) if splits else None,
        groups=columns.pop("group", [""] * len(numbers)),
        metadata=columns,
        row_numbers=numbers,
    )


def _read_rows(source: Path) -> tuple[list[str], dict[int, list[str]]]:
    """The header, and the rows that aren't blank by their number."""
    try:
        rows = {
            number: row
            for number, row in enumerate(csv.reader(io.StringIO(_read_text(source), newline="")), 1)
            if row
        }
    except csv.Error as error:
        raise DataError(f"{source} is not a CSV: {error}.") from error
    if not rows:
        raise DataError(f"{source} is empty: expected a header with the columns path and label.")
    header = rows.pop(next(iter(rows)))
    if not rows:
        raise DataError(f"{source} has a header but no rows.")
    return [name.strip() for name in header], rows


def _read_text(source: Path) -> str:
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8 text (byte {error.start}: {error.reason}). Save it as CSV "
            "in UTF-8."
        ) from error
    except OSError as error:
        raise storage_error(error, "reading", source) from error
    if "\0" in text:
        raise DataError(f"{source} is not UTF-8 text (it has null bytes). Save it as CSV in UTF-8.")
    return text


def _check_header(source: Path, header: list[str]) -> None:
    absent = [name for name in ("path", "label") if name not in header]
    if absent:
        raise DataError(
            f"{source} has no column {' and no column '.join(absent)}: expected the columns path "
            f"and label, separated by commas; found {', '.join(map(repr, header))}."
        )
    named = [name for name in header if name]
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise DataError(f"{source} has the column {twice[0]} more than once. Rename one of them.")


def _relative_paths(source: Path, root: Path, cells: list[str], numbers: list[int]) -> list[str]:
    first: dict[str, int] = {}
    inside = f"{str(root).rstrip('/')}/"
    for number, cell in zip(numbers, cells):
        path = os.path.normpath(cell)
        if path.startswith("/"):
            path = path.removeprefix(inside)
        if path.startswith(("/", "../")) or path in ("..", "."):
            raise DataError(
                f"{source}, row {number}: {cell!r} is no path inside {root}. Give --root a folder "
                "that holds all images."
            )
        if path in first:
            raise DataError(
                f"{source}, rows {first[path]} and {number} list the same image, {path!r}. "
                "Remove one of them."
            )
        first[path] = number
    return list(first)


def _checked_splits(source: Path, cells: list[str], numbers: list[int]) -> list[str]:
    splits = [cell.lower() for cell in cells]
    for split, cell, number in zip(splits, cells, numbers):
        if split not in SPLITS:
            raise DataError(
                f"{source}, row {number}: the split must be train or test; found {cell!r}. "
                "Correct it, or remove the column to have the rows split by class."
            )
    return splits


Unit = tuple[str, str]
"""A group, or a row that has none: rows of one unit stay together."""


def split_by_hash(listing: ListedRows, settings: DataSettings) -> list[str]:
    """Send the same share of each class to test, chosen by a hash of group or path.

    Within each class, units are put in the order of SHA-256 over ``<split_seed>/<name>``, and
    the first `test_fraction` of them go to test: at least one, and never all. A row's side thus
    hardly changes when others are added.
    """
    units = _units(listing)
    members: dict[str, list[Unit]] = defaultdict(list)
    for unit, label in _homes(units, listing.labels).items():
        members[label].append(unit)
    test: set[Unit] = set()
    for homed in members.values():
        homed.sort(key=lambda unit: (hash_place(f"{settings.split_seed}/{unit[1]}"), unit))
        test.update(homed[: n_kept_out(settings.test_fraction, len(homed))])
    return ["test" if unit in test else "train" for unit in units]


def refuse_straddling_groups(listing: ListedRows, splits: list[str]) -> None:
    """Raise `DataError` when a group has rows in train and in test."""
    side: dict[str, str] = {}
    for index, (group, split) in enumerate(zip(listing.groups, splits)):
        if group and side.setdefault(group, split) != split:
            raise DataError(
                f"{listing.where(index)}: group {group!r} is in {split} and, further up, in "
                f"{side[group]}: a test on rows like those trained on would flatter. Put each "
                "group on one side, or remove the split column to have whole groups split."
            )


def _units(listing: ListedRows) -> list[Unit]:
    return [
        ("group", group) if group else ("path", path)
        for group, path in zip(listing.groups, listing.paths)
    ]


def _homes(units: list[Unit], labels: list[str]) -> dict[Unit, str]:
    """Each unit's class: its most frequent one, of equals the first in order."""
    rank = {label: index for index, label in enumerate(class_order(labels))}
    homes: dict[Unit, tuple[int, int, str]] = {}
    for (unit, label), n_rows in Counter(zip(units, labels)).items():
        candidate = (-n_rows, rank[label], label)
        homes[unit] = min(homes.get(unit, candidate), candidate)
    return {unit: label for unit, (_, _, label) in homes.items()}
