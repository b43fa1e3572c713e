"""The one place where the cache's bytes reach the disk: aside, flushed, then renamed.

A file therefore exists under its own name only once it is whole and on the disk, and a reader
never sees one being written.
"""

# One family of calls, each of which the tests make fail:
# ruff: noqa: PTH103, PTH105, PTH106, PTH108

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecgfeat.errors import storage_error

__all__ = ["ASIDE", "make_folder", "remove", "writing"]

ASIDE = ".writing"
"""Ending of a file that isn't finished; what a killed process leaves is named so."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[io.RawIOBase]:
    """A seekable file that takes the name `path` when the block ends, and is gone if it fails.

    Raises
    ------
    StorageError
        When the disk refuses; what stood under `path` before still stands there.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        with _Unbuffered(aside) as file:
            yield file
            _flush(file.fileno())
        os.replace(aside, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        if isinstance(error, OSError):
            raise storage_error(error, "writing", path) from error
        raise


def make_folder(path: Path) -> None:
    """Make the folder `path`, and those above it, unless it is there."""
    if path.is_dir():
        return
    try:
        os.makedirs(path, exist_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise storage_error(error, "making the folder", path) from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a folder with something in it stays."""
    try:
        if path.is_dir():
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY):
            return
        raise storage_error(error, "removing", path) from error


class _Unbuffered(io.RawIOBase):
    """A new file whose `write` takes everything it is given, or raises."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._fd, offset, whence)

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        while left:
            left = left[os.write(self._fd, left) :]
        return n_bytes

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


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
