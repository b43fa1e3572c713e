"""The confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgfeat.figures.drawing import INK, RULE, in_lines, new_figure, save, write_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["confusion_matrix_plot"]

LEGIBLE_CLASSES = 30
"""With more classes, a confusion matrix is drawn without numbers, and not every class is named."""

CHARACTER_IN = 0.085
"""Width of a character of the tick labels' 9 points, in inches, generously."""


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
