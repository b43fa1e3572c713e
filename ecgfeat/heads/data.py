"""What all heads of one call are trained and tested on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError
from ecgfeat.heads.applying import CHUNK_ROWS, Tensors, head_probabilities
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import Task

if TYPE_CHECKING:
    from ecgfeat.feature_cache import FeatureCache

__all__ = ["HeadData"]


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
