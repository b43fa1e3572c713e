"""Pages of PDF files and pictures of DICOM files, by the extras ``pdf`` and ``dicom``.

A PDF's page is drawn on white, by pdfium. A DICOM file's frame is decoded by
pydicom, or, where it is a JPEG, as any other JPEG; its grey is scaled by the bits that it says are
stored, black and white the right way round, without a window. Sizes are held against the same
limits as any picture's; but a PDF is a program that draws, and a stranger's may take long.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ImageError
from ecgfeat.manifest import PDFIUM

__all__ = ["SEVERAL_PAGES", "Drawn", "no_such_page", "read_dicom_file", "read_pdf"]

SEVERAL_PAGES = "several pages in one file: the first is taken; --pages all takes every one"
"""What is remarked of them, unless a page is named."""


def no_such_page(page: int, n_pages: int) -> ImageError:
    """For a page that is named and isn't there."""
    n_there = "one page" if n_pages == 1 else f"{n_pages} pages"
    return ImageError(f"there is no page {page}: the file has {n_there}")


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


def read_pdf(data: bytes, page: int, dpi: int) -> Drawn:
    """Find out the size of a PDF's page, drawn at `dpi` dots per inch; page 0 is the first.

    Raises
    ------
    ImageError
        When it can't be read, asks for a password, or the extra is not installed.
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


def read_dicom_file(data: bytes, page: int) -> Drawn | bytes:
    """Find out the size of a DICOM file's frame; one that is a JPEG is given back.

    Frames count as pages; page 0 is the first.

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
        if page > n_frames:
            raise no_such_page(page, n_frames)
        index = max(page, 1) - 1
        if syntax in _JPEG_SYNTAXES:
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
