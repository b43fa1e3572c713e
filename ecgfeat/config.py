"""Every setting of ecgfeat, once: its default, its range and the reason for both.

The program's options are made from these dataclasses (name, default, range and help), the
library takes them as they are, and a run's ``config.json`` stores them. Upper limits that give no
reason of their own only catch slips of the keyboard. Standard library only.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ecgfeat.errors import ConfigError

__all__ = [
    "ARCHITECTURES",
    "TAPS",
    "ComputeSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExtractionSettings",
    "FinetuneSettings",
    "HeadSettings",
    "NetworkSettings",
    "PageSettings",
    "Settings",
    "SynthSettings",
    "as_json",
]

ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
"""torchvision's ResNet family, by its names: those that it has ImageNet weights for."""
TAPS = ("layer1", "layer2", "layer3", "layer4")
"""A ResNet's layers, whose average pools are the features."""

CropMode = Literal["center", "border", "squash"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Difficulty = Literal["easy", "medium", "hard"]
ImageFormat = Literal["jpeg", "png"]
HeadKind = Literal["linear", "logreg"]


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word every command line uses for it
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """Declare one setting; `above` and `below` are exclusive bounds, the others inclusive."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "metavar": metavar, "limits": limits},
    )


def comma_separated(text: str) -> tuple[str, ...]:
    """The words of a comma-separated option, without the empty ones."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def option_name(name: str) -> str:
    """The command line's word for a field: ``batch_size`` becomes ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings: checks each field's type and declared range when made.

    Raises
    ------
    ConfigError
        When a value is of another type or out of range; the message names the option.
    """

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            _check_type(item, value)
            _check_range(item, value)


def _check_type(item: dataclasses.Field[Any], value: object) -> None:
    for kind, accepted, words in (
        (int, numbers.Integral, "a whole number"),
        (float, numbers.Real, "a number"),
        (str, str, "text"),
    ):
        if type(item.default) is kind and not isinstance(value, accepted):
            raise ConfigError(f"{option_name(item.name)} must be {words}; found {value!r}")


def _check_range(item: dataclasses.Field[Any], value: object) -> None:
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(
            f"{option_name(item.name)} must be one of {', '.join(choices)}; found {value!r}"
        )
    if value is None or isinstance(value, (str, bool)) or not isinstance(value, (int, float)):
        return
    limits = item.metadata["limits"]
    outside = (
        (limits["minimum"] is not None and value < limits["minimum"])
        or (limits["above"] is not None and value <= limits["above"])
        or (limits["maximum"] is not None and value > limits["maximum"])
        or (limits["below"] is not None and value >= limits["below"])
        or value != value
    )
    if outside:
        raise ConfigError(
            f"{option_name(item.name)} must be {_range_in_words(limits)}; found {value:g}"
        )


def _range_in_words(limits: Mapping[str, float | None]) -> str:
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    return " and ".join(
        f"{word} {limits[key]:g}" for key, word in words.items() if limits[key] is not None
    )


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, ready for ``json.dumps``."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(settings).items()
    }


class _Sized:
    """What has a `size` in pixels, ``W`` or ``WxH``."""

    size: str

    @property
    def width_px(self) -> int:
        """Its width in pixels."""
        return int(self.size.split("x")[0])

    @property
    def height_px(self) -> int:
        """Its height in pixels."""
        return int(self.size.split("x")[-1])


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """The data.

    Which images there are, and which of them are for testing.
    """

    root: Path | None = setting(
        None, "Folder that the CSV's paths are relative to (default: the CSV's own folder)."
    )
    test_fraction: float = setting(
        0.2,
        "Share of each class that goes to test where the data name no split.",
        above=0,
        below=1,
    )
    split_seed: int = setting(
        0, "Seed of that split; every command given the same one agrees.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class PageSettings(_Sized, Settings):
    """From page to network input."""

    crop_mode: CropMode = setting(
        "center",
        "center: the ImageNet preset (short side to size*256/224, then the middle); "
        "border: the whole page, aspect kept, padded with its border's colour; "
        "squash: the whole page, stretched.",
        choices=get_args(CropMode),
    )
    size: str = setting("224", "Network input in pixels, W or WxH.", metavar="W|WxH")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", self.size):
            raise ConfigError(
                f"--size must be W or WxH in pixels, such as 224 or 448x320; found {self.size!r}"
            )
        if min(self.width_px, self.height_px) < 32 or max(self.width_px, self.height_px) > 4096:
            raise ConfigError(
                f"--size must be from 32 to 4096 pixels a side (a ResNet shrinks its input "
                f"32-fold); found {self.size!r}"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """The pretrained network."""

    arch: str = setting(
        "resnet18",
        f"One of {', '.join(ARCHITECTURES)}.",
        choices=ARCHITECTURES,
        metavar="NAME",
    )
    weights: str = setting(
        "imagenet",
        "imagenet: torchvision's default, downloaded once, hash checked; random or random:SEED; "
        "or the path of a state dict (.pth or .safetensors).",
        metavar="imagenet|random|PATH",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(Settings):
    """Computing.

    Where and how exactly the network is computed.
    """

    device: Device = setting(
        "auto", "auto takes CUDA, then MPS, then the CPU.", choices=get_args(Device)
    )
    precision: Precision = setting(
        "auto",
        "auto takes bfloat16 (CUDA without it: float16) where it is clearly faster, else fp32; in "
        "predict, the run's. Features below fp32 must first agree with it in a self-check.",
        choices=get_args(Precision),
    )
    threads: int = setting(
        0,
        "Threads that decode images; 0 takes one per core, 16 at most.",
        minimum=0,
        maximum=256,
    )


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(Settings):
    """Extraction.

    How the images are run through the frozen network.
    """

    batch_size: int = setting(
        0,
        "Images per forward pass; 0 takes 16 on the CPU (fastest there), 128 elsewhere.",
        minimum=0,
        maximum=4096,
    )
    limit: int = setting(
        0, "Only this many images, spread over classes and splits; 0 takes all.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Evaluation.

    Who trains, who is tested, and what counts as positive.
    """

    positive: str = setting(
        "",
        "Class (or classes: A,B) against the rest, as a binary task. With two classes and no "
        "option: 1 of 0/1, else the last in order.",
        metavar="A[,B]",
    )
    cv: int = setting(
        0,
        "Cross-validation folds: the split is ignored, every row is predicted once by a model "
        "that saw neither it nor its group; 0 uses the split.",
        minimum=0,
        maximum=100,
    )
    test_subset: int = setting(
        0,
        "Test on this many rows only, stratified, the same for every run on the same data (the "
        "study used 1000); 0 takes all.",
        minimum=0,
    )
    val_fraction: float = setting(
        0.0,
        "Share of the training rows (whole groups) kept out to draw validation curves.",
        minimum=0,
        below=1,
    )
    seed: int = setting(
        0,
        "Seed of new weights, order of the rows, folds and validation rows.",
        minimum=0,
        maximum=2**31 - 1,  # what numpy, torch and scikit-learn all take
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cv == 1:
            raise ConfigError("--cv must be 0 or at least 2 folds; found 1")
        if self.cv and self.test_subset:
            raise ConfigError(
                "--test-subset needs the test split, and --cv ignores it: give one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """The head.

    The linear head's epochs and learning rate are the study's.
    """

    layers: str = setting(
        "layer4", "Cached layers to join as features, comma-separated.", metavar="A[,B]"
    )
    epochs: int = setting(5, "Linear head: passes over the training rows.", minimum=1)
    lr: float = setting(0.001, "Linear head: Adam's learning rate.", above=0, maximum=10)
    batch_size: int = setting(64, "Linear head: rows per step.", minimum=1)
    weight_decay: float = setting(0.0, "Linear head: Adam's L2 penalty.", minimum=0, maximum=100)
    C: float = setting(
        1.0, "Logistic regression: inverse strength of its L2 penalty.", above=0, maximum=1e9
    )

    @property
    def taps(self) -> tuple[str, ...]:
        """The layers' names, in the order given."""
        return comma_separated(self.layers)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.taps or len(set(self.taps)) != len(self.taps):
            raise ConfigError(
                f"--layers must name each layer once, such as layer3,layer4; found {self.layers!r}"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Settings):
    """Training.

    The whole network's; epochs and learning rate are the study's.
    """

    epochs: int = setting(5, "Passes over the training images.", minimum=1)
    lr: float = setting(
        0.001,
        "Adam's learning rate. The study's 0.001 is high for a pretrained network; try 0.0001.",
        above=0,
        maximum=10,
    )
    # One image has no batch statistics.
    batch_size: int = setting(64, "Images per step.", minimum=2, maximum=4096)
    weight_decay: float = setting(0.0, "Adam's L2 penalty.", minimum=0, maximum=100)


@dataclass(frozen=True, kw_only=True)
class SynthSettings(_Sized, Settings):
    """The pages."""

    train: int = setting(800, "Training pages, half of them per class.", minimum=2)
    test: int = setting(200, "Test pages, half of them per class.", minimum=0)
    seed: int = setting(0, "Same seed, same pages, byte for byte.", minimum=0)
    difficulty: Difficulty = setting(
        "medium",
        "How slight the pathology is, and how much pages differ otherwise.",
        choices=get_args(Difficulty),
    )
    size: str = setting("400x300", "Page in pixels, WxH.", metavar="WxH")
    format: ImageFormat = setting(
        "jpeg", "jpeg (quality 90) or png.", choices=get_args(ImageFormat)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9][0-9]{2,3}x[1-9][0-9]{2,3}", self.size):
            raise ConfigError(
                f"--size must be WxH in pixels, each from 100 to 9999, such as 400x300; "
                f"found {self.size!r}"
            )
