"""What all figures share: colours, titles, captions, and how they are written."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ecgfeat.config import FigureFormat
from ecgfeat.errors import ConfigError
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
    "SLANTED",
    "VERMILION",
    "capitalised",
    "default_settings",
    "distinct_colours",
    "import_matplotlib",
    "in_lines",
    "new_figure",
    "new_grid",
    "new_panels",
    "save",
    "show_legend",
    "write_caption",
]

FORMATS = get_args(FigureFormat)
DPI = 300
# Most of a PNG's time went into compressing it, for a quarter of its bytes.
PNG_OPTIONS = {"pil_kwargs": {"compress_level": 1}}

MARKS: Mapping[str, dict[str, Any]] = {
    "png": {"Software": "ecgfeat"},
    "pdf": {"Creator": "ecgfeat", "Producer": None, "CreationDate": None},
    "svg": {"Creator": "ecgfeat", "Date": None},
}
"""What each file says of itself: by whom it was made, and no date, which would change its bytes."""

OWN_SETTINGS: Mapping[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ecgfeat",
}
"""Text stays text, which can be searched and edited; an SVG's ids are the same every time."""

# Okabe & Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, RULE = "#222222", "#666666", "#dddddd"

SLANTED: Mapping[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
"""How tick labels are written that are too long to stand side by side."""


# matplotlib's settings belong to the whole process: two threads would mix theirs up.
_SETTINGS_LOCK = threading.RLock()


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Inside, matplotlib has its own settings, not a matplotlibrc's or a notebook's.

    A function that it decorates draws the same figure on every machine.
    """
    with _SETTINGS_LOCK:
        import_matplotlib()
        import matplotlib

        # The backend is for windows, and naming it here would load one.
        defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        with matplotlib.rc_context(), warnings.catch_warnings():
            # A setting that a later matplotlib is to lose is set to what it is anyway.
            warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
            matplotlib.rcParams.update({**defaults, **OWN_SETTINGS})
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
    """A figure with panels side by side, which share their y axis unless they have own widths.

    An empty title takes no room.
    """
    sharing = "none" if widths else "row"
    figure, (panels,) = _in_rows(
        width_in, height_in, title, (1, n_panels), sharey=sharing, width_ratios=widths
    )
    return figure, panels


def new_grid(
    width_in: float, heights_in: Sequence[float], title: str, n_columns: int
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows of panels, which share their y axis in each row."""
    shape = len(heights_in), n_columns
    height_in = sum(heights_in) + 0.6 + 0.7 * len(heights_in)
    return _in_rows(width_in, height_in, title, shape, sharey="row", height_ratios=heights_in)


def _in_rows(
    width_in: float, height_in: float, title: str, shape: tuple[int, int], **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with panels as `Figure.subplots` makes them, in this house's style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Not savefig's tight box: it would draw everything twice.
    margins = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=margins)
    FigureCanvasAgg(figure)
    if title:
        lines = in_lines(title, int(width_in * 11.5))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    panels = figure.subplots(*shape, squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    for axes in panels[:, 1:].flat:
        axes.tick_params(labelleft=False, left=False)
    return figure, panels.tolist()


def distinct_colours(n: int) -> Sequence[str]:
    """One for each of `n` things; of more than there are colours to tell apart, one for all."""
    return COLOURS[:n] if n <= len(COLOURS) else [BLUE] * n


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
    """Break text into at most `n_lines` lines and cut off what is left.

    It is broken at spaces and after hyphens and underscores; inside a word only where that alone
    is longer than a line.
    """
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    lines = [""]
    for piece in re.findall(r" *[^ _-]*[_-]*", printable):
        if len((lines[-1] + piece).strip()) <= width:
            lines[-1] += piece
            continue
        rest = piece.strip()
        lines += [rest[start : start + width] for start in range(0, len(rest), width)]
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > n_lines:
        lines = [*lines[: n_lines - 1], _cut(lines[n_lines - 1], width)]
    return "\n".join(lines)


def _cut(line: str, width: int) -> str:
    """The line with an ellipsis in place of what follows it, and of a word that leaves no room."""
    if len(line) < width:
        return f"{line}…"
    whole_words = re.match(r"(.*[ _-])[^ _-]*[_-]*$", line)
    return f"{(whole_words[1] if whole_words else line)[: width - 1].rstrip()}…"


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG, PDF or SVG, by the path's suffix.

    Raises
    ------
    ConfigError
        When it has another suffix.
    StorageError
        When the disk refuses.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"a figure must end in .png, .pdf or .svg; found {path}")
    with warnings.catch_warnings(), replacing(Path(path)) as aside:
        # Classes may be named in any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        _lay_out(figure)
        options: dict[str, Any] = PNG_OPTIONS if kind == "png" else {}
        figure.savefig(aside, format=kind, dpi="figure", metadata=MARKS[kind], **options)


def _lay_out(figure: Figure) -> None:
    """Find room for everything once; a layout engine left in place has savefig draw twice."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
