"""One process at a time: who writes a cache, or goes on with a run.

A lock is a file, which says who holds it. Where the file system knows locks
(`flock`), the kernel vouches for the holder: when its process is gone, on whichever machine,
the lock is free. Where it doesn't, the file's existence is the lock, and a holder is taken for
dead only if that can be known: same machine, and no such process since it booted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ecgfeat.errors import EcgfeatError, StorageError, storage_error
from ecgfeat.files import typed

__all__ = ["hold", "refuse_if_held"]


PATIENCE_S = 0.3
"""A lock that is only being looked at, or is just being released, is free again by then."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock; what can't be known is empty.

    Attributes
    ----------
    pid : int
    started : str
        When the process started, in the kernel's words: tells it from a later one of its number.
    namespace : str
        Process namespace (container), within which numbers mean something.
    boot, machine, host : str
        The boot, the machine and its name.
    since : str
        When the lock was taken, UTC.
    vouched : bool
        Whether the kernel holds the lock too.
    """

    pid: Annotated[int, Meta(ge=1, lt=2**31)]
    started: str
    namespace: str
    boot: str
    machine: str
    host: str
    since: str
    vouched: bool

    @classmethod
    def this_process(cls, *, vouched: bool) -> Holder:
        """The process that asks."""
        return cls(
            pid=os.getpid(),
            started=_started(os.getpid()),
            namespace=_namespace(),
            boot=_first_line("/proc/sys/kernel/random/boot_id"),
            machine=_first_line("/etc/machine-id"),
            host=socket.gethostname(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            vouched=vouched,
        )

    def is_surely_dead(self) -> bool:
        """Whether the process is known to be gone."""
        here = Holder.this_process(vouched=False)
        if self.boot != here.boot:
            same_machine = (self.machine, self.host) == (here.machine, here.host)
            return bool(self.boot and self.machine) and same_machine
        if not self.boot or self.namespace != here.namespace:
            return False
        started = _started(self.pid)
        return started != self.started if started else not _exists(self.pid)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where that can't be known."""
    with contextlib.suppress(OSError):
        # The name in parentheses may itself hold blanks; the start is field 22 of proc(5).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _first_line(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


Refusal = Callable[[str, str], EcgfeatError]
"""The error for a lock that another process has: given who that is, and what to do if it is gone
(empty where nothing has to be done), both in words."""


@contextlib.contextmanager
def hold(path: Path, refusal: Refusal) -> Iterator[None]:
    """Be the one process that has the lock `path`.

    Raises
    ------
    EcgfeatError
        What `refusal` gives, when another process has it.
    StorageError
    """
    with _disk_errors(path):
        fd = _acquire(path, refusal)
    try:
        yield
    finally:
        with _disk_errors(path):
            # The name goes first: whoever opened the file before finds it gone and tries again.
            path.unlink(missing_ok=True)
            os.close(fd)


def refuse_if_held(path: Path, refusal: Refusal) -> None:
    """Raise what `hold` would, without taking the lock."""
    with _disk_errors(path):
        try:
            fd = _open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            if not _is_free(_read(fd), _kernel_lock(fd, fcntl.LOCK_SH)):
                raise _refused(path, refusal)
        except BlockingIOError:
            raise _refused(path, refusal) from None
        finally:
            os.close(fd)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, "locking", path) from error


def _acquire(path: Path, refusal: Refusal) -> int:
    """Take the lock; returns the open file that holds it."""
    deadline = time.monotonic() + PATIENCE_S
    while (fd := _try(path)) is None:
        if time.monotonic() > deadline:
            raise _refused(path, refusal)
        time.sleep(0.02)
    return fd


def _try(path: Path) -> int | None:
    opened = _opened(path)
    if opened is None:
        return None
    created, fd = opened
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        try:
            vouched = _kernel_lock(fd, fcntl.LOCK_EX)
        except BlockingIOError:
            return None
        if not _is_named(fd, path):
            return None
        if not created and not (vouched and _is_free(_read(fd), vouched)):
            if not vouched:
                _remove_dead(path)
            return None
        undo.callback(path.unlink, missing_ok=True)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(Holder.this_process(vouched=vouched))).encode(), 0)
        undo.pop_all()
    return fd


def _opened(path: Path) -> tuple[bool, int] | None:
    """Open the lock's file: whether it was made now, and its number; None if it just went."""
    with contextlib.suppress(FileExistsError):
        return True, _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    with contextlib.suppress(FileNotFoundError):
        return False, _open(path, os.O_RDWR)
    return None


def _kernel_lock(fd: int, kind: int) -> bool:
    """Ask the kernel for the lock: True when got, False where it knows no locks.

    BlockingIOError where another process has it.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_named(fd: int, path: Path) -> bool:
    """Whether the open file is still the one called `path`."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read(fd: int) -> Holder | None:
    """Who holds the lock; None where nobody has written it yet, or wrote it whole."""
    try:
        return typed(json.loads(os.pread(fd, 4096, 0)), Holder)
    except (ValueError, RecursionError):
        return None


def _is_free(holder: Holder | None, vouched: bool) -> bool:
    """Whether a lock that the kernel didn't refuse is free, by what its file says.

    Without the kernel's word, an empty file is one that is just being written.
    """
    if holder is None:
        return vouched
    return (vouched and holder.vouched) or holder.is_surely_dead()


def _remove_dead(path: Path) -> None:
    """Without the kernel's help, remove a dead holder's file, and nobody else's.

    Between looking and removing, another process might have removed the file and put its own
    there. So only one at a time may remove.
    """
    guard = path.with_name(f"{path.name}.removing")
    try:
        os.close(_open(guard, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    try:
        holder = _holder(path)
        if holder is not None and holder.is_surely_dead():
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _refused(path: Path, refusal: Refusal) -> EcgfeatError:
    holder = _holder(path)
    if holder is None:
        return refusal("another process", f"If there is none, delete {path}.")
    who = f"process {holder.pid} on {holder.host} since {holder.since}"
    return refusal(who, "" if holder.vouched else f"If that process is gone, delete {path}.")


_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BEGINNINGS = (b"{", b"process")
"""Of what a holder writes in a lock; in a run's an earlier version wrote words."""


def _open(path: Path, flags: int) -> int:
    """Open a lock's file for reading, and perhaps more, with `flags`; returns its descriptor.

    No link is followed, and nothing is emptied.

    Raises
    ------
    StorageError
        When it is a link or another file: whoever put it there means that to be overwritten.
    OSError
    """
    try:
        fd = os.open(path, flags | _NO_FOLLOW, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise StorageError(
                f"{path} is a symbolic link, which a lock never is: move it elsewhere"
            ) from error
        raise
    begins = os.pread(fd, max(map(len, _BEGINNINGS)), 0)
    if begins and not begins.startswith(_BEGINNINGS):
        os.close(fd)
        raise StorageError(f"{path} is no lock of ecgfeat: move it elsewhere")
    return fd
