"""The scores by name: what each is called and what its interval rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MAIN", "METRICS", "Basis", "Metric", "score_names"]

Basis = Literal[
    "rows",
    "rarest",
    "positives",
    "negatives",
    "answered positive",
    "answered negative",
]
"""Which rows a score rests on: all, or those of the rarest class, or of one side's."""

WORST_LOG_LOSS = 36.04365338911715
"""-log of the double's machine epsilon, below which no probability is told from 0."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score.

    Attributes
    ----------
    title : str
        Its name for people, short enough for a table.
    basis : Basis
        The rows it rests on, where their number decides how sure it is.
    is_share : bool
        Whether it is the share of right answers among these rows.
    is_binary : bool
        Whether it speaks of positives, and so needs two classes.
    is_loss : bool
        Whether less of it is better.
    greatest : float
        Upper end of its scale, which begins at 0.
    """

    title: str
    basis: Basis = "rarest"
    is_share: bool = False
    is_binary: bool = False
    is_loss: bool = False
    greatest: float = 1.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(title="accuracy", basis="rows", is_share=True),
    "balanced_accuracy": Metric(title="balanced accuracy"),
    "sensitivity": Metric(title="sensitivity", basis="positives", is_share=True, is_binary=True),
    "specificity": Metric(title="specificity", basis="negatives", is_share=True, is_binary=True),
    "ppv": Metric(title="PPV", basis="answered positive", is_share=True, is_binary=True),
    "npv": Metric(title="NPV", basis="answered negative", is_share=True, is_binary=True),
    "ppv_at_prevalence": Metric(title="PPV at prevalence", is_binary=True),
    "npv_at_prevalence": Metric(title="NPV at prevalence", is_binary=True),
    "f1": Metric(title="F1"),
    "auroc": Metric(title="AUROC"),
    "average_precision": Metric(title="average precision"),
    "brier": Metric(title="Brier score", basis="rows", is_loss=True, greatest=2.0),
    "ece": Metric(title="calibration error", basis="rows", is_loss=True),
    "log_loss": Metric(title="log loss", basis="rows", is_loss=True, greatest=WORST_LOG_LOSS),
}
"""Every score by its name in ``metrics.json``, in the order in which they are shown."""

MAIN = ("accuracy", "balanced_accuracy", "auroc")
"""The scores to look at first, which every task has."""

AT_PREVALENCE = ("ppv_at_prevalence", "npv_at_prevalence")
"""Scores that follow from sensitivity and specificity at a share of positives stated by hand."""


def score_names(n_classes: int) -> tuple[str, ...]:
    """Names of the scores that are computed from rows of so many classes, in order."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if name not in AT_PREVALENCE and (n_classes == 2 or not metric.is_binary)
    )
