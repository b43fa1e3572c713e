"""What becomes of a file: decoded, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ecgfeat.errors import ImageError
from ecgfeat.images import decode
from ecgfeat.images.decoding import decode_picture, read_header

DECODED = ""


def outcome(source: Path | bytes) -> str:
    """The reason of the refusal, or `DECODED`; bytes are taken as a file's."""
    try:
        if isinstance(source, bytes):
            page = np.asarray(decode_picture(read_header(source)))
        else:
            page = decode(source)
    except ImageError as error:
        return str(error)
    assert page.dtype == np.uint8
    assert page.ndim == 3
    assert page.shape[2] == 3
    return DECODED
