"""What a file is by its first bytes, for those that are neither JPEG nor PNG."""

from __future__ import annotations

__all__ = ["foreign_format"]

_SIGNATURES = (
    (0, b"II*\x00", "a TIFF"),
    (0, b"MM\x00*", "a TIFF"),
    (0, b"II+\x00", "a BigTIFF"),
    (0, b"MM\x00+", "a BigTIFF"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (8, b"WEBP", "a WebP"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "an HEIC"),
    (4, b"ftypmif1", "an HEIC"),
    (4, b"jP  ", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (128, b"DICM", "a DICOM file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%!PS", "a PostScript file (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file (EPS)"),
    (0, b"%PDF", "a PDF"),
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
