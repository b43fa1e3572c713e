"""From a stranger's image file to the network's pixels: decoded safely, streamed in order.

Every file takes one path to 8-bit RGB, the same on every machine and for any number of threads:

====================================  ==========================================================
in the file                           on the page
====================================  ==========================================================
grey, of 1, 2, 4 or 8 bits            scaled to 0..255, the same value in all three channels
16 bits per sample, of any colour     the high byte: ``value // 256`` (white stays white)
palette                               the palette's colours
alpha, or transparent colours         laid over white, an ECG page's paper, rounded to nearest
JPEG in YCbCr or RGB                  libjpeg's exact inverse DCT and smooth chroma upsampling
JPEG in CMYK or YCCK                  stored inverted, as Adobe does; each channel times black
progressive, interlaced               as if they were not
EXIF orientation, all eight           turned upright (the JPEG's Exif segment, the PNG's eXIf)
ICC profile, gamma, chromaticities    ignored
animated PNG                          its default image, which viewers without animation show
several pictures in a JPEG (MPO)      the first
====================================  ==========================================================

What a file is, its content says, never its name: JPEG or PNG, anything else is refused by name.
Width and height are read from the header and held against `MAX_PIXELS` before any decoder runs,
and a decoder is given only those parts of a file that make the picture: no profile, comment,
thumbnail or animation reaches it. A file that is cut off or damaged is refused, not patched:
PNG's checksums are compared, a JPEG must have its end marker and decode without a complaint.
(JPEG has no checksum, so some flipped bits pass; and a rare chroma subsampling that simplejpeg
doesn't know is decoded by Pillow, which doesn't tell of complaints.) A refusal is an
`ecgfeat.errors.ImageError`, whose message is the reason that people read.

`files` reads the bytes; `jpeg` and `png` check and decode them with the help of `pillow` and
`exif`, and `formats` names what is neither; `decoding` is the way through these to a page, and
`fitting` from the page to the network's input. `streaming` does all of it ahead, in threads.
"""

from __future__ import annotations

from ecgfeat.images.decoding import (
    DECODER,
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SIDE_PX,
    decode,
    image_digest,
)
from ecgfeat.images.resizing import prepare
from ecgfeat.images.streaming import Alter, Batch, Failure, stream

__all__ = [
    "DECODER",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE_PX",
    "Alter",
    "Batch",
    "Failure",
    "decode",
    "image_digest",
    "prepare",
    "stream",
]
