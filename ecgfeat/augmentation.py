"""Pages changed a little in training, in the ways that paper, scanners, cameras and copiers do.

Every change keeps an ECG an ECG: what a reader would read off the page stays the same. So
nothing is ever mirrored (that reverses time, or turns a wave upside down), and one factor
scales both axes, so that intervals keep their proportion to voltages, and both to the grid.

How far each change goes is an `Amounts`, of which two have names: ``light`` is what a scanner,
an export or another printer does, ``strong`` what a camera, a copier or a file passed on many
times does. ``photo`` is what ``light`` does, and then mostly a photograph of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ecgfeat.images.streaming import paper_colour
from ecgfeat.photograph import AMOUNTS as PHOTOGRAPHS
from ecgfeat.photograph import photograph, through_jpeg

__all__ = ["AMOUNTS", "Amounts", "augment", "augmenting"]

Page = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How far each change may go; each is drawn evenly within its bounds.

    Attributes
    ----------
    shift : float
        Of the page's width and height, either way.
    scale : float
        One factor for both axes, from ``1 - scale`` to ``1 + scale``.
    rotation_deg : float
        Either way. Sheets lie askew by about 2 degrees in a scanner, by more before a camera.
    brightness, contrast : float
        Factors, from ``1 - x`` to ``1 + x``: of all light, and of the ink's distance from the
        paper, whose own colour contrast leaves as it is.
    saturation : float
        A factor of the colour, from ``1 - x`` to ``1 + x``: at 0 the page is a grey copy.
    hue_deg : float
        How far colours go round the circle: grids are red, orange, green or blue.
    blur_px : float
        Largest standard deviation of a Gaussian, in pixels of the network's input.
    jpeg_quality : int
        The lowest quality that the page is compressed with and read again; 100 leaves it.
    erased : float
        Largest share of the area that a rectangle of paper covers, as a label or a stamp does
        (random erasing, Zhong et al. 2020).
    """

    shift: float
    scale: float
    rotation_deg: float
    brightness: float
    contrast: float
    saturation: float
    hue_deg: float
    blur_px: float
    jpeg_quality: int
    erased: float


AMOUNTS = {
    "light": Amounts(
        shift=0.02,
        scale=0.03,
        rotation_deg=2,
        brightness=0.1,
        contrast=0.1,
        saturation=0.3,
        hue_deg=10,
        blur_px=0.5,
        jpeg_quality=70,
        erased=0.02,
    ),
    "strong": Amounts(
        shift=0.05,
        scale=0.1,
        rotation_deg=5,
        brightness=0.2,
        contrast=0.3,
        saturation=1.0,
        hue_deg=180,
        blur_px=0.8,
        jpeg_quality=40,
        erased=0.1,
    ),
}
"""By the names that ``--augment`` knows; ``none`` has no amounts, ``photo`` light's and more."""

OFTEN = 0.5
"""Share of pages that are blurred, compressed, erased: each also stays untouched as often."""
LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""


def augmenting(strength: str, *, seed: int, fold: int, epoch: int) -> Callable[[int, Page], Page]:
    """How the pages of an epoch are changed.

    A page's changes follow from seed, fold, epoch and row alone, so neither the threads nor an
    interruption changes them.

    Parameters
    ----------
    strength : {"light", "strong", "photo"}
    seed, fold, epoch : int

    Returns
    -------
    callable
        What `ecgfeat.images.stream` takes as `alter`.
    """
    amounts = AMOUNTS["light" if strength == "photo" else strength]

    def alter(row: int, page: Page) -> Page:
        rng = np.random.default_rng((seed, fold, epoch, row))
        page = augment(page, amounts, rng)
        return _photographed(page, rng) if strength == "photo" else page

    return alter


def augment(page: Page, amounts: Amounts, rng: np.random.Generator) -> Page:
    """Change a page.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
    amounts : Amounts
    rng : Generator
        As many numbers are drawn for every page.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
    """
    # In the order in which it befalls a page: on the table, under the lamp, in the file.
    image = Image.fromarray(page)
    paper = paper_colour(image)
    image = _placed(image, paper, amounts, rng)
    image = _erased(image, paper, amounts, rng)
    image = _lit(image, paper, amounts, rng)
    image = _blurred(image, amounts, rng)
    return _compressed(image, amounts, rng)


def _photographed(page: Page, rng: np.random.Generator) -> Page:
    """At each strength as often, and as often not at all, so that scans stay known."""
    amounts = (None, *PHOTOGRAPHS.values())[rng.integers(1 + len(PHOTOGRAPHS))]
    if amounts is None:
        return page
    return np.asarray(photograph(Image.fromarray(page), amounts, rng))


def _within(bound: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(-bound, bound))


def _placed(
    image: Image.Image, paper: tuple[int, ...], amounts: Amounts, rng: np.random.Generator
) -> Image.Image:
    """Shifted, scaled and turned about its middle in one go; paper comes in from outside."""
    width, height = image.size
    shift_x, shift_y = _within(amounts.shift, rng) * width, _within(amounts.shift, rng) * height
    scale = 1 + _within(amounts.scale, rng)
    angle = math.radians(_within(amounts.rotation_deg, rng))
    # Pillow asks where on the old page a pixel (x, y) of the new one comes from:
    # R(-angle) / scale times (x - middle - shift), and the middle again.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    from_x, from_y = width / 2 + shift_x, height / 2 + shift_y
    inverse = (
        *(cos, sin, width / 2 - cos * from_x - sin * from_y),
        *(-sin, cos, height / 2 + sin * from_x - cos * from_y),
    )
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        inverse,
        Image.Resampling.BILINEAR,
        fillcolor=paper,
    )


def _erased(
    image: Image.Image, paper: tuple[int, ...], amounts: Amounts, rng: np.random.Generator
) -> Image.Image:
    """A rectangle between half and twice as wide as high, covered with paper."""
    often, share, aspect, x, y = rng.uniform(size=5).tolist()
    area_px = image.width * image.height * share * amounts.erased
    aspect = 2 ** (2 * aspect - 1)
    width, height = round(math.sqrt(area_px * aspect)), round(math.sqrt(area_px / aspect))
    if often < OFTEN and width and height:
        left, top = round(x * (image.width - width)), round(y * (image.height - height))
        image.paste(paper, (left, top, left + width, top + height))
    return image


def _lit(
    image: Image.Image, paper: tuple[int, ...], amounts: Amounts, rng: np.random.Generator
) -> Image.Image:
    """Brightness, contrast, saturation and hue, as one matrix over red, green and blue."""
    brightness = 1 + _within(amounts.brightness, rng)
    contrast = 1 + _within(amounts.contrast, rng)
    saturation = 1 + _within(amounts.saturation, rng)
    colour = _saturating(saturation) @ _turning_hue(_within(amounts.hue_deg, rng))
    # colour(paper + contrast * (pixel - paper)), which is linear in the pixel but for a constant
    linear = brightness * contrast * colour
    constant = brightness * (1 - contrast) * (colour @ np.array(paper))
    matrix = np.column_stack([linear, constant])
    return image.convert("RGB", tuple(matrix.ravel().tolist()))


def _saturating(factor: float) -> NDArray[np.float64]:
    """Away from, or towards, the grey of the same brightness; greys stay."""
    grey = np.tile(LUMA, (3, 1))
    return factor * np.eye(3) + (1 - factor) * grey


def _turning_hue(degrees: float) -> NDArray[np.float64]:
    """Rotate about the axis of the greys, which stay (Rodrigues' formula)."""
    angle = math.radians(degrees)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    along = np.full((3, 3), 1 / 3)
    return math.cos(angle) * np.eye(3) + (1 - math.cos(angle)) * along + math.sin(angle) * across


def _blurred(image: Image.Image, amounts: Amounts, rng: np.random.Generator) -> Image.Image:
    often, share = rng.uniform(size=2).tolist()
    if often < OFTEN and amounts.blur_px:
        return image.filter(ImageFilter.GaussianBlur(share * amounts.blur_px))
    return image


def _compressed(image: Image.Image, amounts: Amounts, rng: np.random.Generator) -> Page:
    page: Page = np.asarray(image)
    often, share = rng.uniform(size=2).tolist()
    if often < OFTEN and amounts.jpeg_quality < 100:
        quality = round(100 - share * (100 - amounts.jpeg_quality))
        page = through_jpeg(page, quality)
    return page
