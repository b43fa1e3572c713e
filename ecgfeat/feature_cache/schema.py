"""What a cache is made of: its objects, their types, and how texts are stored.

docs/cache-format.md says the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
from h5py import h5t
from numpy.typing import NDArray

from ecgfeat.errors import DataError

FORMAT_NAME = "ecgfeat feature cache"
FORMAT_VERSION = 1

MAX_TEXT_BYTES = 4096
"""Longest path on Linux, and the longest text in a cache: each row takes the longest's room."""
MAX_NAME_BYTES = 255
MAX_LINKS = 1024
MAX_ATTRIBUTES = 64

TEXT, I64, U8, F32 = np.dtype("S"), np.dtype("<i8"), np.dtype("u1"), np.dtype("<f4")
HDF5_TYPES = {I64: h5t.STD_I64LE, U8: h5t.STD_U8LE, F32: h5t.IEEE_F32LE}

ROOT = {
    "classes": TEXT,
    "path": TEXT,
    "label": TEXT,
    "split": TEXT,
    "group": TEXT,
    "n_bytes": I64,
    "mtime_ns": I64,
    "digest": U8,
}
GROUPS: dict[str, dict[str, np.dtype[Any]]] = {
    "features": {},
    "metadata": {},
    "missing": {"label": TEXT, "split": TEXT, "count": I64},
    "quarantine": {
        "path": TEXT,
        "label": TEXT,
        "split": TEXT,
        "group": TEXT,
        "reason": TEXT,
        "before": I64,
        "n_bytes": I64,
        "mtime_ns": I64,
    },
    "versions": {},
}
OPEN_GROUPS = {"features": F32, "metadata": TEXT}
"""Groups whose data sets have names of the writer's choice."""

Attributes = Mapping[str, str | int | float | tuple[float, ...]]


def encode_texts(values: Sequence[str], what: str) -> NDArray[np.bytes_]:
    """Texts as an array of fixed-length bytes: UTF-8, a path's undecodable bytes as they are.

    Raises
    ------
    DataError
        For a text that is too long, or can't be told from a shorter one (NUL).
    """
    encoded = []
    for row, value in enumerate(values):
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise DataError(f"{what} of row {row} isn't text: {value[:40]!r}") from error
        if len(data) > MAX_TEXT_BYTES or b"\0" in data:
            fault = "holds a NUL character" if b"\0" in data else f"has {len(data)} bytes"
            raise DataError(
                f"{what} of row {row} {fault}; a cache takes texts of up to {MAX_TEXT_BYTES} "
                f"bytes without NUL. Shorten it or leave the column out: {value[:40]!r}"
            )
        encoded.append(data)
    width = max((len(data) for data in encoded), default=0) or 1
    return np.array(encoded, dtype=f"S{width}")


def decode_texts(array: NDArray[np.bytes_]) -> tuple[str, ...]:
    """The inverse of `encode_texts`."""
    ended = (data.partition(b"\0")[0] for data in array.tolist())
    return tuple(data.decode("utf-8", "surrogateescape") for data in ended)


def link_name(name: str) -> str:
    """A metadata column's name as HDF5 takes it: ``%XX`` for ``/``, ``%`` and control codes.

    Raises
    ------
    DataError
        When it is too long.
    """
    special = re.compile(r"[%/\x00-\x1f\x7f]|^\.$")
    encoded = special.sub(lambda match: f"%{ord(match[0]):02X}", name) or "%"
    if len(encoded.encode()) > MAX_NAME_BYTES:
        raise DataError(
            f"the column name {name[:40]!r}… is too long: a cache takes {MAX_NAME_BYTES} bytes. "
            "Give the column a shorter name."
        )
    return encoded


def column_name(link: str) -> str:
    """The inverse of `link_name`."""
    return "" if link == "%" else unquote(link)
