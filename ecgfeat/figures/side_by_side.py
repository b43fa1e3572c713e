"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgfeat.figures.style import (
    COLOURS,
    GREY,
    INK,
    RULE,
    capitalised,
    in_lines,
    new_panels,
    save,
    with_default_settings,
    write_caption,
)
from ecgfeat.metrics import MAIN, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_plot"]

COSTS = {
    "features_s": "Extraction",
    "wall_s": "Training and testing",
    "peak_memory_mib": "Peak memory",
}


@with_default_settings
def comparison_plot(runs: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw the scores of several runs with their intervals, and beside them what the runs cost.

    Parameters
    ----------
    runs : sequence of mapping
        ``name``, ``label``, ``scores`` and ``cost``, as `Comparison.as_json` gives them.
    path : str or Path
        The PNG to write.
    title : str

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    names = [name for name in MAIN if name in runs[0]["scores"]]
    figure, panels = new_panels(13.0, 1.7 + 0.75 * len(runs), title, len(names) + len(COSTS))
    for axes, name in zip(panels, names):
        axes.set_title(capitalised(METRICS[name].title), fontsize=10)
        _draw_scores(axes, [run["scores"][name] for run in runs])
    _share_limits(panels[: len(names)], [run["scores"][name] for run in runs for name in names])
    for axes, (key, heading) in zip(panels[len(names) :], COSTS.items()):
        axes.set_title(heading, fontsize=10)
        in_words = _seconds_in_words if key.endswith("_s") else _mib_in_words
        _draw_costs(axes, [run["cost"][key] for run in runs], in_words)
    _name_runs(panels[0], runs)
    write_caption(
        figure,
        "Dots: scores on the test rows. Lines: their 95 % intervals. "
        "Features are extracted once, for all heads on them. "
        "Peak memory is the whole process's.",
    )
    save(figure, path)


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
        colour = COLOURS[row % len(COLOURS)]
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


def _share_limits(panels: Sequence[Axes], scores: Sequence[Mapping[str, Any] | None]) -> None:
    ends = [score[end] for score in scores if score for end in ("low", "high")]
    margin = 0.08 * (max(ends) - min(ends)) + 0.005
    for axes in panels:
        axes.set_xlim(min(ends) - margin, max(ends) + margin)


def _draw_costs(axes: Axes, costs: Sequence[float], in_words: Callable[[float], str]) -> None:
    colours = [COLOURS[row % len(COLOURS)] for row in range(len(costs))]
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
                in_lines(text, 44, n_lines=1),
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
