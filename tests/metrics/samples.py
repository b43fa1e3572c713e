"""Predictions to be scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecgfeat.predictions import Predictions


def predictions_of(
    targets: Sequence[int],
    probabilities: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Predictions:
    n, n_classes = probabilities.shape
    return Predictions(
        ids=tuple(f"pages/{index:05d}.png" for index in range(n)),
        classes=tuple(classes or (f"class {index}" for index in range(n_classes))),
        targets=np.asarray(targets, dtype=np.int64),
        probabilities=np.asarray(probabilities, dtype=np.float64),
        groups=tuple(groups or [""] * n),
        split="test",
        folds=np.zeros(n, dtype=np.int64),
    )


def noisy(n: int, n_classes: int = 2, *, seed: int = 0, signal: float = 1.0) -> Predictions:
    """Predictions that are often right, of classes drawn at random."""
    random = np.random.default_rng(seed)
    targets = random.integers(n_classes, size=n)
    logits = random.normal(size=(n, n_classes))
    logits[np.arange(n), targets] += signal
    exponentials = np.exp(logits)
    return predictions_of(targets, exponentials / exponentials.sum(axis=1, keepdims=True))


def binary(targets: Sequence[int], scores: Sequence[float]) -> Predictions:
    positive = np.asarray(scores, dtype=np.float64)
    return predictions_of(targets, np.stack([1 - positive, positive], axis=1))


def perfect(n: int) -> Predictions:
    targets = np.arange(n) % 2
    return predictions_of(targets, np.eye(2)[targets])
