"""One writer: whoever comes second is told who is at it, and the dead hold nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from ecgfeat.errors import CacheLockedError, StorageError
from ecgfeat.feature_cache import open_cache, open_writer
from ecgfeat.feature_cache.writer import hold_cache
from ecgfeat.locking import Holder

from .fakes import HEADER, commit, fill, made_manifest, make_manifest

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.feature_cache.fakes"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pages.h5"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecgfeat.locking.PATIENCE_S", 0.05)


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which locking calls fail."""
    refuse_locks(monkeypatch, errno.ENOLCK)


def leave_lock(path: Path, **changes: object) -> Path:
    """What a process that held the lock of `path` left behind."""
    lock = path.with_name(f"{path.name}.lock")
    holder = replace(Holder.this_process(vouched=False), **changes)
    lock.write_text(json.dumps(asdict(holder)))
    return lock


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_writer_is_told_who_is_at_it(path):
    with (
        hold_cache(path, None),
        pytest.raises(CacheLockedError) as caught,
        hold_cache(path, None),
    ):
        pass
    assert re.fullmatch(
        rf"{re.escape(str(path))} is being written by process {os.getpid()} on \S+ since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC. Wait for it to end, or give another file with "
        r"--cache\.",
        str(caught.value),
    )


def test_the_lock_is_gone_when_its_holder_is_done(path):
    with hold_cache(path, None):
        assert [file.name for file in path.parent.iterdir()] == ["pages.h5.lock"]
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ZeroDivisionError), hold_cache(path, None):
        raise ZeroDivisionError
    with hold_cache(path, None):
        pass


def hold_and_wait(path: Path, held: Event, leave: Event) -> None:
    with hold_cache(path, None):
        held.set()
        leave.wait(60)


def test_a_killed_process_holds_nothing(path):
    held, leave = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold_and_wait, args=(path, held, leave))
    process.start()
    assert held.wait(60)
    with (
        pytest.raises(CacheLockedError, match=f"by process {process.pid} on"),
        hold_cache(path, None),
    ):
        pass
    process.kill()
    process.join()
    assert path.with_name("pages.h5.lock").exists()
    with hold_cache(path, None):
        pass


def write_or_be_told(path: Path, root: Path, told: Event, outcomes: Queue[tuple[int, str]]) -> None:
    """Extract; the one that works holds on until the others have been told."""
    manifest = made_manifest(root)
    try:
        with open_writer(path, HEADER, manifest) as writer:
            outcomes.put((os.getpid(), "works"))
            assert told.wait(60)
            commit(writer, manifest, writer.pending)
            writer.finish()
    except CacheLockedError as error:
        outcomes.put((os.getpid(), str(error)))


@pytest.mark.parametrize(
    "n_processes", [6, pytest.param(20, marks=pytest.mark.slow)], ids=["6", "20"]
)
def test_of_many_writers_at_once_one_works_and_the_others_are_told(path, tmp_path, n_processes):
    make_manifest(tmp_path / "images")
    told, outcomes = PROCESSES.Event(), PROCESSES.Queue()
    arguments = (path, tmp_path / "images", told, outcomes)
    processes = [
        PROCESSES.Process(target=write_or_be_told, args=arguments) for _ in range(n_processes)
    ]
    for process in processes:
        process.start()
    said = dict(outcomes.get(timeout=60) for _ in processes)
    told.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (worker,) = [pid for pid, words in said.items() if words == "works"]
    del said[worker]
    assert all(f"is being written by process {worker} on" in words for words in said.values())
    assert len(open_cache(path)) == 24
    assert [file.name for file in path.parent.iterdir() if file != tmp_path / "images"] == [
        "pages.h5"
    ]


def test_shards_do_not_exclude_each_other(path):
    with (
        hold_cache(path, (0, 3)),
        hold_cache(path, (1, 3)),
        hold_cache(path, (0, 2)),
        pytest.raises(CacheLockedError, match=f"by process {os.getpid()} on"),
        hold_cache(path, (1, 3)),
    ):
        pass


def test_a_plain_writer_and_shards_exclude_each_other(path):
    with (
        hold_cache(path, (1, 3)),
        pytest.raises(CacheLockedError, match="is being written by"),
        hold_cache(path, None),
    ):
        pass
    with (
        hold_cache(path, None),
        pytest.raises(CacheLockedError, match="is being written by"),
        hold_cache(path, (1, 3)),
    ):
        pass
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_shard_left_does_not_stay(path):
    path.with_name("pages.h5.shard-1-of-3.lock").write_text("{}")
    with hold_cache(path, None):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_may_not_be_made_names_the_cause(tmp_path):
    with (
        pytest.raises(StorageError, match=r"locking .*pages\.h5\.lock failed: "),
        hold_cache(tmp_path / "none" / "pages.h5", None),
    ):
        pass


def test_a_disk_too_full_for_a_lock_leaves_none(path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ecgfeat.locking.os.pwrite", fail)
    with pytest.raises(StorageError, match="the disk is full"), hold_cache(path, None):
        pass
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "ENOSYS", "EINVAL"])
def test_without_locking_calls_extraction_works(path, tmp_path, monkeypatch, name):
    refuse_locks(monkeypatch, getattr(errno, name))
    fill(path, make_manifest(tmp_path / "images"))
    assert len(open_cache(path)) == 24
    assert not path.with_name("pages.h5.lock").exists()


def test_without_locking_calls_a_second_writer_is_told_and_what_to_do(path, no_locks):
    with hold_cache(path, None), pytest.raises(CacheLockedError) as caught, hold_cache(path, None):
        pass
    assert str(caught.value).endswith(f"with --cache. If that process is gone, delete {path}.lock.")
    with hold_cache(path, (0, 2)), pytest.raises(CacheLockedError), hold_cache(path, None):
        pass
    with hold_cache(path, None), pytest.raises(CacheLockedError), hold_cache(path, (0, 2)):
        pass
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "left",
    [
        lambda: {"pid": dead_pid()},
        lambda: {"started": "1"},
        lambda: {"boot": "another boot of this machine", "machine": "0123456789abcdef"},
    ],
    ids=["gone", "its number reused", "the machine restarted"],
)
def test_without_locking_calls_a_dead_holder_does_not_block(path, no_locks, left, monkeypatch):
    know_machine(monkeypatch)
    leave_lock(path, **left())
    with hold_cache(path, None):
        pass
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"boot": "of another machine", "machine": "fedcba9876543210", "host": "node7"},
        {"boot": "of another machine", "machine": "", "host": "node7"},
        {"namespace": "pid:[1]", "pid": 2**22 - 1},
    ],
    ids=["alive", "another host", "an unknown host", "another container"],
)
def test_without_locking_calls_a_holder_that_may_live_is_respected(
    path, no_locks, left, monkeypatch
):
    know_machine(monkeypatch)
    lock = leave_lock(path, **left)
    with pytest.raises(CacheLockedError) as caught, hold_cache(path, None):
        pass
    assert f"on {left.get('host', Holder.this_process(vouched=False).host)} since" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"If that process is gone, delete {lock}.")
    lock.unlink()
    with hold_cache(path, None):
        pass


def test_without_locking_calls_a_process_that_proc_hides_is_respected(path, no_locks, monkeypatch):
    leave_lock(path, pid=1)
    monkeypatch.setattr("ecgfeat.locking._started", lambda pid: "")
    with pytest.raises(CacheLockedError), hold_cache(path, None):
        pass
    leave_lock(path, pid=dead_pid())
    with hold_cache(path, None):
        pass


def know_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this machine an id, which containers may lack."""
    known = {"/proc/sys/kernel/random/boot_id": "b00t", "/etc/machine-id": "0123456789abcdef"}
    monkeypatch.setattr("ecgfeat.locking._first_line", lambda path: known[path])


def test_without_locking_calls_a_lock_just_being_made_is_respected(path, no_locks):
    lock = path.with_name("pages.h5.lock")
    lock.touch()
    with pytest.raises(CacheLockedError) as caught, hold_cache(path, None):
        pass
    assert "by another process. Wait for it to end" in str(caught.value)
    assert str(caught.value).endswith(f"If there is none, delete {lock}.")


def test_without_locking_calls_one_process_at_a_time_removes_a_dead_lock(path, no_locks):
    lock = leave_lock(path, started="1")
    guard = lock.with_name(f"{lock.name}.removing")
    guard.touch()
    with pytest.raises(CacheLockedError), hold_cache(path, None):
        pass
    assert lock.exists()
    guard.unlink()
    with hold_cache(path, None):
        pass


def test_a_holder_that_the_kernel_does_not_know_is_respected_where_there_are_locks(path):
    """It may sit on a machine that mounted the folder without locks."""
    leave_lock(path, boot="of another machine", machine="", host="node7")
    with pytest.raises(CacheLockedError, match="on node7 since"), hold_cache(path, None):
        pass
    leave_lock(path, boot="of another machine", machine="", host="node7", vouched=True)
    with hold_cache(path, None):
        pass


@pytest.mark.parametrize("name", ["{}.lock", "{}.shard-0-of-2.lock"])
def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(path, name):
    precious = path.with_name("precious.txt")
    precious.write_text("precious")
    lock = path.with_name(name.format(path.name))
    lock.symlink_to(precious)
    with (
        pytest.raises(StorageError, match="is a symbolic link, which a lock never is"),
        hold_cache(path, (0, 2) if "shard" in name else None),
    ):
        raise AssertionError
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("content", ["{", '{"pid": 1}', '{"pid": "x"}', "{" + "[" * 4000])
def test_a_lock_that_holds_nonsense_is_free(path, content):
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text(content)
    with hold_cache(path, None):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


@pytest.mark.parametrize("pid", ["x", -1, 2**70, None, 1.5])
def test_nothing_that_a_lock_says_of_its_process_breaks_the_next_one(path, pid):
    with hold_cache(path, None):
        told = json.loads(path.with_name(f"{path.name}.lock").read_text())
    path.with_name(f"{path.name}.lock").write_text(json.dumps({**told, "pid": pid}))
    with hold_cache(path, None):
        pass


def test_a_file_that_is_no_lock_is_refused_and_left_alone(path):
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text("precious")
    with (
        pytest.raises(StorageError, match="is no lock of ecgfeat: move it elsewhere"),
        hold_cache(path, None),
    ):
        raise AssertionError
    assert lock.read_text() == "precious"
