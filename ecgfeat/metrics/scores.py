"""The scores themselves, as functions of how much each row weighs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ecgfeat.metrics.names import WORST_LOG_LOSS, score_names
from ecgfeat.metrics.ranking import Floats, Integers, Ranking, ratio
from ecgfeat.metrics.sampling import weighted_sums
from ecgfeat.predictions import Predictions

__all__ = [
    "CALIBRATION_NOISE",
    "N_BINS",
    "Scorer",
    "auroc",
    "bin_numbers",
    "rankings",
    "score_values",
    "scorer",
    "sureness_of",
]

N_BINS = 15
"""Bins of equal width over the probabilities, as in Guo et al. 2017, "On calibration of modern
neural networks"."""

CALIBRATION_NOISE = "calibration noise"
"""Beside the scores: how far the bins' gaps lie from those of the rows themselves, summed up."""

Scorer = Callable[[Floats], dict[str, Floats]]
"""From row weights (b, n) to scores by name, each of shape (b,); NaN where undefined."""


def score_values(predictions: Predictions) -> dict[str, float]:
    """The scores of predictions by name, without intervals; NaN where one is undefined.

    See `evaluate` for what each of them is.
    """
    values = scorer(predictions)(np.ones((1, len(predictions))))
    return {name: float(values[name][0]) for name in score_names(len(predictions.classes))}


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
    row_weights = np.ones(len(targets)) if weights is None else weights
    areas = [
        ranking.auroc(ranking.tally(row_weights[np.newaxis]))[0]
        for ranking in rankings(targets, probabilities).values()
    ]
    return float(np.mean(areas)) if areas and np.isfinite(areas).all() else None


def rankings(targets: Integers, probabilities: Floats) -> dict[int, Ranking]:
    """By class: the positive one or, with more than two, each that is present against the rest.

    Empty where fewer than two classes are present.
    """
    present = np.unique(targets).tolist()
    if len(present) < 2:
        return {}
    positives = [1] if probabilities.shape[1] == 2 else present
    return {index: Ranking(targets == index, probabilities[:, index]) for index in positives}


def scorer(predictions: Predictions) -> Scorer:
    """All scores as one function, ready for any weights of these rows."""
    n_classes = len(predictions.classes)
    present = np.unique(predictions.targets)
    # With two classes both are counted, whether they are present or not.
    counted = np.arange(2) if n_classes == 2 else present
    rows = _summands(predictions, counted)
    ends = np.cumsum([len(part) for part in rows.values()])[:-1]
    stacked = np.ascontiguousarray(np.concatenate(list(rows.values())).T)  # (n, n_sums)
    ranked = list(rankings(predictions.targets, predictions.probabilities).values())
    gaps = rows["bins"].mean(axis=1)

    def score(weights: Floats) -> dict[str, Floats]:
        sums = dict(zip(rows, np.split(weighted_sums(weights, stacked), ends, axis=1)))
        n = weights.sum(axis=1)
        tallies = [ranking.tally(weights) for ranking in ranked]
        recalls = ratio(sums["hits"], sums["support"])
        drawn_gaps = sums["bins"] / n[:, np.newaxis]
        # A class without rows is no class to find, whatever was answered.
        support = np.where(sums["support"] > 0, sums["support"] + sums["answered"], 0)
        f1 = ratio(2 * sums["hits"], support)
        return {
            "accuracy": sums["hits"].sum(axis=1) / n,
            "balanced_accuracy": recalls[:, np.isin(counted, present)].mean(axis=1),
            **(_of_positives(recalls, sums) if n_classes == 2 else {}),
            "f1": f1[:, 1] if n_classes == 2 else f1.mean(axis=1),
            "auroc": _mean([r.auroc(tally) for r, tally in zip(ranked, tallies)], n),
            "average_precision": _mean(
                [r.average_precision(tally) for r, tally in zip(ranked, tallies)], n
            ),
            "brier": sums["brier"][:, 0] / n,
            "ece": np.abs(drawn_gaps).sum(axis=1),
            "log_loss": sums["log_loss"][:, 0] / n,
            CALIBRATION_NOISE: np.abs(drawn_gaps - gaps).sum(axis=1),
        }

    return score


def _summands(predictions: Predictions, counted: Integers) -> dict[str, Floats]:
    """What is summed over the rows, by name: arrays of shape (n_sums, n)."""
    targets, probabilities = predictions.targets, predictions.probabilities
    of_class = counted[:, np.newaxis]
    of_truth = probabilities[np.arange(len(targets)), targets]
    sureness, came_true = sureness_of(predictions)
    in_bin = np.arange(N_BINS)[:, np.newaxis] == bin_numbers(sureness)
    brier = ((probabilities - np.eye(len(predictions.classes))[targets]) ** 2).sum(axis=1)
    return {
        "support": (targets == of_class).astype(np.float64),
        "answered": (predictions.predicted == of_class).astype(np.float64),
        "hits": ((targets == of_class) & (predictions.predicted == targets)).astype(np.float64),
        "bins": in_bin * (came_true - sureness),
        "brier": (brier / 2 if probabilities.shape[1] == 2 else brier)[np.newaxis],
        "log_loss": -np.log(np.maximum(of_truth, np.exp(-WORST_LOG_LOSS)))[np.newaxis],
    }


def sureness_of(predictions: Predictions) -> tuple[Floats, NDArray[np.bool_]]:
    """What calibration is about: a probability for each row, and whether it came true.

    The positive class's; with more than two classes, that of the most probable one.
    """
    if len(predictions.classes) == 2:
        return predictions.probabilities[:, 1], predictions.targets == 1
    most_probable = predictions.probabilities.argmax(axis=1)
    return predictions.probabilities.max(axis=1), predictions.targets == most_probable


def bin_numbers(sureness: Floats) -> Integers:
    """Which of `N_BINS` bins of equal width each probability is in, from 0."""
    return np.minimum((sureness * N_BINS).astype(np.int64), N_BINS - 1)


def _of_positives(recalls: Floats, sums: dict[str, Floats]) -> dict[str, Floats]:
    # Columns: the negative class, the positive one.
    precisions = ratio(sums["hits"], sums["answered"])
    return {
        "sensitivity": recalls[:, 1],
        "specificity": recalls[:, 0],
        "ppv": precisions[:, 1],
        "npv": precisions[:, 0],
    }


def _mean(values: list[Floats], n: Floats) -> Floats:
    if not values:
        return np.full_like(n, np.nan)
    mean: Floats = np.mean(values, axis=0)
    return mean
