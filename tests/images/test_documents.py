"""Pages of PDF files and pictures of DICOM files."""

from __future__ import annotations

import io
import random
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images import decoder_of, dpi_of, draws_pdf
from ecgfeat.images.decoding import decode_picture, read_header
from ecgfeat.images.formats import SEVERAL_PAGES

from .crafted import Page, encoded, page_of
from .outcomes import DECODED, outcome
from .test_mutations import mutated

PAGE = page_of((40, 30))


def remarked(data: bytes) -> tuple[Page, str]:
    picture = read_header(data)
    page = np.asarray(decode_picture(picture))
    assert (page.shape[1], page.shape[0]) == picture.size_px
    return page, picture.remark


def dicom(
    values: NDArray[np.integer] | bytes, meaning: str = "MONOCHROME2", **fields: object
) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = str(fields.pop("syntax", "1.2.840.10008.1.2.1"))
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    if isinstance(values, bytes):
        found.PixelData, found.Rows, found.Columns, bits = values, 30, 40, 8
    else:
        found.PixelData = values.tobytes()
        found.Rows, found.Columns = values.shape[:2]
        bits = 8 * values.itemsize
    found.SamplesPerPixel = 1 if meaning.startswith("MONO") else 3
    if found.SamplesPerPixel == 3:
        found.PlanarConfiguration = 0
    found.PhotometricInterpretation = meaning
    found.BitsAllocated = found.BitsStored = bits
    found.PixelRepresentation = 0
    for name, value in fields.items():
        setattr(found, name, value)
    found.HighBit = found.BitsStored - 1
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, enforce_file_format=True)
    return file.getvalue()


def pdf(*pages: Page, dpi: int = 150) -> bytes:
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    first, *more = map(Image.fromarray, pages)
    return encoded(first, "PDF", resolution=dpi, quality=95, save_all=True, append_images=more)


def test_the_first_page_of_a_pdf_is_drawn_at_150_dpi() -> None:
    first = page_of((300, 200))
    page, remark = remarked(pdf(first))
    assert remark == ""
    assert page.shape == (200, 300, 3)
    assert np.abs(page.astype(int) - first).mean() < 6
    assert remarked(pdf(first, dpi=300))[0].shape == (100, 150, 3)
    again, remark = remarked(pdf(first, page_of((300, 200), 1)))
    assert np.array_equal(again, page)
    assert remark == SEVERAL_PAGES


def test_a_page_of_a_pdf_grows_with_the_dots_per_inch() -> None:
    whole = pdf(page_of((300, 200)))
    sizes = {dpi: read_header(whole, dpi=dpi).size_px for dpi in (75, 150, 300, 600)}
    assert sizes == {75: (150, 100), 150: (300, 200), 300: (600, 400), 600: (1200, 800)}
    assert np.asarray(decode_picture(read_header(whole, dpi=300))).shape == (400, 600, 3)
    large = pdf(page_of((4_000, 3_000)))
    assert outcome(large) == DECODED
    with pytest.raises(ImageError, match="too many pixels"):
        read_header(large, dpi=600)


def test_the_decoder_tells_the_dots_per_inch_where_pdfs_are_drawn() -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra pdf")
    names = ["a.pdf", "b.png"]
    assert decoder_of(names, 300) == f"{decoder_of(names)} at 300 dpi"
    assert [dpi_of(decoder_of(names, dpi)) for dpi in (150, 300)] == [150, 300]
    assert decoder_of(["b.png"], 300) == decoder_of(["b.png"])
    assert dpi_of(decoder_of(["b.png"], 300)) == 150
    assert [draws_pdf(decoder_of(given)) for given in (names, ["b.png"])] == [True, False]


def test_a_pdf_that_is_cut_or_too_large_is_refused() -> None:
    whole = pdf(page_of((30, 20)))
    assert outcome(whole) == DECODED
    assert outcome(whole[:100]) == "damaged: the PDF is not sound"
    wide = pdf(page_of((14_000, 20)), dpi=1)
    assert outcome(wide).startswith(("too many pixels", "too long"))


@pytest.mark.parametrize(
    ("meaning", "expected"), [("MONOCHROME2", [0, 127, 255]), ("MONOCHROME1", [255, 128, 0])]
)
def test_grey_in_dicom_is_scaled_by_the_bits_stored(meaning: str, expected: list[int]) -> None:
    values = np.array([[0, 2047, 4095]], np.uint16)
    page, remark = remarked(dicom(values, meaning, BitsStored=12))
    assert page[0, :, 0].tolist() == expected
    assert remark == ""


def test_colour_and_jpeg_in_dicom_are_what_they_were() -> None:
    colour = page_of((40, 30))
    assert np.array_equal(remarked(dicom(colour, "RGB"))[0], colour)
    encaps = pytest.importorskip("pydicom.encaps", reason="needs the extra dicom")
    jpeg = encoded(colour, "JPEG", quality=95)
    data = dicom(encaps.encapsulate([jpeg]), "YBR_FULL_422", syntax="1.2.840.10008.1.2.4.50")
    assert np.abs(remarked(data)[0].astype(int) - colour).mean() < 6


def test_a_dicom_file_that_is_cut_or_claims_too_much_is_refused() -> None:
    grey = page_of((40, 30))[..., 0]
    whole = dicom(grey)
    assert outcome(whole) == DECODED
    assert outcome(whole[:-200]).startswith("damaged: ")
    assert outcome(whole[:300]).startswith(("damaged: ", "a DICOM file that holds no picture"))
    assert outcome(dicom(grey, Rows=60_000, Columns=60_000)).startswith("too many pixels")
    deflated = whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    assert "deflated" in outcome(deflated)


@pytest.mark.filterwarnings("ignore")  # of odd values, by pydicom
@pytest.mark.parametrize("build", [lambda: pdf(PAGE), lambda: dicom(PAGE, "RGB")])
def test_mutated_documents_are_decoded_or_refused_with_a_reason(
    capfd: pytest.CaptureFixture[str], build: Callable[[], bytes]
) -> None:
    chance, whole = random.Random(0), build()
    outcomes = Counter(outcome(mutated(whole, chance)).split(":")[0] for _ in range(400))
    assert outcomes[DECODED] > 20
    assert outcomes["damaged"] > 20
    assert capfd.readouterr() == ("", "")


def test_without_its_extra_a_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, data, extra in (
        ("pypdfium2", b"%PDF-1.7\n", "pdf"),
        ("pydicom", bytes(128) + b"DICM\x02\x00", "dicom"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        assert f"pip install 'ecgfeat[{extra}]'" in outcome(data)
