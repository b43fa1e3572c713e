"""How training went: accuracy and loss by epoch, and the loss over learning rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.figures.style import (
    BLUE,
    GREY,
    INK,
    RULE,
    SLANTED,
    VERMILION,
    capitalised,
    default_settings,
    new_figure,
    new_panels,
    save,
    show_legend,
    write_caption,
)
from ecgfeat.metrics import MAIN, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_curve", "learning_curve_plot", "loss_curve", "lr_range_plot"]


@default_settings()
def accuracy_curve(
    history: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str,
    majority: float | None = None,
    chosen: Sequence[int] = (),
) -> None:
    """Draw accuracy by epoch; of several folds, each as a thin line and their mean in bold.

    Parameters
    ----------
    history : sequence of mapping
        ``fold``, ``epoch`` (from 1), ``accuracy`` and ``val_accuracy`` (None where there are no
        validation rows) of each epoch.
    path, title
        As of all figures, see `ecgfeat.figures`.
    majority : float, optional
        Accuracy on the test rows of always answering the training rows' majority; a dotted line.
    chosen : sequence of int, optional
        By fold, the epoch that validation rows chose; a ring around its point.
    """
    _draw_history(history, "accuracy", "Accuracy", path, title, majority, chosen)


@default_settings()
def loss_curve(
    history: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str,
    chosen: Sequence[int] = (),
) -> None:
    """Draw the loss by epoch, from ``loss`` and ``val_loss``, as `accuracy_curve` does."""
    _draw_history(history, "loss", "Loss (cross-entropy)", path, title, None, chosen)


def _draw_history(
    history: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    path: str | Path,
    title: str,
    majority: float | None,
    chosen: Sequence[int],
) -> None:
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(5.8, 3.9, title)
    training = _by_fold(history, key)
    caption = "Training: mean over the epoch, while the weights change."
    _draw_folds(axes, training, "Training", BLUE, "o")
    deciding = training
    if history[0][f"val_{key}"] is not None:
        deciding = _by_fold(history, f"val_{key}")
        _draw_folds(axes, deciding, "Validation", VERMILION, "s")
        caption += " Validation: after the epoch."
    if len(training) > 1:
        caption += f" Bold: mean of {len(training)} folds."
    if chosen:
        _ring(axes, deciding, chosen)
        caption += " Ring: the epoch that validation rows chose."
    if majority is not None:
        name = f"Majority class: {majority:.3f}"
        axes.axhline(majority, color=GREY, linewidth=1, linestyle=":", label=name)
        caption += " Dotted: always the training rows' majority class, on the test rows."
    write_caption(figure, caption)
    axes.set_xlim(0.5, max(record["epoch"] for record in history) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_xlabel("Epoch")
    axes.set_ylabel(label)
    axes.margins(y=0.15)
    axes.grid(axis="y", color=RULE)
    show_legend(axes, 2)
    save(figure, path)


def _by_fold(history: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """Values of shape (n_folds, n_epochs); NaN after the last epoch of a fold that ended early."""
    folds = sorted({record["fold"] for record in history})
    values = np.full((len(folds), max(record["epoch"] for record in history)), np.nan)
    for record in history:
        values[folds.index(record["fold"]), record["epoch"] - 1] = record[key]
    return values


def _draw_folds(
    axes: Axes, values: NDArray[np.float64], name: str, colour: str, marker: str
) -> None:
    n_folds, n_epochs = values.shape
    epochs = np.arange(1, n_epochs + 1)
    if n_folds > 1:
        axes.plot(epochs, values.T, color=colour, marker=".", linewidth=0.8, alpha=0.4)
    # A mean of the folds that are left would jump where one ends.
    mean = values.mean(axis=0)
    ends = [fold[np.isfinite(fold)][-1] for fold in values if np.isfinite(fold).any()]
    axes.plot(
        epochs,
        mean,
        color=colour,
        marker=marker if n_epochs <= 20 else None,
        markersize=5,
        linewidth=2,
        label=f"{name}: {np.mean(ends):.3f} at the end" if ends else name,
    )


def _ring(axes: Axes, values: NDArray[np.float64], chosen: Sequence[int]) -> None:
    """Put a ring around each fold's chosen epoch."""
    fold_of = np.arange(len(values))
    epochs = np.array(chosen)
    axes.plot(
        epochs,
        values[fold_of, epochs - 1],
        linestyle="none",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=1.5,
        clip_on=False,
        label=f"Chosen: {'epoch' if len(chosen) == 1 else 'epochs'} {', '.join(map(str, chosen))}",
    )


@default_settings()
def lr_range_plot(
    tried: Sequence[Mapping[str, float]], chosen: float, path: str | Path, title: str
) -> None:
    """Draw the loss over the learning rates of a range test, and the rate that was chosen.

    Parameters
    ----------
    tried : sequence of mapping
        ``lr``, ``loss`` and ``smoothed`` of each step.
    chosen : float
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    figure, axes = new_figure(5.8, 3.9, title)
    rates, smoothed = [step["lr"] for step in tried], [step["smoothed"] for step in tried]
    axes.plot(rates, [step["loss"] for step in tried], color=GREY, linewidth=0.8, alpha=0.6)
    axes.plot(rates, smoothed, color=BLUE, linewidth=2)
    axes.axvline(chosen, color=VERMILION, linewidth=1.5)
    axes.annotate(
        f"{chosen:g}",
        (chosen, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        color=VERMILION,
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.3 * max(smoothed))
    axes.set_xlabel("Learning rate")
    axes.set_ylabel("Loss")
    axes.grid(axis="y", color=RULE)
    write_caption(
        figure,
        "Thin: the loss of each mini-batch while the rate rises. Bold: smoothed. "
        "Line: the rate chosen.",
    )
    save(figure, path)


@default_settings()
def learning_curve_plot(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw scores over the number of training rows, with a band over the seeds.

    Parameters
    ----------
    rows : sequence of mapping
        A training each: ``fraction``, ``n_train``, ``seed``, and any of the main scores (None where
        undefined). Of groups, the seeds of one fraction draw unlike numbers of rows; their mean is
        drawn.
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    names = [name for name in MAIN if any(row.get(name) is not None for row in rows)]
    figure, panels = new_panels(3.6 * len(names) + 1.2, 4.0, title, len(names))
    for axes, name in zip(panels, names):
        _draw(axes, rows, name)
    panels[0].set_ylabel("Score on the validation rows")
    n_seeds = len({row["seed"] for row in rows})
    write_caption(
        figure,
        f"Lines: mean over {n_seeds} seeds. Bands: one standard deviation on either side. "
        "Dots: each training."
        if n_seeds > 1
        else "One training each.",
    )
    save(figure, path)


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    from matplotlib.ticker import NullLocator

    by_fraction: defaultdict[float, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        if row.get(name) is not None:
            by_fraction[row["fraction"]].append((row["n_train"], row[name]))
    points = [np.array(by_fraction[fraction]).T for fraction in sorted(by_fraction)]
    sizes = [float(n_rows.mean()) for n_rows, _ in points]
    means = np.array([scores.mean() for _, scores in points])
    spreads = np.array([scores.std(ddof=1) if len(scores) > 1 else 0.0 for _, scores in points])
    axes.fill_between(sizes, means - spreads, means + spreads, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(sizes, means, color=BLUE, linewidth=2, marker="o", markersize=5)
    for n_rows, scores in points:
        axes.plot(n_rows, scores, ".", color=BLUE, alpha=0.5)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], **SLANTED)
    axes.set_xlabel("Training rows")
    axes.set_title(capitalised(METRICS[name].title), fontsize=10, loc="left")
    axes.grid(axis="y", color=RULE)
