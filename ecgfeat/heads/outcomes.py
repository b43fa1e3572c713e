"""What goes into a run's work and what comes out of it: folds, choices, tested heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecgfeat.calibration import Decision
from ecgfeat.heads.candidates import Candidate
from ecgfeat.heads.choosing import Standing
from ecgfeat.heads.training import Fitted
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import Partition

__all__ = ["Choice", "Fold", "Outcome", "Rows", "Tested", "TestedFold"]

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
        """Those that make a difference: logistic regression has none but the first."""
        return seeds if self.candidate.kind == "linear" else seeds[:1]


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
