"""What goes into a cache besides the features: the manifest's columns, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.feature_cache.header import Header
from ecgfeat.feature_cache.schema import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MAX_LINKS,
    Attributes,
    encode_texts,
    link_name,
)
from ecgfeat.manifest import Manifest

__all__ = ["attributes", "check_texts", "columns"]

MAX_REASON_BYTES = 500
NO_TIME = -(2**63)
"""Time of change of a file that couldn't be read: none has it, so the next writer tries again."""


def check_texts(manifest: Manifest) -> None:
    """Refuse what a cache can't hold now, not after hours of work.

    Raises
    ------
    DataError
    """
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
    }


def columns(
    manifest: Manifest,
    rows: NDArray[np.int64],
    digests: NDArray[np.uint8],
    reasons: Mapping[int, str],
    passing: Set[int],
) -> dict[str, NDArray[Any]]:
    """Every data set but the features.

    Parameters
    ----------
    manifest : Manifest
    rows : ndarray of shape (n,), int64
        Rows of the manifest that are kept.
    digests : ndarray of shape (n, 16), uint8
    reasons : mapping of int to str
        Why other rows are left out.
    passing : set of int
        Those of them that the next writer is to try again.
    """
    kept, left_out = rows.tolist(), sorted(reasons)
    missing = manifest.missing_counts()
    found: dict[str, NDArray[Any]] = {
        "classes": encode_texts(manifest.classes, "the class"),
        "path": _texts(manifest.paths, kept),
        "label": _texts(manifest.labels, kept),
        "split": _texts(manifest.splits, kept),
        "group": _texts(manifest.groups, kept),
        "n_bytes": _numbers(manifest.n_bytes, kept),
        "mtime_ns": _numbers(manifest.mtime_ns, kept),
        "digest": digests,
        "missing/label": encode_texts([label for label, _ in missing], "the label"),
        "missing/split": encode_texts([split for _, split in missing], "the split"),
        "missing/count": np.array(list(missing.values()), dtype=np.int64),
        "quarantine/path": _texts(manifest.paths, left_out),
        "quarantine/label": _texts(manifest.labels, left_out),
        "quarantine/split": _texts(manifest.splits, left_out),
        "quarantine/group": _texts(manifest.groups, left_out),
        "quarantine/before": np.searchsorted(rows, left_out).astype(np.int64),
        "quarantine/reason": encode_texts([_short(reasons[row]) for row in left_out], "the reason"),
        "quarantine/n_bytes": _numbers(manifest.n_bytes, left_out),
        "quarantine/mtime_ns": np.array(
            [NO_TIME if row in passing else manifest.mtime_ns[row] for row in left_out],
            dtype=np.int64,
        ),
    }
    for name, values in manifest.metadata.items():
        found[f"metadata/{link_name(name)}"] = _texts(values, kept)
    return found


def _texts(values: Sequence[str], rows: Sequence[int]) -> NDArray[np.bytes_]:
    return encode_texts([values[row] for row in rows], "a text")


def _numbers(values: Sequence[int], rows: Sequence[int]) -> NDArray[np.int64]:
    return np.array([values[row] for row in rows], dtype=np.int64)


def _short(reason: str) -> str:
    data = reason.replace("\0", " ").encode(errors="replace")
    return data[:MAX_REASON_BYTES].decode(errors="ignore")
