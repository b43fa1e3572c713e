"""Where a run's model looked: what each place of a page contributes to its answer.

Every head here is linear in pools of the network's maps, and so is the end of a fine-tuned
network. The logit is therefore a sum over places: exactly, with nothing approximated. Over the
averages of ``layer4`` it is the class activation map of Zhou et al. 2016 ("Learning deep features
for discriminative localization"), which Grad-CAM equals there but for leaving out what speaks
against the class (Selvaraju et al. 2017, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.config import ComputeSettings, Tap, parse_tap
from ecgfeat.errors import ConfigError, ImageError
from ecgfeat.figures.style import (
    RULE,
    capitalised,
    default_settings,
    in_lines,
    new_panels,
    save,
    write_caption,
)
from ecgfeat.heads import head_of
from ecgfeat.images import decode, prepare, straightened
from ecgfeat.inference import CalibratedHead, FailedImage, Model, list_given, read_model
from ecgfeat.predictions import positive_class
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs import Run, open_run
from ecgfeat.runtime import Progress, Report, resolve_compute, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from ecgfeat.backbones import Backbone

__all__ = ["Explainer", "Explanation", "Explanations", "explain", "explanation_plot", "overlay"]

Floats = NDArray[np.float64]
Page = NDArray[np.uint8]

RANDOM_WEIGHTS = "random:20180802"
"""What the sanity check puts in the place of the backbone's: such as no one else asks for."""
UNCHANGED = 0.5
"""A rank correlation with the map of random weights above this says that the map tells of the page
more than of what the network learned."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Explanation:
    """What each place of one page contributes to a model's logit of one class.

    The logit is the class's against the mean of the others': in a binary task the calibrated log
    odds (see `measure`). It is `offset`, what the model says of the average training page, plus
    everything in `heat`, which has the same sum as all of `cells`. Of a cross-validated head all
    are means over its folds.

    Attributes
    ----------
    path : Path
    label : str
        The class that is spoken for; what is negative speaks against it.
    predicted : str
        The answer.
    probability : float
        The model's, of `label`.
    logit, offset : float
    cells : mapping of str to ndarray of shape (rows, columns), float64
        By the layer that the head reads, in the cells of its grid; (1, 1) where it reads the
        average over the whole page.
    heat : ndarray of shape (h, w), float64
        Over the network's input. The average of a cell is taken apart into its places; another
        pool's value is spread evenly over its cell.
    page_px : tuple of int
        (width, height) of the page.
    preprocessing : Preprocessing
        How the input lies on the page.
    random_heat : ndarray of shape (h, w), float64
        The same with random weights in the backbone's place; empty where it wasn't asked for.
    likeness_to_random : float
        Spearman's rank correlation of the two, without their signs; NaN without the check.
    measure : str
        What the logit is, in words.
    """

    path: Path
    label: str
    predicted: str
    probability: float
    logit: float
    offset: float
    cells: Mapping[str, Floats]
    heat: Floats
    page_px: tuple[int, int]
    preprocessing: Preprocessing
    random_heat: Floats
    likeness_to_random: float
    measure: str = "log odds"

    def __repr__(self) -> str:
        return (
            f"Explanation of {self.path}: {self.label} {self.probability:.3f}, {self.measure} "
            f"{self.logit:+.2f} of which {self.logit - self.offset:+.2f} by the page's places"
        )

    @property
    def extent_px(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of `heat` on the page; beyond it where there is padding."""
        geometry = self.preprocessing.geometry(self.page_px)
        size_px = (self.preprocessing.width_px, self.preprocessing.height_px)
        scale = [page / resized for page, resized in zip(self.page_px, geometry.resized_px)]
        left, top = (geometry.offset_px[axis] * scale[axis] for axis in (0, 1))
        right, bottom = (
            (geometry.offset_px[axis] + size_px[axis]) * scale[axis] for axis in (0, 1)
        )
        return left, right, bottom, top

    def share_in(self, box_px: tuple[float, float, float, float]) -> float:
        """Share of all that speaks for the class in a box (left, top, right, bottom) of the page.

        In pixels of the page; 0 where nothing speaks for it.
        """
        left, right, bottom, top = self.extent_px
        height, width = self.heat.shape
        columns = _overlap(box_px[0], box_px[2], np.linspace(left, right, width + 1))
        rows = _overlap(box_px[1], box_px[3], np.linspace(top, bottom, height + 1))
        speaking = np.maximum(self.heat, 0)
        total = float(speaking.sum())
        return float(rows @ speaking @ columns) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``, without the maps of places."""
        has_check = np.isfinite(self.likeness_to_random)
        return {
            "path": str(self.path),
            "class": self.label,
            "predicted": self.predicted,
            "probability": self.probability,
            "logit": self.logit,
            "offset": self.offset,
            "cells": {tap: cells.tolist() for tap, cells in self.cells.items()},
            "likeness_to_random": self.likeness_to_random if has_check else None,
        }


def _overlap(start: float | Floats, end: float | Floats, edges: Floats) -> Floats:
    """How much of each of the intervals between `edges` lies between `start` and `end`."""
    inside = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    shares: Floats = np.maximum(inside, 0) / np.diff(edges)
    return shares


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanations:
    """What `explain` found.

    Attributes
    ----------
    explanations : tuple of Explanation
        In the order of the images given.
    failures : tuple of FailedImage
        The images that can't be read.
    """

    explanations: tuple[Explanation, ...]
    failures: tuple[FailedImage, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {
            "images": [found.as_json() for found in self.explanations],
            "failures": [
                {"path": str(failure.path), "reason": failure.reason} for failure in self.failures
            ],
        }


def explain(
    run: Run | str | Path,
    images: Sequence[str | Path] | str | Path,
    *,
    label: str = "",
    check: bool = True,
    compute: ComputeSettings = ComputeSettings(),
    weights: str | None = None,
    report: Report = silent,
) -> Explanations:
    """Tell what each place of some pages contributes to a model's answer.

    Parameters
    ----------
    run : Run, str or Path
    images : str, Path or a sequence of them
        As `predict` takes them.
    label : str
        The class to speak of; by default the positive one, or of more than two the one answered.
    check : bool
        Do it again with random weights in the backbone's place: a map that stays the same tells
        of the page and not of what the network learned (Adebayo et al. 2018, "Sanity checks for
        saliency maps").
    compute : ComputeSettings
        Everything is computed in float32.
    weights : str, optional
        Where the backbone's weights are now, as in `predict`.
    report : callable
        Told the progress before every image.

    Raises
    ------
    ConfigError
        When there is no such class.
    DataError, RunError, WeightsError, DeviceError, StorageError, Interrupted
        As in `predict`.

    Examples
    --------
    >>> found = explain("runs/20260131-094500-linear-pages", ["new/page1.jpg"])  # doctest: +SKIP
    >>> found.explanations[0].cells["layer1-4x4"].round(1)  # doctest: +SKIP
    array([[ 0.1, -0.2,  1.9,  0. ], ...
    """
    run = run if isinstance(run, Run) else open_run(run)
    explainer = Explainer(run, check=check, compute=compute, weights=weights)
    paths, _ = list_given(images)
    explanations, failures = [], []
    for done, path in enumerate(paths):
        report(Progress(stage="explaining", done=done, total=len(paths)))
        try:
            explanations.append(explainer.explain(path, label=label))
        except ImageError as error:
            failures.append(FailedImage(path=path, reason=str(error)))
    report(Progress(stage="explaining", done=len(paths), total=len(paths)))
    return Explanations(explanations=tuple(explanations), failures=tuple(failures))


class Explainer:
    """A run's model, loaded once for many pages.

    Parameters
    ----------
    run : Run
    check : bool
        Also explain with random weights.
    compute, weights
        As in `explain`.
    """

    def __init__(
        self,
        run: Run,
        *,
        check: bool = True,
        compute: ComputeSettings = ComputeSettings(),
        weights: str | None = None,
    ) -> None:
        if compute.precision not in ("auto", "fp32"):
            raise ConfigError(
                "an explanation is computed in float32, so that it sums up: leave out --precision "
                f"{compute.precision}"
            )
        self._model = read_model(run)
        exact = resolve_compute(replace(compute, precision="fp32"), purpose="extract")
        self._backbone = self._model.load_backbone(weights, exact)
        self._random = _randomised(self._model, self._backbone) if check else None

    def explain(self, path: str | Path, *, label: str = "", fold: int | None = None) -> Explanation:
        """Explain the answer for one page.

        Parameters
        ----------
        path : str or Path
        label : str
            As in `ecgfeat.explain`.
        fold : int, optional
            Of a cross-validated head the one that a page of its own data was tested by.

        Raises
        ------
        ConfigError
            When there is no such class.
        ImageError
        """
        classes, model = self._model.card.classes, self._model
        if label and label not in classes:
            raise ConfigError(f"there is no class {label!r}: give one of {', '.join(classes)}")
        if fold is not None and len(model.heads) > 1:
            model = replace(model, heads=(model.heads[fold],))
        preprocessing = model.card.preprocessing
        page = decode(path, dpi=preprocessing.dpi)
        pixels = prepare(page, preprocessing)[None]
        page = straightened(page, preprocessing)
        seen = _look(self._backbone, pixels)
        probabilities = model.probabilities(seen.features)
        answer = int(model.decision.answers(probabilities)[0])
        label = label or positive_class(classes) or classes[answer]
        target = classes.index(label)
        found = _contributions(model, seen, target)
        random_heat, likeness = np.empty((0, 0)), float("nan")
        if self._random is not None:
            random_heat = _contributions(model, _look(self._random, pixels), target).heat
            likeness = _rank_likeness(found.heat, random_heat)
        return Explanation(
            path=Path(path),
            label=label,
            predicted=classes[answer],
            probability=float(probabilities[0, target]),
            logit=found.offset + float(found.heat.sum()),
            offset=found.offset,
            cells=found.cells,
            heat=found.heat,
            page_px=(page.shape[1], page.shape[0]),
            preprocessing=preprocessing,
            random_heat=random_heat,
            likeness_to_random=likeness,
            measure=_measure(model),
        )


def _measure(model: Model) -> str:
    words = "log odds" if len(model.card.classes) == 2 else "logit against the other classes' mean"
    return words if len(model.heads) == 1 else f"{words}, mean of {len(model.heads)} folds"


def _randomised(model: Model, backbone: Backbone) -> Backbone:
    """The same network with random weights."""
    from ecgfeat.backbones import Backbone, load_weights

    weights = load_weights(replace(model.network, weights=RANDOM_WEIGHTS))
    return Backbone(weights, model.card.preprocessing, backbone.compute, taps=tuple(backbone.taps))


def _rank_likeness(one: Floats, other: Floats) -> float:
    from scipy.stats import spearmanr

    a, b = np.abs(one).ravel(), np.abs(other).ravel()
    if not (np.ptp(a) and np.ptp(b) and np.isfinite(b).all()):
        return 0.0
    return float(spearmanr(a, b).statistic)


class _Contributions(NamedTuple):
    offset: float
    cells: dict[str, Floats]
    heat: Floats


class _Seen(NamedTuple):
    """What the network makes of one page."""

    maps: dict[str, NDArray[np.float32]]  # By layer, (channels, h, w).
    features: dict[str, NDArray[np.float32]]  # Their pools by tap, (1, width).


def _look(backbone: Backbone, pixels: Page) -> _Seen:
    """Pass a prepared page, shape (1, height, width, 3), through the network, once."""
    import torch

    from ecgfeat.backbones import pooled

    maps = backbone.maps(pixels)
    taps = [parse_tap(name) for name in backbone.taps]
    pools = {tap.name: pooled(torch.from_numpy(maps[tap.layer]), tap) for tap in taps}
    return _Seen(
        maps={name: found[0] for name, found in maps.items()},
        features={name: pool.numpy() for name, pool in pools.items()},
    )


def _contributions(model: Model, seen: _Seen, target: int) -> _Contributions:
    """Of one page; the mean over the model's heads."""
    parts = [_of_head(model, head, seen, target) for head in model.heads]
    taps = dict.fromkeys(tap for part in parts for tap in part.cells)
    none = np.zeros((1, 1))
    return _Contributions(
        offset=float(np.mean([part.offset for part in parts])),
        cells={
            tap: np.sum([part.cells.get(tap, none) for part in parts], axis=0) / len(parts)
            for tap in taps
        },
        heat=np.mean([part.heat for part in parts], axis=0),
    )


def _of_head(model: Model, head: CalibratedHead, seen: _Seen, target: int) -> _Contributions:
    weights, biases = head_of(head.tensors).linear_form(head.tensors)
    slope = head.decision.slope
    # The logit of the class against the mean of the others'.
    signs = np.full(len(biases), -1.0 / (len(biases) - 1))
    signs[target] = 1.0
    u = slope * (signs @ weights)
    usual = _usual(model, head, len(u))
    offset = slope * float(signs @ biases) + float(u @ usual) + signs[-1] * head.decision.offset
    fine = max((found.shape[1:] for found in seen.maps.values()), key=lambda shape: shape[0])
    cells: dict[str, Floats] = {}
    heat = np.zeros(fine)
    start = 0
    for name in head.taps:
        tap, found = parse_tap(name), seen.features[name][0]
        end = start + len(found)
        cells[name], places = _of_tap(
            tap, seen.maps[tap.layer], found, u[start:end], usual[start:end]
        )
        heat += _resampled(places, fine)
        start = end
    return _Contributions(offset=offset, cells=cells, heat=heat)


def _usual(model: Model, head: CalibratedHead, width: int) -> Floats:
    """The average training page's features; zeros where the run doesn't tell."""
    if model.likeness is not None:  # a fine-tuning's is of all layers, and its head reads the last
        return model.likeness.mean[-width:].astype(np.float64)
    return np.asarray(head.tensors.get("mean", np.zeros(width)), np.float64)


def _of_tap(
    tap: Tap, maps: NDArray[np.float32], found: NDArray[np.float32], u: Floats, usual: Floats
) -> tuple[Floats, Floats]:
    """Contributions of a tap's cells, shape (rows, columns), and of the places of its maps.

    `maps` are its layer's, (channels, height, width). Its features `found`, the average page's and
    their weights `u` are of shape (n_cells × channels,).
    """
    from ecgfeat.backbones import cell_spans

    n_channels, height, width = maps.shape
    of_cells = (u * (found - usual)).reshape(tap.n_cells, n_channels).sum(axis=1)
    places = np.zeros((height, width))
    by_cell = zip(cell_spans(tap, height, width), u.reshape(tap.n_cells, -1), of_cells)
    for number, (span, weights, contribution) in enumerate(by_cell):
        cell = maps[(slice(None), *span)]
        n_places = cell[0].size
        if tap.pool == "avg":
            part = slice(number * n_channels, (number + 1) * n_channels)
            places[span] += (np.tensordot(weights, cell, 1) - weights @ usual[part]) / n_places
        else:
            places[span] += contribution / n_places
    return of_cells.reshape(tap.rows, tap.columns), places


def _resampled(places: Floats, shape: tuple[int, ...]) -> Floats:
    """The same contributions over more places, by the areas that overlap: the sum stays."""
    down, across = (_overlaps(n_from, n_to) for n_from, n_to in zip(places.shape, shape))
    resampled: Floats = down @ places @ across.T
    return resampled


def _overlaps(n_from: int, n_to: int) -> Floats:
    """Share of each of `n_from` equal parts of a line in each of `n_to`, shape (n_to, n_from)."""
    ends = np.linspace(0, 1, n_to + 1)[:, None]
    return _overlap(ends[:-1], ends[1:], np.linspace(0, 1, n_from + 1))


# The picture

SHOWN_PX = 1200
"""Longest side of the page in the picture: a scan's own pixels would only make the file large."""
FLATTEST = 0.35
"""Height over width of the picture's page at least: a strip leaves no room for bar and caption."""
INK_KEPT = 0.75
"""How dark the page's ink is drawn under the colours."""
MOST_OPAQUE = 0.75
COLOURS = "RdBu_r"


def overlay(found: Explanation, heat: Floats, page: Page, side_px: int) -> tuple[Page, float]:
    """The page in light grey with what speaks for the class over it in red, against it in blue.

    Parameters
    ----------
    found : Explanation
    heat : ndarray of shape (h, w)
        Its own, or that of random weights.
    page : ndarray of shape (height, width, 3), uint8
        The page as it was decoded; in a photograph that was cleaned it is straightened here too.
    side_px : int
        Longest side of the picture.

    Returns
    -------
    picture : ndarray of shape (height, width, 3), uint8
    limit : float
        The log odds per one per cent of the network's input at full colour.
    """
    import matplotlib

    picture = Image.fromarray(straightened(page, found.preprocessing)).convert("L")
    picture.thumbnail((side_px, side_px), reducing_gap=3.0)
    grey = 1 - INK_KEPT * (1 - np.asarray(picture, np.float64) / 255)
    density = heat * heat.size / 100
    limit = float(np.percentile(np.abs(density), 99.5)) or 1.0
    scale = picture.width / found.page_px[0]
    left, right, bottom, top = (round(edge * scale) for edge in found.extent_px)
    # Drawn smoothly between the places, so that no edge is seen that isn't there.
    smooth = Image.fromarray(density.astype(np.float32)).resize(
        (max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC
    )
    whole = Image.new("F", picture.size)
    whole.paste(smooth, (left, top))
    shown = np.clip(np.asarray(whole, np.float64) / limit, -1, 1)
    colours = matplotlib.colormaps[COLOURS]((shown + 1) / 2)[..., :3]
    opacity = MOST_OPAQUE * np.abs(shown)[..., None] ** 0.7
    blended = (1 - opacity) * grey[..., None] + opacity * colours
    return np.rint(255 * blended).astype(np.uint8), limit


@default_settings()
def explanation_plot(found: Explanation, path: str | Path) -> None:
    """Draw the page with what speaks for and against the class over it, and the sanity check.

    Parameters
    ----------
    found : Explanation
    path : str or Path
        The file to write: a PNG, PDF or SVG by its suffix.

    Raises
    ------
    ImageError
        When the page can't be read any more.
    StorageError
        When the disk refuses.
    """
    page = decode(found.path, dpi=found.preprocessing.dpi)
    has_check = bool(found.random_heat.size)
    aspect = max(FLATTEST, found.page_px[1] / found.page_px[0])
    title = f"{found.path.name}: {found.label} {found.probability:.3f}, answer: {found.predicted}"
    widths = [2.6, 1] if has_check else [1]
    figure, panels = new_panels(
        9.0 if has_check else 6.6, 6.0 * aspect + 1.4, title, len(widths), widths=widths
    )
    drawn = _draw_overlay(panels[0], found, found.heat, page)
    bar = figure.colorbar(drawn, ax=panels[0], location="bottom", shrink=0.6, aspect=40, pad=0.02)
    what = f"{in_lines(found.label, 30, 1)}, per 1 % of the network's input"
    bar.set_label(f"against  ←  {what}  →  for", fontsize=9, parse_math=False)
    bar.ax.tick_params(labelsize=8)
    caption = (
        f"{capitalised(found.measure)} {found.logit:+.2f} = {found.offset:+.2f} for the average "
        "training page "
        f"{found.logit - found.offset:+.2f} from the places of this page. "
        + ", ".join(f"{tap} {cells.sum():+.2f}" for tap, cells in found.cells.items())
        + "."
    )
    if has_check:
        panels[1].set_title("Check: with random weights", fontsize=9, loc="left")
        _draw_overlay(panels[1], found, found.random_heat, page)
        caption += f" Rank correlation with random weights: {found.likeness_to_random:.2f}."
    write_caption(figure, caption)
    save(figure, path)


def _draw_overlay(axes: Axes, found: Explanation, heat: Floats, page: Page) -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    picture, limit = overlay(found, heat, page, SHOWN_PX)
    axes.imshow(picture, extent=(0, found.page_px[0], found.page_px[1], 0))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RULE)
    return ScalarMappable(norm=Normalize(-limit, limit), cmap=COLOURS)
