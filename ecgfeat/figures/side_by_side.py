"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgfeat.figures.style import (
    GREY,
    INK,
    RULE,
    capitalised,
    default_settings,
    distinct_colours,
    in_lines,
    new_grid,
    save,
    write_caption,
)
from ecgfeat.metrics import MAIN, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["comparison_plot"]

Described = Mapping[str, Any]
"""A run, a pair or a score, as `Comparison.as_json` has them."""

COSTS = {
    "features_s": "Extraction",
    "wall_s": "Training and testing",
    "peak_memory_mib": "Peak memory",
}
UNITS_OF_TIME = {"s": 1, "min": 60, "h": 3600}
MOST_OF_A_UNIT = 600
"""With more seconds or minutes, the next larger unit is taken."""
RUN_IN, DIFFERENCE_IN = 0.75, 0.5
"""Height of a run's row, and of a difference's, in inches."""
MOST_IN = 60.0
"""Height of all rows of a kind: matplotlib refuses pictures of more than 65,535 pixels a side."""


@default_settings()
def comparison_plot(comparison: Described, path: str | Path, title: str) -> None:
    """Draw the scores of several runs, what they cost, and their differences to the first run.

    Parameters
    ----------
    comparison : mapping
        As `Comparison.as_json` gives it; of it ``runs`` and ``pairs`` are drawn, and ``positive``
        says whether the task is binary.
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    runs = comparison["runs"]
    names = [name for name in MAIN if name in runs[0]["scores"]]
    heights_in = [
        min(RUN_IN * len(runs), MOST_IN),
        min(DIFFERENCE_IN * (len(runs) - 1), MOST_IN),
    ]
    n_columns = len(names) + len(COSTS)
    figure, (upper, lower) = new_grid(13.0, heights_in, title, n_columns)
    chance = _chance(comparison)
    for axes, name in zip(upper, names):
        axes.set_title(capitalised(METRICS[name].title), fontsize=10)
        for value in chance.get(name, ()):
            axes.axvline(value, color=GREY, linewidth=1, linestyle=":")
        _draw_scores(
            axes, [run["scores"][name] for run in runs], distinct_colours(len(runs)), "{:.3f}"
        )
    scores = [run["scores"][name] for run in runs for name in names]
    _share_limits(
        upper[: len(names)], scores, [value for line in chance.values() for value in line]
    )
    for axes, (key, heading) in zip(upper[len(names) :], COSTS.items()):
        axes.set_title(heading, fontsize=10)
        _draw_costs(axes, [run["cost"][key] for run in runs], _costs_in_words(key, runs))
    _name_rows(upper[0], [_lines_of(number, run) for number, run in enumerate(runs)])
    _draw_differences(lower, names, comparison)
    write_caption(
        figure,
        "Dots: scores on the test rows, and below them the paired differences to R1. Lines: "
        "95 % intervals. Dotted: chance; of the accuracy, always answering the majority class. "
        "Features are extracted once, for all heads on them. "
        "Peak memory is the whole process's.",
    )
    save(figure, path)


def _chance(comparison: Described) -> dict[str, list[float]]:
    """What scores are worth nothing, by name of the score; an accuracy for each majority."""
    majorities = {run.get("majority_accuracy") for run in comparison["runs"]} - {None}
    chance = {"accuracy": sorted(majorities)}
    if comparison["positive"] is not None:
        chance |= {"balanced_accuracy": [0.5], "auroc": [0.5]}
    return chance


def _draw_scores(
    axes: Axes, scores: Sequence[Described | None], colours: Sequence[str], form: str
) -> None:
    axes.grid(axis="x", color=RULE)
    for row, (score, colour) in enumerate(zip(scores, colours)):
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
        axes.plot([score["low"], score["high"]], [row, row], color=colour, linewidth=2.5)
        axes.plot(score["value"], row, color=colour, marker="o", markersize=7)
        axes.annotate(
            form.format(score["value"]).replace("-", "−"),
            (score["value"], row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )


def _draw_differences(panels: Sequence[Axes], names: Sequence[str], comparison: Described) -> None:
    """The other runs' scores minus the first one's, as the pairs have them."""
    first, *others = (run["name"] for run in comparison["runs"])
    pairs = [pair for pair in comparison["pairs"] if pair["first"] == first]
    by_run = {pair["second"]: pair["differences"] for pair in pairs}
    colours = distinct_colours(len(others) + 1)[1:]
    drawn = [by_run[other][name] for other in others for name in names]
    for axes, name in zip(panels, names):
        axes.axvline(0, color=GREY, linewidth=1)
        _draw_scores(axes, [by_run[other][name] for other in others], colours, "{:+.3f}")
        axes.set_xlabel("Difference to R1", fontsize=9)
    _share_limits(panels[: len(names)], drawn, [0.0])
    _name_rows(panels[0], [[f"R{number} − R1"] for number in range(2, len(others) + 2)])
    for axes in panels[len(names) :]:
        axes.set_axis_off()


def _share_limits(
    panels: Sequence[Axes], scores: Sequence[Described | None], shown: Sequence[float]
) -> None:
    ends = [score[end] for score in scores if score for end in ("low", "high")] + [*shown]
    margin = 0.08 * (max(ends) - min(ends)) + 0.005 if ends else 0.5
    for axes in panels:
        axes.set_xlim(min(ends, default=0) - margin, max(ends, default=0) + margin)


def _draw_costs(axes: Axes, costs: Sequence[float], in_words: Sequence[str]) -> None:
    axes.barh(range(len(costs)), costs, height=0.4, color=distinct_colours(len(costs)))
    for row, (cost, words) in enumerate(zip(costs, in_words)):
        axes.annotate(
            words,
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


def _costs_in_words(key: str, runs: Sequence[Described]) -> list[str]:
    """One cost of each run; all times of a figure are in one unit, so that they can be compared."""
    costs = [run["cost"][key] for run in runs]
    if not key.endswith("_s"):
        return [f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB" for mib in costs]
    longest_s = max(run["cost"][name] for run in runs for name in COSTS if name.endswith("_s"))
    fitting = [
        unit for unit, size_s in UNITS_OF_TIME.items() if longest_s < MOST_OF_A_UNIT * size_s
    ]
    unit = fitting[0] if fitting else "h"
    return [_time_in_words(seconds / UNITS_OF_TIME[unit], unit) for seconds in costs]


def _time_in_words(amount: float, unit: str) -> str:
    if 0 < amount < 0.01:
        return f"< 0.01 {unit}"
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def _lines_of(number: int, run: Described) -> list[str]:
    cost = run["cost"]
    details = f"{cost['arch']}, batch {cost['batch_size']}, {cost['device']}"
    return [f"R{number + 1}  {run['label']}", details, run["name"]]


def _name_rows(axes: Axes, rows: Sequence[Sequence[str]]) -> None:
    """Say beside each row what it is: a large line, and small ones below."""
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks([])
    styles = ((12, 10, INK), (-2, 8, GREY), (-14, 7, GREY))
    for row, lines in enumerate(rows):
        for text, (offset, size, colour) in zip(lines, styles):
            axes.annotate(
                in_lines(text, 44, n_lines=1),
                (0, row),
                xycoords=axes.get_yaxis_transform(),
                xytext=(-8, offset if len(lines) > 1 else 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=size,
                color=colour,
                parse_math=False,
            )
