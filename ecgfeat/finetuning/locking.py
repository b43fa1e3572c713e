"""One process, or one torchrun, at a run's folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ecgfeat.errors import RunError, storage_error
from ecgfeat.runs import is_finished

__all__ = ["sole"]

LOCK = ".lock"
"""In the run's folder until the run is finished; says who is, or was, at it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only one to go on with the run; the kernel frees the lock of a dead process.

    On a file system that knows no locks, nothing is held.

    Raises
    ------
    RunError
        When another process is at it.
    StorageError
    """
    path = folder / LOCK
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(error, "locking", path) from error
    try:
        _take(fd, folder)
        yield
        if is_finished(folder):
            # Not before: a name may go only once there is nothing left that two could do.
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(fd)


def _take(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
        raise RunError(
            f"{folder} is being worked on by {holder}. Wait for it to end, or stop it first."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise storage_error(error, "locking", folder / LOCK) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
