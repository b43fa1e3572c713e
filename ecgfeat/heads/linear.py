"""The study's head: one linear layer, trained in mini-batches by Adam on the cross-entropy.

It is ``nn.Linear`` with ``torch.optim.Adam``, to within rounding, in numpy. With 64 rows a step a
framework spends its time around the arithmetic rather than on it, and on a busy machine its
threads mostly wait for each other; torch would also take longer to import than this to train.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import HeadSettings
from ecgfeat.heads.applying import softmax
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord

__all__ = ["fit_linear"]

CHUNK_ROWS = 4096
"""Rows gathered at a time, about: few gathers, and no second copy of the features."""
BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""PyTorch's defaults, and the study's (Kingma & Ba 2015)."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


# A training that diverges ends in NaN, which `Predictions` refuses in words.
@np.errstate(over="ignore", invalid="ignore")
def fit_linear(
    X: Floats,
    y: Integers,
    part: Partition,
    *,
    n_classes: int,
    head: HeadSettings,
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
) -> dict[str, Floats]:
    """Train a linear layer on the rows `part.train`, leaving global random states alone.

    Parameters
    ----------
    X : ndarray of shape (n, width), float32
        All rows' features, as they are.
    y : ndarray of shape (n,), int64
        Index of each row's class.
    part : Partition
    n_classes : int
    head : HeadSettings
        `epochs`, `lr`, `batch_size` and `weight_decay` are used.
    seed : int
        Of the initial parameters and of the rows' order in each epoch.
    on_epoch : callable
        Told each epoch's record; what it raises ends the training.

    Returns
    -------
    dict of str to ndarray
        ``weight`` of shape (n_classes, width) and ``bias`` of shape (n_classes,), float32.
    """
    generator = np.random.default_rng(seed)
    layer = _Layer(X.shape[1], n_classes, generator)
    adam = _Adam(layer, head)
    for epoch in range(1, head.epochs + 1):
        order = generator.permutation(part.train)
        logits = _train_epoch(layer, adam, X, y, order, head.batch_size)
        loss, accuracy = _score(logits, y[order])
        val_loss, val_accuracy = None, None
        if len(part.validation):
            val_loss, val_accuracy = _score(layer.logits(X, part.validation), y[part.validation])
        on_epoch(
            EpochRecord(
                fold=part.fold,
                epoch=epoch,
                loss=loss,
                accuracy=accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
            )
        )
    return {"weight": layer.weight, "bias": layer.bias}


def _train_epoch(
    layer: _Layer, adam: _Adam, X: Floats, y: Integers, order: Integers, batch_size: int
) -> Floats:
    """One pass over the rows in `order`; returns the logits each batch had before its step."""
    logits = np.empty((len(order), len(layer.bias)), np.float32)
    one_hot = np.eye(len(layer.bias), dtype=np.float32)
    chunk_rows = batch_size * math.ceil(CHUNK_ROWS / batch_size)
    for first in range(0, len(order), chunk_rows):
        rows = order[first : first + chunk_rows]
        features, wanted = X[rows], one_hot[y[rows]]
        for start in range(0, len(rows), batch_size):
            batch = slice(start, start + batch_size)
            x = features[batch]
            z = logits[first + start : first + start + len(x)]
            np.matmul(x, layer.weight.T, out=z)
            z += layer.bias
            # The mean cross-entropy's gradient by the logits is (softmax - one-hot) / batch.
            error = softmax(z)
            error -= wanted[batch]
            error /= len(x)
            adam.step(layer.gradient(x, error))
    return logits


def _score(logits: Floats, targets: Integers) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=1))
    accuracy = (logits.argmax(axis=1) == targets).mean()
    return -float(log_likelihood.mean()), float(accuracy)


class _Layer:
    """A linear layer whose weight and bias are views of one vector, as are their gradients.

    One step of Adam so updates both.
    """

    def __init__(self, width: int, n_classes: int, generator: np.random.Generator) -> None:
        # nn.Linear's own initialisation: uniform within 1 / sqrt(width), weight and bias alike.
        bound = width**-0.5
        self.parameters = generator.uniform(-bound, bound, n_classes * (width + 1)).astype("f4")
        self.weight, self.bias = _views(self.parameters, n_classes)
        self._gradient = np.empty_like(self.parameters)
        self._weight_gradient, self._bias_gradient = _views(self._gradient, n_classes)

    def gradient(self, x: Floats, error: Floats) -> Floats:
        """The loss's gradient by all parameters, in a vector that the next call overwrites."""
        np.matmul(error.T, x, out=self._weight_gradient)
        error.sum(axis=0, out=self._bias_gradient)
        return self._gradient

    def logits(self, X: Floats, rows: Integers) -> Floats:
        """Logits of some rows, shape (n_rows, n_classes)."""
        starts = range(0, len(rows), CHUNK_ROWS)
        chunks = (X[rows[start : start + CHUNK_ROWS]] for start in starts)
        return np.concatenate([chunk @ self.weight.T + self.bias for chunk in chunks])


def _views(vector: Floats, n_classes: int) -> tuple[Floats, Floats]:
    return vector[:-n_classes].reshape(n_classes, -1), vector[-n_classes:]


class _Adam:
    """``torch.optim.Adam`` on one vector, operation by operation."""

    def __init__(self, layer: _Layer, head: HeadSettings) -> None:
        self._parameters = layer.parameters
        self._lr, self._weight_decay = head.lr, head.weight_decay
        self._mean = np.zeros_like(layer.parameters)
        self._mean_square = np.zeros_like(layer.parameters)
        self._n_steps = 0

    def step(self, gradient: Floats) -> None:
        """Update the parameters; the penalty is added to `gradient` in place."""
        self._n_steps += 1
        if self._weight_decay:
            gradient += self._weight_decay * self._parameters
        self._mean *= BETAS[0]
        self._mean += (1 - BETAS[0]) * gradient
        self._mean_square *= BETAS[1]
        self._mean_square += (1 - BETAS[1]) * gradient * gradient
        unbiased_root = np.sqrt(self._mean_square) / math.sqrt(1 - BETAS[1] ** self._n_steps)
        step_size = self._lr / (1 - BETAS[0] ** self._n_steps)
        self._parameters -= step_size * self._mean / (unbiased_root + EPSILON)
