"""A decoded page, in the form that its decoder gives: turning one into the other copies it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Page", "as_array", "as_image", "size_px"]

Page = Image.Image | NDArray[np.uint8]
"""In RGB: a Pillow image, or an array of shape (height, width, 3)."""


def as_image(page: Page) -> Image.Image:
    """The page as a Pillow image."""
    return page if isinstance(page, Image.Image) else Image.fromarray(page)


def as_array(page: Page) -> NDArray[np.uint8]:
    """The page as an array that lies in one piece and can be written to, as torch wants it."""
    return np.require(page, np.uint8, ["C", "W"])


def size_px(page: Page) -> tuple[int, int]:
    """(width, height)."""
    if isinstance(page, Image.Image):
        return page.size
    return page.shape[1], page.shape[0]
