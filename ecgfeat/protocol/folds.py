"""Dealing rows out into folds: stratified, grouped, seeded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.protocol.sampling import Rows
from ecgfeat.protocol.tasks import Task

__all__ = ["dealt"]


def dealt(
    rows: Rows,
    task: Task,
    units: NDArray[np.int64],
    *,
    option: str,
    n_folds: int,
    seed: int,
    grouped: bool,
) -> Iterator[tuple[Rows, Rows]]:
    """Deal `rows` out into folds; gives what is left and what is held out, for each fold.

    Parameters
    ----------
    rows : ndarray of int64
        Row numbers in ascending order.
    task : Task
        Of all rows.
    units : ndarray of shape (n,), int64
        Number of every row's group.
    option : str
        What asked for the folds, for messages: ``"--cv"``.
    n_folds, seed : int
    grouped : bool
        Whether any row has a group of its own name.

    Raises
    ------
    DataError
        When there are too few groups of a class, or a fold leaves none of one.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    targets, units = task.targets[rows], units[rows]
    _refuse_too_few(targets, units, task.classes, option, n_folds)
    # The grouped form would do without groups too, but takes 16 s for 84,000 rows.
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(n_folds, shuffle=True, random_state=seed)
    for fold, (left, out) in enumerate(folds.split(units, targets, units if grouped else None)):
        lacking = sorted(set(targets.tolist()) - set(targets[left].tolist()))
        if lacking:
            names = ", ".join(repr(task.classes[index]) for index in lacking)
            raise DataError(
                f"fold {fold + 1} of {n_folds} would have no training rows of {names}: groups "
                f"are too large or too few. Give a smaller {option}, or another --seed."
            )
        yield rows[left], rows[out]


def _refuse_too_few(
    targets: NDArray[np.int64],
    units: NDArray[np.int64],
    classes: tuple[str, ...],
    option: str,
    n_folds: int,
) -> None:
    for index, name in enumerate(classes):
        n_units = len(np.unique(units[targets == index]))
        if n_units < n_folds:
            raise DataError(
                f"{option} {n_folds} needs at least {n_folds} groups (or ungrouped rows) of every "
                f"class; {name!r} has {n_units}. Give a smaller {option}."
            )
