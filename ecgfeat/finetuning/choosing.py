"""Which epoch's weights are tested, and when there is no more to be gained."""

from __future__ import annotations

import math
from dataclasses import replace

from ecgfeat.config import EvaluationSettings, FinetuneSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.finetuning.state import Candidate
from ecgfeat.finetuning.training import Trainer
from ecgfeat.metrics import METRICS, score_values
from ecgfeat.predictions import Predictions

__all__ = ["choose", "is_enough", "refuse_unchoosable", "score_epoch"]


def refuse_unchoosable(training: FinetuneSettings, evaluation: EvaluationSettings) -> None:
    """Refuse to choose an epoch on validation rows that there aren't.

    Raises
    ------
    ConfigError
    """
    if training.choose_by != "last" and not evaluation.val_fraction:
        raise ConfigError(
            f"--choose-by {training.choose_by} needs validation rows, and there are none: also "
            "give --val-fraction, such as 0.2"
        )


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
    """What an epoch is chosen by; None where simply the last one is taken.

    Parameters
    ----------
    validation : Predictions
        Of the validation rows that could be decoded.
    training : FinetuneSettings

    Raises
    ------
    DataError
        When the validation rows leave the score undefined.
    """
    name = training.choose_by
    if name == "last":
        return None
    if not len(validation):
        raise DataError(
            f"--choose-by {name} needs validation rows, and none of their images can be decoded"
        )
    score = score_values(validation)[name]
    if math.isnan(score):
        raise DataError(
            f"--choose-by {name} is undefined: the validation rows hold one class only. Give a "
            "larger --val-fraction."
        )
    return score


def is_enough(epoch: int, best: Candidate | None, training: FinetuneSettings) -> bool:
    """Whether a fold's training is over after `epoch` epochs."""
    if epoch == training.epochs:
        return True
    if not training.patience or best is None:
        return False
    return epoch - best.epoch >= training.patience
