"""The manifest itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ecgfeat.config import DataSettings
from ecgfeat.files import write_csv
from ecgfeat.protocol import class_order, hash_place

__all__ = ["Manifest", "MissingImage", "write_missing"]


class MissingImage(NamedTuple):
    """An image that is listed but absent."""

    path: str
    label: str
    split: str
    group: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """The images that are there, and what is known of each.

    Attributes
    ----------
    source : Path
        Absolute path of the folder or CSV that was read.
    settings : DataSettings
        How it was read.
    root : Path
        Absolute folder that `paths` are relative to.
    name : str
        The data's name, fit for a file name: the folder's or the CSV's.
    paths : tuple of str, length n
        Relative POSIX paths, each once: in the CSV's order, or sorted for a folder tree.
    labels, splits, groups : tuples of str, length n
        Class; ``"train"`` or ``"test"``; group, empty where the row is its own.
    metadata : mapping of str to tuple of str, each of length n
        The CSV's other columns.
    n_bytes, mtime_ns : tuples of int, length n
        Size and time of change, from the one look that told that the file is there.
    missing : tuple of MissingImage
        What is listed but absent.
    split_source : str
        Where the splits come from: ``"folders"``, ``"column"``, or the rule in words.
    n_ignored : int
        Other files of a folder tree: no image by their suffix, or outside the class folders.
    """

    source: Path
    settings: DataSettings
    root: Path
    name: str
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    metadata: Mapping[str, tuple[str, ...]]
    n_bytes: tuple[int, ...]
    mtime_ns: tuple[int, ...]
    missing: tuple[MissingImage, ...]
    split_source: str
    n_ignored: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of all listed rows, missing ones too, in their order."""
        return class_order([*self.labels, *(row.label for row in self.missing)])

    @property
    def digest(self) -> str:
        """SHA-256 over path, label, split and group of all listed rows, whatever their order."""
        rows = sorted([*zip(self.paths, self.labels, self.splits, self.groups), *self.missing])
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def image_path(self, row: int) -> Path:
        """Where a row's image lies."""
        return self.root / self.paths[row]

    def image_paths(self) -> list[Path]:
        """Where every row's image lies."""
        return [self.root / path for path in self.paths]

    def missing_counts(self) -> dict[tuple[str, str], int]:
        """How many images are missing, by (label, split)."""
        return dict(sorted(Counter((row.label, row.split) for row in self.missing).items()))

    def limited(self, n_rows: int) -> Manifest:
        """At most `n_rows` rows, spread evenly over classes and splits; 0 takes all.

        The choice depends on the paths alone, and a smaller one is part of every larger one.
        """
        if not 0 < n_rows < len(self):
            return self
        strata: dict[tuple[str, str], list[tuple[bytes, int]]] = defaultdict(list)
        for row, (path, label, split) in enumerate(zip(self.paths, self.labels, self.splits)):
            strata[label, split].append((hash_place(path), row))
        turns = [turn for stratum in strata.values() for turn in enumerate(sorted(stratum))]
        return self._take(sorted(row for _, (_, row) in sorted(turns)[:n_rows]))

    def _take(self, rows: Sequence[int]) -> Manifest:
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            metadata={
                name: tuple(values[row] for row in rows) for name, values in self.metadata.items()
            },
            n_bytes=tuple(self.n_bytes[row] for row in rows),
            mtime_ns=tuple(self.mtime_ns[row] for row in rows),
        )


def write_missing(manifest: Manifest, path: Path) -> None:
    """Write the missing images as a CSV with the columns path, label, split and group.

    Raises
    ------
    StorageError
        When it can't be written.
    """
    write_csv(path, [MissingImage._fields, *manifest.missing])
