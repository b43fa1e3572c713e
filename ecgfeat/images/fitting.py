"""From the page to the network's input: one resize, then cut out or pad."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images.decoding import MAX_PIXELS
from ecgfeat.preprocessing import Preprocessing

__all__ = ["prepare"]


def prepare(page: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bring a page to the network's input, before normalisation.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
        In RGB, as `decode` gives it.
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of shape (preprocessing.height_px, preprocessing.width_px, 3), uint8
        In crop mode ``center``, byte for byte what torchvision's ``Resize`` and ``CenterCrop``
        make of the page as a Pillow image.

    Raises
    ------
    ImageError
        When the page is so narrow that ``center`` would enlarge it beyond all bounds.
    """
    return np.array(fit(Image.fromarray(page), preprocessing))


def fit(page: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`prepare` for a page that is a Pillow image; the array can't be written to."""
    geometry = preprocessing.geometry(page.size)
    width, height = geometry.resized_px
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too narrow: crop mode {preprocessing.crop_mode} would resize its "
            f"{page.width:,} x {page.height:,} pixels to {width:,} x {height:,}; "
            "take --crop-mode border or squash"
        )
    resized = page.resize(geometry.resized_px, Image.Resampling.BILINEAR)
    left, top = geometry.offset_px
    size_px = (preprocessing.width_px, preprocessing.height_px)
    covers = width >= size_px[0] and height >= size_px[1]
    canvas = Image.new("RGB", size_px, 0 if covers else border_colour(page))
    canvas.paste(resized, (-left, -top))
    return np.asarray(canvas)


def border_colour(page: Image.Image) -> tuple[int, ...]:
    """Per-channel median of the page's four edges, one pixel wide; of two middles the upper."""
    width, height = page.size
    edges = (
        (0, 0, width, 1),
        (0, height - 1, width, height),
        (0, 0, 1, height),
        (width - 1, 0, width, height),
    )
    pixels = np.concatenate([np.asarray(page.crop(edge)).reshape(-1, 3) for edge in edges])
    middle = len(pixels) // 2
    return tuple(np.partition(pixels, middle, axis=0)[middle].tolist())
