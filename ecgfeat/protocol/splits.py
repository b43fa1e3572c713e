"""Laying down training, validation and test rows."""

from __future__ import annotations

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.protocol.tasks import Task

__all__ = [
    "LEAK",
    "Leaks",
    "Partition",
    "dealt",
    "drawn_units",
    "find_leaks",
    "group_numbers",
    "has_validation",
    "hash_place",
    "inner_folds",
    "joined",
    "keep_rows",
    "n_kept_out",
    "partitions",
    "refuse_thin_validation",
    "same_pictures",
    "stratified_subset",
    "training_share",
]

Rows = NDArray[np.int64]
_NONE: Rows = np.empty(0, dtype=np.int64)


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
    names_validation : bool
        Whether the data name the validation rows, which are then never trained on.
    """

    fold: int
    train: Rows
    validation: Rows
    test: Rows
    split: str
    names_validation: bool = False

    @property
    def sides(self) -> tuple[Rows, Rows]:
        """Rows that are trained on or chosen by, and those that are tested."""
        return np.union1d(self.train, self.validation), self.test

    @property
    def whole(self) -> Partition:
        """The same with the validation rows among the training rows, where they may be."""
        if self.names_validation:
            return self
        return replace(self, train=np.union1d(self.train, self.validation), validation=_NONE)


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
        Path, ``"train"``, ``"val"`` or ``"test"``, and group of each row; an empty group is the
        row alone.
    settings : EvaluationSettings
        `cv`, `test_subset`, `val_fraction` and `seed` are used.

    Raises
    ------
    DataError
        When a split is empty, a class in test is absent from train, or there are too few rows
        or groups of a class for the folds or the validation rows.
    ConfigError
        When `test_subset` asks for more rows than there are, or `val_fraction` would draw
        validation rows where the data name them.
    """
    if settings.val_fraction and not settings.cv and "val" in splits:
        raise ConfigError(
            f"--val-fraction would draw validation rows, and the data name {splits.count('val')} "
            "of their own: leave it out"
        )
    if settings.cv:
        plan = _cross_validation(task, ids, groups, settings)
    else:
        plan = [_holdout(task, ids, splits, settings)]
    if settings.val_fraction:
        plan = [_keep_out(part, task, ids, groups, settings) for part in plan]
    return plan


def has_validation(splits: Sequence[str], settings: EvaluationSettings) -> bool:
    """Whether some rows are kept for choices: a share of train, or those that the data name."""
    return bool(settings.val_fraction) or (not settings.cv and "val" in splits)


def _cross_validation(
    task: Task, ids: Sequence[str], groups: Sequence[str], settings: EvaluationSettings
) -> list[Partition]:
    folds = dealt(
        np.arange(len(ids)),
        task,
        group_numbers(ids, groups),
        option="--cv",
        n_folds=settings.cv,
        seed=settings.seed,
        grouped=any(groups),
    )
    return [
        Partition(fold=fold, train=train, validation=_NONE, test=test, split="cv")
        for fold, (train, test) in enumerate(folds)
    ]


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
    name = "test"
    if settings.test_subset:
        test = stratified_subset(test, task.targets, ids, settings.test_subset)
        name = "test-subset"
    validation = np.flatnonzero(split == "val")
    return Partition(
        fold=0,
        train=train,
        validation=validation,
        test=test,
        split=name,
        names_validation=len(validation) > 0,
    )


def _refuse_unseen_classes(task: Task, train: Rows, test: Rows) -> None:
    in_train = np.unique(task.targets[train])
    if len(in_train) < 2:
        raise DataError(
            f"the training rows hold one class only ({_named(task, in_train)}). "
            "Check the split column, or cross-validate with --cv 5."
        )
    unseen = np.setdiff1d(task.targets[test], in_train)
    if len(unseen):
        raise DataError(
            f"the test rows hold {_named(task, unseen)}, which no training row has. Add such rows "
            "to train, take them out of test, or cross-validate with --cv 5."
        )


def _keep_out(
    part: Partition,
    task: Task,
    ids: Sequence[str],
    groups: Sequence[str],
    settings: EvaluationSettings,
) -> Partition:
    """Move `val_fraction` of the training groups of each class to validation.

    At least one, and never all.
    """
    fraction = settings.val_fraction
    is_out = drawn_units(
        part.train,
        task.targets,
        ids=ids,
        groups=groups,
        key=f"{settings.seed}/",
        n_drawn=lambda n: n_kept_out(fraction, n),
    )
    train = part.train[~is_out]
    lost = np.setdiff1d(task.targets[part.train], task.targets[train])
    if len(lost):
        raise DataError(
            f"--val-fraction {fraction:g} leaves no training rows of {_named(task, lost)}: their "
            "groups, which hold other classes too, are all kept out. Give a smaller fraction or "
            "another --seed."
        )
    return replace(part, train=train, validation=part.train[is_out])


def inner_folds(
    part: Partition,
    task: Task,
    *,
    ids: Sequence[str],
    groups: Sequence[str],
    n_folds: int,
    seed: int,
) -> list[Partition]:
    """Deal a partition's training rows out, so that choices can be made among them alone.

    Parameters
    ----------
    part : Partition
    task : Task
    ids, groups : sequences of str, length n
    n_folds, seed : int

    Returns
    -------
    list of Partition
        One per fold, whose validation rows are held out; each training row is in one of them.
        The test rows are `part`'s.

    Raises
    ------
    DataError
        When there are too few groups of a class.
    """
    folds = dealt(
        part.train,
        task,
        group_numbers(ids, groups),
        option="--folds",
        n_folds=n_folds,
        seed=seed,
        grouped=any(groups[row] for row in part.train),
    )
    return [
        replace(part, fold=fold, train=train, validation=validation)
        for fold, (train, validation) in enumerate(folds)
    ]


def training_share(
    part: Partition,
    task: Task,
    *,
    ids: Sequence[str],
    groups: Sequence[str],
    fraction: float,
    seed: int,
) -> Partition:
    """The same with a share of the training rows: whole groups of each class, at least one.

    With the same seed, a larger share holds every smaller one, and every class is in each: where
    groups hold several classes, the first one that has a class is in.
    """
    key = f"share/{seed}/"
    is_in = drawn_units(
        part.train,
        task.targets,
        ids=ids,
        groups=groups,
        key=key,
        n_drawn=lambda n: max(1, round(fraction * n)),
    )
    names = [groups[row] for row in part.train]
    if any(names):
        units = group_numbers([ids[row] for row in part.train], names)
        for index in np.unique(task.targets[part.train]):
            holds = task.targets[part.train] == index
            is_first = drawn_units(
                part.train[holds],
                task.targets,
                ids=ids,
                groups=groups,
                key=key,
                n_drawn=lambda _: 1,
            )
            is_in |= np.isin(units, units[holds][is_first])
    return replace(part, train=part.train[is_in])


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
        lost = np.setdiff1d(task.targets[part.train], task.targets[part.train[kept[part.train]]])
        if len(lost) or not len(test):
            what = f"training images of {_named(task, lost)}" if len(lost) else "test images"
            raise DataError(
                f"none of the {what} could be used when the features were extracted. The list "
                "beside the cache, ending in -quarantine.csv, says why."
            )
        thinned.append(replace(part, train=train, validation=validation, test=test))
    return thinned


def refuse_thin_validation(plan: Sequence[Partition], task: Task) -> None:
    """Refuse validation rows without one of the classes: nothing can be decided on them.

    Raises
    ------
    DataError
    """
    for part in plan:
        lacking = np.setdiff1d(np.arange(len(task.classes)), task.targets[part.validation])
        if len(lacking):
            raise DataError(
                f"there would be no validation rows of {_named(task, lacking)}, so nothing could "
                "be chosen, calibrated or decided: too few groups (or ungrouped rows) hold these "
                "classes. Add data, give another --val-fraction, --folds or --seed, or join "
                "classes with --positive."
            )


def _named(task: Task, indices: NDArray[np.int64]) -> str:
    return ", ".join(repr(task.classes[index]) for index in indices)


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
    for index, name in enumerate(task.classes):
        n_units = len(np.unique(units[targets == index]))
        if n_units < n_folds:
            raise DataError(
                f"{option} {n_folds} needs at least {n_folds} groups (or ungrouped rows) of every "
                f"class; {name!r} has {n_units}. Give a smaller {option}."
            )
    # The grouped form would do without groups too, but takes 16 s for 84,000 rows.
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    folds = kind(n_folds, shuffle=True, random_state=seed)
    for fold, (left, out) in enumerate(folds.split(units, targets, units if grouped else None)):
        lacking = np.setdiff1d(targets, targets[left])
        if len(lacking):
            raise DataError(
                f"fold {fold + 1} of {n_folds} would have no training rows of "
                f"{_named(task, lacking)}: groups are too large or too few. Give a smaller "
                f"{option}, or another --seed."
            )
        yield rows[left], rows[out]


def group_numbers(ids: Sequence[str], groups: Sequence[str]) -> NDArray[np.int64]:
    """Number the groups from 0 by name, shape (n,); a row without a group is its own."""
    names = [("group", group) if group else ("row", name) for name, group in zip(ids, groups)]
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return np.fromiter((number[name] for name in names), np.int64, len(names))


def joined(
    ids: Sequence[str], groups: Sequence[str], together: Iterable[Sequence[int] | Rows]
) -> Rows:
    """`group_numbers` where more is known: rows that belong together join their groups.

    Parameters
    ----------
    ids, groups : sequences of str, length n
    together : iterable of sequences of int
        Rows of the same picture, or of the same patient by other names.

    Returns
    -------
    ndarray of shape (n,), int64
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    units = group_numbers(ids, groups)
    links = [(units[rows[0]], units[row]) for rows in together for row in rows[1:]]
    ends = np.array(links, dtype=np.int64).reshape(-1, 2).T
    n_units = int(units.max(initial=-1)) + 1
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(n_units, n_units))
    numbers: Rows = connected_components(graph, directed=False)[1][units].astype(np.int64)
    return numbers


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
    of them are taken; a group's class is its most frequent one, of equals the first in order, as
    where a split is drawn.

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
    classes = _classes_of_units(units, targets[rows])
    for index in np.unique(classes):
        members = np.flatnonzero(classes == index).tolist()
        members.sort(key=lambda unit: hash_place(key + names[unit]))
        drawn += members[: n_drawn(len(members))]
    return np.isin(units, drawn)


def _classes_of_units(units: Rows, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most frequent class of each unit's rows, of equals the first, shape (n_units,)."""
    n_classes = int(targets.max(initial=0)) + 1
    cells, n_rows = np.unique(units * n_classes + targets, return_counts=True)
    cells = cells[np.lexsort((cells, -n_rows, cells // n_classes))]
    _, first = np.unique(cells // n_classes, return_index=True)
    classes: NDArray[np.int64] = cells[first] % n_classes
    return classes


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
    # Hare quota: whole parts first, what is left to the largest remainders.
    exact = np.array([len(queue) * n_rows / len(rows) for queue in queues])
    shares = exact.astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: n_rows - shares.sum()]] += 1
    chosen = [row for queue, share in zip(queues, shares.tolist()) for row in queue[:share]]
    return np.array(sorted(chosen), dtype=np.int64)


def n_kept_out(fraction: float, n: int) -> int:
    """How many of `n` a fraction keeps out: at least one, and never all."""
    return max(0, min(max(1, round(fraction * n)), n - 1))


def hash_place(text: str) -> bytes:
    """A text's place in an order that looks random and depends on nothing but the text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


# Pictures and patients that are in two of them


LEAK = "LEAK, allowed by --allow-leak: "
"""How the notice of a result begins that was tested on what it was trained on."""


@dataclass(frozen=True)
class Leaks:
    """What a test knows already.

    Attributes
    ----------
    n_tested : int
        Test images, over all folds.
    n_pictures, n_patients : int
        How many of them are also trained on, byte for byte, and how many are of a group that is.
    n_two_labels : int
        Pictures that lie under two labels.
    """

    n_tested: int
    n_pictures: int
    n_patients: int
    n_two_labels: int

    def in_words(self) -> list[str]:
        """A line for each kind there is."""
        return self._of_known() + self._of_two_labels()

    def _of_known(self) -> list[str]:
        n = self.n_pictures
        found = []
        if n:
            found.append(
                f"{n} of {self.n_tested} test images {'is' if n == 1 else 'are'} also among those "
                "trained on, byte for byte, which flatters every score"
            )
        if self.n_patients:
            found.append(
                f"{self.n_patients} of {self.n_tested} test images are of a group that is trained "
                "on, which flatters every score"
            )
        return found

    def _of_two_labels(self) -> list[str]:
        n = self.n_two_labels
        if not n:
            return []
        return [
            f"{n} picture{'' if n == 1 else 's'} lie{'s' if n == 1 else ''} under two labels, "
            "byte for byte: correct the labels, or take them out (`ecgfeat split`)"
        ]

    def refuse(self, source: object, *, allowed: bool) -> list[str]:
        """Refuse to test on what is trained on, unless that is allowed; then say so.

        Parameters
        ----------
        source : path-like
            The data or cache, for the message.
        allowed : bool

        Returns
        -------
        list of str
            What the result has to say of it.

        Raises
        ------
        DataError
        """
        leaks = self._of_known()
        if leaks and not allowed:
            raise DataError(
                f"{source}: {'; '.join(leaks)}. Write a clean split with `ecgfeat split "
                f"{shlex.quote(str(source))}`, look closer with `ecgfeat audit CACHE`, or give "
                "--allow-leak, which every result then says."
            )
        return [f"{LEAK}{leak}" for leak in leaks] + self._of_two_labels()


def same_pictures(pictures: Sequence[bytes]) -> list[list[int]]:
    """The rows of each picture that there is more than once, byte for byte; by first row."""
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, picture in enumerate(pictures):
        rows_of[picture].append(row)
    return [rows for rows in rows_of.values() if len(rows) > 1]


def find_leaks(
    pictures: Sequence[Hashable],
    labels: Sequence[str],
    groups: Sequence[str],
    sides: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Leaks:
    """Find what a test knows already.

    Parameters
    ----------
    pictures : sequence of hashable, length n
        Equal for equal files: their digests.
    labels, groups : sequences of str, length n
    sides : iterable of pairs of ndarray of int64
        Rows that are trained on or chosen by, and rows that are tested, fold by fold.

    Examples
    --------
    >>> sides = [(np.array([0, 1]), np.array([2, 3]))]
    >>> find_leaks(["x", "y", "x", "z"], ["a", "b", "a", "b"], [""] * 4, sides)
    Leaks(n_tested=2, n_pictures=1, n_patients=0, n_two_labels=0)
    """
    n_tested = n_pictures = n_patients = 0
    for known, tested in sides:
        seen = {pictures[row] for row in known.tolist()}
        met = {groups[row] for row in known.tolist()} - {""}
        n_tested += len(tested)
        n_pictures += sum(pictures[row] in seen for row in tested.tolist())
        n_patients += sum(groups[row] in met for row in tested.tolist())
    first: dict[Hashable, str] = {}
    under_two = {
        picture
        for picture, label in zip(pictures, labels)
        if first.setdefault(picture, label) != label
    }
    return Leaks(n_tested, n_pictures, n_patients, len(under_two))
