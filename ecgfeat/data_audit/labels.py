"""Labels that may be wrong, classes that look alike, and pages unlike all others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.metrics import Z_95, area_with_error
from ecgfeat.protocol import Task, dealt

__all__ = ["Doubts", "doubtful_labels", "outliers"]

N_FOLDS = 5
STRENGTH = 0.003
"""Of logistic regression's inverse penalty: the default recipe's for more than 1,000 features."""
MAX_P_VALUE = 1e-4
LEAST_SHARE = 0.01
"""More rows than that must lie deep among another class, and more than chance puts there."""
FAR = 6.0
"""Robust standard deviations of log distance from which a page is called unlike all others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubts:
    """What out-of-fold probabilities say of the labels.

    Attributes
    ----------
    rows : ndarray of shape (m,), int64
        Rows that are answered otherwise, the most doubtful first.
    own, other : ndarray of shape (m,), float64
        Their probability of the label they have, and of the likeliest other one.
    suggested : ndarray of shape (m,), int64
        Index of that other class.
    n_confident : int
        How many of them are so with confidence, see `doubtful_labels`.
    n_deep, n_expected : int, float
        Rows that lie at least as deep among another class as the median row in its own, and how
        many would if classes merely overlapped.
    p_value : float
        Of so many by chance (binomial).
    areas : dict of (int, int) to (float, float)
        AUROC of every two classes against each other, and its standard error.
    n_rows : int
    """

    rows: NDArray[np.int64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]
    suggested: NDArray[np.int64]
    n_confident: int
    n_deep: int
    n_expected: float
    p_value: float
    areas: dict[tuple[int, int], tuple[float, float]]
    n_rows: int

    @property
    def are_clear(self) -> bool:
        """Whether labels are wrong, and not only classes hard to tell apart."""
        return self.p_value < MAX_P_VALUE and self.n_deep > LEAST_SHARE * self.n_rows

    @property
    def alike(self) -> list[tuple[int, int]]:
        """Pairs of classes that aren't told apart better than by chance."""
        return [pair for pair, (area, error) in self.areas.items() if area - Z_95 * error <= 0.5]


def doubtful_labels(
    embedding: NDArray[np.float32], task: Task, units: NDArray[np.int64], *, seed: int = 0
) -> Doubts | None:
    """Find rows whose label a model that never saw them doubts.

    Confident learning (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating
    uncertainty in dataset labels"): a row is confidently of another class when it is answered so
    with at least the mean probability that this class's own rows have.

    A hard task has such rows without any wrong label. So those are counted that lie as far on the
    wrong side as the median row does on the right one, and held against a normal distribution of
    the same median and spread: wrong labels make a second heap there, overlap doesn't.

    Parameters
    ----------
    embedding : ndarray of shape (n, d), float32
    task : Task
        Of the same rows.
    units : ndarray of shape (n,), int64
        Number of each row's group: rows of one are never on both sides.
    seed : int

    Returns
    -------
    Doubts or None
        None where a class has too few groups for five folds.
    """
    probabilities = _out_of_fold(embedding, task, units, seed)
    if probabilities is None:
        return None
    n, n_classes = probabilities.shape
    rows, targets = np.arange(n), task.targets
    own = probabilities[rows, targets]
    usual = np.array([probabilities[targets == k, k].mean() for k in range(n_classes)])
    others = probabilities.copy()
    others[rows, targets] = -1
    suggested = others.argmax(axis=1)
    other = others[rows, suggested]
    is_otherwise = other > own
    order = np.flatnonzero(is_otherwise)[np.argsort(own[is_otherwise], kind="stable")]
    n_deep, n_expected, p_value = _deep(np.log(own / other), targets)
    areas = {}
    for a, b in combinations(range(n_classes), 2):
        both = (targets == a) | (targets == b)
        leaning = np.log(probabilities[both, b] / probabilities[both, a])
        areas[a, b] = area_with_error(targets[both] == b, leaning)
    return Doubts(
        rows=order,
        own=own[order],
        other=other[order],
        suggested=suggested[order],
        n_confident=int((is_otherwise & (other >= usual[suggested])).sum()),
        n_deep=n_deep,
        n_expected=n_expected,
        p_value=p_value,
        areas=areas,
        n_rows=n,
    )


def _out_of_fold(
    embedding: NDArray[np.float32], task: Task, units: NDArray[np.int64], seed: int
) -> NDArray[np.float64] | None:
    from sklearn.linear_model import LogisticRegression

    n = len(embedding)
    probabilities = np.empty((n, len(task.classes)))
    folds = dealt(
        np.arange(n),
        task,
        units,
        option="folds",
        n_folds=N_FOLDS,
        seed=seed,
        grouped=len(np.unique(units)) < n,
    )
    try:
        for left, out in folds:
            model = LogisticRegression(C=STRENGTH, max_iter=500, tol=1e-3)
            model.fit(embedding[left], task.targets[left])
            probabilities[out] = model.predict_proba(embedding[out])
    except DataError:
        return None
    clipped: NDArray[np.float64] = np.clip(probabilities, 1e-12, 1)
    return clipped


def _deep(margins: NDArray[np.float64], targets: NDArray[np.int64]) -> tuple[int, float, float]:
    """How many rows lie deep among another class, how many are expected, and the p-value."""
    from scipy.stats import binom, norm

    n_deep, n_expected = 0, 0.0
    for index in np.unique(targets):
        own = margins[targets == index]
        middle = float(np.median(own))
        spread = 1.4826 * float(np.median(np.abs(own - middle)))
        if middle <= 0 or not spread > 0:
            return 0, 0.0, 1.0  # the class isn't known at all
        n_deep += int((own < -middle).sum())
        n_expected += len(own) * float(norm.cdf(-2 * middle / spread))
    p_value = float(binom.sf(n_deep - 1, len(margins), min(1.0, n_expected / len(margins))))
    return n_deep, n_expected, p_value


def outliers(distances: Sequence[float]) -> NDArray[np.int64]:
    """Rows far from all others, the farthest first, by their distances to the rows around them."""
    logs = np.log(np.maximum(np.asarray(distances, dtype=np.float64), 1e-12))
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    if not spread > 0 or not math.isfinite(spread):
        return np.empty(0, dtype=np.int64)
    far = (logs - np.median(logs)) / spread
    order = np.argsort(-far, kind="stable")
    found: NDArray[np.int64] = order[far[order] > FAR]
    return found
