"""Antialiased traces: functions of time, drawn with a round pen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.synth.heart import Signal

__all__ = ["trace_coverage"]

# Columns per pixel: they antialias steep strokes from side to side.
_COLUMNS_PER_PX = 4


def trace_coverage(
    y_px: Signal, *, left_px: float, px_per_sample: float, pen_px: float, size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """How much of each pixel the traces cover, from 0 to 255.

    Within a narrow column a trace is one vertical interval: from its lowest to its highest
    value there, widened by the pen. An interval's coverage is a step up at its top and a step
    down at its bottom, each shared between two pixels. The steps of all traces are dropped into
    an empty page, and one running sum down the page draws everything.

    Parameters
    ----------
    y_px : ndarray of shape (n_traces, n_samples), float32
        Heights, downwards from the page's upper edge.
    left_px, px_per_sample : float
        Where the first sample lies, and the distance between samples.
    pen_px : float
        Diameter of the pen.
    size_px : tuple of int
        Width and height of the page.

    Returns
    -------
    ndarray of shape (height, width), uint8
    """
    width, height = size_px
    n_columns = round((y_px.shape[1] - 1) * px_per_sample * _COLUMNS_PER_PX)
    top, bottom = _extent(y_px, n_columns)
    top, bottom = _widened(top, bottom, pen_px / 2)
    columns = (round(left_px * _COLUMNS_PER_PX) + np.arange(n_columns)) // _COLUMNS_PER_PX
    inside = (columns >= 0) & (columns < width)
    steps = _steps(top[:, inside], bottom[:, inside], columns[inside], size_px)
    coverage = np.cumsum(steps, axis=0, out=steps)[:height]
    coverage *= 255 / _COLUMNS_PER_PX
    coverage += 0.5
    ink: NDArray[np.uint8] = np.minimum(coverage, 255, out=coverage).astype(np.uint8)
    return ink


def _extent(y: Signal, n_columns: int) -> tuple[Signal, Signal]:
    """Least and greatest value of each polyline within each of `n_columns` equal columns."""
    last = y.shape[1] - 1
    edges = np.linspace(0, last, n_columns + 1)
    left = np.minimum(edges.astype(np.int64), last - 1)
    at_edges = y[:, left] + (y[:, left + 1] - y[:, left]) * (edges - left).astype(np.float32)
    least = np.minimum(at_edges[:, :-1], at_edges[:, 1:])
    greatest = np.maximum(at_edges[:, :-1], at_edges[:, 1:])
    # Columns that hold whole samples reach as far as those do.
    starts = np.ceil(edges).astype(np.int64)
    holding = np.flatnonzero(starts[:-1] < starts[1:])
    groups = starts[holding]
    least[:, holding] = np.minimum(least[:, holding], np.minimum.reduceat(y, groups, axis=1))
    greatest[:, holding] = np.maximum(greatest[:, holding], np.maximum.reduceat(y, groups, axis=1))
    return least, greatest


def _widened(top: Signal, bottom: Signal, radius_px: float) -> tuple[Signal, Signal]:
    """Widen the intervals to what a disc moved along them covers."""
    n_columns = top.shape[1]
    wide_top, wide_bottom = top - radius_px, bottom + radius_px
    for offset in range(1, min(int(radius_px * _COLUMNS_PER_PX), n_columns - 1) + 1):
        half = np.float32((radius_px**2 - (offset / _COLUMNS_PER_PX) ** 2) ** 0.5)
        early, late = slice(0, n_columns - offset), slice(offset, n_columns)
        for here, there in ((early, late), (late, early)):
            np.minimum(wide_top[:, here], top[:, there] - half, out=wide_top[:, here])
            np.maximum(wide_bottom[:, here], bottom[:, there] + half, out=wide_bottom[:, here])
    return wide_top, wide_bottom


def _steps(
    top: Signal, bottom: Signal, columns: NDArray[np.int64], size_px: tuple[int, int]
) -> NDArray[Any]:
    """Steps whose running sum down the page is 1 between `top` and `bottom` in each column."""
    width, height = size_px
    edges = np.clip(np.stack((top, bottom)), 0, height)
    pixel = edges.astype(np.int64)
    below = edges - pixel
    above = 1 - below
    where = pixel * width + columns
    weights = np.stack((above[0], -above[1], below[0], -below[1]))
    # One row more than the page has for what lies below its foot, one for the shared part.
    steps = np.bincount(
        np.concatenate((where, where + width)).ravel(),
        weights=weights.ravel(),
        minlength=(height + 2) * width,
    )
    return steps.reshape(height + 2, width)
