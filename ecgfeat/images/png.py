"""PNG: the chunks checked here, the picture decoded by Pillow.

Chunks and their rules as in the PNG specification (W3C, third edition), sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images import exif
from ecgfeat.images.pillow import CUT_OFF, in_mode, load

__all__ = ["MAGIC", "Png", "read_png"]

MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 65_536
"""Above what writers make of `MAX_BYTES` (libpng's data chunks have 8 KiB); bounds the time."""

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_GREY, _COLOUR, _PALETTE = 0, 2, 3
_USED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Png:
    """A PNG whose chunks have been checked.

    Attributes
    ----------
    size_px : tuple of int
        (width, height) as stored, before it is turned upright.
    depth, colour_type : int
        Bits per sample, and the header's number for what a sample means.
    transparent : bytes
        The tRNS chunk; empty where there is none.
    orientation : int
        EXIF's, 1 to 8.
    data : bytes
        The file without the chunks that don't make the picture.
    """

    size_px: tuple[int, int]
    depth: int
    colour_type: int
    transparent: bytes
    orientation: int
    data: bytes

    def decode(self) -> Image.Image:
        """Decode to RGB, as stored."""
        image = load(self.data, "PNG")
        if image.mode == "I;16":
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        colour = self._transparent_colour()
        if colour is not None:
            image.info["transparency"] = colour
        if not image.has_transparency_data:
            return in_mode("RGB", image)
        page = Image.new("RGB", image.size, "white")
        image = in_mode("RGBA", image)
        page.paste(image, mask=image)
        return page

    def _transparent_colour(self) -> int | tuple[int, ...] | None:
        """The colour that stands for "nothing here", at the 8 bits that Pillow compares."""
        n_samples = {_GREY: 1, _COLOUR: 3}.get(self.colour_type, 0)
        if not n_samples or len(self.transparent) != 2 * n_samples:
            return None
        samples = struct.unpack(f">{n_samples}H", self.transparent)
        if self.depth == 16:
            colour = tuple(sample >> 8 for sample in samples)
        else:
            largest = 2**self.depth - 1
            colour = tuple((sample & largest) * 255 // largest for sample in samples)
        return colour if n_samples == 3 else colour[0]


def read_png(data: bytes) -> Png:
    """Read and check the chunks, and keep those that make the picture.

    Raises
    ------
    ImageError
        When chunks are damaged, cut off, or not what the specification allows.
    """
    found: dict[bytes, list[memoryview]] = {kind: [] for kind in _USED}
    for kind, chunk in _chunks(data):
        if kind in found:
            found[kind].append(chunk)
        elif kind[:1].isupper():
            raise ImageError(f"damaged: the PNG needs the unknown chunk {kind.decode()}")
    width, height, depth, colour_type = _read_header(found[b"IHDR"])
    if not found[b"IDAT"]:
        raise ImageError("damaged: the PNG holds no picture data")
    picture = [*found[b"IHDR"]]
    if colour_type == _PALETTE:
        picture += [*_read_palette(found[b"PLTE"]), *found[b"tRNS"]]
    picture += [*found[b"IDAT"], *found[b"IEND"]]
    return Png(
        size_px=(width, height),
        depth=depth,
        colour_type=colour_type,
        transparent=_body(found[b"tRNS"]),
        orientation=exif.orientation(_body(found[b"eXIf"])),
        data=b"".join([MAGIC, *picture]),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's kind, and its bytes from length to checksum, up to the end chunk."""
    view = memoryview(data)
    position = len(MAGIC)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise ImageError(CUT_OFF)
        length, kind = struct.unpack_from(">I4s", data, position)
        if not (kind.isalpha() and kind.isascii()):
            raise ImageError("damaged: the PNG's chunks are not in sequence")
        end = position + 12 + length
        if end > len(data):
            raise ImageError(CUT_OFF)
        if kind in _USED:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise ImageError(f"damaged: a checksum in the PNG is wrong ({kind.decode()})")
        yield kind, view[position:end]
        if kind == b"IEND":
            return
        position = end
    raise ImageError(f"damaged: the PNG has more than {MAX_CHUNKS:,} chunks")


def _body(chunks: list[memoryview]) -> bytes:
    return bytes(chunks[0][8:-4]) if chunks else b""


def _read_header(chunks: list[memoryview]) -> tuple[int, int, int, int]:
    """(width, height, depth, colour type)."""
    if len(chunks) != 1 or len(chunks[0]) != 12 + 13:
        raise ImageError("damaged: the PNG must have one header of 13 bytes")
    width, height, *kind = struct.unpack(">2I5B", _body(chunks))
    depth, colour_type, compression, filters, interlace = kind
    if depth not in _DEPTHS.get(colour_type, ()) or compression or filters or interlace > 1:
        raise ImageError("damaged: the PNG's header names a kind of PNG that doesn't exist")
    return width, height, depth, colour_type


def _read_palette(chunks: list[memoryview]) -> list[memoryview]:
    n_bytes = len(_body(chunks))
    if len(chunks) != 1 or n_bytes % 3 or not 3 <= n_bytes <= 3 * 256:
        raise ImageError("damaged: the PNG's palette is missing or broken")
    return chunks
