"""The manifest itself: the rows as they are listed, and the images that are there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ecgfeat.config import DataSettings
from ecgfeat.errors import ConfigError
from ecgfeat.files import page_named, write_csv
from ecgfeat.protocol import class_order, hash_place

__all__ = ["SPLITS", "ListedRows", "Manifest", "MissingImage", "write_missing"]

SPLITS = ("train", "val", "test")


@dataclass(kw_only=True)
class ListedRows:
    """The rows as a tree or a CSV lists them; `splits` is empty where it names no split.

    The fields mean what those of `Manifest` do.
    """

    source: Path
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]
    metadata: dict[str, list[str]] = field(default_factory=dict)
    row_numbers: list[int] = field(default_factory=list)  # in the CSV, whose header is row 1
    ignored: dict[str, int] = field(default_factory=dict)
    ignored_of: dict[str, int] = field(default_factory=dict)
    split_source: str = ""
    label_source: str = ""
    group_source: str = ""
    warnings: list[str] = field(default_factory=list)

    def where(self, index: int) -> str:
        """Name a row in a message."""
        if not self.row_numbers:
            return str(self.source)
        return f"{self.source}, row {self.row_numbers[index]}"


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
        Relative POSIX paths, each once: in the CSV's order, or sorted for a folder tree. One that
        ends in ``#page=2`` is the second page of a file.
    labels, splits, groups : tuples of str, length n
        Class; ``"train"``, ``"val"`` or ``"test"``; group, empty where the row is its own.
    metadata : mapping of str to tuple of str, each of length n
        The CSV's other columns.
    n_bytes, mtime_ns : tuples of int, length n
        Size and time of change, from the one look that told that the file is there.
    missing : tuple of MissingImage
        What is listed but absent.
    split_source : str
        Where the splits come from, in words.
    label_source, group_source : str
        Likewise; the latter is empty where rows have no groups.
    ignored : mapping of str to int
        What was left out, by reason: a tree's other files by suffix, a CSV's rows without a label.
    ignored_of : mapping of str to int
        What of it lay in a class's folder, by class.
    warnings : tuple of str
        What may be wrong, each with the mend.
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
    label_source: str = ""
    group_source: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    ignored_of: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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

    def refuse_inside(self, path: Path, option: str) -> None:
        """Refuse to write into the folder tree that the data are.

        Raises
        ------
        ConfigError
        """
        if self.source != self.root:
            return  # a CSV lists its images, whatever lies beside them
        root, target = self.source.resolve(), path.resolve()
        if target == root or root in target.parents:
            raise ConfigError(
                f"{option} {path} lies inside the data {self.source}, which would be another tree "
                f"then: give {option} a place outside, such as {root.parent / path.name}"
            )

    def pictures(self) -> list[bytes]:
        """What is equal for equal files: their digest, or the path where no other has the size.

        Files that can't be read are equal to none.
        """
        names = [page_named(path) for path in self.paths]
        size_of = {name.file: size for name, size in zip(names, self.n_bytes)}
        n_of_size = Counter(size_of.values())
        told: dict[str, bytes] = {}
        for path, size in size_of.items():
            told[path] = os.fsencode(path)
            if n_of_size[size] > 1:
                with contextlib.suppress(OSError), (self.root / path).open("rb") as file:
                    told[path] = hashlib.file_digest(file, "sha256").digest()
        return [told[name.file] + name.mark for name in names]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many images there are, by split and class."""
        n = Counter(zip(self.splits, self.labels))
        return {
            split: {label: n[split, label] for label in self.classes if n[split, label]}
            for split in SPLITS
            if split in self.splits
        }

    def summary(self) -> list[str]:
        """What was found and what was guessed, line by line; warnings come last."""
        lines = [f"{self.name}: {len(self)} images in {len(self.classes)} classes"]
        for split, labels in self.counts().items():
            lines.append(f"  {split:5}  {sum(labels.values()):6}  {_listed(labels)}")
        if paged := self._paged():
            lines.append(f"{paged['images']} of the images are pages of {paged['files']} files")
        groups = "no groups: every image is on its own"
        if self.group_source:
            groups = f"{len(set(self.groups) - {''})} groups from {self.group_source}"
            n_alone = self.groups.count("")
            groups += f", {n_alone} images on their own" if n_alone else ""
        lines.append(f"split from {self.split_source}; label from {self.label_source}; {groups}")
        if self.ignored:
            lines.append(f"ignored: {_listed(self.ignored)}")
        if self.missing:
            counts = _listed(self.missing_by_class())
            lines.append(f"missing: {len(self.missing)} listed images ({counts})")
        return lines + [f"warning: {warning}" for warning in self.warnings]

    def as_json(self) -> dict[str, Any]:
        """The same, ready for ``json.dumps``."""
        return {
            "name": self.name,
            "source": str(self.source),
            "images": self.counts(),
            "split_from": self.split_source,
            "label_from": self.label_source,
            "group_from": self.group_source or None,
            "n_groups": len(set(self.groups) - {""}),
            "ignored": dict(self.ignored),
            "missing": self.missing_by_class(),
            "of_several_pages": self._paged(),
            "warnings": list(self.warnings),
        }

    def _paged(self) -> dict[str, int]:
        """How many images are pages of a file, and of how many files; empty where none is."""
        files = [name.file for name in map(page_named, self.paths) if name.page]
        return {"files": len(set(files)), "images": len(files)} if files else {}

    def image_path(self, row: int) -> Path:
        """Where a row's image lies, and perhaps which page of its file it is."""
        return self.root / self.paths[row]

    def image_paths(self) -> list[Path]:
        """Where every row's image lies."""
        return [self.root / path for path in self.paths]

    def missing_counts(self) -> dict[tuple[str, str], int]:
        """How many images are missing, by (label, split)."""
        return dict(sorted(Counter((row.label, row.split) for row in self.missing).items()))

    def missing_by_class(self) -> dict[str, int]:
        """The same by ``"split/label"``, for people."""
        return {f"{split}/{label}": n for (label, split), n in self.missing_counts().items()}

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
        return self.take(sorted(row for _, (_, row) in sorted(turns)[:n_rows]))

    def take(self, rows: Sequence[int]) -> Manifest:
        """The rows of these numbers, in their order."""
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


def _listed(counts: Mapping[str, int], n_shown: int = 8) -> str:
    shown = [f"{name} {n}" for name, n in list(counts.items())[:n_shown]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def write_missing(manifest: Manifest, path: Path) -> None:
    """Write the missing images as a CSV with the columns path, label, split and group.

    Raises
    ------
    StorageError
        When it can't be written.
    """
    write_csv(path, [MissingImage._fields, *manifest.missing])
