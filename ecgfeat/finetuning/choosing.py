"""Which epoch's weights are tested, and when there is no more to be gained."""

from __future__ import annotations

from dataclasses import replace

from ecgfeat.config import EvaluationSettings, FinetuneSettings
from ecgfeat.finetuning.state import Candidate
from ecgfeat.finetuning.training import Trainer
from ecgfeat.metrics import METRICS, score_values
from ecgfeat.predictions import Predictions

__all__ = ["choose", "is_deciding", "is_enough", "score_epoch"]


def is_deciding(training: FinetuneSettings, evaluation: EvaluationSettings) -> bool:
    """Whether anything depends on validation rows: epoch, calibration or operating point."""
    return bool(training.choose_by != "last" or evaluation.calibrate or evaluation.at_sensitivity)


def choose(
    best: Candidate | None,
    new: Candidate,
    trainer: Trainer,
    training: FinetuneSettings,
) -> Candidate:
    """The better of the best epoch so far and the one just ended; the earlier where equal."""
    if training.choose_by == "last":
        return new
    sign = -1 if METRICS[training.choose_by].is_loss else 1
    assert new.score is not None
    if best is not None and best.score is not None and sign * new.score <= sign * best.score:
        return best
    return replace(new, weights=trainer.weights())


def score_epoch(validation: Predictions, training: FinetuneSettings) -> float | None:
    """What an epoch is chosen by; None where simply the last one is taken."""
    if training.choose_by == "last":
        return None
    return score_values(validation)[training.choose_by]


def is_enough(epoch: int, best: Candidate | None, training: FinetuneSettings) -> bool:
    """Whether a fold's training is over after `epoch` epochs."""
    if epoch == training.epochs:
        return True
    if not training.patience or best is None:
        return False
    return epoch - best.epoch >= training.patience
