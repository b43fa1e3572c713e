from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgfeat.augmentation import AMOUNTS, Amounts, augment, augmenting
from ecgfeat.config import PageSettings
from ecgfeat.images import stream
from ecgfeat.preprocessing import Preprocessing

from .conftest import draw_page

STRENGTHS = [*sorted(AMOUNTS), "photo"]
NOTHING = Amounts(
    shift=0,
    scale=0,
    rotation_deg=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue_deg=0,
    blur_px=0,
    jpeg_quality=100,
    erased=0,
)
PAPER = (250, 230, 226)


def beat(width: int = 120, height: int = 90) -> np.ndarray:
    """A spike with a wave after it, on paper: no symmetry in it."""
    x = np.linspace(0, 1, width)
    wave = np.exp(-(((x - 0.3) / 0.02) ** 2)) - 0.3 * np.exp(-(((x - 0.6) / 0.08) ** 2))
    page = np.full((height, width, 3), PAPER, np.uint8)
    rows = np.round(height * (0.6 - 0.45 * wave)).astype(int)
    for column in range(1, width):
        low, high = sorted(rows[column - 1 : column + 1])
        page[low - 1 : high + 2, column] = (20, 20, 40)
    return page


def changed(page: np.ndarray, seed: int = 0, **amounts: Any) -> np.ndarray:
    """`page` with only these amounts of change."""
    return augment(page, replace(NOTHING, **amounts), np.random.default_rng(seed))


def ink(page: np.ndarray) -> np.ndarray:
    """How much darker each pixel is than the lightest, blurred so that near counts too."""
    dark = page.max() - np.asarray(Image.fromarray(page).convert("L"), float)
    return dark - dark.mean()


def likeness(page: np.ndarray, other: np.ndarray) -> float:
    """The highest correlation of the two over small shifts."""
    a, b = ink(page), ink(other)
    shifts = [(y, x) for y in range(-9, 10, 3) for x in range(-12, 13, 3)]
    return max(float((np.roll(a, shift, (0, 1)) * b).sum()) for shift in shifts)


def marks(page: np.ndarray) -> np.ndarray:
    """Middles (x, y) of the three marks that `marked_page` draws, in the order of their colours."""
    found = []
    for channel in range(3):
        y, x = np.nonzero(page[..., channel] > 100)
        weights = page[y, x, channel].astype(float)
        found.append((np.average(x, weights=weights), np.average(y, weights=weights)))
    return np.array(found)


def marked_page() -> np.ndarray:
    """A red mark, a green one to its right, and a blue one below it, 60 pixels apart."""
    page = np.zeros((160, 160, 3), np.uint8)
    for channel, (x, y) in enumerate([(50, 50), (110, 50), (50, 110)]):
        page[y - 3 : y + 4, x - 3 : x + 4, channel] = 255
    return page


@pytest.mark.parametrize("strength", AMOUNTS)
def test_a_page_is_never_mirrored(strength):
    page = beat()
    for row in range(60):
        alter = augmenting(strength, seed=0, fold=0, epoch=1)
        found = alter(row, page)
        right = likeness(found, page)
        assert right > likeness(found, page[:, ::-1])
        assert right > likeness(found, page[::-1])
        assert right > likeness(found, page[::-1, ::-1])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_page_follows_from_seed_fold_epoch_and_row_alone(strength):
    page = beat()

    def of(seed: int = 0, fold: int = 0, epoch: int = 1, row: int = 5) -> bytes:
        return augmenting(strength, seed=seed, fold=fold, epoch=epoch)(row, page).tobytes()

    assert of() == of()
    others = {of(seed=1), of(fold=1), of(epoch=2), of(row=6)}
    assert len(others | {of()}) == 5


def test_the_number_of_threads_changes_nothing(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        draw_page(index).save(path)
    alter = augmenting("strong", seed=0, fold=0, epoch=1)
    preprocessing = Preprocessing.from_settings(PageSettings(crop_mode="center", size="64"))
    one, four = (
        [
            batch.pixels.tobytes()
            for batch in stream(
                paths, [[3, 1], [5, 0, 2, 4]], preprocessing, threads=n, alter=alter
            )
        ]
        for n in (1, 4)
    )
    assert one == four


@given(st.integers(0, 2**32), st.integers(32, 80), st.integers(32, 80))
def test_a_page_keeps_its_size_and_type(seed, width, height):
    page = np.full((height, width, 3), seed % 256, np.uint8)
    found = augment(page, AMOUNTS["strong"], np.random.default_rng(seed))
    assert found.shape == page.shape
    assert found.dtype == np.uint8


def test_the_page_given_is_left_as_it_was():
    page = beat()
    before = page.copy()
    for seed in range(10):
        augment(page, AMOUNTS["strong"], np.random.default_rng(seed))
    assert (page == before).all()


def test_no_amounts_leave_every_pixel():
    page = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert (changed(page) == page).all()


@given(st.integers(0, 2**32))
def test_a_shift_goes_no_further_than_its_share_and_brings_in_paper(seed):
    page = np.full((80, 120, 3), PAPER, np.uint8)
    page[30:50, 40:80] = 0
    found = changed(page, seed, shift=0.1)
    y, x = np.nonzero((found < 128).all(axis=2))
    assert abs(x.mean() - 59.5) <= 12.5
    assert abs(y.mean() - 39.5) <= 8.5
    assert len(x) == pytest.approx(20 * 40, abs=61)
    assert (found[[0, -1]] == PAPER).all()
    assert (found[:, [0, -1]] == PAPER).all()


def test_shifts_go_all_four_ways():
    moves = [marks(changed(marked_page(), seed, shift=0.1))[0] - 50 for seed in range(20)]
    assert {tuple(np.sign(np.round(move)).astype(int)) for move in moves} >= {
        (-1, -1),
        (-1, 1),
        (1, -1),
        (1, 1),
    }


@given(st.integers(0, 2**32))
def test_one_factor_scales_both_axes(seed):
    origin, right, below = marks(changed(marked_page(), seed, scale=0.2))
    width, height = right[0] - origin[0], below[1] - origin[1]
    assert width == pytest.approx(height, abs=0.2)
    assert 47.5 <= width <= 72.5
    assert right[1] == pytest.approx(origin[1], abs=0.1)


@given(st.integers(0, 2**32))
def test_a_rotation_turns_and_never_shears(seed):
    origin, right, below = marks(changed(marked_page(), seed, rotation_deg=5))
    along, down = right - origin, below - origin
    assert np.hypot(*along) == pytest.approx(60, abs=0.3)
    assert np.hypot(*down) == pytest.approx(60, abs=0.3)
    assert along @ down == pytest.approx(0, abs=25)
    # Below stays clockwise of right: not mirrored.
    assert along[0] * down[1] - along[1] * down[0] > 3000
    assert abs(np.degrees(np.arctan2(along[1], along[0]))) <= 5.2


def test_rotations_go_both_ways_as_far_as_they_may():
    angles = []
    for seed in range(60):
        origin, right, _ = marks(changed(marked_page(), seed, rotation_deg=5))
        along = right - origin
        angles.append(np.degrees(np.arctan2(along[1], along[0])))
    assert min(angles) < -4
    assert max(angles) > 4


@given(st.integers(0, 2**32))
def test_contrast_fades_or_darkens_the_ink_and_leaves_the_paper(seed):
    page = beat()
    found = changed(page, seed, contrast=0.3)
    is_paper = (page == PAPER).all(axis=2)
    assert np.abs(found[is_paper].astype(int) - PAPER).max() <= 1
    distance = (PAPER - found[~is_paper].astype(float)).mean()
    before = (PAPER - page[~is_paper].astype(float)).mean()
    assert 0.69 * before <= distance <= 1.13 * before  # ink can't be darker than black


@given(st.integers(0, 2**32))
def test_colour_changes_leave_greys_grey(seed):
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    found = changed(grey, seed, saturation=1, hue_deg=180)
    assert np.abs(found.astype(int) - grey).max() <= 1


def test_a_grid_takes_other_colours_or_none():
    page = np.full((8, 8, 3), (240, 120, 120), np.uint8)
    colours = np.array([changed(page, seed, saturation=1, hue_deg=180)[0, 0] for seed in range(80)])
    assert set(colours.argmax(axis=1)) == {0, 1, 2}
    assert np.ptp(colours.astype(int), axis=1).min() < 20


@given(st.integers(0, 2**32))
def test_a_rectangle_of_paper_covers_no_more_than_its_share(seed):
    page = np.full((100, 150, 3), PAPER, np.uint8)
    page[1:-1, 1:-1] = 0
    covered = (changed(page, seed, erased=0.1)[1:-1, 1:-1] == PAPER).all(axis=2)
    assert covered.mean() <= 0.107  # whole pixels
    y, x = np.nonzero(covered)
    assert not len(y) or covered[min(y) : max(y) + 1, min(x) : max(x) + 1].all()


def test_about_every_second_page_is_erased_blurred_and_compressed():
    page = beat()
    for amounts in ({"erased": 0.5}, {"blur_px": 1.0}, {"jpeg_quality": 20}):
        n_touched = sum((changed(page, seed, **amounts) != page).any() for seed in range(100))
        assert 30 <= n_touched <= 60, amounts


def test_a_quarter_of_the_pages_are_not_photographed():
    page = beat()
    photo, light = (augmenting(name, seed=0, fold=0, epoch=0) for name in ("photo", "light"))
    n_light = sum((photo(row, page) == light(row, page)).all() for row in range(200))
    assert 30 <= n_light <= 70


def test_light_goes_nowhere_further_than_strong():
    light, strong = AMOUNTS["light"], AMOUNTS["strong"]
    for name in vars(light):
        less, more = getattr(light, name), getattr(strong, name)
        assert (less >= more) if name == "jpeg_quality" else (less <= more), name
