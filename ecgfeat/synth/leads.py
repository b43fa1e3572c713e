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

import numpy as np

from ecgfeat.synth.heart import Condition, Signal, Subject, combine, heart_vector

__all__ = [
    "DURATION_S",
    "LEADS",
    "SAMPLES_PER_S",
    "Disturbance",
    "draw_disturbance",
    "electrical_axis_deg",
    "record",
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
