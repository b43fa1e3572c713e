"""Drawing rows and groups by a hash of their names, so that every machine draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ConfigError

__all__ = [
    "Rows",
    "drawn_units",
    "group_numbers",
    "hash_place",
    "n_kept_out",
    "stratified_subset",
]

Rows = NDArray[np.int64]


def group_numbers(ids: Sequence[str], groups: Sequence[str]) -> NDArray[np.int64]:
    """Number the groups from 0 by name, shape (n,); a row without a group is its own."""
    names = [("group", group) if group else ("row", name) for name, group in zip(ids, groups)]
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return np.fromiter((number[name] for name in names), np.int64, len(names))


def drawn_units(
    rows: Rows,
    targets: NDArray[np.int64],
    *,
    ids: Sequence[str],
    groups: Sequence[str],
    key: str,
    n_drawn: Callable[[int], int],
) -> NDArray[np.bool_]:
    """Draw whole groups of each class: which of `rows` are theirs, shape (len(rows),).

    Within a class, groups are put in the order of a hash of `key` and their name, and the first
    of them are taken; a group belongs to the class of its first row.

    Parameters
    ----------
    rows : ndarray of int64
        Row numbers in ascending order.
    targets : ndarray of shape (n,), int64
        Of all rows, as are `ids` and `groups`.
    ids, groups : sequences of str, length n
    key : str
        Another key, another order.
    n_drawn : callable
        From the number of a class's groups to how many of them are taken.
    """
    units = group_numbers([ids[row] for row in rows], [groups[row] for row in rows])
    _, first = np.unique(units, return_index=True)  # units are numbered from 0 without gaps
    drawn: list[int] = []
    names = [groups[row] or ids[row] for row in rows[first].tolist()]
    classes = targets[rows[first]]
    for index in np.unique(classes):
        members = np.flatnonzero(classes == index).tolist()
        members.sort(key=lambda unit: hash_place(key + names[unit]))
        drawn += members[: n_drawn(len(members))]
    return np.isin(units, drawn)


def stratified_subset(
    rows: Rows, targets: NDArray[np.int64], ids: Sequence[str], n_rows: int
) -> Rows:
    """Choose `n_rows` of `rows`, classes in proportion, by a hash of each row's id.

    The choice depends on the ids and classes alone, so every run on the same data makes the
    same one.

    Raises
    ------
    ConfigError
        When there are fewer rows than asked for.
    """
    if n_rows > len(rows):
        raise ConfigError(
            f"--test-subset {n_rows} asks for more rows than the {len(rows)} test rows there are"
        )
    queues = [
        sorted(rows[targets[rows] == index].tolist(), key=lambda row: hash_place(ids[row]))
        for index in np.unique(targets[rows])
    ]
    shares = _largest_remainder([len(queue) for queue in queues], n_rows)
    chosen = [row for queue, share in zip(queues, shares) for row in queue[:share]]
    return np.array(sorted(chosen), dtype=np.int64)


def _largest_remainder(sizes: list[int], total: int) -> list[int]:
    # Hare quota: whole parts first, what is left to the largest remainders.
    exact = [size * total / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def n_kept_out(fraction: float, n: int) -> int:
    """How many of `n` a fraction keeps out: at least one, and never all."""
    return max(0, min(max(1, round(fraction * n)), n - 1))


def hash_place(text: str) -> bytes:
    """A text's place in an order that looks random and depends on nothing but the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
