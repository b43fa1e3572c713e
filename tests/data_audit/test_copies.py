"""The same page twice: byte for byte, and scanned or saved again."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ecgfeat.data_audit.copies import (
    FINE_PX,
    LEAST_LIKENESS,
    SIZES_PX,
    laid_over,
    likeness,
    near_pairs,
    trace_map,
    trace_maps,
    whitened,
)

from .sets import LARGE, page


def saved_again(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(io.BytesIO(file.getvalue()))


def rescanned(image: Image.Image) -> Image.Image:
    width, height = image.size
    corners = (3, 1, -2, height - 1, width + 2, height + 2, width - 3, -1)
    askew = image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 3, np.shape(image))
    return Image.fromarray((np.asarray(askew) * 0.92 + noise).clip(0, 255).astype(np.uint8))


AGAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "saved again": saved_again,
    "smaller": lambda image: image.resize((360, 270), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((624, 468), Image.Resampling.LANCZOS),
    "turned": lambda image: image.rotate(1.5, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)),
    "turned back": lambda image: image.rotate(-2, Image.Resampling.BICUBIC),
    "rescanned": rescanned,
}


def alike(one: Image.Image, other: Image.Image) -> float:
    pages = [np.asarray(image.convert("RGB")) for image in (one, other)]
    found, projection = laid_over(*map(trace_maps, pages))
    if projection is None:
        return min(found, LEAST_LIKENESS - 0.01)
    return likeness(*(trace_map(pixels, FINE_PX) for pixels in pages), projection)


@pytest.mark.parametrize("how", AGAIN)
def test_a_page_again_is_told_from_another_page(how: str) -> None:
    again = AGAIN[how](page(1, settings=LARGE))
    assert alike(page(1, settings=LARGE), again) >= LEAST_LIKENESS
    assert alike(again, page(1, settings=LARGE)) >= LEAST_LIKENESS
    assert alike(page(2, settings=LARGE), again) < LEAST_LIKENESS


def test_the_same_picture_has_likeness_1() -> None:
    assert alike(page(3, settings=LARGE), page(3, settings=LARGE)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(5, 5, 3), (1, 400, 3), (300, 2, 3)])
def test_any_page_has_maps_and_a_blank_one_is_like_none(shape: tuple[int, int, int]) -> None:
    blank = np.full(shape, 255, np.uint8)
    maps = trace_maps(blank)
    assert [one.shape for one in maps] == [(height, width) for width, height in SIZES_PX]
    assert not any(one.any() for one in maps)
    assert laid_over(maps, maps)[1] is None
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert all(np.isfinite(one).all() for one in trace_maps(noise))


def test_the_nearest_pair_comes_first_and_none_twice() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 20)).astype(np.float32)
    features[41] = features[7] + 0.01
    pairs, ratios = near_pairs(whitened(features))
    assert pairs[0].tolist() == [7, 41]
    assert ratios[0] < 0.1 < ratios[1]
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_few_rows_have_few_pairs() -> None:
    two = whitened(np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32))
    assert near_pairs(two)[0].tolist() == [[0, 1]]
    assert len(near_pairs(two[:1])[0]) == 0
