"""The kinds of head there are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import HeadKind
from ecgfeat.heads.head import Head, Tensors
from ecgfeat.heads.linear import LinearHead
from ecgfeat.heads.logistic import LogisticHead

__all__ = ["HEADS", "head_fits", "head_of", "head_probabilities", "idle_options"]

HEADS: Mapping[HeadKind, Head] = {head.kind: head for head in (LinearHead(), LogisticHead())}
"""By kind, in the order in which several are fitted."""


def head_probabilities(tensors: Tensors, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities by class, shape (n, n_classes), float64.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As a run stores them; whose they are shows by their names.
    X : ndarray of shape (n, width), float32
        Features as they are in the cache.
    """
    return head_of(tensors).probabilities(tensors, X, np.arange(len(X)))


def idle_options(kind: str) -> set[str]:
    """Fields of `HeadSettings` that only other kinds of head have; empty where `kind` is none."""
    if kind not in HEADS:
        return set()
    return {name for other, head in HEADS.items() if other != kind for name in head.options}


def head_of(tensors: Tensors) -> Head:
    """The kind of head that arrays are of, which shows by their names."""
    (head,) = (head for head in HEADS.values() if head.shapes(2, 1).keys() == tensors.keys())
    return head


def head_fits(tensors: Tensors, *, n_classes: int, width: int) -> bool:
    """Whether the arrays are a head of any kind for so many classes and features."""
    return any(head.fits(tensors, n_classes=n_classes, width=width) for head in HEADS.values())
