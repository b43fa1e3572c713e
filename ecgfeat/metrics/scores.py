"""The scores as functions of row weights, and the resamples that weigh the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfeat.predictions import Predictions
from ecgfeat.protocol import group_numbers

__all__ = [
    "CALIBRATION_NOISE",
    "GRID",
    "MAIN",
    "METRICS",
    "Z_95",
    "Basis",
    "Floats",
    "Integers",
    "Metric",
    "Ranking",
    "Rates",
    "Sample",
    "Tally",
    "bin_numbers",
    "bootstrap_weights",
    "classification_table",
    "confusion_matrix",
    "in_id_order",
    "rankings",
    "ratio",
    "score_names",
    "score_values",
    "scorer",
    "sureness_of",
    "weighted_sums",
]


Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GRID = np.linspace(0, 1, 101)
"""False positive rates of a drawn ROC curve, and recalls of a precision-recall curve."""

N_THRESHOLDS = 200
"""Thresholds of a drawn curve in each of three series; fewer rows have one at each value."""


class Tally(NamedTuple):
    """Weights of the positive and negative rows, summed up in the order of their scores.

    `drawn` are those of the positive rows, the lowest score first, shape (b, n_positives). Of the
    others, shape (b, 1 + their number), entry i is the weight of the i rows of lowest score.
    """

    drawn: Floats
    positives: Floats
    negatives: Floats


class Rates(NamedTuple):
    """The curves' coordinates by falling threshold, from above all scores to the lowest one.

    Of shape (b, n_thresholds); fallout is the false positive rate. NaN where the rows drawn leave
    one undefined.
    """

    recall: Floats
    fallout: Floats
    precision: Floats


class Ranking:
    """One class against the rest: the order of the rows, worked out once for all weights.

    The scores are the positive class's probabilities, shape (n,), as is `is_positive`.
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

    def on_grid(self, tally: Tally) -> tuple[Floats, Floats]:
        """Recall at each fallout of `GRID`, and precision at each recall, shape (b, len(GRID)).

        The precision is that of the highest threshold whose recall is no less, as average precision
        counts it.
        """
        rates = self.rates(tally)
        recalls = [np.interp(GRID, x, y) for x, y in zip(rates.fallout, rates.recall)]
        last = rates.recall.shape[1] - 1
        # Rounding must not make the last threshold's recall less than 1.
        columns = [np.minimum(np.searchsorted(row + 1e-12, GRID), last) for row in rates.recall]
        return np.array(recalls), np.take_along_axis(rates.precision, np.array(columns), axis=1)

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
            recall=ratio(found, tally.positives[:, -1:]),
            fallout=ratio(false, tally.negatives[:, -1:]),
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


Basis = Literal[
    "rows",
    "rarest",
    "positives",
    "negatives",
    "answered positive",
    "answered negative",
]
"""Which rows a score rests on: all, or those of the rarest class, or of one side's."""

WORST_LOG_LOSS = 36.04365338911715
"""-log of the double's machine epsilon, below which no probability is told from 0."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score.

    Attributes
    ----------
    title : str
        Its name for people, short enough for a table.
    basis : Basis
        The rows it rests on, where their number decides how sure it is.
    is_share : bool
        Whether it is the share of right answers among these rows.
    is_binary : bool
        Whether it speaks of positives, and so needs two classes.
    is_loss : bool
        Whether less of it is better.
    greatest : float
        Upper end of its scale, which begins at 0.
    """

    title: str
    basis: Basis = "rarest"
    is_share: bool = False
    is_binary: bool = False
    is_loss: bool = False
    greatest: float = 1.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(title="accuracy", basis="rows", is_share=True),
    "balanced_accuracy": Metric(title="balanced accuracy"),
    "sensitivity": Metric(title="sensitivity", basis="positives", is_share=True, is_binary=True),
    "specificity": Metric(title="specificity", basis="negatives", is_share=True, is_binary=True),
    "ppv": Metric(title="PPV", basis="answered positive", is_share=True, is_binary=True),
    "npv": Metric(title="NPV", basis="answered negative", is_share=True, is_binary=True),
    "ppv_at_prevalence": Metric(title="PPV at prevalence", is_binary=True),
    "npv_at_prevalence": Metric(title="NPV at prevalence", is_binary=True),
    "f1": Metric(title="F1"),
    "auroc": Metric(title="AUROC"),
    "average_precision": Metric(title="average precision"),
    "brier": Metric(title="Brier score", basis="rows", is_loss=True, greatest=2.0),
    "ece": Metric(title="calibration error", basis="rows", is_loss=True),
    "log_loss": Metric(title="log loss", basis="rows", is_loss=True, greatest=WORST_LOG_LOSS),
}
"""Every score by its name in ``metrics.json``, in the order in which they are shown."""

MAIN = ("accuracy", "balanced_accuracy", "auroc")
"""The scores to look at first, which every task has."""

AT_PREVALENCE = ("ppv_at_prevalence", "npv_at_prevalence")
"""Scores that follow from sensitivity and specificity at a share of positives stated by hand."""


def score_names(n_classes: int) -> tuple[str, ...]:
    """Names of the scores that are computed from rows of so many classes, in order."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if name not in AT_PREVALENCE and (n_classes == 2 or not metric.is_binary)
    )


N_BINS = 15
"""Bins of equal width over the probabilities, as in Guo et al. 2017, "On calibration of modern
neural networks"."""

CALIBRATION_NOISE = "calibration noise"
"""Beside the scores: how far the bins' gaps lie from those of the rows themselves, summed up."""


def score_values(predictions: Predictions) -> dict[str, float]:
    """The scores of predictions by name, without intervals; NaN where one is undefined.

    See `evaluate` for what each of them is.
    """
    values = scorer(predictions)(np.ones((1, len(predictions))))
    return {name: float(values[name][0]) for name in score_names(len(predictions.classes))}


def rankings(targets: Integers, probabilities: Floats) -> dict[int, Ranking]:
    """By class: the positive one or, with more than two, each that is present against the rest.

    Empty where fewer than two classes are present.
    """
    present = np.unique(targets).tolist()
    if len(present) < 2:
        return {}
    positives = [1] if probabilities.shape[1] == 2 else present
    return {index: Ranking(targets == index, probabilities[:, index]) for index in positives}


def scorer(predictions: Predictions) -> Callable[[Floats], dict[str, Floats]]:
    """All scores as one function of these rows' weights.

    From weights of shape (b, n) to scores by name, each of shape (b,); NaN where undefined.
    """
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
    in_bin = np.arange(N_BINS)[:, np.newaxis] == bin_numbers(sureness, N_BINS)
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


def bin_numbers(sureness: Floats, n_bins: int) -> Integers:
    """Which of the bins of equal width each probability is in, from 0."""
    return np.minimum((sureness * n_bins).astype(np.int64), n_bins - 1)


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


Z_95 = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""

CHUNK_WEIGHTS = 2**18
"""Row weights held at once (2 MiB), which stay in a processor's cache."""

ONE_THREAD_PRODUCTS = 2**18
"""Multiplications up to which OpenBLAS uses one thread."""


def in_id_order(predictions: Predictions) -> Predictions:
    """The same predictions, rows in the order of their ids."""
    order = sorted(range(len(predictions)), key=predictions.ids.__getitem__)
    return predictions.take(np.array(order, dtype=np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The rows scored, as far as their intervals depend on them.

    Attributes
    ----------
    units : ndarray of shape (n,), int64
        Number of each row's group, from 0; a row without a group is its own.
    n_units_by_basis : mapping of Basis to int
        Units among the rows that a score rests on.
    """

    units: Integers
    n_units_by_basis: Mapping[Basis, int]

    @classmethod
    def of(cls, predictions: Predictions) -> Sample:
        """The sample that these predictions score."""
        units = group_numbers(predictions.ids, predictions.groups)
        targets, predicted = predictions.targets, predictions.predicted
        masks: dict[Basis, Integers] = {
            "positives": targets == 1,
            "negatives": targets == 0,
            "answered positive": predicted == 1,
            "answered negative": predicted == 0,
        }
        by_class = [len(np.unique(units[targets == index])) for index in np.unique(targets)]
        counts: dict[Basis, int] = {"rows": int(units.max()) + 1, "rarest": min(by_class)}
        counts |= {basis: len(np.unique(units[mask])) for basis, mask in masks.items()}
        return cls(units=units, n_units_by_basis=counts)

    @property
    def n_units(self) -> int:
        """Independent units: groups, and rows without one."""
        return self.n_units_by_basis["rows"]

    @property
    def is_grouped(self) -> bool:
        """Whether any group has more than one row."""
        return self.n_units < len(self.units)

    @property
    def method(self) -> str:
        """What a bootstrap of these rows is called."""
        return "group bootstrap" if self.is_grouped else "bootstrap"


def bootstrap_weights(units: Integers, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """How often each row is in each of `n_bootstrap` resamples, drawn by whole units.

    Parameters
    ----------
    units : ndarray of shape (n,), int64
        Unit of each row, numbered from 0 without gaps.
    n_bootstrap, seed : int

    Yields
    ------
    ndarray of shape (b, n), float64
        The next b resamples, few enough that memory does not grow with `n_bootstrap`.
    """
    n_units = int(units.max()) + 1
    random = np.random.default_rng(seed)
    n_at_once = max(1, CHUNK_WEIGHTS // len(units))
    for start in range(0, n_bootstrap, n_at_once):
        counts = np.empty((min(n_at_once, n_bootstrap - start), n_units))
        for row in counts:
            chosen = random.integers(n_units, size=n_units)
            row[:] = np.bincount(chosen, minlength=n_units)
        yield counts.take(units, axis=1)


def weighted_sums(weights: Floats, summands: Floats) -> Floats:
    """``weights @ summands``, (b, n) @ (n, n_sums), in blocks that BLAS computes on one thread.

    Spread over threads, products as thin as these cost four times the processor time, and on a
    busy machine each waits for the slowest.
    """
    sums = np.zeros((len(weights), summands.shape[1]))
    n_at_once = max(1, ONE_THREAD_PRODUCTS // sums.size)
    for start in range(0, len(summands), n_at_once):
        rows = slice(start, start + n_at_once)
        sums += weights[:, rows] @ summands[rows]
    return sums


def confusion_matrix(predictions: Predictions) -> Integers:
    """Count rows by true class (first axis) and predicted class, shape (n_classes, n_classes)."""
    k = len(predictions.classes)
    cells = predictions.targets * k + predictions.predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64)


def classification_table(predictions: Predictions) -> str:
    """Precision, recall, F1 and support of every class, by scikit-learn, to four decimals.

    0 where one is undefined. The averages count a class without any row as 0; `evaluate` leaves
    it out of balanced accuracy.
    """
    from sklearn.metrics import classification_report

    table: str = classification_report(
        predictions.targets,
        predictions.predicted,
        labels=range(len(predictions.classes)),
        target_names=predictions.classes,
        digits=4,
        zero_division=0,
    )
    return table
