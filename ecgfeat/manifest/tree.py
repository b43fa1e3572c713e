"""A folder tree: which of its folders are splits and classes, and which of its files are images.

At the end, which pages a file has.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ecgfeat.config import DataSettings, comma_separated
from ecgfeat.errors import DataError, storage_error
from ecgfeat.files import MAX_IMAGE_BYTES, MAX_PAGES, NamedPage
from ecgfeat.manifest.manifest import ListedRows
from ecgfeat.manifest.vocabulary import (
    group_in,
    is_junk,
    number_in,
    plain,
    some_of,
    split_called,
)

__all__ = [
    "EXTRAS",
    "IMAGE_KINDS",
    "IMAGE_SUFFIXES",
    "PDFIUM",
    "images_below",
    "list_folder",
    "pages_named",
]

EXTRAS = {"pdf": ("pypdfium2", (".pdf",)), "dicom": ("pydicom", (".dcm", ".dicom"))}
"""Extras of the installation: the package that each brings, and the suffixes of what it reads."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
    *(".tif", ".tiff", ".bmp", ".webp", ".gif"),
    *(end for package, ends in EXTRAS.values() if find_spec(package) for end in ends),
)
"""What counts as an image in a folder tree, in any case. A CSV may name any file."""
IMAGE_KINDS = "JPEG, PNG, TIFF, BMP, WebP, GIF"
_OTHER_KINDS = (".pdf", ".dcm", ".dicom", ".heic", ".svg", ".xml", ".dat", ".mat")
"""Files that hold pages too, which can't be read: a folder of them is no folder to pass over."""


def list_folder(root: Path, settings: DataSettings = DataSettings()) -> ListedRows:
    """List the images of ``[SPLIT/]CLASS/…`` or ``CLASS/SPLIT/…``.

    Raises DataError where there are no images, or the folders can't be told into splits and
    classes, and StorageError where a folder can't be read.
    """
    files, junk = _walk(root, settings)
    images = sorted(path for path in files if path.lower().endswith(IMAGE_SUFFIXES))
    _refuse_names_that_are_not_text(root, images)
    above = {path: path.split("/")[:-1] for path in images}
    layout = _layout(root, list(above.values()), settings)
    inside = [path for path in images if len(above[path]) >= layout.n_folders]
    if not inside:
        raise DataError(
            f"{root} holds no images ({IMAGE_KINDS}) in class folders: expected "
            "<class>/… or train/<class>/… and test/<class>/… ."
        )
    _refuse_classes_of_other_kinds(root, files, inside, layout)
    folders = [above[path] for path in inside]
    others = set(files).difference(inside)
    listing = ListedRows(
        source=root,
        root=root,
        paths=inside,
        labels=[names[layout.class_level] for names in folders],
        splits=[layout.split_of(names) for names in folders] if layout.splits else [],
        groups=[
            group_in(names[layout.n_folders :], path.rpartition("/")[2], settings.group_by)
            for path, names in zip(inside, folders)
        ],
        ignored=_ignored(others, junk),
        ignored_of=_ignored_of(others, layout),
        split_source=layout.splits,
        label_source="folders",
    )
    _tell_of_folders_below(listing, folders, layout, settings)
    return listing


def images_below(root: Path) -> list[Path]:
    """The images of a folder and of those below it, linked ones too, without labels or splits.

    Raises
    ------
    StorageError
    """
    found, _ = _walk(root, DataSettings(follow_links=True))
    return [root / path for path in sorted(found) if path.lower().endswith(IMAGE_SUFFIXES)]


# What lies in it


def _walk(root: Path, settings: DataSettings) -> tuple[list[str], Counter[str]]:
    """The relative paths of the files under `root`, and how many were passed over by folder.

    Hidden ones and systems' own are neither listed nor, but for whole folders of them, counted.
    """
    files: list[str] = []
    junk: Counter[str] = Counter()
    folders = [""]
    seen = {os.path.realpath(root)}
    while folders:
        folder = folders.pop()
        entries = _entries(root / folder)
        if folder and _is_our_own(entries):
            junk[f"of runs and audits in {Path(folder).parent}"] += len(entries)
            continue
        for name, entry in entries.items():
            path = f"{folder}/{name}" if folder else name
            if entry.is_dir(follow_symlinks=False):
                if name.startswith("."):
                    continue
                if is_junk(name):
                    junk[f"in {name}"] += sum(len(x) for _, _, x in os.walk(root / path))
                else:
                    folders.append(path)
            elif is_junk(name):
                continue
            elif entry.is_symlink() and os.path.isdir(root / path):
                if not settings.follow_links:
                    raise DataError(
                        f"{root / path} is a symbolic link to a folder, which could lead outside "
                        f"{root} or list images twice. Give --follow-links to take it, move the "
                        "folder itself there, or list the images in a .csv file."
                    )
                real = os.path.realpath(root / path)
                if real not in seen:  # no link leads round in a circle
                    seen.add(real)
                    folders.append(path)
            else:
                files.append(path)
    return files, junk


def _entries(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError as error:
        raise storage_error(error, "reading", folder) from error


def _is_our_own(entries: dict[str, os.DirEntry[str]]) -> bool:
    """Whether a folder is an audit or a run, finished or not, whose figures are no pages."""
    is_run = "config.json" in entries and bool(_OF_A_RUN & entries.keys())
    return is_run or "audit.json" in entries


_OF_A_RUN = {"metrics.json", "history.csv", "checkpoint.safetensors", "lr_range.csv", ".lock"}


def _ignored(others: set[str], junk: Counter[str]) -> dict[str, int]:
    """How many files were passed over, in words: by suffix, and by folder."""
    counts = Counter(junk)
    for path in others:
        suffix = Path(path).suffix.lower()
        is_image = suffix in IMAGE_SUFFIXES
        counts["images outside the class folders" if is_image else suffix or "no suffix"] += 1
    for extra, (_, suffixes) in EXTRAS.items():
        for suffix in counts.keys() & set(suffixes) - set(IMAGE_SUFFIXES):
            counts[f"{suffix} (pip install 'ecgfeat[{extra}]' to read them)"] = counts.pop(suffix)
    return {reason: n for reason, n in sorted(counts.items()) if n}


def _ignored_of(others: set[str], layout: _Layout) -> dict[str, int]:
    """How many files that lie in a class's folder were passed over, by class."""
    parts = (path.split("/") for path in others)
    counts = Counter(p[layout.class_level] for p in parts if len(p) > layout.n_folders)
    return dict(sorted(counts.items()))


# What its folders mean


@dataclass(frozen=True)
class _Layout:
    """Which level of folders is the class, and which the split; `splits` says so in words."""

    class_level: int = 0
    split_level: int | None = None
    test_folds: tuple[int, ...] = ()

    @property
    def n_folders(self) -> int:
        return 1 if self.split_level is None else 2

    @property
    def splits(self) -> str:
        if self.split_level is None:
            return ""
        return "folders" if self.split_level == 0 else "folders inside the classes'"

    def split_of(self, above: list[str]) -> str:
        name = above[self.split_level or 0]
        if self.test_folds:
            return "test" if number_in(name) in self.test_folds else "train"
        return split_called(name) or ""


def _layout(root: Path, folders: list[list[str]], settings: DataSettings) -> _Layout:
    """Tell splits from classes by their names, given the folders that each image lies in."""
    tops = list(dict.fromkeys(above[0] for above in folders if above))
    test_folds = tuple(map(int, comma_separated(settings.test_folds)))
    if test_folds:
        if not tops or any(number_in(name) is None for name in tops):
            raise DataError(
                f"--test-folds goes with numbered folds, but the folders of {root} are "
                f"{some_of(tops)}: leave it out."
            )
        return _Layout(1, 0, test_folds)
    splits = [name for name in tops if split_called(name)]
    if splits and len(splits) == len(tops):
        return _Layout(1, 0)
    if splits:
        others = [name for name in tops if name not in splits]
        raise DataError(
            f"{root} holds {', '.join(splits)} beside {', '.join(others)}: it isn't clear which "
            "folders are splits and which are classes. Move the others elsewhere, or list the "
            "images in a .csv file with the columns path, label and split."
        )
    if len(tops) > 1 and all(re.fullmatch(r"fold_?\d+", plain(name)) for name in tops):
        raise DataError(
            f"the folders of {root} look like numbered folds ({some_of(tops)}), not like classes. "
            "Give --test-folds those for testing, or list the images in a .csv file."
        )
    return _layout_inside(root, tops, folders)


def _layout_inside(root: Path, tops: list[str], folders: list[list[str]]) -> _Layout:
    """The layout where no folder on top is a split."""
    seconds = {(above[0], above[1] if len(above) > 1 else "") for above in folders if above}
    splits = {pair for pair in seconds if split_called(pair[1])}
    if splits and splits != seconds:
        top, name = sorted(splits)[0]
        _, other = sorted(seconds - splits)[0]
        raise DataError(
            f"{root / top} holds {name}, which is called like a split, and other class folders "
            f"hold {other or 'images themselves'}: it isn't clear which folders are splits. Give "
            "every class the same, or list the images in a .csv file with the columns path, "
            "label and split."
        )
    if len(tops) == 1 and len({name for _, name in seconds}) > 1:
        raise DataError(
            f"{root} holds one folder only, {tops[0]}: give {root / tops[0]}, which holds "
            f"{some_of(sorted({name for _, name in seconds if name}))}."
        )
    return _Layout(0, 1) if splits else _Layout()


def _tell_of_folders_below(
    listing: ListedRows, folders: list[list[str]], layout: _Layout, settings: DataSettings
) -> None:
    """Say by which folder images are grouped, or that they lie in folders which may be patients."""
    below = [above for above in folders if len(above) > layout.n_folders]
    if settings.group_by:
        n_alone = listing.groups.count("")
        if n_alone == len(folders):
            raise DataError(
                f"--group-by {settings.group_by}: no image of {listing.root} lies in such a folder "
                "below its class, or has such a name. Leave it out, or give another."
            )
        listing.group_source = f"paths (--group-by {settings.group_by})"
        if n_alone:
            listing.warnings.append(
                f"{n_alone} images have nothing that --group-by {settings.group_by} asks for: "
                "each is a group of its own"
            )
    elif below:
        n_folders = len({tuple(above) for above in below})
        listing.warnings.append(
            f"{len(below)} images lie in {n_folders} folders below their class, such as "
            f"{'/'.join(below[0])}: if such a folder is a patient, give --group-by folder, else "
            "the same patient is trained on and tested on"
        )


# What is refused


def _refuse_classes_of_other_kinds(
    root: Path, paths: list[str], inside: list[str], layout: _Layout
) -> None:
    """Refuse folders in the classes' place of which nothing can be read: classes would vanish."""

    def classes(paths: list[str]) -> set[str]:
        return {path.split("/")[layout.class_level] for path in paths}

    others = [
        path
        for path in paths
        if path.count("/") >= layout.n_folders and path.lower().endswith(_OTHER_KINDS)
    ]
    lost = sorted(classes(others) - classes(inside))
    if lost:
        suffixes = sorted({Path(path).suffix.lower() for path in others})
        raise DataError(
            f"{root} has {', '.join(suffixes)} files in {', '.join(lost)} but no image there "
            f"({IMAGE_KINDS}), and every folder is a class. Move such folders "
            "elsewhere, or list the images in a .csv file."
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


# Its files' pages

PDFIUM = threading.Lock()
"""pdfium may not be called from two threads at once."""


def pages_named(path: Path) -> list[str]:
    """A file's pages by name, such as ``scan.tif#page=2``; one of a single page by the file's own.

    They are counted by the file's suffix and structure; no picture is decoded. Thumbnails and masks
    that a TIFF holds beside its pages are none. Where the structure isn't sound, the last one is
    that of the fault, so that reading it tells what it is. A name of a page stands for itself.
    There may be one beyond `MAX_PAGES`, which isn't read: it says that there are more.
    """
    found: list[int] = []
    pages = _PAGES.get(path.suffix.lower())
    # A stranger's file may raise anything; decoding it will say in words what is wrong.
    with contextlib.suppress(Exception):
        status = path.stat()
        if pages and stat.S_ISREG(status.st_mode) and status.st_size <= MAX_IMAGE_BYTES:
            for number in pages(path):
                found.append(number)
                if number > MAX_PAGES:
                    break
    if len(found) < 2:
        return [str(path)]
    return [str(NamedPage(str(path), number)) for number in found]


def _pages_of_tiff(path: Path) -> Iterator[int]:
    """Walk along the chain of directories (TIFF 6.0, section 2; a BigTIFF has wider numbers)."""
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}[head[:2]]
        is_big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
        words = ("Q", "Q", 20) if is_big else ("H", "I", 12)
        count, offset, entry_bytes = f"{order}{words[0]}", f"{order}{words[1]}", words[2]
        (at,) = struct.unpack_from(offset, head, 8 if is_big else 4)
        seen: set[int] = set()
        while at and at not in seen:
            seen.add(at)
            is_page = True
            try:
                file.seek(at)
                (n_entries,) = struct.unpack(count, file.read(struct.calcsize(count)))
                # Entries are in the order of their tags, and this one's is the least.
                entry = file.read(entry_bytes)
                if struct.unpack_from(f"{order}H", entry)[0] == _SUBFILE_TYPE:
                    (kind,) = struct.unpack_from(
                        f"{order}I", entry, entry_bytes - struct.calcsize(offset)
                    )
                    is_page = not kind & _NO_PAGE
                file.seek(at + struct.calcsize(count) + entry_bytes * n_entries)
                (at,) = struct.unpack(offset, file.read(struct.calcsize(offset)))
            except (struct.error, OSError, OverflowError):
                at = 0
            if is_page or len(seen) == 1:
                yield len(seen)


_SUBFILE_TYPE = 254
_NO_PAGE = 1 | 4
"""Bits of it: a smaller copy of another page, a mask."""


def _pages_of_pdf(path: Path) -> Iterable[int]:
    import pypdfium2

    with PDFIUM:
        document = pypdfium2.PdfDocument(path)
        try:
            return range(1, len(document) + 1)
        finally:
            document.close()


def _frames_of_dicom(path: Path) -> Iterable[int]:
    import pydicom

    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return (1,)  # it would be unpacked at once, to any length
    found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return range(1, int(found.get("NumberOfFrames") or 1) + 1)


_PAGES: dict[str, Callable[[Path], Iterable[int]]] = {
    **dict.fromkeys((".tif", ".tiff"), _pages_of_tiff),
    ".pdf": _pages_of_pdf,
    **dict.fromkeys((".dcm", ".dicom"), _frames_of_dicom),
}
