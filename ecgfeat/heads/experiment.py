"""One run's experiment: in every fold choose a head, train it, test it, and what that gave."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import Decision, decide
from ecgfeat.config import EvaluationSettings, FigureSettings, HeadSettings, SweepSettings
from ecgfeat.errors import DataError
from ecgfeat.heads.head import WAY, Fitted, HeadData, Meter, Step
from ecgfeat.heads.sweep import (
    SCORES,
    Candidate,
    Standing,
    best,
    try_heads,
    validation_scores,
    value_or_none,
)
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition, training_share
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import Report

__all__ = ["Choice", "Fold", "HeadJob", "Outcome", "Rows", "Tested"]


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
class Outcome:
    """What all folds gave.

    Attributes
    ----------
    choices : sequence of Choice
        By fold.
    tested : sequence of sequence of Tested
        By fold, the choice with each seed; the one reported comes first.
    sweep : list of dict
        One row per candidate and fold; none where nothing is chosen.
    learning_curve : list of dict
    wall_s, choosing_s : float
        Seconds of all trainings and tests, and of those that chose; reading the features is
        left out.
    """

    choices: Sequence[Choice]
    tested: Sequence[Sequence[Tested]]
    sweep: Rows
    learning_curve: Rows
    wall_s: float
    choosing_s: float

    @property
    def reported(self) -> list[Tested]:
        """What is reported, by fold."""
        return [by_seed[0] for by_seed in self.tested]


FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the training groups of each class behind the points of a learning curve: steps of about a
factor of two, as such curves bend."""
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
        tested = self._test_all(choices)
        curve = self._learning_curve(choices[0]) if self.sweep.learning_curve else []
        return Outcome(
            choices=choices,
            tested=tested,
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
        n_partitions = sum(len(fold.choosing) for fold in self.plan)
        n_fits = n_partitions * sum(len(head.seeds(self.seeds)) for head in self.pool)
        meter = Meter(self.report, stage="choosing", total=n_fits, unit="fits")
        choices: list[Choice] = []
        tried: Rows = []
        for fold in self.plan:
            standings = self._try(fold, meter, lambda rows: on_tried([*tried, *rows]))
            chosen = best(standings)
            if math.isnan(chosen.value):
                raise DataError(
                    f"all {len(standings)} heads diverged, so there is none to choose. Try lower "
                    "values of lr."
                )
            choices.append(Choice(fold=fold, candidate=chosen.candidate, standing=chosen))
            tried.extend(s.row(fold.number, chosen=s is chosen) for s in standings)
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

    def _test_all(self, choices: Sequence[Choice]) -> list[list[Tested]]:
        in_epochs = all(choice.candidate.head.in_epochs for choice in choices)
        counts = (
            len(choice.candidate.seeds(self.seeds))
            * len(choice.fold.parts)
            * (choice.n_epochs if in_epochs else 1)
            for choice in choices
        )
        unit = "epochs" if in_epochs else "fits"
        meter = Meter(self.report, stage="fitting", total=sum(counts), unit=unit)
        return [
            [self._test(choice, seed, meter) for seed in choice.candidate.seeds(self.seeds)]
            for choice in choices
        ]

    def _test(self, choice: Choice, seed: int, meter: Meter) -> Tested:
        """Train a head, fix its decision on validation rows, and apply it to the test rows."""
        fold, held_out = choice.fold, []
        for part in fold.parts:
            is_told = part is fold.final and seed == self.seeds[0]
            fitted = self._fit_and_tell(choice, part, seed, meter, is_told=is_told)
            if part in fold.choosing:
                held_out.append(self._predict(choice, fitted, part.validation, "validation"))
        validation = join(held_out) if held_out else None
        predictions = self._predict(choice, fitted, fold.final.test, fold.final.split)
        decision = None
        if validation and self.evaluation.is_deciding:
            method = choice.candidate.head.calibration
            decision = decide(validation, method=method, settings=self.evaluation)
            validation, predictions = decision.apply(validation), decision.apply(predictions)
        return Tested(
            fitted=fitted, predictions=predictions, validation=validation, decision=decision
        )

    def _fit_and_tell(
        self, choice: Choice, part: Partition, seed: int, meter: Meter, *, is_told: bool
    ) -> Fitted:
        amount = 1 if meter.unit == "epochs" else 1 / choice.n_epochs
        n_folds = len(self.plan)

        def on_step(step: EpochRecord | str) -> None:
            meter.advance(amount, _log_line(step, part.fold, n_folds) if is_told else "")

        return self._fit(choice, part, seed, on_step)

    def _fit(self, choice: Choice, part: Partition, seed: int, on_step: Step) -> Fitted:
        """Train a head on the training rows of a partition, and tell how long it took."""
        X = self.data.features(choice.candidate.settings.taps)
        began = time.perf_counter()
        fitted = choice.candidate.head.fit(
            X,
            self.data.task.targets,
            part,
            replace(choice.candidate.settings, epochs=choice.n_epochs),
            n_classes=len(self.data.task.classes),
            seed=seed,
            on_step=on_step,
        )
        return replace(fitted, training_s=time.perf_counter() - began)

    def _probabilities(
        self, choice: Choice, fitted: Fitted, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        X = self.data.features(choice.candidate.settings.taps)
        return choice.candidate.head.probabilities(fitted.tensors, X, rows)

    def _predict(
        self, choice: Choice, fitted: Fitted, rows: NDArray[np.int64], split: str
    ) -> Predictions:
        return Predictions.of_rows(
            rows,
            self._probabilities(choice, fitted, rows),
            ids=self.data.cache.paths,
            groups=self.data.cache.groups,
            classes=self.data.task.classes,
            targets=self.data.task.targets,
            split=split,
            fold=choice.fold.number,
        )

    def _learning_curve(self, choice: Choice) -> Rows:
        """The scores on the validation rows of the head trained on ever more of its rows.

        Each seed draws rows of its own, those of a smaller fraction among those of a larger one.
        Rows and scores are means over the partitions; a score is None where a training diverged.
        """
        first = self.evaluation.seed
        seeds = self.seeds if len(self.seeds) > 1 else range(first, first + N_CURVE_SEEDS)
        total = len(FRACTIONS) * len(seeds)
        meter = Meter(self.report, stage="learning curve", total=total, unit="points")
        rows: Rows = []
        for fraction, seed in itertools.product(FRACTIONS, seeds):
            shares = [self._share(part, fraction, seed) for part in choice.fold.choosing]
            means = np.mean([self._validate(choice, share, seed) for share in shares], axis=0)
            rows.append(
                {
                    "fraction": fraction,
                    "n_train": round(sum(len(share.train) for share in shares) / len(shares)),
                    "seed": seed,
                    **{name: value_or_none(float(mean)) for name, mean in zip(SCORES, means)},
                }
            )
            meter.advance(1)
        return rows

    def _share(self, part: Partition, fraction: float, seed: int) -> Partition:
        data = self.data
        return training_share(
            part,
            data.task,
            ids=data.cache.paths,
            groups=data.cache.groups,
            fraction=fraction,
            seed=seed,
        )

    def _validate(self, choice: Choice, part: Partition, seed: int) -> NDArray[np.float64]:
        """The values of `SCORES` for the head trained on a partition."""
        fitted = self._fit(choice, part, seed, on_step=lambda _: None)
        probabilities = self._probabilities(choice, fitted, part.validation)
        targets = self.data.task.targets[part.validation]
        return validation_scores(probabilities[None], targets).ravel()


def _log_line(step: EpochRecord | str, fold: int, n_folds: int) -> str:
    """A step of training as the study logs it, or how a head without epochs ended."""
    if isinstance(step, EpochRecord):
        return step.log_line(WAY, n_folds)
    name = f"Fold {fold + 1}/{n_folds} | " if n_folds > 1 else ""
    return f"[{WAY}] {name}{step}"
