"""What each format's file is, told from its header and checked, and how it is then decoded.

A JPEG and a PNG are walked here, and only what makes the picture reaches a decoder; TIFF, BMP, WebP
and GIF are Pillow's from the start. The rules are in the package's docstring.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import threading
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from ecgfeat.errors import ImageError

__all__ = [
    "JPEG_MAGIC",
    "MAX_PIXELS",
    "PNG_MAGIC",
    "SEVERAL_PAGES",
    "Jpeg",
    "Page",
    "Picture",
    "as_array",
    "as_image",
    "blaming_the_file",
    "load",
    "no_such_page",
    "read_jpeg",
    "read_other",
    "read_png",
    "size_px",
]

MAX_PIXELS = 2**30 // 12
"""Largest page, 89 megapixels: 600-dpi A3 has 70. Decoding takes up to 12 bytes per pixel, so this
is 1 GiB; it is also the size from which Pillow warns of a decompression bomb."""


UPRIGHT = 1


@dataclass(kw_only=True, eq=False)
class Picture(ABC):
    """A file whose header has been read and found fit to decode.

    Attributes
    ----------
    size_px : tuple of int
        (width, height) as stored.
    orientation : int
        EXIF's, 1 to 8.
    remark : str
        What people should know of how it was decoded; empty for most, whole after `decode`.
    """

    size_px: tuple[int, int]
    orientation: int = UPRIGHT
    remark: str = ""

    @abstractmethod
    def decode(self) -> Page:
        """The picture in RGB, as stored; where the data are damaged, any error may be raised."""


CUT_OFF = "cut off: the file ends before the picture does"


# JPEG: the header read here, the picture decoded by libjpeg-turbo.
#
# Markers and segments as in ITU-T T.81, annex B.

JPEG_MAGIC = b"\xff\xd8"

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
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FOREIGN_FRAMES = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic coding"),
    0xF7: "JPEG-LS",
}
_FRAMES = {_BASELINE, _EXTENDED, _PROGRESSIVE, *_FOREIGN_FRAMES}
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_EXIF = b"Exif\x00\x00"
_JFIF = b"JFIF\x00"
_JFIF_1_01 = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


@dataclass(kw_only=True, eq=False)
class Jpeg(Picture):
    """A JPEG whose header has been read."""

    n_components: int  # 1 grey, 3 colour, 4 CMYK or YCCK
    data: bytes  # the file without the segments that don't make the picture

    def decode(self) -> Page:
        """Decode with simplejpeg, or where that can't with Pillow."""
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

    Raises ImageError where the header is damaged or cut off, or the kind isn't supported.
    """
    segments, scans_start = _split(data)
    frames = [segment for segment in segments if segment.marker in _FRAMES]
    if len(frames) != 1:
        raise ImageError("damaged: the JPEG header must give the picture's size once")
    width, height, n_components = _read_frame(frames[0])
    picture = [segment.for_decoder for segment in segments]
    scans = _read_scans(data, scans_start, progressive=frames[0].marker == _PROGRESSIVE)
    return Jpeg(
        size_px=(width, height),
        n_components=n_components,
        orientation=_read_orientation(segments),
        data=b"".join([JPEG_MAGIC, *picture, scans]),
    )


def _split(data: bytes) -> tuple[list[_Segment], int]:
    """The segments before the first scan, and where that begins."""
    segments: list[_Segment] = []
    position = len(JPEG_MAGIC)
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
            return exif_orientation(segment.body[len(_EXIF) :])
    return UPRIGHT


def _read_scans(data: bytes, start: int, *, progressive: bool) -> memoryview:
    end = data.rfind(_EOI, start)
    if end < 0:
        raise ImageError(CUT_OFF)
    # Inside a scan 0xFF is followed by 0x00 or a restart marker, so this counts nothing else.
    if progressive and data.count(bytes((0xFF, _SOS)), start, end) > MAX_SCANS:
        raise ImageError(f"damaged: the JPEG has more than {MAX_SCANS} scans")
    return memoryview(data)[start : end + len(_EOI)]


# PNG: the chunks checked here, the picture decoded by Pillow.
#
# Chunks and their rules as in the PNG specification (W3C, third edition), sections 5 and 11.

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 65_536
"""Above what the largest file has (libpng's data chunks have 8 KiB); bounds the time."""

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA = 0, 2, 3, 4
_USED = {b"IHDR", b"PLTE", b"tRNS", b"sBIT", b"IDAT", b"eXIf", b"IEND"}


@dataclass(kw_only=True, eq=False)
class Png(Picture):
    """A PNG whose chunks have been checked."""

    depth: int  # bits per sample
    colour_type: int  # the header's number for what a sample means
    transparent: bytes  # the tRNS chunk; empty where there is none
    significant: int  # bits per sample that mean something, by the sBIT chunk; 0 without one
    data: bytes  # the file without the chunks that don't make the picture

    def decode(self) -> Page:
        image = load(self.data, "PNG")
        n_bits = self.depth
        if image.mode == "I;16":
            image, n_bits = in_8_bits(np.asarray(image), self.significant)
        elif self.depth == 16:
            image, n_bits = colour_in_8_bits(image, self._low_bytes, self.significant)
        self.remark = _on_bits(n_bits) if self.depth == 16 else ""
        colour = self._transparent_colour(n_bits)
        if colour is not None:
            image.info["transparency"] = colour
        return on_white(image)

    def _low_bytes(self) -> NDArray[np.uint8]:
        """The low byte of each sample of 16 bits, where Pillow gives the high one."""
        if self.colour_type == _GREY_ALPHA:  # as RGBA, its pixels' four bytes come as they are
            return np.asarray(load(self.data, "PNG", "RGBA"))[..., (1, 1, 1, 3)]
        mode = "RGB" if self.colour_type == _COLOUR else "RGBA"
        return np.asarray(load(self.data, "PNG", f"{mode};16L"))

    def _transparent_colour(self, n_bits: int) -> int | tuple[int, ...] | None:
        """The colour that stands for "nothing here", at the 8 bits that Pillow compares.

        Of samples of 16 bits `n_bits` are in use; a colour beyond them is nowhere.
        """
        n_samples = {_GREY: 1, _COLOUR: 3}.get(self.colour_type, 0)
        if not n_samples or len(self.transparent) != 2 * n_samples:
            return None
        samples = struct.unpack(f">{n_samples}H", self.transparent)
        if self.depth == 16:
            colour = tuple(sample >> (n_bits - 8) for sample in samples)
            if max(colour) > 255:
                return None
        else:
            largest = 2**self.depth - 1
            colour = tuple((sample & largest) * 255 // largest for sample in samples)
        return colour if n_samples == 3 else colour[0]


def read_png(data: bytes) -> Png:
    """Read and check the chunks, and keep those that make the picture.

    Raises ImageError where they are damaged, cut off, or not what the specification allows.
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
        significant=max(_body(found[b"sBIT"]), default=0),
        orientation=exif_orientation(_body(found[b"eXIf"])),
        data=b"".join([PNG_MAGIC, *picture]),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's kind, and its bytes from length to checksum, up to the end chunk."""
    view = memoryview(data)
    position = len(PNG_MAGIC)
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


# TIFF, BMP, WebP and GIF: header and picture read by Pillow.

SEVERAL_PAGES = "several pages in one file: the first is taken; --pages all takes every one"
"""What is remarked of them, unless a page is named."""


def no_such_page(page: int, n_pages: int) -> ImageError:
    """For a page that is named and isn't there."""
    n_there = "one page" if n_pages == 1 else f"{n_pages} pages"
    return ImageError(f"there is no page {page}: the file has {n_there}")


ANIMATION = "several pictures in one file, an animation: the first is taken"
"""What is remarked of a GIF or WebP."""
_PILLOW_WARNINGS = threading.Lock()
"""Python's filters of warnings belong to the whole process."""


@dataclass(kw_only=True, eq=False)
class Other(Picture):
    """A TIFF, BMP, WebP or GIF whose header has been read."""

    image: ImageFile.ImageFile  # the page, not decoded yet
    reopen: Callable[[], ImageFile.ImageFile]  # gives the same once more

    def decode(self) -> Page:
        has_16_bits = _has_16_bits(self.image)
        image: Image.Image = self.image
        image.load()
        n_bits = 16
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() >= 2**16:
                raise ImageError("more than 16 bits per sample: save it as PNG")
            image, n_bits = in_8_bits(values.astype(np.uint16), 0)
            # A TIFF may count grey from white to black, which Pillow heeds only up to 8 bits.
            if _tags(self.image).get(ExifTags.Base.PhotometricInterpretation) == 0:
                image = ImageOps.invert(image)
        elif has_16_bits:
            image, n_bits = colour_in_8_bits(image, self._low_bytes, 0)
        elif image.mode == "F":
            raise ImageError("numbers with a fraction as samples: save it as PNG")
        self.remark = self.remark or _on_bits(n_bits)
        return on_white(image)

    def _low_bytes(self) -> NDArray[np.uint8]:
        """The low byte of each sample of 16 bits, where Pillow gives the high one."""
        image = self.reopen()
        image.tile = [_of_the_other_order(tile) for tile in image.tile]
        image.load()
        return np.asarray(image)


_COLOUR_OF_16_BITS = re.compile("(RGB|RGBX|RGBA|[RGBA]);16([LBN])")
"""Pillow's words for how a TIFF's samples lie: the first byte is the low or the high one."""
_FAX = ("tiff_ccitt", "group3", "group4")
"""Pillow's words for TIFF's compressions of black and white."""


def _planes_mended(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Have planes of 16 bits, one for each colour, read as such: Pillow takes them for 8."""
    if _bits_per_sample(image) == {16}:
        order = "L" if _tags(image).prefix == b"II" else "B"
        image.tile = [
            tile._replace(args=(f"{_words(tile)};16{order}", *tile.args[1:]))  # type: ignore[index]
            if _words(tile) in tuple("RGBA")
            else tile
            for tile in image.tile
        ]
    return image


def _tags(image: ImageFile.ImageFile) -> Any:
    """A TIFF's, by number; none of another format."""
    return getattr(image, "tag_v2", {})


def _bits_per_sample(image: ImageFile.ImageFile) -> set[int]:
    """A TIFF's; one that doesn't say has one."""
    return set(_tags(image).get(ExifTags.Base.BitsPerSample, (1,)))


def _has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether a page that isn't decoded yet is one of colours of 16 bits, of both bytes."""
    is_separate = _tags(image).get(ExifTags.Base.PlanarConfiguration) == 2
    return bool(image.tile) and all(
        # Of separate planes libtiff gives the high bytes, whatever it is asked for.
        _COLOUR_OF_16_BITS.fullmatch(_words(tile)) and not (is_separate and tile[0] == "libtiff")
        for tile in image.tile
    )


def _words(tile: Any) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _of_the_other_order(tile: Any) -> Any:
    """The tile read as if its samples' bytes were the other way round."""
    mode, order = _words(tile).split(";16")
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[order]
    return tile._replace(args=(f"{mode};16{other}", *tile.args[1:]))


def read_other(data: bytes, image_format: str, page: int = 0) -> Other:
    """Read the header with Pillow, as nothing but `image_format`.

    Pages are a TIFF's; page 0 is the first. An animation has one. Raises ImageError where the
    header is not sound.
    """

    def reopen() -> ImageFile.ImageFile:
        with _PILLOW_WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, which don't make the picture
            image = Image.open(io.BytesIO(data), formats=(image_format,))
            if page > 1:
                _turn_to(image, page, data)
            return _planes_mended(image)

    with blaming_the_file():
        image = reopen()
        if image.info.get("compression") in _FAX and _bits_per_sample(image) != {1}:
            raise ImageError("damaged: a fax has one bit per sample")  # libtiff says so on stderr
        has_more = getattr(image, "is_animated", False)
        # A TIFF's orientation is Pillow's own business.
        exif = image.info.get("exif", b"") if image_format == "WEBP" else b""
    several = ANIMATION if image_format != "TIFF" else SEVERAL_PAGES if not page else ""
    return Other(
        size_px=image.size,
        image=image,
        reopen=reopen,
        orientation=exif_orientation(exif.removeprefix(_EXIF)),
        remark=several if has_more else "",
    )


def _turn_to(image: ImageFile.ImageFile, page: int, data: bytes) -> None:
    if image.format != "TIFF":
        raise no_such_page(page, 1)
    try:
        image.seek(page - 1)
    except EOFError as error:  # upon which Pillow counts it as a page
        again = Image.open(io.BytesIO(data), formats=("TIFF",))
        raise no_such_page(page, getattr(again, "n_frames", 1)) from error


def in_8_bits(values: NDArray[np.uint16], significant: int) -> tuple[Image.Image, int]:
    """Grey of up to 16 bits in 8, and how many of the 16 are in use.

    `values` has the shape (height, width), `significant` the bits in use by what the file says: 0
    where it says nothing.
    """
    n_bits = _bits_in_use(int(values.max(initial=0)), significant)
    return Image.fromarray((values >> (n_bits - 8)).astype(np.uint8)), n_bits


def colour_in_8_bits(
    image: Image.Image, low_bytes: Callable[[], NDArray[np.uint8]], significant: int
) -> tuple[Image.Image, int]:
    """Colour of up to 16 bits in 8, and how many of the 16 are in use: all samples alike.

    Alpha is a sample as the others are, so that black ink on nothing isn't taken for dark.
    `image` has the high bytes, which is what Pillow gives, and is right where all 16 bits are in
    use; `low_bytes` gives the low ones, shape (height, width, channels), and is asked for rarely.
    """
    extremes = cast(Sequence[tuple[int, int]], image.getextrema())
    largest = max(high for _, high in extremes)
    if largest >= _DARK:
        return image, 16
    high, low = np.array(image), low_bytes()
    n_bits = _bits_in_use(largest * 256 + int(low[high == largest].max()), significant)
    n_low = n_bits - 8
    if n_low:  # in place: such pages may be large
        high <<= 8 - n_low
        high |= low >> n_low
    else:
        high[:] = low
    return Image.fromarray(high), n_bits


_DARK = 2**14 // 256
"""High bytes below this may belong to samples of 14 bits or fewer."""


def _bits_in_use(largest: int, significant: int) -> int:
    """How many of 16 bits hold a picture: 8, 10, 12, 14 or 16, or what the file says.

    Where it says nothing the largest value tells: the fewest bits that hold it, for pages of 16
    bits are hardly ever this dark. By the PNG specification 12 bits stand at the top of 16, and
    the largest value is then beyond 12: nothing is to be done.
    """
    if 8 <= significant < 16 and largest < 2**significant:
        return significant
    return next((n for n in (8, 10, 12, 14) if largest < 2**n), 16)


def _on_bits(n_bits: int) -> str:
    return "" if n_bits == 16 else f"16 bits per sample that hold {n_bits}: scaled to white"


# What they share


def load(data: bytes, image_format: str, raw_mode: str = "") -> Image.Image:
    """Decode the first picture in `data`, as nothing but "JPEG" or "PNG", in Pillow's own mode.

    `raw_mode` is Pillow's word for how a PNG's samples lie, if not as its header says.
    """
    image = Image.open(io.BytesIO(data), formats=(image_format,))
    if raw_mode:
        image.tile = [image.tile[0]._replace(args=raw_mode)]
    image.load()
    return image


def on_white(image: Image.Image) -> Image.Image:
    """In RGB; what is transparent is laid over white, an ECG page's paper."""
    if not image.has_transparency_data:
        return in_mode("RGB", image)
    page = Image.new("RGB", image.size, "white")
    image = in_mode("RGBA", image)
    page.paste(image, mask=image)
    return page


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
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: at most {MAX_PIXELS / 1e6:.0f} million are decoded"
    if isinstance(error, UnidentifiedImageError):  # its own message names an address in memory
        return "damaged: the header is not sound"
    return f"damaged: the picture data are not sound ({error})"


_SHORT = 3
"""EXIF's number for a word of two bytes."""


def exif_orientation(tiff: bytes) -> int:
    """Read the orientation from EXIF data (a TIFF header and directory).

    Read here and not by Pillow, which warns of odd entries that have nothing to do with it.
    What can't be read counts as upright.
    """
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for index in range(n_entries):
            entry = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
            if entry[:3] == (ExifTags.Base.Orientation, _SHORT, 1):
                return int(entry[3])
    except struct.error:
        pass
    return UPRIGHT


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
