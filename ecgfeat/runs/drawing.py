"""The figures of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ecgfeat import figures, metrics
from ecgfeat.metrics import METRICS, Score
from ecgfeat.runs.describing import KIND_NAMES, headline
from ecgfeat.runs.records import Result

__all__ = ["draw_figures"]


def draw_figures(folder: Path, result: Result, scores: Mapping[str, Score | None]) -> None:
    """Draw everything that the result has, as PNG files in the run's folder.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    title, predictions = headline(result), result.predictions
    _draw_training(folder, result, f"{KIND_NAMES[result.kind]} on {result.data_name}")
    figures.confusion_matrix_plot(
        metrics.confusion_matrix(predictions),
        predictions.classes,
        folder / "confusion_matrix.png",
        title,
    )
    found = metrics.curves(predictions)
    if found.roc and found.precision_recall:
        figures.roc_plot(found.roc, scores, folder / "roc.png", title)
        share = float(np.mean(predictions.targets == 1)) if predictions.positive else None
        figures.precision_recall_plot(
            found.precision_recall, scores, share, folder / "precision_recall.png", title
        )
    figures.reliability_plot(
        found.reliability, scores, predictions.positive, folder / "reliability.png", title
    )


def _draw_training(folder: Path, result: Result, title: str) -> None:
    if result.history:
        history = [dataclasses.asdict(record) for record in result.history]
        figures.accuracy_curve(history, folder / "accuracy_curve.png", title)
        figures.loss_curve(history, folder / "loss_curve.png", title)
    if result.sweep:
        by = str(result.choice.get("by", "auroc"))
        figures.sweep_plot(
            result.sweep,
            by if by in METRICS and by in result.sweep[0] else "accuracy",
            folder / "sweep.png",
            f"Sweep on {result.data_name}",
        )
    if result.learning_curve:
        path = folder / "learning_curve.png"
        figures.learning_curve_plot(result.learning_curve, path, title)
