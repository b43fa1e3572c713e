from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat.config import CropMode, PageSettings
from ecgfeat.errors import ConfigError
from ecgfeat.files import typed
from ecgfeat.preprocessing import EXACT_RESAMPLING, FAST_RESAMPLING, Geometry, Preprocessing

sides_px = st.integers(1, 5000)
sizes_px = st.integers(32, 1200)


def specification(
    crop_mode: CropMode, width_px: int, height_px: int | None = None
) -> Preprocessing:
    return Preprocessing(crop_mode=crop_mode, width_px=width_px, height_px=height_px or width_px)


@given(page_px=st.tuples(sides_px, sides_px), size_px=sizes_px)
def test_center_is_torchvision_s_resize_and_center_crop(
    page_px: tuple[int, int], size_px: int
) -> None:
    import torch
    from torchvision.transforms.v2 import functional

    geometry = specification("center", size_px).geometry(page_px)
    # The meta device computes shapes without pixels.
    page = torch.empty(1, page_px[1], page_px[0], device="meta")
    resized = functional.resize(page, [round(size_px * 256 / 224)], antialias=True)
    assert geometry.resized_px == (resized.shape[2], resized.shape[1])
    for offset, length in zip(geometry.offset_px, geometry.resized_px):
        line = torch.arange(length).expand(size_px, -1)[None]
        assert functional.center_crop(line, [size_px, size_px])[0, 0, 0] == offset


def test_center_at_224_is_the_weights_own_transform() -> None:
    from torchvision.models import ResNet18_Weights

    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    page = Preprocessing.from_settings(PageSettings(crop_mode="center", size="224"))
    assert (page.width_px, page.height_px) == (preset.crop_size[0], preset.crop_size[0])
    assert page.geometry((1000, 800)).resized_px[1] == preset.resize_size[0]
    assert page.mean == tuple(preset.mean)
    assert page.std == tuple(preset.std)
    assert page.resampling == f"pillow-{preset.interpolation.value}"


@given(page_px=st.tuples(sides_px, sides_px), width_px=sizes_px, height_px=sizes_px)
def test_center_covers_an_input_of_any_shape(
    page_px: tuple[int, int], width_px: int, height_px: int
) -> None:
    geometry = specification("center", width_px, height_px).geometry(page_px)
    margins = round(width_px * 256 / 224), round(height_px * 256 / 224)
    assert geometry.resized_px[0] >= margins[0]
    assert geometry.resized_px[1] >= margins[1]
    assert geometry.resized_px[0] == margins[0] or geometry.resized_px[1] == margins[1]
    check_centred(geometry, (width_px, height_px))


@given(page_px=st.tuples(sides_px, sides_px), width_px=sizes_px, height_px=sizes_px)
def test_border_shows_the_whole_page_with_its_aspect(
    page_px: tuple[int, int], width_px: int, height_px: int
) -> None:
    geometry = specification("border", width_px, height_px).geometry(page_px)
    width, height = geometry.resized_px
    assert 1 <= width <= width_px
    assert 1 <= height <= height_px
    assert width == width_px or height == height_px
    scale = min(width_px / page_px[0], height_px / page_px[1])
    assert abs(width - max(1, page_px[0] * scale)) <= 0.5
    assert abs(height - max(1, page_px[1] * scale)) <= 0.5
    check_centred(geometry, (width_px, height_px))


def check_centred(geometry: Geometry, size_px: tuple[int, int]) -> None:
    for offset, resized, wanted in zip(geometry.offset_px, geometry.resized_px, size_px):
        assert abs((resized - wanted) - 2 * offset) <= 1


@given(page_px=st.tuples(sides_px, sides_px), width_px=sizes_px, height_px=sizes_px)
def test_squash_fills_the_input(page_px: tuple[int, int], width_px: int, height_px: int) -> None:
    geometry = specification("squash", width_px, height_px).geometry(page_px)
    assert geometry == Geometry((width_px, height_px), (0, 0))


@pytest.mark.parametrize("size", ["224", "448x320"])
def test_the_size_is_written_as_it_was_asked_for(size: str) -> None:
    page = PageSettings(size=size, crop_mode="border")
    preprocessing = Preprocessing.from_settings(page)
    assert preprocessing.size == size
    assert preprocessing.crop_mode == "border"


def test_equal_specifications_have_equal_fingerprints() -> None:
    settings = (
        PageSettings(crop_mode="center", size="224"),
        PageSettings(crop_mode="center", size="224x224"),
    )
    first, second = (Preprocessing.from_settings(page).fingerprint for page in settings)
    assert first == second


OTHERS: dict[str, Any] = {
    "crop_mode": "squash",
    "width_px": 225,
    "height_px": 225,
    "resampling": FAST_RESAMPLING,
    "mean": (0.5, 0.456, 0.406),
    "std": (0.229, 0.224, 0.2250001),
    "dpi": 151,
}


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(Preprocessing)])
def test_another_value_in_any_field_gives_another_fingerprint(field: str) -> None:
    first = specification("center", 224)
    second = dataclasses.replace(first, **{field: OTHERS[field]})
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_is_the_same_for_ever() -> None:
    assert specification("center", 224).fingerprint.startswith("d95d78e3e4028221a586c9a34998926c")


@pytest.mark.parametrize("resampling", ["pillow-bilinear", "torch-bilinear"])
def test_what_was_written_down_is_read_back(resampling: str) -> None:
    first = Preprocessing.from_settings(
        PageSettings(crop_mode="center", size="224"), resampling=resampling
    )
    assert written_down(resampling) == first


def test_a_specification_turns_itself_into_json_and_back() -> None:
    first = Preprocessing(crop_mode="border", width_px=448, height_px=320)
    assert typed(json.loads(json.dumps(first.as_json())), Preprocessing) == first


def test_dots_per_inch_are_not_in_the_json_but_with_the_decoder() -> None:
    first = specification("center", 224)
    assert dataclasses.replace(first, dpi=300).as_json() == first.as_json()


@pytest.mark.parametrize("dpi", [35, 601])
def test_dots_per_inch_have_bounds(dpi: int) -> None:
    with pytest.raises(ConfigError) as caught:
        PageSettings(dpi=dpi)
    assert str(caught.value) == f"--dpi must be at least 36 and at most 600; found {dpi}"


@pytest.mark.parametrize("resampling", [EXACT_RESAMPLING, FAST_RESAMPLING])
def test_cleaning_is_told_with_the_resampling(resampling: str) -> None:
    plain, cleaned = (
        Preprocessing.from_settings(PageSettings(clean=clean), resampling=resampling)
        for clean in ("none", "photo")
    )
    assert plain.resampling == plain.filter == cleaned.filter == resampling
    assert cleaned.resampling == f"{resampling}+photo1"
    assert (plain.clean, cleaned.clean) == ("none", "photo")
    assert plain.fingerprint != cleaned.fingerprint
    assert typed(json.loads(json.dumps(cleaned.as_json())), Preprocessing) == cleaned
    again = Preprocessing.from_settings(PageSettings(clean="photo"), resampling=cleaned.resampling)
    assert again == cleaned


def test_another_kind_of_cleaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="the resampling 'pillow-bilinear\\+photo2' is unknown"):
        written_down("pillow-bilinear+photo2")


def test_an_unknown_resampling_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        written_down("area")
    assert str(caught.value) == (
        "the resampling 'area' is unknown to this version of ecgfeat, which has pillow-bilinear "
        "and torch-bilinear: take the version that wrote it"
    )


def written_down(resampling: str) -> Preprocessing:
    return Preprocessing.from_settings(
        PageSettings(crop_mode="center", size="224"),
        resampling=resampling,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
