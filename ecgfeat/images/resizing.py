"""From the page to the network's input: one resize, then cut out or pad."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images.formats import MAX_PIXELS, Page, as_array, as_image, size_px
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing

__all__ = ["fit", "paper_colour", "prepare"]


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
        make of the page: with ``pillow-bilinear`` as a Pillow image, with ``torch-bilinear``
        those of ``transforms.v2`` as an 8-bit tensor.

    Raises
    ------
    ImageError
        When the page is so narrow that ``center`` would enlarge it beyond all bounds.
    """
    return np.array(fit(page, preprocessing))


def fit(page: Page, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`prepare` for a page of either kind; the array may be a view, or one not to be written to."""
    width, height = size_px(page)
    geometry = preprocessing.geometry((width, height))
    wide, high = geometry.resized_px
    if wide * high > MAX_PIXELS:
        raise ImageError(
            f"too narrow: crop mode {preprocessing.crop_mode} would resize its "
            f"{width:,} x {height:,} pixels to {wide:,} x {high:,}; "
            "take --crop-mode border or squash"
        )
    resize = _fast_resize if preprocessing.resampling == FAST_RESAMPLING else _exact_resize
    resized = resize(page, (wide, high))
    left, top = geometry.offset_px
    if wide >= preprocessing.width_px and high >= preprocessing.height_px:
        return resized[top : top + preprocessing.height_px, left : left + preprocessing.width_px]
    canvas = np.empty((preprocessing.height_px, preprocessing.width_px, 3), np.uint8)
    canvas[:] = paper_colour(page)
    canvas[-top : high - top, -left : wide - left] = resized
    return canvas


def _exact_resize(page: Page, to_px: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(as_image(page).resize(to_px, Image.Resampling.BILINEAR))


def _fast_resize(page: Page, to_px: tuple[int, int]) -> NDArray[np.uint8]:
    import torch

    # (1, 3, height, width) over the page's own bytes, which is torch's channels_last.
    pixels = torch.from_numpy(as_array(page))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        pixels, size=(to_px[1], to_px[0]), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()


def paper_colour(page: Page) -> tuple[int, int, int]:
    """The colour of the page's paper: what most of it looks like.

    Of tones 32 levels wide in each channel the most frequent is taken (of two the darker), and
    its per-channel median. Not from the edges alone, which may run along a line of the grid.
    """
    array = np.asarray(page)
    rows, columns = (_spread(n, at_most) for n, at_most in zip(array.shape, _SAMPLED))
    pixels = array[rows[:, None], columns].reshape(-1, 3)
    tones = pixels >> 5
    codes = (tones[:, 0].astype(np.intp) << 6) | (tones[:, 1] << 3) | tones[:, 2]
    alike = pixels[codes == np.bincount(codes).argmax()]
    middle = len(alike) // 2
    red, green, blue = np.partition(alike, middle, axis=0)[middle].tolist()
    return red, green, blue


_SAMPLED = (97, 101)
"""Rows and columns looked at: primes, so that their distance is hardly ever the grid's."""


def _spread(n: int, at_most: int) -> NDArray[np.intp]:
    """Up to `at_most` positions, spread evenly over `n`."""
    n_taken = min(n, at_most)
    return (2 * np.arange(n_taken) + 1) * n // (2 * n_taken)
