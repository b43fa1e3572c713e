"""What a head is worth on validation rows: the few scores that a choice can go by."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import ChoiceScore

__all__ = ["SCORES", "validation_scores", "value_or_none"]

SCORES: tuple[ChoiceScore, ...] = get_args(ChoiceScore)


def validation_scores(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The values of `SCORES`, shape (len(SCORES),); all NaN where the head diverged.

    Parameters
    ----------
    probabilities : ndarray of shape (n, n_classes), float64
    targets : ndarray of shape (n,), int64
        Every class is among them.
    """
    if not np.isfinite(probabilities).all():
        return np.full(len(SCORES), np.nan)
    of_truth = probabilities[np.arange(len(targets)), targets]
    is_right = probabilities.argmax(axis=1) == targets
    recalls = np.bincount(targets, weights=is_right) / np.bincount(targets)
    values: dict[ChoiceScore, float] = {
        # A class that the head excludes outright has no logarithm; `metrics` clips it alike.
        "log_loss": -float(np.log(np.maximum(of_truth, np.finfo(np.float64).eps)).mean()),
        "accuracy": float(is_right.mean()),
        "balanced_accuracy": float(recalls.mean()),
        "auroc": _auroc(probabilities, targets),
    }
    return np.array([values[name] for name in SCORES])


def _auroc(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """As `metrics.auroc`, which is ready for weights, and so too slow for hundreds of heads."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return float(np.mean([_area(probabilities[:, k], targets == k) for k in classes]))


def _area(scores: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    positives, negatives = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    below = np.searchsorted(negatives, positives, side="left").sum()
    upto = np.searchsorted(negatives, positives, side="right").sum()
    return float(below + upto) / (2 * len(positives) * len(negatives))


def value_or_none(value: float) -> float | None:
    """A score as JSON and CSV take it: None where it is not finite."""
    return value if math.isfinite(value) else None
