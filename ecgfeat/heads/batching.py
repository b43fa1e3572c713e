"""Linear layers trained side by side: one matrix product for all of them at every step.

The parameters of some heads on the same features lie in one array of shape (n_classes, n_heads,
width + 1), the bias in its last column, so that the logits of a mini-batch, the gradient and Adam
are a few large operations instead of many small ones. The class comes first, since sums over the
classes are then sums of whole arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Block", "Chunk", "Floats", "Integers", "LinearSpec", "score"]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""PyTorch's defaults, and the study's (Kingma & Ba 2015)."""
CACHE_BYTES = 2**17
"""Parameters that Adam updates at a time, so that its ten passes over them, both moments and the
gradient find them in the processor's own cache."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """What may differ between linear heads that are trained in one pass.

    Attributes
    ----------
    lr : float
        Adam's learning rate, above 0.
    weight_decay : float
        Adam's L2 penalty on weight and bias, at least 0.
    label_smoothing : float
        Share of each target that is spread over all classes, in [0, 1).
    balanced : bool
        Weigh each class by n / (n_classes * its rows), as scikit-learn does.
    seed : int
        Of the initial parameters and of the rows' order in each epoch.
    """

    lr: float
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    balanced: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some mini-batches' rows, gathered: features (n, width) and classes (n,).

    The mini-batches have `batch_size` rows each; the last may have fewer.
    """

    features: Floats
    targets: Integers
    batch_size: int

    def batches(self) -> Iterator[slice]:
        """Where each mini-batch lies."""
        n_rows = len(self.targets)
        for start in range(0, n_rows, self.batch_size):
            yield slice(start, min(start + self.batch_size, n_rows))


class Block:
    """Some heads with the same start, on the same rows in the same order.

    Parameters
    ----------
    specs : sequence of LinearSpec
        One per head.
    weight : ndarray of shape (n_classes, width)
    bias : ndarray of shape (n_classes,)
        What every head starts from. Their dtype is the precision.
    counts : ndarray of shape (n_classes,), int64
        Training rows of each class, by which balanced heads weigh them.
    """

    def __init__(
        self,
        specs: Sequence[LinearSpec],
        weight: Floats,
        bias: Floats,
        counts: Integers,
    ) -> None:
        start = np.hstack([weight, bias[:, np.newaxis]])
        self._n_heads = len(specs)
        # Classes and heads are one axis for whatever treats them alike.
        self._parameters = np.repeat(start, self._n_heads, axis=0)
        self._gradient = np.empty_like(self._parameters)
        self._adam = _Adam(specs, self._parameters, self._gradient)
        self._criterion = _Criterion(specs, counts, weight.dtype)

    def train(self, chunk: Chunk) -> Scores:
        """Take one step per mini-batch; scores the logits that each batch had before its step."""
        # A head that diverges goes on in NaN, alone: none of its numbers meets another head's.
        with np.errstate(all="ignore"):
            flat, logits = self._new_logits(len(chunk.targets))
            wanted, mass = self._criterion.of(chunk)
            for batch in chunk.batches():
                x, z = chunk.features[batch], logits[..., batch]
                self._predict(x, out=flat[:, batch])
                # The gradient of the loss by the logits is mass * softmax - wanted.
                error = z - z.max(axis=0)
                np.exp(error, out=error)
                error *= mass[:, batch] / error.sum(axis=0)
                error -= wanted[..., batch]
                self._set_gradient(x, error.reshape(len(flat), -1))
                self._adam.step()
        return score(logits, chunk.targets)

    def predict(self, chunk: Chunk) -> Floats:
        """Logits of shape (n_classes, n_heads, n)."""
        flat, logits = self._new_logits(len(chunk.targets))
        with np.errstate(all="ignore"):
            self._predict(chunk.features, out=flat)
        return logits

    def tensors(self) -> list[dict[str, Floats]]:
        """Copies of each head's ``weight`` (n_classes, width) and ``bias`` (n_classes,)."""
        heads = (self._parameters[index :: self._n_heads] for index in range(self._n_heads))
        return [{"weight": head[:, :-1].copy(), "bias": head[:, -1].copy()} for head in heads]

    def _new_logits(self, n_rows: int) -> tuple[Floats, Floats]:
        """The same array twice: (n_classes * n_heads, n_rows) and (n_classes, n_heads, n_rows)."""
        flat = np.empty((len(self._parameters), n_rows), self._parameters.dtype)
        return flat, flat.reshape(-1, self._n_heads, n_rows)

    def _predict(self, x: Floats, *, out: Floats) -> None:
        np.matmul(self._parameters[:, :-1], x.T, out=out)
        out += self._parameters[:, -1:]

    def _set_gradient(self, x: Floats, error: Floats) -> None:
        np.matmul(error, x, out=self._gradient[:, :-1])
        error.sum(axis=1, out=self._gradient[:, -1])


class _Criterion:
    """``nn.CrossEntropyLoss(weight, label_smoothing)`` of each head, by its derivative.

    With weights w, smoothing s and k classes, a row of class t asks for the masses
    q_c = w_c (s / k + (1 - s) [c = t]), and the loss of a mini-batch is the sum over its rows of
    -q · log softmax, divided by the sum of their w_t. So the derivative by a row's logits is
    (sum(q) * softmax - q) / sum(w_t).
    """

    def __init__(self, specs: Sequence[LinearSpec], counts: Integers, dtype: np.dtype[Any]) -> None:
        kinds = list(dict.fromkeys((spec.balanced, spec.label_smoothing) for spec in specs))
        self._kind_of_head = [kinds.index((s.balanced, s.label_smoothing)) for s in specs]
        n_classes = len(counts)
        # A class without rows weighs nothing.
        balanced_weights = (counts > 0) * counts.sum() / (n_classes * np.maximum(counts, 1))
        self._weights = np.ones((len(kinds), n_classes))
        self._wanted = np.empty((n_classes, len(kinds), n_classes))  # class, kind, target
        for number, (balanced, smoothing) in enumerate(kinds):
            if balanced:
                self._weights[number] = balanced_weights
            smoothed = smoothing / n_classes + (1 - smoothing) * np.eye(n_classes)
            self._wanted[:, number] = self._weights[number][:, np.newaxis] * smoothed
        self._dtype = dtype

    def of(self, chunk: Chunk) -> tuple[Floats, Floats]:
        """The masses (n_classes, n_heads, n) and their sums (n_heads, n), divided as above.

        Where all heads want the same, one stands for all of them.
        """
        starts = [batch.start for batch in chunk.batches()]
        sums = np.add.reduceat(self._weights[:, chunk.targets], starts, axis=1)
        share = 1 / np.repeat(sums, chunk.batch_size, axis=1)[:, : len(chunk.targets)]
        wanted = (self._wanted[..., chunk.targets] * share).astype(self._dtype)
        mass = (self._wanted.sum(axis=0)[:, chunk.targets] * share).astype(self._dtype)
        if len(mass) == 1:
            return wanted, mass
        return wanted[:, self._kind_of_head], mass[self._kind_of_head]


class _Adam:
    """``torch.optim.Adam`` on the rows of one array, each with its own rate and penalty.

    It keeps both moments divided by 1 - beta, which saves a pass over each:
    m / (1 - b1) and v / (1 - b2) decay and take in g and g² as they are.
    """

    def __init__(self, specs: Sequence[LinearSpec], parameters: Floats, gradient: Floats) -> None:
        n_classes = len(parameters) // len(specs)
        rate = _column([spec.lr for spec in specs], n_classes, parameters.dtype)
        decay = _column([spec.weight_decay for spec in specs], n_classes, parameters.dtype)
        moments = np.zeros_like(parameters), np.zeros_like(parameters)
        arrays = (parameters, gradient, *moments, rate, decay)
        n_parts = math.ceil(parameters.nbytes / CACHE_BYTES)
        self._parts = list(zip(*(np.array_split(array, n_parts) for array in arrays)))
        self._penalises = bool(decay.any())
        self._n_steps = 0

    def step(self) -> None:
        """Update the parameters by the gradient, whose array is used up."""
        self._n_steps += 1
        bias = [1 - beta**self._n_steps for beta in BETAS]
        root = math.sqrt(bias[1] / (1 - BETAS[1]))
        size = root * (1 - BETAS[0]) / bias[0]
        for parameters, gradient, mean, mean_square, rate, decay in self._parts:
            if self._penalises:
                gradient += decay * parameters
            mean *= BETAS[0]
            mean += gradient
            gradient *= gradient
            mean_square *= BETAS[1]
            mean_square += gradient
            np.sqrt(mean_square, out=gradient)
            gradient += EPSILON * root
            np.divide(mean, gradient, out=gradient)
            gradient *= size * rate
            parameters -= gradient


def _column(values: Sequence[float], n_classes: int, dtype: np.dtype) -> Floats:
    return np.tile(np.asarray(values, dtype), n_classes)[:, np.newaxis]


def score(logits: Floats, targets: Integers) -> Scores:
    """Cross-entropy and right answers of each head, summed over the rows: shape (2, n_heads).

    Parameters
    ----------
    logits : ndarray of shape (n_classes, n_heads, n)
    targets : ndarray of shape (n,), int64
    """
    with np.errstate(all="ignore"):
        largest = logits.max(axis=0)
        loss = np.log(np.exp(logits - largest).sum(axis=0))
        loss += largest
        loss -= np.take_along_axis(logits, targets[np.newaxis, np.newaxis], axis=0)[0]
        is_right = _winners(logits) == targets
    return np.stack([loss.sum(axis=1, dtype=np.float64), is_right.sum(axis=1)])


def _winners(logits: Floats) -> Integers:
    """``logits.argmax(axis=0)``, which numpy computes one short column after another."""
    best, winner = logits[0].copy(), np.zeros(logits.shape[1:], np.int64)
    for index in range(1, len(logits)):
        winner[logits[index] > best] = index
        np.maximum(best, logits[index], out=best)
    return winner
