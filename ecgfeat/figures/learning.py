"""How a head gains from more training rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgfeat.figures.drawing import BLUE, RULE, capitalised, new_panels, save, write_caption
from ecgfeat.metrics import MAIN, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["learning_curve_plot"]


def learning_curve_plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw scores over the number of training rows, with a band over the seeds.

    Parameters
    ----------
    rows : sequence of mapping
        A training each: ``fraction``, ``n_train``, ``seed``, and any of the main scores (None where
        undefined). Of groups, the seeds of one fraction draw unlike numbers of rows; their mean is
        drawn.
    path : Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
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
    from matplotlib.ticker import FuncFormatter, NullLocator

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
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("Training rows")
    axes.set_title(capitalised(METRICS[name].title), fontsize=10, loc="left")
    axes.grid(axis="y", color=RULE)
