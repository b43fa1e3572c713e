"""Who trains and who is tested: the same for heads and for fine-tuning.

Both take their rows from here, so that runs on the same data are compared on the same rows.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError

__all__ = [
    "Partition",
    "Task",
    "class_order",
    "define_task",
    "group_numbers",
    "hash_place",
    "keep_rows",
    "n_kept_out",
    "partitions",
]

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be told apart.

    Attributes
    ----------
    classes : tuple of str
        In a binary task (negative, positive); otherwise in the order of `class_order`.
    targets : ndarray of shape (n,), int64
        Index of each row's class.
    """

    classes: tuple[str, ...]
    targets: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Row numbers of one training: they never overlap, and never share a group.

    Attributes
    ----------
    fold : int
        From 0; always 0 where the data's own split is used.
    train, validation, test : ndarray of int64
        Row numbers in ascending order; `validation` may be empty.
    split : str
        Name of the test rows: ``"test"``, ``"test-subset"`` or ``"cv"``.
    """

    fold: int
    train: Rows
    validation: Rows
    test: Rows
    split: str


def keep_rows(plan: Sequence[Partition], task: Task, kept: NDArray[np.bool_]) -> list[Partition]:
    """Leave out rows that can't be used, and number the others anew.

    Parameters
    ----------
    plan : sequence of Partition
    task : Task
        Of all rows.
    kept : ndarray of shape (n,), bool

    Raises
    ------
    DataError
        When no training rows of a class are left, or no test rows.
    """
    number = np.cumsum(kept) - 1
    thinned = []
    for part in plan:
        train, validation, test = (
            number[rows[kept[rows]]] for rows in (part.train, part.validation, part.test)
        )
        usable = task.targets[part.train[kept[part.train]]]
        lost = np.setdiff1d(task.targets[part.train], usable)
        if len(lost) or not len(test):
            names = ", ".join(repr(task.classes[index]) for index in lost)
            what = f"training images of {names}" if len(lost) else "test images"
            raise DataError(
                f"none of the {what} could be used when the features were extracted. The list "
                "beside the cache, ending in -quarantine.csv, says why."
            )
        thinned.append(replace(part, train=train, validation=validation, test=test))
    return thinned


def class_order(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels: by value where all are numbers, else alphabetically."""
    names = set(labels)
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if not all(map(math.isfinite, values.values())):  # "nan" has no place in an order
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (values[name], name)))


def define_task(labels: Sequence[str], positive: str = "") -> Task:
    """Number the labels, as a binary task when `positive` names classes.

    Parameters
    ----------
    labels : sequence of str, length n
    positive : str
        Class or comma-separated classes against the rest; empty for the labels as they are.

    Raises
    ------
    DataError
        When there is one class only.
    ConfigError
        When `positive` names a class that is not there, or all of them.
    """
    present = class_order(labels)
    if len(present) < 2:
        raise DataError(
            f"at least two classes are needed; found only {', '.join(present) or 'none'}. "
            "Check the label column or the folder names."
        )
    if not positive:
        number = {name: index for index, name in enumerate(present)}
        targets = np.fromiter((number[label] for label in labels), np.int64, len(labels))
        return Task(classes=present, targets=targets)
    chosen = _chosen_classes(positive, present)
    rest = [name for name in present if name not in chosen]
    name = "+".join(chosen)
    others = rest[0] if len(rest) == 1 else "rest"
    if (len(rest) > 1 and "rest" in present) or others == name:
        others = f"not {name}"
    targets = np.fromiter((label in chosen for label in labels), np.int64, len(labels))
    return Task(classes=(others, name), targets=targets)


def _chosen_classes(positive: str, present: tuple[str, ...]) -> tuple[str, ...]:
    # A class may have a comma in its own name.
    names = [positive] if positive in present else [p.strip() for p in positive.split(",")]
    unknown = [name for name in names if name not in present]
    if unknown:
        raise ConfigError(
            f"--positive names {', '.join(map(repr, unknown))}, but the classes are "
            f"{', '.join(present)}"
        )
    if set(names) == set(present):
        raise ConfigError("--positive names every class: leave at least one for the rest")
    return tuple(name for name in present if name in names)


def partitions(
    task: Task,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    groups: Sequence[str],
    settings: EvaluationSettings,
) -> list[Partition]:
    """Lay down who trains and who is tested.

    Parameters
    ----------
    task : Task
    ids, splits, groups : sequences of str, length n
        Path, ``"train"`` or ``"test"``, and group of each row; an empty group is the row alone.
    settings : EvaluationSettings
        `cv`, `test_subset`, `val_fraction` and `seed` are used.

    Raises
    ------
    DataError
        When a split is empty, a class in test is absent from train, or there are too few rows
        or groups of a class for the folds or the validation rows.
    ConfigError
        When `test_subset` asks for more rows than there are.
    """
    units = group_numbers(ids, groups)
    if settings.cv:
        plan = _folds(task, units, settings, grouped=any(groups))
    else:
        plan = [_holdout(task, ids, splits, settings)]
    if settings.val_fraction:
        names = [group or name for name, group in zip(ids, groups)]
        plan = [_keep_out(part, task, units, names, settings) for part in plan]
    return plan


def group_numbers(ids: Sequence[str], groups: Sequence[str]) -> NDArray[np.int64]:
    """Number the groups from 0 by name, shape (n,); a row without a group is its own."""
    names = [("group", group) if group else ("row", name) for name, group in zip(ids, groups)]
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return np.fromiter((number[name] for name in names), np.int64, len(names))


def _folds(
    task: Task, units: Rows, settings: EvaluationSettings, *, grouped: bool
) -> list[Partition]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _refuse_too_few(task, units, settings.cv)
    # The grouped form would do without groups too, but takes 16 s for 84,000 rows.
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(settings.cv, shuffle=True, random_state=settings.seed)
    plan = []
    rows = folds.split(units, task.targets, units if grouped else None)
    for fold, (train, test) in enumerate(rows):
        lacking = sorted(set(range(len(task.classes))) - set(task.targets[train].tolist()))
        if lacking:
            names = ", ".join(repr(task.classes[index]) for index in lacking)
            raise DataError(
                f"fold {fold + 1} of {settings.cv} would have no training rows of {names}: groups "
                "are too large or too few. Give a smaller --cv, or another --seed."
            )
        plan.append(Partition(fold=fold, train=train, validation=_NONE, test=test, split="cv"))
    return plan


def _refuse_too_few(task: Task, units: Rows, n_folds: int) -> None:
    for index, name in enumerate(task.classes):
        n_units = len(np.unique(units[task.targets == index]))
        if n_units < n_folds:
            raise DataError(
                f"--cv {n_folds} needs at least {n_folds} groups (or ungrouped rows) of every "
                f"class; {name!r} has {n_units}. Give a smaller --cv."
            )


def _holdout(
    task: Task, ids: Sequence[str], splits: Sequence[str], settings: EvaluationSettings
) -> Partition:
    split = np.asarray(splits)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise DataError(
                f"the split {name!r} is empty. Add {name} rows to the data, or ignore the "
                "split and cross-validate with --cv 5."
            )
    _refuse_unseen_classes(task, train, test)
    if not settings.test_subset:
        return Partition(fold=0, train=train, validation=_NONE, test=test, split="test")
    subset = stratified_subset(test, task.targets, ids, settings.test_subset)
    return Partition(fold=0, train=train, validation=_NONE, test=subset, split="test-subset")


def _refuse_unseen_classes(task: Task, train: Rows, test: Rows) -> None:
    in_train = Counter(task.targets[train].tolist())
    if len(in_train) < 2:
        raise DataError(
            f"the training rows hold one class only ({task.classes[next(iter(in_train))]!r}). "
            "Check the split column, or cross-validate with --cv 5."
        )
    unseen = sorted(set(task.targets[test].tolist()) - set(in_train))
    if unseen:
        names = ", ".join(repr(task.classes[index]) for index in unseen)
        raise DataError(
            f"the test rows hold {names}, which no training row has. Add such rows to train, "
            "take them out of test, or cross-validate with --cv 5."
        )


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


def _keep_out(
    part: Partition, task: Task, units: Rows, names: list[str], settings: EvaluationSettings
) -> Partition:
    """Move `val_fraction` of the training groups of each class to validation.

    At least one, and never all; a group belongs to the class of its first row.
    """
    distinct, first = np.unique(units[part.train], return_index=True)
    first_rows = part.train[first]
    out: list[int] = []
    for index in range(len(task.classes)):
        members = np.flatnonzero(task.targets[first_rows] == index).tolist()
        members.sort(key=lambda member: hash_place(f"{settings.seed}/{names[first_rows[member]]}"))
        out += members[: n_kept_out(settings.val_fraction, len(members))]
    is_out = np.isin(units[part.train], distinct[out])
    train = part.train[~is_out]
    lost = sorted(set(task.targets[part.train].tolist()) - set(task.targets[train].tolist()))
    if lost:
        raise DataError(
            f"--val-fraction {settings.val_fraction:g} leaves no training rows of "
            f"{', '.join(repr(task.classes[index]) for index in lost)}: their groups, which hold "
            "other classes too, are all kept out. Give a smaller fraction or another --seed."
        )
    return replace(part, train=train, validation=part.train[is_out])


def n_kept_out(fraction: float, n: int) -> int:
    """How many of `n` a fraction keeps out: at least one, and never all."""
    return max(0, min(max(1, round(fraction * n)), n - 1))


def hash_place(text: str) -> bytes:
    """A text's place in an order that looks random and depends on nothing but the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


_NONE: Rows = np.empty(0, dtype=np.int64)
