"""Scores of predictions, each with a 95 % interval.

Every score is computed from row weights, so that the data (each weight 1) and thousands of
bootstrap resamples (how often each row was drawn) go through the same few array operations.

`names` says which scores there are, `scores` and `ranking` are the functions of row weights,
`sampling` resamples rows or groups, `intervals` sums the resamples up, `curves` does so for whole
curves, and `tables` counts right and wrong answers by class.
"""

from ecgfeat.metrics.intervals import Resampled, Score, evaluate, resample
from ecgfeat.metrics.roc import MACRO, Curve, Curves, Reliability, curves
from ecgfeat.metrics.scores import (
    MAIN,
    METRICS,
    Z_95,
    ClassificationTable,
    Metric,
    Sample,
    TableRow,
    auroc,
    bootstrap_weights,
    classification_table,
    confusion_matrix,
    in_id_order,
    score_values,
)

__all__ = [
    "MACRO",
    "MAIN",
    "METRICS",
    "Z_95",
    "ClassificationTable",
    "Curve",
    "Curves",
    "Metric",
    "Reliability",
    "Resampled",
    "Sample",
    "Score",
    "TableRow",
    "auroc",
    "bootstrap_weights",
    "classification_table",
    "confusion_matrix",
    "curves",
    "evaluate",
    "in_id_order",
    "resample",
    "score_values",
]
