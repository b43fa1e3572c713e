"""What is computed is kept, what changed is computed again, and nothing stale is reused."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecgfeat.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheMismatchError,
    DataError,
    Interrupted,
)
from ecgfeat.feature_cache import Header, existing_header, open_cache, open_writer
from ecgfeat.feature_cache.writer import SHARD_ROWS, DataSet, write_cache
from ecgfeat.manifest import Manifest
from ecgfeat.runtime import Progress

from .fakes import (
    HEADER,
    TAPS,
    Failure,
    commit,
    data_of,
    drop,
    fake_features,
    fill,
    make_manifest,
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path / "images")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "pages.h5"


def pending(path: Path, manifest: Manifest, **options: object) -> list[int]:
    with open_writer(path, HEADER, manifest, **options) as writer:  # type: ignore[arg-type]
        return writer.pending.tolist()


def commit_some(
    path: Path, manifest: Manifest, *parts: list[int], bad: tuple[int, ...] = ()
) -> None:
    with open_writer(path, HEADER, manifest) as writer:
        for rows in parts:
            commit(writer, manifest, rows, bad)


def change(manifest: Manifest, row: int, content: bytes) -> None:
    """Other bytes of the same length, at the same time."""
    image = manifest.image_path(row)
    status = image.stat()
    assert len(content) == status.st_size
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_cache_holds_the_manifest_and_every_feature(path, manifest):
    cache = fill(path, manifest)
    assert cache.paths == manifest.paths
    assert cache.labels == manifest.labels
    assert cache.splits == manifest.splits
    assert cache.groups == manifest.groups
    assert cache.metadata == manifest.metadata
    assert cache.classes == manifest.classes
    assert cache.missing == {("b", "train"): 1}
    assert (cache.data_name, cache.data_digest) == (manifest.name, manifest.digest)
    assert cache.header == HEADER
    for tap, values in fake_features(manifest, range(len(manifest)), TAPS).items():
        np.testing.assert_array_equal(cache.features(tap), values)
    assert [file.name for file in path.parent.iterdir()] == ["pages.h5"]


def test_an_extraction_that_went_on_equals_one_that_never_stopped(path, manifest, tmp_path):
    whole = fill(tmp_path / "whole.h5", manifest, bad=[7])
    commit_some(path, manifest, [3, 4, 9])
    commit_some(path, manifest, [0, 23, 7], bad=(7,))
    assert existing_header(path) == HEADER
    assert pending(path, manifest) == [row for row in range(24) if row not in (0, 3, 4, 7, 9, 23)]
    assert data_of(fill(path, manifest, part=7)) == data_of(whole)


def test_a_finished_cache_is_not_written_again(path, manifest):
    fill(path, manifest, bad=[5])
    before = path.read_bytes(), path.stat().st_mtime_ns
    fill(path, manifest)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_added_image_alone_is_computed(path, manifest, tmp_path):
    fill(path, drop(manifest, [0, 11]))
    assert pending(path, manifest) == [0, 11]
    assert data_of(fill(path, manifest)) == data_of(fill(tmp_path / "fresh.h5", manifest))


def test_an_image_gone_from_the_manifest_is_left_out(path, manifest, tmp_path):
    fill(path, manifest)
    fewer = drop(manifest, [1, 2])
    assert pending(path, fewer) == []
    assert data_of(fill(path, fewer)) == data_of(fill(tmp_path / "fresh.h5", fewer))


def test_an_image_whose_bytes_changed_is_computed_again(path, manifest):
    before = fill(path, manifest).features("layer4")
    manifest.image_path(6).write_bytes(b"another page")
    manifest = make_manifest(manifest.root)
    assert pending(path, manifest) == [6]
    after = fill(path, manifest).features("layer4")
    changed = (after != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [6]


def test_rehash_finds_what_size_and_time_do_not_tell(path, manifest):
    fill(path, manifest)
    change(manifest, 6, b"page0006.PNG")
    os.utime(manifest.image_path(8))
    manifest = make_manifest(manifest.root)
    assert pending(path, manifest) == [8]
    assert pending(path, manifest, rehash=True) == [6]
    cache = fill(path, manifest, rehash=True)
    for tap, values in fake_features(manifest, range(24), TAPS).items():
        np.testing.assert_array_equal(cache.features(tap), values)
    assert pending(path, manifest) == []


def test_rehash_that_was_killed_keeps_what_it_computed(path, manifest):
    fill(path, manifest)
    change(manifest, 6, b"page0006.PNG")
    with open_writer(path, HEADER, manifest, rehash=True) as writer:
        commit(writer, manifest, writer.pending)
    cache = fill(path, manifest)
    expected = fake_features(manifest, [6], TAPS)["layer4"]
    np.testing.assert_array_equal(cache.features("layer4", np.array([6])), expected)


def test_rehash_reports_its_progress_and_can_be_interrupted(path, manifest):
    fill(path, manifest)

    def stop(progress: Progress) -> None:
        assert (progress.stage, progress.total) == ("comparing", 24)
        if progress.done == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        pending(path, manifest, rehash=True, report=stop)
    assert pending(path, manifest) == []


def test_rehash_does_not_wait_for_a_pipe(path, manifest):
    fill(path, manifest)
    manifest.image_path(2).unlink()
    os.mkfifo(manifest.image_path(2))
    assert pending(path, manifest, rehash=True) == [2]


def test_a_column_may_be_called_as_a_data_set_of_the_cache_is(path, manifest):
    names = ("classes", "digest", "path", "n_bytes", "features/layer4")
    named = replace(manifest, metadata=dict.fromkeys(names, manifest.metadata["age"]))
    assert fill(path, named).metadata == named.metadata


def test_labels_splits_groups_and_metadata_change_without_computing(path, manifest, tmp_path):
    fill(path, manifest)
    other = replace(
        manifest,
        labels=("c",) * 12 + ("d",) * 12,
        splits=("test",) * 8 + ("train",) * 16,
        groups=("patient",) * 24,
        metadata={"sex": ("f", "m") * 12},
    )
    assert pending(path, other) == []
    assert data_of(fill(path, other)) == data_of(fill(tmp_path / "fresh.h5", other))
    assert open_cache(path).classes == ("b", "c", "d")


def test_a_quarantined_image_is_tried_again_only_when_it_changed(path, manifest):
    fill(path, manifest, bad=[3, 4])
    assert pending(path, manifest) == []
    assert pending(path, manifest, rehash=True) == [3, 4]
    manifest.image_path(4).write_bytes(b"mended")
    manifest = make_manifest(manifest.root)
    assert pending(path, manifest) == [4]
    cache = fill(path, manifest)
    assert [item.path for item in cache.quarantined] == ["page0003.png"]
    assert [item.reason for item in cache.quarantined] == ["cut off"]
    assert len(cache) == 23


def test_an_image_that_could_not_be_read_for_now_is_tried_again_by_the_next_writer(
    path, manifest, tmp_path
):
    refused = Failure(4, "permission denied", passing=True)
    with open_writer(path, HEADER, manifest) as writer:
        commit(writer, manifest, [row for row in range(24) if row not in (3, 4)])
        none = fake_features(manifest, [], TAPS)
        failures = [Failure(3, "cut off"), refused]
        writer.commit(np.array([], np.int64), none, np.empty((0, 16), np.uint8), failures)
        assert writer.pending.tolist() == []
        cache = writer.finish()
    assert [item.reason for item in cache.quarantined] == ["cut off", "permission denied"]
    assert pending(path, manifest) == [4]
    content = path.read_bytes()
    with open_writer(path, HEADER, manifest) as writer:
        writer.commit(np.array([], np.int64), none, np.empty((0, 16), np.uint8), [refused])
        writer.finish()
    assert path.read_bytes() == content
    assert data_of(fill(path, manifest)) == data_of(fill(tmp_path / "all.h5", manifest, bad=[3]))


def test_an_image_that_is_broken_now_loses_its_features(path, manifest):
    fill(path, manifest)
    manifest.image_path(4).write_bytes(b"bro")
    manifest = make_manifest(manifest.root)
    cache = fill(path, manifest, bad=[4])
    assert "page0004.png" not in cache.paths
    assert cache.quarantined[0].n_bytes == 3


@pytest.mark.parametrize("begun_only", [False, True], ids=["a cache", "a part"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arch", "resnet34"),
        ("crop_mode", "squash"),
        ("size", "448x320"),
        ("resampling", "bicubic"),
        ("mean", (0.0, 0.0, 0.0)),
        ("std", (1.0, 1.0, 1.0)),
        ("decoder", "pillow 14.0.0"),
        ("device", "cuda"),
        ("precision", "bf16"),
    ],
)
def test_features_computed_another_way_are_refused(path, manifest, field, value, begun_only):
    if begun_only:
        commit_some(path, manifest, [1, 2])
    else:
        fill(path, manifest)
    with pytest.raises(CacheMismatchError) as caught:
        fill(path, manifest, header=replace(HEADER, **{field: value}))
    assert str(caught.value) == (
        f"{path} was computed with {field} {getattr(HEADER, field)!r}, but {value!r} is asked "
        f"for. Ask for {getattr(HEADER, field)!r}, or give another file with --cache."
    )


def test_other_weights_are_refused_whatever_they_are_called(path, manifest):
    fill(path, manifest)
    with pytest.raises(CacheMismatchError) as caught:
        fill(path, manifest, header=replace(HEADER, weights_digest="cd" * 32))
    assert "weights 'random (sha256 abababababab)', but 'random (sha256 cdcdcdcdcdcd)'" in str(
        caught.value
    )
    renamed = replace(HEADER, weights="same.pth")
    assert fill(path, manifest, header=renamed).header.weights == "same.pth"


def test_other_taps_are_refused(path, manifest):
    fill(path, manifest)
    other = replace(HEADER, taps={**TAPS, "layer4": 12})
    with pytest.raises(CacheMismatchError, match="taps 'layer1 6, layer4 10', but"):
        fill(path, manifest, header=other)


def test_taps_of_other_names_are_refused_in_the_words_of_the_option(path, manifest):
    fill(path, manifest)
    with pytest.raises(CacheMismatchError) as caught:
        fill(path, manifest, header=replace(HEADER, taps={"layer2-4x4": 6, "layer1": 6}))
    assert str(caught.value) == (
        f"{path} was computed with taps 'layer1,layer4', but 'layer1,layer2-4x4' is asked for. "
        "Ask for 'layer1,layer4', or give another file with --cache."
    )


def test_every_field_of_the_header_is_kept_and_compared_but_the_recipe(path, manifest):
    header = replace(HEADER, recipe="ecg")
    fill(path, manifest, header=header)
    assert vars(open_cache(path).header) == vars(header)
    HEADER.require(replace(HEADER, recipe="ecg", weights="of another name"), path)
    for field in Header.__dataclass_fields__.keys() - {"recipe", "weights"}:
        other = {"layer1": 6} if field == "taps" else "another"
        with pytest.raises(CacheMismatchError) as caught:
            HEADER.require(replace(HEADER, **{field: other}), path)
        assert caught.value.field == field.removesuffix("_digest")


def test_another_recipe_of_the_same_options_takes_the_name_over(path, manifest):
    before = data_of(fill(path, manifest))
    assert open_cache(path).header.recipe == ""
    named = replace(HEADER, recipe="ecg")
    with open_writer(path, named, manifest) as writer:
        assert not len(writer.pending)
        cache = writer.finish()
    assert cache.header == named
    assert data_of(cache) == before


def test_a_part_of_another_recipe_is_gone_on_with(path, manifest):
    commit_some(path, manifest, [1, 2])
    assert fill(path, manifest, header=replace(HEADER, recipe="ecg")).header.recipe == "ecg"


def test_a_cache_of_other_data_is_refused(path, manifest, tmp_path):
    fill(path, manifest)
    other = make_manifest(tmp_path / "others")
    other = replace(other, name="others", paths=tuple(f"x/{name}" for name in other.paths))
    with pytest.raises(CacheMismatchError) as caught:
        pending(path, other)
    assert "with data 'pages (page0000.png, …)', but 'others (x/page0000.png, …)'" in str(
        caught.value
    )


def test_another_format_version_is_refused_with_both_versions(path, manifest):
    fill(path, manifest)
    path.write_bytes(path.read_bytes().replace(b"format 1\n", b"format 2\n", 1))
    with pytest.raises(CacheFormatError) as caught:
        pending(path, manifest)
    assert str(caught.value) == (
        f"{path} is written in format version 2, but this ecgfeat reads version 1. Install the "
        "ecgfeat that wrote it, or extract to another file with --cache."
    )


def test_a_damaged_part_is_refused_and_left_as_it_is(path, manifest):
    commit_some(path, manifest, [1, 2], [3, 4])
    part = path.parent / "pages.h5.parts" / "part-000002.h5"
    content = bytearray(part.read_bytes())
    content[-10] ^= 1
    part.write_bytes(content)
    with pytest.raises(CacheDamagedError, match=re.escape(str(part))):
        pending(path, manifest)
    assert part.read_bytes() == content
    part.unlink()
    assert pending(path, manifest)[:3] == [0, 3, 4]


def test_a_part_damaged_between_is_found_when_the_cache_is_put_together(path, manifest):
    with open_writer(path, HEADER, manifest) as writer:
        commit(writer, manifest, writer.pending)
        part = path.parent / "pages.h5.parts" / "part-000001.h5"
        content = bytearray(part.read_bytes())
        content[-10] ^= 1
        part.write_bytes(content)
        with pytest.raises(CacheDamagedError):
            writer.finish()
    assert not path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_never_enter(path, manifest, value):
    with open_writer(path, HEADER, manifest) as writer:
        features = fake_features(manifest, [0, 1], TAPS)
        features["layer1"][1, 2] = value
        with pytest.raises(CacheError) as caught:
            writer.commit(np.array([0, 1]), features, np.zeros((2, 16), np.uint8))
    assert str(caught.value) == "the features layer1 of page0001.png aren't finite: not kept"
    assert pending(path, manifest) == list(range(24))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda part: part.update(rows=np.array([0, 0])),
        lambda part: part.update(rows=np.array([2, 3])),
        lambda part: part["features"].pop("layer1"),
        lambda part: part.update(digests=np.zeros((2, 15), np.uint8)),
    ],
    ids=["twice", "not pending", "a layer short", "short digests"],
)
def test_a_part_that_does_not_fit_is_refused(path, manifest, spoil: Callable[[dict], None]):
    commit_some(path, manifest, [2, 3])
    part = {
        "rows": np.array([0, 1]),
        "features": fake_features(manifest, [0, 1], TAPS),
        "digests": np.zeros((2, 16), np.uint8),
    }
    spoil(part)
    with (
        open_writer(path, HEADER, manifest) as writer,
        pytest.raises(ValueError, match=r"a part's rows|features of shapes"),
    ):
        writer.commit(**part)


def test_an_unfinished_extraction_is_not_put_together(path, manifest):
    with open_writer(path, HEADER, manifest) as writer, pytest.raises(RuntimeError):
        writer.finish()


def test_no_usable_image_at_all_is_an_error_with_the_first_reason(path, manifest):
    with pytest.raises(DataError) as caught:
        fill(path, manifest, bad=range(24))
    assert str(caught.value) == (
        "none of the 24 images can be used; the first, page0000.png: cut off"
    )


def test_an_empty_commit_writes_nothing(path, manifest):
    commit_some(path, manifest, [])
    assert not (path.parent / "pages.h5.parts").exists()


def test_a_stranger_s_file_among_the_parts_stays(path, manifest):
    commit_some(path, manifest, [0])
    stranger = path.parent / "pages.h5.parts" / ".DS_Store"
    stranger.touch()
    fill(path, manifest)
    assert list(stranger.parent.iterdir()) == [stranger]


def test_a_link_s_target_is_what_is_written(path, manifest, tmp_path):
    target = tmp_path / "elsewhere" / "real.h5"
    target.parent.mkdir()
    path.parent.mkdir()
    path.symlink_to(target)
    fill(path, manifest)
    assert path.is_symlink()
    assert len(open_cache(target)) == 24


def test_texts_that_a_cache_cannot_hold_are_refused_before_any_work(path, manifest):
    def with_age(value: str) -> Manifest:
        ages = (*manifest.metadata["age"][:-1], value)
        return replace(manifest, metadata={"age": ages})

    with pytest.raises(DataError) as caught:
        pending(path, with_age("7" * 5000))
    assert str(caught.value) == (
        "the column 'age' of row 23 has 5000 bytes; a cache takes texts of up to 4096 bytes "
        f"without NUL. Shorten it or leave the column out: {'7' * 40!r}"
    )
    with pytest.raises(DataError, match="holds a NUL character"):
        pending(path, with_age("a\0"))
    with pytest.raises(DataError, match="isn't text"):
        pending(path, with_age("\ud800"))
    with pytest.raises(DataError, match="is too long: a cache takes 255 bytes"):
        pending(path, replace(manifest, metadata={"x" * 256: ("",) * 24}))
    many = {f"column {number}": ("",) * 24 for number in range(1025)}
    with pytest.raises(DataError, match="the data have 1025 metadata columns; a cache takes 1024"):
        pending(path, replace(manifest, metadata=many))
    assert not path.parent.exists()


@pytest.mark.slow
def test_the_most_columns_with_the_longest_names_can_be_read_again(path, manifest):
    many = {f"{number:04d}{'/' * 83}": ("",) * 24 for number in range(1024)}
    assert fill(path, replace(manifest, metadata=many), part=24).metadata == many


def test_any_name_of_a_file_or_column_is_kept(path, manifest):
    names = ("\udcff\udcfe.png", "Über/ä ö.png", "日本.png", " ", "a\nb.png")
    manifest = replace(
        manifest,
        paths=(*manifest.paths[:-5], *names),
        metadata=dict.fromkeys(("", ".", "..", "a/b", "100 %", "x\ny", "%2F", "日"), ("é",) * 24),
    )
    with open_writer(path, HEADER, manifest) as writer:
        rows = writer.pending
        features = {tap: np.ones((24, width), np.float32) for tap, width in TAPS.items()}
        writer.commit(rows, features, np.zeros((24, 16), np.uint8))
        cache = writer.finish()
    assert cache.paths == manifest.paths
    assert cache.metadata == manifest.metadata


def shard_manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path / "images", 2 * SHARD_ROWS + 20)


def test_shards_together_equal_a_single_process(path, tmp_path):
    manifest = shard_manifest(tmp_path)
    whole = fill(tmp_path / "whole.h5", manifest, part=50, bad=[70])
    dealt = []
    for index in (2, 0, 1):
        with open_writer(path, HEADER, manifest, shard=(index, 3)) as writer:
            rows = writer.pending
            dealt.extend(rows.tolist())
            for start in range(0, len(rows), 30):
                commit(writer, manifest, rows[start : start + 30], bad=[70])
        assert not path.exists()
    assert sorted(dealt) == list(range(len(manifest)))
    assert pending(path, manifest) == []
    assert data_of(fill(path, manifest)) == data_of(whole)


def test_a_shard_that_stopped_goes_on_where_it_was(path, tmp_path):
    manifest = shard_manifest(tmp_path)
    with open_writer(path, HEADER, manifest, shard=(1, 3)) as writer:
        rows = writer.pending
        commit(writer, manifest, rows[:10])
    assert pending(path, manifest, shard=(1, 3)) == rows[10:].tolist()
    assert pending(path, manifest, shard=(0, 3)) == list(range(SHARD_ROWS))


def test_a_plain_writer_computes_what_the_shards_left(path, tmp_path):
    manifest = shard_manifest(tmp_path)
    with open_writer(path, HEADER, manifest, shard=(0, 2)) as writer:
        commit(writer, manifest, writer.pending)
    assert pending(path, manifest) == list(range(SHARD_ROWS, 2 * SHARD_ROWS))
    assert data_of(fill(path, manifest)) == data_of(fill(tmp_path / "whole.h5", manifest))


def test_a_shard_does_not_put_the_cache_together(path, manifest):
    with open_writer(path, HEADER, manifest, shard=(1, 2)) as writer:
        assert writer.pending.size == 0
        with pytest.raises(RuntimeError):
            writer.finish()


def test_where_nothing_is_there_yet_there_is_no_header(path):
    assert existing_header(path) is None


def test_the_same_contents_are_the_same_bytes_whenever_they_are_written(tmp_path):
    contents = {"label": DataSet.of(np.array([b"a", b"b"]))}
    written = []
    for name in ("one.h5", "two.h5"):
        write_cache(tmp_path / name, {"format": "f"}, {}, contents)
        written.append((tmp_path / name).read_bytes())
        time.sleep(1.1)  # HDF5 tells whole seconds
    assert written[0] == written[1]
