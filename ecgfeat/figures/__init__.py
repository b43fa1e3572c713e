"""The figures of runs and comparisons, as PNG, PDF or SVG files by their suffix.

Drawn with matplotlib's objects, without pyplot: no window system is asked for, and no state is
shared between figures. The same numbers give the same bytes.

Each is written to a `path`, as a PNG, PDF or SVG by its suffix, below a `title`; an empty title
takes no room. `StorageError` says that the disk refused.

`style` is what all share, matplotlib's own settings among it; the others draw a kind each: how
training went, what was classified how, what a sweep tried, and runs side by side.
"""

from ecgfeat.figures.choice import sweep_plot
from ecgfeat.figures.classification import (
    confusion_matrix_plot,
    precision_recall_plot,
    reliability_plot,
    roc_comparison_plot,
    roc_plot,
)
from ecgfeat.figures.side_by_side import comparison_plot
from ecgfeat.figures.training import accuracy_curve, learning_curve_plot, loss_curve, lr_range_plot

__all__ = [
    "accuracy_curve",
    "comparison_plot",
    "confusion_matrix_plot",
    "learning_curve_plot",
    "loss_curve",
    "lr_range_plot",
    "precision_recall_plot",
    "reliability_plot",
    "roc_comparison_plot",
    "roc_plot",
    "sweep_plot",
]
