"""One run's experiment: in every fold choose a head, train it, test it, and what that gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import Decision, decide
from ecgfeat.config import EvaluationSettings, FigureSettings, HeadSettings, SweepSettings
from ecgfeat.heads.head import WAY, Fitted, HeadData, Meter, Step
from ecgfeat.heads.registry import HEADS
from ecgfeat.heads.sweep import (
    SCORES,
    Candidate,
    Standing,
    best,
    n_trainings,
    refuse_diverged,
    try_heads,
    validation_scores,
    value_or_none,
)
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition, training_share
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import Report

__all__ = ["Choice", "Fold", "HeadJob", "Outcome", "Rows", "Tested", "TestedFold"]


Rows = list[dict[str, Any]]
"""Of ``sweep.csv`` or ``learning_curve.csv``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """The rows behind one set of test rows.

    Attributes
    ----------
    choosing : sequence of Partition
        How choices and decisions are made: each is trained on its training rows and looked at on
        its validation rows. One, or inner folds, or none.
    final : Partition
        What the head that is tested is trained on: one of `choosing`, or all their rows.
    """

    choosing: Sequence[Partition]
    final: Partition

    @property
    def number(self) -> int:
        """From 0, as in `Partition`."""
        return self.final.fold

    @property
    def parts(self) -> list[Partition]:
        """All that a chosen head is trained on, the last for the test."""
        return [*(part for part in self.choosing if part is not self.final), self.final]


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The head that is tested on a fold.

    Attributes
    ----------
    fold : Fold
    candidate : Candidate
    standing : Standing or None
        How it did where it was chosen; None where nothing was.
    """

    fold: Fold
    candidate: Candidate
    standing: Standing | None = None

    @property
    def n_epochs(self) -> int:
        """Epochs it is trained for, the best ones where it was chosen."""
        return self.standing.epoch if self.standing else self.candidate.n_epochs

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those that make a difference."""
        return seeds[: self.candidate.n_seeds(seeds)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """A head of one seed, and what it said.

    Attributes
    ----------
    fitted : Fitted
    predictions : Predictions
        Of the test rows, decided.
    validation : Predictions or None
        Of the validation rows, by heads not trained on them; decided alike.
    decision : Decision or None
        Fixed on these, where calibration or an operating point is asked for.
    """

    fitted: Fitted
    predictions: Predictions
    validation: Predictions | None
    decision: Decision | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TestedFold:
    """A fold's choice, tested with each seed; the one reported comes first."""

    choice: Choice
    tested: Sequence[Tested]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What all folds gave.

    Attributes
    ----------
    folds : sequence of TestedFold
    sweep : list of dict
        One row per candidate and fold; none where nothing is chosen.
    learning_curve : list of dict
    wall_s, choosing_s : float
        Seconds of all trainings and tests, and of those that chose; reading the features is
        left out.
    """

    folds: Sequence[TestedFold]
    sweep: Rows
    learning_curve: Rows
    wall_s: float
    choosing_s: float

    @property
    def reported(self) -> list[Tested]:
        """What is reported, by fold."""
        return [fold.tested[0] for fold in self.folds]


N_CURVE_SEEDS = 3
"""Trainings behind each point of a learning curve at least, for it to have a band."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadJob:
    """One run's work.

    Attributes
    ----------
    data : HeadData
    head : HeadSettings
        As they were given.
    pool : sequence of Candidate
        The heads to choose from; a single one where nothing is chosen, but perhaps its epoch.
    plan : sequence of Fold
    seeds : sequence of int
        The first is that of the head reported.
    sweep : SweepSettings
    evaluation : EvaluationSettings
    figures : FigureSettings
    recipe : str
        The recipe that the settings began as; empty where it was none.
    report : callable
    leaks : sequence of str
        What the result has to say of test images that are trained on.
    """

    data: HeadData
    head: HeadSettings
    pool: Sequence[Candidate]
    plan: Sequence[Fold]
    seeds: Sequence[int]
    sweep: SweepSettings
    evaluation: EvaluationSettings
    figures: FigureSettings
    recipe: str
    report: Report
    leaks: Sequence[str] = ()

    @property
    def is_refitting(self) -> bool:
        """Whether heads are tested that were trained on the validation rows too."""
        return bool(self.sweep.refit or self.sweep.folds)

    def run(self, on_tried: Callable[[Rows], None]) -> Outcome:
        """Choose in every fold, then train and test what was chosen.

        Parameters
        ----------
        on_tried : callable
            Given the rows of the sweep so far, each time some heads are finished.

        Raises
        ------
        DataError
            When every head, or the one chosen, diverged.
        """
        start_s = self._clock()
        choices, tried = self._choose_all(on_tried)
        chosen_s = self._clock()
        folds = self._test_all(choices)
        curve = self._learning_curve(choices[0]) if self.sweep.learning_curve else []
        return Outcome(
            folds=folds,
            sweep=tried,
            learning_curve=curve,
            wall_s=self._clock() - start_s,
            choosing_s=chosen_s - start_s,
        )

    def _clock(self) -> float:
        return time.perf_counter() - self.data.reading_s

    def _choose_all(self, on_tried: Callable[[Rows], None]) -> tuple[list[Choice], Rows]:
        """The head for each fold, and the rows of the sweep."""
        if not self.sweep.is_choosing:
            return [Choice(fold=fold, candidate=self.pool[0]) for fold in self.plan], []
        counts = (n_trainings(self.pool, len(fold.choosing), len(self.seeds)) for fold in self.plan)
        meter = Meter(self.report, stage="choosing", total=sum(counts), unit="fits")
        choices: list[Choice] = []
        tried: Rows = []

        def with_earlier(rows: Rows) -> None:
            on_tried([*tried, *rows])

        for fold in self.plan:
            standings = self._try(fold, meter, with_earlier)
            chosen = best(standings)
            refuse_diverged(chosen, len(standings))
            choices.append(Choice(fold=fold, candidate=chosen.candidate, standing=chosen))
            tried += [s.row(fold.number, chosen=s is chosen) for s in standings]
        return choices, tried

    def _try(self, fold: Fold, meter: Meter, on_tried: Callable[[Rows], None]) -> list[Standing]:
        """How every head of the pool does on a fold's validation rows."""
        name = f"Fold {fold.number + 1}/{len(self.plan)} | " if len(self.plan) > 1 else ""

        def tell(standings: list[Standing]) -> None:
            on_tried([standing.row(fold.number, chosen=False) for standing in standings])
            counted = f"{name}Tried {len(standings)}/{len(self.pool)} heads"
            meter.advance(0, f"[{WAY}] {counted} | Best: {best(standings).in_words()}")

        return try_heads(
            self.data,
            self.pool,
            fold.choosing,
            seeds=self.seeds,
            choose_by=self.sweep.choose_by,
            meter=meter,
            on_tried=tell,
        )

    def _test_all(self, choices: Sequence[Choice]) -> list[TestedFold]:
        in_epochs = all(HEADS[choice.candidate.kind].in_epochs for choice in choices)
        counts = (
            len(choice.seeds(self.seeds))
            * len(choice.fold.parts)
            * (choice.n_epochs if in_epochs else 1)
            for choice in choices
        )
        unit = "epochs" if in_epochs else "fits"
        meter = Meter(self.report, stage="fitting", total=sum(counts), unit=unit)
        return [
            TestedFold(
                choice=choice,
                tested=[self._test(choice, seed, meter) for seed in choice.seeds(self.seeds)],
            )
            for choice in choices
        ]

    def _test(self, choice: Choice, seed: int, meter: Meter) -> Tested:
        """Train a head, fix its decision on validation rows, and apply it to the test rows."""
        fold, held_out = choice.fold, []
        for part in fold.parts:
            is_told = part is fold.final and seed == self.seeds[0]
            fitted = self._fit(choice, part, seed, meter, is_told=is_told)
            if part in fold.choosing:
                held_out.append(self._predict(choice, fitted, part.validation, "validation"))
        validation = join(held_out) if held_out else None
        predictions = self._predict(choice, fitted, fold.final.test, fold.final.split)
        decision = None
        if validation and (self.evaluation.calibrate or self.evaluation.at_sensitivity):
            method = HEADS[choice.candidate.kind].calibration
            decision = decide(validation, method=method, settings=self.evaluation)
            validation, predictions = decision.apply(validation), decision.apply(predictions)
        return Tested(
            fitted=fitted, predictions=predictions, validation=validation, decision=decision
        )

    def _fit(
        self, choice: Choice, part: Partition, seed: int, meter: Meter, *, is_told: bool
    ) -> Fitted:
        amount = 1 if meter.unit == "epochs" else 1 / choice.n_epochs
        n_folds = len(self.plan)

        def on_step(step: EpochRecord | str) -> None:
            meter.advance(amount, _log_line(step, part.fold, n_folds) if is_told else "")

        return _fit_head(self.data, choice.candidate, part, seed, choice.n_epochs, on_step)

    def _predict(
        self, choice: Choice, fitted: Fitted, rows: NDArray[np.int64], split: str
    ) -> Predictions:
        return self.data.predictions(
            HEADS[choice.candidate.kind],
            rows,
            fitted.tensors,
            choice.candidate.head.taps,
            split=split,
            fold=choice.fold.number,
        )

    def _learning_curve(self, choice: Choice) -> Rows:
        first = self.evaluation.seed
        seeds = self.seeds if len(self.seeds) > 1 else range(first, first + N_CURVE_SEEDS)
        total = len(FRACTIONS) * len(seeds)
        return learning_curve(
            self.data,
            choice.candidate,
            choice.fold.choosing,
            n_epochs=choice.n_epochs,
            seeds=seeds,
            meter=Meter(self.report, stage="learning curve", total=total, unit="points"),
        )


def _log_line(step: EpochRecord | str, fold: int, n_folds: int) -> str:
    """A step of training as the study logs it, or how a head without epochs ended."""
    if isinstance(step, EpochRecord):
        return step.log_line(WAY, n_folds)
    name = f"Fold {fold + 1}/{n_folds} | " if n_folds > 1 else ""
    return f"[{WAY}] {name}{step}"


FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the training groups of each class: steps of about a factor of two, as such curves bend."""


def learning_curve(
    data: HeadData,
    candidate: Candidate,
    plan: Sequence[Partition],
    *,
    n_epochs: int,
    seeds: Sequence[int],
    meter: Meter,
) -> list[dict[str, Any]]:
    """Train a head on ever more of its training rows, and score it on the validation rows.

    Parameters
    ----------
    data : HeadData
    candidate : Candidate
    plan : sequence of Partition
        One, or inner folds, over which `n_train` and the scores are means.
    n_epochs : int
        Of a linear head, whatever the number of rows.
    seeds : sequence of int
        Each draws rows of its own, and starts the linear head of its own. The rows of a smaller
        fraction are among those of a larger one.
    meter : Meter
        Counts fractions and seeds.

    Returns
    -------
    list of dict
        One per fraction and seed: ``fraction``, ``n_train``, ``seed`` and the scores; None where
        the training diverged.
    """

    def score(part: Partition, seed: int) -> NDArray[np.float64]:
        fitted = _fit_head(data, candidate, part, seed, n_epochs, on_step=lambda _: None)
        head, taps = HEADS[candidate.kind], candidate.head.taps
        probabilities = data.probabilities(head, part.validation, fitted.tensors, taps)
        scores = validation_scores(probabilities[None], data.task.targets[part.validation])
        return scores.ravel()

    rows = []
    for fraction in FRACTIONS:
        for seed in seeds:
            shares = [_share(data, part, fraction, seed) for part in plan]
            means = np.mean([score(share, seed) for share in shares], axis=0)
            scores: dict[str, float | None] = {
                name: value_or_none(float(mean)) for name, mean in zip(SCORES, means)
            }
            rows.append(
                {
                    "fraction": fraction,
                    "n_train": round(sum(len(share.train) for share in shares) / len(shares)),
                    "seed": seed,
                    **scores,
                }
            )
            meter.advance(1)
    return rows


def _share(data: HeadData, part: Partition, fraction: float, seed: int) -> Partition:
    cache = data.cache
    return training_share(
        part, data.task, ids=cache.paths, groups=cache.groups, fraction=fraction, seed=seed
    )


def _fit_head(
    data: HeadData,
    candidate: Candidate,
    part: Partition,
    seed: int,
    n_epochs: int,
    on_step: Step,
) -> Fitted:
    """Train one head on the training rows of a partition, and tell how long it took."""
    X = data.features(candidate.head.taps)
    began = time.perf_counter()
    fitted = HEADS[candidate.kind].fit(
        X,
        data.task.targets,
        part,
        candidate.head,
        n_classes=len(data.task.classes),
        seed=seed,
        n_epochs=n_epochs,
        on_step=on_step,
    )
    return replace(fitted, training_s=time.perf_counter() - began)
