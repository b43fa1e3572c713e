"""The figures of runs and comparisons, as PNG files.

Drawn with matplotlib's objects, without pyplot: no window system is asked for, and no state is
shared between figures. The same numbers give the same bytes.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_curve", "comparison_plot", "confusion_matrix_plot"]

DPI = 150

# Okabe & Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
RUN_COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, RULE = "#222222", "#666666", "#dddddd"

LEGIBLE_CLASSES = 30
"""With more classes, a confusion matrix is drawn without numbers, and not every class is named."""

CHARACTER_IN = 0.085
"""Width of a character of the tick labels' 9 points, in inches, generously."""

SCORE_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
}
COSTS = {
    "features_s": "Extraction",
    "wall_s": "Training and testing",
    "peak_memory_mib": "Peak memory",
}


def accuracy_curve(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw accuracy by epoch; of several folds, each as a thin line and their mean in bold.

    Parameters
    ----------
    history : sequence of mapping
        ``fold``, ``epoch`` (from 1), ``accuracy`` and ``val_accuracy`` (None where there are no
        validation rows) of each epoch.
    path : Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(6.4, 4.2, title)
    training = _by_fold(history, "accuracy")
    caption = "Training: mean over the epoch, while the weights change."
    _draw_folds(axes, training, "Training", BLUE, "o")
    if history[0]["val_accuracy"] is not None:
        _draw_folds(axes, _by_fold(history, "val_accuracy"), "Validation", VERMILION, "s")
        caption += " Validation: after the epoch."
    if len(training) > 1:
        caption += f" Bold: mean of {len(training)} folds."
    _caption(figure, caption)
    axes.set_xlim(0.5, max(record["epoch"] for record in history) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Accuracy")
    axes.margins(y=0.15)
    axes.grid(axis="y", color=RULE)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def _by_fold(history: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """Values of shape (n_folds, n_epochs)."""
    folds: defaultdict[int, list[float]] = defaultdict(list)
    for record in history:
        folds[record["fold"]].append(record[key])
    return np.array(list(folds.values()))


def _draw_folds(
    axes: Axes, values: NDArray[np.float64], name: str, colour: str, marker: str
) -> None:
    n_folds, n_epochs = values.shape
    epochs = np.arange(1, n_epochs + 1)
    if n_folds > 1:
        axes.plot(epochs, values.T, color=colour, marker=".", linewidth=0.8, alpha=0.4)
    axes.plot(
        epochs,
        values.mean(axis=0),
        color=colour,
        marker=marker if n_epochs <= 20 else None,
        markersize=5,
        linewidth=2,
        label=f"{name}: {values[:, -1].mean():.3f} at the end",
    )


def confusion_matrix_plot(
    matrix: NDArray[np.int64], classes: Sequence[str], path: Path, title: str
) -> None:
    """Draw counts by true and predicted class, with each cell's share of its true class.

    Parameters
    ----------
    matrix : ndarray of shape (n_classes, n_classes), int64
        True classes along the first axis.
    classes : sequence of str
    path : Path
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
    figure, axes = _figure(max(5.5, k * cell_in + 2.6), k * cell_in + 1.9, title)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if k <= LEGIBLE_CLASSES:
        _write_cells(axes, matrix, shares)
    _name_classes(axes, classes, support[:, 0], cell_in)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=RULE)
    _caption(
        figure, "Rows of each true class by predicted class, and their share of the true class."
    )
    _save(figure, path)


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
    truths = [f"{_lines(classes[index], 22)}\n(n = {support[index]:,})" for index in named]
    axes.set_yticks(named, truths, parse_math=False)
    axes.set_ylabel("True class")
    width = int(cell_in / CHARACTER_IN)
    words = " ".join(classes).replace("_", "_ ").replace("-", "- ").split()
    if max(map(len, words), default=0) <= width:
        labels = [_lines(classes[index], width) for index in named]
        axes.set_xticks(named, labels, parse_math=False)
    else:
        labels = [_lines(classes[index], 30, n_lines=1) for index in named]
        axes.set_xticks(named, labels, parse_math=False)
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("Predicted class")


def comparison_plot(runs: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the scores of several runs with their intervals, and beside them what the runs cost.

    Parameters
    ----------
    runs : sequence of mapping
        ``name``, ``label``, ``scores`` and ``cost``, as `Comparison.as_json` gives them.
    path : Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    names = list(runs[0]["scores"])
    figure, panels = _panels(13.0, 1.7 + 0.75 * len(runs), title, len(names) + len(COSTS))
    for axes, name in zip(panels, names):
        axes.set_title(SCORE_NAMES[name], fontsize=10)
        _draw_scores(axes, [run["scores"][name] for run in runs])
    _share_limits(panels[: len(names)], runs)
    for axes, (key, heading) in zip(panels[len(names) :], COSTS.items()):
        axes.set_title(heading, fontsize=10)
        in_words = _seconds_in_words if key.endswith("_s") else _mib_in_words
        _draw_costs(axes, [run["cost"][key] for run in runs], in_words)
    _name_runs(panels[0], runs)
    _caption(
        figure,
        "Dots: scores on the test rows. Lines: their 95 % intervals. "
        "Features are extracted once, for all heads on them. "
        "Peak memory is the whole process's.",
    )
    _save(figure, path)


def _draw_scores(axes: Axes, scores: Sequence[Mapping[str, Any] | None]) -> None:
    axes.grid(axis="x", color=RULE)
    for row, score in enumerate(scores):
        if score is None:
            axes.text(
                0.5,
                row,
                "undefined",
                transform=axes.get_yaxis_transform(),
                color=GREY,
                ha="center",
                va="center",
                fontsize=9,
            )
            continue
        colour = RUN_COLOURS[row % len(RUN_COLOURS)]
        axes.plot([score["low"], score["high"]], [row, row], color=colour, linewidth=2.5)
        axes.plot(score["value"], row, color=colour, marker="o", markersize=7)
        axes.annotate(
            f"{score['value']:.3f}",
            (score["value"], row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )


def _share_limits(panels: Sequence[Axes], runs: Sequence[Mapping[str, Any]]) -> None:
    ends = [
        score[end]
        for run in runs
        for score in run["scores"].values()
        if score
        for end in ("low", "high")
    ]
    margin = 0.08 * (max(ends) - min(ends)) + 0.005
    for axes in panels:
        axes.set_xlim(min(ends) - margin, max(ends) + margin)


def _draw_costs(axes: Axes, costs: Sequence[float], in_words: Callable[[float], str]) -> None:
    colours = [RUN_COLOURS[row % len(RUN_COLOURS)] for row in range(len(costs))]
    axes.barh(range(len(costs)), costs, height=0.4, color=colours)
    for row, cost in enumerate(costs):
        axes.annotate(
            in_words(cost),
            (cost, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.set_xlim(0, 1.45 * max(costs) or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _name_runs(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_yticks([])
    for row, run in enumerate(runs):
        cost = run["cost"]
        details = f"{cost['arch']}, batch {cost['batch_size']}, {cost['device']}"
        for text, offset, size, colour in (
            (run["label"], 12, 10, INK),
            (details, -2, 8, GREY),
            (run["name"], -14, 7, GREY),
        ):
            axes.annotate(
                _lines(text, 44, n_lines=1),
                (0, row),
                xycoords=axes.get_yaxis_transform(),
                xytext=(-8, offset),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=size,
                color=colour,
                parse_math=False,
            )


def _seconds_in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _mib_in_words(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _figure(width_in: float, height_in: float, title: str) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(width_in, height_in, title, 1)
    return figure, axes


def _panels(
    width_in: float, height_in: float, title: str, n_panels: int
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(
        _lines(title, int(width_in * 11.5)),
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
        parse_math=False,
    )
    panels = [figure.add_subplot(1, n_panels, 1)]
    for position in range(2, n_panels + 1):
        panels.append(figure.add_subplot(1, n_panels, position, sharey=panels[0]))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    for axes in panels[1:]:
        axes.tick_params(labelleft=False, left=False)
    return figure, panels


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)


def _lines(text: str, width: int, n_lines: int = 3) -> str:
    """Break text into at most `n_lines` lines, also after underscores; cut off what is left."""
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    wrapped = textwrap.wrap(printable.replace("_", "_ "), width, max_lines=n_lines, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in wrapped)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(), replacing(path) as aside:
        # Classes may be named in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(
            aside,
            format="png",
            dpi=DPI,
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Software": None},
        )
