"""Scores of predictions, each with a 95 % interval.

Every score is computed from row weights, so that the data (each weight 1) and thousands of
bootstrap resamples (how often each row was drawn) go through the same few array operations.

`scores` says which scores there are and computes them, resamples rows or groups, and counts right
and wrong answers by class; `intervals` sums the resamples up and tests two models against each
other, and `roc` draws whole curves.
"""

from ecgfeat.metrics.intervals import (
    AreaTest,
    Resampled,
    Score,
    area_with_error,
    compare_areas,
    evaluate,
    holm,
    in_words,
    mcnemar_p_value,
    p_in_words,
    resample,
)
from ecgfeat.metrics.roc import MACRO, Curve, Curves, Reliability, curves
from ecgfeat.metrics.scores import (
    MAIN,
    METRICS,
    Z_95,
    Metric,
    Sample,
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
    "AreaTest",
    "Curve",
    "Curves",
    "Metric",
    "Reliability",
    "Resampled",
    "Sample",
    "Score",
    "area_with_error",
    "bootstrap_weights",
    "classification_table",
    "compare_areas",
    "confusion_matrix",
    "curves",
    "evaluate",
    "holm",
    "in_id_order",
    "in_words",
    "mcnemar_p_value",
    "p_in_words",
    "resample",
    "score_values",
]
