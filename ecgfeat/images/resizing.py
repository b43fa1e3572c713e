"""From the page to the network's input: one resize, then cut out or pad."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images.decoding import MAX_PIXELS, Page, as_array, as_image, size_px
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing

__all__ = ["border_colour", "fit", "prepare"]


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
    canvas[:] = border_colour(page)
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


def border_colour(page: Page) -> tuple[int, ...]:
    """Per-channel median of the page's four edges, one pixel wide; of two middles the upper."""
    pixels = np.concatenate(_edges(page))
    middle = len(pixels) // 2
    return tuple(np.partition(pixels, middle, axis=0)[middle].tolist())


def _edges(page: Page) -> list[NDArray[np.uint8]]:
    """The page's four edges, each of shape (n, 3)."""
    if not isinstance(page, Image.Image):
        return [page[0], page[-1], page[:, 0], page[:, -1]]
    width, height = page.size
    edges = (
        (0, 0, width, 1),
        (0, height - 1, width, height),
        (0, 0, 1, height),
        (width - 1, 0, width, height),
    )
    return [np.asarray(page.crop(edge)).reshape(-1, 3) for edge in edges]
