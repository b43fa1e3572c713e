"""From a stranger's image file to the network's pixels: decoded safely, streamed in order.

Every file takes one path to 8-bit RGB, the same on every machine and for any number of threads:

====================================  ==========================================================
in the file                           on the page
====================================  ==========================================================
grey, of 1, 2, 4 or 8 bits            scaled to 0..255, the same value in all three channels
16 bits per sample, of any colour     the high byte: ``value // 256`` (white stays white)
16 bits that hold fewer               8, 10, 12 or 14 by what the file or its largest value says
palette                               the palette's colours
alpha, or transparent colours         laid over white, an ECG page's paper, rounded to nearest
JPEG in YCbCr or RGB                  libjpeg's exact inverse DCT and smooth chroma upsampling
JPEG in CMYK or YCCK                  stored inverted, as Adobe does; each channel times black
progressive, interlaced               as if they were not
EXIF orientation, all eight           turned upright (the JPEG's Exif segment, the PNG's eXIf)
ICC profile, gamma, chromaticities    ignored
animated PNG                          its default image, which viewers without animation show
several pictures in a JPEG (MPO)      the first
several pages, an animation           the first, and a remark that says so; ``scan.tif#page=2``
                                      names another page of a TIFF, PDF or DICOM file
====================================  ==========================================================

What a file is, its content says, never its name: JPEG, PNG, TIFF, BMP, WebP or GIF, anything else
is refused by name. Width and height are read from the header and held against `MAX_PIXELS` before
any decoder runs, and the decoder of a JPEG or PNG is given only those parts of a file that make the
picture: no profile, comment, thumbnail or animation reaches it. A file that is cut off or damaged
is refused, not patched: PNG's checksums are compared, a JPEG must have its end marker and decode
without a complaint.
(JPEG has no checksum, so some flipped bits pass; and a rare chroma subsampling that simplejpeg
doesn't know is decoded by Pillow, which doesn't tell of complaints.) A refusal is an
`ecgfeat.errors.ImageError`, whose message is the reason that people read.

TIFF, BMP, WebP and GIF are read by Pillow, whose own checks they get: sizes are held against the
limits before the picture is decoded, and what it raises becomes a reason.

PDF and DICOM need an extra each: of a PDF the first page at 150 dpi or what
``--dpi`` says, of a DICOM file the first frame.

`decoding` is the way from a file to a page, by way of its format (`formats`); `streaming` goes on
to the network's input, ahead and in threads, by way of `cleaning` where ``--clean`` asks for it.
"""

from __future__ import annotations

from ecgfeat.images.decoding import (
    DECODER,
    decode,
    decode_with_digest,
    decoder_of,
    dpi_of,
    draws_pdf,
    image_digest,
)
from ecgfeat.images.formats import MAX_PIXELS
from ecgfeat.images.streaming import (
    Alter,
    Batch,
    Failure,
    Remarks,
    prepare,
    straightened,
    straightened_in_words,
    stream,
)

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "Alter",
    "Batch",
    "Failure",
    "Remarks",
    "decode",
    "decode_with_digest",
    "decoder_of",
    "dpi_of",
    "draws_pdf",
    "image_digest",
    "prepare",
    "straightened",
    "straightened_in_words",
    "stream",
]
