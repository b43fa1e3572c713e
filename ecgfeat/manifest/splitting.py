"""Train and test where the data name no split."""

from __future__ import annotations

from collections import Counter, defaultdict

from ecgfeat.config import DataSettings
from ecgfeat.errors import DataError
from ecgfeat.manifest.listing import ListedRows
from ecgfeat.protocol import class_order, hash_place, n_kept_out

__all__ = ["refuse_straddling_groups", "split_by_hash"]

Unit = tuple[str, str]
"""A group, or a row that has none: rows of one unit stay together."""


def split_by_hash(listing: ListedRows, settings: DataSettings) -> list[str]:
    """Send the same share of each class to test, chosen by a hash of group or path.

    Within each class, units are put in the order of SHA-256 over ``<split_seed>/<name>``, and
    the first `test_fraction` of them go to test: at least one, and never all. A row's side thus
    hardly changes when others are added.
    """
    units = _units(listing)
    members: dict[str, list[Unit]] = defaultdict(list)
    for unit, label in _homes(units, listing.labels).items():
        members[label].append(unit)
    test: set[Unit] = set()
    for homed in members.values():
        homed.sort(key=lambda unit: (hash_place(f"{settings.split_seed}/{unit[1]}"), unit))
        test.update(homed[: n_kept_out(settings.test_fraction, len(homed))])
    return ["test" if unit in test else "train" for unit in units]


def refuse_straddling_groups(listing: ListedRows, splits: list[str]) -> None:
    """Raise `DataError` when a group has rows in train and in test."""
    side: dict[str, str] = {}
    for index, (group, split) in enumerate(zip(listing.groups, splits)):
        if group and side.setdefault(group, split) != split:
            raise DataError(
                f"{listing.where(index)}: group {group!r} is in {split} and, further up, in "
                f"{side[group]}: a test on rows like those trained on would flatter. Put each "
                "group on one side, or remove the split column to have whole groups split."
            )


def _units(listing: ListedRows) -> list[Unit]:
    return [
        ("group", group) if group else ("path", path)
        for group, path in zip(listing.groups, listing.paths)
    ]


def _homes(units: list[Unit], labels: list[str]) -> dict[Unit, str]:
    """Each unit's class: its most frequent one, of equals the first in order."""
    rank = {label: index for index, label in enumerate(class_order(labels))}
    homes: dict[Unit, tuple[int, int, str]] = {}
    for (unit, label), n_rows in Counter(zip(units, labels)).items():
        candidate = (-n_rows, rank[label], label)
        homes[unit] = min(homes.get(unit, candidate), candidate)
    return {unit: label for unit, (_, _, label) in homes.items()}
