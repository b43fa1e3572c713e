"""What all figures share: colours, titles, captions, and how they are written."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from ecgfeat.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "GREY",
    "INK",
    "RULE",
    "VERMILION",
    "capitalised",
    "default_settings",
    "import_matplotlib",
    "in_lines",
    "new_figure",
    "new_panels",
    "save",
    "show_legend",
    "with_default_settings",
    "write_caption",
]

P = ParamSpec("P")

DPI = 150

# Okabe & Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, RULE = "#222222", "#666666", "#dddddd"


def with_default_settings(draw: Callable[P, None]) -> Callable[P, None]:
    """Have a function draw the same figure on every machine; see `default_settings`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> None:
        with default_settings():
            draw(*args, **kwargs)

    return drawn


# matplotlib's settings belong to the whole process: two threads would mix theirs up.
_SETTINGS_LOCK = threading.RLock()


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Inside, matplotlib has its own settings, not a matplotlibrc's or a notebook's."""
    with _SETTINGS_LOCK:
        import_matplotlib()
        import matplotlib

        # The backend is for windows, and naming it here would load one.
        defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        with matplotlib.rc_context(), warnings.catch_warnings():
            # A setting that a later matplotlib is to lose is set to what it is anyway.
            warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
            matplotlib.rcParams.update(defaults)
            yield


def import_matplotlib() -> None:
    """Import matplotlib even where MPLBACKEND names a backend that isn't installed here.

    A notebook sets it for the commands it runs too, and matplotlib then refuses to be imported.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def new_figure(width_in: float, height_in: float, title: str) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure, (axes,) = new_panels(width_in, height_in, title, 1)
    return figure, axes


def new_panels(
    width_in: float,
    height_in: float,
    title: str,
    n_panels: int,
    *,
    widths: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, which share their y axis unless they have own widths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Not savefig's tight box: it would draw everything twice.
    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width_in, height_in), layout=margins)
    FigureCanvasAgg(figure)
    figure.suptitle(
        in_lines(title, int(width_in * 11.5)),
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
        parse_math=False,
    )
    grid = figure.add_gridspec(1, n_panels, width_ratios=widths)
    panels = [figure.add_subplot(grid[0])]
    for position in range(1, n_panels):
        shared = None if widths else panels[0]
        panels.append(figure.add_subplot(grid[position], sharey=shared))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    for axes in panels[1:]:
        axes.tick_params(labelleft=False, left=False)
    return figure, panels


def show_legend(axes: Axes, n_columns: int) -> None:
    """Name the lines, above the axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=n_columns, frameon=False, fontsize=9
    )


def capitalised(name: str) -> str:
    """The name as a heading begins with it."""
    return name[:1].upper() + name[1:]


def write_caption(figure: Figure, text: str) -> None:
    """A few words below the panels."""
    lines = in_lines(text, int(figure.get_figwidth() * 16), n_lines=6)
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=8, color=GREY, parse_math=False)


def in_lines(text: str, width: int, n_lines: int = 3) -> str:
    """Break text into at most `n_lines` lines, also after underscores; cut off what is left."""
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    wrapped = textwrap.wrap(printable.replace("_", "_ "), width, max_lines=n_lines, placeholder="…")
    return "\n".join(line.replace("_ ", "_") for line in wrapped)


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    with warnings.catch_warnings(), replacing(Path(path)) as aside:
        # Classes may be named in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(aside, format="png", dpi=DPI, metadata={"Software": "ecgfeat"})
