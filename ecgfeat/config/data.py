"""The data: which images, and synthetic ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ecgfeat.config.pages import Sized
from ecgfeat.config.setting import Settings, setting
from ecgfeat.errors import ConfigError

__all__ = ["DataSettings", "Difficulty", "ImageFormat", "SynthSettings"]

Difficulty = Literal["easy", "medium", "hard"]
ImageFormat = Literal["jpeg", "png"]


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
class SynthSettings(Sized, Settings):
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
