"""From DATA to a manifest: list the rows, split them, and look which files are there."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from ecgfeat.config import DataSettings
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.manifest.listing import ListedRows, list_csv, list_folder
from ecgfeat.manifest.model import Manifest, MissingImage
from ecgfeat.manifest.splitting import refuse_straddling_groups, split_by_hash

__all__ = ["read_manifest"]

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
