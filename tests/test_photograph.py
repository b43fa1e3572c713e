from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgfeat.photograph import AMOUNTS, BEST_QUALITY, DISTANCE, Amounts, photograph

STRENGTHS = tuple(AMOUNTS)
NOTHING = replace(
    Amounts(**{field.name: 0 for field in fields(Amounts)}), jpeg_quality=BEST_QUALITY
)
MARKS = ((0.03, 0.04), (0.97, 0.04), (0.03, 0.96), (0.97, 0.96))
"""Middles of red, green, blue and purple squares near a page's corners."""


def marked_page(width: int = 320, height: int = 240) -> Image.Image:
    page = np.full((height, width, 3), 255, np.uint8)
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
    for (x, y), colour in zip(MARKS, colours):
        left, top = round(x * width), round(y * height)
        page[top - 7 : top + 8, left - 7 : left + 8] = colour
    return Image.fromarray(page)


def places(image: Image.Image) -> np.ndarray:
    """Middles (x, y) of the four marks, in the order in which they are drawn."""
    array = np.asarray(image).astype(float)
    red, green, blue = np.moveaxis(array, -1, 0)
    each = (
        red - np.maximum(green, blue) > 100,
        green - np.maximum(red, blue) > 100,
        blue - np.maximum(red, green) > 100,
        np.minimum(red, blue) - green > 100,
    )
    return np.array([[np.nonzero(one)[axis].mean() for axis in (1, 0)] for one in each])


def taken(strength: str, seed: int, page: Image.Image | None = None) -> Image.Image:
    return photograph(page or marked_page(), AMOUNTS[strength], np.random.default_rng(seed))


def bent(strength: str, seed: int, page: Image.Image | None = None) -> Image.Image:
    """Photographed in good light and sharply: what is left is where things are."""
    geometry = ("tilt_deg", "rotation_deg", "margin", "curl", "wrinkle", "crease")
    kept = {name: getattr(AMOUNTS[strength], name) for name in geometry}
    amounts = replace(NOTHING, **kept)
    return photograph(page or marked_page(), amounts, np.random.default_rng(seed))


def test_the_same_seed_takes_the_same_photograph():
    first, again, other = (taken("2", seed).tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_same_numbers_are_drawn_whatever_the_page(strength):
    states = []
    for amounts in (AMOUNTS[strength], NOTHING):
        for size in ((320, 240), (97, 131)):
            rng = np.random.default_rng(0)
            photograph(Image.new("RGB", size, "white"), amounts, rng)
            states.append(rng.bit_generator.state)
    assert all(state == states[0] for state in states)


@given(st.integers(0, 2**32), st.integers(33, 90), st.integers(33, 90))
def test_a_photograph_has_the_page_s_size(seed, width, height):
    found = taken("3", seed, Image.new("RGB", (width, height), "white"))
    assert found.size == (width, height)
    assert found.mode == "RGB"


def test_the_page_given_is_left_as_it_was():
    page = marked_page()
    before = page.tobytes()
    taken("3", 0, page)
    assert page.tobytes() == before


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_page_is_never_mirrored(strength):
    for seed in range(40):
        upper_left, upper_right, lower_left, lower_right = places(bent(strength, seed))
        assert upper_left[0] < upper_right[0]
        assert lower_left[0] < lower_right[0]
        assert upper_left[1] < lower_left[1]
        assert upper_right[1] < lower_right[1]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_whole_page_is_in_the_picture(strength):
    page = Image.new("RGB", (400, 300), (0, 255, 0))
    for seed in range(40):
        red, green, blue = np.moveaxis(np.asarray(bent(strength, seed, page)).astype(int), -1, 0)
        is_page = green - np.maximum(red, blue) > 120  # JPEG spreads colours a little
        assert is_page.mean() > 0.25
        for edge in (is_page[0], is_page[-1], is_page[:, 0], is_page[:, -1]):
            assert not edge.any()


def test_a_flat_page_fills_the_picture_but_for_its_edge():
    picture = photograph(marked_page(), NOTHING, np.random.default_rng(0))
    expected = places(marked_page())
    # A margin of half a percent at each side shrinks it by one.
    assert np.abs(places(picture) - expected).max() < 2.5


def test_a_higher_strength_changes_a_page_more():
    page = marked_page()
    distances = []
    for strength in STRENGTHS:
        pictures = [np.asarray(taken(strength, seed, page), float) for seed in range(12)]
        distances.append(np.mean([np.abs(one - np.asarray(page)).mean() for one in pictures]))
    assert distances == sorted(distances)
    assert distances[2] > 1.3 * distances[0]


def test_no_fault_goes_further_at_a_lower_strength():
    for less, more in pairwise(STRENGTHS):
        for field in fields(Amounts):
            low, high = (getattr(AMOUNTS[strength], field.name) for strength in (less, more))
            assert (low >= high) if field.name == "jpeg_quality" else (low <= high), field.name


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Amounts) if field.name != "jpeg_quality"]
)
def test_every_amount_does_something(name):
    plain, changed = (
        [
            np.asarray(photograph(marked_page(), amounts, np.random.default_rng(seed)), float)
            for seed in range(6)
        ]
        for amounts in (NOTHING, replace(NOTHING, **{name: getattr(AMOUNTS["3"], name)}))
    )
    assert max(np.abs(one - other).mean() for one, other in zip(plain, changed)) > 0.2


def test_a_tilted_page_is_nearer_on_one_side():
    """What is nearer to the camera is seen larger, by the ratio of the distances."""
    sides = []
    for seed in range(40):
        picture = photograph(
            marked_page(), replace(NOTHING, tilt_deg=24), np.random.default_rng(seed)
        )
        upper_left, upper_right, lower_left, lower_right = places(picture)
        sides.append(np.hypot(*(upper_right - upper_left)) / np.hypot(*(lower_right - lower_left)))
    assert min(sides) < 0.9
    assert max(sides) > 1.1
    # Half the page's height, turned by 24 degrees, at the camera's distance.
    lift = 0.375 * np.sin(np.radians(24))
    assert max(sides) < (DISTANCE + lift) / (DISTANCE - lift)
