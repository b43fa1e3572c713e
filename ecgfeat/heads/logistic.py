"""Logistic regression on standardised features: scikit-learn's optimum, for many penalties."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ecgfeat.config import HeadSettings
from ecgfeat.errors import DataError
from ecgfeat.heads.head import Fitted, Head, Scored, Step, Tensors
from ecgfeat.protocol import Partition
from ecgfeat.runs import moments
from ecgfeat.runtime import n_cpus

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["LogisticFit", "LogisticHead", "as_pipeline", "fit_logistic", "fit_logistic_path"]


Floats = NDArray[np.float64]
Result = TypeVar("Result")


class LogisticHead(Head):
    """Logistic regression."""

    kind = "logreg"
    options = ("C",)
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "class_weights": ("none", "balanced"),
        "C": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0),
    }
    in_epochs = False
    calibration = "platt"
    precision = "fp64"

    def fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        part: Partition,
        settings: HeadSettings,
        *,
        n_classes: int,
        seed: int,
        on_step: Step,
    ) -> Fitted:
        """Train one; see `Head.fit`."""
        fit = fit_logistic(X, y, part.train, C=settings.C, balanced=settings.is_balanced)
        on_step(
            f"Logistic regression converged after {fit.n_iterations} iterations"
            if fit.converged
            else f"Logistic regression not converged after {fit.n_iterations} iterations: its "
            "scores may still change; a lower --C makes it converge sooner"
        )
        solver = {"n_iterations": fit.n_iterations, "converged": fit.converged}
        return Fitted(tensors=fit.tensors, solver=solver)

    def try_many(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        part: Partition,
        many: Sequence[HeadSettings],
        *,
        n_classes: int,
        seeds: Sequence[int],
        on_scored: Scored,
    ) -> None:
        """Train many; see `Head.try_many`."""

        def on_fit(number: int, fit: LogisticFit) -> None:
            probabilities = self.probabilities(fit.tensors, X, part.validation)
            on_scored([number], [0], 1, probabilities[None])

        fit_logistic_path(
            X,
            y,
            part.train,
            Cs=[one.C for one in many],
            balanced=[one.is_balanced for one in many],
            on_fit=on_fit,
        )

    def logits(self, tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits; see `Head.logits`."""
        standardised = (X.astype(np.float64) - tensors["mean"]) / tensors["scale"]
        logits: NDArray[np.float64] = standardised @ tensors["coef"].T + tensors["intercept"]
        if logits.shape[1] == 1:
            # Two classes have one logit, the positive's; the logistic function is softmax(0, it).
            return np.hstack([np.zeros_like(logits), logits])
        return logits

    def linear_form(self, tensors: Tensors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """With the standardisation taken into the weights; see `Head.linear_form`."""
        weights = tensors["coef"] / tensors["scale"]
        biases = tensors["intercept"] - weights @ tensors["mean"]
        if len(weights) == 1:
            return np.vstack([np.zeros_like(weights), weights]), np.append(0.0, biases)
        return weights, biases

    def shapes(self, n_classes: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes of its arrays; see `Head.shapes`."""
        n_logits = 1 if n_classes == 2 else n_classes
        return {
            "mean": (width,),
            "scale": (width,),
            "coef": (n_logits, width),
            "intercept": (n_logits,),
        }


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
    balanced: bool | Sequence[bool] = False,
    on_fit: Callable[[int, LogisticFit], None] = lambda index, fit: None,
) -> list[LogisticFit]:
    """Fit logistic regressions to `rows`, standardised by themselves, with each of several C.

    The optimum is that of scikit-learn's ``LogisticRegression`` after ``StandardScaler``, whose own
    solver needs many more passes where features are correlated, as a network's are. The rows are
    shared out among the cores. Besides the features, memory is needed for a matrix of shape (width,
    width) for each C, up to `ROOT_BYTES`, and for two on each core.

    Parameters
    ----------
    X : ndarray of shape (n, width), float32
        All rows' features; one that is constant over `rows` is only centred.
    y : ndarray of shape (n,), int64
        Index of each row's class; every class has some of `rows`.
    rows : ndarray of int64
        The training rows.
    Cs : sequence of float
        Inverse strengths of the L2 penalty.
    balanced : bool or sequence of bool
        Weigh each class by n / (n_classes * its rows), as ``class_weight="balanced"``; one for each
        of `Cs`, or for all.
    on_fit : callable, optional
        Told the index into `Cs` and the fit after each, in ascending order of C; what it raises
        ends the path.

    Returns
    -------
    list of LogisticFit
        In the order of `Cs`.

    Raises
    ------
    DataError
        When a class has none of `rows`, or a feature isn't finite.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> X, y = random.normal(size=(80, 3)).astype("f4"), np.arange(80) % 2
    >>> fits = fit_logistic_path(X, y, np.arange(80), Cs=[0.01, 1.0])
    >>> [(fit.C, fit.converged) for fit in fits]
    [(0.01, True), (1.0, True)]
    """
    if (np.bincount(y[rows], minlength=max(2, y.max() + 1)) == 0).any():
        raise DataError("a class has no row to train on: logistic regression needs some of each")
    mean, scale = moments(X, rows)
    if not np.isfinite([mean, scale]).all():
        raise DataError("some features aren't finite: logistic regression can't be fitted to them")
    chosen, directions = _Rows(X, rows, mean, scale), None
    if len(rows) <= SPAN_SHARE * X.shape[1]:
        # A part of the coefficients that is orthogonal to every row changes no logit and only
        # adds penalty, so the optimum has none: it is the optimum in the rows' span.
        directions, triangle = np.linalg.qr(((X[rows] - mean) / scale).T)
        # Centred rows depend on one another, which leaves a direction that none of them has.
        norms = np.linalg.norm(triangle, axis=1)
        is_seen = norms >= 1e-9 * norms.max()
        directions, triangle = directions[:, is_seen], triangle[is_seen]
        width = len(triangle)
        chosen = _Rows(triangle.T, np.arange(len(rows)), np.zeros(width), np.ones(width))
    is_balanced = np.broadcast_to(balanced, len(Cs)).tolist()
    fits: dict[int, LogisticFit] = {}
    order = np.argsort(Cs, kind="stable").tolist()
    problems = [_Problem(Cs[index], is_balanced[index]) for index in order]
    with contextlib.closing(_optima(_Likelihood(chosen, y[rows]), problems)) as optima:
        for index, (coef, n_iterations, converged) in zip(order, optima):
            slopes = coef[:-1] if directions is None else directions @ coef[:-1]
            fits[index] = LogisticFit(
                C=Cs[index],
                tensors={
                    "mean": mean,
                    "scale": scale,
                    "coef": np.ascontiguousarray(slopes.T),
                    "intercept": coef[-1].copy(),
                },
                n_iterations=n_iterations,
                converged=converged,
            )
            on_fit(index, fits[index])
    return [fits[index] for index in range(len(Cs))]


# The likelihood over rows that are standardised a few at a time, in float64, without a copy of all.

TASK_ROWS = 4096
"""Rows that a thread takes at a time. Their sums are added in the order of the rows, so that the
result doesn't hang on the number of threads."""
CHUNK_BYTES = 2**22
"""Features in float64 at a time. For one C a quarter would do; ten share a pass faster so."""


class _Rows(NamedTuple):
    """Some rows of the features, and what standardises them."""

    X: NDArray[Any]
    rows: NDArray[np.int64]
    mean: Floats
    scale: Floats

    def chunks(self, first: int) -> Iterator[tuple[slice, Floats]]:
        """A task's rows: their places among the rows, and their standardised features.

        The features, of shape (k, width), are written over by the next ones.
        """
        end, width = min(first + TASK_ROWS, len(self.rows)), self.X.shape[1]
        n_rows = max(1, CHUNK_BYTES // (8 * width))
        chunk = np.empty((min(n_rows, end - first), width))
        for start in range(first, end, n_rows):
            where = slice(start, min(start + n_rows, end))
            features = chunk[: where.stop - where.start]
            features[:] = self.X.take(self.rows[where], axis=0)
            features -= self.mean
            features *= 1 / self.scale
            yield where, features


class _Problem(NamedTuple):
    """Which logistic regression is to be fitted."""

    C: float
    balanced: bool


class _Likelihood:
    """The mean cross-entropy over some rows, as a function of the coefficients.

    These are an array of shape (width + 1, m), for standardised features; the last row is the
    intercept. m is 1 with two classes (the second's logit; the first's is 0), else their number.
    """

    def __init__(self, rows: _Rows, targets: NDArray[np.int64]) -> None:
        counts = np.bincount(targets)
        n_classes = len(counts)
        by_class = len(targets) / (n_classes * counts)
        self._rows, self._targets = rows, targets
        self._weights = {False: np.ones(len(targets)), True: by_class[targets]}
        self.n_rows = len(targets)
        self.shape = len(rows.mean) + 1, 1 if n_classes == 2 else n_classes

    def at(
        self, coefs: Sequence[Floats], balanced: Sequence[bool], pool: Executor
    ) -> list[tuple[float, Floats]]:
        """Value and gradient at each of several coefficients, by one pass over the rows."""
        side_by_side = np.hstack(coefs)
        m = self.shape[1]
        columns = [slice(m * head, m * (head + 1)) for head in range(len(coefs))]

        def task(first: int) -> tuple[Floats, Floats]:
            values, gradient = np.zeros(len(coefs)), np.zeros_like(side_by_side)
            for where, features in self._rows.chunks(first):
                logits = features @ side_by_side[:-1] + side_by_side[-1]
                errors = np.empty_like(logits)
                for head, column in enumerate(columns):
                    weights = self._weights[balanced[head]][where]
                    losses, derivatives = self._losses(where, logits[:, column])
                    values[head] += weights @ losses
                    errors[:, column] = weights[:, np.newaxis] * derivatives
                gradient[:-1] += features.T @ errors
                gradient[-1] += errors.sum(axis=0)
            return values, gradient

        values, gradients = zip(*self._each(task, pool))
        value = sum(values[1:], values[0]) / self.n_rows
        gradient = sum(gradients[1:], gradients[0]) / self.n_rows
        return [(float(value[head]), gradient[:, column]) for head, column in enumerate(columns)]

    def _losses(self, where: slice, logits: Floats) -> tuple[Floats, Floats]:
        """Some rows' losses (n,), and their derivatives by logit (n, m)."""
        n_logits = logits.shape[1]
        if n_logits == 1:
            logits = np.hstack([np.zeros_like(logits), logits])
        # Seen from the target's logit, a loss keeps its digits however small it is.
        target = np.arange(len(logits)), self._targets[where]
        logits = logits - logits[target][:, np.newaxis]
        losses = np.logaddexp.reduce(logits, axis=1)
        errors = np.exp(logits - losses[:, np.newaxis])
        errors[target] = np.expm1(-losses)
        return losses, errors[:, -n_logits:]

    def second_derivative(self, balanced: Sequence[bool], pool: Executor) -> Floats:
        """Shape (width + 1, width + 1), at coefficients of zero, to float32's precision.

        It is the same for each class; of balanced and other problems together the mean.
        """
        width = self.shape[0]
        roots = np.sqrt(np.mean([self._weights[kind] for kind in set(balanced)], axis=0))

        def task(first: int) -> NDArray[np.float32]:
            part = np.ones((min(TASK_ROWS, self.n_rows - first), width), np.float32)
            for where, features in self._rows.chunks(first):
                part[where.start - first : where.stop - first, :-1] = features
            part *= roots[first : first + TASK_ROWS, np.newaxis].astype(np.float32)
            return part.T @ part

        total = np.zeros((width, width))
        for product in self._each(task, pool):
            total += product
        total *= (1 / 4 if self.shape[1] == 1 else 1 / self.shape[1]) / self.n_rows
        return total

    def _each(self, task: Callable[[int], Result], pool: Executor) -> Iterator[Result]:
        return pool.map(task, range(0, self.n_rows, TASK_ROWS))


# What is minimised is scikit-learn's objective divided by C and the number of rows n: with row
# weights s that sum to n, and no penalty on the intercept,
#
#     f = sum(s * cross-entropy) / n + |coef|² / (2 C n).
#
# L-BFGS needs hundreds of passes over the rows where features go together. But with LL' the second
# derivative of f at coefficients of zero, f is nearly round as a function of L' coef, and 8 to 40
# passes are enough at any C. As it only changes coordinates, float32 is accurate enough.

TOLERANCE = 1e-10
"""How far f may end above its least, about, as a share of it. Where classes can be told apart, f is
flatter there than at zero, and it may be more: 1e-7 was seen at C = 100, 2e-5 at 10,000."""
MAX_ITERATIONS = 1000
RIDGE = 1e-5
"""Added to the second derivative's diagonal, as a share of its mean: more than float32 rounds off.
Features that depend on each other leave it singular."""
ROOT_BYTES = 3 * 2**29
"""Roots L kept at once have so many bytes at most: 13 of them for 3,840 features."""


class _SharedPasses:
    """Passes over the rows for several descents, each in a thread: one pass serves them all.

    For ten of them a pass takes 1.4 to 2 times as long as for one.
    """

    def __init__(
        self, likelihood: _Likelihood, pool: Executor, problems: Sequence[_Problem]
    ) -> None:
        self._likelihood, self._pool, self._problems = likelihood, pool, problems
        self._descending = set(range(len(problems)))
        self._waiting: dict[int, tuple[Floats, Future[tuple[float, Floats]]]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def evaluate(self, number: int, coef: Floats) -> tuple[float, Floats]:
        """Value and gradient of a problem, once all others that go on have asked for theirs."""
        answer: Future[tuple[float, Floats]] = Future()
        with self._lock:
            if self._is_closed:
                raise CancelledError
            self._waiting[number] = coef, answer
            self._evaluate_if_all_wait()
        return answer.result()

    def leave(self, number: int) -> None:
        """Don't wait for this problem any more."""
        with self._lock:
            self._descending.discard(number)
            self._evaluate_if_all_wait()

    def close(self) -> None:
        """End all descents: those that wait, and others when they ask next."""
        with self._lock:
            self._is_closed = True
            for _, answer in self._waiting.values():
                answer.cancel()
            self._waiting = {}

    def _evaluate_if_all_wait(self) -> None:
        if not self._waiting or self._waiting.keys() != self._descending:
            return
        # By number, not by who came first: the order of columns changes how a product is rounded.
        numbers = sorted(self._waiting)
        coefs, answers = zip(*(self._waiting[number] for number in numbers))
        self._waiting = {}
        balanced = [self._problems[number].balanced for number in numbers]
        try:
            for answer, found in zip(answers, self._likelihood.at(coefs, balanced, self._pool)):
                answer.set_result(found)
        except Exception as error:  # or the other threads would wait for ever
            for answer in answers:
                answer.set_exception(error)
            raise


def _optima(
    likelihood: _Likelihood, problems: Sequence[_Problem]
) -> Generator[tuple[Floats, int, bool], None, None]:
    """The optimum of each problem, in their order (ascending C), as they are found."""
    n_roots = max(1, ROOT_BYTES // (8 * likelihood.shape[0] ** 2))
    Cs = list(dict.fromkeys(problem.C for problem in problems))
    # The threads here are busier than those that BLAS would start within every small product.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_cpus()) as pool:
        second = likelihood.second_derivative([problem.balanced for problem in problems], pool)
        for first in range(0, len(Cs), n_roots):
            roots = {C: _root(second, C, likelihood.n_rows) for C in Cs[first : first + n_roots]}
            batch = [problem for problem in problems if problem.C in roots]
            with (
                ThreadPoolExecutor(len(batch)) as threads,  # one each, for they wait for each other
                contextlib.closing(_SharedPasses(likelihood, pool, batch)) as passes,
            ):
                descents = [
                    threads.submit(_minimum, number, problem, passes, roots[problem.C], likelihood)
                    for number, problem in enumerate(batch)
                ]
                for descent in descents:
                    yield descent.result()
            roots.clear()  # before there are others


def _root(second: Floats, C: float, n_rows: int) -> Floats:
    """L, of the second derivative with the penalty."""
    from scipy.linalg import LinAlgError, cholesky

    ridge, slopes = RIDGE * second.diagonal().mean(), np.arange(len(second) - 1)
    while True:
        matrix = second.copy()
        matrix[slopes, slopes] += 1 / (C * n_rows) + ridge
        try:
            # It is symmetric, and LAPACK works in place on the columns that its rows are.
            root: Floats = cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            ridge *= 10
        else:
            return root


def _minimum(
    number: int, problem: _Problem, passes: _SharedPasses, root: Floats, likelihood: _Likelihood
) -> tuple[Floats, int, bool]:
    """The coefficients where f is least, in how many iterations, and whether it got there."""
    from scipy.linalg import solve_triangular
    from scipy.optimize import minimize

    shape = likelihood.shape
    penalty = np.full((shape[0], 1), 1 / (problem.C * likelihood.n_rows))
    penalty[-1] = 0
    value, slope = np.inf, np.empty(0)

    def to_coef(point: Floats) -> Floats:
        coef: Floats = solve_triangular(
            root, point.reshape(shape), lower=True, trans=1, check_finite=False
        )
        return coef

    def objective(point: Floats) -> tuple[float, Floats]:
        nonlocal value, slope
        coef = to_coef(point)
        value, gradient = passes.evaluate(number, coef)
        value += float((penalty * coef**2).sum()) / 2
        gradient = gradient + penalty * coef
        slope = solve_triangular(root, gradient, lower=True, check_finite=False).ravel()
        return value, slope

    def stop(_: Floats) -> None:
        if _is_least(value, slope):
            raise StopIteration

    try:
        found = minimize(
            objective,
            np.zeros(shape[0] * shape[1]),
            method="L-BFGS-B",
            jac=True,
            callback=stop,
            options={"gtol": 0, "ftol": 0, "maxiter": MAX_ITERATIONS, "maxls": 50},
        )
    finally:
        passes.leave(number)
    return to_coef(found.x), found.nit, _is_least(found.fun, found.jac)


def _is_least(value: float, slope: Floats) -> bool:
    # Half the square of the gradient in round coordinates is about what there is to gain.
    return bool(slope @ slope / 2 <= TOLERANCE * value)


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
        `LogisticHead.probabilities` for features in float64; float32 features scikit-learn
        standardises in float32. Parameters of the fit, such as C, are its defaults, and do nothing.

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

    width = len(tensors.get("mean", ()))
    if not LogisticHead().fits(tensors, n_classes=len(classes), width=width):
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
