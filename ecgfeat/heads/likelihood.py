"""Logistic regression's likelihood over rows of features, standardised without a copy of them.

Rows are turned to float64 a few at a time, where they fit a core's own cache; mean and scale go
into the coefficients. A pass over the rows then takes about as long as reading the float32
features, less than reading a standardised float64 copy of them would.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Likelihood", "Point", "Rows"]

TASK_ROWS = 4096
"""Rows that a thread takes at a time. Their sums are added in the order of the rows, so that the
result doesn't hang on the number of threads."""
CHUNK_BYTES = 2**20
"""Features in float64 at a time: a core's own cache."""

Floats = NDArray[np.float64]
Chunks = Iterator[tuple[slice, Floats]]
Result = TypeVar("Result")


class Rows:
    """Some rows of the features, with their means and standard deviations.

    Parameters
    ----------
    X : ndarray of shape (n, width), float32
    rows : ndarray of int64
    pool : Executor
        Its threads share the rows.

    Attributes
    ----------
    mean, scale : ndarray of shape (width,), float64
        As in ``StandardScaler``; the scale of a constant feature is 1.
    """

    def __init__(self, X: NDArray[np.float32], rows: NDArray[np.int64], pool: Executor) -> None:
        self._X: NDArray[np.float32] | Floats = X
        self._rows, self._pool = rows, pool
        sums = self.each(lambda chunks: sum(features.sum(axis=0) for _, features in chunks))
        self.mean: Floats = sum(sums) / len(rows)
        squares = self.each(lambda chunks: sum(_squares(x - self.mean) for _, x in chunks))
        variance = sum(squares) / len(rows)
        # What rounding may leave of a constant feature's variance; the bound is scikit-learn's.
        noise = len(rows) * np.finfo(np.float64).eps
        is_constant = variance <= noise * variance + (noise * self.mean) ** 2
        self.scale: Floats = np.sqrt(np.where(is_constant, 1, variance))

    def __len__(self) -> int:
        return len(self._rows)

    def in_their_span(self) -> tuple[Rows, Floats]:
        """The same rows, standardised, in as many features as rows; and these features' directions.

        For fewer rows than features. A part of the coefficients that is orthogonal to every row
        changes no logit and only adds penalty, so the optimum has none: it is the optimum here,
        times the directions, which are orthonormal and of shape (width, n).
        """
        standardised = (self._X[self._rows] - self.mean) / self.scale
        directions, triangle = np.linalg.qr(standardised.T)
        span = copy.copy(self)
        span._X, span._rows = np.ascontiguousarray(triangle.T), np.arange(len(self))
        span.mean, span.scale = np.zeros(len(triangle)), np.ones(len(triangle))
        return span, directions

    def each(self, function: Callable[[Chunks], Result]) -> Iterator[Result]:
        """Call a function on the chunks of each thread's share; results in the order of the rows.

        A chunk is its place among the rows, and the features (m, width), which the function may
        change and the next chunk overwrites.
        """
        firsts = range(0, len(self), TASK_ROWS)
        return self._pool.map(lambda first: function(self._chunks(first)), firsts)

    def _chunks(self, first: int) -> Chunks:
        end = min(first + TASK_ROWS, len(self))
        n_rows = max(1, CHUNK_BYTES // (8 * self._X.shape[1]))
        chunk = np.empty((min(n_rows, end - first), self._X.shape[1]))
        for start in range(first, end, n_rows):
            where = slice(start, min(start + n_rows, end))
            features = chunk[: where.stop - where.start]
            features[:] = self._X.take(self._rows[where], axis=0)
            yield where, features


def _squares(features: Floats) -> Floats:
    total: Floats = np.einsum("ij,ij->j", features, features)
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """The mean cross-entropy at some coefficients.

    Attributes
    ----------
    value : float
    gradient : ndarray of shape (width + 1, m)
    curvature : float
        Mean second derivative by a row's logits.
    """

    value: float
    gradient: Floats
    curvature: float


class Likelihood:
    """The mean cross-entropy over some rows, as a function of the coefficients.

    Coefficients are an array of shape (width + 1, m), for standardised features; the last row is
    the intercept. m is 1 with two classes (the second's logit; the first's is 0), else their
    number.

    Parameters
    ----------
    rows : Rows
    targets : ndarray of shape (n,), int64
        Class of each of the rows; every class has some.
    balanced : bool
        Weigh each class by n / (n_classes * its rows), else all alike.
    """

    def __init__(self, rows: Rows, targets: NDArray[np.int64], *, balanced: bool) -> None:
        counts = np.bincount(targets)
        n_classes = len(counts)
        by_class = len(rows) / (n_classes * counts) if balanced else np.ones(n_classes)
        self._rows, self._targets, self._weights = rows, targets, by_class[targets]
        self.shape = len(rows.mean) + 1, 1 if n_classes == 2 else n_classes

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, coef: Floats) -> Point:
        """Value and derivatives, by one pass over the rows."""
        raw = self._for_raw_features(coef)

        def share(chunks: Chunks) -> tuple[float, float, Floats]:
            value, curvature, gradient = 0.0, 0.0, np.zeros_like(coef)
            for where, features in chunks:
                losses, errors, curvatures = self._terms(where, features @ raw[:-1] + raw[-1])
                value += losses.sum()
                curvature += curvatures.sum()
                gradient[:-1] += features.T @ errors
                gradient[-1] += errors.sum(axis=0)
            return value, curvature, gradient

        values, curvatures, gradients = zip(*self._rows.each(share))
        gradient = sum(gradients[1:], gradients[0]) / len(self)
        gradient[:-1] -= self._rows.mean[:, np.newaxis] * gradient[-1]
        gradient[:-1] /= self._rows.scale[:, np.newaxis]
        return Point(
            value=sum(values) / len(self),
            gradient=gradient,
            curvature=sum(curvatures) / len(self),
        )

    def second_derivative(self, coef: Floats) -> Floats:
        """Shape (width + 1, width + 1), to float32's precision; one for all classes."""
        raw = self._for_raw_features(coef)

        def share(chunks: Chunks) -> NDArray[np.float32]:
            parts = []
            for where, features in chunks:
                _, _, curvatures = self._terms(where, features @ raw[:-1] + raw[-1])
                features -= self._rows.mean
                features /= self._rows.scale
                part = np.ones((len(features), len(coef)), np.float32)
                part[:, :-1] = features
                part *= np.sqrt(curvatures, dtype=np.float32)[:, np.newaxis]
                parts.append(part)
            rows = np.concatenate(parts)
            return rows.T @ rows

        total = np.zeros((len(coef), len(coef)))
        for product in self._rows.each(share):
            total += product
        return total / len(self)

    def _for_raw_features(self, coef: Floats) -> Floats:
        """Coefficients that do for the features as they are."""
        slopes = coef[:-1] / self._rows.scale[:, np.newaxis]
        return np.vstack([slopes, coef[-1] - self._rows.mean @ slopes])

    def _terms(self, where: slice, logits: Floats) -> tuple[Floats, Floats, Floats]:
        """Some rows' losses (n,), and their first (n, m) and second (n,) derivatives by logit."""
        n_logits = logits.shape[1]
        if n_logits == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        # Seen from the target's logit, a loss keeps its digits however small it is.
        target = np.arange(len(logits)), self._targets[where]
        logits -= logits[target][:, np.newaxis]
        losses = np.logaddexp.reduce(logits, axis=1)
        errors = np.exp(logits - losses[:, np.newaxis])
        # For more than two classes the mean over the directions in which logits can differ.
        curvatures = np.einsum("ij,ij->i", errors[:, -n_logits:], 1 - errors[:, -n_logits:])
        curvatures /= max(1, n_logits - 1)
        errors[target] = np.expm1(-losses)
        weights = self._weights[where]
        return (
            weights * losses,
            weights[:, np.newaxis] * errors[:, -n_logits:],
            weights * curvatures,
        )
