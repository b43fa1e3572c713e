"""How sure a score is: intervals by Wilson and by bootstrap, of rows or of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ecgfeat.errors import DataError
from ecgfeat.metrics.scores import METRICS, Floats, Integers, scorers
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import group_numbers

__all__ = [
    "Resampled",
    "Sample",
    "Score",
    "bootstrap_weights",
    "evaluate",
    "in_id_order",
    "resample",
]

N_BOOTSTRAP = 2000
"""Resamples: each end of a 95 % interval then rests on 50 of them."""

Z_95 = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""

CHUNK_WEIGHTS = 2**18
"""Row weights held at once (2 MiB), which stay in a processor's cache."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of two, with its 95 % interval.

    Attributes
    ----------
    value, low, high : float
    method : str
        How the interval was found: ``"wilson"``, ``"bootstrap"`` or ``"group bootstrap"``.
    """

    value: float
    low: float
    high: float
    method: str


def evaluate(
    predictions: Predictions, *, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP
) -> dict[str, Score | None]:
    """Score predictions by each of `METRICS`, with 95 % intervals.

    Balanced accuracy is the mean recall of the classes that the rows hold. AUROC is the positive
    class's or, with more than two classes, the mean over those that the rows hold, each against
    the rest; it is None where they hold a single class. The folds of a cross-validation are
    scored as one set of rows, and the order of the rows changes nothing.

    Accuracy has Wilson's interval (Wilson 1927), the others the percentile bootstrap's (Efron &
    Tibshirani 1993, chapter 13); once any group has more than one row, all have a bootstrap's
    that draws whole groups. A resample that lost one of the classes is left out of what it
    leaves undefined. Where resampling shows no spread at all, as with perfect scores, the
    interval allows for what so few rows may have missed (see `Sample.interval`).

    Parameters
    ----------
    predictions : Predictions
    seed : int
        Seed of the resamples.
    n_bootstrap : int
        How many resamples.

    Raises
    ------
    DataError
        When there are no rows.
    """
    (scored,) = resample([in_id_order(predictions)], seed=seed, n_bootstrap=n_bootstrap)
    return scored.scores()


def in_id_order(predictions: Predictions) -> Predictions:
    """The same predictions, rows in the order of their ids."""
    order = sorted(range(len(predictions)), key=predictions.ids.__getitem__)
    return replace(
        predictions,
        ids=tuple(predictions.ids[row] for row in order),
        targets=predictions.targets[order],
        probabilities=predictions.probabilities[order],
        groups=tuple(predictions.groups[row] for row in order),
        folds=predictions.folds[order],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The rows scored, as far as their intervals depend on them.

    Attributes
    ----------
    units : ndarray of shape (n,), int64
        Number of each row's group, from 0; a row without a group is its own.
    n_units : int
    n_units_rarest : int
        Units that hold the rarest of the classes present.
    """

    units: Integers
    n_units: int
    n_units_rarest: int

    @classmethod
    def of(cls, predictions: Predictions) -> Sample:
        """The sample that these predictions score."""
        units = group_numbers(predictions.ids, predictions.groups)
        targets = predictions.targets
        holding = [len(np.unique(units[targets == index])) for index in np.unique(targets)]
        return cls(units=units, n_units=int(units.max()) + 1, n_units_rarest=min(holding))

    @property
    def is_grouped(self) -> bool:
        """Whether any group has more than one row."""
        return self.n_units < len(self.units)

    @property
    def method(self) -> str:
        """What a bootstrap of these rows is called."""
        return "group bootstrap" if self.is_grouped else "bootstrap"

    def interval(self, name: str, value: float, drawn: Floats, least: float) -> tuple[float, float]:
        """The 95 % percentile interval, on a scale from `least` to 1.

        A bootstrap can't draw what the sample lacks: for perfect predictions it gives an
        interval of no width, be it of 4 rows or 4000. There, a share q of all rows may behave
        otherwise unseen, where q is Wilson's upper bound for 0 out of m, z²/(m + z²), and those
        may score anything from `least` to 1. The m is the number of independent units: of the
        rarest class where classes count alike. A perfect score so gets Wilson's interval.
        """
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return least, 1.0
        low, high = (float(end) for end in np.percentile(drawn, (2.5, 97.5)))
        if high - low > 1e-12:
            return low, high
        m = self.n_units if name == "accuracy" else self.n_units_rarest
        q = Z_95**2 / (m + Z_95**2)
        return (1 - q) * value + q * least, (1 - q) * value + q


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

    def scores(self) -> dict[str, Score | None]:
        """The scores with their intervals; None where undefined."""
        scores = {
            name: self._summed_up(name, self.values[name], self.drawn[name]) for name in METRICS
        }
        if not self.sample.is_grouped:
            accuracy = self.values["accuracy"]
            interval = _wilson(accuracy, self.sample.n_units)
            scores["accuracy"] = Score(accuracy, *interval, "wilson")
        return scores

    def minus(self, other: Resampled) -> dict[str, Score | None]:
        """How much better this model is than `other`, which was scored on the same resamples."""
        return {
            name: self._summed_up(
                name,
                self.values[name] - other.values[name],
                self.drawn[name] - other.drawn[name],
                least=-1.0,
            )
            for name in METRICS
        }

    def _summed_up(
        self, name: str, value: float, drawn: Floats, least: float = 0.0
    ) -> Score | None:
        if np.isnan(value):
            return None
        return Score(value, *self.sample.interval(name, value, drawn, least), self.sample.method)


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
    sample = Sample.of(models[0])
    by_model = [list(scorers(model).values()) for model in models]

    def score_all(weights: Floats) -> list[list[Floats]]:
        return [[score(weights) for score in by_name] for by_name in by_model]

    values = np.array(score_all(np.ones((len(models[0]), 1))))  # (n_models, n_scores, 1)
    chunks = bootstrap_weights(sample.units, n_bootstrap, seed)
    drawn = np.concatenate([score_all(weights) for weights in chunks], axis=2)
    return [
        Resampled(
            values=dict(zip(METRICS, values[index, :, 0].tolist())),
            drawn=dict(zip(METRICS, drawn[index])),
            sample=sample,
        )
        for index in range(len(models))
    ]


def bootstrap_weights(units: Integers, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """How often each row is in each of `n_bootstrap` resamples, drawn by whole units.

    Parameters
    ----------
    units : ndarray of shape (n,), int64
        Unit of each row, numbered from 0 without gaps.
    n_bootstrap, seed : int

    Yields
    ------
    ndarray of shape (n, b), float64
        The next b resamples, few enough that memory does not grow with `n_bootstrap`.
    """
    n_units = int(units.max()) + 1
    random = np.random.default_rng(seed)
    n_at_once = max(1, CHUNK_WEIGHTS // len(units))
    for start in range(0, n_bootstrap, n_at_once):
        counts = np.empty((n_units, min(n_at_once, n_bootstrap - start)))
        for column in range(counts.shape[1]):
            chosen = random.integers(n_units, size=n_units)
            counts[:, column] = np.bincount(chosen, minlength=n_units)
        yield counts[units]


def _wilson(share: float, n: int) -> tuple[float, float]:
    # Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    z2 = Z_95**2
    centre = share + z2 / (2 * n)
    margin = Z_95 * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)))
    return max(0.0, (centre - margin) / (1 + z2 / n)), min(1.0, (centre + margin) / (1 + z2 / n))
