"""ROC, precision-recall and reliability."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfeat.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    RULE,
    SLANTED,
    VERMILION,
    capitalised,
    default_settings,
    distinct_colours,
    in_lines,
    new_figure,
    save,
    show_legend,
    write_caption,
)
from ecgfeat.metrics import MACRO, METRICS, Curve, Reliability, Score, in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "confusion_matrix_plot",
    "precision_recall_plot",
    "reliability_plot",
    "roc_comparison_plot",
    "roc_plot",
]


DrawStyle = Literal["default", "steps-pre"]
Scores = Mapping[str, Score | None]

LEGIBLE_LINES = 6
"""With more classes, only the mean of their curves is drawn."""

LEAST_AREA, LARGEST_AREA = 20, 120
"""Of a reliability curve's points, in square points of type: it goes by their rows, but the
smallest must be seen."""

BAND = "Band: 95 %, point by point, by bootstrap"


@default_settings()
def roc_plot(curve: Curve, scores: Scores, path: str | Path, title: str) -> None:
    """Draw the ROC curve with its 95 % band, and where the answers lie on it.

    Parameters
    ----------
    curve : Curve
        As `metrics.curves` gives it.
    scores : mapping of str to Score or None
        As `metrics.evaluate` gives them.
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    figure, axes = _roc_axes(title, width_in=_width_in(curve))
    _draw_curve(axes, curve, "auroc", scores)
    sensitivity, specificity = scores.get("sensitivity"), scores.get("specificity")
    if sensitivity and specificity:
        label = f"answers: sensitivity {sensitivity.value:.3f}, specificity {specificity.value:.3f}"
        _mark(axes, 1 - specificity.value, sensitivity.value, label)
    _name_lines(axes, "beside" if _has_classes(curve) else "lower right")
    write_caption(figure, f"{BAND}. Dotted: chance.")
    save(figure, path)


@default_settings()
def roc_comparison_plot(
    drawn: Mapping[str, tuple[Curve, Mapping[str, Any] | None]], path: str | Path, title: str
) -> None:
    """Draw the ROC curves of several runs in one panel.

    Parameters
    ----------
    drawn : mapping of str to (Curve, mapping or None)
        By what the run is called: its curve, of which the last line is drawn, and its AUROC as
        `Comparison.as_json` has it.
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    figure, axes = _roc_axes(title)
    for (name, (curve, area)), colour in zip(drawn.items(), distinct_colours(len(drawn))):
        x, y = list(curve.lines.values())[-1]
        value = f": AUROC {area['value']:.3f}" if area else ""
        axes.plot(x, y, color=colour, linewidth=1.8, label=f"{in_lines(name, 34, 1)}{value}")
    if len(drawn) <= len(COLOURS):
        show_legend(axes, 1)
    write_caption(figure, "Dotted: chance.")
    save(figure, path)


@default_settings()
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
    """
    figure, axes = _square(title, width_in=_width_in(curve))
    caption = BAND
    if prevalence is not None:
        axes.axhline(prevalence, color=GREY, linewidth=1, linestyle=":")
        caption += f". Dotted: chance, the share of positives ({prevalence:.3f})"
    _draw_curve(axes, curve, "average_precision", scores, drawstyle="steps-pre")
    sensitivity, ppv = scores.get("sensitivity"), scores.get("ppv")
    if sensitivity and ppv:
        label = f"answers: recall {sensitivity.value:.3f}, precision {ppv.value:.3f}"
        _mark(axes, sensitivity.value, ppv.value, label)
    axes.set_xlabel("Recall (sensitivity)")
    axes.set_ylabel("Precision (PPV)")
    _name_lines(axes, "beside" if _has_classes(curve) else "lower left")
    write_caption(figure, f"{caption}.")
    save(figure, path)


@default_settings()
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
    """
    figure, axes = _square(title, width_in=7.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    axes.vlines(found.said, found.low, found.high, color=BLUE, linewidth=1.4, alpha=0.6)
    axes.plot(found.said, found.true, color=BLUE, linewidth=1.2)
    sizes = np.maximum(LEAST_AREA, LARGEST_AREA * found.n_rows / found.n_rows.max())
    axes.scatter(
        found.said, found.true, s=sizes, color=BLUE, edgecolor="white", zorder=3, clip_on=False
    )
    for name in ("ece", "brier", "log_loss"):
        axes.plot([], [], linestyle="none", label=_named(name, scores))
    for n_rows in sorted({int(found.n_rows.min()), int(found.n_rows.max())}):
        size = sizes[found.n_rows == n_rows][0]
        label = f"{n_rows:,} {'row' if n_rows == 1 else 'rows'}"
        axes.scatter([], [], s=size, color=BLUE, label=label)
    of_whom = f"of {in_lines(positive, 40, 1)}" if positive else "of the most probable class"
    axes.set_xlabel(f"Probability {of_whom}", parse_math=False)
    axes.set_ylabel("Share that is positive" if positive else "Share that is right")
    _name_lines(axes, "beside")
    bins = "equal width" if found.is_equal_width else "about equal numbers of rows"
    write_caption(
        figure,
        f"Dots: rows of similar probability, in bins of {bins}, with 95 % intervals. "
        "Dotted: perfect calibration. The calibration error has 15 bins of its own.",
    )
    save(figure, path)


def _named(name: str, scores: Scores) -> str:
    """A score with its interval: ``AUROC 0.841 [0.835, 0.846]``."""
    score = scores.get(name)
    return f"{capitalised(METRICS[name].title)} {in_words(score) if score else 'undefined'}"


def _roc_axes(title: str, *, width_in: float = 4.8) -> tuple[Figure, Axes]:
    figure, axes = _square(title, width_in=width_in)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    axes.set_xlabel("False positive rate (1 − specificity)")
    axes.set_ylabel("True positive rate (sensitivity)")
    return figure, axes


def _square(title: str, *, width_in: float) -> tuple[Figure, Axes]:
    figure, axes = new_figure(width_in, 5.0, title)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_box_aspect(1)
    axes.grid(color=RULE, linewidth=0.6)
    return figure, axes


def _has_classes(curve: Curve) -> bool:
    """Whether a line is drawn for each of several classes."""
    return 2 < len(curve.lines) <= LEGIBLE_LINES + 1


def _width_in(curve: Curve) -> float:
    """Several classes are named beside the axes."""
    return 7.8 if _has_classes(curve) else 4.8


def _draw_curve(
    axes: Axes, curve: Curve, name_of_area: str, scores: Scores, drawstyle: DrawStyle = "default"
) -> None:
    area = METRICS[name_of_area].title
    axes.fill_between(curve.x, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0)
    *classes, last = curve.lines
    if _has_classes(curve):
        for name, colour in zip(classes, (*COLOURS[1:], GREY)):
            x, y = curve.lines[name]
            called = in_lines(name, 34, 2)
            gap = "\n" if len(called) > 20 else " "
            label_of_class = f"{called}:{gap}{area} {curve.areas[name]:.3f}"
            axes.plot(x, y, color=colour, linewidth=1.1, label=label_of_class, drawstyle=drawstyle)
    x, y = curve.lines[last]
    label = _named(name_of_area, scores)
    whole = f"{MACRO}:\n{label}" if classes else label
    axes.plot(x, y, color=BLUE, linewidth=2.2, label=whole, drawstyle=drawstyle)


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    axes.plot(x, y, linestyle="none", marker="D", color=VERMILION, markersize=7, label=label)


def _name_lines(axes: Axes, place: Literal["lower left", "lower right", "beside"]) -> None:
    """Say what is what, in a corner that curves leave free or where nothing can be hidden."""
    if place == "beside":
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
    else:
        legend = axes.legend(loc=place, fontsize=8.5)
    legend.get_frame().set(edgecolor="none", alpha=0.85)
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)


LEGIBLE_CLASSES = 30
"""With more classes, a confusion matrix is drawn without numbers, and not every class is named."""

CHARACTER_IN = 0.085
"""Width of a character of the tick labels' 9 points, in inches, generously."""


@default_settings()
def confusion_matrix_plot(
    matrix: NDArray[np.int64], classes: Sequence[str], path: str | Path, title: str
) -> None:
    """Draw counts by true and predicted class, with each cell's share of its true class.

    Parameters
    ----------
    matrix : ndarray of shape (n_classes, n_classes), int64
        True classes along the first axis.
    classes : sequence of str
    path, title
        As of all figures, see `ecgfeat.figures`.
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
    words = re.split("[ _-]", " ".join(classes))
    longest = max(map(len, words)) + 1  # and a hyphen
    truth_width = min(max(22, longest), 34)
    truths = [
        f"{in_lines(classes[index], truth_width)}\n(n = {support[index]:,})" for index in named
    ]
    axes.set_yticks(named, truths, parse_math=False)
    axes.set_ylabel("True class")
    width = int(cell_in / CHARACTER_IN)
    if longest <= width:
        labels = [in_lines(classes[index], width, n_lines=5) for index in named]
        axes.set_xticks(named, labels, parse_math=False)
    else:
        n_lines = 2 if cell_in > 0.45 else 1
        labels = [in_lines(classes[index], max(24, longest), n_lines=n_lines) for index in named]
        axes.set_xticks(named, labels, parse_math=False, **SLANTED)
    axes.set_xlabel("Predicted class")
