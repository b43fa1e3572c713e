"""The one EXIF entry that matters here: which way up the picture is."""

from __future__ import annotations

import struct

from PIL import Image

from ecgfeat.images.pages import Page, as_image

__all__ = ["UPRIGHT", "orientation", "turned_upright"]

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_SHORT = 3

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


def orientation(tiff: bytes) -> int:
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
            if entry[:3] == (_ORIENTATION_TAG, _SHORT, 1):
                return int(entry[3])
    except struct.error:
        pass
    return UPRIGHT


def turned_upright(page: Page, value: int) -> Page:
    """Undo the orientation that EXIF tells of; values other than 2 to 8 mean upright."""
    return as_image(page).transpose(_UNDO[value]) if value in _UNDO else page
