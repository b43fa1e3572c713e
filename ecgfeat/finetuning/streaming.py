"""The images in the order that training and testing take them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfeat.finetuning.distributed import ALONE, Ranks
from ecgfeat.images import Alter, Batch, Failure, stream
from ecgfeat.preprocessing import Preprocessing

__all__ = ["Batches", "Images", "Tick", "consecutive_batches", "shuffled_batches"]

Batches = list[list[int]]
"""Row numbers, batch by batch."""
Tick = Callable[[int], None]
"""Told how many images are behind; may raise `Interrupted`."""


def shuffled_batches(
    rows: NDArray[np.int64], batch_size: int, *, seed: int, fold: int, epoch: int
) -> Batches:
    """Every row once, in an order that seed, fold and epoch alone decide.

    A single row left over joins the batch before it: batch norm has no statistics of one image.
    """
    order = np.random.default_rng((seed, fold, epoch)).permutation(rows)
    batches = consecutive_batches(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def consecutive_batches(rows: NDArray[np.int64], batch_size: int) -> Batches:
    """The rows in the order given, cut into batches."""
    return [rows[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The images to be streamed, and a note of those that can't be decoded.

    Attributes
    ----------
    paths : sequence of Path, length n
    targets : ndarray of shape (n,), int64
    preprocessing : Preprocessing
    threads : int
        Threads that decode.
    failures : dict of int to Failure
        By row; filled as such images are met.
    ranks : Ranks
        Each process decodes its own share of every batch.
    """

    paths: Sequence[Path]
    targets: NDArray[np.int64]
    preprocessing: Preprocessing
    threads: int
    failures: dict[int, Failure]
    ranks: Ranks = ALONE

    def stream(
        self, batches: Batches, tick: Tick, *, alter: Alter | None = None
    ) -> Generator[Batch]:
        """Decode `batches` in order, calling `tick` before each is handed out."""
        n_behind = 0
        shares = (self.ranks.share(rows) for rows in batches)
        decoded = stream(self.paths, shares, self.preprocessing, threads=self.threads, alter=alter)
        with contextlib.closing(decoded):
            for rows, batch in zip(batches, decoded):
                self.failures.update((failure.row, failure) for failure in batch.failures)
                tick(n_behind)
                yield batch
                n_behind += len(rows)
