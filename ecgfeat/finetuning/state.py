"""How far a fine-tuning has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.finetuning.training import Step
from ecgfeat.images import Failure
from ecgfeat.runs import EpochRecord

__all__ = ["Candidate", "Said", "State", "Tally"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What a network said of some rows.

    Attributes
    ----------
    rows : ndarray of shape (m,), int64
        Those that could be decoded.
    probabilities : ndarray of shape (m, n_classes), float64
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """The epoch of a fold that would be tested if it were the last one.

    Attributes
    ----------
    epoch : int
    score : float or None
        What it was chosen by; None where simply the last epoch is taken.
    validation : Said
        Of the validation rows; empty where there are none.
    weights : mapping of str to Tensor
        The network's after that epoch; empty where simply the last epoch is taken.
    """

    epoch: int
    score: float | None
    validation: Said
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Tally:
    """Running means over mini-batches, weighted by their images."""

    n_images: int = 0
    summed_loss: float = 0.0
    n_right: int = 0

    def add(self, step: Step) -> None:
        """Take in a step."""
        self.n_images += step.n_images
        self.summed_loss += step.loss * step.n_images
        self.n_right += step.n_right

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.summed_loss / self.n_images

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.n_right / self.n_images


@dataclass(kw_only=True)
class State:
    """How far a fine-tuning has come; without a checkpoint, nowhere.

    No random state is among it: order and augmentation of the images follow from seed, fold,
    epoch and row, and a ResNet draws no random numbers.

    Attributes
    ----------
    epoch : int
        Finished epochs of the fold under way.
    step : int
        Batches of the epoch under way that are done with.
    tally : Tally
        Over those batches.
    candidate : Candidate or None
        The fold's best epoch so far.
    history : list of EpochRecord
    rates : list of float
        The learning rate of each fold begun.
    chosen : list of Candidate
        One per finished fold, without its weights.
    tested : list of Said
        One per finished fold, of its test rows.
    failures : dict of int to Failure
        Images that can't be decoded, by row.
    wall_s, training_s : float
        Seconds for all of it, and for the training steps alone.
    n_trained : int
        Images trained on, each once per epoch.
    """

    epoch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    candidate: Candidate | None = None
    history: list[EpochRecord] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    chosen: list[Candidate] = field(default_factory=list)
    tested: list[Said] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    wall_s: float = 0.0
    training_s: float = 0.0
    n_trained: int = 0

    @property
    def fold(self) -> int:
        """The fold under way."""
        return len(self.tested)

    @property
    def is_within_fold(self) -> bool:
        """Whether the fold's network has been trained already."""
        return bool(self.epoch or self.step)

    @property
    def in_words(self) -> str:
        """What of the work is done, for people."""
        n_epochs = len(self.history)
        words = f"{n_epochs} finished epoch{'s' * (n_epochs != 1)}"
        return f"{words} and {self.step} steps of the next" if self.step else words

    def take_in(self, step: Step, seconds: float) -> None:
        """Go on to the next batch."""
        self.step += 1
        self.tally.add(step)
        self.n_trained += step.n_images
        self.training_s += seconds

    def end_epoch(self, record: EpochRecord, candidate: Candidate) -> None:
        """Go on to the next epoch."""
        self.history.append(record)
        self.candidate = candidate
        self.epoch, self.step, self.tally = record.epoch, 0, Tally()

    def end_fold(self, tested: Said) -> None:
        """Go on to the next fold."""
        assert self.candidate is not None
        kept = self.candidate
        self.chosen.append(
            Candidate(epoch=kept.epoch, score=kept.score, validation=kept.validation)
        )
        self.tested.append(tested)
        self.candidate = None
        self.epoch = 0
