"""Choosing, training, deciding and testing, fold by fold: the work behind one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import decide
from ecgfeat.config import EvaluationSettings, HeadKind, HeadSettings, SweepSettings
from ecgfeat.heads.candidates import Candidate
from ecgfeat.heads.choosing import Standing, best, n_trainings, refuse_diverged, try_heads
from ecgfeat.heads.data import HeadData
from ecgfeat.heads.learning import FRACTIONS, learning_curve
from ecgfeat.heads.logistic import LogisticFit
from ecgfeat.heads.metering import WAY, Meter
from ecgfeat.heads.outcomes import Choice, Fold, Outcome, Rows, Tested, TestedFold
from ecgfeat.heads.training import Fitted, fit_head
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import Report

__all__ = ["HeadJob"]

N_CURVE_SEEDS = 3
"""Trainings behind each point of a learning curve at least, for it to have a band."""
METHODS: dict[HeadKind, Literal["temperature", "platt"]] = {
    "linear": "temperature",
    "logreg": "platt",
}


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
    recipe : str
        The recipe that the settings began as; empty where it was none.
    report : callable
    """

    data: HeadData
    head: HeadSettings
    pool: Sequence[Candidate]
    plan: Sequence[Fold]
    seeds: Sequence[int]
    sweep: SweepSettings
    evaluation: EvaluationSettings
    recipe: str
    report: Report

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
        in_epochs = all(choice.candidate.kind == "linear" for choice in choices)
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
            method = METHODS[choice.candidate.kind]
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

        def on_step(step: EpochRecord | LogisticFit) -> None:
            meter.advance(amount, _log_line(step, part.fold, n_folds) if is_told else "")

        return fit_head(
            self.data,
            choice.candidate,
            part,
            seed=seed,
            n_epochs=choice.n_epochs,
            on_step=on_step,
        )

    def _predict(
        self, choice: Choice, fitted: Fitted, rows: NDArray[np.int64], split: str
    ) -> Predictions:
        return self.data.predictions(
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


def _log_line(step: EpochRecord | LogisticFit, fold: int, n_folds: int) -> str:
    """A step of training as the study logs it, or how logistic regression ended."""
    if isinstance(step, EpochRecord):
        return step.log_line(WAY, n_folds)
    name = f"Fold {fold + 1}/{n_folds} | " if n_folds > 1 else ""
    ending = (
        f"converged after {step.n_iterations} iterations"
        if step.converged
        else f"not converged after {step.n_iterations} iterations: its scores may still change; "
        "a lower --C makes it converge sooner"
    )
    return f"[{WAY}] {name}Logistic regression {ending}"
