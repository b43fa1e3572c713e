"""Logistic regression on standardised features: scikit-learn's, along a path of penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from ecgfeat.heads.head import Tensors, head_fits
from ecgfeat.runtime import n_cpus

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = [
    "Descent",
    "Floats",
    "Likelihood",
    "LogisticFit",
    "Optimum",
    "Point",
    "Rows",
    "as_pipeline",
    "fit_logistic",
    "fit_logistic_path",
]


SPAN_SHARE = 0.5
"""Up to so many rows per feature the fit is made in the span of the rows: the matrices are smaller
then, and finding the span takes less time than they save. At 0.6 the two are about even."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LogisticFit:
    """A fitted logistic regression.

    Attributes
    ----------
    C : float
    tensors : dict of str to ndarray, float64
        ``mean`` and ``scale`` of shape (width,), as in ``StandardScaler``; ``coef`` of shape
        (m, width) and ``intercept`` of shape (m,), as in ``LogisticRegression``, where m is 1
        with two classes, else their number.
    n_iterations : int
    converged : bool
    """

    C: float
    tensors: dict[str, NDArray[np.float64]]
    n_iterations: int
    converged: bool


def fit_logistic(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    C: float,
    balanced: bool = False,
) -> LogisticFit:
    """Fit one logistic regression; see `fit_logistic_path`."""
    (fit,) = fit_logistic_path(X, y, rows, Cs=[C], balanced=balanced)
    return fit


def fit_logistic_path(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    Cs: Sequence[float],
    balanced: bool = False,
    on_fit: Callable[[int, LogisticFit], None] = lambda index, fit: None,
) -> list[LogisticFit]:
    """Fit logistic regressions to `rows`, standardised by themselves, with each of several C.

    The optimum is that of scikit-learn's ``LogisticRegression`` after ``StandardScaler``. The
    rows are shared out among all cores; besides the features, memory is needed for a few
    matrices of shape (width, width) only.

    Parameters
    ----------
    X : ndarray of shape (n, width), float32
        All rows' features; one that is constant over `rows` is only centred.
    y : ndarray of shape (n,), int64
        Index of each row's class; every class has some of `rows`.
    rows : ndarray of int64
        The training rows.
    Cs : sequence of float
        Inverse strengths of the L2 penalty. Fitted in ascending order, each from the one before.
    balanced : bool
        Weigh each class by n / (n_classes * its rows), as ``class_weight="balanced"``.
    on_fit : callable, optional
        Told the index into `Cs` and the fit after each; what it raises ends the path.

    Returns
    -------
    list of LogisticFit
        In the order of `Cs`.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> X, y = random.normal(size=(80, 3)).astype("f4"), np.arange(80) % 2
    >>> fits = fit_logistic_path(X, y, np.arange(80), Cs=[0.01, 1.0])
    >>> [(fit.C, fit.converged) for fit in fits]
    [(0.01, True), (1.0, True)]
    """
    # It brings scipy, which linear heads do without; before its BLAS is limited with numpy's.
    from ecgfeat.heads.logistic import Descent, Likelihood, Rows

    fits: dict[int, LogisticFit] = {}
    # The threads here are busier than those that BLAS would start within every small product.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_cpus()) as pool:
        standardised = Rows(X, rows, pool)
        fitted, directions = standardised, None
        if len(rows) <= SPAN_SHARE * X.shape[1]:
            fitted, directions = standardised.in_their_span()
        descent = Descent(Likelihood(fitted, y[rows], balanced=balanced))
        for index in np.argsort(Cs, kind="stable").tolist():
            optimum = descent.to_optimum(Cs[index])
            fits[index] = _as_fit(Cs[index], standardised, optimum, directions)
            on_fit(index, fits[index])
    return [fits[index] for index in range(len(Cs))]


def _as_fit(C: float, rows: Rows, optimum: Optimum, directions: Floats | None) -> LogisticFit:
    coef = optimum.coef[:-1]
    if directions is not None:
        coef = directions @ coef
    return LogisticFit(
        C=C,
        tensors={
            "mean": rows.mean,
            "scale": rows.scale,
            "coef": np.ascontiguousarray(coef.T),
            "intercept": optimum.coef[-1],
        },
        n_iterations=optimum.n_iterations,
        converged=optimum.converged,
    )


def as_pipeline(tensors: Tensors, classes: Sequence[str]) -> Pipeline:
    """A fitted logistic regression for scikit-learn and the tools around it.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As `fit_logistic` gives them and a run stores them.
    classes : sequence of str
        In the order of the task, as the run's ``model.json`` has them.

    Returns
    -------
    sklearn.pipeline.Pipeline
        A ``StandardScaler`` and a ``LogisticRegression`` whose probabilities are those of
        `head_probabilities` for features in float64; float32 features scikit-learn standardises
        in float32. Parameters of the fit, such as C, are scikit-learn's defaults, and do nothing.

    Raises
    ------
    ValueError
        When the arrays are not a logistic regression for so many classes.

    Examples
    --------
    >>> run = open_run("runs/20260105-140302-logreg-pages")  # doctest: +SKIP
    >>> pipeline = as_pipeline(run.model(), run.model_card["classes"])  # doctest: +SKIP
    >>> pipeline.predict_proba(features.astype(float))  # doctest: +SKIP
    array([[0.81, 0.19], ...
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not (
        set(tensors) >= {"mean", "scale"}
        and head_fits(tensors, n_classes=len(classes), width=len(tensors["mean"]))
    ):
        found = ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items())
        raise ValueError(
            f"need the arrays of a logistic regression (mean, scale, coef, intercept) for "
            f"{len(classes)} classes; found {found}"
        )
    scaler, model = StandardScaler(), LogisticRegression()
    scaler.mean_, scaler.scale_ = tensors["mean"], tensors["scale"]
    scaler.var_ = scaler.scale_**2
    model.coef_, model.intercept_ = tensors["coef"], tensors["intercept"]
    model.classes_ = np.asarray(classes)
    scaler.n_features_in_ = model.n_features_in_ = len(scaler.mean_)
    return Pipeline([("standardscaler", scaler), ("logisticregression", model)])


# Logistic regression's likelihood over rows of features, standardised without a copy of them.
#
# Rows are turned to float64 a few at a time, where they fit a core's own cache; mean and scale go
# into the coefficients. A pass over the rows then takes about as long as reading the float32
# features, less than reading a standardised float64 copy of them would.

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


# From one optimum of logistic regression to the next, in few passes over the rows.
#
# What is minimised is scikit-learn's objective divided by C and the number of rows n: with row
# weights s that sum to n, and no penalty on the intercept,
#
#     f = sum(s * cross-entropy) / n + |coef|² / (2 C n).
#
# L-BFGS needs hundreds of passes over the rows where features go together. But with LL' the second
# derivative of f at one point, f is nearly round as a function of L' coef, and five to forty passes
# are enough at any C. Without the penalty it is X'SDX / n, where D are the rows' own curvatures:
# largest at coefficients of zero, and much the same where the probabilities stay away from 0 and
# 1, as those of a hard task do. So it is computed once for all C, and again where D has halved.
# As it only changes coordinates, float32 is accurate enough, and one matrix for all classes.

TOLERANCE = 1e-10
"""How far f may end above its least, about, as a share of it."""
MAX_ITERATIONS = 1000
"""In one and the same coordinates."""
RIDGE = 1e-5
"""Added to X'SDX's diagonal, as a share of its mean: more than float32 rounds off. Features that
depend on each other leave it singular."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimum:
    """Where f is least.

    Attributes
    ----------
    coef : ndarray of shape (width + 1, m)
        As in `Likelihood`.
    n_iterations : int
    converged : bool
    """

    coef: Floats
    n_iterations: int
    converged: bool


class Descent:
    """The way to the optimum for one C after another, starting at coefficients of zero."""

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood = likelihood
        self._coef = np.zeros(likelihood.shape)
        self._measure()

    def to_optimum(self, C: float) -> Optimum:
        """Go from where the last one ended to the optimum for `C`."""
        total = 0
        while True:
            n_iterations, is_optimal, has_flattened = self._descend(C)
            total += n_iterations
            if is_optimal or not has_flattened:
                return Optimum(coef=self._coef, n_iterations=total, converged=is_optimal)
            self._measure()

    def _measure(self) -> None:
        """Take the likelihood's second derivative where we are."""
        self._second = self._likelihood.second_derivative(self._coef)
        self._curvature = self._second[-1, -1]  # the intercept's, whose feature is 1
        ridge = RIDGE * self._second.diagonal().mean()
        self._second[np.diag_indices_from(self._second)] += ridge

    def _descend(self, C: float) -> tuple[int, bool, bool]:
        """Go on until the optimum, or until the second derivative is not what was measured.

        Returns the number of iterations, and whether it was the former, and the latter.
        """
        likelihood, shape = self._likelihood, self._coef.shape
        penalty = np.full((shape[0], 1), 1 / (C * len(likelihood)))
        penalty[-1] = 0
        second = self._second + np.diag(penalty[:, 0])
        root = cholesky(second, lower=True, overwrite_a=True, check_finite=False)
        value, slope, curvature, has_flattened = np.inf, np.empty(0), self._curvature, False

        def to_coef(point: Floats) -> Floats:
            columns = point.reshape(shape)
            coef: Floats = solve_triangular(root, columns, lower=True, trans=1, check_finite=False)
            return coef

        def objective(point: Floats) -> tuple[float, Floats]:
            nonlocal value, slope, curvature
            coef = to_coef(point)
            here = likelihood.at(coef)
            value = here.value + float((penalty * coef**2).sum()) / 2
            gradient = here.gradient + penalty * coef
            slope = solve_triangular(root, gradient, lower=True, check_finite=False).ravel()
            curvature = here.curvature
            return value, slope

        def pause(point: Floats) -> None:
            nonlocal has_flattened
            has_flattened = curvature < self._curvature / 2
            if has_flattened or _is_optimal(value, slope):
                raise StopIteration

        found = minimize(
            objective,
            (root.T @ self._coef).ravel(),
            method="L-BFGS-B",
            jac=True,
            callback=pause,
            options={"gtol": 0, "ftol": 0, "maxiter": MAX_ITERATIONS, "maxls": 50},
        )
        self._coef = to_coef(found.x)
        return found.nit, _is_optimal(found.fun, found.jac), has_flattened


def _is_optimal(value: float, slope: Floats) -> bool:
    # Half the square of the gradient in round coordinates is about what there is to gain.
    return bool(slope @ slope / 2 <= TOLERANCE * value)
