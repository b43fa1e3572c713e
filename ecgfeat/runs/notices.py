"""What a result's reader should be warned of, in one line each that also says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import RUN_KINDS
from ecgfeat.metrics import Sample, mcnemar_p_value
from ecgfeat.predictions import Predictions
from ecgfeat.runs.records import Result

__all__ = ["Majority", "majority_of", "notices_of"]

FEW_ROWS = 10
"""With fewer rows of a class a choice, calibration or threshold follows single rows."""

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Majority:
    """Always answering the class that most training rows have.

    Attributes
    ----------
    classes : tuple of str
        The class answered, by fold.
    accuracy : float
    p_value : float
        Of the result's right answers against these, see `mcnemar_p_value`.
    """

    classes: tuple[str, ...]
    accuracy: float
    p_value: float


def majority_of(result: Result) -> Majority:
    """Answer the test rows by the majority of the training rows of each fold."""
    predictions = result.predictions
    counts = result.training_counts or [_counts(predictions).tolist()]
    # A tie goes to the class first in order.
    answers = np.array([int(np.argmax(fold)) for fold in counts])
    answered = answers[np.minimum(predictions.folds, len(answers) - 1)]
    is_right = answered == predictions.targets
    return Majority(
        classes=tuple(predictions.classes[index] for index in answers),
        accuracy=float(is_right.mean()),
        p_value=mcnemar_p_value(
            is_right,
            predictions.predicted == predictions.targets,
            Sample.of(predictions).units,
        ),
    )


def notices_of(result: Result, majority: Majority) -> list[str]:
    """The result's notices, those that the job passed in last."""
    predictions, found = result.predictions, []
    answered = np.unique(predictions.predicted)
    if len(answered) == 1:
        found.append(
            f"answers {predictions.classes[answered[0]]!r} for all {len(predictions)} test rows, "
            f"so it tells nothing apart: try {RUN_KINDS[result.kind].retry}"
        )
    accuracy = float(np.mean(predictions.predicted == predictions.targets))
    if accuracy <= majority.accuracy or majority.p_value >= SIGNIFICANT:
        found.append(
            f"accuracy {accuracy:.3f} is no better than always answering "
            f"{_names(majority.classes)}, the majority of the training rows "
            f"({majority.accuracy:.3f}; McNemar's p {majority.p_value:.2g}): test on more rows, "
            f"or try {RUN_KINDS[result.kind].retry}"
        )
    return [*found, *_few_rows(result), *result.notices]


def _few_rows(result: Result) -> list[str]:
    if not result.decisions or result.validation is None:
        return []
    done = []
    if any(decision.method != "none" for decision in result.decisions):
        done.append("calibrated")
    if any(decision.threshold is not None for decision in result.decisions):
        done.append("its threshold set")
    by_fold = np.array(
        [
            _counts(result.validation.take(np.flatnonzero(result.validation.folds == fold)))
            for fold in np.unique(result.validation.folds)
        ]
    )
    fewest = by_fold.min(axis=0)
    rarest = int(fewest.argmin())
    if not done or fewest[rarest] >= FEW_ROWS:
        return []
    name = result.validation.classes[rarest]
    return [
        f"{' and '.join(done)} on only {fewest[rarest]} validation rows of {name!r}: give a larger "
        "--val-fraction or more data"
    ]


def _counts(predictions: Predictions) -> NDArray[np.int64]:
    """Rows by true class."""
    counts: NDArray[Any] = np.bincount(predictions.targets, minlength=len(predictions.classes))
    return counts.astype(np.int64)


def _names(classes: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in dict.fromkeys(classes))
