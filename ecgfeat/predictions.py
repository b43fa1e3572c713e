"""What a model said of some rows: the one form in which both ways end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError

__all__ = ["Predictions", "join", "positive_class", "softmax"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Class probabilities for some rows, beside the truth.

    Attributes
    ----------
    ids : tuple of str
        Each row's path, relative to the data's root.
    classes : tuple of str
        Names of the classes; a column of `probabilities` each. In a binary task the second
        is the positive one.
    targets : ndarray of shape (n,), int64
        Index of each row's true class.
    probabilities : ndarray of shape (n, n_classes), float64
        Each row sums to 1.
    groups : tuple of str
        Rows of one group (a patient) stay together in splits and bootstraps; a row without
        a group is its own.
    split : str
        Where the rows come from: ``"test"``, ``"test-subset"``, ``"cv"`` or ``"new"``.
    folds : ndarray of shape (n,), int64
        Fold in which each row was predicted; zeros where there was only one.
    answers : ndarray of shape (n,), int64, optional
        Index of the class answered, where a threshold decides; by default the most probable.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    groups: tuple[str, ...]
    split: str
    folds: NDArray[np.int64]
    answers: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n, n_classes = len(self.ids), len(self.classes)
        shapes = {
            "probabilities": (self.probabilities.shape, (n, n_classes)),
            "targets": (self.targets.shape, (n,)),
            "folds": (self.folds.shape, (n,)),
            "groups": ((len(self.groups),), (n,)),
            "answers": ((n,) if self.answers is None else self.answers.shape, (n,)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise DataError(f"{name} must have shape {expected} for {n} ids; found {found}")
        if not np.isfinite(self.probabilities).all():
            raise DataError(
                "the model gave probabilities that are not finite: its training diverged. "
                "Try a lower --lr."
            )

    @classmethod
    def of_rows(
        cls,
        rows: NDArray[np.int64],
        probabilities: NDArray[np.float64],
        *,
        ids: Sequence[str],
        groups: Sequence[str],
        classes: tuple[str, ...],
        targets: NDArray[np.int64],
        split: str,
        fold: int,
    ) -> Predictions:
        """What one training's model said of some rows of the data.

        Parameters
        ----------
        rows : ndarray of shape (m,), int64
            Row numbers of what was predicted.
        probabilities : ndarray of shape (m, n_classes), float64
        ids, groups : sequences of str, length n
            Of all rows of the data, as are `targets`.
        classes : tuple of str
        targets : ndarray of shape (n,), int64
        split : str
        fold : int
        """
        numbers = rows.tolist()
        return cls(
            ids=tuple(ids[row] for row in numbers),
            classes=classes,
            targets=targets[rows],
            probabilities=probabilities,
            groups=tuple(groups[row] for row in numbers),
            split=split,
            folds=np.full(len(rows), fold, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """The rows of these numbers alone, in their order; shape (m,)."""
        numbers = rows.tolist()
        return replace(
            self,
            ids=tuple(self.ids[row] for row in numbers),
            targets=self.targets[rows],
            probabilities=self.probabilities[rows],
            groups=tuple(self.groups[row] for row in numbers),
            folds=self.folds[rows],
            answers=None if self.answers is None else self.answers[rows],
        )

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Index of the class answered for each row, shape (n,)."""
        if self.answers is not None:
            return self.answers
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    @property
    def positive(self) -> str | None:
        """The positive class of a binary task, else None."""
        return positive_class(self.classes)


def positive_class(classes: Sequence[str]) -> str | None:
    """The positive class of a binary task, which is the second of the two, else None."""
    return classes[1] if len(classes) == 2 else None


def join(parts: Sequence[Predictions]) -> Predictions:
    """Put the predictions of several folds into one, in the order given."""
    first = parts[0]
    is_decided = any(part.answers is not None for part in parts)
    return Predictions(
        ids=tuple(name for part in parts for name in part.ids),
        classes=first.classes,
        targets=np.concatenate([part.targets for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        groups=tuple(group for part in parts for group in part.groups),
        split=first.split,
        folds=np.concatenate([part.folds for part in parts]),
        answers=np.concatenate([part.predicted for part in parts]) if is_decided else None,
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of shape (n, n_classes)."""
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
