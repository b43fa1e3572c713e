"""What a person asks of a cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ecgfeat.errors import CacheError, ConfigError
from ecgfeat.feature_cache import (
    cache_info,
    export_cache,
    list_caches,
    open_cache,
    open_writer,
    verify_cache,
)
from ecgfeat.manifest import Manifest

from .fakes import HEADER, commit, fill, make_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path / "images")


def test_info_counts_images_by_split_and_class(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    fill(path, manifest, bad=[9, 10])
    info = cache_info(path)
    assert info.n_images == 22
    assert info.images == {"test/a": 4, "test/b": 3, "train/a": 7, "train/b": 8}
    assert info.quarantined == {"test/b": 1, "train/a": 1}
    assert info.missing == {"train/b": 1}
    assert info.n_bytes == path.stat().st_size
    assert info.extraction_s > 0
    assert info.versions["h5py"]
    assert json.loads(json.dumps(info.as_json()))["header"]["arch"] == "resnet18"


def test_the_time_of_extraction_adds_up_over_interruptions(manifest, tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("ecgfeat.feature_cache.writer.time.monotonic", lambda: float(next(clock)))
    path = tmp_path / "pages.h5"
    for rows in ([0, 1], [2]):
        with open_writer(path, HEADER, manifest) as writer:
            commit(writer, manifest, rows)
    parts = [open_cache(part) for part in sorted((tmp_path / "pages.h5.parts").iterdir())]
    spent = sum(part.extraction_s for part in parts)
    assert spent >= 20
    with open_writer(path, HEADER, manifest) as writer:
        commit(writer, manifest, writer.pending)
        whole = writer.finish()
    assert whole.extraction_s > spent


def test_caches_of_a_folder_are_listed_begun_ones_too(manifest, tmp_path):
    folder = tmp_path / "cache"
    fill(folder / "b.h5", manifest)
    with open_writer(folder / "a.h5", HEADER, manifest) as writer:
        commit(writer, manifest, [0])
    assert list_caches(folder) == [folder / "a.h5", folder / "b.h5"]
    assert list_caches(tmp_path / "none") == []


def test_verify_looks_at_parts_too(manifest, tmp_path):
    path = tmp_path / "pages.h5"
    fill(path, manifest)
    manifest.image_path(0).write_bytes(b"new")
    with open_writer(path, HEADER, make_manifest(manifest.root)) as writer:
        commit(writer, manifest, [0])
    assert cache_info(path).n_parts == 1
    assert verify_cache(path) == []
    part = tmp_path / "pages.h5.parts" / "part-000001.h5"
    part.write_bytes(part.read_bytes()[:-1])
    (finding,) = verify_cache(path)
    assert finding.startswith(f"{part} is damaged")
    path.unlink()
    assert len(verify_cache(path)) == 1


def test_verify_of_nothing_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="there is no cache"):
        verify_cache(tmp_path / "none.h5")


def test_export_writes_arrays_that_numpy_loads_without_pickle(manifest, tmp_path):
    cache = fill(tmp_path / "pages.h5", manifest)
    export_cache(cache.path, tmp_path / "new" / "pages.npz")
    with np.load(tmp_path / "new" / "pages.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"path", "label", "split", "group", "classes", "layer1", "layer4"}
        assert tuple(arrays["path"]) == cache.paths
        assert tuple(arrays["label"]) == cache.labels
        np.testing.assert_array_equal(arrays["layer4"], cache.features("layer4"))


def test_export_takes_only_the_layers_asked_for(manifest, tmp_path):
    cache = fill(tmp_path / "pages.h5", manifest)
    export_cache(cache.path, tmp_path / "pages.npz", ["layer4"])
    with np.load(tmp_path / "pages.npz") as arrays:
        assert "layer1" not in arrays
    with pytest.raises(ConfigError, match="'layer9'"):
        export_cache(cache.path, tmp_path / "other.npz", ["layer9"])
    assert not (tmp_path / "other.npz").exists()
