"""From the page to the network's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecgfeat.config import CropMode
from ecgfeat.errors import ImageError
from ecgfeat.images import decode, prepare
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing

from .crafted import Page, page_of


def specification(crop_mode: CropMode, width_px: int, height_px: int) -> Preprocessing:
    return Preprocessing(crop_mode=crop_mode, width_px=width_px, height_px=height_px)


def torchvisions(page: Page, size: int = 224) -> Page:
    """What the weights' own transform does to the Pillow image before it becomes a tensor."""
    from torchvision import transforms

    crop = transforms.Compose(
        [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    )
    return np.asarray(crop(Image.fromarray(page)))


@pytest.mark.parametrize(
    "size_px",
    [
        (1, 1),
        (5, 224),
        (192, 128),
        (224, 224),
        (256, 256),
        (257, 255),
        (255, 257),
        (300, 3000),
        (400, 300),
        (937, 539),
        (940, 540),
        (1001, 333),
        (2200, 1700),
    ],
    ids=lambda size_px: "x".join(map(str, size_px)),
)
def test_center_is_torchvisions_transform_byte_for_byte(size_px: tuple[int, int]) -> None:
    page = page_of(size_px)
    for size in (224, 32, 100):
        ours = prepare(page, specification("center", size, size))
        assert np.array_equal(ours, torchvisions(page, size)), size


def test_center_is_torchvisions_transform_on_random_sizes() -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(20, 700, (40, 2)).tolist():
        page = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ours = prepare(page, specification("center", 224, 224))
        assert np.array_equal(ours, torchvisions(page)), (width, height)


@pytest.mark.parametrize(
    "every", [pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def test_center_is_torchvisions_transform_on_real_pages(shared_data: Path, every: int) -> None:
    for path in sorted(shared_data.glob("*/images/*"))[::every]:
        page = decode(path)
        ours = prepare(page, specification("center", 224, 224))
        assert np.array_equal(ours, torchvisions(page)), path


def test_center_of_an_oblong_input_keeps_the_middle() -> None:
    page = np.zeros((400, 400, 3), np.uint8)
    page[100:300] = 255
    middle = prepare(page, specification("center", 320, 160))
    assert middle.shape == (160, 320, 3)
    assert (middle == 255).all()


def test_squash_stretches_the_whole_page() -> None:
    page = page_of((90, 50))
    stretched = Image.fromarray(page).resize((64, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(prepare(page, specification("squash", 64, 48)), np.asarray(stretched))


def test_border_shows_the_whole_page_on_its_papers_colour() -> None:
    page = np.full((50, 100, 3), (250, 240, 230), np.uint8)
    page[20:30] = 0
    padded = prepare(page, specification("border", 64, 64))
    assert (padded[:16] == (250, 240, 230)).all()
    assert (padded[48:] == (250, 240, 230)).all()
    small = Image.fromarray(page).resize((64, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(padded[16:48], np.asarray(small))


@pytest.mark.parametrize("period_px", [5, 8, 10, 29])
def test_the_papers_colour_is_not_a_grids_though_the_edges_run_along_it(period_px: int) -> None:
    page = np.full((50 * period_px + 1, 80 * period_px + 1, 3), (255, 246, 244), np.uint8)
    page[::period_px] = page[:, ::period_px] = (236, 160, 160)
    padded = prepare(page, specification("border", 64, 64))
    assert (padded[0] == (255, 246, 244)).all()


def test_the_papers_colour_is_the_middle_of_a_noisy_one() -> None:
    noise = np.random.default_rng(0).integers(-6, 7, (300, 200, 3))
    page = (np.array([212, 208, 230]) + noise).astype(np.uint8)
    padded = prepare(page, specification("border", 64, 64)).astype(int)
    assert np.abs(padded[:, 0] - [212, 208, 230]).max() <= 2


def test_real_pages_are_padded_with_paper(shared_data: Path) -> None:
    path = min((shared_data / "ludb-pages" / "images").iterdir())
    padded = prepare(decode(path), specification("border", 64, 64))
    assert (padded[0] == (255, 246, 244)).all()


@pytest.mark.parametrize("size_px", [(1, 1), (1, 300), (300, 1), (301, 300), (1000, 996)])
def test_border_leaves_no_pixel_unpainted(size_px: tuple[int, int]) -> None:
    page = np.full((size_px[1], size_px[0], 3), 200, np.uint8)
    assert (prepare(page, specification("border", 224, 224)) == 200).all()


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_a_small_page_is_enlarged(crop_mode: CropMode) -> None:
    page = np.full((2, 3, 3), 77, np.uint8)
    assert (prepare(page, specification(crop_mode, 50, 40)) == 77).all()


def test_a_page_of_the_inputs_size_stays_as_it_is_in_border_and_squash() -> None:
    page = page_of((64, 48))
    for crop_mode in ("border", "squash"):
        assert np.array_equal(prepare(page, specification(crop_mode, 64, 48)), page)


def test_a_strip_too_narrow_for_center_is_refused_before_it_is_enlarged() -> None:
    strip = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(ImageError) as caught:
        prepare(strip, specification("center", 224, 224))
    assert str(caught.value) == (
        "too narrow: crop mode center would resize its 20,000 x 1 pixels to 5,120,000 x 256; "
        "take --crop-mode border or squash"
    )
    assert prepare(strip, specification("border", 224, 224)).shape == (224, 224, 3)


# torch's resize


def fast(crop_mode: CropMode, width_px: int, height_px: int) -> Preprocessing:
    return Preprocessing(
        crop_mode=crop_mode, width_px=width_px, height_px=height_px, resampling=FAST_RESAMPLING
    )


SIZES_PX = [(1, 1), (5, 224), (192, 128), (257, 255), (400, 300), (1001, 333), (2200, 1700)]


@pytest.mark.parametrize("size_px", SIZES_PX, ids=lambda size_px: "x".join(map(str, size_px)))
def test_the_fast_center_is_torchvisions_transform_of_an_8_bit_tensor(
    size_px: tuple[int, int],
) -> None:
    import torch
    from torchvision.transforms import v2

    page = page_of(size_px)
    crop = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    expected = crop(torch.from_numpy(page.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(prepare(page, fast("center", 224, 224)), expected)


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("size_px", SIZES_PX, ids=lambda size_px: "x".join(map(str, size_px)))
def test_the_fast_resize_is_off_by_a_grey_level_at_most(
    size_px: tuple[int, int], crop_mode: CropMode
) -> None:
    page = page_of(size_px)
    found = prepare(page, fast(crop_mode, 224, 160)).astype(int)
    difference = np.abs(found - prepare(page, specification(crop_mode, 224, 160)))
    assert difference.max() <= 1


def test_the_fast_resize_shrinks_a_giant_by_hundreds() -> None:
    giant = np.random.default_rng(0).integers(0, 256, (30_000, 150, 3), dtype=np.uint8)
    found = prepare(giant, fast("squash", 32, 32)).astype(int)
    assert np.abs(found - prepare(giant, specification("squash", 32, 32))).max() <= 1


def test_the_fast_resize_takes_pages_that_lie_in_memory_in_any_way() -> None:
    page = page_of((90, 50))
    expected = prepare(page, fast("border", 64, 48))
    locked = page.copy()
    locked.flags.writeable = False
    mirrored = page[:, ::-1].copy()[:, ::-1]
    spread = np.repeat(page, 2, axis=1)[:, ::2]
    for same in (locked, mirrored, spread, np.asfortranarray(page)):
        assert np.array_equal(prepare(same, fast("border", 64, 48)), expected)


def test_the_fast_resize_gives_the_same_on_any_number_of_torchs_threads() -> None:
    import torch

    page, n_threads = page_of((2200, 1700)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = prepare(page, fast("center", 224, 224))
        torch.set_num_threads(4)
        assert np.array_equal(prepare(page, fast("center", 224, 224)), one)
    finally:
        torch.set_num_threads(n_threads)
