"""Every setting of ecgfeat, once: its default, its range and the reason for both.

The program's options are made from these dataclasses (name, default, range and help), the
library takes them as they are, and a run's ``config.json`` stores them. Upper limits that give no
reason of their own only catch slips of the keyboard. Standard library only.
"""

from ecgfeat.config.data import DataSettings, Difficulty, ImageFormat, SynthSettings
from ecgfeat.config.evaluation import EvaluationSettings
from ecgfeat.config.finetuning import (
    BatchNorm,
    EpochChoice,
    FinetuneSettings,
    FreezeTo,
    Optimizer,
    Schedule,
    Strength,
)
from ecgfeat.config.heads import ChoiceScore, ClassWeights, HeadKind, HeadSettings, SweepSettings
from ecgfeat.config.network import (
    ARCHITECTURES,
    ComputeSettings,
    Device,
    ExtractionSettings,
    NetworkSettings,
    Precision,
)
from ecgfeat.config.pages import CropMode, PageSettings, PreviewSettings
from ecgfeat.config.recipes import (
    DEFAULT_RECIPE,
    RECIPES,
    Recipe,
    RecipeName,
    RecipeSettings,
)
from ecgfeat.config.setting import Settings, as_json, comma_separated, option_name, setting
from ecgfeat.config.taps import LAYERS, TAPS, Tap, parse_tap

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_RECIPE",
    "LAYERS",
    "RECIPES",
    "TAPS",
    "BatchNorm",
    "ChoiceScore",
    "ClassWeights",
    "ComputeSettings",
    "CropMode",
    "DataSettings",
    "Device",
    "Difficulty",
    "EpochChoice",
    "EvaluationSettings",
    "ExtractionSettings",
    "FinetuneSettings",
    "FreezeTo",
    "HeadKind",
    "HeadSettings",
    "ImageFormat",
    "NetworkSettings",
    "Optimizer",
    "PageSettings",
    "Precision",
    "PreviewSettings",
    "Recipe",
    "RecipeName",
    "RecipeSettings",
    "Schedule",
    "Settings",
    "Strength",
    "SweepSettings",
    "SynthSettings",
    "Tap",
    "as_json",
    "comma_separated",
    "option_name",
    "parse_tap",
    "setting",
]
