"""What a head is, and what all heads of one call are trained and tested on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import HeadKind, HeadSettings
from ecgfeat.errors import DataError
from ecgfeat.predictions import softmax
from ecgfeat.protocol import Partition, Task
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import Progress, Report

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache

__all__ = [
    "WAY",
    "Fitted",
    "Head",
    "HeadData",
    "Meter",
    "Scored",
    "Step",
    "Tensors",
]


CHUNK_ROWS = 4096
"""Rows taken at a time, so that the features are never copied whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A head after training.

    Attributes
    ----------
    tensors : mapping of str to ndarray
    history : sequence of EpochRecord
        Of a head that is trained in epochs.
    solver : mapping, optional
        How a head without epochs ended.
    training_s : float
    """

    tensors: Tensors
    history: Sequence[EpochRecord] = ()
    solver: Mapping[str, int | bool] | None = None
    training_s: float = 0.0


class Head(ABC):
    """One kind of head: everything that the rest of the program asks of it.

    Attributes
    ----------
    kind : str
        Its word on the command line and in a run's files.
    options : tuple of str
        Fields of `HeadSettings` that only this kind has.
    grid : mapping of str to tuple
        Fields of `HeadSettings` that a sweep may vary, with the default sweep's values.
    in_epochs : bool
        Whether it is trained in epochs from a seed's random start: the epoch is then chosen too,
        and training again on more rows gives logits of another scale.
    calibration : {"temperature", "platt"}
    precision : {"fp32", "fp64"}
        What it is computed in.
    """

    kind: ClassVar[HeadKind]
    options: ClassVar[tuple[str, ...]]
    grid: ClassVar[Mapping[str, tuple[Any, ...]]]
    in_epochs: ClassVar[bool]
    calibration: ClassVar[Literal["temperature", "platt"]]
    precision: ClassVar[Literal["fp32", "fp64"]]

    @abstractmethod
    def fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        part: Partition,
        settings: HeadSettings,
        *,
        n_classes: int,
        seed: int,
        on_step: Step,
    ) -> Fitted:
        """Train one on the rows ``part.train``.

        Parameters
        ----------
        X : ndarray of shape (n, width), float32
        y : ndarray of shape (n,), int64
        part : Partition
        settings : HeadSettings
        n_classes : int
        seed : int
            Of a head that is trained in epochs.
        on_step : callable
        """

    @abstractmethod
    def try_many(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        part: Partition,
        many: Sequence[HeadSettings],
        *,
        n_classes: int,
        seeds: Sequence[int],
        on_scored: Scored,
    ) -> None:
        """Train many that read the same features, and tell what each says of ``part.validation``.

        Parameters as in `fit`, but for:

        many : sequence of HeadSettings
        seeds : sequence of int
            Each is trained with each; one where it isn't trained in epochs.
        on_scored : callable
        """

    @abstractmethod
    def logits(self, tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits of shape (n, n_classes) for features as they are in the cache."""

    @abstractmethod
    def linear_form(self, tensors: Tensors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (n_classes, width) and biases (n_classes,) on features as they are in the cache.

        The logits are X @ weights.T + biases.
        """

    @abstractmethod
    def shapes(self, n_classes: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes of a head's arrays, by names that no other kind has."""

    def fits(self, tensors: Tensors, *, n_classes: int, width: int) -> bool:
        """Whether the arrays are a head of this kind for so many classes and features."""
        found = {name: tensor.shape for name, tensor in tensors.items()}
        return found == self.shapes(n_classes, width)

    def probabilities(
        self, tensors: Tensors, X: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Probabilities of some rows by class, shape (len(rows), n_classes)."""
        # A head that diverged gives NaN, which `Predictions` refuses in words.
        with np.errstate(over="ignore", invalid="ignore"):
            starts = range(0, len(rows), CHUNK_ROWS)
            chunks = (X[rows[start : start + CHUNK_ROWS]] for start in starts)
            return np.concatenate([softmax(self.logits(tensors, chunk)) for chunk in chunks])


Tensors = Mapping[str, NDArray[Any]]
"""A head's arrays by name."""
Step = Callable[[EpochRecord | str], None]
"""Told each epoch, or how a head without epochs ended; what it raises ends the training."""
Scored = Callable[[Sequence[int], Sequence[int], int, NDArray[np.float64]], None]
"""Told of some heads after an epoch (from 1) their numbers and their seeds' (from 0), and the
probabilities of the validation rows, shape (heads, n, n_classes); what it raises ends the training.
"""


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
        self._held: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def features(self, taps: tuple[str, ...]) -> NDArray[np.float32]:
        """The features of some layers side by side, shape (n, width), read unless at hand.

        Raises
        ------
        DataError
            When every row has the same ones.
        CacheError, StorageError
        """
        if taps not in self._held:
            began = time.perf_counter()
            self._held.clear()  # or both would need memory
            X = self.cache.features(taps)
            _refuse_constant(X, taps)
            self._held[taps] = X
            self.reading_s += time.perf_counter() - began
        return self._held[taps]


def _refuse_constant(X: NDArray[np.float32], taps: tuple[str, ...]) -> None:
    # The first few differ, as a rule.
    for start in range(0, len(X), CHUNK_ROWS):
        if (X[start : start + CHUNK_ROWS] != X[0]).any():
            return
    raise DataError(
        f"all {len(X)} images have the same features in {', '.join(taps)}, so no head can tell "
        "them apart. Look at the images (are they blank?) and at the weights, and extract again."
    )


WAY = "Fixed Feature"
"""What the study's log lines call it."""


class Meter:
    """Counts what is done of one stage, of a `total` in its `unit`, and reports it."""

    def __init__(self, report: Report, *, stage: str, total: int, unit: str) -> None:
        self._report = report
        self._stage, self._total = stage, total
        self.unit = unit
        self._done = 0.0

    def advance(self, amount: float, message: str = "") -> None:
        """Count `amount` as done, which may be a part of one, and log a line."""
        self._done += amount
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
