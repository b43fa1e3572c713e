"""Logistic regression on standardised features: scikit-learn's, along a path of penalties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ecgfeat.heads.applying import Tensors, head_fits
from ecgfeat.runtime import n_cpus

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from ecgfeat.heads.descent import Optimum
    from ecgfeat.heads.likelihood import Floats, Rows

__all__ = ["LogisticFit", "as_pipeline", "fit_logistic", "fit_logistic_path"]

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
    from ecgfeat.heads.descent import Descent
    from ecgfeat.heads.likelihood import Likelihood, Rows

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
