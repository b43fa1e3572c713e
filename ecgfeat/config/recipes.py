"""Recipes: sets of ordinary options, from the page to the head, that go well together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ecgfeat.config.base import Settings, comma_separated, setting
from ecgfeat.config.options import (
    ExtractionSettings,
    FinetuneSettings,
    HeadKind,
    HeadSettings,
    PageSettings,
)
from ecgfeat.errors import ConfigError

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPES",
    "RECIPE_OF_OLD_CACHES",
    "Recipe",
    "RecipeListSettings",
    "RecipeName",
    "RecipeSettings",
]

RecipeName = Literal["paper", "quick", "ecg"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A set of options under one name.

    Attributes
    ----------
    name : str
    summary : str
        What it does, in a line.
    page : PageSettings
    extraction : ExtractionSettings
    kinds : tuple of {"linear", "logreg"}
        The heads that are fitted, in a run each.
    head : HeadSettings
    training : FinetuneSettings

    Examples
    --------
    >>> RECIPES["paper"].page.crop_mode
    'center'
    """

    name: RecipeName
    summary: str
    page: PageSettings = PageSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    kinds: tuple[HeadKind, ...] = ("linear",)
    head: HeadSettings = HeadSettings()
    training: FinetuneSettings = FinetuneSettings()


# In a grid's cells early layers tell the shape of the traces, lead by lead; the later layers'
# averages tell of the page as a whole. On real pages and beats each alone did worse on some.
_PLACES = "layer1-4x4,layer2-4x4"
# So many features for so few pages want a strong penalty.
_STRONG = 0.01
# The study's rate of 0.001 undoes what the network was pretrained for.
_GENTLE = FinetuneSettings(lr=1e-4, epochs=10, batch_size=32)

_ALL = (
    Recipe(
        name="paper",
        summary="the study's: the ImageNet crop of 224 pixels, layer4, a linear head",
        page=PageSettings(crop_mode="center", size="224"),
        extraction=ExtractionSettings(layers="layer1,layer2,layer3,layer4"),
        head=HeadSettings(epochs=5, standardize=False),
    ),
    Recipe(
        name="quick",
        summary="the whole page at 320x224, layer1 and layer2 in the cells of a 4x4 grid and "
        "layer3, logistic regression",
        page=PageSettings(crop_mode="squash", size="320x224"),
        extraction=ExtractionSettings(layers=f"{_PLACES},layer3"),
        kinds=("logreg",),
        head=HeadSettings(layers=f"{_PLACES},layer3", C=_STRONG),
        training=_GENTLE,
    ),
    Recipe(
        name="ecg",
        summary="the whole page at 448x320, layer1 and layer2 in the cells of a 4x4 grid, "
        "layer3 and layer4, logistic regression",
        kinds=("logreg",),
        head=HeadSettings(layers=ExtractionSettings().layers, C=_STRONG),
        training=_GENTLE,
    ),
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
"""The recipes by name."""
DEFAULT_RECIPE: RecipeName = "ecg"
"""What the commands take where nothing is said, as the settings of page and extraction do.
docs/results.md has the evidence."""
RECIPE_OF_OLD_CACHES: RecipeName = "paper"
"""Of those that were written before caches named theirs."""


_DEFAULTS = (
    "A set of the options below, of which those given by hand win (default: "
    f"{DEFAULT_RECIPE}; in fit-head the cache's; with --from-head the head's)."
)
_SUMMARIES = "\n\n".join(f"{recipe.name}: {recipe.summary}." for recipe in _ALL)


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(Settings):
    """The recipe."""

    recipe: RecipeName | None = setting(
        None,
        f"{_DEFAULTS}\n\n{_SUMMARIES}",
        choices=get_args(RecipeName),
        metavar="|".join(RECIPES),
    )

    def chosen(self, default: str = DEFAULT_RECIPE) -> Recipe:
        """The recipe asked for, else the one called `default`.

        Raises
        ------
        ConfigError
            When there is none of that name.
        """
        name = self.recipe or default
        if name not in RECIPES:
            raise ConfigError(
                f"this ecgfeat has no recipe {name!r}: give --recipe, one of {', '.join(RECIPES)}"
            )
        return RECIPES[name]


@dataclass(frozen=True, kw_only=True)
class RecipeListSettings(Settings):
    """The recipes."""

    recipe: str = setting(
        "",
        f"{_DEFAULTS} Several, such as paper,ecg, are drawn beside each other.\n\n{_SUMMARIES}",
        metavar=f"{'|'.join(RECIPES)}[,…]",
    )

    def chosen(self) -> tuple[Recipe, ...]:
        """The recipes asked for, in the order given; else the default one.

        Raises
        ------
        ConfigError
            When a name is none's, or comes twice.
        """
        names = comma_separated(self.recipe) or (DEFAULT_RECIPE,)
        unknown = [name for name in names if name not in RECIPES]
        if unknown or len(set(names)) < len(names):
            raise ConfigError(
                f"--recipe takes recipes, each once, of {', '.join(RECIPES)}; found {self.recipe!r}"
            )
        return tuple(RECIPES[name] for name in names)
