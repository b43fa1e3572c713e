"""From DATA to a manifest: list the rows, split them, and look which files are there."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgfeat.config import DataSettings, option_name
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.files import MAX_PAGES, NamedPage, page_named
from ecgfeat.manifest.manifest import ListedRows, Manifest, MissingImage
from ecgfeat.manifest.table import list_csv
from ecgfeat.manifest.tree import IMAGE_SUFFIXES, list_folder, pages_named
from ecgfeat.manifest.vocabulary import is_junk, looks_like, some_of, split_called
from ecgfeat.protocol import class_order, drawn_units, n_kept_out

__all__ = ["read_manifest", "split_by_hash"]

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_EXPECTED = (
    "Expected a folder of class folders (train/<class>/… and test/<class>/…, or <class>/…), or a "
    ".csv file with the columns path and label."
)
_TABLES = (".csv", ".tsv", ".txt")


def read_manifest(data: Path | str, settings: DataSettings = DataSettings()) -> Manifest:
    """List the images of a folder tree or a CSV.

    Parameters
    ----------
    data : Path or str
        A folder (``train/<class>/…`` and ``test/<class>/…``, ``<class>/train/…`` or
        ``<class>/…``), or a CSV with the columns ``path`` and ``label`` and optionally ``split``
        and ``group``; its other columns are kept as metadata. Splits and columns may go by their
        usual other names. Paths are relative to the CSV, or to ``settings.root``.
    settings : DataSettings

    Returns
    -------
    Manifest
        The images that are there, split into train and test, perhaps with a validation part; and
        those that are missing. Its summary says what was found and guessed.

    Raises
    ------
    DataError
        When the data are not what they should be; the message says where.
    ConfigError
        When an option doesn't go with the data.
    StorageError
        When something can't be read.

    Examples
    --------
    >>> manifest = read_manifest("pages/manifest.csv")  # doctest: +SKIP
    >>> len(manifest), manifest.classes  # doctest: +SKIP
    (1000, ('normal', 'pathological'))
    """
    source = Path(os.path.abspath(data))
    listing = _list(source, settings)
    _check_labels(listing)
    listing.groups, listing.group_source = _page_groups(
        listing.paths, listing.groups, listing.group_source
    )
    listing.splits, listing.split_source = _split(listing, settings)
    _refuse_straddling_groups(listing)
    manifest = _look(listing, settings)
    # Another name for other rows, so that the cache of all images isn't cut down to these.
    name = manifest.name
    if settings.pages == "all":
        manifest, name = _paged(manifest), f"{name}-all-pages"
    if settings.limit:
        manifest, name = manifest.limited(settings.limit), f"{name}-limit{settings.limit}"
    return replace(manifest, name=name)


def _list(source: Path, settings: DataSettings) -> ListedRows:
    if _is_folder(source):
        _refuse_columns_of_a_folder(source, settings)
        _refuse_folder_of_a_table(source)
        return list_folder(source, settings)
    if source.suffix.lower() not in _TABLES:
        raise DataError(f"{source} is neither a folder nor a .csv file. {_EXPECTED}")
    root = Path(os.path.abspath(settings.root or source.parent))
    if not root.is_dir():
        raise DataError(f"--root must be the folder that the paths are relative to; found {root}.")
    return list_csv(source, root, settings)


def _is_folder(source: Path) -> bool:
    try:
        return stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        if error.errno in _ABSENT:
            raise DataError(f"{source} does not exist. {_EXPECTED}") from error
        raise storage_error(error, "reading", source) from error


def _refuse_columns_of_a_folder(source: Path, settings: DataSettings) -> None:
    for name in ("root", "path_column", "label_column", "split_column", "group_column"):
        if getattr(settings, name):
            raise ConfigError(
                f"{option_name(name)} goes with a .csv file, but {source} is a folder: leave it out"
            )


def _refuse_folder_of_a_table(source: Path) -> None:
    """Refuse a folder whose images are listed by a CSV that lies in it."""
    try:
        entries = sorted(source.iterdir())
    except OSError as error:
        raise storage_error(error, "reading", source) from error
    tables = [path for path in entries if path.suffix.lower() == ".csv" and path.is_file()]
    folders = [path.name for path in entries if path.is_dir() and not is_junk(path.name)]
    if any(map(split_called, folders)):
        return
    listing = source / "manifest.csv"
    if listing in tables:
        raise DataError(f"{source} holds a manifest.csv, which lists its images: give {listing}.")
    if tables and len(folders) < 2:
        raise DataError(
            f"{source} holds {some_of([path.name for path in tables])} beside "
            f"{f'one folder, {folders[0]}' if folders else 'no folder'}: give the .csv file that "
            f"lists the images, such as {tables[0]}."
        )


def _check_labels(listing: ListedRows) -> None:
    """Refuse labels that are no classes, and warn of those that look alike."""
    counts = Counter(listing.labels)
    if len(counts) < 2:
        raise DataError(
            f"{listing.source} holds one class only ({listing.labels[0]!r}), and at least two are "
            "needed. Check the label column or the folder names."
        )
    if len(counts) == len(listing.labels) > 4:
        shown = ", ".join(map(repr, list(counts)[:4]))
        raise DataError(
            f"{listing.source}: every image has a label of its own ({shown} …), so there are no "
            "classes to learn. Give --label-column the column of classes; numbers must be made "
            "into classes first."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        alike[looks_like(label)].append(label)
    for labels in alike.values():
        if len(labels) > 1:
            shown = " and ".join(f"{label!r} ({counts[label]})" for label in labels)
            listing.warnings.append(
                f"the labels {shown} look alike but are classes of their own: spell them alike"
            )
    several = [
        label
        for label in counts
        if len(parts := re.split(r"[;|,+]", label)) > 1 and any(p.strip() in counts for p in parts)
    ]
    if several:
        n = sum(counts[label] for label in several)
        listing.warnings.append(
            f"{n} images have several labels in one ({some_of(several)}), each a class of its own: "
            "give --label-column a column of 0 and 1 per class, or leave such rows out"
        )
    rare = [label for label, n in counts.items() if n < 2]
    if rare:
        listing.warnings.append(f"classes of one image only: {some_of(rare)}")


_OF_FILES = "files of several pages"


def _page_groups(paths: Sequence[str], groups: Sequence[str], origin: str) -> tuple[list[str], str]:
    """Each row's group, a file's for its pages that have none, and where they come from."""
    named = [page_named(path) for path in paths]
    files = {name.file for name in named if name.page}
    found = [
        group or (name.file if name.file in files else "") for group, name in zip(groups, named)
    ]
    if found != list(groups) and _OF_FILES not in origin:
        origin = f"{origin}, and {_OF_FILES}" if origin else _OF_FILES
    return found, origin


def _paged(manifest: Manifest) -> Manifest:
    """Each page of a file as a row of its own; a row that names a page stays as it is."""
    rows: list[int] = []
    paths: list[str] = []
    warnings = list(manifest.warnings)
    for row, path in enumerate(manifest.paths):
        pages = [page_named(name).page for name in pages_named(manifest.image_path(row))]
        if len(pages) > MAX_PAGES:
            warnings.append(f"{path} has more than {MAX_PAGES} pages: the others are left out")
            pages.pop()
        rows += [row] * len(pages)
        paths += [str(NamedPage(path, page)) for page in pages] if len(pages) > 1 else [path]
    twice = [path for path, n in Counter(paths).items() if n > 1]
    if twice:
        raise DataError(
            f"{manifest.source} lists {twice[0]!r} beside its whole file, of which --pages all "
            "takes every page: remove one of them."
        )
    taken = manifest.take(rows)
    groups, origin = _page_groups(paths, taken.groups, taken.group_source)
    return replace(
        taken,
        paths=tuple(paths),
        groups=tuple(groups),
        group_source=origin,
        warnings=tuple(warnings),
    )


def _split(listing: ListedRows, settings: DataSettings) -> tuple[list[str], str]:
    """Each row's split, as the data name it or by hash, and where it comes from."""
    by_hash = f"hash (test fraction {settings.test_fraction:g}, seed {settings.split_seed})"
    if not listing.splits:
        return split_by_hash(listing, settings), f"a {by_hash}"
    if "test" in listing.splits or "val" not in listing.splits:
        return listing.splits, listing.split_source
    # A validation part chooses, so another must test.
    return split_by_hash(listing, settings), (
        f"{listing.split_source}; none is for testing, so test rows are drawn from train by "
        f"{by_hash}"
    )


def _look(listing: ListedRows, settings: DataSettings) -> Manifest:
    tree = _Tree(listing, follow_links=settings.follow_links)
    there: list[int] = []
    found: list[os.stat_result] = []
    missing: list[MissingImage] = []
    paths = list(listing.paths)
    for index, path in enumerate(paths):
        status = tree.look(index, path)
        whole = page_named(path).file
        if status is None and not whole.lower().endswith(IMAGE_SUFFIXES):
            paths[index], status = tree.look_for_suffix(index, path)
        if status is None:
            columns = listing.labels, listing.splits, listing.groups
            missing.append(MissingImage(path, *(cells[index] for cells in columns)))
        else:
            there.append(index)
            found.append(status)
    if not there:
        raise DataError(
            f"none of the {len(missing)} images that {listing.source} lists is there; the first "
            f"would be {listing.root / missing[0].path}. Give --root the folder that the paths "
            "are relative to."
        )
    n_named = sum(path != name for path, name in zip(paths, listing.paths))
    if n_named:
        listing.warnings.append(f"{n_named} listed paths have no suffix: the files' own are taken")
    return Manifest(
        source=listing.source,
        settings=settings,
        root=listing.root,
        name=_name(listing.source),
        paths=tuple(paths[index] for index in there),
        labels=tuple(listing.labels[index] for index in there),
        splits=tuple(listing.splits[index] for index in there),
        groups=tuple(listing.groups[index] for index in there),
        metadata={
            name: tuple(cells[index] for index in there) for name, cells in listing.metadata.items()
        },
        n_bytes=tuple(status.st_size for status in found),
        mtime_ns=tuple(status.st_mtime_ns for status in found),
        missing=tuple(missing),
        split_source=listing.split_source,
        label_source=listing.label_source,
        group_source=listing.group_source,
        ignored=listing.ignored,
        ignored_of=listing.ignored_of,
        warnings=tuple(listing.warnings),
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

    def __init__(self, listing: ListedRows, *, follow_links: bool) -> None:
        self._listing = listing
        self._follow_links = follow_links
        self._root = os.path.realpath(listing.root).rstrip("/")
        self._real = {"": self._root}  # of each folder met

    def look(self, index: int, path: str) -> os.stat_result | None:
        """The status of a listed file, or None where there is none."""
        named = page_named(path)
        folder, _, name = named.file.rpartition("/")
        real = f"{self._real_folder(folder)}/{name}"
        if named.page and os.path.lexists(self._listing.root / path):
            raise DataError(
                f"{self._listing.where(index)}: there is a file of the name {path!r}, which stands "
                f"for page {named.page} of {named.file}. Rename the file."
            )
        try:
            status = os.lstat(real)
            if stat.S_ISLNK(status.st_mode):
                real = os.path.realpath(real)
                status = os.lstat(real)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise storage_error(error, "reading", self._listing.root / path) from error
        if not (self._follow_links or real.startswith(f"{self._root}/")):
            raise DataError(
                f"{self._listing.where(index)}: {path!r} leads out of {self._listing.root} by a "
                f"symbolic link, to {real}. Give --follow-links to take it, or list the images in "
                "a .csv file, and give --root a folder that holds them all."
            )
        return None if stat.S_ISLNK(status.st_mode) else status

    def look_for_suffix(self, index: int, path: str) -> tuple[str, os.stat_result | None]:
        """The path with the suffix of the image that is there, and its status."""
        for suffix in IMAGE_SUFFIXES:
            for candidate in (path + suffix, path + suffix.upper()):
                if status := self.look(index, candidate):
                    return candidate, status
        return path, None

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


def split_by_hash(listing: ListedRows, settings: DataSettings) -> list[str]:
    """Send the same share of each class to test, chosen by a hash of group or path.

    Within each class, groups are put in the order of SHA-256 over ``<split_seed>/<name>``, and
    the first `test_fraction` of them go to test: at least one, and never all. A row's side thus
    hardly changes when others are added. Of named splits only train gives rows away.
    """
    splits = listing.splits or ["train"] * len(listing.paths)
    train = [row for row, split in enumerate(splits) if split == "train"]
    labels = [listing.labels[row] for row in train]
    number = {label: index for index, label in enumerate(class_order(labels))}
    is_test = drawn_units(
        np.arange(len(train)),
        np.array([number[label] for label in labels], np.int64),
        ids=[listing.paths[row] for row in train],
        groups=[listing.groups[row] for row in train],
        key=f"{settings.split_seed}/",
        n_drawn=lambda n_units: n_kept_out(settings.test_fraction, n_units),
    )
    test = {row for row, is_drawn in zip(train, is_test.tolist()) if is_drawn}
    return ["test" if row in test else split for row, split in enumerate(splits)]


def _refuse_straddling_groups(listing: ListedRows) -> None:
    """Raise `DataError` when a group has rows in train and in test."""
    side: dict[str, str] = {}
    mend = "remove the split column" if listing.row_numbers else "take the split folders away"
    for index, (group, split) in enumerate(zip(listing.groups, listing.splits)):
        if group and side.setdefault(group, split) != split:
            raise DataError(
                f"{listing.where(index)}: group {group!r} is in {split} and, further up, in "
                f"{side[group]}: a test on rows like those trained on would flatter. Put each "
                f"group on one side, or {mend} to have whole groups split."
            )
