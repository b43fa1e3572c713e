"""From page to network input, and the sheet that shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ecgfeat.config.setting import Settings, setting
from ecgfeat.errors import ConfigError

__all__ = ["CropMode", "PageSettings", "PreviewSettings", "Sized"]

CropMode = Literal["center", "border", "squash"]


class Sized:
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
class PageSettings(Sized, Settings):
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
class PreviewSettings(Settings):
    """The sheet."""

    n: int = setting(
        3,
        "Images per class, chosen by a hash of their paths: always the same.",
        minimum=1,
        maximum=1000,
    )
