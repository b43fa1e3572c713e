"""From a file's bytes to an upright RGB page; the package's docstring has the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray

from ecgfeat.errors import ImageError
from ecgfeat.images import exif, jpeg, png
from ecgfeat.images.files import read_file
from ecgfeat.images.formats import foreign_format
from ecgfeat.images.pages import Page, as_array
from ecgfeat.images.pillow import blaming_the_file

__all__ = ["DECODER", "MAX_PIXELS", "MAX_SIDE_PX", "decode"]

DECODER = f"rgb 1, pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"
"""What decides the pixels: the version of the rules in the package's docstring, and the decoders.
Part of a feature cache's identity."""

MAX_PIXELS = 2**30 // 12
"""Largest page, 89 megapixels: 600-dpi A3 has 70. Decoding takes up to 12 bytes per pixel, so this
is 1 GiB; it is also the size from which Pillow warns of a decompression bomb."""
MAX_SIDE_PX = 65_535
"""Longest side: what a JPEG can have."""


class Picture(Protocol):
    """A file whose header has been read and found fit to decode."""

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) as stored."""

    @property
    def orientation(self) -> int:
        """EXIF's, 1 to 8."""

    def decode(self) -> Page:
        """The picture in RGB, as stored; where the data are damaged, any error may be raised."""


def decode(source: Path) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG file.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        The page in RGB, upright.

    Raises
    ------
    ImageError
        When the file can't be read or decoded; the message is the reason.
    """
    return as_array(decode_picture(read_header(read_file(source))))


def read_header(data: bytes) -> Picture:
    """Find out what the bytes are; no decoder runs.

    Raises
    ------
    ImageError
        When they are neither JPEG nor PNG, their header is not sound, or the picture is too large.
    """
    picture = _read_format(data)
    width, height = picture.size_px
    if not width or not height:
        raise ImageError(f"damaged: the picture has {width:,} x {height:,} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too many pixels: {width:,} x {height:,}, at most {MAX_PIXELS / 1e6:.0f} million "
            "are decoded"
        )
    if max(width, height) > MAX_SIDE_PX:
        raise ImageError(
            f"too long: {width:,} x {height:,} pixels, at most {MAX_SIDE_PX:,} a side are decoded"
        )
    return picture


def decode_picture(picture: Picture) -> Page:
    """Decode to an upright page in RGB; raises ImageError when the data are damaged."""
    with blaming_the_file():
        return exif.turned_upright(picture.decode(), picture.orientation)


def _read_format(data: bytes) -> Picture:
    if _begins(data, jpeg.MAGIC):
        return jpeg.read_jpeg(data)
    if _begins(data, png.MAGIC):
        return png.read_png(data)
    name = foreign_format(data)
    if name is not None:
        raise ImageError(f"not a JPEG or PNG picture but {name}")
    if not data.strip(b"\x00"):
        raise ImageError("not a picture: every byte is zero")
    raise ImageError("not a JPEG or PNG picture")


def _begins(data: bytes, magic: bytes) -> bool:
    return data.startswith(magic) or magic.startswith(data)
