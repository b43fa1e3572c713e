"""The study's head: one linear layer, trained in mini-batches by Adam on the cross-entropy.

It is ``nn.Linear`` with ``torch.optim.Adam``, to within rounding, in numpy. With 64 rows a step a
framework spends its time around the arithmetic rather than on it; torch would also take longer to
import than this to train. Hundreds of heads on the same rows are trained in one pass, each for a
small part of what it takes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from ecgfeat.heads.batching import Block, Chunk, Floats, Integers, LinearSpec, Scores, score
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord
from ecgfeat.runtime import n_cpus

__all__ = ["HeadEpoch", "LinearSpec", "fit_linear_heads"]

Result = TypeVar("Result")

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
        rows = _Rows(X, y, batch_size, pool)
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

    def chunks(self, rows: Integers) -> Iterator[Chunk]:
        """Whole mini-batches of `rows`, in their order; none where there are no rows."""
        batch_bytes = self.batch_size * self.X.shape[1] * self.X.itemsize
        n_rows = self.batch_size * max(1, CHUNK_BYTES // batch_bytes)
        ahead: Future[Chunk] | None = None
        for first in range(0, len(rows), n_rows):
            following = self.pool.submit(self._gather, rows[first : first + n_rows])
            if ahead:
                yield ahead.result()
            ahead = following
        if ahead:
            yield ahead.result()

    def _gather(self, rows: Integers) -> Chunk:
        features, targets = self.X.take(rows, axis=0), self.y[rows]
        return Chunk(features=features, targets=targets, batch_size=self.batch_size)


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
            Block(specs[first : first + n_heads], weight, bias, counts)
            for first in range(0, len(specs), n_heads)
        ]

    def train(self, epoch: int, spec_indices: Sequence[int]) -> list[HeadEpoch]:
        """Train one epoch and score the validation rows; `spec_indices` name the heads."""
        order = self._generator.permutation(self._part.train)
        trained = np.zeros((2, len(spec_indices)))
        for sums in self._each(Block.train, order):
            trained += np.hstack(sums)
        trained /= len(order)
        tested, logits = self._test()
        tensors = [head for block in self._blocks for head in block.tensors()]
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
        chunks = self._each(Block.predict, rows)
        logits = np.concatenate([np.concatenate(blocks, axis=1) for blocks in chunks], axis=2)
        return score(logits, self._rows.y[rows]) / len(rows), logits

    def _each(
        self, step: Callable[[Block, Chunk], Result], rows: Integers
    ) -> Iterator[list[Result]]:
        """What each block makes of each chunk of `rows`."""
        for chunk in self._rows.chunks(rows):
            yield list(self._rows.pool.map(step, self._blocks, repeat(chunk)))
