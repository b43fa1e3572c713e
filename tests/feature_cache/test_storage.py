"""When the disk refuses, the cause is named and nothing committed is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ecgfeat.feature_cache.writer as writer_module
from ecgfeat.errors import StorageError, storage_error
from ecgfeat.feature_cache import export_cache, open_cache, open_writer
from ecgfeat.feature_cache.reader import part_paths
from ecgfeat.manifest import Manifest

from .fakes import HEADER, commit, data_of, extract_in_process, fill, make_manifest
from .test_locking import PROCESSES

CALLS = ("write", "fsync", "replace", "mkdir")
CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EIO: "the device reported an I/O error",
    errno.EACCES: "permission denied",
}


class FailingOS:
    """Calls of `os`, of which one fails from its n-th time on, or that once only."""

    def __init__(self, call: str, nth: int, number: int, *, for_good: bool) -> None:
        self.n_calls = dict.fromkeys(CALLS, 0)
        self._fails = (call, nth, number, for_good)

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            self.n_calls[name] += 1
            call, nth, number, for_good = self._fails
            n_calls = self.n_calls[name]
            if name == call and (n_calls >= nth if for_good else n_calls == nth):
                raise OSError(number, os.strerror(number))
            return function(*arguments, **options)

        return count


@contextlib.contextmanager
def on(failing: FailingOS) -> Iterator[None]:
    """Write on a disk that fails."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing.counted(name, getattr(os, name)))
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> dict[str, Any]:
    return data_of(fill(tmp_path_factory.mktemp("whole") / "pages.h5", manifest, part=3))


def committed_rows(path: Path) -> set[str]:
    """Images whose features are on the disk; every file there must be whole."""
    files = [*part_paths(path), *([path] if path.exists() else [])]
    return {name for file in files for name in open_cache(file).paths}


def extract_on(failing: FailingOS, path: Path, manifest: Manifest, committed: set[str]) -> None:
    """Extract on a disk that fails; what was committed is added to `committed`."""
    with on(failing), open_writer(path, HEADER, manifest) as writer:
        for rows in (writer.pending[:3], writer.pending[3:]):
            commit(writer, manifest, rows)
            committed.update(manifest.paths[row] for row in rows)
        writer.finish()


def n_calls(path: Path, manifest: Manifest) -> dict[str, int]:
    """How often each call is made in an extraction in which none fails."""
    plain = FailingOS("none", 0, 0, for_good=False)
    extract_on(plain, path, manifest, set())
    return plain.n_calls


def assert_nothing_is_lost(
    path: Path, manifest: Manifest, expected: dict[str, Any], fault: tuple[str, int, int, bool]
) -> None:
    call, nth, number, for_good = fault
    committed: set[str] = set()
    with pytest.raises(StorageError) as caught:
        extract_on(FailingOS(call, nth, number, for_good=for_good), path, manifest, committed)
    assert CAUSES[number] in str(caught.value), fault
    assert str(path.parent) in str(caught.value), fault
    assert committed <= committed_rows(path), fault
    assert not list(path.parent.rglob(f"*{writer_module.ASIDE}")), fault
    assert data_of(fill(path, manifest, part=3)) == expected, fault
    assert [file.name for file in path.parent.iterdir()] == [path.name], fault


@pytest.fixture
def fresh_paths(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    count = iter(range(100_000))
    return lambda: tmp_path / str(next(count)) / "pages.h5"


def test_a_disk_that_fails_loses_nothing(manifest, expected, fresh_paths):
    counts = n_calls(fresh_paths(), manifest)
    assert counts["write"] > 60
    assert counts["fsync"] >= 6
    assert counts["replace"] == 3
    assert counts["mkdir"] == 2
    picked = random.Random(0)
    for call, count in counts.items():
        for nth in picked.sample(range(1, count + 1), min(count, 4)):
            fault = (call, nth, picked.choice(list(CAUSES)), picked.random() < 0.5)
            assert_nothing_is_lost(fresh_paths(), manifest, expected, fault)


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("number", CAUSES, ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_loses_nothing(
    manifest, expected, fresh_paths, number, for_good
):
    counts = n_calls(fresh_paths(), manifest)
    for call, count in counts.items():
        for nth in range(1, count + 1):
            path = fresh_paths()
            assert_nothing_is_lost(path, manifest, expected, (call, nth, number, for_good))
            shutil.rmtree(path.parent)
    print(f"{sum(counts.values())} faults: {counts}")


def test_an_assembly_that_fails_says_that_the_work_is_kept(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    with open_writer(path, HEADER, manifest) as writer:
        commit(writer, manifest, writer.pending)
        full = FailingOS("write", 1, errno.ENOSPC, for_good=True)
        with on(full), pytest.raises(StorageError) as caught:
            writer.finish()
    assert str(caught.value) == (
        f"{storage_error(OSError(errno.ENOSPC, ''), 'writing', path)}. All computed features are "
        f"kept in {path}.parts: then run the same command again."
    )


def test_an_export_that_fails_leaves_no_half_of_a_file(manifest, tmp_path):
    cache = fill(tmp_path / "pages.h5", manifest)
    for nth in range(1, 20):
        full = FailingOS("write", nth, errno.ENOSPC, for_good=True)
        with on(full), pytest.raises(StorageError, match="the disk is full"):
            export_cache(cache.path, tmp_path / "pages.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["pages.h5"]


def extract_within(limit_bytes: int, path: Path, root: Path, log: Path) -> None:
    """Extract where no file may be larger than `limit_bytes`; exits with 1 when it can't."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        extract_in_process(path, root, log, part=8)
    except StorageError as error:
        log.with_suffix(".cause").write_text(str(error))
        raise SystemExit(1) from None


@pytest.mark.parametrize("n_limits", [4, pytest.param(20, marks=pytest.mark.slow)], ids=["4", "20"])
def test_a_limit_on_the_size_of_files_is_named_and_loses_nothing(tmp_path, n_limits):
    manifest = make_manifest(tmp_path / "images")
    whole = fill(tmp_path / "whole.h5", manifest)
    size = whole.path.stat().st_size
    part_size = 1000 + (size - 1000) // 2
    outcomes = []
    for limit in np.linspace(part_size, size + 1000, n_limits).astype(int).tolist():
        path, log = tmp_path / str(limit) / "pages.h5", tmp_path / f"{limit}.log"
        log.touch()
        arguments = (limit, path, tmp_path / "images", log)
        process = PROCESSES.Process(target=extract_within, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode in (0, 1)
        outcomes.append(process.exitcode)
        if process.exitcode:
            cause = log.with_suffix(".cause").read_text()
            assert "would be larger than this system allows" in cause
        assert set(log.read_text().split()) <= committed_rows(path)
        assert data_of(fill(path, manifest)) == data_of(whole)
    assert outcomes[0] == 1
    assert outcomes[-1] == 0
    assert set(outcomes) == {0, 1}


@pytest.mark.parametrize("n_sizes", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["3", "20"])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path, small_disk, n_sizes):
    manifest = make_manifest(tmp_path / "images")
    whole = fill(tmp_path / "whole.h5", manifest)
    causes: list[str] = []
    for n_kib in np.linspace(8, 120, n_sizes).astype(int).tolist():
        path = small_disk(n_kib) / "pages.h5"
        committed: set[str] = set()
        try:
            with open_writer(path, HEADER, manifest) as writer:
                for start in range(0, 24, 8):
                    rows = np.arange(start, start + 8)
                    commit(writer, manifest, rows)
                    committed.update(manifest.paths[row] for row in rows)
                writer.finish()
        except StorageError as error:
            causes.append(str(error))
        assert committed <= committed_rows(path)
        subprocess.run(["mount", "-o", "remount,size=4m", str(path.parent)], check=True)
        assert data_of(fill(path, manifest)) == data_of(whole)
    assert 0 < len(causes) < n_sizes
    assert all("the disk is full" in cause for cause in causes)
