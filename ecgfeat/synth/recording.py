"""Twelve leads from the heart's vector, and what a recording adds to them.

Dower's lead vectors [1]_ give I, II and V1 to V6; the other four leads follow from I and II by
Einthoven's and Goldberger's equations, noise and all.

References
----------
.. [1] G. E. Dower, H. B. Machado, J. A. Osborne, "On deriving the electrocardiogram from
   vectorcardiographic leads", Clin. Cardiol. 3(2):87-95, 1980.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.synth.heart import Condition, Signal, Subject, combine, heart_vector

__all__ = [
    "DURATION_S",
    "LEADS",
    "SAMPLES_PER_S",
    "Disturbance",
    "draw_disturbance",
    "electrical_axis_deg",
    "record",
    "trace_coverage",
]


LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
DURATION_S = 10
SAMPLES_PER_S = 250  # Finer than the pen on the largest pages; 50 and 60 Hz still show.

# Lead vectors of I, II, V1 … V6 for a heart vector (left, feet, back), Dower et al. 1980.
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ],
    dtype=np.float32,
)


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What the recording adds to the heart's signal; all amplitudes in mV."""

    noise_mv: float
    mains_mv: float
    mains_hz: int
    wander_mv: float


def draw_disturbance(rng: np.random.Generator, *, spread: float) -> Disturbance:
    """Draw a recording's faults; `spread` scales them (1 is ordinary)."""
    typical_mv = (0.010, 0.004, 0.05)
    noise_mv, mains_mv, wander_mv = (
        spread * typical * math.exp(rng.normal(0, 0.6)) for typical in typical_mv
    )
    return Disturbance(
        noise_mv=noise_mv,
        mains_mv=mains_mv,
        mains_hz=int(rng.choice((50, 60))),
        wander_mv=wander_mv,
    )


def electrical_axis_deg(subject: Subject) -> float:
    """The QRS axis as read from leads I and aVF, were the subject healthy; 0 is lead I's.

    It differs from the direction in the body, since the torso is no circle.
    """
    angle = math.radians(subject.heart_axis_deg)
    lead_i, lead_ii = _DOWER[:2, :2] @ (math.cos(angle), math.sin(angle))
    # aVF is measured against the mean of two electrodes: its lead vector is short by 2/sqrt(3).
    return math.degrees(math.atan2((lead_ii - lead_i / 2) * 2 / math.sqrt(3), lead_i))


def record(
    subject: Subject, condition: Condition, disturbance: Disturbance, rng: np.random.Generator
) -> Signal:
    """Record ten seconds of twelve leads.

    Returns
    -------
    ndarray of shape (12, 2500), float32
        Millivolts, in the order of `LEADS`.
    """
    t = np.arange(DURATION_S * SAMPLES_PER_S, dtype=np.float32) / np.float32(SAMPLES_PER_S)
    independent = combine(_DOWER, heart_vector(t, subject, condition, rng))
    return _twelve(independent + _disturb(t, disturbance, rng))


def _disturb(t: Signal, disturbance: Disturbance, rng: np.random.Generator) -> Signal:
    """Muscle noise, mains and baseline wander of the independent leads, shape (8, n_samples)."""
    n_leads = len(_DOWER)
    noise = disturbance.noise_mv * rng.standard_normal((n_leads, len(t)), dtype=np.float32)
    rates_hz = np.append(rng.uniform(0.08, 0.45, 3), disturbance.mains_hz)
    sizes = np.array([disturbance.wander_mv / math.sqrt(3)] * 3 + [disturbance.mains_mv])
    weights = sizes[None, :, None] * rng.standard_normal((n_leads, len(rates_hz), 2))
    angles = (2 * np.pi * rates_hz[:, None] * t).astype(np.float32)
    courses = np.concatenate((np.sin(angles), np.cos(angles)))
    by_course = np.concatenate((weights[..., 0], weights[..., 1]), axis=1).astype(np.float32)
    return noise + combine(by_course, courses)


def _twelve(independent: Signal) -> Signal:
    """Add the four leads that follow from I and II (Einthoven, Goldberger)."""
    lead_i, lead_ii = independent[:2]
    limb = (
        lead_i,
        lead_ii,
        lead_ii - lead_i,
        -(lead_i + lead_ii) / 2,
        lead_i - lead_ii / 2,
        lead_ii - lead_i / 2,
    )
    return np.concatenate((np.stack(limb), independent[2:]))


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
