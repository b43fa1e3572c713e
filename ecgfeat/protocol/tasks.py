"""What is to be told apart: the classes and their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ConfigError, DataError

__all__ = ["Task", "class_order", "define_task"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be told apart.

    Attributes
    ----------
    classes : tuple of str
        In a binary task (negative, positive); otherwise in the order of `class_order`.
    targets : ndarray of shape (n,), int64
        Index of each row's class.
    """

    classes: tuple[str, ...]
    targets: NDArray[np.int64]


def class_order(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels: by value where all are numbers, else alphabetically."""
    names = set(labels)
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if not all(map(math.isfinite, values.values())):  # "nan" has no place in an order
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (values[name], name)))


def define_task(labels: Sequence[str], positive: str = "") -> Task:
    """Number the labels, as a binary task when `positive` names classes.

    Parameters
    ----------
    labels : sequence of str, length n
    positive : str
        Class or comma-separated classes against the rest; empty for the labels as they are.

    Raises
    ------
    DataError
        When there is one class only.
    ConfigError
        When `positive` names a class that is not there, or all of them.
    """
    present = class_order(labels)
    if len(present) < 2:
        raise DataError(
            f"at least two classes are needed; found only {', '.join(present) or 'none'}. "
            "Check the label column or the folder names."
        )
    if not positive:
        number = {name: index for index, name in enumerate(present)}
        targets = np.fromiter((number[label] for label in labels), np.int64, len(labels))
        return Task(classes=present, targets=targets)
    chosen = _chosen_classes(positive, present)
    rest = [name for name in present if name not in chosen]
    name = "+".join(chosen)
    others = rest[0] if len(rest) == 1 else "rest"
    if (len(rest) > 1 and "rest" in present) or others == name:
        others = f"not {name}"
    targets = np.fromiter((label in chosen for label in labels), np.int64, len(labels))
    return Task(classes=(others, name), targets=targets)


def _chosen_classes(positive: str, present: tuple[str, ...]) -> tuple[str, ...]:
    # A class may have a comma in its own name.
    names = [positive] if positive in present else [p.strip() for p in positive.split(",")]
    unknown = [name for name in names if name not in present]
    if unknown:
        raise ConfigError(
            f"--positive names {', '.join(map(repr, unknown))}, but the classes are "
            f"{', '.join(present)}"
        )
    if set(names) == set(present):
        raise ConfigError("--positive names every class: leave at least one for the rest")
    return tuple(name for name in present if name in names)
