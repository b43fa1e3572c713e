"""What is to be told apart: the classes and their numbers."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ConfigError, DataError

__all__ = ["Task", "class_order", "define_task", "positive_in_words"]

NORMAL_NAMES = frozenset(
    [
        "normal",
        "norm",
        "healthy",
        "control",
        "controls",
        "healthycontrol",
        "healthycontrols",
        "negative",
        "sinusrhythm",
        "normalsinusrhythm",
        "0",
        "false",
    ]
)
"""What the class without a finding is called, in lower case and without blanks, - and _."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be told apart.

    Attributes
    ----------
    classes : tuple of str
        In a binary task (negative, positive); otherwise in the order of `class_order`. With two
        classes and none named, the positive one is that which isn't plainly the normal one (see
        `NORMAL_NAMES`; also ``no-x``, ``non-x``, ``not x``), else the last in order.
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
        if _plainly_normal(present) == [present[-1]] and len(present) == 2:
            present = present[::-1]
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


def positive_in_words(classes: Sequence[str], positive: str) -> str:
    """Which class is the positive one, why, and how to turn it; empty where there is none.

    Parameters
    ----------
    classes : sequence of str
        Those of the task.
    positive : str
        As given to `define_task`.
    """
    if len(classes) != 2:
        return ""
    negative, taken = classes
    if positive:
        return f"{taken}, as --positive says"
    normal = _plainly_normal(classes)
    why = f"{negative!r} is the normal one" if normal == [negative] else "the last in order"
    return f"{taken} ({why}; to turn it: --positive {shlex.quote(negative)})"


def _plainly_normal(classes: Sequence[str]) -> list[str]:
    return [
        name
        for name in classes
        if re.sub(r"[\s_-]", "", name.casefold()) in NORMAL_NAMES
        or re.match(r"[\s_-]*(no|non|not)[\s_-]+[^\s_-]", name.casefold())
    ]


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
