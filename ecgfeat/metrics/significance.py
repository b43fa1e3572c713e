"""How easily chance alone would make two models differ as much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfeat.metrics.scores import Z_95

__all__ = ["AreaTest", "compare_areas", "holm", "mcnemar_p_value"]

Floats = NDArray[np.float64]


def mcnemar_p_value(
    first_right: NDArray[np.bool_], second_right: NDArray[np.bool_], units: NDArray[np.int64]
) -> float:
    """How easily chance alone makes two models' counts of right answers differ as much.

    McNemar's test (1947) in its exact, two-sided form. Of the rows that only one model got
    right, each is as likely the one's as the other's: a toss of a coin per row. Rows of one
    group are not independent; there the coin is tossed once per group and swaps the two models
    on all its rows (a randomization test, Fisher 1935), which for groups of one row is the same.

    Parameters
    ----------
    first_right, second_right : ndarray of shape (n,), bool
    units : ndarray of shape (n,), int64
        Number of each row's group, from 0.

    Returns
    -------
    float
        1 where no row is answered differently; 0 only where it is too small for a float.
    """
    from scipy.special import betainc

    gains = np.bincount(units, weights=second_right.astype(int) - first_right).astype(np.int64)
    at_stake = np.abs(gains[gains != 0])
    if not len(at_stake):
        return 1.0
    if (at_stake == 1).all():  # a coin per row: the binomial distribution's two equal tails
        fewer = (len(at_stake) - abs(int(gains.sum()))) // 2
        return min(1.0, 2 * float(betainc(len(at_stake) - fewer, fewer + 1, 0.5)))
    # chance[k] is the probability that of all that is at stake k falls to the second model.
    total = int(at_stake.sum())
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for stake in at_stake.tolist():
        chance /= 2
        chance[stake:] += chance[:-stake].copy()
    leads = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chance[leads >= abs(int(gains.sum()))].sum()))


@dataclass(frozen=True, kw_only=True)
class AreaTest:
    """Two models' AUROCs against each other.

    Attributes
    ----------
    value, low, high : float
        The second's less the first's, with its 95 % interval.
    p_value : float
        Two-sided.
    """

    value: float
    low: float
    high: float
    p_value: float


def compare_areas(
    is_positive: NDArray[np.bool_], scores: Sequence[Floats], units: NDArray[np.int64]
) -> dict[tuple[int, int], AreaTest | None]:
    """Test the AUROCs of every two models on the same rows.

    DeLong, DeLong & Clarke-Pearson 1988, with the placements from ranks (Sun & Xu 2014, "Fast
    implementation of DeLong's algorithm", O(n log n)). Where groups have several rows, the
    placements are summed by group first (Obuchowski 1997, "Nonparametric analysis of clustered
    ROC curve data", equations 5 to 7), which for groups of one row is the same.

    Parameters
    ----------
    is_positive : ndarray of shape (n,), bool
    scores : sequence of ndarrays of shape (n,), float64
        Each model's probability of the positive class.
    units : ndarray of shape (n,), int64
        Number of each row's group, from 0.

    Returns
    -------
    dict of (int, int) to AreaTest or None
        By the models' numbers, the first one's first. None where fewer than two groups hold a
        positive row or a negative one, or nothing but a difference without any variance is seen.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    areas, covariance = _covariance(is_positive, scores, units)
    tests: dict[tuple[int, int], AreaTest | None] = {}
    for i, j in pairs:
        gain = float(areas[j] - areas[i])
        variance = float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        tests[i, j] = _normal_test(gain, variance)
    return tests


def _normal_test(gain: float, variance: float) -> AreaTest | None:
    # Rounding leaves a trace where two models rank all rows alike.
    if not variance > 1e-20:
        is_nothing = abs(gain) < 1e-12 and not math.isnan(variance)
        return AreaTest(value=0.0, low=0.0, high=0.0, p_value=1.0) if is_nothing else None
    error = math.sqrt(variance)
    return AreaTest(
        value=gain,
        low=gain - Z_95 * error,
        high=gain + Z_95 * error,
        p_value=math.erfc(abs(gain) / error / math.sqrt(2)),
    )


def _covariance(
    is_positive: NDArray[np.bool_], scores: Sequence[Floats], units: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The models' AUROCs, shape (k,), and their covariance, shape (k, k)."""
    k, n_units = len(scores), int(units.max()) + 1
    m, n = int(is_positive.sum()), int((~is_positive).sum())
    positive_units, negative_units = units[is_positive], units[~is_positive]
    n_positive = np.bincount(positive_units, minlength=n_units)
    n_negative = np.bincount(negative_units, minlength=n_units)
    with_positive, with_negative = int((n_positive > 0).sum()), int((n_negative > 0).sum())
    if with_positive < 2 or with_negative < 2:
        return np.full(k, np.nan), np.full((k, k), np.nan)
    areas = np.empty(k)
    # What each group adds to the area beyond its share, by its positive and its negative rows.
    from_positives, from_negatives = np.empty((2, k, n_units))
    for number, model in enumerate(scores):
        above, below = _placements(model[is_positive], model[~is_positive])
        areas[number] = above.mean()
        summed = np.bincount(positive_units, weights=above, minlength=n_units)
        from_positives[number] = summed - n_positive * areas[number]
        summed = np.bincount(negative_units, weights=below, minlength=n_units)
        from_negatives[number] = summed - n_negative * areas[number]
    between = from_positives @ from_negatives.T * (n_units / max(1, n_units - 1) / (m * n))
    return areas, (
        from_positives @ from_positives.T * (with_positive / (with_positive - 1) / m**2)
        + from_negatives @ from_negatives.T * (with_negative / (with_negative - 1) / n**2)
        + between
        + between.T
    )


def _placements(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """Share of negatives below each positive row, and of positives above each negative one."""
    sorted_positives, sorted_negatives = np.sort(positives), np.sort(negatives)
    above = _mean_rank(sorted_negatives, positives) / len(negatives)
    below = 1 - _mean_rank(sorted_positives, negatives) / len(positives)
    return above, below


def _mean_rank(ordered: Floats, values: Floats) -> Floats:
    """How many of `ordered` are below each value; ties count half."""
    low = np.searchsorted(ordered, values, side="left")
    high = np.searchsorted(ordered, values, side="right")
    ranks: Floats = (low + high) / 2
    return ranks


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted so that all tests together err in 5 % of cases, in the same order.

    Holm 1979, "A simple sequentially rejective multiple test procedure". None stays None and
    counts as no test.
    """
    known = [index for index, p_value in enumerate(p_values) if p_value is not None]
    order = sorted(known, key=lambda index: p_values[index] or 0.0)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * (p_values[index] or 0.0)))
        adjusted[index] = least
    return adjusted
