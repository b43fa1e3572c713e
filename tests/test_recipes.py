from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

import ecgfeat
from ecgfeat.config import (
    DEFAULT_RECIPE,
    RECIPES,
    ExtractionSettings,
    FinetuneSettings,
    HeadSettings,
    PageSettings,
    Recipe,
    RecipeName,
    RecipeSettings,
)
from ecgfeat.errors import ConfigError


def test_the_recipes_go_by_their_own_names() -> None:
    assert tuple(RECIPES) == get_args(RecipeName) == ("paper", "quick", "ecg")
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert DEFAULT_RECIPE in RECIPES
    assert ecgfeat.RECIPES is RECIPES
    assert ecgfeat.Recipe is Recipe


def test_the_settings_own_page_and_layers_are_the_default_recipe_s() -> None:
    default = RECIPES[DEFAULT_RECIPE]
    assert default.page == PageSettings()
    assert default.extraction == ExtractionSettings()
    assert default.page == PageSettings(crop_mode="squash", size="448x320")
    assert default.extraction.layers == "layer1-4x4,layer2-4x4,layer3,layer4"


def test_the_study_s_recipe_is_the_study_s() -> None:
    paper = RECIPES["paper"]
    assert paper.page == PageSettings(crop_mode="center", size="224")
    assert paper.extraction.taps == ("layer1", "layer2", "layer3", "layer4")
    assert paper.kinds == ("linear",)
    assert paper.head == HeadSettings(layers="layer4", epochs=5, standardize=False)
    assert paper.training == FinetuneSettings()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_caches_what_its_own_head_reads(recipe: Recipe) -> None:
    assert set(recipe.head.taps) <= set(recipe.extraction.taps)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_recipe_is_told_in_a_line(recipe: Recipe) -> None:
    assert recipe.summary
    assert "\n" not in recipe.summary
    assert not recipe.summary.endswith(".")


def test_recipes_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["ecg"].name = "paper"  # type: ignore[misc]
    with pytest.raises(TypeError):
        RECIPES["mine"] = RECIPES["ecg"]  # type: ignore[index]


def test_a_recipe_is_chosen_by_hand_or_by_default() -> None:
    assert RecipeSettings().chosen() is RECIPES[DEFAULT_RECIPE]
    assert RecipeSettings().chosen("quick") is RECIPES["quick"]
    assert RecipeSettings(recipe="paper").chosen("quick") is RECIPES["paper"]


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^--recipe must be one of paper, quick, ecg; found 'x'$"
    ):
        RecipeSettings(recipe="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        RecipeSettings().chosen("later")
    assert str(caught.value) == (
        "this ecgfeat has no recipe 'later': give --recipe, one of paper, quick, ecg"
    )
