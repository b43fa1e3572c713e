"""The frozen specification from page to network input, and its fingerprint.

Nothing here touches a pixel: `images` carries it out, the feature cache stores it, and two
caches are comparable exactly when their specifications are equal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ecgfeat.config import Clean, CropMode, PageSettings
from ecgfeat.errors import ConfigError

__all__ = ["EXACT_RESAMPLING", "FAST_RESAMPLING", "Geometry", "Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of the RGB channels in [0, 1] over ImageNet (torchvision's classification preset)."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same."""
EXACT_RESAMPLING = "pillow-bilinear"
"""Pillow's bilinear filter with antialiasing on 8-bit RGB: to the bit what torchvision's transform
does to a Pillow image. What float32 features and fine-tuning are given."""
FAST_RESAMPLING = "torch-bilinear"
"""The same filter as torch computes it, to the bit what torchvision's transforms.v2 do to an 8-bit
tensor: five to eight times as fast, and nowhere off by more than one grey level of 256. What
features below float32 are given."""
CLEANED = "+photo1"
"""After the resampling of pages that ``--clean photo`` cleaned; the number goes up when it cleans
otherwise. An ecgfeat that doesn't know it refuses the whole word."""


def cleaning_of(resampling: str) -> Clean:
    """How pages were cleaned, as the page options have it."""
    return "photo" if resampling.endswith(CLEANED) else "none"


RESAMPLINGS = (EXACT_RESAMPLING, FAST_RESAMPLING)
RESIZE_OVER_CROP = 256 / 224
"""The ImageNet preset resizes to 256 pixels and keeps 224 (He et al. 2016, section 3.4)."""


@dataclass(frozen=True)
class Geometry:
    """Where the network's input lies on the resized page.

    Attributes
    ----------
    resized_px : tuple of int
        (width, height) the page is resized to.
    offset_px : tuple of int
        (left, top) of the network input on the resized page. Negative where the input reaches
        beyond the page; what lies outside takes the colour of the page's paper.
    """

    resized_px: tuple[int, int]
    offset_px: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded RGB page to the network's input.

    Attributes
    ----------
    crop_mode : {"center", "border", "squash"}
    width_px, height_px : int
        Size of the network's input.
    resampling : {"pillow-bilinear", "torch-bilinear"}
        `EXACT_RESAMPLING` or `FAST_RESAMPLING`, with `CLEANED` after it where pages are cleaned.
    dpi : int
        Dots per inch that a PDF's pages are drawn at. Caches and models keep it with the decoder,
        where PDFs were among the images.
    mean, std : tuple of 3 floats
        Subtracted from and divided into the pixels after scaling them to [0, 1].

    Raises
    ------
    ConfigError
        When it is out of the page options' ranges, or the resampling isn't one of
        `RESAMPLINGS`: a stranger, or a later version, may have written it.
    """

    crop_mode: CropMode
    width_px: int
    height_px: int
    resampling: str = EXACT_RESAMPLING
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    dpi: int = PageSettings.dpi

    def __post_init__(self) -> None:
        if self.filter not in RESAMPLINGS:
            raise ConfigError(
                f"the resampling {self.resampling!r} is unknown to this version of ecgfeat, which "
                f"has {' and '.join(RESAMPLINGS)}: take the version that wrote it"
            )
        # Refuses what no option allows.
        PageSettings(crop_mode=self.crop_mode, size=self.size, dpi=self.dpi)

    @classmethod
    def from_settings(cls, settings: PageSettings, **others: Any) -> Preprocessing:
        """The specification that the page options ask for; `others` are the other fields."""
        if settings.clean == "photo":
            resampling = others.get("resampling", EXACT_RESAMPLING).removesuffix(CLEANED)
            others["resampling"] = resampling + CLEANED
        return cls(
            crop_mode=settings.crop_mode,
            width_px=settings.width_px,
            height_px=settings.height_px,
            dpi=settings.dpi,
            **others,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``, as a run's files have them: all but `dpi`."""
        fields = asdict(self)
        del fields["dpi"]
        return fields

    @property
    def filter(self) -> str:
        """The resampling alone, whether pages are cleaned or not."""
        return self.resampling.removesuffix(CLEANED)

    @property
    def clean(self) -> Clean:
        """How pages are cleaned, as the page options have it."""
        return cleaning_of(self.resampling)

    @property
    def page(self) -> PageSettings:
        """The page options that ask for it."""
        return PageSettings(
            crop_mode=self.crop_mode, size=self.size, dpi=self.dpi, clean=self.clean
        )

    @property
    def size(self) -> str:
        """The input's size as the command line writes it: ``224`` or ``448x320``."""
        square = self.width_px == self.height_px
        return str(self.width_px) if square else f"{self.width_px}x{self.height_px}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every field, hexadecimal; without the usual `dpi`, which was once fixed."""
        fields = self.as_json()
        if self.dpi != PageSettings.dpi:
            fields["dpi"] = self.dpi
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def geometry(self, page_px: tuple[int, int]) -> Geometry:
        """Lay the network's input over a page of the given (width, height) in pixels."""
        if self.crop_mode == "squash":
            return Geometry((self.width_px, self.height_px), (0, 0))
        resized = self._covering(page_px) if self.crop_mode == "center" else self._inside(page_px)
        return Geometry(resized, self._centred(resized))

    def _covering(self, page_px: tuple[int, int]) -> tuple[int, int]:
        # torchvision's Resize sets the shorter side exactly and truncates the longer one; for
        # an input that isn't square, "shorter" means the side that has less to spare.
        width, height = page_px
        wide = round(self.width_px * RESIZE_OVER_CROP)
        high = round(self.height_px * RESIZE_OVER_CROP)
        if width * high <= height * wide:
            return wide, int(wide * height / width)
        return int(high * width / height), high

    def _inside(self, page_px: tuple[int, int]) -> tuple[int, int]:
        scale = min(self.width_px / page_px[0], self.height_px / page_px[1])
        return (
            min(self.width_px, max(1, round(page_px[0] * scale))),
            min(self.height_px, max(1, round(page_px[1] * scale))),
        )

    def _centred(self, resized_px: tuple[int, int]) -> tuple[int, int]:
        # Rounded as torchvision's CenterCrop rounds.
        left = round((resized_px[0] - self.width_px) / 2.0)
        top = round((resized_px[1] - self.height_px) / 2.0)
        return left, top
