"""Counts of right and wrong answers, and the classification report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgfeat.metrics.ranking import Floats, Integers
from ecgfeat.predictions import Predictions

__all__ = ["ClassificationTable", "TableRow", "classification_table", "confusion_matrix"]


def confusion_matrix(predictions: Predictions) -> Integers:
    """Count rows by true class (first axis) and predicted class, shape (n_classes, n_classes)."""
    k = len(predictions.classes)
    cells = predictions.targets * k + predictions.predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """Precision, recall and F1 of a class or an average of classes; support counts its rows."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class ClassificationTable:
    """Precision, recall and F1 by class, and their averages.

    ``str()`` is the text of scikit-learn's ``classification_report`` with ``digits=4`` and
    ``zero_division=0``, character by character.
    """

    rows: tuple[TableRow, ...]
    accuracy: float
    macro: TableRow
    weighted: TableRow

    def __str__(self) -> str:
        width = max(len(row.name) for row in (*self.rows, self.weighted))
        head = f"{'':>{width}} " + "".join(
            f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")
        )
        n_rows = self.weighted.support
        accuracy = f"{'accuracy':>{width}} {'':20} {self.accuracy:>9.4f} {n_rows:>9}"
        classes = [_table_line(row, width) for row in self.rows]
        averages = [_table_line(row, width) for row in (self.macro, self.weighted)]
        return "\n".join([head, "", *classes, "", accuracy, *averages, ""])


def _table_line(row: TableRow, width: int) -> str:
    shares = f"{row.precision:>9.4f} {row.recall:>9.4f} {row.f1:>9.4f}"
    return f"{row.name:>{width}}  {shares} {row.support:>9}"


def classification_table(predictions: Predictions) -> ClassificationTable:
    """Precision, recall and F1 of every class; 0 where one is undefined.

    The averages count a class without any row as 0, as scikit-learn's do; `evaluate` leaves it
    out of balanced accuracy.
    """
    matrix = confusion_matrix(predictions)
    right, support, n_predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    shares = np.stack(
        [
            _ratio_or_zero(right, n_predicted),
            _ratio_or_zero(right, support),
            _ratio_or_zero(2 * right, support + n_predicted),
        ]
    )
    n_rows = int(support.sum())
    return ClassificationTable(
        rows=tuple(
            _table_row(name, column, n)
            for name, column, n in zip(predictions.classes, shares.T, support.tolist())
        ),
        accuracy=int(right.sum()) / n_rows,
        macro=_table_row("macro avg", shares.mean(axis=1), n_rows),
        weighted=_table_row("weighted avg", np.average(shares, axis=1, weights=support), n_rows),
    )


def _table_row(name: str, shares: Floats, support: int) -> TableRow:
    precision, recall, f1 = shares.tolist()
    return TableRow(name=name, precision=precision, recall=recall, f1=f1, support=support)


def _ratio_or_zero(part: Integers, whole: Integers) -> Floats:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
