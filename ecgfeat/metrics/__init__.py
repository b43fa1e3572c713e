"""Scores of predictions, each with a 95 % interval.

Every score is computed from row weights, so that the data (each weight 1) and thousands of
bootstrap resamples (how often each row was drawn) go through the same few array operations.

`scores` are the functions of row weights, `intervals` resamples them, and `tables` counts right
and wrong answers by class.
"""

from ecgfeat.metrics.intervals import (
    Resampled,
    Score,
    bootstrap_weights,
    evaluate,
    in_id_order,
    resample,
)
from ecgfeat.metrics.scores import METRICS, auroc
from ecgfeat.metrics.tables import (
    ClassificationTable,
    TableRow,
    classification_table,
    confusion_matrix,
)

__all__ = [
    "METRICS",
    "ClassificationTable",
    "Resampled",
    "Score",
    "TableRow",
    "auroc",
    "bootstrap_weights",
    "classification_table",
    "confusion_matrix",
    "evaluate",
    "in_id_order",
    "resample",
]
