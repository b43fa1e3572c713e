"""Trying many heads on the same rows, and choosing one by rows that none was trained on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import ChoiceScore
from ecgfeat.errors import DataError
from ecgfeat.heads.candidates import Candidate
from ecgfeat.heads.data import HeadData
from ecgfeat.heads.linear import HeadEpoch, fit_linear_heads
from ecgfeat.heads.logistic import LogisticFit, fit_logistic_path
from ecgfeat.heads.metering import Meter
from ecgfeat.heads.scoring import SCORES, validation_scores, value_or_none
from ecgfeat.metrics import METRICS
from ecgfeat.predictions import softmax
from ecgfeat.protocol import Partition

__all__ = ["Standing", "best", "n_trainings", "refuse_diverged", "try_heads"]

HEADS_AT_ONCE = 128
"""Linear heads in one pass: where more no longer make each cheaper, and what an interrupt loses."""

Values = NDArray[np.float64]
"""One candidate's scores, shape (n_partitions, n_seeds, n_epochs, len(SCORES))."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a candidate did on the validation rows.

    Attributes
    ----------
    candidate : Candidate
    choose_by : str
        The score that chooses, here the epoch.
    epoch : int
        The best one, from 1; logistic regression has one.
    scores : dict of str to float
        At that epoch, means over partitions and seeds; NaN where a training diverged.
    spread : float or None
        Standard deviation of the score that chooses; None where there is one value.
    """

    candidate: Candidate
    choose_by: ChoiceScore
    epoch: int
    scores: dict[str, float]
    spread: float | None

    @property
    def value(self) -> float:
        """The score that chooses."""
        return self.scores[self.choose_by]

    @property
    def score_name(self) -> str:
        """The name of the score that chooses, for people."""
        return METRICS[self.choose_by].title

    def row(self, fold: int, *, chosen: bool) -> dict[str, Any]:
        """The row of ``sweep.csv``, as plain values."""
        is_linear = self.candidate.kind == "linear"
        scores = {name: value_or_none(value) for name, value in self.scores.items()}
        return {
            "fold": fold,
            **self.candidate.as_json(),
            "epoch": self.epoch if is_linear else None,
            **scores,
            "spread": None if self.spread is None else value_or_none(self.spread),
            "chosen": chosen,
        }

    def in_words(self) -> str:
        """The candidate, its epoch and its score, for people."""
        epoch = f", epoch {self.epoch}" if self.candidate.kind == "linear" else ""
        return f"{self.candidate.in_words()}{epoch}: {self.score_name} {self.value:.4f}"


def best(standings: Sequence[Standing]) -> Standing:
    """The standing with the best score; equal ones by log loss, then the first of them."""
    return min(standings, key=lambda standing: _rank(standing.scores, standing.choose_by))


def refuse_diverged(chosen: Standing, n_tried: int) -> None:
    """Refuse a choice that is none.

    Raises
    ------
    DataError
        When even the best head diverged.
    """
    if math.isnan(chosen.value):
        raise DataError(
            f"all {n_tried} heads diverged, so there is none to choose. Try lower values of lr."
        )


def _rank(scores: dict[str, float], choose_by: ChoiceScore) -> tuple[bool, float, float]:
    value = scores[choose_by]
    return math.isnan(value), value if METRICS[choose_by].is_loss else -value, scores["log_loss"]


def try_heads(
    data: HeadData,
    pool: Sequence[Candidate],
    plan: Sequence[Partition],
    *,
    seeds: Sequence[int],
    choose_by: ChoiceScore,
    meter: Meter,
    on_tried: Callable[[list[Standing]], None],
) -> list[Standing]:
    """Train every candidate on every partition and score it on the validation rows.

    Linear heads that share features are trained in one pass over the rows.

    Parameters
    ----------
    data : HeadData
    pool : sequence of Candidate
        Those with the same layers stand together.
    plan : sequence of Partition
        One, or inner folds; each with validation rows of every class.
    seeds : sequence of int
        Linear heads are trained with each.
    choose_by : str
        The score that chooses the epoch.
    meter : Meter
        Counts trainings.
    on_tried : callable
        Given all standings so far, each time some are finished.

    Returns
    -------
    list of Standing
        In the order of `pool`.
    """
    standings: list[Standing] = []
    for group in _passes(pool):
        fill = _fill_linear if group[0].kind == "linear" else _fill_logistic
        n_seeds = len(seeds) if group[0].kind == "linear" else 1
        shape = (len(group), len(plan), n_seeds, group[0].n_epochs, len(SCORES))
        values = np.full(shape, np.nan)
        for number, part in enumerate(plan):
            fill(values[:, number], data, group, part, seeds, meter)
        standings += [_standing(*pair, choose_by) for pair in zip(group, values)]
        on_tried(standings)
    return standings


def n_trainings(pool: Sequence[Candidate], n_partitions: int, n_seeds: int) -> int:
    """How many trainings `try_heads` makes."""
    return n_partitions * sum(n_seeds if head.kind == "linear" else 1 for head in pool)


def _passes(pool: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates that can be trained together, few enough at a time."""
    for _, sharing in itertools.groupby(pool, key=lambda head: (head.kind, head.head.layers)):
        group = list(sharing)
        for start in range(0, len(group), HEADS_AT_ONCE):
            yield group[start : start + HEADS_AT_ONCE]


def _fill_linear(
    values: Values,
    data: HeadData,
    group: list[Candidate],
    part: Partition,
    seeds: Sequence[int],
    meter: Meter,
) -> None:
    """Scores of one partition into `values`, (n_candidates, n_seeds, n_epochs, len(SCORES))."""
    head, targets = group[0].head, data.task.targets
    specs = [candidate.spec(seed) for seed in seeds for candidate in group]

    def on_epoch(epoch: int, heads: list[HeadEpoch]) -> None:
        for trained in heads:
            assert trained.val_logits is not None
            seed, candidate = divmod(trained.spec_index, len(group))
            values[candidate, seed, epoch - 1] = validation_scores(
                _probabilities(trained.val_logits), targets[part.validation]
            )
            meter.tick()
        meter.advance(len(heads) / head.epochs)

    fit_linear_heads(
        data.features(head.taps),
        targets,
        part,
        n_classes=len(data.task.classes),
        specs=specs,
        epochs=head.epochs,
        batch_size=head.batch_size,
        on_epoch=on_epoch,
    )


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # A head that diverged gives NaN, which `validation_scores` passes on.
    with np.errstate(invalid="ignore", over="ignore"):
        return softmax(logits.astype(np.float64))


def _fill_logistic(
    values: Values,
    data: HeadData,
    group: list[Candidate],
    part: Partition,
    _: Sequence[int],
    meter: Meter,
) -> None:
    """The same for logistic regression, whose seeds and epochs are one."""
    taps, targets = group[0].head.taps, data.task.targets
    for is_balanced in (False, True):
        path = [i for i, candidate in enumerate(group) if candidate.is_balanced == is_balanced]

        def on_fit(number: int, fit: LogisticFit, path: list[int] = path) -> None:
            probabilities = data.probabilities(part.validation, fit.tensors, taps)
            values[path[number], 0, 0] = validation_scores(probabilities, targets[part.validation])
            meter.advance(1)

        if path:
            fit_logistic_path(
                data.features(taps),
                targets,
                part.train,
                Cs=[group[i].head.C for i in path],
                balanced=is_balanced,
                on_fit=on_fit,
            )


def _standing(candidate: Candidate, values: Values, choose_by: ChoiceScore) -> Standing:
    by_epoch = [dict(zip(SCORES, means)) for means in values.mean(axis=(0, 1)).tolist()]
    epoch = min(range(len(by_epoch)), key=lambda e: _rank(by_epoch[e], choose_by))
    single = values[:, :, epoch, SCORES.index(choose_by)]
    return Standing(
        candidate=candidate,
        choose_by=choose_by,
        epoch=epoch + 1,
        scores=by_epoch[epoch],
        spread=float(single.std(ddof=1)) if single.size > 1 else None,
    )
