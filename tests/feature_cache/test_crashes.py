"""A process that is killed at any moment costs at most the part under way."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from ecgfeat.feature_cache import open_cache, verify_cache
from ecgfeat.feature_cache.reader import part_paths

from .fakes import data_of, extract_in_process, fill, make_manifest
from .test_locking import PROCESSES


def known_rows(path: Path) -> list[str]:
    """Images with features in the cache or, where there is none yet, in its parts."""
    files = [path] if path.exists() else part_paths(path)
    return [name for file in files for name in open_cache(file).paths]


@pytest.mark.parametrize(
    "n_kills", [10, pytest.param(200, marks=pytest.mark.slow)], ids=["10", "200"]
)
def test_no_kill_loses_or_spoils_what_was_committed(tmp_path, n_kills):
    manifest = make_manifest(tmp_path / "images")
    expected = data_of(fill(tmp_path / "whole.h5", manifest))
    moments = random.Random(0)
    n_rounds = kills = 0
    while kills < n_kills:
        n_rounds += 1
        path, log = tmp_path / str(n_rounds) / "pages.h5", tmp_path / f"{n_rounds}.log"
        log.touch()
        while True:
            process = PROCESSES.Process(target=extract_in_process, args=(path, manifest.root, log))
            process.start()
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            kills += 1
            committed, known = log.read_text().split(), known_rows(path)
            assert set(committed) <= set(known)
            assert len(set(known)) == len(known)
            if known:
                assert verify_cache(path) == []
            if kills >= n_kills:
                break
        assert data_of(fill(path, manifest)) == expected
        assert sorted(file.name for file in path.parent.iterdir()) == ["pages.h5"]
    print(f"{kills} kills in {n_rounds} extractions")


def test_a_shard_that_was_killed_is_repeated(tmp_path):
    manifest = make_manifest(tmp_path / "images", 200)
    whole = fill(tmp_path / "whole.h5", manifest, part=64)
    path, log = tmp_path / "cache" / "pages.h5", tmp_path / "log"
    log.touch()

    def shard(index: int) -> object:
        arguments = (path, manifest.root, log, (index, 3), 8)
        return PROCESSES.Process(target=extract_in_process, args=arguments)

    processes = [shard(index) for index in range(3)]
    for process in processes:
        process.start()
    time.sleep(0.2)
    processes[1].kill()
    processes.append(shard(1))
    processes[1].join()
    processes[3].start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] in ([0, -9, 0, 0], [0, 0, 0, 0])
    names = [name for part in part_paths(path) for name in open_cache(part).paths]
    assert sorted(names) == sorted(manifest.paths)
    assert data_of(fill(path, manifest)) == data_of(whole)
