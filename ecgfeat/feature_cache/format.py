"""What a cache is made of: its objects, their types, and how texts are stored.

docs/cache-format.md says the same in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from h5py import h5t
from numpy.typing import NDArray

from ecgfeat.errors import CacheMismatchError, DataError
from ecgfeat.manifest import Manifest

__all__ = ["Header", "attributes", "check_texts", "columns"]


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

    DataError for a text that is too long, or can't be told from a shorter one (NUL).
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
    """A metadata column's name as HDF5 takes it: ``%XX`` for ``/``, ``%`` and control codes."""
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


T = TypeVar("T")


def required(attributes: Attributes, name: str, kind: type[T]) -> T:
    """An attribute's value; TypeError, with its name as the message, where it is no `kind`."""
    value = attributes.get(name)
    if not isinstance(value, kind):
        raise TypeError(name)
    return value


_TEXTS = (
    "arch",
    "weights",
    "weights_digest",
    "crop_mode",
    "size",
    "resampling",
    "decoder",
    "device",
    "precision",
)
_TRIPLES = ("mean", "std")


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything that decides the numbers in a cache; two that are equal give equal features.

    The recipe decides nothing: its options do.

    Attributes
    ----------
    arch : str
        Architecture, such as ``"resnet18"``.
    weights : str
        What the weights are called, for people; `weights_digest` decides.
    weights_digest : str
        SHA-256 over the tensors used, hexadecimal.
    crop_mode, size, resampling : str
    mean, std : tuple of 3 floats
        See `ecgfeat.preprocessing.Preprocessing`.
    decoder : str
        Names and versions of what turns files into pixels.
    device : {"cpu", "cuda", "mps"}
    precision : {"fp32", "bf16", "fp16"}
    taps : mapping of str to int
        Width of each tap's features.
    recipe : str
        Name of the recipe that the options were taken from; empty where there was none.
    """

    arch: str
    weights: str
    weights_digest: str
    crop_mode: str
    size: str
    resampling: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decoder: str
    device: str
    precision: str
    taps: Mapping[str, int]
    recipe: str = ""

    def attributes(self) -> dict[str, str | tuple[float, ...]]:
        """The header as a cache's attributes; the taps are data sets there."""
        recipe = ("recipe",) if self.recipe else ()
        return {name: getattr(self, name) for name in (*_TEXTS, *_TRIPLES, *recipe)}

    @classmethod
    def from_attributes(cls, attributes: Attributes, taps: Mapping[str, int]) -> Header:
        """The inverse of `attributes`; as `required` where one of them can't be had."""
        attributes = {"recipe": "", **attributes}
        fields: dict[str, Any] = {
            **{name: required(attributes, name, str) for name in (*_TEXTS, "recipe")},
            **{name: required(attributes, name, tuple) for name in _TRIPLES},
        }
        return cls(**fields, taps=taps)

    def require(self, found: Header, path: Path) -> None:
        """Refuse features that were computed another way.

        Raises
        ------
        CacheMismatchError
            For the first field in which `found`, the header of `path`, differs.
        """
        for name in (*_TEXTS, *_TRIPLES):
            if name != "weights" and getattr(self, name) != getattr(found, name):
                field = name.removesuffix("_digest")
                raise CacheMismatchError(field, self._shown(name), found._shown(name), path)
        # By their names, as --layers takes them, where those differ.
        asked, there = (",".join(sorted(header.taps)) for header in (self, found))
        if asked == there:
            asked, there = (
                ", ".join(f"{tap} {width}" for tap, width in sorted(header.taps.items()))
                for header in (self, found)
            )
        if asked != there:
            raise CacheMismatchError("taps", asked, there, path)

    def _shown(self, name: str) -> object:
        if name == "weights_digest":
            return f"{self.weights} (sha256 {self.weights_digest[:12]})"
        return getattr(self, name)


MAX_REASON_BYTES = 500
NO_TIME = -(2**63)
"""Time of change of a file that couldn't be read: none has it, so the next writer tries again."""


def check_texts(manifest: Manifest) -> None:
    """Refuse what a cache can't hold now (DataError), not after hours of work."""
    if len(manifest.metadata) > MAX_LINKS:
        raise DataError(
            f"the data have {len(manifest.metadata)} metadata columns; a cache takes {MAX_LINKS}. "
            "Leave some out of the CSV."
        )
    encode_texts(manifest.paths, "the path")
    encode_texts(manifest.classes, "the class")
    encode_texts(manifest.groups, "the group")
    for name, values in manifest.metadata.items():
        link_name(name)
        encode_texts(values, f"the column {name!r}")


def attributes(header: Header, manifest: Manifest) -> Attributes:
    """The root's attributes, but those of one writing."""
    return {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        **header.attributes(),
        "data_name": manifest.name,
        "data_digest": manifest.digest,
        **_origin(manifest),
    }


def _origin(manifest: Manifest) -> dict[str, str]:
    """Where the images lie and what lay beside them, for an audit; without what is too long."""
    facts = {"data_root": str(manifest.root), "ignored": json.dumps(dict(manifest.ignored_of))}
    texts = {name: text.encode("utf-8", "surrogateescape") for name, text in facts.items()}
    return {n: facts[n] for n, text in texts.items() if len(text) <= MAX_TEXT_BYTES}


def columns(
    manifest: Manifest,
    rows: NDArray[np.int64],
    digests: NDArray[np.uint8],
    reasons: Mapping[int, str],
    passing: Set[int],
) -> dict[str, NDArray[Any]]:
    """Every data set but the features, of the manifest's `rows` and those with `reasons`.

    `digests` are of `rows`, shape (n, 16). Left-out rows in `passing` are tried again by the next
    writer.
    """
    left_out = sorted(reasons)
    missing = manifest.missing_counts()
    quarantine = _of_rows(manifest, left_out)
    tried_again = [row in passing for row in left_out]
    quarantine["mtime_ns"] = np.where(tried_again, NO_TIME, quarantine["mtime_ns"])
    found: dict[str, NDArray[Any]] = {
        "classes": encode_texts(manifest.classes, "the class"),
        **_of_rows(manifest, rows.tolist()),
        "digest": digests,
        "missing/label": encode_texts([label for label, _ in missing], "the label"),
        "missing/split": encode_texts([split for _, split in missing], "the split"),
        "missing/count": np.array(list(missing.values()), dtype=np.int64),
        **{f"quarantine/{name}": values for name, values in quarantine.items()},
        "quarantine/before": np.searchsorted(rows, left_out).astype(np.int64),
        "quarantine/reason": encode_texts([_short(reasons[row]) for row in left_out], "the reason"),
    }
    for name, values in manifest.metadata.items():
        found[f"metadata/{link_name(name)}"] = _texts(values, rows.tolist())
    return found


def _of_rows(manifest: Manifest, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The data sets that rows have, with features or without."""
    return {
        "path": _texts(manifest.paths, rows),
        "label": _texts(manifest.labels, rows),
        "split": _texts(manifest.splits, rows),
        "group": _texts(manifest.groups, rows),
        "n_bytes": np.array([manifest.n_bytes[row] for row in rows], dtype=np.int64),
        "mtime_ns": np.array([manifest.mtime_ns[row] for row in rows], dtype=np.int64),
    }


def _texts(values: Sequence[str], rows: Sequence[int]) -> NDArray[np.bytes_]:
    return encode_texts([values[row] for row in rows], "a text")


def _short(reason: str) -> str:
    data = reason.replace("\0", " ").encode(errors="replace")
    return data[:MAX_REASON_BYTES].decode(errors="ignore")
