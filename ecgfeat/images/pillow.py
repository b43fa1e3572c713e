"""Pillow as a decoder that strangers feed: one format at a time, and any error is the file's."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from ecgfeat.errors import ImageError

__all__ = ["CUT_OFF", "blaming_the_file", "in_mode", "load"]

CUT_OFF = "cut off: the file ends before the picture does"


def load(data: bytes, image_format: str) -> Image.Image:
    """Decode the first picture in `data`, as nothing but "JPEG" or "PNG", in Pillow's own mode."""
    image = Image.open(io.BytesIO(data), formats=(image_format,))
    image.load()
    return image


def in_mode(mode: str, image: Image.Image) -> Image.Image:
    """Convert to Pillow's `mode`; unlike `convert`, copy nothing that has it already."""
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def blaming_the_file() -> Iterator[None]:
    """Turn what Pillow raises into an ImageError that says in plain words what is wrong.

    Everything but a lack of memory: on broken files it raises errors of many kinds.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if "truncated" in str(error).lower() or isinstance(error, (EOFError, struct.error)):
        return CUT_OFF
    if isinstance(error, UnidentifiedImageError):  # its own message names an address in memory
        return "damaged: the header is not sound"
    return f"damaged: the picture data are not sound ({error})"
