"""ROC, precision-recall and reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    RULE,
    VERMILION,
    capitalised,
    in_lines,
    new_figure,
    save,
    with_default_settings,
    write_caption,
)
from ecgfeat.metrics import MACRO, METRICS, Curve, Reliability, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_matrix_plot", "precision_recall_plot", "reliability_plot", "roc_plot"]


DrawStyle = Literal["default", "steps-pre"]
Scores = Mapping[str, Score | None]

LEGIBLE_LINES = 6
"""With more classes, only the mean of their curves is drawn."""

BAND = "Band: 95 %, point by point, by bootstrap"


@with_default_settings
def roc_plot(curve: Curve, scores: Scores, path: str | Path, title: str) -> None:
    """Draw the ROC curve with its 95 % band, and where the answers lie on it.

    Parameters
    ----------
    curve : Curve
        As `metrics.curves` gives it.
    scores : mapping of str to Score or None
        As `metrics.evaluate` gives them.
    path : str or Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    figure, axes = _square(title)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    _draw_curve(axes, curve, in_words("auroc", scores))
    sensitivity, specificity = scores.get("sensitivity"), scores.get("specificity")
    if sensitivity and specificity:
        label = f"answers: sensitivity {sensitivity.value:.3f}, specificity {specificity.value:.3f}"
        _mark(axes, 1 - specificity.value, sensitivity.value, label)
    axes.set_xlabel("False positive rate (1 − specificity)")
    axes.set_ylabel("True positive rate (sensitivity)")
    _name_lines(axes, "lower right")
    write_caption(figure, f"{BAND}. Dotted: chance.")
    save(figure, path)


@with_default_settings
def precision_recall_plot(
    curve: Curve, scores: Scores, prevalence: float | None, path: str | Path, title: str
) -> None:
    """Draw the precision-recall curve with its 95 % band, and where the answers lie on it.

    Parameters
    ----------
    curve, scores, path, title
        As in `roc_plot`.
    prevalence : float or None
        Share of the positive class among the rows; None with more than two classes.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    figure, axes = _square(title)
    caption = BAND
    if prevalence is not None:
        axes.axhline(prevalence, color=GREY, linewidth=1, linestyle=":")
        caption += f". Dotted: chance, the share of positives ({prevalence:.3f})"
    _draw_curve(axes, curve, in_words("average_precision", scores), drawstyle="steps-pre")
    sensitivity, ppv = scores.get("sensitivity"), scores.get("ppv")
    if sensitivity and ppv:
        label = f"answers: recall {sensitivity.value:.3f}, precision {ppv.value:.3f}"
        _mark(axes, sensitivity.value, ppv.value, label)
    axes.set_xlabel("Recall (sensitivity)")
    axes.set_ylabel("Precision (PPV)")
    _name_lines(axes, "lower left")
    write_caption(figure, f"{caption}.")
    save(figure, path)


@with_default_settings
def reliability_plot(
    found: Reliability, scores: Scores, positive: str | None, path: str | Path, title: str
) -> None:
    """Draw how often what was said with some probability came true, and how often it was said.

    Parameters
    ----------
    found : Reliability
        As `metrics.curves` gives it.
    scores, path, title
        As in `roc_plot`.
    positive : str or None
        The positive class of a binary task.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _square(title)
    rooms = figure.add_gridspec(2, 1, height_ratios=(6, 1))
    axes.set_subplotspec(rooms[0])
    axes.set_box_aspect(None)
    counts = figure.add_subplot(rooms[1], sharex=axes)
    counts.spines[["top", "right"]].set_visible(False)
    counts.tick_params(labelsize=9)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    axes.fill_between(found.said, found.low, found.high, color=BLUE, alpha=0.15, linewidth=0)
    axes.vlines(found.said, found.low, found.high, color=BLUE, linewidth=1.2, alpha=0.6)
    axes.plot(found.said, found.true, color=BLUE, linewidth=2, marker="o", markersize=5)
    for name in ("ece", "brier", "log_loss"):
        axes.plot([], [], linestyle="none", label=in_words(name, scores))
    counts.vlines(found.said, 0, found.n_rows, color=GREY, linewidth=6)
    counts.set_ylim(0, None)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    counts.set_ylabel("Rows")
    axes.tick_params(labelbottom=False)
    of_whom = f"of {in_lines(positive, 40, 1)}" if positive else "of the most probable class"
    counts.set_xlabel(f"Probability {of_whom}", parse_math=False)
    share = "Share that is positive" if positive else "Share that is right"
    axes.set_ylabel(share)
    _name_lines(axes, "lower right")
    write_caption(
        figure,
        "Dots: rows of similar probability, in bins of equal width, with 95 % intervals. "
        "Dotted: perfect calibration.",
    )
    save(figure, path)


def in_words(name: str, scores: Scores) -> str:
    """A score with its interval: ``AUROC 0.841 [0.835, 0.846]``."""
    score, title = scores.get(name), capitalised(METRICS[name].title)
    if score is None:
        return f"{title} undefined"
    return f"{title} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _square(title: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure(5.8, 5.8, title)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_box_aspect(1)
    axes.grid(color=RULE, linewidth=0.6)
    return figure, axes


def _draw_curve(axes: Axes, curve: Curve, label: str, drawstyle: DrawStyle = "default") -> None:
    axes.fill_between(curve.x, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0)
    *classes, last = curve.lines
    if len(classes) <= LEGIBLE_LINES:
        for name, colour in zip(classes, (*COLOURS[1:], GREY)):
            x, y = curve.lines[name]
            label_of_class = in_lines(name, 30, 1)
            axes.plot(x, y, color=colour, linewidth=1.1, label=label_of_class, drawstyle=drawstyle)
    x, y = curve.lines[last]
    whole = f"{MACRO}: {label}" if classes else label
    axes.plot(x, y, color=BLUE, linewidth=2.2, label=whole, drawstyle=drawstyle)


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    axes.plot(x, y, linestyle="none", marker="D", color=VERMILION, markersize=7, label=label)


def _name_lines(axes: Axes, place: Literal["lower left", "lower right"]) -> None:
    legend = axes.legend(loc=place, fontsize=8.5)
    legend.get_frame().set(edgecolor="none", alpha=0.85)
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)


LEGIBLE_CLASSES = 30
"""With more classes, a confusion matrix is drawn without numbers, and not every class is named."""

CHARACTER_IN = 0.085
"""Width of a character of the tick labels' 9 points, in inches, generously."""


@with_default_settings
def confusion_matrix_plot(
    matrix: NDArray[np.int64], classes: Sequence[str], path: str | Path, title: str
) -> None:
    """Draw counts by true and predicted class, with each cell's share of its true class.

    Parameters
    ----------
    matrix : ndarray of shape (n_classes, n_classes), int64
        True classes along the first axis.
    classes : sequence of str
    path : str or Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    k = len(classes)
    cell_in = max(0.5, 1.4 - 0.1 * k) if k <= LEGIBLE_CLASSES else 15 / k
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.zeros((k, k)), where=support > 0)
    figure, axes = new_figure(max(5.5, k * cell_in + 2.6), k * cell_in + 1.9, title)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if k <= LEGIBLE_CLASSES:
        _write_cells(axes, matrix, shares)
    _name_classes(axes, classes, support[:, 0], cell_in)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=RULE)
    write_caption(
        figure, "Rows of each true class by predicted class, and their share of the true class."
    )
    save(figure, path)


def _write_cells(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in np.ndindex(matrix.shape):
        share = shares[row, column]
        in_words = f"{100 * share:.1f} %" if matrix[row].any() else "–"
        axes.text(
            column,
            row,
            f"{matrix[row, column]:,}\n{in_words}",
            ha="center",
            va="center",
            fontsize=11 if len(matrix) <= 4 else 8,
            color="white" if share > 0.55 else INK,
        )


def _name_classes(
    axes: Axes, classes: Sequence[str], support: NDArray[np.int64], cell_in: float
) -> None:
    named = range(0, len(classes), math.ceil(len(classes) / LEGIBLE_CLASSES))
    truths = [f"{in_lines(classes[index], 22)}\n(n = {support[index]:,})" for index in named]
    axes.set_yticks(named, truths, parse_math=False)
    axes.set_ylabel("True class")
    width = int(cell_in / CHARACTER_IN)
    words = " ".join(classes).replace("_", "_ ").replace("-", "- ").split()
    if max(map(len, words), default=0) <= width:
        labels = [in_lines(classes[index], width) for index in named]
        axes.set_xticks(named, labels, parse_math=False)
    else:
        labels = [in_lines(classes[index], 30, n_lines=1) for index in named]
        axes.set_xticks(named, labels, parse_math=False)
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("Predicted class")
