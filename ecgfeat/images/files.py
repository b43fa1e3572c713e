"""Reading a file that a stranger named: regular files only, never blocking, once."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from ecgfeat.errors import ImageError, storage_error

__all__ = ["MAX_BYTES", "image_digest"]

MAX_BYTES = 128 * 2**20
"""Largest file read. A 600-dpi A4 page without compression has 100 MiB."""

DIGEST_BYTES = 16

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "its symbolic links go round in a circle",
    errno.ENAMETOOLONG: "its name is too long for this system",
    errno.EIO: "the disk reported an error while reading it",
}
_PASSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO)


def read_file(source: Path) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    ImageError
        When this file can't be read; the message is the reason.
    StorageError
        When no file could be: too many are open, or the system is out of memory.
    """
    try:
        status = source.stat()
        _refuse_by_status(status)
        with open(source, "rb", opener=_open_without_waiting) as file:
            return file.read(status.st_size)
    except ValueError as error:  # a null character, or a character the file system can't encode
        raise ImageError("its name is not one that this system can have") from error
    except OSError as error:
        if error.errno in _REASONS:
            reason, passing = _REASONS[error.errno], error.errno in _PASSING
            raise ImageError(reason, passing=passing) from error
        raise storage_error(error, "reading", source) from error


def size_on_disk(source: Path) -> int:
    """Bytes of a regular file; 0 for what isn't one."""
    try:
        status = source.stat()
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def image_digest(source: Path) -> bytes:
    """BLAKE2b of the file's bytes, 16 bytes long; raises as `decode` does for unreadable files."""
    return digest(read_file(source))


def digest(data: bytes) -> bytes:
    """BLAKE2b of `data`, 16 bytes long."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _refuse_by_status(status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("not a file but a folder")
    if stat.S_ISFIFO(mode):
        raise ImageError("not a file but a named pipe")
    if stat.S_ISSOCK(mode):
        raise ImageError("not a file but a socket")
    if not stat.S_ISREG(mode):
        raise ImageError("not a file but a device")
    if status.st_size == 0:
        raise ImageError("empty: the file has no bytes")
    if status.st_size > MAX_BYTES:
        raise ImageError(
            f"too large: the file has {status.st_size / 2**20:,.0f} MiB, "
            f"at most {MAX_BYTES // 2**20} are read"
        )


def _open_without_waiting(path: str, flags: int) -> int:
    # Between the look and the opening, someone may put a named pipe in the file's place.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
