"""The study's head: one linear layer, trained in mini-batches by Adam on the cross-entropy.

It is ``nn.Linear`` with ``torch.optim.Adam``, to within rounding, in numpy. With 64 rows a step a
framework spends its time around the arithmetic rather than on it; torch would also take longer to
import than this to train. Hundreds of heads on the same rows are trained in one pass, each for a
small part of what it takes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ecgfeat.config import HeadSettings
from ecgfeat.heads.head import Fitted, Head, Scored, Step, Tensors
from ecgfeat.predictions import softmax
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord, moments
from ecgfeat.runtime import n_cpus

__all__ = [
    "HeadEpoch",
    "LinearHead",
    "LinearSpec",
    "fit_linear_heads",
]


Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Scores = NDArray[np.float64]
Result = TypeVar("Result")


class LinearHead(Head):
    """The study's linear layer."""

    kind = "linear"
    options = ("epochs", "lr", "batch_size", "weight_decay", "label_smoothing", "standardize")
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "weight_decay": (0.0, 1e-3, 1e-2, 1e-1),
        "label_smoothing": (0.0, 0.1),
        "class_weights": ("none", "balanced"),
    }
    in_epochs = True
    calibration = "temperature"
    precision = "fp32"

    def fit(
        self,
        X: Floats,
        y: Integers,
        part: Partition,
        settings: HeadSettings,
        *,
        n_classes: int,
        seed: int,
        on_step: Step,
    ) -> Fitted:
        """Train one; see `Head.fit`."""
        history: list[EpochRecord] = []

        def on_epoch(_: int, heads: list[HeadEpoch]) -> None:
            history.append(heads[0].record)
            on_step(heads[0].record)

        (tensors,) = _fit(X, y, part, [settings], n_classes, [seed], on_epoch)
        return Fitted(tensors=tensors, history=history)

    def try_many(
        self,
        X: Floats,
        y: Integers,
        part: Partition,
        many: Sequence[HeadSettings],
        *,
        n_classes: int,
        seeds: Sequence[int],
        on_scored: Scored,
    ) -> None:
        """Train many in one pass over the features; see `Head.try_many`."""

        def on_epoch(epoch: int, heads: list[HeadEpoch]) -> None:
            logits = np.array([head.val_logits for head in heads], np.float64)
            # A head that diverged gives NaN, which stands for no score.
            with np.errstate(invalid="ignore", over="ignore"):
                probabilities = softmax(logits.reshape(-1, n_classes)).reshape(logits.shape)
            seeds_of, numbers = zip(*(divmod(head.spec_index, len(many)) for head in heads))
            on_scored(numbers, seeds_of, epoch, probabilities)

        _fit(X, y, part, many, n_classes, seeds, on_epoch)

    def logits(self, tensors: Tensors, X: Floats) -> Scores:
        """Logits; see `Head.logits`."""
        return (X @ tensors["weight"].T + tensors["bias"]).astype(np.float64)

    def linear_form(self, tensors: Tensors) -> tuple[Scores, Scores]:
        """Its own arrays; see `Head.linear_form`."""
        return tensors["weight"].astype(np.float64), tensors["bias"].astype(np.float64)

    def shapes(self, n_classes: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes of its arrays; see `Head.shapes`."""
        return {"weight": (n_classes, width), "bias": (n_classes,)}


def _fit(
    X: Floats,
    y: Integers,
    part: Partition,
    many: Sequence[HeadSettings],
    n_classes: int,
    seeds: Sequence[int],
    on_epoch: Callable[[int, list[HeadEpoch]], None],
) -> list[dict[str, Floats]]:
    """Train the head of each settings with each seed; all have the same epochs and batches."""
    specs = [
        LinearSpec(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            label_smoothing=settings.label_smoothing,
            balanced=settings.is_balanced,
            seed=seed,
        )
        for seed in seeds
        for settings in many
    ]
    return fit_linear_heads(
        X,
        y,
        part,
        n_classes=n_classes,
        specs=specs,
        epochs=many[0].epochs,
        batch_size=many[0].batch_size,
        standardize=many[0].standardize,
        on_epoch=on_epoch,
    )


CHUNK_BYTES = 2**21
"""Features gathered at a time, about: few gathers, no second copy of the features, and what was
gathered is still in the processor's cache when it is used."""
BLOCK_HEADS = (16, 64)
"""Fewest and most heads that one thread trains at a time. Fewer leave the threads waiting for each
other's Python, more don't fit the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadEpoch:
    """One head after one epoch.

    Attributes
    ----------
    spec_index : int
        Which of the specs.
    record : EpochRecord
        Plain cross-entropies, whatever the head was trained to lessen, so that any two heads can
        be compared; not finite where it diverged.
    tensors : dict of str to ndarray
        The head as it is now: its own arrays, as `fit_linear_heads` gives them at the end.
    val_logits : ndarray of shape (n_validation, n_classes), or None
        Of the rows `part.validation`; None where there are none.
    """

    spec_index: int
    record: EpochRecord
    tensors: dict[str, Floats]
    val_logits: Floats | None


def fit_linear_heads(
    X: Floats,
    y: Integers,
    part: Partition,
    *,
    n_classes: int,
    specs: Sequence[LinearSpec],
    epochs: int,
    batch_size: int,
    standardize: bool = False,
    on_epoch: Callable[[int, list[HeadEpoch]], None],
) -> list[dict[str, Floats]]:
    """Train linear layers on the rows `part.train`, leaving global random states alone.

    Heads of the same seed start alike, take the rows in the same order, and are trained in one
    pass; each gives what it would alone, to within rounding, even beside one that diverges.
    Seeds are taken one after another, in the order of `specs`.

    Parameters
    ----------
    X : ndarray of shape (n, width), float32
        All rows' features, as they are.
    y : ndarray of shape (n,), int64
        Index of each row's class.
    part : Partition
    n_classes : int
    specs : sequence of LinearSpec
        One per head.
    epochs, batch_size : int
        Passes over the rows, and rows per step; the last step of an epoch may have fewer.
    standardize : bool
        Train on features less their mean over the training rows, divided by their standard
        deviation, so that a step moves each alike. The arrays given back are for the features as
        they are.
    on_epoch : callable
        Told the epoch, from 1, and the heads of one seed, in the order of `specs`; what it raises
        ends the training.

    Returns
    -------
    list of dict of str to ndarray
        For each spec ``weight`` of shape (n_classes, width) and ``bias`` of shape (n_classes,),
        float32, after the last epoch. A head that diverged holds NaN, without a warning.

    Examples
    --------
    >>> specs = [LinearSpec(lr=lr) for lr in (1e-4, 1e-3, 1e-2)]
    >>> random = np.random.default_rng(0)
    >>> X, y = random.normal(size=(80, 3)).astype("f4"), np.arange(80) % 2
    >>> none = np.empty(0, int)
    >>> part = Partition(fold=0, train=np.arange(80), validation=none, test=none, split="test")
    >>> heads = fit_linear_heads(
    ...     X, y, part, n_classes=2, specs=specs, epochs=2, batch_size=16,
    ...     on_epoch=lambda epoch, heads: None,
    ... )
    >>> [head["weight"].shape for head in heads]
    [(2, 3), (2, 3), (2, 3)]
    """
    by_seed: dict[int, list[int]] = {}
    for index, spec in enumerate(specs):
        by_seed.setdefault(spec.seed, []).append(index)
    fitted: dict[int, dict[str, Floats]] = {}
    # The threads here are busier than those that BLAS would start within every small product.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_cpus()) as pool:
        scaling = _Scaling(*moments(X, part.train)) if standardize else None
        rows = _Rows(X, y, batch_size, pool, scaling)
        for seed, indices in by_seed.items():
            group = _Group([specs[index] for index in indices], seed, rows, part, n_classes)
            for epoch in range(1, epochs + 1):
                heads = group.train(epoch, indices)
                on_epoch(epoch, heads)
            fitted.update((head.spec_index, head.tensors) for head in heads)
    return [fitted[index] for index in range(len(specs))]


@dataclass(frozen=True, eq=False)
class _Rows:
    """The features, gathered while what was gathered before is used."""

    X: Floats
    y: Integers
    batch_size: int
    pool: ThreadPoolExecutor
    scaling: _Scaling | None

    def chunks(self, rows: Integers) -> Iterator[_Chunk]:
        """Whole mini-batches of `rows`, in their order; none where there are no rows."""
        batch_bytes = self.batch_size * self.X.shape[1] * self.X.itemsize
        n_rows = self.batch_size * max(1, CHUNK_BYTES // batch_bytes)
        ahead: Future[_Chunk] | None = None
        for first in range(0, len(rows), n_rows):
            following = self.pool.submit(self._gather, rows[first : first + n_rows])
            if ahead:
                yield ahead.result()
            ahead = following
        if ahead:
            yield ahead.result()

    def _gather(self, rows: Integers) -> _Chunk:
        features, targets = self.X.take(rows, axis=0), self.y[rows]
        if self.scaling:
            self.scaling.apply(features)
        return _Chunk(features=features, targets=targets, batch_size=self.batch_size)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """Means and standard deviations by which features are standardised, shape (width,)."""

    mean: Scores
    scale: Scores

    def apply(self, features: Floats) -> None:
        """Standardise in place."""
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows diverges, and says so
            features -= self.mean.astype(features.dtype)
            features *= (1 / self.scale).astype(features.dtype)

    def undo(self, tensors: dict[str, Floats]) -> dict[str, Floats]:
        """The head that says of features as they are what this one says of standardised ones."""
        dtype = tensors["weight"].dtype
        with np.errstate(all="ignore"):  # one that diverged holds NaN
            weight = tensors["weight"] / self.scale
            bias = tensors["bias"] - weight @ self.mean
        return {"weight": weight.astype(dtype), "bias": bias.astype(dtype)}


class _Group:
    """The heads of one seed, in blocks."""

    def __init__(
        self,
        specs: Sequence[LinearSpec],
        seed: int,
        rows: _Rows,
        part: Partition,
        n_classes: int,
    ) -> None:
        self._rows, self._part = rows, part
        self._generator = np.random.default_rng(seed)
        # nn.Linear's own initialisation: uniform within 1 / sqrt(width), weight and bias alike.
        width = rows.X.shape[1]
        start = self._generator.uniform(-(width**-0.5), width**-0.5, n_classes * (width + 1))
        start = start.astype(rows.X.dtype)
        weight, bias = start[:-n_classes].reshape(n_classes, width), start[-n_classes:]
        counts = np.bincount(rows.y[part.train], minlength=n_classes)
        n_heads = min(max(math.ceil(len(specs) / n_cpus()), BLOCK_HEADS[0]), BLOCK_HEADS[1])
        self._blocks = [
            _Block(specs[first : first + n_heads], weight, bias, counts)
            for first in range(0, len(specs), n_heads)
        ]

    def train(self, epoch: int, spec_indices: Sequence[int]) -> list[HeadEpoch]:
        """Train one epoch and score the validation rows; `spec_indices` name the heads."""
        order = self._generator.permutation(self._part.train)
        trained = np.zeros((2, len(spec_indices)))
        for sums in self._each(_Block.train, order):
            trained += np.hstack(sums)
        trained /= len(order)
        tested, logits = self._test()
        tensors = [head for block in self._blocks for head in block.tensors()]
        if self._rows.scaling:
            tensors = [self._rows.scaling.undo(head) for head in tensors]
        return [
            HeadEpoch(
                spec_index=spec_index,
                record=EpochRecord(
                    fold=self._part.fold,
                    epoch=epoch,
                    loss=float(trained[0, head]),
                    accuracy=float(trained[1, head]),
                    val_loss=None if tested is None else float(tested[0, head]),
                    val_accuracy=None if tested is None else float(tested[1, head]),
                ),
                tensors=tensors[head],
                val_logits=None if logits is None else logits[:, head].T.copy(),
            )
            for head, spec_index in enumerate(spec_indices)
        ]

    def _test(self) -> tuple[Scores, Floats] | tuple[None, None]:
        """Means over the validation rows, and their logits (n_classes, n_heads, n_validation)."""
        rows = self._part.validation
        if not len(rows):
            return None, None
        chunks = self._each(_Block.predict, rows)
        logits = np.concatenate([np.concatenate(blocks, axis=1) for blocks in chunks], axis=2)
        return _score(logits, self._rows.y[rows]) / len(rows), logits

    def _each(
        self, step: Callable[[_Block, _Chunk], Result], rows: Integers
    ) -> Iterator[list[Result]]:
        """What each block makes of each chunk of `rows`."""
        for chunk in self._rows.chunks(rows):
            yield list(self._rows.pool.map(step, self._blocks, repeat(chunk)))


# Linear layers trained side by side: one matrix product for all of them at every step.
# The parameters of some heads on the same features lie in one array of shape (n_classes, n_heads,
# width + 1), the bias in its last column, so that the logits of a mini-batch, the gradient and Adam
# are a few large operations instead of many small ones. The class comes first, since sums over the
# classes are then sums of whole arrays.

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""PyTorch's defaults, and the study's (Kingma & Ba 2015)."""


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
class _Chunk:
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


class _Block:
    """Some heads with the same start, on the same rows in the same order.

    Every head starts from `weight` (n_classes, width) and `bias` (n_classes,), whose dtype is the
    precision. `counts` are the training rows of each class, by which balanced heads weigh them.
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

    def train(self, chunk: _Chunk) -> Scores:
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
        return _score(logits, chunk.targets)

    def predict(self, chunk: _Chunk) -> Floats:
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

    def of(self, chunk: _Chunk) -> tuple[Floats, Floats]:
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
        self._parameters, self._gradient = parameters, gradient
        self._mean, self._mean_square = np.zeros_like(parameters), np.zeros_like(parameters)
        self._rate = _column([spec.lr for spec in specs], n_classes, parameters.dtype)
        self._decay = _column([spec.weight_decay for spec in specs], n_classes, parameters.dtype)
        self._penalises = bool(self._decay.any())
        self._n_steps = 0

    def step(self) -> None:
        """Update the parameters by the gradient, whose array is used up."""
        self._n_steps += 1
        bias = [1 - beta**self._n_steps for beta in BETAS]
        root = math.sqrt(bias[1] / (1 - BETAS[1]))
        size = root * (1 - BETAS[0]) / bias[0]
        gradient, mean, mean_square = self._gradient, self._mean, self._mean_square
        if self._penalises:
            gradient += self._decay * self._parameters
        mean *= BETAS[0]
        mean += gradient
        gradient *= gradient
        mean_square *= BETAS[1]
        mean_square += gradient
        np.sqrt(mean_square, out=gradient)
        gradient += EPSILON * root
        np.divide(mean, gradient, out=gradient)
        gradient *= size * self._rate
        self._parameters -= gradient


def _column(values: Sequence[float], n_classes: int, dtype: np.dtype) -> Floats:
    return np.tile(np.asarray(values, dtype), n_classes)[:, np.newaxis]


def _score(logits: Floats, targets: Integers) -> Scores:
    """Cross-entropy and right answers of each head, summed over the rows: shape (2, n_heads).

    `logits` are of shape (n_classes, n_heads, n).
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
