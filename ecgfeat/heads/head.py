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
from ecgfeat.predictions import Predictions, softmax
from ecgfeat.protocol import Partition, Task
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import Progress, Report

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache

__all__ = [
    "CHUNK_ROWS",
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
    n_rows : int
        Rows it was trained on.
    history : sequence of EpochRecord
        Of a head that is trained in epochs.
    solver : mapping, optional
        How a head without epochs ended.
    training_s : float
    """

    tensors: Tensors
    n_rows: int
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
        n_epochs: int,
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
        seed, n_epochs : int
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
        """Shapes of the arrays of a head for so many classes and features."""

    @property
    def arrays(self) -> set[str]:
        """Names of its arrays, which no other kind has."""
        return set(self.shapes(2, 1))

    def fits(self, tensors: Tensors, *, n_classes: int, width: int) -> bool:
        """Whether the arrays are a head of this kind for so many classes and features."""
        found = {name: tensor.shape for name, tensor in tensors.items()}
        return found == self.shapes(n_classes, width)

    def probabilities(self, tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities by class, shape (n, n_classes)."""
        # A head that diverged gives NaN, which `Predictions` refuses in words.
        with np.errstate(over="ignore", invalid="ignore"):
            starts = range(0, len(X), CHUNK_ROWS)
            chunks = (X[start : start + CHUNK_ROWS] for start in starts)
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
        self, head: Head, rows: NDArray[np.int64], tensors: Tensors, taps: tuple[str, ...]
    ) -> NDArray[np.float64]:
        """A head's probabilities of some rows, shape (len(rows), n_classes)."""
        X = self.features(taps)
        starts = range(0, len(rows), CHUNK_ROWS)
        chunks = (X[rows[start : start + CHUNK_ROWS]] for start in starts)
        return np.concatenate([head.probabilities(tensors, chunk) for chunk in chunks])

    def predictions(
        self,
        head: Head,
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
            self.probabilities(head, rows, tensors, taps),
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
