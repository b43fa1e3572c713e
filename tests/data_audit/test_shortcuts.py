"""What tells the class without the ECG."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from ecgfeat.data_audit.shortcuts import TRAITS, Telling, telling, traits, values_of

from .sets import page

LABELS = ["a", "b"] * 40


def told(values: np.ndarray, labels: list[str] = LABELS) -> Telling:
    found = telling("it", values.astype(np.float32), labels)
    assert found is not None
    return found


def test_chance_is_not_telling() -> None:
    n_telling = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n_telling += told(rng.normal(size=(80, int(rng.integers(1, 120))))).is_telling
    assert n_telling == 0


def test_a_planted_number_is_telling_and_the_class_is_named() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(80, 3))
    values[1::2, 1] += 3
    found = told(values)
    assert found.is_telling
    assert found.low > 0.85 > found.chance > 0.5
    assert str(found).startswith("it: AUROC 0.9")
    # Of three classes the one that it tells, however little it says of the others.
    three = ["x", "y", "z"] * 30
    one = rng.normal(size=(90, 1)) + 4 * (np.array(three) == "y")[:, np.newaxis]
    assert told(one, three).label == "y"


def test_a_class_that_lies_between_two_values_is_told() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.1, size=(80, 1))
    values[1::2, 0] += rng.choice([-3, 3], 40)
    assert told(values).low > 0.9


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.ones((80, 2)), LABELS),
        (np.empty((80, 0)), LABELS),
        (np.arange(80.0)[:, np.newaxis], ["a"] * 80),
        (np.arange(80.0)[:, np.newaxis], [f"{n // 4}" for n in range(80)]),
    ],
    ids=["all the same", "nothing", "one class", "too few rows of each"],
)
def test_what_can_not_be_asked_has_no_answer(values: np.ndarray, labels: list[str]) -> None:
    assert telling("it", values.astype(np.float32), labels) is None


@pytest.mark.parametrize("shape", [(5, 5, 3), (3, 900, 3), (700, 2, 3), (400, 600, 3)])
def test_any_page_has_all_traits(shape: tuple[int, int, int]) -> None:
    for pixels in (np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        found = traits(pixels, 1000)
        assert found.shape == (sum(TRAITS.values()),)
        assert np.isfinite(found).all()


def jpeg(image: Image.Image, quality: int) -> tuple[np.ndarray, int]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue()))), len(file.getvalue())


def with_a_corner(image: Image.Image) -> Image.Image:
    width, height = image.size
    ImageDraw.Draw(image).rectangle((width - 10, height - 8, width, height), fill=(200, 40, 40))
    return image


def with_a_header(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((120, 1), "Cardiology", fill=(20, 20, 20))
    return image


def with_a_stamp(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).ellipse((190, 130, 220, 160), outline=(50, 50, 190), width=2)
    return image


PLANTED: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "a coloured corner": ("border", with_a_corner),
    "a header": ("header", with_a_header),
    "a stamp": ("coloured marks", with_a_stamp),
    "another size": ("page size and shape", lambda image: image.resize((264, 198))),
    "a darker scan": ("paper colour", lambda image: ImageEnhance.Brightness(image).enhance(0.85)),
}


def measured(change: Callable[[Image.Image], Image.Image], quality: int = 90) -> np.ndarray:
    """Traits of 80 pages, where those of the second class were changed."""
    found = []
    for number in range(80):
        is_second = LABELS[number] == "b"
        image = page(number).copy()
        pixels, n_bytes = jpeg(change(image) if is_second else image, quality if is_second else 90)
        found.append(traits(pixels, n_bytes))
    return np.stack(found)


@pytest.mark.parametrize("fault", PLANTED)
def test_what_follows_the_class_is_found(fault: str) -> None:
    trait, change = PLANTED[fault]
    assert told(values_of(trait, measured(change))).is_telling


def test_another_quality_of_the_files_is_found_and_clean_pages_are_clean() -> None:
    assert told(values_of("file size", measured(lambda image: image, quality=60))).is_telling
    clean = measured(lambda image: image)
    for trait in TRAITS:
        found = telling(trait, values_of(trait, clean), LABELS)
        assert found is None or not found.is_telling, found
