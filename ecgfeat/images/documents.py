"""Pages of PDF files and pictures of DICOM files, by the extras ``pdf`` and ``dicom``.

A PDF's first page is drawn at `DPI` on white, by pdfium. A DICOM file's first frame is decoded by
pydicom, or, where it is a JPEG, as any other JPEG; its grey is scaled by the bits that it says are
stored, black and white the right way round, without a window. Sizes are held against the same
limits as any picture's; but a PDF is a program that draws, and a stranger's may take long.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ImageError

__all__ = ["DPI", "SEVERAL_PAGES", "Drawn", "read_dicom_file", "read_pdf"]

DPI = 150
"""Dots per inch that a PDF's page is drawn at."""
_SCALE = DPI / 72  # a PDF's own unit is the point
SEVERAL_PAGES = "several pages in one file: the first is taken"
"""What is remarked of them."""


@dataclass(kw_only=True, eq=False)
class Drawn:
    """A page whose size is known, and what draws it.

    Attributes
    ----------
    size_px : tuple of int
        (width, height).
    draw : callable
        Gives the page in RGB, (height, width, 3).
    remark : str
    orientation : int
        1: it is upright.
    """

    size_px: tuple[int, int]
    draw: Callable[[], NDArray[np.uint8]]
    remark: str
    orientation: int = 1

    def decode(self) -> NDArray[np.uint8]:
        """The page in RGB; raises ImageError where it isn't of the size that was said."""
        page = self.draw()
        if page.shape != (self.size_px[1], self.size_px[0], 3):
            raise ImageError("damaged: the page is not of the size that the file says")
        return page


# PDF

_PDFIUM = threading.Lock()
"""pdfium may not be called from two threads at once."""


def read_pdf(data: bytes) -> Drawn:
    """Find out the size of a PDF's first page.

    Raises
    ------
    ImageError
        When it can't be read, asks for a password, or the extra is not installed.
    """
    with _first_page(data) as (page, n_pages):
        width, height = (math.ceil(points * _SCALE) for points in page.get_size())

    def draw() -> NDArray[np.uint8]:
        with _first_page(data) as (page, _):
            drawn = page.render(scale=_SCALE, may_draw_forms=False, rev_byteorder=True)
            return np.array(drawn.to_numpy()[..., :3], np.uint8)

    return Drawn(size_px=(width, height), draw=draw, remark=SEVERAL_PAGES if n_pages > 1 else "")


@contextmanager
def _first_page(data: bytes) -> Iterator[tuple[Any, int]]:
    """The first page and how many there are; nobody else calls pdfium meanwhile."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ImageError("a PDF: pip install 'ecgfeat[pdf]' to read its pages") from error
    with _PDFIUM:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            locked = "password" in str(error).lower()
            reason = "locked by a password" if locked else "damaged: the PDF is not sound"
            raise ImageError(reason) from error
        try:
            if not len(document):
                raise ImageError("damaged: the PDF has no page")
            yield document[0], len(document)
        except pypdfium2.PdfiumError as error:
            raise ImageError("damaged: the PDF's first page is not sound") from error
        finally:
            document.close()


# DICOM

_JPEG_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_TAGS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    "PixelData",
]
"""All that makes the picture; a stranger's millions of other elements are not kept."""


def read_dicom_file(data: bytes) -> Drawn | bytes:
    """Find out the size of a DICOM file's first frame; one that is a JPEG is given back.

    Raises
    ------
    ImageError
        When it can't be read, holds no picture or one of an unknown kind, or the extra is not
        installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("a DICOM file: pip install 'ecgfeat[dicom]' to read it") from error
    if _DEFLATED in data:  # unpacked at once, to any length
        raise ImageError("a kind of DICOM that is not supported (deflated): save it as PNG")
    try:
        found = pydicom.dcmread(io.BytesIO(data), specific_tags=_TAGS)
        if "PixelData" not in found:
            raise ImageError("a DICOM file that holds no picture")
        syntax = found.file_meta.TransferSyntaxUID
        n_frames = int(found.get("NumberOfFrames") or 1)
        if syntax in _JPEG_SYNTAXES:
            return pydicom.encaps.get_frame(found.PixelData, 0, number_of_frames=n_frames)
        if syntax.is_compressed and syntax != pydicom.uid.RLELossless:
            raise ImageError(
                f"a kind of DICOM that is not supported ({syntax.name}): save it as PNG"
            )
        size_px = int(found.Columns), int(found.Rows)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError("damaged: the DICOM file is not sound") from error
    remark = SEVERAL_PAGES if n_frames > 1 else ""
    return Drawn(size_px=size_px, draw=lambda: _frame(found), remark=remark)


def _frame(found: Any) -> NDArray[np.uint8]:
    """The first frame in RGB."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(found, index=0)
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
