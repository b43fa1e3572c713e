"""How sure a score is, and how easily chance alone makes two models differ as much.

Intervals by Wilson and by bootstrap, of rows or of groups; tests of two models on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.metrics.scores import (
    AT_PREVALENCE,
    CALIBRATION_NOISE,
    METRICS,
    Z_95,
    Floats,
    Sample,
    bootstrap_weights,
    in_id_order,
    score_values,
    scorer,
)
from ecgfeat.predictions import Predictions

__all__ = [
    "AreaTest",
    "Resampled",
    "Score",
    "area_with_error",
    "at_prevalence",
    "compare_areas",
    "evaluate",
    "holm",
    "in_words",
    "interval_of",
    "mcnemar_p_value",
    "p_in_words",
    "resample",
]

N_BOOTSTRAP = 2000
"""Resamples: each end of a 95 % interval then rests on 50 of them."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of two, with its 95 % interval.

    Attributes
    ----------
    value, low, high : float
    method : str
        How the interval was found: ``"wilson"``, ``"bootstrap"``, ``"group bootstrap"`` or
        ``"mover-r"``.
    """

    value: float
    low: float
    high: float
    method: str


def in_words(score: Score | Mapping[str, Any] | None) -> str:
    """A score with its interval, ``0.841 [0.835, 0.846]``; a dash where it isn't defined.

    Parameters
    ----------
    score : Score, mapping or None
        A mapping as ``metrics.json`` has it.
    """
    if score is None:
        return "–"
    found = score if isinstance(score, Mapping) else vars(score)
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


LEAST_P = 1e-300
"""What is less is 0 to a double, and no test's p is nought."""


def p_in_words(p_value: float | None) -> str:
    """A test's p to three digits; a dash where there is none."""
    if p_value is None:
        return "–"
    return f"{p_value:.3g}" if p_value >= LEAST_P else f"<{LEAST_P:g}"


def evaluate(
    predictions: Predictions,
    *,
    seed: int = 0,
    n_bootstrap: int = N_BOOTSTRAP,
    prevalence: float = 0.0,
) -> dict[str, Score | None]:
    """Score predictions by each of `METRICS`, with 95 % intervals.

    Accuracy, balanced accuracy (the mean recall of the classes that the rows hold), sensitivity,
    specificity, PPV, NPV and F1 rate the answers; AUROC and average precision (as scikit-learn
    defines it) the order of the probabilities; the Brier score, the expected calibration error
    and the log loss the probabilities themselves. With two classes sensitivity, specificity, PPV,
    NPV, F1, AUROC and average precision are the positive class's. With more, the first four are
    left out, and the other three are means over the classes that the rows hold, each against the
    rest. The Brier score is the mean squared difference between the positive class's probability
    and 1 or 0; with more than two classes it is summed over the classes (Brier 1950). The
    calibration error has 15 bins of equal width over the positive class's probability or, with
    more classes, the most probable one's (Guo et al. 2017). The log loss takes no probability for
    less than 2.2e-16.

    A score is None where the rows leave it undefined. The folds of a cross-validation are scored
    as one set of rows, and the order of the rows changes nothing.

    Shares of right answers (accuracy, sensitivity, specificity, PPV, NPV) have Wilson's interval
    (Wilson 1927), the others the percentile bootstrap's (Efron & Tibshirani 1993, chapter 13);
    once any group has more than one row, all have a bootstrap's that draws whole groups. A
    resample that lost one of the classes is left out of what it leaves undefined. Where
    resampling shows no spread at all, as with perfect scores, the interval allows for what so few
    rows may have missed (see `interval_of`).

    Parameters
    ----------
    predictions : Predictions
    seed : int
        Seed of the resamples.
    n_bootstrap : int
        How many resamples.
    prevalence : float
        With two classes and a share of positives between 0 and 1: PPV and NPV there as well.

    Raises
    ------
    DataError
        When there are no rows.
    """
    (scored,) = resample([in_id_order(predictions)], seed=seed, n_bootstrap=n_bootstrap)
    return scored.scores(prevalence=prevalence)


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """One model's scores, on the rows themselves and on each resample.

    Attributes
    ----------
    values : dict of str to float
        By name; NaN where undefined.
    drawn : dict of str to ndarray of shape (n_bootstrap,), float64
        The same on each resample.
    sample : Sample
    """

    values: dict[str, float]
    drawn: dict[str, Floats]
    sample: Sample

    def scores(self, *, prevalence: float = 0.0) -> dict[str, Score | None]:
        """The scores with their intervals; None where undefined.

        Parameters
        ----------
        prevalence : float
            As in `evaluate`.
        """
        scores = {name: self._score(name, value) for name, value in self.values.items()}
        if prevalence and "sensitivity" in scores:
            found = at_prevalence(scores["sensitivity"], scores["specificity"], prevalence)
            scores |= dict(zip(AT_PREVALENCE, found))
        return {name: scores[name] for name in METRICS if name in scores}

    def _score(self, name: str, value: float) -> Score | None:
        if np.isnan(value):
            return None
        metric = METRICS[name]
        n_units = self.sample.n_units_by_basis[metric.basis]
        if metric.is_share and not self.sample.is_grouped:
            return Score(value, *_wilson(value, n_units), "wilson")
        low, high = interval_of(value, self.drawn[name], n_units, (0.0, metric.greatest))
        if name == "ece" and np.ptp(self.drawn[name]) > 0:
            low, high = self._calibration_interval(value, low)
        return Score(value, low, high, self.sample.method)

    def _calibration_interval(self, value: float, drawn_low: float) -> tuple[float, float]:
        """The interval of the calibration error, from the lower end of what resamples gave.

        Noise adds to an error that is a sum of absolute values: in the sample, and once more in
        each resample. Percentiles of the resamples then lie above the truth, all of them where
        the model is calibrated. So the lower end takes off as much as the noise can have added:
        by the triangle inequality no more than the sum of the bins' own errors, of which the
        resamples' 97.5 % point is taken. The upper end takes off the mirrored shift of the
        resamples (the basic bootstrap, Davison & Hinkley 1997, section 5.2).
        """
        noise = float(np.percentile(self.drawn[CALIBRATION_NOISE], 97.5))
        return max(0.0, value - noise), max(value, 2 * value - drawn_low)

    def minus(self, other: Resampled) -> dict[str, Score | None]:
        """How much more this model scores than `other`, on the same resamples, by name.

        For a loss, less is better.
        """
        return {name: self._difference(name, other) for name in self.values}

    def _difference(self, name: str, other: Resampled) -> Score | None:
        value = self.values[name] - other.values[name]
        if np.isnan(value):
            return None
        metric = METRICS[name]
        n_units = min(each.sample.n_units_by_basis[metric.basis] for each in (self, other))
        drawn = self.drawn[name] - other.drawn[name]
        scale = (-metric.greatest, metric.greatest)
        return Score(value, *interval_of(value, drawn, n_units, scale), self.sample.method)


def resample(
    models: Sequence[Predictions], *, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP
) -> list[Resampled]:
    """Score the models on their rows and on resamples of them, the same for all.

    Parameters
    ----------
    models : sequence of Predictions
        Of the same rows in the same order, with the same groups.
    seed, n_bootstrap : int
        As in `evaluate`.

    Raises
    ------
    DataError
        When there are no rows.
    """
    if not len(models[0]):
        raise DataError("there are no rows to score: the predictions are empty")
    samples = [Sample.of(model) for model in models]
    scorers = [scorer(model) for model in models]
    parts: list[list[dict[str, Floats]]] = [[] for _ in models]
    for weights in bootstrap_weights(samples[0].units, n_bootstrap, seed):
        for part, score in zip(parts, scorers):
            part.append(score(weights))
    return [
        Resampled(
            values=score_values(model),
            drawn={name: np.concatenate([each[name] for each in part]) for name in part[0]},
            sample=sample,
        )
        for model, part, sample in zip(models, parts, samples)
    ]


def interval_of(
    value: float, drawn: Floats, n_units: int, scale: tuple[float, float]
) -> tuple[float, float]:
    """The 95 % percentile interval of a score from its values on resamples.

    A bootstrap can't draw what the sample lacks: for perfect predictions it gives an interval of
    no width, be it of 4 rows or 4000. There, a share q of all rows may behave otherwise unseen,
    where q is Wilson's upper bound for 0 out of m, z²/(m + z²), and those may score anything on
    the scale. The m is the number of independent units that the score rests on: of the rarest
    class where classes count alike. A perfect score so gets Wilson's interval.

    `drawn`, of shape (n_bootstrap,), is NaN where a resample leaves the score undefined. `scale` is
    the least and the greatest value that a score can have.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return scale
    low, high = (float(end) for end in np.percentile(drawn, (2.5, 97.5)))
    if high - low > 1e-12:
        return low, high
    q = Z_95**2 / (n_units + Z_95**2)
    return (1 - q) * value + q * scale[0], (1 - q) * value + q * scale[1]


def at_prevalence(
    sensitivity: Score | None, specificity: Score | None, prevalence: float
) -> tuple[Score | None, Score | None]:
    """PPV and NPV where another share π of people is positive than among the rows.

    By Bayes' rule, from the likelihood ratios: PPV = π LR⁺ / (π LR⁺ + 1 - π) with LR⁺ =
    sensitivity / (1 - specificity), and NPV = (1 - π) / (1 - π + π LR⁻) with LR⁻ =
    (1 - sensitivity) / specificity. The ratios' intervals come of those of their parts by MOVER-R
    (Newcombe 2016, "MOVER-R confidence intervals for ratios and products of two independently
    estimated quantities", equations 3 and 4), so that a specificity of 1 seen on few rows does
    not pass for a certain one. None stands for what is undefined.
    """
    if sensitivity is None or specificity is None:
        return None, None
    odds = prevalence / (1 - prevalence)
    false_alarms, misses = _rest(specificity), _rest(sensitivity)
    ppv = None
    if sensitivity.value or false_alarms.value:
        value, low, high = (
            1 - 1 / (1 + odds * end) for end in _ratio_of(sensitivity, false_alarms)
        )
        ppv = Score(value, low, high, "mover-r")
    npv = None
    if misses.value or specificity.value:
        value, low, high = (1 / (1 + odds * end) for end in _ratio_of(misses, specificity))
        npv = Score(value, high, low, "mover-r")
    return ppv, npv


def _rest(share: Score) -> Score:
    return Score(1 - share.value, 1 - share.high, 1 - share.low, share.method)


def _ratio_of(part: Score, whole: Score) -> tuple[float, float, float]:
    """The ratio, and its interval by MOVER-R; infinite where the whole may be 0."""
    a, b = part.value, whole.value
    # What a part's end contributes, a² - (a - end)², in a form that divides by no 0.
    low_a, high_a = part.low * (2 * a - part.low), part.high * (2 * a - part.high)
    low_b, high_b = whole.low * (2 * b - whole.low), whole.high * (2 * b - whole.high)
    low = 0.0
    if low_a > 0:
        low = low_a / (a * b + math.sqrt(max(0.0, (a * b) ** 2 - low_a * high_b)))
    root = a * b + math.sqrt(max(0.0, (a * b) ** 2 - high_a * low_b))
    return (a / b if b else math.inf), low, (root / low_b if low_b > 0 else math.inf)


def _wilson(share: float, n: int) -> tuple[float, float]:
    # Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    z2 = Z_95**2
    centre = share + z2 / (2 * n)
    margin = Z_95 * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)))
    return max(0.0, (centre - margin) / (1 + z2 / n)), min(1.0, (centre + margin) / (1 + z2 / n))


# Tests of two models on the same rows


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
    areas, covariance = _covariance(is_positive, scores, units)
    tests: dict[tuple[int, int], AreaTest | None] = {}
    for i, j in combinations(range(len(scores)), 2):
        gain = float(areas[j] - areas[i])
        variance = float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        tests[i, j] = _normal_test(gain, variance)
    return tests


def area_with_error(is_positive: NDArray[np.bool_], scores: Floats) -> tuple[float, float]:
    """AUROC of some scores and its standard error (DeLong's), every row a unit of its own."""
    areas, covariance = _covariance(is_positive, [scores], np.arange(len(scores)))
    return float(areas[0]), math.sqrt(max(0.0, float(covariance[0, 0])))


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
    known = sorted((p_value, i) for i, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p_value, index) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p_value))
        adjusted[index] = least
    return adjusted
