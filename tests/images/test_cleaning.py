from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgfeat.attribution import explain, explanation_plot
from ecgfeat.config import (
    ExtractionSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
    SynthSettings,
)
from ecgfeat.contact_sheet import preview
from ecgfeat.errors import CacheMismatchError, ConfigError
from ecgfeat.extraction import extract
from ecgfeat.feature_cache import open_cache
from ecgfeat.finetuning import finetune
from ecgfeat.heads import fit_heads
from ecgfeat.images import decode, prepare, straightened
from ecgfeat.images.cleaning import find_sheet, inked
from ecgfeat.inference import predict
from ecgfeat.methods import commands_of
from ecgfeat.photograph import AMOUNTS, photograph
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing
from ecgfeat.synth import CLASSES, draw_page

from ..studies import FP32
from ..test_photograph import MARKS, marked_page, places

CLEANED = Preprocessing.from_settings(PageSettings(clean="photo"))
OPTIONS = {
    "network": NetworkSettings(weights="random:1"),
    "work": ExtractionSettings(layers="layer1,layer2", batch_size=4),
    "compute": FP32,
}
TINY = PageSettings(size="64x48", clean="photo")


def ecg(seed: int = 0, size: str = "700x500") -> Image.Image:
    return draw_page(CLASSES[seed % 2], seed=seed, settings=SynthSettings(size=size))


def photo(seed: int, strength: str = "2", page: Image.Image | None = None) -> Image.Image:
    return photograph(page or ecg(seed), AMOUNTS[strength], np.random.default_rng(seed))


def ink(page: np.ndarray) -> np.ndarray:
    dark = 255 - page[..., 0].astype(float)
    return dark - dark.mean()


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ink(one).ravel(), ink(other).ravel())[0, 1])


# Where the page is


@pytest.mark.parametrize("size", ["700x500", "1400x1000", "500x700"])
def test_on_a_scan_no_page_is_looked_for(size):
    for seed in range(12):
        assert find_sheet(ecg(seed, size)) is None


@given(st.integers(1, 90), st.integers(1, 900), st.integers(0, 255))
def test_pictures_of_any_size_and_tone_are_taken(width, height, tone):
    page = np.full((height, width, 3), tone, np.uint8)
    assert find_sheet(page) is None
    assert prepare(page, CLEANED).shape == (320, 448, 3)


def test_noise_does_no_harm():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    assert prepare(noise, CLEANED).shape == (320, 448, 3)


@pytest.mark.parametrize(("strength", "within"), [("1", 0.006), ("2", 0.012)])
def test_a_photographed_page_is_straightened(strength, within):
    flat = places(marked_page(640, 480)) / (640, 480)
    for seed in range(15):
        picture = photo(seed, strength, marked_page(640, 480))
        sheet = find_sheet(picture)
        found = sheet.straightened(picture, (640, 480))
        off = np.abs(places(Image.fromarray(found)) / (640, 480) - flat)
        assert off.max() < within, seed
        # About the size at which it was photographed.
        assert 0.6 < sheet.size_px[0] / 640 < 1.02
        assert 0.6 < sheet.size_px[1] / 480 < 1.02


def test_a_page_that_leaves_the_picture_on_one_side_ends_there():
    picture = photo(3)
    left = round(0.3 * picture.width)
    sheet = find_sheet(picture.crop((left, 0, *picture.size)))
    assert np.abs(sheet.x[:, 0]).max() < 0.01
    assert sheet.x[:, -1].max() < 0.995
    assert sheet.y[0].min() > 0.005


def test_a_page_of_another_shape_is_straightened_too():
    picture = photo(1, page=ecg(1, "500x700"))
    width, height = find_sheet(picture).size_px
    assert width / height == pytest.approx(5 / 7, abs=0.12)  # foreshortened


# What is on it


def lit(page: Image.Image, colour: tuple[float, float, float] = (1, 0.9, 0.7)) -> np.ndarray:
    """In coloured light that falls off to one side, with the edge of a shadow across."""
    array = np.asarray(page, float)
    light = np.linspace(1, 0.6, array.shape[1])[:, None] * np.array(colour)
    light[array.shape[1] // 3 : array.shape[1] // 2] *= 0.6
    return (array * light).astype(np.uint8)


def test_ink_is_the_same_in_any_light():
    page = ecg(0, "448x320")
    even, uneven = inked(np.asarray(page), has_rim=False), inked(lit(page), has_rim=False)
    assert likeness(even, uneven) > 0.97
    assert likeness(np.asarray(page), lit(page)) < 0.9


@pytest.mark.parametrize(
    "colour", [(226, 120, 120), (236, 160, 110), (130, 190, 140), (140, 170, 215)]
)
def test_a_grid_of_any_colour_goes_and_ink_stays(colour):
    page = np.full((320, 448, 3), 250, np.uint8)
    page[::8] = page[:, ::8] = colour
    page[155:158, 40:400] = (20, 20, 25)
    found = inked(page, has_rim=False)
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    assert found[156, 60:380].max() < 40
    away = np.ones((320, 448), bool)
    away[150:163, 35:405] = False
    assert found[away].min() > 240


def test_an_empty_page_stays_nearly_empty():
    noise = np.random.default_rng(0).normal(230, 3, (320, 448, 3)).astype(np.uint8)
    assert inked(noise, has_rim=False).mean() > 240


def test_what_may_be_table_is_made_white():
    page = np.full((100, 200, 3), 240, np.uint8)
    page[0] = page[:, 0] = 0
    page[50, 20:180] = 0
    assert (inked(page, has_rim=True)[:, 0] > 250).all()
    assert (inked(page, has_rim=False)[2:-2, 0] < 100).all()


@pytest.mark.parametrize("crop_mode", ["squash", "border", "center"])
def test_a_photograph_becomes_like_its_scan(crop_mode):
    settings = PageSettings(crop_mode=crop_mode, clean="photo")
    cleaned = Preprocessing.from_settings(settings)
    usual = Preprocessing.from_settings(replace(settings, clean="none"))
    gains = []
    for seed in range(6):
        scan, picture = np.asarray(ecg(seed)), np.asarray(photo(seed))
        before = likeness(prepare(scan, usual), prepare(picture, usual))
        after = likeness(prepare(scan, cleaned), prepare(picture, cleaned))
        assert after > 0.35
        gains.append(after - before)
    assert np.mean(gains) > 0.3


def test_both_ways_of_resizing_are_cleaned_alike():
    fast = Preprocessing.from_settings(PageSettings(clean="photo"), resampling=FAST_RESAMPLING)
    scan = np.asarray(ecg())
    difference = np.abs(prepare(scan, fast).astype(int) - prepare(scan, CLEANED))
    assert difference.mean() < 2


def test_without_cleaning_a_page_is_not_straightened():
    picture = np.asarray(photo(0))
    assert straightened(picture, Preprocessing.from_settings(PageSettings())) is picture
    found = straightened(picture, CLEANED)
    assert found.shape[1] < picture.shape[1]
    assert find_sheet(found) is None or found.shape[1] > 0.6 * picture.shape[1]


# As an option


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """``photos/{train,test}/{a,b}/N.png``."""
    for split in ("train", "test"):
        for number, label in enumerate("ab"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                seed = 100 * (split == "test") + 2 * index + number
                photo(seed, "2", ecg(seed, "280x200")).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_cache_belongs_to_its_cleaning(photos: Path, tmp_path: Path) -> None:
    plain = replace(TINY, clean="none")
    usual = extract(photos, cache=tmp_path / "caches", page=plain, **OPTIONS).cache
    other = extract(photos, cache=tmp_path / "caches", page=TINY, **OPTIONS).cache
    assert usual != other
    assert open_cache(other).header.resampling == "pillow-bilinear+photo1"
    for path, asked, found in ((usual, "photo", "none"), (other, "none", "photo")):
        with pytest.raises(CacheMismatchError) as caught:
            extract(photos, cache=path, page=replace(TINY, clean=asked), **OPTIONS)
        assert str(caught.value) == (
            f"{path} was computed with clean {found!r}, but {asked!r} is asked for. Ask for "
            f"{found!r}, or give another file with --cache."
        )
    assert extract(photos, cache=other, page=TINY, **OPTIONS).n_computed == 0


def test_answers_maps_and_sheets_clean_as_the_run_did(photos: Path, tmp_path: Path) -> None:
    done = extract(photos, cache=tmp_path / "c.h5", page=TINY, **OPTIONS)
    n_found = sum(
        find_sheet(decode(photos / path)) is not None for path in open_cache(done.cache).paths
    )
    counted = (
        f"photographs: the page was found and straightened in {n_found} of 12"
        f"{'; the others were taken for scans' if n_found < 12 else ''}"
    )
    assert n_found > 6
    assert done.summary()[2] == counted
    cache, told = done.cache, []
    scan = photos / "train" / "a" / "9.png"
    ecg(50, "280x200").save(scan)
    again = extract(photos, cache=cache, page=TINY, **OPTIONS)
    assert again.summary()[2] == (
        "photographs: the page was found and straightened in 0 of 1; the others were taken for "
        "scans (of those computed now)"
    )
    scan.unlink()
    extract(photos, cache=cache, page=TINY, **OPTIONS)
    (head,) = fit_heads(
        open_cache(cache),
        kinds="linear",
        head=HeadSettings(layers="layer2", epochs=1),
        out_dir=tmp_path / "runs",
    )
    tuned = finetune(
        photos,
        network=NetworkSettings(weights="random:1"),
        page=TINY,
        compute=FP32,
        training=FinetuneSettings(epochs=1, batch_size=4),
        out_dir=tmp_path / "runs",
        report=lambda progress: told.append(progress.message),
    )
    found = [message for message in told if "straightened in" in message]
    assert [message.partition(",")[0] for message in found] == [
        "[Fine-Tuning] Of the training images",
        "[Fine-Tuning] Of the test images",
    ]
    assert all(" of 6" in message for message in found)
    for run in (head, tuned):
        images = [photos / path for path in run.predictions.ids]
        answers = predict(run, images, compute=FP32)
        expected = run.predictions.probabilities
        np.testing.assert_allclose(answers.probabilities, expected, atol=1e-5)
        (found,) = explain(run, images[:1], check=False).explanations
        assert max(found.page_px) < 280
        explanation_plot(found, tmp_path / "explained.png")
        assert any("--clean photo" in line for line in commands_of(run, None))
    shown = preview(photos, figure=tmp_path / "sheet.png", page=TINY)
    assert any(max(seen.page_px) < 280 for seen in shown.images)
    assert "--clean photo" in shown.summary()[-3]
    n_shown = sum(seen.is_straightened for seen in shown.images)
    assert f"straightened in {n_shown} of 6" in shown.summary()[-2]


def test_nothing_is_said_of_photographs_where_none_are_looked_for(photos, tmp_path) -> None:
    done = extract(photos, cache=tmp_path / "c.h5", page=replace(TINY, clean="none"), **OPTIONS)
    assert done.cleaning == ""
    assert not any("photographs" in line for line in done.summary())


def test_photographing_what_was_cleaned_is_refused(photos: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        finetune(
            photos,
            network=NetworkSettings(weights="random:1"),
            page=TINY,
            training=FinetuneSettings(epochs=1, batch_size=4, augment="photo"),
        )
    assert str(caught.value) == (
        "--augment photo photographs the pages after --clean photo has made scans of them: give "
        "one of the two"
    )


def test_marks_are_where_the_tests_think() -> None:
    found = places(marked_page(640, 480)) / (640, 480)
    assert np.abs(found - MARKS).max() < 0.002
