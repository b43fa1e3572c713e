"""Reading: what is asked for and no more, in any process, by any program."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ecgfeat.errors import (
    CacheError,
    CacheFormatError,
    ConfigError,
    DataError,
    StorageError,
)
from ecgfeat.feature_cache import FeatureCache, open_cache, open_writer
from ecgfeat.manifest import Manifest

from .fakes import HEADER, TAPS, commit, data_of, fake_features, fill, make_manifest
from .make_cache_v1 import CACHE_V1


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> FeatureCache:
    return fill(tmp_path_factory.mktemp("cache") / "pages.h5", manifest, bad=[9])


def test_features_come_in_the_order_asked_for(cache, manifest):
    kept = [row for row in range(24) if row != 9]
    expected = fake_features(manifest, kept, TAPS)
    rows = np.array([20, 3, 3, 0, 22])
    np.testing.assert_array_equal(
        cache.features(["layer4", "layer1"], rows),
        np.concatenate([expected["layer4"][rows], expected["layer1"][rows]], axis=1),
    )
    np.testing.assert_array_equal(cache.features("layer1"), expected["layer1"])
    assert cache.features(["layer4"], np.array([], np.int64)).shape == (0, 10)


def test_features_are_right_across_blocks(cache, monkeypatch):
    whole = cache.features("layer4")
    monkeypatch.setattr("ecgfeat.feature_cache.reader.BLOCK_BYTES", 100)
    np.testing.assert_array_equal(cache.features("layer4"), whole)
    rows = np.array([22, 0, 11, 10])
    np.testing.assert_array_equal(cache.features("layer4", rows), whole[rows])


def test_arrays_are_ready_for_scikit_learn(cache):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    X, y, groups = cache.arrays("train", ["layer1", "layer4"])
    rows = [row for row, split in enumerate(cache.splits) if split == "train"]
    assert X.shape == (len(rows), 16)
    assert [cache.classes[index] for index in y] == [cache.labels[row] for row in rows]
    named = {}
    for row, group in zip(rows, groups.tolist()):
        named.setdefault(cache.groups[row] or cache.paths[row], set()).add(group)
    assert all(len(numbers) == 1 for numbers in named.values())
    assert len(set(groups.tolist())) == len(named) < len(rows)
    predicted = cross_val_predict(LogisticRegression(), X, y, groups=groups, cv=GroupKFold(3))
    assert predicted.shape == y.shape


def test_a_split_without_rows_is_an_error(cache):
    with pytest.raises(DataError) as caught:
        cache.arrays("validation", "layer4")
    assert str(caught.value) == (
        f"the split 'validation' is empty; {cache.path} has test and train"
    )


def test_a_layer_that_is_not_there_is_an_error_that_lists_those_that_are(cache):
    with pytest.raises(ConfigError) as caught:
        cache.features(["layer4", "layer5"])
    assert str(caught.value) == (f"--layers names 'layer5', but {cache.path} holds layer1, layer4")


@pytest.mark.parametrize("row", [-1, 23])
def test_a_row_that_is_not_there_is_an_error(cache, row):
    with pytest.raises(IndexError, match="rows must be from 0 to 22"):
        cache.features("layer4", np.array([0, row]))


def sum_of_features(cache: FeatureCache) -> float:
    return float(cache.features("layer4").sum())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_cache_goes_into_worker_processes(cache, method):
    assert len(pickle.dumps(cache)) < 1000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(sum_of_features, [cache, cache]) == [sum_of_features(cache)] * 2


def test_a_cache_that_was_written_anew_is_not_mixed_with_the_old_one(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    old = fill(path, manifest, bad=[1, 2])
    pickled = pickle.dumps(old)
    path.unlink()
    fill(path, manifest)
    with pytest.raises(CacheError) as caught:
        old.features("layer4")
    assert str(caught.value) == (
        f"{path} was written anew since it was opened. Open it again, or run the same command "
        "again."
    )
    with pytest.raises(CacheError, match="was written anew"):
        pickle.loads(pickled).features("layer4")


def test_reading_while_a_cache_is_written_is_never_blocked(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    fill(path, manifest, bad=[1])
    manifest.image_path(1).write_bytes(b"mended now")
    try:
        grown = make_manifest(manifest.root)
        with open_writer(path, HEADER, grown) as writer:
            before = open_cache(path)
            assert len(before) == 23
            commit(writer, grown, writer.pending)
            assert before.features("layer4").shape == (23, 10)
            assert len(writer.finish()) == 24
            assert len(open_cache(path)) == 24
    finally:
        manifest.image_path(1).write_bytes(b"page0001.png")


def test_a_cache_is_read_where_nothing_can_be_written(cache, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    copy = folder / "pages.h5"
    copy.write_bytes(cache.path.read_bytes())
    copy.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert data_of(open_cache(copy)) == data_of(cache)
        assert [file.name for file in folder.iterdir()] == ["pages.h5"]
    finally:
        folder.chmod(0o755)


def test_what_is_not_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheError) as caught:
        open_cache(tmp_path / "none.h5")
    assert str(caught.value) == (
        f"there is no cache {tmp_path / 'none.h5'}. Make one with `ecgfeat extract`."
    )
    with pytest.raises(CacheFormatError, match="isn't a file"):
        open_cache(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(CacheFormatError, match="isn't a file"):
        open_cache(tmp_path / "pipe.h5")
    for content in (b"", b"page", b"\x89HDF\r\n\x1a\n" + bytes(2000)):
        (tmp_path / "other.h5").write_bytes(content)
        with pytest.raises(CacheFormatError) as caught:
            open_cache(tmp_path / "other.h5")
        assert str(caught.value) == (
            f"{tmp_path / 'other.h5'} isn't a feature cache of ecgfeat, or its first bytes are "
            "damaged. Give a file that `ecgfeat extract` made."
        )


def test_a_cache_that_may_not_be_read_names_the_cause(cache, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=re.escape(f"reading {cache.path} failed: permission")):
        open_cache(cache.path)


def test_a_disk_that_fails_while_reading_is_named(cache, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ecgfeat.feature_cache.reader._read", fail)
    with pytest.raises(StorageError, match=re.escape(f"reading {cache.path} failed: the device")):
        cache.features("layer4")


def test_a_cache_that_is_not_put_together_says_how_to_go_on(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    with open_writer(path, HEADER, manifest) as writer:
        commit(writer, manifest, [0, 1])
        commit(writer, manifest, [2, 3])
    with pytest.raises(CacheError) as caught:
        open_cache(path)
    assert str(caught.value) == (
        f"{path} isn't put together yet: 2 parts of it are in {path}.parts. Run the same "
        "`ecgfeat extract` again to finish it."
    )


def test_plain_h5py_reads_a_cache_by_its_specification(cache, manifest):
    content = cache.path.read_bytes()
    lines = content[:512].decode(errors="replace").split("\n")
    assert lines[:2] == ["ecgfeat feature cache", "format 1"]
    size, digest = int(lines[2].split()[1]), lines[3].split()[1]
    block = content[:size].replace(digest.encode(), b"0" * 64, 1)
    assert hashlib.sha256(content[size:] + block).hexdigest() == digest
    with h5py.File(cache.path, "r", locking=False) as file:
        assert file.attrs["format"] == b"ecgfeat feature cache"
        assert file.attrs["format_version"] == 1
        assert file.attrs["arch"] == b"resnet18"
        assert tuple(file.attrs["mean"]) == HEADER.mean
        paths = [path.decode() for path in file["path"]]
        assert paths == [path for path in manifest.paths if path != "page0009.png"]
        assert set(file["split"][:].tolist()) == {b"train", b"test"}
        expected = fake_features(manifest, [0], TAPS)["layer4"][0]
        np.testing.assert_array_equal(file["features/layer4"][0], expected)
        assert file["quarantine/reason"][0] == b"cut off"
        assert file["missing/count"][0] == 1


def test_a_version_1_file_of_old_is_read_for_ever():
    cache = open_cache(CACHE_V1)
    assert cache.digest == "147fa16cae0da70ac5d67d8120107ae662637c02f37343f381c07ea7fd40510f"
    assert len(cache) == 11
    assert cache.header.arch == "resnet18"
    assert cache.header.size == "448x320"
    assert cache.header.taps == {"layer3": 4, "layer4": 8}
    assert cache.header.recipe == ""
    assert cache.paths[0] == "train/normal/Ä 0.png"
    assert cache.paths[10] == "test/\udcff.png"
    assert cache.classes == ("afib", "normal", "paced")
    assert cache.labels[:3] == ("normal", "afib", "normal")
    assert cache.splits == ("train",) * 8 + ("test",) * 3
    assert cache.groups[:4] == ("p0", "p0", "p1", "")
    assert cache.metadata["age/years"][:2] == ("40", "41")
    assert cache.missing == {("paced", "test"): 2}
    assert [(item.path, item.reason) for item in cache.quarantined] == [
        ("train/broken.png", "cut off: the file ends early")
    ]
    assert cache.listing.paths == (*cache.paths, "train/broken.png")
    assert cache.listing.has_features.tolist() == [True] * 11 + [False]
    expected = np.arange(11)[:, None] + np.arange(8) / 8
    np.testing.assert_array_equal(cache.features("layer4"), expected)
    X, y, groups = cache.arrays("test", ["layer3", "layer4"])
    assert X.shape == (3, 12)
    assert y.tolist() == [1, 1, 0]
    assert len(set(groups.tolist())) == 3


BIG = """
import resource, sys
import numpy as np
from ecgfeat.feature_cache import open_cache
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
cache = open_cache(sys.argv[1])
before = peak()
cache.features("layer4", np.arange(0, len(cache), 100))
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_is_proportional_to_what_is_asked_for(manifest, tmp_path):
    header = replace(HEADER, taps={"layer4": 2048})
    path = tmp_path / "big.h5"
    n_rows = 20_000
    big = replace(
        manifest,
        paths=tuple(f"{row}.png" for row in range(n_rows)),
        labels=("a", "b") * (n_rows // 2),
        splits=("train",) * n_rows,
        groups=("",) * n_rows,
        metadata={},
        n_bytes=(1,) * n_rows,
        mtime_ns=(1,) * n_rows,
    )
    with open_writer(path, header, big) as writer:
        values = {"layer4": np.ones((n_rows, 2048), np.float32)}
        writer.commit(writer.pending, values, np.zeros((n_rows, 16), np.uint8))
        writer.finish()
    assert path.stat().st_size > 160e6
    command = [sys.executable, "-c", BIG, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20
