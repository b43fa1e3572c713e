"""A clean manifest: no picture twice, whole patients on one side, classes in proportion."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import DataSettings, SplitSettings, option_name
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.feature_cache import FeatureCache, open_cache
from ecgfeat.files import page_named, write_csv
from ecgfeat.manifest import Manifest, group_in, read_manifest, split_called
from ecgfeat.protocol import (
    Task,
    dealt,
    define_task,
    drawn_units,
    joined,
    n_kept_out,
    same_pictures,
)

__all__ = ["CleanSplit", "split"]

Rows = NDArray[np.int64]

OF_A_CACHE = ("root", "group_column", "group_by", "test_fraction", "split_seed")
"""Settings of the data that still mean something once they are in a cache."""


@dataclass(frozen=True, kw_only=True)
class CleanSplit:
    """What was written, and what was left out.

    Attributes
    ----------
    manifest_path : Path
        The CSV, which `read_manifest` takes.
    root : Path
        What its paths are relative to.
    counts : mapping of str to mapping of str to int
        Images by split (or fold) and class.
    left_out : tuple of (path, label, reason)
    n_groups : int
        Groups of more than one image, joined by patient or picture.
    """

    manifest_path: Path
    root: Path
    counts: Mapping[str, Mapping[str, int]]
    left_out: tuple[tuple[str, str, str], ...]
    n_groups: int

    @property
    def left_out_path(self) -> Path:
        """The list of what was left out, where anything was."""
        return self.manifest_path.with_name(f"{self.manifest_path.stem}-left-out.csv")

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        reasons = Counter(reason.partition(" (")[0] for _, _, reason in self.left_out)
        return {
            "manifest_path": str(self.manifest_path),
            "root": str(self.root),
            "images": {name: dict(counts) for name, counts in self.counts.items()},
            "left_out": dict(reasons),
            "n_groups": self.n_groups,
        }


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """The images, from a manifest or a cache."""

    name: str
    root: Path
    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]
    metadata: Mapping[str, Sequence[str]]
    pictures: Sequence[bytes]

    def of(self, rows: Sequence[int]) -> _Listed:
        """Some of them."""

        def taken(column: Sequence[Any]) -> list[Any]:
            return [column[row] for row in rows]

        names = ("paths", "labels", "splits", "groups", "pictures")
        columns: dict[str, Any] = {name: taken(getattr(self, name)) for name in names}
        columns["metadata"] = {name: taken(column) for name, column in self.metadata.items()}
        return replace(self, **columns)


def split(
    source: Manifest | FeatureCache | str | Path,
    *,
    out: str | Path | None = None,
    data: DataSettings = DataSettings(),
    settings: SplitSettings = SplitSettings(),
    force: bool = False,
) -> CleanSplit:
    """Write a manifest in which no picture and no patient is on two sides.

    Pictures under two labels are left out, since nobody knows which is right. Of any other that
    is there several times the first is kept, or all stay on one side. Groups that share a picture
    become one. Then groups are drawn within each class as everywhere else in ecgfeat: by a hash
    of seed and name.

    Parameters
    ----------
    source : Manifest, FeatureCache, str or Path
        A cache, or what `read_manifest` takes.
    out : str or Path, optional
        The CSV; ``NAME-split.csv`` in the working folder by default.
    data : DataSettings
        How the data are read; `test_fraction` and `split_seed` of the new split.
    settings : SplitSettings
    force : bool
        Write over a file that is there.

    Returns
    -------
    CleanSplit

    Raises
    ------
    ConfigError
        When an option doesn't go with the source, or the CSV is there already.
    DataError
        When too little is left of a class.
    CacheError, StorageError

    Examples
    --------
    >>> split("pages", settings=SplitSettings(val_fraction=0.2)).counts  # doctest: +SKIP
    {'train': {'mi': 64, 'normal': 64}, 'val': {'mi': 16, 'normal': 16}, ...}
    """
    if not isinstance(source, (Manifest, FeatureCache)):
        is_cache = Path(source).suffix == ".h5"
        source = open_cache(source) if is_cache else read_manifest(source, data)
    listed = _listed(source, data)
    path = Path(out) if out is not None else Path(f"{listed.name}-split.csv")
    if isinstance(source, Manifest):
        source.refuse_inside(path, "--out")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: give another --out, or --force to write over it")
    left_out, together = _copies(listed, settings)
    units = joined(listed.paths, listed.groups, together)
    if settings.keep_split:
        left_out |= _straddling(listed, units, left_out)
    rows = [row for row in range(len(listed.paths)) if row not in left_out]
    kept, units = listed.of(rows), units[rows]
    task = define_task(kept.labels)
    groups = _names(kept, units)
    column, parts = _parts(kept, task, units, groups, data, settings)
    if not settings.folds:
        _refuse_lacking(task, parts, settings)
    heads = ["path", "label", column, "group", *map(_beside_ours, kept.metadata)]
    cells = zip(kept.paths, kept.labels, parts, groups, *kept.metadata.values())
    write_csv(path, [heads, *cells])
    done = CleanSplit(
        manifest_path=path,
        root=kept.root,
        counts=_counts(parts, kept.labels),
        left_out=tuple((listed.paths[r], listed.labels[r], why) for r, why in left_out.items()),
        n_groups=sum(n > 1 for n in Counter(units.tolist()).values()),
    )
    if done.left_out:
        write_csv(done.left_out_path, [("path", "label", "reason"), *done.left_out])
    return done


KEPT_SIDES = ("test", "val", "train")
"""Where --keep-split must choose, the side whose images stay."""
OUR_COLUMNS = ("path", "label", "split", "group", "fold")


def _beside_ours(column: str) -> str:
    """A metadata column's name, where it would be read as one of ours another."""
    return f"{column}_before" if column.strip().lower() in OUR_COLUMNS else column


def _listed(source: Manifest | FeatureCache, data: DataSettings) -> _Listed:
    groups: Sequence[str]
    if isinstance(source, Manifest):
        name, root, groups, pictures = source.name, source.root, source.groups, source.pictures()
    else:
        _refuse_idle(data)
        name, root = source.data_name, _root(source, data)
        # Pages of one file stay together where nothing else tells whose they are.
        groups = [
            group or (named.file if named.page else "")
            for group, named in zip(_groups(source, data), map(page_named, source.paths))
        ]
        pictures = source.pictures
    return _Listed(
        name=name,
        root=root,
        paths=source.paths,
        labels=source.labels,
        splits=source.splits,
        groups=groups,
        metadata=source.metadata,
        pictures=pictures,
    )


def _root(cache: FeatureCache, data: DataSettings) -> Path:
    root = data.root or cache.root
    if not root:
        raise ConfigError(
            f"{cache.path} doesn't say where its images are: give --root the folder that they "
            "are in"
        )
    return root


def _refuse_idle(data: DataSettings) -> None:
    """Refuse options that say how data are read, where they were read long ago."""
    idle = [
        option_name(item.name)
        for item in fields(data)
        if item.name not in OF_A_CACHE and getattr(data, item.name) != item.default
    ]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} says how DATA is read, and a cache is given: give DATA"
        )


def _groups(cache: FeatureCache, data: DataSettings) -> Sequence[str]:
    if data.group_column:
        if data.group_column not in cache.metadata:
            raise ConfigError(
                f"--group-column {data.group_column!r} is no column of {cache.path}, which has "
                f"{', '.join(cache.metadata) or 'none'}"
            )
        return cache.metadata[data.group_column]
    if data.group_by:
        return [
            group_in(_below(path, label), path.rpartition("/")[2], data.group_by)
            for path, label in zip(cache.paths, cache.labels)
        ]
    return cache.groups


def _below(path: str, label: str) -> list[str]:
    """The folders of a path below its class's; all of them where none is."""
    folders = path.split("/")[:-1]
    below = folders[folders.index(label) + 1 :] if label in folders else folders
    return below[1:] if below and split_called(below[0]) else below


def _copies(listed: _Listed, settings: SplitSettings) -> tuple[dict[int, str], list[Sequence[int]]]:
    """Rows left out, with the reason, and rows that must stay together."""
    same = [(rows, "the same picture as") for rows in same_pictures(listed.pictures)]
    near = [(rows, "nearly the same picture as") for rows in _near(listed, settings.audit)]
    left_out: dict[int, str] = {}
    for rows, what in (*same, *near):
        rows = [row for row in rows if row not in left_out]
        if len({listed.labels[row] for row in rows}) > 1:
            left_out |= dict.fromkeys(rows, f"under two labels ({what} another)")
        elif settings.copies == "drop" and len(rows) > 1:
            first = _kept_of(rows, listed, settings)
            why = f"{what.removesuffix(' as')} twice ({what} {listed.paths[first]})"
            left_out |= {row: why for row in rows if row != first}
    return left_out, [rows for rows, _ in (*same, *near)]


def _straddling(listed: _Listed, units: Rows, left_out: Container[int]) -> dict[int, str]:
    """Rows to leave out so that each group is on one side, the first of `KEPT_SIDES`."""
    side_of: dict[int, str] = {}
    rows = [row for row in range(len(listed.paths)) if row not in left_out]
    for row in sorted(rows, key=lambda row: KEPT_SIDES.index(listed.splits[row])):
        side_of.setdefault(int(units[row]), listed.splits[row])
    return {
        row: f"of a group that is in {side} too"
        for row in rows
        if (side := side_of[int(units[row])]) != listed.splits[row]
    }


def _kept_of(rows: Sequence[int], listed: _Listed, settings: SplitSettings) -> int:
    if not settings.keep_split:
        return rows[0]
    return min(rows, key=lambda row: (KEPT_SIDES.index(listed.splits[row]), row))


def _near(listed: _Listed, audit: Path | None) -> list[list[int]]:
    """The rows of each picture that an audit found nearly the same, several times."""
    if audit is None:
        return []
    if not (audit / "audit.json").exists():
        raise ConfigError(f"--audit {audit} is no audit's folder: it has no audit.json")
    number = {path: row for row, path in enumerate(listed.paths)}
    found = _listed_pairs(audit / "near-copies.csv")
    pairs = [(number[a], number[b]) for a, b in found if a in number and b in number]
    if found and not pairs:
        raise ConfigError(f"--audit {audit} names no image of {listed.name}: give an audit of it")
    units = joined(listed.paths, [""] * len(listed.paths), pairs)
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row in sorted({row for pair in pairs for row in pair}):
        rows_of[int(units[row])].append(row)
    return list(rows_of.values())


def _listed_pairs(file: Path) -> list[tuple[str, str]]:
    """The pairs of paths that an audit listed, and a reader may have shortened."""
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as text:
            return [(row["path"], row["other_path"]) for row in csv.DictReader(text)]
    except FileNotFoundError:
        return []  # it found none
    except (KeyError, csv.Error) as error:
        raise DataError(
            f"{file} isn't as an audit writes it ({error}): run the audit again"
        ) from error
    except OSError as error:
        raise storage_error(error, "reading", file) from error


def _names(kept: _Listed, units: Rows) -> list[str]:
    """Each row's group: its own name, or the first of those that were joined."""
    n_rows = Counter(units.tolist())
    name: dict[int, str] = {}
    for group, path, unit in zip(kept.groups, kept.paths, units.tolist()):
        own = group or (path if n_rows[unit] > 1 else "")
        name[unit] = min(filter(None, (name.get(unit, ""), own)), default="")
    return [name[unit] for unit in units.tolist()]


def _parts(
    kept: _Listed,
    task: Task,
    units: Rows,
    groups: Sequence[str],
    data: DataSettings,
    settings: SplitSettings,
) -> tuple[str, list[str]]:
    """The column that says who is tested, and its cells."""
    if settings.keep_split:
        return "split", list(kept.splits)
    rows = np.arange(len(units))
    if settings.folds:
        number = np.empty(len(units), dtype=np.int64)
        for fold, (_, out) in enumerate(
            dealt(
                rows,
                task,
                units,
                option="--folds",
                n_folds=settings.folds,
                seed=data.split_seed,
                grouped=len(np.unique(units)) < len(units),
            ),
            start=1,
        ):
            number[out] = fold
        return "fold", [str(fold) for fold in number.tolist()]

    def drawn(rows: Rows, key: str, fraction: float) -> Rows:
        is_drawn = drawn_units(
            rows,
            task.targets,
            ids=kept.paths,
            groups=groups,
            key=f"{key}{data.split_seed}/",
            n_drawn=lambda n: n_kept_out(fraction, n),
        )
        return rows[is_drawn]

    parts = np.full(len(units), "train", dtype=object)
    parts[drawn(rows, "", data.test_fraction)] = "test"
    if settings.val_fraction:
        parts[drawn(rows[parts == "train"], "val/", settings.val_fraction)] = "val"
    found: list[str] = parts.tolist()
    return "split", found


def _refuse_lacking(task: Task, parts: Sequence[str], settings: SplitSettings) -> None:
    """Refuse a split of which a part lacks a class."""
    there = set(zip(parts, task.targets.tolist()))
    mend = "leave out --keep-split"
    if not settings.keep_split:
        mend = "give another --test-fraction or --val-fraction"
    for part in ["train", "test", *(["val"] if settings.val_fraction else [])]:
        lacking = [name for i, name in enumerate(task.classes) if (part, i) not in there]
        if lacking:
            raise DataError(
                f"{part} would have no image of {', '.join(lacking)}: too few groups (or ungrouped "
                f"images) are left. Add data, or {mend}."
            )


def _counts(parts: Sequence[str], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    n = Counter(zip(parts, labels))
    order = ["train", "val", "test"]
    names = sorted(set(parts), key=lambda p: (order.index(p) if p in order else 3, p.zfill(6)))
    return {p: {label: n[p, label] for label in sorted(set(labels))} for p in names}
