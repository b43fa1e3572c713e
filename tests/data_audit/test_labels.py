"""Labels that are wrong, classes that are one, pages that are neither."""

from __future__ import annotations

import numpy as np
import pytest

from ecgfeat.data_audit.labels import Doubts, doubtful_labels, outliers
from ecgfeat.protocol import Task


def doubts_of(X: np.ndarray, targets: np.ndarray, units: np.ndarray | None = None) -> Doubts:
    names = tuple("abcdef"[: int(targets.max()) + 1])
    task = Task(classes=names, targets=targets)
    units = np.arange(len(X)) if units is None else units
    found = doubtful_labels(X.astype(np.float32), task, units)
    assert found is not None
    return found


def clouds(
    n_each: int, apart: float, n_classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(n_classes), n_each)
    X = rng.normal(size=(len(targets), 12)) * 3
    X[np.arange(len(targets)), targets] += apart * 3
    return X, targets


@pytest.mark.parametrize("n_classes", [2, 3])
def test_turned_labels_are_ranked_first_and_warned_of(n_classes: int) -> None:
    X, targets = clouds(200, 6, n_classes)
    turned = np.random.default_rng(1).choice(len(X), len(X) // 20, replace=False)
    wrong = targets.copy()
    wrong[turned] = (wrong[turned] + 1) % n_classes
    found = doubts_of(X, wrong)
    first = set(found.rows[: len(turned)].tolist())
    assert len(first & set(turned.tolist())) >= 0.9 * len(turned)
    assert found.are_clear
    assert (np.diff(found.own) >= 0).all()
    at = found.rows.tolist().index(int(turned[0]))
    assert found.suggested[at] == targets[turned[0]]


@pytest.mark.parametrize("apart", [0.5, 1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_overlap_alone_is_no_warning(apart: float, seed: int) -> None:
    assert not doubts_of(*clouds(200, apart, seed=seed)).are_clear


def test_classes_of_one_cloud_are_alike_and_others_are_not() -> None:
    X, targets = clouds(80, 4, 3)
    X[targets == 2] = np.random.default_rng(5).normal(size=(80, 12)) * 3
    X[targets == 1] = np.random.default_rng(6).normal(size=(80, 12)) * 3
    assert doubts_of(X, targets).alike == [(1, 2)]
    assert set(doubts_of(X, targets).areas) == {(0, 1), (0, 2), (1, 2)}


def test_rows_of_one_group_never_judge_each_other() -> None:
    # A patient's two pages are the same, and their label is noise: only each other they know.
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(60, 12)), 2, axis=0)
    targets = np.repeat(rng.integers(0, 2, 60), 2)
    assert doubts_of(X, targets, units=np.arange(120) // 2).alike == [(0, 1)]


def test_too_few_groups_have_no_answer() -> None:
    X, targets = clouds(20, 2)
    task = Task(classes=("a", "b"), targets=targets)
    assert doubtful_labels(X.astype(np.float32), task, np.arange(40) // 10) is None


def test_a_page_far_from_all_others_is_an_outlier() -> None:
    near = np.random.default_rng(0).uniform(1, 1.5, 200)
    assert outliers(near).tolist() == []
    near[17], near[3] = 50, 90
    assert outliers(near).tolist() == [3, 17]
    assert outliers(np.ones(30)).tolist() == []
