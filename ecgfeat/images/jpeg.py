"""JPEG: the header read here, the picture decoded by libjpeg-turbo.

Markers and segments as in ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images import exif
from ecgfeat.images.pages import Page
from ecgfeat.images.pillow import CUT_OFF, in_mode, load

__all__ = ["MAGIC", "Jpeg", "read_jpeg"]

MAGIC = b"\xff\xd8"

MAX_SEGMENTS = 65_536
"""Far above any writer's (a colour profile takes 255 at most); bounds the time to read them."""
MAX_SCANS = 100
"""Progressive files have about ten. Each costs a pass over the picture, but hardly a byte."""

_UNSOUND_HEADER = "damaged: the JPEG header is not sound"
_MARKER = re.compile(rb"\xff++(.)", re.DOTALL)
_EOI = b"\xff\xd9"
_SOS = 0xDA
_WITHOUT_BODY = {0x00, 0x01, *range(0xD0, 0xDA)}  # none of which has a place in a header
_TABLES = {0xC4, 0xDB, 0xDD}  # Huffman, quantization, restart interval
_SEQUENTIAL, _PROGRESSIVE = {0xC0, 0xC1}, {0xC2}
_FOREIGN_FRAMES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic coding",
    0xCA: "arithmetic coding",
    0xCB: "arithmetic coding",
    0xCD: "arithmetic coding",
    0xCE: "arithmetic coding",
    0xCF: "arithmetic coding",
    0xF7: "JPEG-LS",
}
_FRAMES = {*_SEQUENTIAL, *_PROGRESSIVE, *_FOREIGN_FRAMES}
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_EXIF = b"Exif\x00\x00"
_JFIF = b"JFIF\x00"
_JFIF_1_01 = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


@dataclass(frozen=True, kw_only=True, eq=False)
class Jpeg:
    """A JPEG whose header has been read.

    Attributes
    ----------
    size_px : tuple of int
        (width, height) as stored, before it is turned upright.
    n_components : int
        1 grey, 3 colour, 4 CMYK or YCCK.
    orientation : int
        EXIF's, 1 to 8.
    data : bytes
        The file without the segments that don't make the picture.
    """

    size_px: tuple[int, int]
    n_components: int
    orientation: int
    data: bytes

    def decode(self) -> Page:
        """Decode to RGB, as stored."""
        width, height = self.size_px
        cmyk = self.n_components == 4
        page = np.empty((height, width, 4 if cmyk else 3), np.uint8)
        try:
            simplejpeg.decode_jpeg(self.data, "CMYK" if cmyk else "RGB", buffer=page)
        except ValueError as error:
            if "subsampling" in str(error):  # one that TurboJPEG has no name for; libjpeg has
                return in_mode("RGB", load(self.data, "JPEG"))
            raise ImageError(f"damaged: the JPEG data are not sound ({error})") from error
        if cmyk:
            return Image.fromarray(np.invert(page, out=page), "CMYK").convert("RGB")
        return page


class _Segment(NamedTuple):
    marker: int
    data: bytes  # with its marker and length

    @property
    def body(self) -> bytes:
        return self.data[4:]

    @property
    def for_decoder(self) -> bytes:
        """What of it makes the picture: often nothing."""
        if self.marker in _TABLES or self.marker in _FRAMES:
            return self.data
        # JFIF and Adobe say which colours the components are; JFIF by being there, while the
        # decoder complains of revisions that it doesn't know.
        if self.marker == _APP0 and self.body.startswith(_JFIF):
            return _JFIF_1_01
        if self.marker == _APP14 and self.body.startswith(b"Adobe"):
            return self.data
        return b""


def read_jpeg(data: bytes) -> Jpeg:
    """Read the header, and keep what makes the picture.

    Raises
    ------
    ImageError
        When the header is damaged or cut off, or tells of a kind of JPEG that isn't supported.
    """
    segments, scans_start = _split(data)
    frames = [segment for segment in segments if segment.marker in _FRAMES]
    if len(frames) != 1:
        raise ImageError("damaged: the JPEG header must give the picture's size once")
    width, height, n_components = _read_frame(frames[0])
    picture = [segment.for_decoder for segment in segments]
    scans = _read_scans(data, scans_start, progressive=frames[0].marker in _PROGRESSIVE)
    return Jpeg(
        size_px=(width, height),
        n_components=n_components,
        orientation=_read_orientation(segments),
        data=b"".join([MAGIC, *picture, scans]),
    )


def _split(data: bytes) -> tuple[list[_Segment], int]:
    """The segments before the first scan, and where that begins."""
    segments: list[_Segment] = []
    position = len(MAGIC)
    while len(segments) < MAX_SEGMENTS:
        match = _MARKER.match(data, position)
        if match is None:
            at_end = not data[position:].strip(b"\xff")
            raise ImageError(CUT_OFF if at_end else _UNSOUND_HEADER)
        marker, start = match[1][0], match.end() - 2
        if marker == _SOS:
            return segments, start
        if marker in _WITHOUT_BODY:
            raise ImageError(_UNSOUND_HEADER)
        length = int.from_bytes(data[match.end() : match.end() + 2])
        position = match.end() + length
        if position > len(data) or match.end() + 2 > len(data):
            raise ImageError(CUT_OFF)
        if length < 2:
            raise ImageError(_UNSOUND_HEADER)
        segments.append(_Segment(marker, data[start:position]))
    raise ImageError(f"damaged: the JPEG header has more than {MAX_SEGMENTS:,} segments")


def _read_frame(segment: _Segment) -> tuple[int, int, int]:
    """(width, height, number of components)."""
    kind = _FOREIGN_FRAMES.get(segment.marker)
    if kind is not None:
        raise ImageError(f"a kind of JPEG that is not supported ({kind}): save it as PNG")
    try:
        bits, height, width, n_components = struct.unpack_from(">BHHB", segment.body)
    except struct.error as error:
        raise ImageError(_UNSOUND_HEADER) from error
    if bits != 8:
        raise ImageError(f"a kind of JPEG that is not supported ({bits} bits): save it as PNG")
    if n_components not in (1, 3, 4) or len(segment.body) != 6 + 3 * n_components:
        raise ImageError(_UNSOUND_HEADER)
    return width, height, n_components


def _read_orientation(segments: list[_Segment]) -> int:
    for segment in segments:
        if segment.marker == _APP1 and segment.body.startswith(_EXIF):
            return exif.orientation(segment.body[len(_EXIF) :])
    return exif.UPRIGHT


def _read_scans(data: bytes, start: int, *, progressive: bool) -> memoryview:
    end = data.rfind(_EOI, start)
    if end < 0:
        raise ImageError(CUT_OFF)
    # Inside a scan 0xFF is followed by 0x00 or a restart marker, so this counts nothing else.
    if progressive and data.count(bytes((0xFF, _SOS)), start, end) > MAX_SCANS:
        raise ImageError(f"damaged: the JPEG has more than {MAX_SCANS} scans")
    return memoryview(data)[start : end + len(_EOI)]
