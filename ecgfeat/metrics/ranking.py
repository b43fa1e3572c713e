"""Scores and curves that depend on the order of the probabilities alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRID", "Floats", "Integers", "Ranking", "Rates", "Tally", "ratio"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GRID = np.linspace(0, 1, 101)
"""False positive rates of a drawn ROC curve, and recalls of a precision-recall curve."""

N_THRESHOLDS = 200
"""Thresholds of a drawn curve in each of three series; fewer rows have one at each value."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Weights of the positive and negative rows, summed up in the order of their scores.

    Attributes
    ----------
    drawn : ndarray of shape (b, n_positives), float64
        Weights of the positive rows, the lowest score first.
    positives, negatives : ndarray of shape (b, 1 + their number), float64
        Entry i is the weight of the i rows of lowest score.
    """

    drawn: Floats
    positives: Floats
    negatives: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """The curves' coordinates by falling threshold, from above all scores to the lowest one.

    Attributes
    ----------
    recall, fallout, precision : ndarray of shape (b, n_thresholds), float64
        Fallout is the false positive rate. NaN where the rows drawn leave one undefined.
    """

    recall: Floats
    fallout: Floats
    precision: Floats


class Ranking:
    """One class against the rest: the order of the rows, worked out once for all weights.

    Parameters
    ----------
    is_positive : ndarray of shape (n,), bool
    scores : ndarray of shape (n,), float64
        The positive class's probabilities.
    """

    def __init__(self, is_positive: NDArray[np.bool_], scores: Floats) -> None:
        order = np.argsort(scores, kind="stable")
        self._positives = order[is_positive[order]]
        self._negatives = order[~is_positive[order]]
        positives, negatives = scores[self._positives], scores[self._negatives]
        # A positive row beats the negatives before `below`, and ties with those up to `upto`;
        # the positive rows before `lower` have lower scores than it.
        self._below = np.searchsorted(negatives, positives, side="left")
        self._upto = np.searchsorted(negatives, positives, side="right")
        self._lower = np.searchsorted(positives, positives, side="left")
        thresholds = _thresholds(positives, negatives)
        self._positives_below = np.searchsorted(positives, thresholds, side="left")
        self._negatives_below = np.searchsorted(negatives, thresholds, side="left")

    def tally(self, weights: Floats) -> Tally:
        """Sum up row weights of shape (b, n)."""
        drawn = weights.take(self._positives, axis=1)
        return Tally(drawn, _summed(drawn), _summed(weights.take(self._negatives, axis=1)))

    def auroc(self, tally: Tally) -> Floats:
        """How often a positive row scores above a negative one, shape (b,); ties count half.

        Mann & Whitney 1947; Hanley & McNeil 1982.
        """
        beaten = tally.negatives.take(self._below, axis=1)
        wins = np.einsum("bi,bi->b", tally.drawn, beaten)
        if not np.array_equal(self._below, self._upto):
            upto = tally.negatives.take(self._upto, axis=1)
            wins = (wins + np.einsum("bi,bi->b", tally.drawn, upto)) / 2
        return ratio(wins, tally.positives[:, -1] * tally.negatives[:, -1])

    def average_precision(self, tally: Tally) -> Floats:
        """Mean over the positive rows of the precision at each one's score, shape (b,).

        As scikit-learn defines it: the sum over all thresholds of the gain in recall times the
        precision, with no interpolation. NaN where there are no positive rows or no negative ones.
        """
        n_positive, n_negative = tally.positives[:, -1:], tally.negatives[:, -1:]
        found = n_positive - tally.positives.take(self._lower, axis=1)
        answered = n_negative - tally.negatives.take(self._below, axis=1)
        answered += found
        # Where nothing is answered positive, the row itself isn't drawn, and its term is 0.
        found /= np.maximum(answered, np.finfo(np.float64).tiny, out=answered)
        summed = np.einsum("bi,bi->b", tally.drawn, found)
        return ratio(summed, n_positive[:, 0] * (n_negative[:, 0] > 0))

    def roc(self, tally: Tally) -> Floats:
        """True positive rate at each false positive rate of `GRID`, shape (b, len(GRID))."""
        rates = self.rates(tally)
        return np.array([np.interp(GRID, x, y) for x, y in zip(rates.fallout, rates.recall)])

    def precision_recall(self, tally: Tally) -> Floats:
        """Precision at each recall of `GRID`, shape (b, len(GRID)).

        At the highest threshold whose recall is no less, as average precision counts it.
        """
        rates = self.rates(tally)
        last = rates.recall.shape[1] - 1
        # Rounding must not make the last threshold's recall less than 1.
        columns = [np.minimum(np.searchsorted(row + 1e-12, GRID), last) for row in rates.recall]
        return np.take_along_axis(rates.precision, np.array(columns), axis=1)

    def rates(self, tally: Tally) -> Rates:
        """What falling thresholds give."""
        found = tally.positives[:, -1:] - tally.positives.take(self._positives_below, axis=1)
        false = tally.negatives[:, -1:] - tally.negatives.take(self._negatives_below, axis=1)
        precision = ratio(found, found + false)
        # Before the first row that is drawn: what the first answer will be right in.
        first = np.isfinite(precision).argmax(axis=1)[:, np.newaxis]
        precision = np.where(
            np.isnan(precision), np.take_along_axis(precision, first, axis=1), precision
        )
        return Rates(
            recall=ratio(found, np.broadcast_to(tally.positives[:, -1:], found.shape)),
            fallout=ratio(false, np.broadcast_to(tally.negatives[:, -1:], false.shape)),
            precision=precision,
        )


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part` / `whole`, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _summed(weights: Floats) -> Floats:
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _thresholds(positives: Floats, negatives: Floats) -> Floats:
    """From above all scores to the lowest one: evenly over both classes, densely at the top."""
    chosen = [np.array([np.inf])]
    for scores in (positives, negatives):
        if len(scores):
            even = np.linspace(0, len(scores) - 1, N_THRESHOLDS).astype(int)
            chosen.append(scores[even])
    top = np.sort(np.concatenate([positives, negatives]))[::-1]
    chosen.append(top[np.geomspace(1, len(top), N_THRESHOLDS).astype(int) - 1])
    falling: Floats = np.unique(np.concatenate(chosen))[::-1]
    return falling
