"""One writer at a time.

A lock is a file beside the cache, which says who holds it. Where the file system knows locks
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from ecgfeat.errors import CacheLockedError, storage_error
from ecgfeat.files import open_lock, typed

__all__ = ["hold"]


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


@contextlib.contextmanager
def hold(cache: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Be the one writer of `cache`, or the one that computes `shard` of it.

    Shards don't exclude each other; a plain writer excludes them, and they exclude it.

    Raises
    ------
    CacheLockedError
        When another process is at it; the message says who.
    StorageError
    """
    plain = cache.with_name(f"{cache.name}.lock")
    own = plain
    if shard is not None:
        own = cache.with_name(f"{cache.name}.shard-{shard[0]}-of-{shard[1]}.lock")
    with _disk_errors(own):
        fd = _acquire(own, cache)
    try:
        with _disk_errors(own):
            if shard is not None:
                _refuse_if_held(plain, cache)
            else:
                for path in cache.parent.glob(f"{escape(cache.name)}.shard-*.lock"):
                    # Taking and releasing it also removes what a killed shard left.
                    _release(path, _acquire(path, cache))
        yield
    finally:
        with _disk_errors(own):
            _release(own, fd)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, "locking", path) from error


def _acquire(path: Path, cache: Path) -> int:
    """Take the lock; returns the open file that holds it."""
    deadline = time.monotonic() + PATIENCE_S
    while (fd := _try(path)) is None:
        if time.monotonic() > deadline:
            raise _locked(path, cache)
        time.sleep(0.02)
    return fd


def _release(path: Path, fd: int) -> None:
    # The name goes first: whoever opened the file before finds it gone and tries again.
    path.unlink(missing_ok=True)
    os.close(fd)


def _try(path: Path) -> int | None:
    opened = _open(path)
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


def _open(path: Path) -> tuple[bool, int] | None:
    """Open the lock's file: whether it was made now, and its number; None if it just went."""
    with contextlib.suppress(FileExistsError):
        return True, open_lock(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, begins=b"{")
    with contextlib.suppress(FileNotFoundError):
        return False, open_lock(path, os.O_RDWR, begins=b"{")
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
        os.close(open_lock(guard, os.O_RDWR | os.O_CREAT | os.O_EXCL, begins=b""))
    except FileExistsError:
        return
    try:
        holder = _holder(path)
        if holder is not None and holder.is_surely_dead():
            path.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _refuse_if_held(path: Path, cache: Path) -> None:
    try:
        fd = open_lock(path, os.O_RDONLY, begins=b"{")
    except FileNotFoundError:
        return
    try:
        if not _is_free(_read(fd), _kernel_lock(fd, fcntl.LOCK_SH)):
            raise _locked(path, cache)
    except BlockingIOError:
        raise _locked(path, cache) from None
    finally:
        os.close(fd)


def _holder(path: Path) -> Holder | None:
    try:
        fd = open_lock(path, os.O_RDONLY, begins=b"{")
    except FileNotFoundError:
        return None
    try:
        return _read(fd)
    finally:
        os.close(fd)


def _locked(path: Path, cache: Path) -> CacheLockedError:
    holder = _holder(path)
    if holder is None:
        who, remedy = "another process", f"If there is none, delete {path}."
    else:
        who = f"process {holder.pid} on {holder.host} since {holder.since}"
        remedy = "" if holder.vouched else f"If that process is gone, delete {path}."
    return CacheLockedError(
        f"{cache} is being written by {who}. Wait for it to end, or give another file with "
        f"--cache. {remedy}".rstrip()
    )
