"""Logistic regression on standardised features: scikit-learn's, for one or many penalties."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ecgfeat.config import HeadSettings
from ecgfeat.heads.head import Fitted, Head, Scored, Step, Tensors, moments
from ecgfeat.protocol import Partition
from ecgfeat.runtime import n_cpus

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

__all__ = ["LogisticFit", "LogisticHead", "as_pipeline", "fit_logistic", "fit_logistic_path"]


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
        n_epochs: int,
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
        return Fitted(tensors=fit.tensors, n_rows=len(part.train), solver=solver)

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
        for is_balanced in (False, True):
            path = [i for i, one in enumerate(many) if one.is_balanced == is_balanced]

            def on_fit(number: int, fit: LogisticFit, path: list[int] = path) -> None:
                probabilities = self.probabilities(fit.tensors, X[part.validation])
                on_scored([path[number]], [0], 1, probabilities[None])

            if path:
                Cs = [many[i].C for i in path]
                fit_logistic_path(X, y, part.train, Cs=Cs, balanced=is_balanced, on_fit=on_fit)

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
DOUBLE_BYTES = 2**29
"""Standardised features up to this size are float64; larger ones stay float32, as they are in the
cache, so that there is one copy of them and no more."""
TOLERANCE = 1e-6
"""Largest derivative of the mean loss by a coefficient at the end: scikit-learn's is 1e-4, by which
scores may still change in their third digit."""
MAX_ITERATIONS = 5000


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

    scikit-learn's ``LogisticRegression`` after ``StandardScaler``; the values of C are shared out
    among the cores, which read the same standardised copy of the rows.

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
    balanced : bool
        Weigh each class by n / (n_classes * its rows), as ``class_weight="balanced"``.
    on_fit : callable, optional
        Told the index into `Cs` and the fit after each, in ascending order of C; what it raises
        ends the path.

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
    mean, scale = moments(X, rows)
    standardised, directions = _standardised(X, rows, mean, scale), None
    if len(rows) <= SPAN_SHARE * X.shape[1]:
        # A part of the coefficients that is orthogonal to every row changes no logit and only
        # adds penalty, so the optimum has none: it is the optimum in the rows' span.
        directions, triangle = np.linalg.qr(standardised.T)
        standardised = np.ascontiguousarray(triangle.T)
    fits: dict[int, LogisticFit] = {}
    order = np.argsort(Cs, kind="stable").tolist()
    one_by_one = _fit_all(standardised, y[rows], [Cs[index] for index in order], balanced)
    with contextlib.closing(one_by_one) as models:
        for index, model in zip(order, models):
            coef = model.coef_.astype(np.float64)
            n_iterations = int(model.n_iter_.max())
            fits[index] = LogisticFit(
                C=Cs[index],
                tensors={
                    "mean": mean,
                    "scale": scale,
                    "coef": coef if directions is None else coef @ directions.T,
                    "intercept": model.intercept_.astype(np.float64),
                },
                n_iterations=n_iterations,
                converged=n_iterations < MAX_ITERATIONS,
            )
            on_fit(index, fits[index])
    return [fits[index] for index in range(len(Cs))]


def _standardised(
    X: NDArray[np.float32],
    rows: NDArray[np.int64],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> NDArray[Any]:
    """The rows' features, centred and scaled in place in the one copy that is made of them."""
    is_small = len(rows) * X.shape[1] * 8 <= DOUBLE_BYTES
    features: NDArray[Any] = X[rows].astype(np.float64) if is_small else X[rows]
    features -= mean.astype(features.dtype)
    features /= scale.astype(features.dtype)
    return features


def _fit_all(
    X: NDArray[Any], y: NDArray[np.int64], Cs: Sequence[float], balanced: bool
) -> Generator[LogisticRegression]:
    """One model for each C, in their order, as they are done."""
    # It takes a second, which linear heads do without.
    from joblib import Parallel, delayed
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n_jobs = min(len(Cs), n_cpus())
    weights = "balanced" if balanced else None

    def fit(C: float) -> LogisticRegression:
        model = LogisticRegression(
            C=C, class_weight=weights, tol=TOLERANCE, max_iter=MAX_ITERATIONS
        )
        return model.fit(X, y)

    # Where each core has a C of its own, BLAS must not take both for one.
    with warnings.catch_warnings(), threadpool_limits(n_cpus() // n_jobs, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        warnings.filterwarnings("ignore", ".* have been cancelled", UserWarning)  # by who raised
        yield from Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(
            delayed(fit)(C) for C in Cs
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
