"""What was sampled: independent units, and resamples of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ecgfeat.metrics.names import Basis
from ecgfeat.metrics.ranking import Floats, Integers
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import group_numbers

__all__ = ["Z_95", "Sample", "bootstrap_weights", "in_id_order", "weighted_sums"]

Z_95 = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""

CHUNK_WEIGHTS = 2**18
"""Row weights held at once (2 MiB), which stay in a processor's cache."""

ONE_THREAD_PRODUCTS = 2**18
"""Multiplications up to which OpenBLAS uses one thread."""


def in_id_order(predictions: Predictions) -> Predictions:
    """The same predictions, rows in the order of their ids."""
    order = sorted(range(len(predictions)), key=predictions.ids.__getitem__)
    return predictions.take(np.array(order, dtype=np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The rows scored, as far as their intervals depend on them.

    Attributes
    ----------
    units : ndarray of shape (n,), int64
        Number of each row's group, from 0; a row without a group is its own.
    n_units_by_basis : mapping of Basis to int
        Units among the rows that a score rests on.
    """

    units: Integers
    n_units_by_basis: Mapping[Basis, int]

    @classmethod
    def of(cls, predictions: Predictions) -> Sample:
        """The sample that these predictions score."""
        units = group_numbers(predictions.ids, predictions.groups)
        targets, predicted = predictions.targets, predictions.predicted
        masks: dict[Basis, Integers] = {
            "positives": targets == 1,
            "negatives": targets == 0,
            "answered positive": predicted == 1,
            "answered negative": predicted == 0,
        }
        by_class = [len(np.unique(units[targets == index])) for index in np.unique(targets)]
        counts: dict[Basis, int] = {"rows": int(units.max()) + 1, "rarest": min(by_class)}
        counts |= {basis: len(np.unique(units[mask])) for basis, mask in masks.items()}
        return cls(units=units, n_units_by_basis=counts)

    @property
    def n_units(self) -> int:
        """Independent units: groups, and rows without one."""
        return self.n_units_by_basis["rows"]

    @property
    def is_grouped(self) -> bool:
        """Whether any group has more than one row."""
        return self.n_units < len(self.units)

    @property
    def method(self) -> str:
        """What a bootstrap of these rows is called."""
        return "group bootstrap" if self.is_grouped else "bootstrap"


def bootstrap_weights(units: Integers, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """How often each row is in each of `n_bootstrap` resamples, drawn by whole units.

    Parameters
    ----------
    units : ndarray of shape (n,), int64
        Unit of each row, numbered from 0 without gaps.
    n_bootstrap, seed : int

    Yields
    ------
    ndarray of shape (b, n), float64
        The next b resamples, few enough that memory does not grow with `n_bootstrap`.
    """
    n_units = int(units.max()) + 1
    random = np.random.default_rng(seed)
    n_at_once = max(1, CHUNK_WEIGHTS // len(units))
    for start in range(0, n_bootstrap, n_at_once):
        counts = np.empty((min(n_at_once, n_bootstrap - start), n_units))
        for row in counts:
            chosen = random.integers(n_units, size=n_units)
            row[:] = np.bincount(chosen, minlength=n_units)
        yield counts.take(units, axis=1)


def weighted_sums(weights: Floats, summands: Floats) -> Floats:
    """``weights @ summands``, shape (b, n_sums), in blocks that BLAS computes on one thread.

    Spread over threads, products as thin as these cost four times the processor time, and on a
    busy machine each waits for the slowest.

    Parameters
    ----------
    weights : ndarray of shape (b, n), float64
    summands : ndarray of shape (n, n_sums), float64
    """
    sums = np.zeros((len(weights), summands.shape[1]))
    n_at_once = max(1, ONE_THREAD_PRODUCTS // sums.size)
    for start in range(0, len(summands), n_at_once):
        rows = slice(start, start + n_at_once)
        sums += weights[:, rows] @ summands[rows]
    return sums
