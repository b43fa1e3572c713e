"""What a run says of itself: ``metrics.json``, ``model.json`` and its headline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgfeat import metrics
from ecgfeat.metrics import METRICS, Score
from ecgfeat.predictions import Predictions
from ecgfeat.runs.records import FORMAT_VERSION, Result

__all__ = ["KIND_NAMES", "describe_model", "describe_scores", "headline"]

KIND_NAMES = {
    "linear": "Linear head",
    "logreg": "Logistic regression",
    "both": "Linear head or logistic regression",
    "finetune": "Fine-tuning",
}


def describe_model(result: Result) -> dict[str, Any]:
    """The content of ``model.json``."""
    card = {
        "format_version": FORMAT_VERSION,
        "kind": result.kind,
        "classes": result.predictions.classes,
        **result.model_card,
    }
    if result.model and result.decisions:
        card["decision"] = result.decisions[0].as_json()
    return card


def describe_scores(result: Result, scores: Mapping[str, Score | None]) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Parameters
    ----------
    result : Result
    scores : mapping of str to Score or None
        Of its predictions, as `metrics.evaluate` gives them.
    """
    predictions = result.predictions
    described = {
        "n_test": len(predictions),
        "n_test_total": result.n_test_total,
        "test_rows": _tested_rows(result),
        "split": predictions.split,
        "classes": predictions.classes,
        "positive": predictions.positive,
        "scores": {name: score and dataclasses.asdict(score) for name, score in scores.items()},
        "confusion_matrix": metrics.confusion_matrix(predictions).tolist(),
        "cost": dataclasses.asdict(result.cost),
    }
    if result.prevalence:
        described["prevalence"] = result.prevalence
    if predictions.split == "cv":
        numbers = predictions.folds
        folds = [predictions.take(np.flatnonzero(numbers == fold)) for fold in np.unique(numbers)]
        described["over_folds"] = _spread(folds)
    if result.repeats:
        described["over_seeds"] = _spread([predictions, *result.repeats])
    if result.decisions:
        described["decisions"] = [decision.as_json() for decision in result.decisions]
    if result.choice:
        described["choice"] = dict(result.choice)
    return described


def _spread(parts: Sequence[Predictions]) -> dict[str, Any]:
    """Number, mean and standard deviation (n - 1) of each score over those that define it."""
    values = [metrics.score_values(part) for part in parts]
    spread = {}
    for name in METRICS:
        found = [value[name] for value in values if name in value and np.isfinite(value[name])]
        if found:
            std = float(np.std(found, ddof=1)) if len(found) > 1 else None
            spread[name] = {"n": len(found), "mean": float(np.mean(found)), "std": std}
    return spread


def headline(result: Result) -> str:
    """Kind of run, data, test rows and positive class, in a line."""
    title = f"{KIND_NAMES[result.kind]} on {result.data_name}, test rows: {_tested_rows(result)}"
    positive = result.predictions.positive
    return f"{title}, positive: {positive}" if positive else title


def _tested_rows(result: Result) -> str:
    """The test rows in words, which say so wherever they are a subset."""
    predictions, n = result.predictions, len(result.predictions)
    if predictions.split == "test-subset":
        return f"subset of {n} of {result.n_test_total}"
    words = f"all {n}" if n == result.n_test_total else f"{n} of {result.n_test_total}"
    if predictions.split == "cv":
        return f"{words}, in {len(np.unique(predictions.folds))} folds"
    return words
