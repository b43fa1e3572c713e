"""The scores themselves, as functions of how much each row weighs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ecgfeat.predictions import Predictions

__all__ = ["METRICS", "Floats", "Integers", "Scorer", "auroc", "scorers"]

METRICS = ("accuracy", "balanced_accuracy", "auroc")
"""Names of the scores, in the order in which they are shown."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Scorer = Callable[[Floats], Floats]
"""From row weights (n, b) to scores (b,); NaN where the rows drawn leave a score undefined."""


def auroc(targets: Integers, probabilities: Floats, weights: Floats | None = None) -> float | None:
    """Area under the ROC curve: how often a positive row scores above a negative one.

    Ties count half (Mann & Whitney 1947; Hanley & McNeil 1982). With two classes the second is
    the positive one; with more it is the mean over the classes present, each against the rest.

    Parameters
    ----------
    targets : ndarray of shape (n,), int64
    probabilities : ndarray of shape (n, n_classes), float64
    weights : ndarray of shape (n,), float64, optional
        Default: every row counts once.

    Returns
    -------
    float or None
        None where fewer than two classes are present, and the area undefined.
    """
    column = np.ones(len(targets)) if weights is None else weights
    area = float(_auroc_scorer(targets, probabilities)(column[:, np.newaxis])[0])
    return None if np.isnan(area) else area


def scorers(predictions: Predictions) -> dict[str, Scorer]:
    """One function per name in `METRICS`, each ready for any weights of these rows."""
    right = (predictions.predicted == predictions.targets).astype(np.float64)
    return {
        "accuracy": lambda weights: (right @ weights) / weights.sum(axis=0),
        "balanced_accuracy": _balanced_accuracy_scorer(predictions.targets, right),
        "auroc": _auroc_scorer(predictions.targets, predictions.probabilities),
    }


def _balanced_accuracy_scorer(targets: Integers, right: Floats) -> Scorer:
    # One row per class present, (n_present, n): matrix products then sum over its rows.
    member = (np.unique(targets)[:, np.newaxis] == targets).astype(np.float64)
    hit = member * right
    return lambda weights: _ratio(hit @ weights, member @ weights).mean(axis=0)


def _auroc_scorer(targets: Integers, probabilities: Floats) -> Scorer:
    present = np.unique(targets)
    if len(present) < 2:
        return lambda weights: np.full(weights.shape[1], np.nan)
    positives = [1] if probabilities.shape[1] == 2 else present.tolist()
    areas = [_area_scorer(targets == index, probabilities[:, index]) for index in positives]
    return lambda weights: np.mean([area(weights) for area in areas], axis=0)


def _area_scorer(is_positive: NDArray[np.bool_], scores: Floats) -> Scorer:
    """AUROC as the Mann-Whitney statistic: the score order is worked out once for all weights."""
    order = np.argsort(scores, kind="stable")
    positives, negatives = order[is_positive[order]], order[~is_positive[order]]
    # A positive row beats the negatives before `below`, and ties with those from there to `upto`.
    below = np.searchsorted(scores[negatives], scores[positives], side="left")
    upto = np.searchsorted(scores[negatives], scores[positives], side="right")

    def area(weights: Floats) -> Floats:
        beaten = np.zeros((len(negatives) + 1, weights.shape[1]))
        np.cumsum(weights[negatives], axis=0, out=beaten[1:])
        drawn = weights[positives]
        wins = np.einsum("ib,ib->b", drawn, beaten[below] + beaten[upto]) / 2
        return _ratio(wins, drawn.sum(axis=0) * beaten[-1])

    return area


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
