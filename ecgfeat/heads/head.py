"""What all heads of one call are trained and tested on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.predictions import Predictions, softmax
from ecgfeat.protocol import Task
from ecgfeat.runtime import Progress, Report

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache

__all__ = ["CHUNK_ROWS", "WAY", "HeadData", "Meter", "Tensors", "head_fits", "head_probabilities"]


class HeadData:
    """A cache's rows with their targets; the features of one set of layers are held at a time.

    Attributes
    ----------
    cache : FeatureCache
    task : Task
        Of the cache's rows.
    reading_s : float
        Seconds spent on reading features so far.
    """

    def __init__(self, cache: FeatureCache, task: Task) -> None:
        self.cache = cache
        self.task = task
        self.reading_s = 0.0
        self._taps: tuple[str, ...] = ()
        self._X = np.empty((0, 0), np.float32)

    def features(self, taps: tuple[str, ...]) -> NDArray[np.float32]:
        """The features of some layers side by side, shape (n, width), read unless at hand.

        Raises
        ------
        DataError
            When every row has the same ones.
        CacheError, StorageError
        """
        if taps != self._taps:
            began = time.perf_counter()
            # What was held must go first, or both would need memory.
            self._taps, self._X = (), np.empty((0, 0), np.float32)
            X = self.cache.features(taps)
            _refuse_constant(X, taps)
            self._taps, self._X = taps, X
            self.reading_s += time.perf_counter() - began
        return self._X

    def probabilities(
        self, rows: NDArray[np.int64], tensors: Tensors, taps: tuple[str, ...]
    ) -> NDArray[np.float64]:
        """A head's probabilities of some rows, shape (len(rows), n_classes)."""
        X = self.features(taps)
        starts = range(0, len(rows), CHUNK_ROWS)
        chunks = (X[rows[start : start + CHUNK_ROWS]] for start in starts)
        return np.concatenate([head_probabilities(tensors, chunk) for chunk in chunks])

    def predictions(
        self,
        rows: NDArray[np.int64],
        tensors: Tensors,
        taps: tuple[str, ...],
        *,
        split: str,
        fold: int,
    ) -> Predictions:
        """What a head says of some rows."""
        return Predictions.of_rows(
            rows,
            self.probabilities(rows, tensors, taps),
            ids=self.cache.paths,
            groups=self.cache.groups,
            classes=self.task.classes,
            targets=self.task.targets,
            split=split,
            fold=fold,
        )


def _refuse_constant(X: NDArray[np.float32], taps: tuple[str, ...]) -> None:
    # The first few differ, as a rule.
    for start in range(0, len(X), CHUNK_ROWS):
        if (X[start : start + CHUNK_ROWS] != X[0]).any():
            return
    raise DataError(
        f"all {len(X)} images have the same features in {', '.join(taps)}, so no head can tell "
        "them apart. Look at the images (are they blank?) and at the weights, and extract again."
    )


CHUNK_ROWS = 4096
"""Rows taken at a time, so that the features are never copied whole."""

Tensors = Mapping[str, NDArray[Any]]
"""A head's arrays by name, as `fit_linear_heads` and `fit_logistic` give them."""


def head_probabilities(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities by class, shape (n, n_classes), float64.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As `fit_linear_heads` or `fit_logistic` give them; which of the two shows by their names.
    X : ndarray of shape (n, width), float32
        Features as they are in the cache.
    """
    logits = _logistic_logits if "coef" in tensors else _linear_logits
    # A head that diverged gives NaN, which `Predictions` refuses in words.
    with np.errstate(over="ignore", invalid="ignore"):
        chunks = [
            softmax(logits(tensors, X[start : start + CHUNK_ROWS]))
            for start in range(0, len(X), CHUNK_ROWS)
        ]
    return np.concatenate(chunks)


def head_fits(tensors: Tensors, *, n_classes: int, width: int) -> bool:
    """Whether the arrays are a head of either kind for so many classes and features."""
    n_logits = 1 if n_classes == 2 else n_classes
    linear = {"weight": (n_classes, width), "bias": (n_classes,)}
    logistic = {
        "mean": (width,),
        "scale": (width,),
        "coef": (n_logits, width),
        "intercept": (n_logits,),
    }
    return {name: tensor.shape for name, tensor in tensors.items()} in (linear, logistic)


def _linear_logits(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    return (X @ tensors["weight"].T + tensors["bias"]).astype(np.float64)


def _logistic_logits(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    standardised = (X.astype(np.float64) - tensors["mean"]) / tensors["scale"]
    logits: NDArray[np.float64] = standardised @ tensors["coef"].T + tensors["intercept"]
    if logits.shape[1] == 1:
        # Two classes have one logit, the positive's; the logistic function is softmax(0, logit).
        return np.hstack([np.zeros_like(logits), logits])
    return logits


WAY = "Fixed Feature"
"""What the study's log lines call it."""


class Meter:
    """Counts what is done of one stage, and reports it.

    Parameters
    ----------
    report : callable
        Takes a `Progress`; may raise `Interrupted`.
    stage : str
    total : int
        In `unit`.
    unit : str
    """

    def __init__(self, report: Report, *, stage: str, total: int, unit: str) -> None:
        self._report = report
        self._stage, self._total = stage, total
        self.unit = unit
        self._done = 0.0

    def advance(self, amount: float, message: str = "") -> None:
        """Count `amount` as done, which may be a part of one, and log a line."""
        self._done += amount
        self._tell(message)

    def tick(self) -> None:
        """Give the report a chance to stop the job."""
        self._tell("")

    def _tell(self, message: str) -> None:
        done = min(self._total, int(self._done + 1e-6))
        self._report(
            Progress(
                stage=self._stage,
                done=done,
                total=self._total,
                unit=self.unit,
                message=message,
            )
        )
