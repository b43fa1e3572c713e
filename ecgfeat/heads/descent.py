"""From one optimum of logistic regression to the next, in few passes over the rows.

What is minimised is scikit-learn's objective divided by C and the number of rows n: with row
weights s that sum to n, and no penalty on the intercept,

    f = sum(s * cross-entropy) / n + |coef|² / (2 C n).

L-BFGS needs hundreds of passes over the rows where features go together. But with LL' the second
derivative of f at one point, f is nearly round as a function of L' coef, and five to forty passes
are enough at any C. Without the penalty it is X'SDX / n, where D are the rows' own curvatures:
largest at coefficients of zero, and much the same wherever the probabilities stay away from 0 and
1, as those of a hard task do. So it is computed once for all C, and again only where D has halved.
As it only changes coordinates, it needs no accuracy: float32 does, and one matrix for all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from ecgfeat.heads.likelihood import Floats, Likelihood

__all__ = ["Descent", "Optimum"]

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
