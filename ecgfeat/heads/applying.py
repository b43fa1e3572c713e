"""A head's stored arrays applied to features: the same in testing and on new images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.predictions import softmax

__all__ = ["CHUNK_ROWS", "Tensors", "head_fits", "head_probabilities"]

CHUNK_ROWS = 4096
"""Rows taken at a time, so that the features are never copied whole."""

Tensors = Mapping[str, NDArray[Any]]
"""A head's arrays by name, as `fit_linear_heads` and `fit_logistic` give them."""


def head_probabilities(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities by class, shape (n, n_classes), float64.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As `fit_linear_heads` or `fit_logistic` give them; which of the two shows by their names.
    X : ndarray of shape (n, width), float32
        Features as they are in the cache.
    """
    logits = _logistic_logits if "coef" in tensors else _linear_logits
    # A head that diverged gives NaN, which `Predictions` refuses in words.
    with np.errstate(over="ignore", invalid="ignore"):
        chunks = [
            softmax(logits(tensors, X[start : start + CHUNK_ROWS]))
            for start in range(0, len(X), CHUNK_ROWS)
        ]
    return np.concatenate(chunks)


def head_fits(tensors: Tensors, *, n_classes: int, width: int) -> bool:
    """Whether the arrays are a head of either kind for so many classes and features."""
    n_logits = 1 if n_classes == 2 else n_classes
    linear = {"weight": (n_classes, width), "bias": (n_classes,)}
    logistic = {
        "mean": (width,),
        "scale": (width,),
        "coef": (n_logits, width),
        "intercept": (n_logits,),
    }
    return {name: tensor.shape for name, tensor in tensors.items()} in (linear, logistic)


def _linear_logits(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    return (X @ tensors["weight"].T + tensors["bias"]).astype(np.float64)


def _logistic_logits(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    standardised = (X.astype(np.float64) - tensors["mean"]) / tensors["scale"]
    logits: NDArray[np.float64] = standardised @ tensors["coef"].T + tensors["intercept"]
    if logits.shape[1] == 1:
        # Two classes have one logit, the positive's; the logistic function is softmax(0, logit).
        return np.hstack([np.zeros_like(logits), logits])
    return logits
