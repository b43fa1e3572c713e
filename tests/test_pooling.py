from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ecgfeat.backbones.extractor as extractor_module
from ecgfeat.backbones import Backbone, Weights, load_weights, tap_widths
from ecgfeat.backbones.extractor import pooled
from ecgfeat.config import LAYERS, TAPS, NetworkSettings, PageSettings, parse_tap
from ecgfeat.errors import ConfigError
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

from .conftest import draw_page

FP32 = Compute(device="cpu", precision="fp32", threads=1, channels_last=True, reason="asked for")
BF16 = replace(FP32, precision="bf16")
SUFFIXES = ("", "-max", "-std", "-4x4", "-max-4x4", "-std-4x4", "-2x3", "-8x1")
EVERY_KIND = tuple(layer + suffix for layer in LAYERS for suffix in SUFFIXES)
UP_TO_LAYER2 = tuple(tap for tap in EVERY_KIND if tap.startswith(("layer1", "layer2")))

Features = dict[str, NDArray[np.float32]]


@functools.cache
def drawn(arch: str) -> Weights:
    return load_weights(NetworkSettings(arch=arch, weights="random:3"))


def backbone(
    size: str, taps: tuple[str, ...], compute: Compute = FP32, arch: str = "resnet18"
) -> Backbone:
    page = Preprocessing.from_settings(PageSettings(size=size, crop_mode="squash"))
    return Backbone(drawn(arch), page, compute, taps=taps)


def pages(size: str, n_pages: int = 2) -> NDArray[np.uint8]:
    width_px, height_px = map(int, size.split("x"))
    size_px = width_px, height_px
    return np.stack([np.asarray(draw_page(seed, seed % 2, size_px)) for seed in range(n_pages)])


def torch_s_pool(maps: torch.Tensor, name: str) -> torch.Tensor:
    """What a tap should be, by torch's adaptive pools in double precision, (b, width)."""
    tap = parse_tap(name)
    cells = (tap.rows, tap.columns)
    maps = maps.double()
    if tap.pool == "max":
        found = torch.nn.functional.adaptive_max_pool2d(maps, cells)
    else:
        found = torch.nn.functional.adaptive_avg_pool2d(maps, cells)
    if tap.pool == "std":
        squares = torch.nn.functional.adaptive_avg_pool2d(maps.square(), cells)
        found = (squares - found.square()).clamp(min=0).sqrt()
    return found.permute(0, 2, 3, 1).flatten(1)


def hooked_features(
    pixels: NDArray[np.uint8], taps: tuple[str, ...], arch: str = "resnet18"
) -> Features:
    """The taps as anyone would take them from torchvision's network."""
    network = torchvision.models.get_model(arch, weights=None)
    network.load_state_dict(dict(drawn(arch).tensors), strict=False)
    maps = {}
    for layer in LAYERS:
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: maps.update({layer: output})
        )
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        network.eval()(normalise(images))
    return {tap: torch_s_pool(maps[parse_tap(tap).layer], tap).float().numpy() for tap in taps}


def assert_close(found: Features, expected: Features) -> None:
    for tap, values in expected.items():
        assert found[tap].shape == values.shape
        assert np.abs(found[tap] - values).max() <= 1e-5 * max(1, np.abs(values).max()), tap


@settings(deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (2, 4, 20, 20))),
    cells=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    pool=st.sampled_from(["", "-max", "-std"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
    seed=st.integers(0, 99),
)
def test_every_pool_equals_torch_s_in_double_precision(shape, cells, pool, dtype, layout, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu() * 3
    maps = values.to(dtype, memory_format=layout)
    before = maps.clone()
    name = f"layer1{pool}-{cells[0]}x{cells[1]}"
    found = pooled(maps, parse_tap(name))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, torch_s_pool(maps, name), rtol=1e-5, atol=1e-5)
    maps.zero_()  # as the next layer may
    np.testing.assert_allclose(found, torch_s_pool(before, name), rtol=1e-5, atol=1e-5)


def test_values_go_row_by_row_through_the_cells_and_within_each_through_the_channels():
    maps = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    found = pooled(maps, parse_tap("layer1-max-2x3"))
    assert found.tolist() == [[7, 31, 9, 33, 11, 35, 19, 43, 21, 45, 23, 47]]


def test_constant_maps_have_no_deviation():
    found = pooled(torch.full((1, 3, 5, 7), 1e4), parse_tap("layer1-std"))
    assert found.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("size", ["96x64", "225x160", "70x45"])
def test_every_tap_equals_a_hook_and_torch_s_pool(size):
    found = backbone(size, EVERY_KIND).features(pages(size))
    assert all(values.dtype == np.float32 for values in found.values())
    assert_close(found, hooked_features(pages(size), EVERY_KIND))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "wide_resnet50_2"])
def test_every_tap_of_other_networks_equals_a_hook_and_torch_s_pool(arch):
    found = backbone("96x64", EVERY_KIND, arch=arch).features(pages("96x64"))
    assert_close(found, hooked_features(pages("96x64"), EVERY_KIND, arch))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_mean_over_the_cells_of_a_divisible_map_is_the_plain_tap(layer):
    grid = f"{layer}-2x4"
    found = backbone("256x128", (grid, layer)).features(pages("256x128"))
    cells = found[grid].reshape(2, 8, -1)
    np.testing.assert_allclose(cells.mean(axis=1), found[layer], rtol=1e-5, atol=1e-6)


@pytest.mark.isa
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_tap_does_not_depend_on_the_others_asked_for(compute):
    together = backbone("96x64", EVERY_KIND, compute).features(pages("96x64"))
    for taps in (("layer4",), ("layer2-std-4x4", "layer1"), ("layer3-2x3",)):
        found = backbone("96x64", taps, compute).features(pages("96x64"))
        assert set(found) == set(taps)
        for tap in taps:
            np.testing.assert_array_equal(found[tap], together[tap])


@pytest.mark.parametrize("last", range(1, 5))
def test_layers_after_the_last_one_asked_for_are_not_kept(last):
    trunk = backbone("96x64", ("layer1-max", f"layer{last}-4x4"))._engine._trunk
    assert [name for name, _ in trunk.layers.named_children()] == list(LAYERS[:last])
    n_convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in trunk.modules())
    assert n_convolutions == 5 * last  # the stem's, four a layer, a shortcut in all but one


def test_bfloat16_passes_the_self_check_with_every_kind_of_tap():
    # 96×64 pixels make a layer4 of 3×2, whose cells are then single pixels.
    taps = (*EVERY_KIND, "layer4-std-2x3", "layer3-8x8")
    reduced = backbone("96x64", taps, BF16)
    assert reduced.compute == BF16
    assert not reduced.features(pages("96x64"))["layer4-std-2x3"].any()


def test_only_taps_that_are_nothing_in_both_are_alike_without_a_direction():
    nothing, something = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    compare = extractor_module._failing_tap
    assert compare({"layer1-std": nothing}, {"layer1-std": nothing}) is None
    assert compare({"layer1-std": something}, {"layer1-std": something}) is None
    for found, expected in ((something, nothing), (nothing, something)):
        failing = compare({"layer1-std": found}, {"layer1-std": expected})
        assert failing == "cosine nan to float32 at layer1-std"


def test_the_self_check_names_the_tap(monkeypatch):
    sound = extractor_module.Engine.features

    def features(engine, pixels):
        found = sound(engine, pixels)
        if engine.compute.precision == "bf16":
            found["layer2-max-4x4"] = -found["layer2-max-4x4"]
        return found

    monkeypatch.setattr(extractor_module.Engine, "features", features)
    compute = backbone("96x64", ("layer1", "layer2-max-4x4"), BF16).compute
    assert compute.precision == "fp32"
    assert compute.reason.endswith(" to float32 at layer2-max-4x4")


def test_widths_are_channels_times_cells():
    assert dict(tap_widths("resnet18")) == dict(zip(TAPS, (64, 128, 256, 512)))
    asked = ("layer4-std-8x1", "layer1-4x4", "layer3-max")
    assert dict(tap_widths("resnet50", asked)) == {
        "layer4-std-8x1": 16384,
        "layer1-4x4": 4096,
        "layer3-max": 1024,
    }


def test_a_backbone_without_taps_or_with_one_that_is_none_is_refused():
    with pytest.raises(ConfigError) as caught:
        backbone("96x64", ())
    assert str(caught.value) == "a backbone needs at least one tap, such as layer4; found none"
    with pytest.raises(ConfigError, match="'layer4-5x9' is no layer: give layer1 to layer4"):
        backbone("96x64", ("layer4-5x9",))
