"""From a model's probabilities to its answers: calibration and operating point.

Both are fixed on validation rows, once, and then hold for test rows and new images alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.predictions import Predictions, softmax

__all__ = ["Decision", "Method", "decide", "refuse_undecidable"]

Method = Literal["none", "temperature", "platt"]
Floats = NDArray[np.float64]

SLOPES = (1e-3, 1e3)
"""Least and greatest slope. Positive, so that no calibration turns the order of the rows round."""

EXTREME = 5.0
"""Slope, or one over it, beyond which a correction is warned of. Guo et al. 2017 found
temperatures from 0.9 to 3 for networks that were trained as usual."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """From a model's probabilities to its answers, fixed on validation rows.

    The calibrated probabilities are softmax(slope · log p + (0, …, offset)). With
    ``"temperature"`` there is no offset, and the slope is 1 / T of Guo et al. 2017, "On
    calibration of modern neural networks". With ``"platt"`` there are two classes, and the
    positive one's probability is the logistic function of slope · logit + offset (Platt 1999,
    "Probabilistic outputs for support vector machines"). Neither changes the order of the rows.

    Attributes
    ----------
    method : {"none", "temperature", "platt"}
    slope : float
        From 0.001 to 1000; 1 with ``"none"``.
    offset : float
        0 but with ``"platt"``.
    threshold : float or None
        Binary tasks: the answer is positive from this calibrated probability on. None: the most
        probable class is answered.

    Raises
    ------
    ValueError
        When a value is out of range, or doesn't go with the method.
    """

    method: Method = "none"
    slope: float = 1.0
    offset: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"calibration method {self.method!r}")
        if not SLOPES[0] <= self.slope <= SLOPES[1] or not math.isfinite(self.offset):
            raise ValueError(f"calibration slope {self.slope!r}, offset {self.offset!r}")
        if (self.method == "none" and self.slope != 1) or (self.method != "platt" and self.offset):
            raise ValueError(f"slope or offset that doesn't go with {self.method!r}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold!r}")

    def probabilities(self, probabilities: Floats) -> Floats:
        """The probabilities calibrated, shape (n, n_classes).

        Parameters
        ----------
        probabilities : ndarray of shape (n, n_classes), float64

        Raises
        ------
        ValueError
            When there are other than two classes, and the decision is for two.
        """
        self.refuse_other(probabilities.shape[1])
        if self.method == "none":
            return probabilities
        logits = self.slope * _logs(probabilities)
        logits[:, -1] += self.offset
        return softmax(logits)

    def refuse_other(self, n_classes: int) -> None:
        """Refuse a number of classes that this decision isn't for.

        Raises
        ------
        ValueError
        """
        if n_classes != 2 and (self.method == "platt" or self.threshold is not None):
            raise ValueError(f"a decision between two classes, for {n_classes}")

    def answers(self, probabilities: Floats) -> NDArray[np.int64]:
        """Index of each row's answer: the most probable class, or by the threshold.

        Parameters
        ----------
        probabilities : ndarray of shape (n, n_classes), float64
            Calibrated.
        """
        if self.threshold is None:
            most_probable: NDArray[np.int64] = probabilities.argmax(axis=1)
            return most_probable
        return (probabilities[:, 1] >= self.threshold).astype(np.int64)

    def apply(self, predictions: Predictions) -> Predictions:
        """The same rows with calibrated probabilities, and answers where a threshold decides."""
        calibrated = self.probabilities(predictions.probabilities)
        answers = None if self.threshold is None else self.answers(calibrated)
        return replace(predictions, probabilities=calibrated, answers=answers)

    def in_words(self) -> str:
        """What is done, for people: ``temperature 1.31, positive from 0.2831``; may be empty."""
        words = {
            "none": [],
            "temperature": [f"temperature {1 / self.slope:.4g}"],
            "platt": [f"Platt's slope {self.slope:.4g}, offset {self.offset:.4g}"],
        }[self.method]
        if self.threshold is not None:
            words.append(f"positive from {self.threshold:.4g}")
        return ", ".join(words)

    def meaning(self) -> str:
        """What the calibration does to the probabilities, for people; empty where nothing."""
        if self.method == "none" or self.slope == 1:
            return ""
        if self.slope < 1:
            return "it was surer than it was right, so its probabilities are drawn together"
        return "it was less sure than it was right, so its probabilities are drawn apart"

    @property
    def is_extreme(self) -> bool:
        """Whether so much was corrected that the model's own probabilities say little."""
        return not 1 / EXTREME <= self.slope <= EXTREME

    def as_json(self) -> dict[str, Any]:
        """The decision as plain values."""
        return asdict(self)


def refuse_undecidable(
    settings: EvaluationSettings, *, n_classes: int, has_validation: bool
) -> None:
    """Refuse options that this task can't follow, before any work.

    Raises
    ------
    ConfigError
        When calibration or an operating point lacks validation rows, or an option that speaks of
        positives meets more than two classes.
    """
    for option, is_given in (
        ("--calibrate", settings.calibrate),
        ("--at-sensitivity", settings.at_sensitivity > 0),
    ):
        if is_given and not has_validation:
            raise ConfigError(
                f"{option} is fixed on validation rows, and there are none: also give "
                "--val-fraction, such as 0.2"
            )
    for option, value in (
        ("--at-sensitivity", settings.at_sensitivity),
        ("--prevalence", settings.prevalence),
    ):
        if value and n_classes != 2:
            raise ConfigError(
                f"{option} {value:g} needs a binary task, and this one has {n_classes} classes: "
                "say with --positive which of them count as positive"
            )


def decide(
    validation: Predictions,
    *,
    method: Literal["temperature", "platt"],
    settings: EvaluationSettings,
) -> Decision:
    """Fix calibration and operating point, as far as the settings ask for them.

    Calibration minimises the log loss of the validation rows. As in Platt 1999, no class is held
    for certain there: of a class with N rows, the true one's target is (N + 1) / (N + k) with k
    classes, the others' 1 / (N + k). So even rows that are all answered right give a finite slope.
    The threshold is the highest that finds ``at_sensitivity`` of the positive validation rows.

    Parameters
    ----------
    validation : Predictions
        Rows that the model was not trained on, and that no score is computed on.
    method : {"temperature", "platt"}
        With more than two classes ``"platt"``, which is for two, gives way to ``"temperature"``.
    settings : EvaluationSettings
        Its ``calibrate`` and ``at_sensitivity``.

    Raises
    ------
    DataError
        When a threshold is asked for, and no validation row is positive.
    """
    decision = Decision()
    if settings.calibrate:
        is_platt = method == "platt" and len(validation.classes) == 2
        decision = _fit_platt(validation) if is_platt else _fit_temperature(validation)
    if settings.at_sensitivity:
        calibrated = decision.probabilities(validation.probabilities)
        of_positives = calibrated[validation.targets == 1, 1]
        if not len(of_positives):
            raise DataError(
                "--at-sensitivity needs positive validation rows, and there are none "
                f"of {validation.positive!r}: give a larger --val-fraction"
            )
        # Rounding must not ask for a row more: 0.07 · 100 is 7.000000000000001.
        n_found = max(1, math.ceil(settings.at_sensitivity * len(of_positives) - 1e-9))
        decision = replace(decision, threshold=float(np.sort(of_positives)[-n_found]))
    return decision


def _fit_temperature(validation: Predictions) -> Decision:
    logs = _logs(validation.probabilities)
    (slope,) = _minimise_log_loss(np.zeros_like(logs), logs[np.newaxis], _targets(validation))
    return Decision(method="temperature", slope=_within(slope))


def _fit_platt(validation: Predictions) -> Decision:
    logs, targets = _logs(validation.probabilities), _targets(validation)
    constant = np.broadcast_to([0.0, 1.0], logs.shape)
    slope, offset = _minimise_log_loss(np.zeros_like(logs), np.stack([logs, constant]), targets)
    if _within(slope) != slope:
        slope = _within(slope)
        (offset,) = _minimise_log_loss(slope * logs, constant[np.newaxis], targets)
    return Decision(method="platt", slope=slope, offset=offset)


def _targets(validation: Predictions) -> Floats:
    k = len(validation.classes)
    n_rows = np.bincount(validation.targets, minlength=k)
    by_class = (1 + np.diag(n_rows)) / (n_rows + k)[:, np.newaxis]
    targets: Floats = by_class[validation.targets]
    return targets


def _minimise_log_loss(base: Floats, parts: Floats, targets: Floats) -> list[float]:
    """The m factors θ for which softmax(base + Σ θ_j parts_j) has the least log loss.

    `base` and `targets`, whose rows sum to 1, are of shape (n, k), `parts` of (m, n, k). The loss
    is convex. Newton's method with halved steps, after Lin, Lin & Weng 2007, "A note on Platt's
    probabilistic outputs for support vector machines".
    """
    n = len(base)
    # Not from a slope of 1: a model that is wrong and certain of it leaves no curvature there.
    factors = np.zeros(len(parts))
    loss, probabilities = _log_loss(base, parts, targets, factors)
    for _ in range(100):
        means = np.einsum("nk,jnk->jn", probabilities, parts)
        gradient = means.sum(axis=1) / n - np.einsum("nk,jnk->j", targets, parts) / n
        centred = parts - means[:, :, np.newaxis]
        curvature = np.einsum("nk,ink,jnk->ij", probabilities, centred, centred) / n
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(parts)), gradient)
        decrease, size = float(gradient @ step), 1.0
        if decrease < 1e-15:
            break
        while size > 1e-12:
            trial = factors - size * step
            trial_loss, trial_probabilities = _log_loss(base, parts, targets, trial)
            if trial_loss <= loss - 1e-4 * size * decrease:
                break
            size /= 2
        else:
            break
        factors, loss, probabilities = trial, trial_loss, trial_probabilities
    return [float(factor) for factor in factors]


def _log_loss(
    base: Floats, parts: Floats, targets: Floats, factors: Floats
) -> tuple[float, Floats]:
    logits = base + np.einsum("j,jnk->nk", factors, parts)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -float((targets * logs).sum(axis=1).mean()), np.exp(logs)


def _logs(probabilities: Floats) -> Floats:
    # A class that the model excludes outright has no logarithm; the least positive double has.
    logs: Floats = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return logs


def _within(slope: float) -> float:
    return min(max(slope, SLOPES[0]), SLOPES[1])
