"""Which run is better: several runs on the same test rows, side by side."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import RunError
from ecgfeat.metrics import Resampled, Score, in_id_order, resample
from ecgfeat.predictions import Predictions, positive_class
from ecgfeat.runs import KIND_NAMES, Cost, Run

__all__ = ["ComparedRun", "Comparison", "Pair", "compare", "mcnemar_p_value"]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run's scores on the shared rows, and what it cost.

    Attributes
    ----------
    name, kind : str
        The run's.
    label : str
        The kind in words.
    scores : dict of str to Score or None
        As `metrics.evaluate` gives them.
    cost : Cost
    """

    name: str
    kind: str
    label: str
    scores: dict[str, Score | None]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs against each other.

    Attributes
    ----------
    first, second : str
        Names of the runs.
    differences : dict of str to Score or None
        Scores of `second` minus those of `first`, with the paired bootstrap's 95 % intervals.
    n_first_only, n_second_only : int
        Rows that only the one run got right.
    p_value : float
        See `mcnemar_p_value`.
    is_identical : bool
        Whether both gave every row exactly the same probabilities. The differences are then 0
        by construction, with intervals of no width.
    """

    first: str
    second: str
    differences: dict[str, Score | None]
    n_first_only: int
    n_second_only: int
    p_value: float
    is_identical: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs on the same test rows.

    Attributes
    ----------
    runs : tuple of ComparedRun
        In the order given.
    pairs : tuple of Pair
        Every two of them.
    data : str
        Name of the data set.
    test_rows : str
        The test rows in words, such as ``"subset of 1000 of 18136"``.
    n_rows, n_groups : int
        Test rows, and the independent units among them: groups, and rows without one.
    classes : tuple of str
    p_value_method : str
        ``"McNemar, exact"`` or ``"McNemar, exact, by group"``.
    """

    runs: tuple[ComparedRun, ...]
    pairs: tuple[Pair, ...]
    data: str
    test_rows: str
    n_rows: int
    n_groups: int
    classes: tuple[str, ...]
    p_value_method: str

    @property
    def title(self) -> str:
        """What is compared, in words."""
        title = f"{len(self.runs)} runs on {self.data}, same test rows: {self.test_rows}"
        return f"{title}, positive: {self.positive}" if self.positive else title

    @property
    def positive(self) -> str | None:
        """The positive class of a binary task, else None."""
        return positive_class(self.classes)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values, ready for ``json.dumps``."""
        return {**dataclasses.asdict(self), "positive": self.positive}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    """A run with its predictions, rows in the order that all runs share, and their scores."""

    run: Run
    predictions: Predictions
    resampled: Resampled

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which rows the run got right, shape (n,)."""
        right: NDArray[np.bool_] = self.predictions.predicted == self.predictions.targets
        return right


def compare(runs: Sequence[Run]) -> Comparison:
    """Set runs side by side that were tested on the same rows.

    The scores are those of each run's own ``metrics.json``. Differences are resampled in pairs:
    every run is scored on the same resamples, so that a difference's interval knows how their
    errors coincide; by whole groups where any has more than one row.

    Parameters
    ----------
    runs : sequence of Run
        At least two, of different names. The order of their rows does not matter.

    Returns
    -------
    Comparison

    Raises
    ------
    RunError
        When there is only one run, a name comes twice, or the runs' classes, test rows, targets
        or groups differ; the message says how.
    StorageError
        When a run's predictions can't be read.

    Examples
    --------
    >>> comparison = compare([open_run(path) for path in paths])  # doctest: +SKIP
    >>> comparison.pairs[0].differences["accuracy"].value  # doctest: +SKIP
    0.0686
    """
    if len(runs) < 2:
        raise RunError(f"a comparison needs at least two runs; found {len(runs)}")
    _refuse_equal_names(runs)
    models = [in_id_order(run.predictions) for run in runs]
    for run, model in zip(runs[1:], models[1:]):
        _refuse_different_rows(runs[0].name, models[0], run.name, model)
    entries = [
        _Entry(run=run, predictions=model, resampled=resampled)
        for run, model, resampled in zip(runs, models, resample(models))
    ]
    sample = entries[0].resampled.sample
    return Comparison(
        runs=tuple(_compared(entry) for entry in entries),
        pairs=tuple(_pair(first, second) for first, second in combinations(entries, 2)),
        data=str(runs[0].config["data"]),
        test_rows=str(runs[0].metrics["test_rows"]),
        n_rows=len(models[0]),
        n_groups=sample.n_units,
        classes=models[0].classes,
        p_value_method="McNemar, exact" + (", by group" if sample.is_grouped else ""),
    )


def _compared(entry: _Entry) -> ComparedRun:
    run = entry.run
    return ComparedRun(
        name=run.name,
        kind=run.kind,
        label=KIND_NAMES.get(run.kind, run.kind),
        scores=entry.resampled.scores(),
        cost=run.cost,
    )


def _pair(first: _Entry, second: _Entry) -> Pair:
    is_identical = np.array_equal(first.predictions.probabilities, second.predictions.probabilities)
    differences = second.resampled.minus(first.resampled)
    if is_identical:
        differences = {
            name: score and Score(0.0, 0.0, 0.0, score.method)
            for name, score in differences.items()
        }
    return Pair(
        first=first.run.name,
        second=second.run.name,
        differences=differences,
        n_first_only=int(np.sum(first.right & ~second.right)),
        n_second_only=int(np.sum(second.right & ~first.right)),
        p_value=mcnemar_p_value(first.right, second.right, first.resampled.sample.units),
        is_identical=is_identical,
    )


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
        In (0, 1]; 1 where no row is answered differently.
    """
    gains = np.bincount(units, weights=second_right.astype(int) - first_right).astype(np.int64)
    at_stake = np.abs(gains[gains != 0])
    # chance[k] is the probability that of all that is at stake k falls to the second model.
    total = int(at_stake.sum())
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for stake in at_stake.tolist():
        chance /= 2
        chance[stake:] += chance[:-stake].copy()
    lead = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chance[lead >= abs(int(gains.sum()))].sum()))


def _refuse_equal_names(runs: Sequence[Run]) -> None:
    paths: dict[str, Path] = {}
    for run in runs:
        if run.name in paths:
            raise RunError(
                f"two of the runs are called {run.name} ({paths[run.name]} and {run.path}). Give "
                "each run once; rename a folder where different runs share a name."
            )
        paths[run.name] = run.path


def _refuse_different_rows(
    first_name: str, first: Predictions, second_name: str, second: Predictions
) -> None:
    """Both in the order of their ids."""
    who = f"{first_name} and {second_name}"
    if first.classes != second.classes:
        raise RunError(
            f"{who} can't be compared, their classes differ: {', '.join(first.classes)} in the "
            f"one, {', '.join(second.classes)} in the other. Make both runs on the same data "
            "with the same --positive."
        )
    if first.ids != second.ids:
        ours, theirs = Counter(first.ids), Counter(second.ids)
        example = min((ours - theirs) | (theirs - ours))
        owner = first_name if ours[example] > theirs[example] else second_name
        raise RunError(
            f"{who} can't be compared, their test rows differ: {_rows_in_words(first)} and "
            f"{_rows_in_words(second)}, {(ours & theirs).total()} of them in both; {example} is "
            f"only in {owner}. Make both runs on the same data with the same split, "
            "--test-subset and --cv."
        )
    for what, one, other in (
        ("class", _labels(first), _labels(second)),
        ("group", first.groups, second.groups),
    ):
        differing = [row for row, (a, b) in enumerate(zip(one, other)) if a != b]
        if differing:
            row = differing[0]
            raise RunError(
                f"{who} can't be compared, the {what} of {len(differing)} of their {len(first)} "
                f"test rows differs: {first.ids[row]} has {one[row]!r} in the one, "
                f"{other[row]!r} in the other. Make both runs on the same version of the data."
            )


def _rows_in_words(predictions: Predictions) -> str:
    return f"{len(predictions)} rows ({predictions.split})"


def _labels(predictions: Predictions) -> tuple[str, ...]:
    return tuple(predictions.classes[target] for target in predictions.targets.tolist())
