"""From a file's bytes to an upright RGB page; the package's docstring has the rules."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.config import PageSettings
from ecgfeat.errors import ImageError, storage_error
from ecgfeat.files import MAX_IMAGE_BYTES, MAX_PAGES, NamedPage, page_named
from ecgfeat.images.formats import (
    JPEG_MAGIC,
    MAX_PIXELS,
    PNG_MAGIC,
    SEVERAL_PAGES,
    Page,
    Picture,
    as_array,
    as_image,
    blaming_the_file,
    no_such_page,
    read_jpeg,
    read_other,
    read_png,
)
from ecgfeat.manifest import EXTRAS, PDFIUM

__all__ = [
    "DECODER",
    "decode",
    "decode_picture",
    "decode_with_digest",
    "decoder_of",
    "digest",
    "dpi_of",
    "draws_pdf",
    "image_digest",
    "read_file",
    "read_header",
    "size_on_disk",
]


DECODER = f"rgb 4, pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"
"""What decides the pixels: the version of the rules in `images`, and the decoders."""


def decoder_of(names: Iterable[str], dpi: int = PageSettings.dpi) -> str:
    """What decides the pixels of some files: `DECODER`, and what draws those that are documents.

    Part of a feature cache's identity. `dpi`, where PDFs are drawn at another than the usual one,
    is told too: `dpi_of` reads it.
    """
    ends = {Path(page_named(name).file).suffix.lower() for name in names}
    found = DECODER
    for package, suffixes in EXTRAS.values():
        if ends.intersection(suffixes) and find_spec(package):
            found += f", {package} {version(package)}"
            if package == "pypdfium2" and dpi != PageSettings.dpi:
                found += f" at {dpi} dpi"
    return found


def dpi_of(decoder: str) -> int:
    """Dots per inch that PDFs were drawn at, by what `decoder_of` gave; else the usual ones.

    A decoder of an earlier version says nothing of it, and drew at the usual ones.
    """
    match = re.search(r"pypdfium2 [^ ,]+ at (\d{1,4}) dpi", decoder)
    return int(match[1]) if match else PageSettings.dpi


def draws_pdf(decoder: str) -> bool:
    """Whether there were PDFs among the files, by what `decoder_of` gave."""
    return "pypdfium2" in decoder


MAX_SIDE_PX = 65_535
"""Longest side: what a JPEG can have."""


def decode(source: str | Path, *, dpi: int = PageSettings.dpi) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, TIFF, BMP, WebP or GIF file; PDF and DICOM by their extras.

    A PDF's page is drawn at `dpi` dots per inch. ``scan.tif#page=2`` is the second page of
    ``scan.tif``; without a number the first page is taken.

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        The page in RGB, upright.

    Raises
    ------
    ImageError
        When the file can't be read or decoded; the message is the reason.
    """
    page, _, _ = decode_with_digest(source, dpi=dpi)
    return page


def decode_with_digest(
    source: str | Path, *, dpi: int = PageSettings.dpi
) -> tuple[NDArray[np.uint8], bytes, int]:
    """`decode`, beside `image_digest` and the size of the very bytes that were decoded."""
    data, named = read_file(Path(source)), page_named(source)
    picture = read_header(data, page=named.page, dpi=dpi)
    return as_array(decode_picture(picture)), digest(data, named), len(data)


def read_header(data: bytes, *, page: int = 0, dpi: int = PageSettings.dpi) -> Picture:
    """Find out what the bytes are; no decoder runs.

    Of several pages the one of that number is taken, or for 0 the first, which is then remarked.
    A PDF's page has its size at `dpi`.

    Raises
    ------
    ImageError
        When they are no picture, their header is not sound, the picture is too large, or there
        is no such page.
    """
    picture = _read_format(data, page, dpi)
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
        return turned_upright(picture.decode(), picture.orientation)


def _read_format(data: bytes, page: int, dpi: int) -> Picture:
    if page > MAX_PAGES:
        raise ImageError(f"only the first {MAX_PAGES} pages of a file are read: split it")
    is_jpeg, is_png = _begins(data, JPEG_MAGIC), _begins(data, PNG_MAGIC)
    if is_jpeg or is_png:
        if page > 1:
            raise no_such_page(page, 1)
        return read_jpeg(data) if is_jpeg else read_png(data)
    for offset, signature, image_format in _OTHERS:
        if data.startswith(signature, offset):
            return read_other(data, image_format, page)
    if data.startswith(b"%PDF"):
        with blaming_the_file():
            return read_pdf(data, page, dpi)
    if data.startswith(b"DICM", 128):
        with blaming_the_file():
            found = read_dicom_file(data, page)
        return read_jpeg(found) if isinstance(found, bytes) else found
    name = foreign_format(data)
    if name is not None:
        raise ImageError(f"not a picture that can be read but {name}")
    if not data.strip(b"\x00"):
        raise ImageError("not a picture: every byte is zero")
    raise ImageError("not a picture that can be read")


def _begins(data: bytes, magic: bytes) -> bool:
    return data.startswith(magic) or magic.startswith(data)


DIGEST_BYTES = 16

_REASONS = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "its symbolic links go round in a circle",
    errno.ENAMETOOLONG: "its name is too long for this system",
    errno.EIO: "the disk reported an error while reading it",
}
_PASSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EIO)


def read_file(source: Path, look: tuple[int, int] | None = None) -> bytes:
    """Read a regular file whole, whatever page of it is named.

    Parameters
    ----------
    source : Path
    look : tuple of int, optional
        The size and time of change (ns) that it must have while it is read.

    Raises
    ------
    ImageError
        When this file can't be read, or is another by now; the message is the reason.
    StorageError
        When no file could be: too many are open, or the system is out of memory.
    """
    named = page_named(source)
    try:
        if named.page and source.exists():
            raise ImageError(
                f"a file whose name stands for page {named.page} of another: rename it"
            )
        source = Path(named.file)
        status = source.stat()
        _refuse_by_status(status)
        with open(source, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if look is not None and look != (status.st_size, status.st_mtime_ns):
                raise ImageError(
                    "it changed while others were read: run the same command again", passing=True
                )
            return file.read(status.st_size)
    except ValueError as error:  # a null character, or a character the file system can't encode
        raise ImageError("its name is not one that this system can have") from error
    except OSError as error:
        if error.errno in _REASONS:
            reason, passing = _REASONS[error.errno], error.errno in _PASSING
            raise ImageError(reason, passing=passing) from error
        raise storage_error(error, "reading", source) from error


def size_on_disk(source: Path) -> int:
    """Bytes of a regular file; 0 for what isn't one."""
    try:
        status = Path(page_named(source).file).stat()
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def image_digest(source: str | Path) -> bytes:
    """BLAKE2b of the file's bytes, 16 bytes long; raises as `decode` does for unreadable files.

    Of a page after the first, of the bytes and then ``#page=`` and its number.
    """
    return digest(read_file(Path(source)), page_named(source))


def digest(data: bytes, named: NamedPage) -> bytes:
    """BLAKE2b of `data` and the page's mark, 16 bytes long."""
    found = hashlib.blake2b(data, digest_size=DIGEST_BYTES)
    found.update(named.mark)
    return found.digest()


def _refuse_by_status(status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("not a file but a folder")
    if stat.S_ISFIFO(mode):
        raise ImageError("not a file but a named pipe")
    if stat.S_ISSOCK(mode):
        raise ImageError("not a file but a socket")
    if not stat.S_ISREG(mode):
        raise ImageError("not a file but a device")
    if status.st_size == 0:
        raise ImageError("empty: the file has no bytes")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageError(
            f"too large: the file has {status.st_size / 2**20:,.0f} MiB, "
            f"at most {MAX_IMAGE_BYTES // 2**20} are read"
        )


def _open_without_waiting(path: str, flags: int) -> int:
    # Between the look and the opening, someone may put a named pipe in the file's place.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


_OTHERS = (
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WEBP"),
)
"""Formats that Pillow both reads and decodes: where their first bytes are, and Pillow's name."""
_SIGNATURES = (
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "an HEIC"),
    (4, b"ftypmif1", "an HEIC"),
    (4, b"jP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%!PS", "a PostScript file (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a FlashPix or old Office file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x89PNG", "a PNG broken by a transfer as text"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the picture with 'git lfs pull'"),
)


def foreign_format(data: bytes) -> str | None:
    """Name the format with its article (``"a TIFF"``), or None for an unknown one."""
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    text = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if text.startswith((b"<?xml", b"<!doctype svg", b"<svg")):
        return "an SVG" if b"<svg" in text else "an XML file"
    return None


# From the value of the tag to what undoes it (Exif 2.32, section 4.6.4).
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned_upright(page: Page, value: int) -> Page:
    """Undo the orientation that EXIF tells of; values other than 2 to 8 mean upright."""
    return as_image(page).transpose(_UNDO[value]) if value in _UNDO else page


# PDF and DICOM, by the extras ``pdf`` and ``dicom``
#
# A PDF's page is drawn on white, by pdfium. A DICOM file's frame is decoded by pydicom, or, where
# it is a JPEG, as any other JPEG; its grey is scaled by the bits that it says are stored, black and
# white the right way round, without a window. Sizes are held against the same limits as any
# picture's; but a PDF is a program that draws, and a stranger's may take long.


@dataclass(kw_only=True, eq=False)
class Drawn(Picture):
    """A page whose size is known, and what draws it."""

    draw: Callable[[], NDArray[np.uint8]]

    def decode(self) -> Page:
        page = self.draw()
        if page.shape != (self.size_px[1], self.size_px[0], 3):
            raise ImageError("damaged: the page is not of the size that the file says")
        return page


# PDF


def read_pdf(data: bytes, page: int, dpi: int) -> Drawn:
    """Find out the size of a PDF's page, drawn at `dpi` dots per inch; page 0 is the first.

    Raises ImageError where it can't be read, asks for a password, or the extra isn't installed.
    """
    scale = dpi / 72  # a PDF's own unit is the point
    with _open_page(data, page) as (opened, n_pages):
        width, height = (math.ceil(points * scale) for points in opened.get_size())

    def draw() -> NDArray[np.uint8]:
        with _open_page(data, page) as (opened, _):
            drawn = opened.render(scale=scale, may_draw_forms=False, rev_byteorder=True)
            return np.array(drawn.to_numpy()[..., :3], np.uint8)

    remark = SEVERAL_PAGES if n_pages > 1 and not page else ""
    return Drawn(size_px=(width, height), draw=draw, remark=remark)


@contextmanager
def _open_page(data: bytes, page: int) -> Iterator[tuple[Any, int]]:
    """A page, and how many there are; nobody else calls pdfium meanwhile."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ImageError("a PDF: pip install 'ecgfeat[pdf]' to read its pages") from error
    with PDFIUM:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            locked = "password" in str(error).lower()
            reason = "locked by a password" if locked else "damaged: the PDF is not sound"
            raise ImageError(reason) from error
        try:
            if not len(document):
                raise ImageError("damaged: the PDF has no page")
            if page > len(document):
                raise no_such_page(page, len(document))
            yield document[max(page, 1) - 1], len(document)
        except pypdfium2.PdfiumError as error:
            which = f"page {page}" if page > 1 else "first page"
            raise ImageError(f"damaged: the PDF's {which} is not sound") from error
        finally:
            document.close()


# DICOM

_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    "PixelData",
]
"""All that makes the picture; a stranger's millions of other elements are not kept."""


def read_dicom_file(data: bytes, page: int) -> Drawn | bytes:
    """Find out the size of a DICOM file's frame; one that is a JPEG is given back.

    Frames count as pages; page 0 is the first. Raises ImageError where it can't be read, holds no
    picture or one of an unknown kind, or the extra isn't installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("a DICOM file: pip install 'ecgfeat[dicom]' to read it") from error
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    if deflated.encode() in data:  # it would be unpacked at once, to any length
        raise ImageError("a kind of DICOM that is not supported (deflated): save it as PNG")
    try:
        found = pydicom.dcmread(io.BytesIO(data), specific_tags=_TAGS)
        if "PixelData" not in found:
            raise ImageError("a DICOM file that holds no picture")
        syntax = found.file_meta.TransferSyntaxUID
        n_frames = int(found.get("NumberOfFrames") or 1)
        if page > n_frames:
            raise no_such_page(page, n_frames)
        index = max(page, 1) - 1
        if syntax in (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit):
            return pydicom.encaps.get_frame(found.PixelData, index, number_of_frames=n_frames)
        if syntax.is_compressed and syntax != pydicom.uid.RLELossless:
            raise ImageError(
                f"a kind of DICOM that is not supported ({syntax.name}): save it as PNG"
            )
        size_px = int(found.Columns), int(found.Rows)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("damaged: the DICOM file is not sound") from error
    remark = SEVERAL_PAGES if n_frames > 1 and not page else ""
    return Drawn(size_px=size_px, draw=lambda: _frame(found, index), remark=remark)


def _frame(found: Any, index: int) -> NDArray[np.uint8]:
    """A frame in RGB."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(found, index=index)
    n_bits, meaning = int(found.BitsStored), str(found.PhotometricInterpretation)
    if meaning == "PALETTE COLOR":
        values = apply_color_lut(values, found)
        n_bits = 8 * values.dtype.itemsize
    values = values.astype(np.int64)
    if found.PixelRepresentation and meaning.startswith("MONOCHROME"):
        values += 2 ** (n_bits - 1)
    page = (np.clip(values, 0, 2**n_bits - 1) * 255 // (2**n_bits - 1)).astype(np.uint8)
    if meaning == "MONOCHROME1":
        page = 255 - page
    return np.repeat(page[..., None], 3, axis=2) if page.ndim == 2 else page
