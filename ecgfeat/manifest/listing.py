"""What a folder tree or a CSV lists, before anyone looks whether the files are there."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ecgfeat.errors import DataError, storage_error

__all__ = ["IMAGE_SUFFIXES", "ListedRows", "list_csv", "list_folder"]

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
