"""What a sweep found: the score that chose, over the settings tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.config import RUN_KINDS
from ecgfeat.figures.style import (
    COLOURS,
    GREY,
    INK,
    RULE,
    SLANTED,
    VERMILION,
    capitalised,
    default_settings,
    in_lines,
    new_panels,
    save,
    write_caption,
)
from ecgfeat.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["sweep_plot"]


Row = Mapping[str, Any]

NO_SETTINGS = {"fold", "head", "epoch", "spread", "chosen", *METRICS}
"""Columns that are no setting of a candidate."""

FIRST_AXES = ("C", "lr")
"""Settings that go along the horizontal axis wherever they were varied."""

LEGIBLE_CELLS = 14
"""With more values along an axis, a heat map's cells are drawn without numbers."""


@default_settings()
def sweep_plot(rows: Sequence[Row], by: str, path: str | Path, title: str) -> None:
    """Draw the score that chose over the settings that were varied, a panel for each kind of head.

    One setting gives a line, more a heat map of two, each cell the best over the others;
    logistic regression's few settings a line each. Folds are averaged.

    Parameters
    ----------
    rows : sequence of mapping
        A candidate each, with equal keys: its settings (None where the head has no such), ``head``,
        ``chosen`` and the score `by` (None where it diverged); where they are there, ``fold``, and
        ``spread``, the score's standard deviation.
    by : str
        Name of the score.
    path, title
        As of all figures, see `ecgfeat.figures`.
    """
    kinds = [kind for kind in RUN_KINDS if any(row["head"] == kind for row in rows)]
    tried = [_Tried.of([row for row in rows if row["head"] == kind], by) for kind in kinds]
    widths = [each.width_in for each in tried]
    is_named = any(each.is_named for each in tried)
    width_in = max(6.4, sum(widths) + 0.6) + (2.4 if is_named else 0)
    figure, panels = new_panels(width_in, 4.8, title, len(kinds), widths=widths)
    scale = _scale([each.best_map() for each in tried if each.is_map], by)
    for axes, kind, each in zip(panels, kinds, tried):
        axes.set_title(RUN_KINDS[kind].title, fontsize=10, loc="left")
        if each.is_map:
            _draw_map(axes, each, scale)
        else:
            _draw_lines(axes, each)
    maps = [axes for axes, each in zip(panels, tried) if each.is_map]
    if maps:
        bar = figure.colorbar(scale, ax=maps, aspect=30, pad=0.02)
        bar.set_label(capitalised(METRICS[by].title))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=9)
    if is_named:
        _name_lines(figure, panels)
    n_folds = len({row.get("fold", 0) for row in rows})
    better = "less is better" if METRICS[by].is_loss else "more is better"
    caption = f"{capitalised(METRICS[by].title)} on the rows that choose ({better})"
    caption += f", mean over {n_folds} folds" if n_folds > 1 else ""
    caption += ". Outlined: chosen."
    if any(each.is_map and len(each.varied) > 2 for each in tried):
        caption += " Cells: best over the settings not shown."
    write_caption(figure, caption)
    save(figure, path)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tried:
    """The candidates of one kind of head.

    `varied` are the settings with more than one value, the horizontal axis's first, and `values`
    the values of each, in order. By those of `varied` stand the means of scores and spreads over
    the folds, and what was chosen.
    """

    by: str
    varied: list[str]
    values: dict[str, list[Any]]
    scores: dict[tuple[Any, ...], float]
    spreads: dict[tuple[Any, ...], float]
    chosen: set[tuple[Any, ...]]

    @classmethod
    def of(cls, rows: Sequence[Row], by: str) -> _Tried:
        """From a sweep's rows."""
        values = {
            name: sorted({row[name] for row in rows}, key=_order)
            for name in rows[0]
            if name not in NO_SETTINGS
        }
        varied = [name for name in values if len(values[name]) > 1] or [
            next((name for name in FIRST_AXES if values.get(name, [None]) != [None]), "layers")
        ]
        # Numbers before words: the score runs smoothly along them.
        varied.sort(
            key=lambda name: (
                name not in FIRST_AXES,
                any(isinstance(value, str) for value in values[name]),
                -len(values[name]),
            )
        )
        scores: dict[tuple[Any, ...], list[float]] = {}
        spreads: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            place = tuple(row[name] for name in varied)
            scores.setdefault(place, []).append(_number(row[by]))
            spreads.setdefault(place, []).append(_number(row.get("spread")))
        return cls(
            by=by,
            varied=varied,
            values=values,
            scores={place: float(np.mean(found)) for place, found in scores.items()},
            spreads={place: float(np.mean(found)) for place, found in spreads.items()},
            chosen={tuple(row[name] for name in varied) for row in rows if row["chosen"]},
        )

    @property
    def is_map(self) -> bool:
        """Whether two settings span a map."""
        return len(self.varied) > 1 and (self.varied[0] != "C" or len(self.combinations) > 6)

    @property
    def is_named(self) -> bool:
        """Whether its lines need a legend."""
        return not self.is_map and len(self.varied) > 1

    @property
    def combinations(self) -> list[tuple[Any, ...]]:
        """What was tried of the settings beside the first."""
        return sorted({place[1:] for place in self.scores}, key=lambda rest: [*map(_order, rest)])

    @property
    def width_in(self) -> float:
        """Room for a panel."""
        return max(4.2, 0.62 * len(self.values[self.varied[0]]) + 1.2)

    def best_map(self) -> NDArray[np.float64]:
        """The best score of each cell, shape (n_y, n_x); NaN where nothing finite was found."""
        across, down = (self.values[name] for name in self.varied[:2])
        cells = np.full((len(down), len(across)), np.nan)
        best = np.fmin if METRICS[self.by].is_loss else np.fmax
        for place, score in self.scores.items():
            cell = down.index(place[1]), across.index(place[0])
            cells[cell] = best(cells[cell], score)
        return cells


def _scale(maps: Sequence[NDArray[np.float64]], by: str) -> ScalarMappable:
    """The one colour of each score in all maps; the better the lighter."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores = np.concatenate([cells[np.isfinite(cells)] for cells in maps] or [np.empty(0)])
    # Equal scores would have no scale.
    low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.01, high + 0.01
    name = "cividis_r" if METRICS[by].is_loss else "cividis"
    return ScalarMappable(Normalize(low, high), cmap=name)


def _draw_map(axes: Axes, tried: _Tried, scale: ScalarMappable) -> None:
    from matplotlib.patches import Rectangle

    cells = tried.best_map()
    across, down = (tried.values[name] for name in tried.varied[:2])
    low, high = scale.get_clim()
    shown = np.ma.masked_invalid(cells)
    axes.imshow(shown, cmap=scale.cmap, vmin=low, vmax=high, aspect="auto")
    for (row, column), score in np.ndenumerate(cells):
        if max(len(across), len(down)) > LEGIBLE_CELLS:
            break
        is_dark = np.isfinite(score) and sum(scale.to_rgba(np.array([score]))[0, :3]) < 1.5
        axes.text(
            column,
            row,
            f"{score:.3f}" if np.isfinite(score) else "–",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if is_dark else INK,
        )
    for place in tried.chosen:
        corner = across.index(place[0]) - 0.5, down.index(place[1]) - 0.5
        axes.add_patch(
            Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, zorder=3)
        )
    _name_values(axes, tried.varied[0], across)
    labels = [in_lines(_text(value).replace(",", ", "), 22, n_lines=5) for value in down]
    axes.set_yticks(range(len(down)), labels, parse_math=False)
    axes.set_ylabel(_in_words(tried.varied[1]))
    axes.tick_params(left=True, labelleft=True, length=0)


def _draw_lines(axes: Axes, tried: _Tried) -> None:
    across = tried.values[tried.varied[0]]
    for rest, colour in zip(tried.combinations, COLOURS):
        places = [(value, *rest) for value in across]
        scores = np.array([tried.scores.get(place, np.nan) for place in places])
        spreads = np.array([tried.spreads.get(place, np.nan) for place in places])
        x = np.arange(len(across))
        label = "; ".join(
            f"{_in_words(name)}: {_text(value)}" for name, value in zip(tried.varied[1:], rest)
        )
        axes.plot(x, scores, color=colour, marker="o", markersize=5, linewidth=1.8, label=label)
        if np.isfinite(spreads).any():
            axes.fill_between(
                x, scores - spreads, scores + spreads, color=colour, alpha=0.15, linewidth=0
            )
        for index, place in enumerate(places):
            if place in tried.chosen:
                axes.plot(
                    index,
                    scores[index],
                    marker="s",
                    markersize=12,
                    markerfacecolor="none",
                    markeredgecolor=VERMILION,
                    markeredgewidth=2,
                )
    axes.grid(axis="y", color=RULE)
    axes.set_xlim(-0.5, len(across) - 0.5)
    _name_values(axes, tried.varied[0], across)
    axes.set_ylabel(capitalised(METRICS[tried.by].title))
    axes.tick_params(left=True, labelleft=True)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _name_lines(figure: Figure, panels: Sequence[Axes]) -> None:
    """Say in full what each line is, beside the panels, where nothing is hidden."""
    lines = [line for axes in panels for line in axes.get_legend_handles_labels()[0]]
    labels = [in_lines(str(line.get_label()).replace(",", ", "), 40, n_lines=6) for line in lines]
    legend = figure.legend(
        lines, labels, loc="outside right upper", fontsize=8, frameon=False, labelspacing=0.8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _name_values(axes: Axes, name: str, values: Sequence[Any]) -> None:
    labels = [in_lines(_text(value), 24, n_lines=1) for value in values]
    style = SLANTED if max(map(len, labels)) > 7 else {}
    axes.set_xticks(range(len(values)), labels, parse_math=False, **style)
    axes.set_xlabel(_in_words(name))


def _in_words(name: str) -> str:
    return {"lr": "learning rate"}.get(name, name.replace("_", " "))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _order(value: Any) -> tuple[bool, bool, Any]:
    return value is not None, isinstance(value, str), 0 if value is None else value
