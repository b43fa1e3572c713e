from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat import config
from ecgfeat.config import (
    LAYERS,
    RECIPES,
    DataSettings,
    EvaluationSettings,
    ExtractionSettings,
    FigureSettings,
    FinetuneSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
    Settings,
    SweepSettings,
    SynthSettings,
    as_json,
    option_name,
    parse_tap,
)
from ecgfeat.errors import ConfigError

ALL_SETTINGS = Settings.__subclasses__()
ALL_FIELDS = [(cls, item) for cls in ALL_SETTINGS for item in dataclasses.fields(cls)]
LIMITED = [
    pytest.param(cls, item.name, name, limit, id=f"{cls.__name__}.{item.name}-{name}")
    for cls, item in ALL_FIELDS
    for name, limit in item.metadata["limits"].items()
    if limit is not None
]


def message_of(cls: type[Settings], **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        cls(**values)
    return str(caught.value)


def test_every_default_is_in_its_own_range() -> None:
    for cls in ALL_SETTINGS:
        cls()


def test_every_settings_class_is_public() -> None:
    assert {cls.__name__ for cls in ALL_SETTINGS} <= set(config.__all__)


@pytest.mark.parametrize(("cls", "item"), ALL_FIELDS)
def test_every_setting_says_what_it_is(cls: type[Settings], item: dataclasses.Field[Any]) -> None:
    assert item.metadata["help"].endswith(".")
    assert item.kw_only


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HeadSettings().epochs = 6  # type: ignore[misc]


@pytest.mark.parametrize(("cls", "field", "name", "limit"), LIMITED)
def test_every_range_is_kept(cls: type[Settings], field: str, name: str, limit: float) -> None:
    outside = limit - 1 if name in ("minimum", "above") else limit + 1
    word = {"minimum": "at least", "maximum": "at most"}.get(name, name)
    assert f"{option_name(field)} must be " in message_of(cls, **{field: outside})
    assert f"{word} {limit:.10g}" in message_of(cls, **{field: outside})
    if name in ("above", "below"):
        assert f"{word} {limit:.10g}" in message_of(cls, **{field: float(limit)})
    elif not (cls is EvaluationSettings and field == "cv"):
        assert getattr(cls(**{field: limit}), field) == limit


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        pytest.param(cls, item.name, id=item.name)
        for cls, item in ALL_FIELDS
        if item.metadata["choices"]
    ],
)
def test_every_choice_is_kept(cls: type[Settings], field: str) -> None:
    (item,) = (item for item in dataclasses.fields(cls) if item.name == field)
    for choice in item.metadata["choices"]:
        assert getattr(cls(**{field: choice}), field) == choice
    assert message_of(cls, **{field: "neither"}) == (
        f"{option_name(field)} must be one of {', '.join(item.metadata['choices'])}; "
        "found 'neither'"
    )


def test_messages_name_the_option_the_range_and_the_value() -> None:
    assert message_of(DataSettings, test_fraction=1.5) == (
        "--test-fraction must be above 0 and below 1; found 1.5"
    )
    assert message_of(HeadSettings, lr=math.nan) == (
        "--lr must be above 0 and at most 10; found nan"
    )
    assert message_of(FinetuneSettings, batch_size=1) == (
        "--batch-size must be at least 2 and at most 4096; found 1"
    )


@pytest.mark.parametrize(
    ("cls", "field", "value", "words"),
    [
        (PageSettings, "size", 224, "--size must be text; found 224"),
        (HeadSettings, "epochs", 2.5, "--epochs must be a whole number; found 2.5"),
        (HeadSettings, "C", "1", "--C must be a number; found '1'"),
        (HeadSettings, "layers", ("layer4",), "--layers must be text; found ('layer4',)"),
    ],
)
def test_a_value_of_another_type_is_refused(
    cls: type[Settings], field: str, value: object, words: str
) -> None:
    assert message_of(cls, **{field: value}) == words


def test_numpy_s_numbers_are_numbers() -> None:
    settings = HeadSettings(epochs=np.int64(3), C=np.float32(0.5), lr=1)
    assert (settings.epochs, settings.C, settings.lr) == (3, 0.5, 1)


@pytest.mark.parametrize(
    ("size", "width_px", "height_px"),
    [("224", 224, 224), ("448x320", 448, 320), ("32x4096", 32, 4096)],
)
def test_a_page_s_size_is_read(size: str, width_px: int, height_px: int) -> None:
    page = PageSettings(size=size)
    assert (page.width_px, page.height_px) == (width_px, height_px)


@pytest.mark.parametrize(
    "size", ["", "0", "224x", "224X224", "-224", "22 4", "1x2x3", "٢٢٤", "12345"]
)
def test_a_page_s_size_that_is_none_is_refused(size: str) -> None:
    assert message_of(PageSettings, size=size) == (
        f"--size must be W or WxH in pixels, such as 224 or 448x320; found {size!r}"
    )


@pytest.mark.parametrize("size", ["31", "224x31", "4097", "4097x224"])
def test_a_page_s_size_out_of_range_is_refused(size: str) -> None:
    assert message_of(PageSettings, size=size) == (
        "--size must be from 32 to 4096 pixels a side (a ResNet shrinks its input 32-fold); found "
        f"{size!r}"
    )


def test_a_synthetic_page_s_size_is_read_and_kept_in_range() -> None:
    synth = SynthSettings(size="1400x1000")
    assert (synth.width_px, synth.height_px) == (1400, 1000)
    for size in ("400", "99x300", "10000x300"):
        assert message_of(SynthSettings, size=size) == (
            f"--size must be WxH in pixels, each from 100 to 9999, such as 400x300; found {size!r}"
        )


def test_layers_are_listed_once_each() -> None:
    assert HeadSettings(layers="layer3, layer4").taps == ("layer3", "layer4")
    for layers in ("", ",", "layer4,layer4"):
        assert message_of(HeadSettings, layers=layers) == (
            f"--layers must name each layer once, such as layer3,layer4; found {layers!r}"
        )


def test_taps_are_named_once_each() -> None:
    asked = ExtractionSettings(layers="layer2-std-4x8, layer4-max")
    assert asked.taps == ("layer2-std-4x8", "layer4-max")
    for layers in ("", ",", "layer4,layer4"):
        assert message_of(ExtractionSettings, layers=layers) == (
            f"--layers must name each layer once, such as layer1-4x4,layer4; found {layers!r}"
        )


@pytest.mark.parametrize(
    "name",
    [
        "layer5",
        "layer",
        "Layer4",
        "layer4-avg",
        "layer4-4",
        "layer4-9x1",
        "layer4-0x4",
        "layer4-4x4-max",
        "layer4-max-std",
        "layer4\n",
        "stem",
    ],
)
def test_a_name_that_is_no_tap_is_refused(name) -> None:
    expected = (
        f"{name!r} is no layer: give layer1 to layer4, with -max or -std for another pool than the "
        "average, and -ROWSxCOLUMNS (each 1 to 8) for a grid, such as layer4-max or layer2-4x4"
    )
    with pytest.raises(ConfigError) as caught:
        parse_tap(name)
    assert str(caught.value) == expected


@given(
    layer=st.sampled_from(LAYERS),
    pool=st.sampled_from(["avg", "max", "std"]),
    cells=st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_a_tap_s_name_tells_layer_pool_and_cells(layer, pool, cells) -> None:
    name = layer + ("" if pool == "avg" else f"-{pool}")
    name += f"-{cells[0]}x{cells[1]}" if cells else ""
    tap = parse_tap(name)
    assert (tap.name, tap.layer, tap.pool) == (name, layer, pool)
    assert (tap.rows, tap.columns) == (cells or (1, 1))
    assert tap.n_cells == tap.rows * tap.columns


def test_one_fold_is_no_cross_validation() -> None:
    assert message_of(EvaluationSettings, cv=1) == "--cv must be 0 or at least 2 folds; found 1"


def test_one_inner_fold_chooses_nothing() -> None:
    assert message_of(SweepSettings, folds=1) == "--folds must be 0 or at least 2; found 1"


def test_only_a_chosen_head_is_refitted() -> None:
    assert message_of(SweepSettings, refit=True) == (
        "--refit trains a chosen head once more, and nothing is chosen: also give --sweep default, "
        "--grid or --folds"
    )
    for choosing in ({"sweep": "default"}, {"grid": ("lr=1",)}, {"folds": 2}):
        assert SweepSettings(refit=True, **choosing).is_choosing
    assert not SweepSettings(seeds=3).is_choosing


def test_a_subset_of_the_test_rows_needs_the_split() -> None:
    assert message_of(EvaluationSettings, cv=5, test_subset=1000) == (
        "--test-subset needs the test split, and --cv ignores it: give one of the two"
    )


def test_settings_become_json() -> None:
    settings = DataSettings(root=Path("images"))
    made = json.loads(json.dumps(as_json(settings)))
    assert made == {
        **{item.name: item.default for item in dataclasses.fields(DataSettings)},
        "root": "images",
    }
    assert DataSettings(**{**made, "root": Path(made["root"])}) == settings
    assert NetworkSettings(**as_json(NetworkSettings(arch="resnet50"))).arch == "resnet50"


def test_the_study_s_defaults_stand() -> None:
    for training in (RECIPES["paper"].head, FinetuneSettings()):
        assert (training.epochs, training.lr, training.batch_size) == (5, 0.001, 64)
        assert training.weight_decay == 0
    assert HeadSettings().taps == ("layer4",)
    assert HeadSettings().C == 1
    assert (NetworkSettings().arch, NetworkSettings().weights) == ("resnet18", "imagenet")
    assert DataSettings().test_fraction == 0.2


def test_names_of_classes_keep_their_order() -> None:
    look = FigureSettings(names=" no-lvh = no LVH,lvh=LVH = a thick heart")
    assert look.rename(("no-lvh", "lvh", "other")) == ("no LVH", "LVH = a thick heart", "other")
    assert FigureSettings().rename(("b", "a")) == ("b", "a")


@pytest.mark.parametrize("names", ["lvh", "lvh=", "=LVH", "a=A,a=B"])
def test_names_must_be_pairs(names: str) -> None:
    assert message_of(FigureSettings, names=names) == (
        f"--names must give each class a name once, such as no-lvh=no LVH,lvh=LVH; found {names!r}"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("c=C", "--names has a name for 'c', which is no class: there are a, b"),
        ("a=b", "--names would call two classes 'b': give each its own"),
    ],
)
def test_names_must_be_of_classes_and_differ(names: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FigureSettings(names=names).rename(("a", "b"))
    assert str(caught.value) == message
