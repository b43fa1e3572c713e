from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ecgfeat.backbones.extractor as trunk_module
import ecgfeat.extraction as extraction_module
from ecgfeat.backbones import Backbone
from ecgfeat.backbones.extractor import Engine
from ecgfeat.config import (
    RECIPES,
    ComputeSettings,
    DataSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    as_json,
)
from ecgfeat.errors import (
    CacheError,
    CacheMismatchError,
    ConfigError,
    DataError,
    DeviceError,
    Interrupted,
    WeightsError,
)
from ecgfeat.extraction import Extraction, check_pages, extract, shard_of
from ecgfeat.feature_cache import FeatureCache, open_cache
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.runtime import Progress

from .conftest import draw_page

TAPS = ("layer1", "layer2", "layer3", "layer4")
FAST = {
    "page": PageSettings(crop_mode="center", size="64"),
    "network": NetworkSettings(weights="random"),
    "work": ExtractionSettings(batch_size=4, layers=",".join(TAPS)),
    "compute": ComputeSettings(precision="fp32", threads=2),
}


def run(manifest: Manifest, cache: Path, **changes: object) -> Extraction:
    return extract(manifest, cache=cache, **{**FAST, **changes})  # type: ignore[arg-type]


def assert_equal(one: FeatureCache, other: FeatureCache) -> None:
    assert one.paths == other.paths
    assert one.labels == other.labels
    np.testing.assert_array_equal(one.features(TAPS), other.features(TAPS))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction_module, "PART_ROWS", 8)


def stop_after(n_images: int):
    def report(progress: Progress) -> None:
        if progress.done >= n_images:
            raise Interrupted

    return report


def test_every_image_gets_its_features_in_the_order_of_the_manifest(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    done = run(manifest, tmp_path / "cache")
    cache = open_cache(done.cache)
    assert done.complete
    assert done.n_images == done.n_computed == len(manifest.paths)
    assert cache.paths == manifest.paths
    assert cache.features(["layer4"]).shape == (len(manifest.paths), 512)
    assert len(np.unique(cache.features(["layer4"]), axis=0)) > 1


def test_a_second_extraction_opens_no_image(tiny_pages, tmp_path, monkeypatch):
    manifest = read_manifest(tiny_pages(), DataSettings())
    first = run(manifest, tmp_path)
    content = first.cache.read_bytes()
    monkeypatch.setattr(extraction_module, "stream", None)
    monkeypatch.setattr(Backbone, "features", None)
    second = run(manifest, tmp_path)
    assert second.n_computed == 0
    assert second.n_images == first.n_images
    assert second.cache.read_bytes() == content


def test_an_interrupted_extraction_goes_on_and_ends_bit_identical(
    tiny_pages, tmp_path, small_parts
):
    manifest = read_manifest(tiny_pages(n_train=26, n_test=12), DataSettings())
    whole = run(manifest, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(manifest, tmp_path / "cut", report=stop_after(12))
    resumed = run(manifest, tmp_path / "cut")
    assert resumed.n_computed == len(manifest.paths) - 12
    assert_equal(open_cache(resumed.cache), open_cache(whole.cache))


def test_threads_change_no_bit(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    one, three = (
        open_cache(
            run(
                manifest, tmp_path / f"{n}", compute=ComputeSettings(precision="fp32", threads=n)
            ).cache
        )
        for n in (1, 3)
    )
    assert_equal(one, three)


def test_added_images_are_computed_alone_and_equal_a_fresh_cache(tiny_pages, tmp_path):
    root = tiny_pages()
    manifest = read_manifest(root, DataSettings())
    run(manifest, tmp_path / "grown")
    for label in "ab":
        draw_page(77).save(root / f"train/{label}/000-new.png")
    manifest = read_manifest(root, DataSettings())
    grown = run(manifest, tmp_path / "grown")
    fresh = run(manifest, tmp_path / "fresh")
    assert grown.n_computed == 2
    assert_equal(open_cache(grown.cache), open_cache(fresh.cache))


def test_a_changed_image_is_computed_again(tiny_pages, tmp_path):
    root = tiny_pages()
    run(read_manifest(root, DataSettings()), tmp_path)
    draw_page(99).save(root / "train/a/000.png")
    assert run(read_manifest(root, DataSettings()), tmp_path).n_computed == 1


def test_rehash_finds_a_change_that_kept_size_and_time(tiny_pages, tmp_path):
    root = tiny_pages(suffix=".jpg")
    image = root / "train/a/000.jpg"
    before = image.stat()
    run(read_manifest(root, DataSettings()), tmp_path)
    content = bytearray(image.read_bytes())
    other = bytearray((root / "train/b/001.jpg").read_bytes())
    # The same picture as another file, padded to the old length after its end marker.
    size = max(len(content), len(other))
    image.write_bytes(content + b"\0" * (size - len(content)))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    run(read_manifest(root, DataSettings()), tmp_path)
    image.write_bytes(other + b"\0" * (size - len(other)))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    manifest = read_manifest(root, DataSettings())
    assert run(manifest, tmp_path).n_computed == 0
    assert run(manifest, tmp_path, rehash=True).n_computed == 1


def test_an_undecodable_image_is_left_out_and_changes_no_other(tiny_pages, tmp_path):
    root = tiny_pages()
    whole = open_cache(run(read_manifest(root, DataSettings()), tmp_path / "whole").cache)
    broken = "train/a/002.png"
    (root / broken).write_bytes(b"no picture")
    done = run(read_manifest(root, DataSettings()), tmp_path / "less")
    less = open_cache(done.cache)
    kept = np.array([path != broken for path in whole.paths])
    assert done.quarantined == 1
    assert broken not in less.paths
    np.testing.assert_array_equal(less.features(TAPS), whole.features(TAPS)[kept])
    text = done.quarantine_csv.read_text()
    assert text.splitlines()[0] == "path,reason,n_bytes"
    assert broken in text


def test_missing_files_are_counted_by_class_and_listed(tiny_pages, tmp_path):
    data = tiny_pages(as_csv=True)
    (data.parent / "train/b/001.png").unlink()
    (data.parent / "test/a/000.png").unlink()
    done = run(read_manifest(data, DataSettings()), tmp_path / "cache")
    assert done.missing == 2
    assert done.missing_by_class == {"train/b": 1, "test/a": 1}
    assert "train/b/001.png,b,train" in done.missing_csv.read_text()
    assert any("2 listed images are missing" in line for line in done.summary())


def test_limit_leaves_the_whole_cache_alone(tiny_pages, tmp_path):
    pages = tiny_pages()
    manifest, few = read_manifest(pages), read_manifest(pages, DataSettings(limit=5))
    whole = run(manifest, tmp_path)
    some = run(few, tmp_path)
    assert some.n_images == 5
    assert some.cache != whole.cache
    with pytest.raises(ConfigError, match=r"^--limit 5 would cut .*, which holds 7 images more"):
        run(few, whole.cache)
    assert len(open_cache(whole.cache).paths) == len(manifest.paths)
    assert run(few, tmp_path / "new.h5").n_images == 5


def test_auto_precision_of_a_begun_cache_is_the_header_s(tiny_pages, tmp_path, monkeypatch):
    manifest = read_manifest(tiny_pages(), DataSettings())
    auto = ComputeSettings(threads=2)
    monkeypatch.setattr("ecgfeat.runtime._bfloat16_speedup", lambda device: 0.5)
    assert run(manifest, tmp_path, compute=auto).precision == "fp32"
    monkeypatch.setattr("ecgfeat.runtime._bfloat16_speedup", lambda device: 3.0)
    again = run(manifest, tmp_path, compute=auto)
    assert again.precision == "fp32"
    assert again.n_computed == 0


BF16 = ComputeSettings(precision="bf16", threads=2)


def test_lower_precisions_are_given_torchs_resize_and_float32_pillows(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    exact = open_cache(run(manifest, tmp_path).cache).header
    fast = open_cache(run(manifest, tmp_path, compute=BF16).cache).header
    assert (exact.precision, exact.resampling) == ("fp32", "pillow-bilinear")
    assert (fast.precision, fast.resampling) == ("bf16", "torch-bilinear")


def test_a_cache_goes_on_with_the_resize_that_it_was_begun_with(tiny_pages, tmp_path, monkeypatch):
    monkeypatch.setattr(
        extraction_module, "FAST_RESAMPLING", "pillow-bilinear"
    )  # as versions before had it
    root = tiny_pages()
    begun = run(read_manifest(root, DataSettings()), tmp_path, compute=BF16)
    monkeypatch.undo()
    draw_page(77).save(root / "train/a/new.png")
    grown = run(read_manifest(root, DataSettings()), tmp_path, compute=BF16)
    assert grown.cache == begun.cache
    assert grown.n_computed == 1
    assert open_cache(grown.cache).header.resampling == "pillow-bilinear"


def test_a_precision_that_the_data_s_own_pages_disprove_gives_way_to_float32(
    tiny_pages, tmp_path, monkeypatch
):
    manifest = read_manifest(tiny_pages(), DataSettings())

    def far_off(manifest, page, preprocessing):
        found = check_pages(manifest, page, preprocessing)
        assert len(found.given) == 3
        return replace(found, given=255 - found.given)

    monkeypatch.setattr(extraction_module, "check_pages", far_off)
    done = run(manifest, tmp_path, compute=BF16)
    header = open_cache(done.cache).header
    assert (header.precision, header.resampling) == ("fp32", "pillow-bilinear")
    assert done.precision == "fp32"
    assert done.precision_reason.startswith("bf16 failed the self-check: cosine ")
    assert done.precision_reason in done.summary()[1]


def test_a_cache_begun_in_a_precision_that_now_fails_is_not_gone_on_with(
    tiny_pages, tmp_path, monkeypatch
):
    root = tiny_pages()
    begun = run(read_manifest(root, DataSettings()), tmp_path, compute=BF16)
    draw_page(77).save(root / "train/a/new.png")
    monkeypatch.setattr(
        extraction_module,
        "check_pages",
        lambda *given: replace(c := check_pages(*given), given=255 - c.given),
    )
    with pytest.raises(DeviceError) as caught:
        run(read_manifest(root, DataSettings()), tmp_path, compute=BF16)
    start = f"{begun.cache} was begun in bf16, but here bf16 failed the self-check: cosine "
    assert str(caught.value).startswith(start)
    assert "Go on where it was begun, or give another file with --cache." in str(caught.value)


def test_where_no_page_can_be_decoded_synthetic_ones_are_checked(tiny_pages, tmp_path):
    root = tiny_pages()
    for path in root.rglob("*.png"):
        path.write_bytes(b"no picture")
    manifest = read_manifest(root, DataSettings())
    with pytest.raises(DataError, match="none of the 12 images can be used"):
        run(manifest, tmp_path, compute=BF16)


@pytest.mark.isa
def test_bfloat16_and_torchs_resize_keep_threads_shards_and_stops_to_the_bit(
    tiny_pages, tmp_path, small_parts
):
    manifest = read_manifest(tiny_pages(n_train=18, n_test=6), DataSettings())
    whole = open_cache(run(manifest, tmp_path / "whole", compute=BF16).cache)
    assert whole.header.resampling == "torch-bilinear"
    with pytest.raises(Interrupted):
        run(manifest, tmp_path / "cut", compute=BF16, report=stop_after(12))
    cut = run(manifest, tmp_path / "cut", compute=replace(BF16, threads=5))
    for index in (1, 0):
        run(manifest, tmp_path / "shared", compute=BF16, shard=f"{index}/2")
    shared = run(manifest, tmp_path / "shared", compute=BF16)
    for other in (cut, shared):
        assert_equal(open_cache(other.cache), whole)


def test_a_device_out_of_memory_goes_on_in_smaller_batches_and_says_so(
    tiny_pages, tmp_path, monkeypatch
):
    manifest = read_manifest(tiny_pages(), DataSettings())
    whole = open_cache(run(manifest, tmp_path / "whole").cache)
    messages = []
    monkeypatch.setattr(Backbone, "_make_room", lambda self, size, _: halve(self, size))
    monkeypatch.setattr(Engine, "features", small_device(Engine.features, 2))
    run(manifest, tmp_path / "halved", report=lambda p: messages.append(p.message))
    (found,) = (tmp_path / "halved").glob("*.h5")
    np.testing.assert_allclose(
        open_cache(found).features(TAPS), whole.features(TAPS), rtol=1e-4, atol=1e-5
    )
    assert [message for message in messages if message] == [
        "out of memory: going on in batches of 2"
    ]


def halve(backbone: Backbone, size: int) -> None:
    backbone._largest_batch = size // 2


def small_device(plain, n_images: int):
    def features(engine, pixels):
        if len(pixels) == 4 and n_images < 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(engine, pixels)

    return features


def test_too_little_memory_for_decoding_is_told_with_the_mend(tiny_pages, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ecgfeat.images.formats.load", broken)
    with pytest.raises(DeviceError, match=r"too little memory to decode the images: .* --threads"):
        run(read_manifest(tiny_pages(), DataSettings()), tmp_path)


def test_a_file_with_other_settings_is_refused_by_name(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    file = tmp_path / "features.h5"
    run(manifest, file)
    with pytest.raises(CacheMismatchError) as caught:
        run(manifest, file, page=PageSettings(size="64", crop_mode="squash"))
    assert str(caught.value) == (
        f"{file} was computed with crop_mode 'center', but 'squash' is asked for. "
        "Ask for 'center', or give another file with --cache."
    )


GRIDS = "layer1-4x4,layer2-std-4x4,layer2-max"
GRID_WIDTHS = {"layer1-4x4": 1024, "layer2-max": 128, "layer2-std-4x4": 2048}


def with_taps(taps: str) -> ExtractionSettings:
    return ExtractionSettings(**{**as_json(FAST["work"]), "layers": taps})  # type: ignore[arg-type]


def named_file(taps: tuple[str, ...], **page: str) -> str:
    page = {"crop_mode": "center", "size": "224", **page}
    settings = PageSettings(**page), NetworkSettings(), ComputeSettings()
    return extraction_module.cache_file(Path("cache"), "pages", *settings, taps).name


def test_caches_of_the_default_taps_keep_the_names_that_they_always_had():
    assert named_file(TAPS) == "pages-resnet18-b2dd1d5e.h5"
    assert named_file(TAPS[::-1]) == "pages-resnet18-b2dd1d5e.h5"
    pages, network, compute = (
        PageSettings(crop_mode="squash", size="448x320"),
        NetworkSettings(arch="resnet50"),
        ComputeSettings(precision="fp32"),
    )
    file = extraction_module.cache_file(Path("cache"), "pages", pages, network, compute)
    assert file == Path("cache/pages-resnet50-96ae6c16.h5")


def test_other_taps_have_another_name_whatever_their_order():
    names = {named_file(taps) for taps in (TAPS, TAPS[:3], ("layer4",), ("layer4-4x4",))}
    assert len(names) == 4
    assert named_file(("layer4", "layer1-max")) == named_file(("layer1-max", "layer4"))


def test_the_taps_asked_for_are_cached_each_with_its_width(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    done = run(manifest, tmp_path, work=with_taps(GRIDS))
    plain = open_cache(run(manifest, tmp_path).cache)
    cache = open_cache(done.cache)
    assert cache.path != plain.path
    assert dict(cache.header.taps) == GRID_WIDTHS
    # 64 pixels make a map of 16×16, which 4 divides.
    cells = cache.features("layer1-4x4").reshape(len(cache), 16, 64)
    np.testing.assert_allclose(cells.mean(axis=1), plain.features("layer1"), atol=1e-5)


def test_a_cache_of_other_taps_is_refused_by_name(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    file = tmp_path / "features.h5"
    run(manifest, file)
    with pytest.raises(CacheMismatchError) as caught:
        run(manifest, file, work=with_taps("layer4,layer1-4x4"))
    assert str(caught.value) == (
        f"{file} was computed with taps 'layer1,layer2,layer3,layer4', but 'layer1-4x4,layer4' "
        "is asked for. Ask for 'layer1,layer2,layer3,layer4', or give another file with --cache."
    )


def test_taps_in_another_order_are_the_same_cache(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages(), DataSettings())
    first = run(manifest, tmp_path, work=with_taps("layer2,layer1-max"))
    content = first.cache.read_bytes()
    again = run(manifest, tmp_path, work=with_taps("layer1-max, layer2"))
    assert (again.cache, again.n_computed) == (first.cache, 0)
    assert again.cache.read_bytes() == content


def test_an_extraction_of_early_layers_keeps_and_computes_no_later_one(
    tiny_pages, tmp_path, monkeypatch
):
    manifest = read_manifest(tiny_pages(), DataSettings())
    expected = open_cache(run(manifest, tmp_path / "all").cache)
    fold = trunk_module.fuse_conv_bn_eval

    def refusing(convolution, norm):
        if convolution.out_channels > 128:  # those of layer3 and layer4, in a ResNet-18
            raise AssertionError("a later layer was built")
        return fold(convolution, norm)

    monkeypatch.setattr(trunk_module, "fuse_conv_bn_eval", refusing)
    with pytest.raises(AssertionError, match="a later layer was built"):
        run(manifest, tmp_path / "none", work=with_taps("layer1,layer3"))
    done = run(manifest, tmp_path / "early", work=with_taps("layer1,layer2"))
    found = open_cache(done.cache)
    assert set(found.header.taps) == {"layer1", "layer2"}
    early = ("layer1", "layer2")
    np.testing.assert_array_equal(found.features(early), expected.features(early))


def test_taps_by_region_keep_threads_shards_and_stops_to_the_bit(tiny_pages, tmp_path, small_parts):
    manifest = read_manifest(tiny_pages(n_train=18, n_test=6), DataSettings())
    asked = {"work": with_taps(GRIDS), "compute": BF16}
    whole = open_cache(run(manifest, tmp_path / "whole", **asked).cache)
    assert whole.header.precision == "bf16"
    with pytest.raises(Interrupted):
        run(manifest, tmp_path / "cut", **asked, report=stop_after(12))
    cut = run(manifest, tmp_path / "cut", **{**asked, "compute": replace(BF16, threads=5)})
    for index in (1, 0):
        run(manifest, tmp_path / "shared", **asked, shard=f"{index}/2")
    for other in (cut, run(manifest, tmp_path / "shared", **asked)):
        cache = open_cache(other.cache)
        assert cache.paths == whole.paths
        taps = tuple(GRID_WIDTHS)
        np.testing.assert_array_equal(cache.features(taps), whole.features(taps))


def test_the_recipe_s_name_goes_with_the_cache_and_decides_nothing(tiny_pages, tmp_path):
    root = tiny_pages()
    manifest = read_manifest(root, DataSettings())
    named = run(manifest, tmp_path)
    assert open_cache(named.cache).header.recipe == "ecg"  # the default, as the command's
    again = run(manifest, tmp_path, recipe="quick")
    assert again.n_computed == 0
    assert open_cache(again.cache).header.recipe == "ecg"
    draw_page(77).save(root / "train/a/new.png")
    grown = run(read_manifest(root, DataSettings()), tmp_path)
    assert (grown.cache, grown.n_computed) == (named.cache, 1)
    assert open_cache(grown.cache).header.recipe == "ecg"


def test_the_library_takes_the_recipe_s_page_and_layers(tiny_pages, tmp_path):
    plain = NetworkSettings(weights="random")
    for name in ("quick", "paper"):
        done = extract(tiny_pages(n_train=2, n_test=2), cache=tmp_path, network=plain, recipe=name)
        header, recipe = open_cache(done.cache).header, RECIPES[name]
        assert (header.crop_mode, header.size) == (recipe.page.crop_mode, recipe.page.size)
        assert list(header.taps) == recipe.extraction.layers.split(",")


def nan_features(monkeypatch: pytest.MonkeyPatch, of_image: int | None) -> None:
    """Spoil one image's features, or all of them."""
    plain = extraction_module._finished
    seen = 0

    def finished(batch, pending):
        nonlocal seen
        batch, features = plain(batch, pending)
        values = {tap: found.copy() for tap, found in features.items()}
        if of_image is None:
            values["layer4"][:] = np.nan
        elif seen <= of_image < seen + len(batch.rows):
            values["layer2"][of_image - seen, 3] = np.inf
        seen += len(batch.rows)
        return batch, values

    monkeypatch.setattr(extraction_module, "_finished", finished)


def test_an_image_with_features_that_are_not_finite_is_quarantined(
    tiny_pages, tmp_path, monkeypatch
):
    manifest = read_manifest(tiny_pages(), DataSettings())
    nan_features(monkeypatch, of_image=5)
    done = run(manifest, tmp_path)
    cache = open_cache(done.cache)
    assert manifest.paths[5] not in cache.paths
    assert np.isfinite(cache.features(TAPS)).all()
    assert f"{manifest.paths[5]},features that are NaN or infinite" in (
        done.quarantine_csv.read_text()
    )


def test_a_network_whose_features_are_never_finite_stops_the_run(tiny_pages, tmp_path, monkeypatch):
    manifest = read_manifest(tiny_pages(), DataSettings())
    nan_features(monkeypatch, of_image=None)
    with pytest.raises(WeightsError, match="for all of the first 12 images"):
        run(manifest, tmp_path)


def test_shards_and_a_plain_extraction_equal_a_single_one(tiny_pages, tmp_path, small_parts):
    manifest = read_manifest(tiny_pages(n_train=26, n_test=12), DataSettings())
    single = run(manifest, tmp_path / "single")
    for index in (2, 0, 1):
        part = run(manifest, tmp_path / "shared", shard=f"{index}/3")
        assert not part.complete
        assert any("a plain extract puts" in line for line in part.summary())
    together = run(manifest, tmp_path / "shared")
    assert together.n_computed == 0
    assert_equal(open_cache(together.cache), open_cache(single.cache))


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("", {}, None),
        ("1/4", {"RANK": "3", "WORLD_SIZE": "8"}, (1, 4)),
        ("", {"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ("", {"RANK": "0", "WORLD_SIZE": "1"}, None),
        ("", {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ("", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
    ],
)
def test_a_shard_is_named_or_taken_from_the_launcher(text, environment, expected):
    assert shard_of(text, environment) == expected


@pytest.mark.parametrize("text", ["4/4", "a/b", "1", "-1/3", "1/0"])
def test_an_impossible_shard_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        shard_of(text, {})
    assert str(caught.value) == (
        f"--shard must be I/N with I from 0 to N-1, such as 0/4; found {text!r}"
    )


# Whose cache it is


def test_two_data_sets_in_folders_of_one_name_have_a_cache_each(tiny_pages, tmp_path):
    caches = []
    for place in ("here", "there"):
        data = tiny_pages().rename(tmp_path / place)
        (tmp_path / f"of-{place}").mkdir()
        data = data.rename(tmp_path / f"of-{place}" / "pages")
        caches.append(run(read_manifest(data), tmp_path / "cache").cache)
    assert len(set(caches)) == 2
    assert all(len(open_cache(cache)) for cache in caches)


def test_a_cache_from_before_names_told_the_place_is_gone_on_with(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages())
    done = run(manifest, tmp_path / "cache")
    settings = FAST["page"], FAST["network"], FAST["compute"], FAST["work"].taps
    before = extraction_module.cache_file(tmp_path / "cache", manifest.name, *settings)
    assert done.cache != before
    done.cache.rename(before)
    again = run(manifest, tmp_path / "cache")
    assert (again.cache, again.n_computed) == (before, 0)


@pytest.mark.usefixtures("small_parts")
def test_a_cache_begun_before_names_told_the_place_is_gone_on_with(tiny_pages, tmp_path):
    manifest = read_manifest(tiny_pages())
    with pytest.raises(Interrupted):
        run(manifest, tmp_path / "cache", report=stop_after(8))
    (parts,) = (tmp_path / "cache").glob("*.parts")
    settings = FAST["page"], FAST["network"], FAST["compute"], FAST["work"].taps
    before = extraction_module.cache_file(tmp_path / "cache", manifest.name, *settings)
    parts.rename(before.with_name(f"{before.name}.parts"))
    done = run(manifest, tmp_path / "cache")
    assert done.cache == before
    assert done.n_computed < len(manifest)


def test_another_data_set_s_cache_is_refused_by_name(tiny_pages, tmp_path):
    first = run(read_manifest(tiny_pages()), tmp_path / "pages.h5")
    other = tmp_path / "other"
    for number, label in enumerate("abab"):
        (other / label).mkdir(parents=True, exist_ok=True)
        draw_page(number).save(other / label / f"new-{number}.png")
    content = first.cache.read_bytes()
    with pytest.raises(CacheError, match="holds the features of other data: none of its images"):
        run(read_manifest(other), first.cache)
    assert first.cache.read_bytes() == content


def test_images_that_are_no_longer_listed_or_have_changed_are_counted_and_said(
    tiny_pages, tmp_path
):
    pages = tiny_pages()
    n_images = len(read_manifest(pages))
    run(read_manifest(pages), tmp_path / "pages.h5")
    (pages / "train/a/000.png").unlink()
    draw_page(77).save(pages / "train/a/002.png")
    said = []
    done = run(
        read_manifest(pages), tmp_path / "pages.h5", report=lambda progress: said.append(progress)
    )
    messages = [progress.message for progress in said]
    assert "1 images of pages.h5 are no longer listed: left out of it" in messages
    assert "1 images of pages.h5 have changed: computed again" in messages
    assert (done.n_images, done.n_computed) == (n_images - 1, 1)


def test_a_cache_inside_the_tree_that_it_is_of_is_refused(tiny_pages):
    pages = tiny_pages()
    with pytest.raises(ConfigError, match=r"--cache .* lies inside the data .* a place outside"):
        run(read_manifest(pages), pages / "cache")
    assert not (pages / "cache").exists()


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("", {"WORLD_SIZE": "", "RANK": ""}, None),
        ("", {"WORLD_SIZE": "1", "RANK": "0"}, None),
        ("0/1", {"WORLD_SIZE": "4", "RANK": "1"}, None),
        ("1/3", {"WORLD_SIZE": "4", "RANK": "1"}, (1, 3)),
        ("", {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, (0, 4)),
    ],
)
def test_the_share_is_told_by_hand_or_by_the_environment(text, environment, share):
    assert extraction_module.shard_of(text, environment) == share


def test_a_share_that_the_environment_gives_is_said(tiny_pages, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    said = []
    done = run(
        read_manifest(tiny_pages()),
        tmp_path / "pages.h5",
        report=lambda progress: said.append(progress.message),
    )
    assert (
        "the environment (torchrun or srun) makes this share 1/2; --shard 0/1 takes all of it"
        in said
    )
    assert not done.complete


def test_an_image_that_is_another_file_while_it_is_read_is_computed_again(tiny_pages, tmp_path):
    pages = tiny_pages()
    manifest = read_manifest(pages)
    image, own = pages / "train/a/000.png", tmp_path / "own.png"
    shutil.copy2(image, own)
    draw_page(99).save(image)
    first = run(manifest, tmp_path / "pages.h5")
    assert first.quarantined == 1
    (left_out,) = open_cache(first.cache).quarantined
    assert left_out.reason == "it changed while others were read: run the same command again"
    shutil.copy2(own, image)  # put back with its own size and time
    again = run(read_manifest(pages), tmp_path / "pages.h5")
    assert (again.n_computed, again.quarantined) == (1, 0)
    assert_equal(open_cache(again.cache), open_cache(run(manifest, tmp_path / "whole.h5").cache))
