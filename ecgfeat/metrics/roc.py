"""ROC, precision-recall and reliability curves, with 95 % bands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecgfeat.metrics.intervals import interval_of
from ecgfeat.metrics.scores import (
    GRID,
    Floats,
    Integers,
    Ranking,
    Sample,
    Tally,
    bin_numbers,
    bootstrap_weights,
    in_id_order,
    rankings,
    ratio,
    sureness_of,
    weighted_sums,
)
from ecgfeat.predictions import Predictions

__all__ = ["MACRO", "Curve", "Curves", "Reliability", "curves"]


N_BOOTSTRAP = 500
"""Resamples: the first ones of those that the scores' intervals rest on. A picture shows no more
of a band's ends."""

MACRO = "mean of the classes"

MOST_BINS, LEAST_ROWS = 10, 10
"""Bins of a reliability curve at most, and rows of each: of fewer the share that came true is
mostly chance. (The calibration error has bins of its own, see `scores.N_BINS`.)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A curve of each class against the rest, and the band of one of them.

    Attributes
    ----------
    lines : mapping of str to (x, y), ndarrays of one shape, float64
        By class: the positive one or, with more than two, each that the rows hold; then `MACRO`
        last, the mean of their y at each x.
    areas : mapping of str to float
        AUROC, or average precision, by class as in `lines`, without `MACRO`.
    x, low, high : ndarray of shape (m,), float64
        The 95 % band of the last line, point by point.
    """

    lines: Mapping[str, tuple[Floats, Floats]]
    areas: Mapping[str, float]
    x: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """How often what was said with some probability came true, by bin of it.

    There are `MOST_BINS` bins at most, of `LEAST_ROWS` rows or more; of fewer rows there is one.

    Attributes
    ----------
    said, true, low, high : ndarray of shape (n_bins,), float64
        Mean probability, share that came true, and its 95 % interval, of bins that hold any row.
    n_rows : ndarray of shape (n_bins,), int64
    is_equal_width : bool
        Whether the bins are equally wide; else they hold equal numbers of rows, but for ties.
    """

    said: Floats
    true: Floats
    low: Floats
    high: Floats
    n_rows: Integers
    is_equal_width: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The curves of one model; the first two are None where the rows hold a single class."""

    roc: Curve | None
    precision_recall: Curve | None
    reliability: Reliability


def curves(predictions: Predictions, *, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> Curves:
    """The curves of predictions, with pointwise 95 % bands by bootstrap.

    Whole groups are drawn once any has more than one row. Where resampling shows no spread, the
    band allows for what so few rows may have missed, as the scores' intervals do.

    Parameters
    ----------
    predictions : Predictions
        At least one row.
    seed, n_bootstrap : int
        As in `evaluate`.
    """
    predictions = in_id_order(predictions)
    sample = Sample.of(predictions)
    ranked = {
        predictions.classes[index]: ranking
        for index, ranking in rankings(predictions.targets, predictions.probabilities).items()
    }
    sureness, came_true = sureness_of(predictions)
    numbers, is_equal_width = _bins(sureness)
    in_bins = (np.arange(numbers.max() + 1)[:, np.newaxis] == numbers).astype(np.float64)
    right = in_bins * came_true
    ones = np.ones((1, len(predictions)))
    # By curve: shares on the rows themselves, then on each resample.
    found: dict[str, list[Floats]] = {"roc": [], "precision_recall": [], "reliability": []}
    for weights in itertools.chain([ones], bootstrap_weights(sample.units, n_bootstrap, seed)):
        if ranked:
            roc, precision = _mean_curves(ranked, weights)
            found["roc"].append(roc)
            found["precision_recall"].append(precision)
        shares = ratio(weighted_sums(weights, right.T), weighted_sums(weights, in_bins.T))
        found["reliability"].append(shares)
    n_units_by_bin = [len(np.unique(sample.units[in_bin > 0])) for in_bin in in_bins]
    true, low, high = _with_band(found["reliability"], n_units_by_bin)
    n_rows = in_bins.sum(axis=1)
    reliability = Reliability(
        said=(in_bins @ sureness) / n_rows,
        true=true,
        low=low,
        high=high,
        n_rows=n_rows.astype(np.int64),
        is_equal_width=is_equal_width,
    )
    if not ranked:
        return Curves(roc=None, precision_recall=None, reliability=reliability)
    n_units = sample.n_units_by_basis["positives" if len(ranked) == 1 else "rarest"]
    roc_curve = _curve(ranked, ones, ("fallout", "recall"), Ranking.auroc, found["roc"], n_units)
    return Curves(
        # The rate can't fall, so no point's doubt is larger than that of the points before it.
        roc=replace(roc_curve, low=np.maximum.accumulate(roc_curve.low)),
        precision_recall=_curve(
            ranked,
            ones,
            ("recall", "precision"),
            Ranking.average_precision,
            found["precision_recall"],
            n_units,
        ),
        reliability=reliability,
    )


def _mean_curves(ranked: Mapping[str, Ranking], weights: Floats) -> tuple[Floats, Floats]:
    """ROC and precision-recall at each point of `GRID`, means over the classes, shape (b, m)."""
    by_class = [ranking.on_grid(ranking.tally(weights)) for ranking in ranked.values()]
    roc, precision = np.mean(by_class, axis=0)
    return roc, precision


def _curve(
    ranked: Mapping[str, Ranking],
    ones: Floats,
    x_and_y: tuple[str, str],
    area: Callable[[Ranking, Tally], Floats],
    found: list[Floats],
    n_units: int,
) -> Curve:
    """The curve of two of `Rates`, with the band of its mean over the classes."""
    lines, areas = {}, {}
    for name, ranking in ranked.items():
        tally = ranking.tally(ones)
        rates = ranking.rates(tally)
        x, y = (getattr(rates, rate)[0] for rate in x_and_y)
        lines[name] = x, y
        areas[name] = float(area(ranking, tally)[0])
    mean, low, high = _with_band(found, [n_units] * len(GRID))
    if len(lines) > 1:
        lines[MACRO] = GRID, mean
    return Curve(lines=lines, areas=areas, x=GRID, low=low, high=high)


def _with_band(found: list[Floats], n_units: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Shares, and the ends of their intervals, which rest on so many units each."""
    true, *drawn = np.concatenate(found)
    shares = zip(true.tolist(), np.array(drawn).T, n_units)
    low, high = np.array([interval_of(*share, (0.0, 1.0)) for share in shares]).T
    return true, low, high


def _bins(sureness: Floats) -> tuple[Integers, bool]:
    """Which bin each row is in, and whether the bins are equally wide."""
    wide = bin_numbers(sureness, MOST_BINS)
    n_rows = np.bincount(wide)
    if n_rows[n_rows > 0].min() >= LEAST_ROWS:
        return np.unique(wide, return_inverse=True)[1], True
    return _full_bins(sureness), False


def _full_bins(sureness: Floats) -> Integers:
    """Bins of about equal numbers of rows, each row's from 0; equal probabilities share one."""
    values, number_of, counts = np.unique(sureness, return_inverse=True, return_counts=True)
    n, n_bins = len(sureness), max(1, min(MOST_BINS, len(sureness) // LEAST_ROWS))
    bins = np.zeros(len(values), np.int64)
    n_behind = in_last = last = 0
    for place, count in enumerate(counts.tolist()):
        is_full = in_last >= LEAST_ROWS and n_behind * n_bins >= (last + 1) * n
        if is_full and n - n_behind >= LEAST_ROWS:
            last, in_last = last + 1, 0
        bins[place] = last
        n_behind, in_last = n_behind + count, in_last + count
    return bins[number_of]
