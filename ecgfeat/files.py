"""Files written whole or not at all, what files from outside must hold, and names of pages."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from ecgfeat.errors import ConfigError, storage_error

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_PAGES",
    "NamedPage",
    "make_folder",
    "open_aside",
    "page_named",
    "refuse_overwriting",
    "replacing",
    "typed",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
]

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)

MAX_IMAGE_BYTES = 128 * 2**20
"""Largest image file read. A 600-dpi A4 page without compression has 100 MiB."""
MAX_PAGES = 999
"""Of one file. Each is found by walking past those before it."""
_PAGE_NAME = re.compile(r"(.+)#page=([1-9][0-9]{0,3})", re.DOTALL)


class NamedPage(NamedTuple):
    """A file and a page of it, as ``scan.tif#page=2`` names them; a file's own name has page 0."""

    file: str
    page: int

    @property
    def mark(self) -> bytes:
        """What tells the page from others of the same file where its bytes are digested.

        Nothing for the first, which is also what the file's own name stands for.
        """
        return b"#page=%d" % self.page if self.page > 1 else b""

    def __str__(self) -> str:
        return f"{self.file}#page={self.page}" if self.page else self.file


def page_named(path: str | Path) -> NamedPage:
    """Tell a file from the page of it that a path names.

    Examples
    --------
    >>> page_named("scan.tif#page=2"), page_named("scan.tif")
    (NamedPage(file='scan.tif', page=2), NamedPage(file='scan.tif', page=0))
    """
    match = _PAGE_NAME.fullmatch(str(path))
    return NamedPage(match[1], int(match[2])) if match else NamedPage(str(path), 0)


def open_aside(path: Path) -> int:
    """Make a file to write to that takes another's place later; returns its descriptor.

    What lies under that name, a link too, is removed, never written to.

    Raises
    ------
    OSError
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)


def refuse_overwriting(path: Path, mark: bytes, *, name: str, force: bool = False) -> None:
    """Refuse to write over a file that we didn't make, or where nothing can be written.

    Asked before the work begins, so that none is lost.

    Parameters
    ----------
    path : Path
        Where to write.
    mark : bytes
        What files of this kind that we made hold near their beginning or, as a PDF does, their
        end.
    name : str
        What gave the path, for the message.
    force : bool
        Whether any file may be written over.

    Raises
    ------
    ConfigError
        When there is another file, or a folder.
    StorageError
        When its folder can't be written to.
    """
    _refuse_unwritable(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: {name} takes a file")
    if force:
        return
    try:
        with path.open("rb") as file:
            is_own = mark in file.read(1024) or mark in _end_of(file)
    except FileNotFoundError:
        return
    except OSError:
        is_own = False
    if not is_own:
        raise ConfigError(
            f"{path} exists and was not made by this command: give another {name}, or --force to "
            "write over it"
        )


def _refuse_unwritable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    number = 0
    if not folder.is_dir():
        number = errno.ENOTDIR
    elif not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EACCES
    if number:
        raise storage_error(OSError(number, ""), "writing", path)


def _end_of(file: BinaryIO) -> bytes:
    """The last bytes of a file, in which a PDF says who made it."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 64 * 1024))
    return file.read()


@contextlib.contextmanager
def replacing(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Give a path to write to that takes the place of `path` once it is whole and on disk.

    Parameters
    ----------
    path : Path
    aside : Path, optional
        Which path that is; by default a name that only this process takes.

    Raises
    ------
    StorageError
        When the disk refuses; `path` is then as it was before.
    """
    aside = aside or path.with_name(f".{path.name}.{os.getpid()}")
    make_folder(path.parent)
    try:
        os.close(open_aside(aside))
        yield aside
        with aside.open("rb+") as file:
            _flush(file.fileno())
        aside.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise storage_error(error, "writing", path) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make the folder `path`, and those above it, unless it is there."""
    if path.is_dir():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise storage_error(error, "making the folder", path) from error


def _flush(fd: int) -> None:
    os.fsync(fd)
    # macOS's fsync stops at the drive's own cache; not every file system there can do more.
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def _flush_folder(path: Path) -> None:
    """Make a new name in the folder `path` last through a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems can't flush a folder; their servers do so by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as aside:
        aside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8; a file name that isn't UTF-8 keeps its bytes (PEP 383)."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that any parser reads: ASCII, and no NaN or Infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as RFC 4180 has them; the shortest text that gives a float back is taken."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


T = TypeVar("T")


def typed(found: object, kind: type[T], **options: Any) -> T:
    """What a file from outside holds, as `kind` and its annotations declare it.

    Parameters
    ----------
    found : plain values
    kind : type
        Usually a dataclass or a TypedDict; what it doesn't declare is passed over.
    options
        Of ``msgspec.convert``.

    Raises
    ------
    ValueError
        When a field is missing, of another type, or out of its range; the message names it.
    """
    try:
        value: T = msgspec.convert(found, kind, **options)
        return value
    except msgspec.ValidationError as error:
        what, _, place = str(error).replace("`", "").partition(" - at $")
        where = f"{place.lstrip('.')}: " if place else ""
        message = where + what[0].lower() + what[1:]
        raise ValueError(f"a field is missing or wrong ({message})") from error
    except ConfigError as error:  # of settings, which check themselves and name the option
        raise ValueError(f"a field is missing or wrong ({error})") from error
