"""The heart in closed form, and twelve leads that look at it.

Beats are sums of Gaussians, each with a heart vector.

McSharry et al. [1]_ let a point run round a circle once per beat; near each event `i` (P, Q, R,
S, T) at the angle ``theta_i`` it is pushed up or down:
``dz/dt = -sum_i a_i d_i exp(-d_i**2 / (2 b_i**2)) - (z - z0)`` with ``d_i = theta - theta_i``.
On the limit cycle ``theta = omega t``; without the slow pull to the baseline ``z0`` (baseline
wander is added apart) the equation integrates to a sum of Gaussians,
``z = sum_i A_i exp(-d_i**2 / (2 b_i**2))`` with ``A_i = a_i b_i**2 / omega``. In time within the
beat that is a Gaussian of delay ``theta_i / omega`` and width ``b_i / omega``: no differential
equation has to be solved. As in Sameni et al. [2]_, each event carries a vector in place of one
amplitude, so that twelve leads can look at it.

Dower's lead vectors [4]_ give I, II and V1 to V6; the other four leads follow from I and II by
Einthoven's and Goldberger's equations, noise and all.

References
----------
.. [1] P. E. McSharry, G. D. Clifford, L. Tarassenko, L. A. Smith, "A dynamical model for
   generating synthetic electrocardiogram signals", IEEE Trans. Biomed. Eng. 50(3):289-294, 2003.
.. [2] R. Sameni, G. D. Clifford, C. Jutten, M. B. Shamsollahi, "Multichannel ECG and noise
   modeling: application to maternal and fetal ECG signals", EURASIP J. Adv. Signal Process.
   2007:043407.
.. [3] M. Stridh, L. Sornmo, "Spatiotemporal QRST cancellation techniques for analysis of atrial
   fibrillation", IEEE Trans. Biomed. Eng. 48(1):105-111, 2001.
.. [4] G. E. Dower, H. B. Machado, J. A. Osborne, "On deriving the electrocardiogram from
   vectorcardiographic leads", Clin. Cardiol. 3(2):87-95, 1980.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "DURATION_S",
    "LEADS",
    "SAMPLES_PER_S",
    "Condition",
    "Disturbance",
    "Subject",
    "draw_condition",
    "draw_disturbance",
    "draw_subject",
    "electrical_axis_deg",
    "heart_vector",
    "record",
]

Signal = NDArray[np.float32]
Vector = tuple[float, float, float]

CLASSES = ("normal", "pathological")
"""The second is the positive one: ecgfeat takes the last in alphabetical order."""


@dataclass(frozen=True)
class Wave:
    """One Gaussian event of the beat.

    Attributes
    ----------
    part : str
        ``"P"``, ``"QRS"``, ``"ST"`` or ``"T"``: what it scales and turns with.
    delay_s, width_s : float
        Centre after the R peak and standard deviation, at 60 beats per minute.
    vector : tuple of float
        Heart vector at the peak in mV: to the patient's left, to the feet, to the back.
    """

    part: str
    delay_s: float
    width_s: float
    vector: Vector


# McSharry's table 1, for one lead: P, Q, R, S, T at theta = -pi/3, -pi/12, 0, pi/12, pi/2 with
# a = 1.2, -5, 30, -7.5, 0.75 and b = 0.25, 0.1, 0.1, 0.1, 0.4; at 60/min that is at -167, -42,
# 0, 42, 250 ms with widths of 40, 16, 16, 16, 64 ms. What differs here, and why:
# - P is two waves of 17 ms, right then left atrium: a P of 100 ms, biphasic in V1.
# - QRS is four, the stages of activation (septum, apex, left ventricle, base), since only a
#   vector that turns gives rS in V1, RS in V3 and qR in V6 at once; QRS lasts 90 ms.
# - T is two, for its slow rise and faster fall; QT is 400 ms.
_NORMAL = (
    Wave("P", -0.165, 0.016, (0.03, 0.085, -0.055)),
    Wave("P", -0.132, 0.018, (0.075, 0.06, 0.04)),
    Wave("QRS", -0.026, 0.0065, (-0.17, -0.06, -0.16)),
    Wave("QRS", -0.011, 0.0075, (0.30, 0.22, -0.30)),
    Wave("QRS", 0.003, 0.0095, (0.95, 0.75, 0.22)),
    Wave("QRS", 0.022, 0.0095, (-0.10, -0.08, 0.68)),
    Wave("T", 0.230, 0.055, (0.13, 0.10, -0.09)),
    Wave("T", 0.285, 0.034, (0.16, 0.11, -0.10)),
)

# Left bundle branch block: no septal wave, the vector stays left and back for 140 ms with a
# notch, and ST and T point against it. Right: the normal wave, then a slow one to the right
# and front (R' in V1, broad S in I and V6).
_LEFT_BLOCK = (
    Wave("QRS", -0.028, 0.014, (0.35, 0.18, 0.20)),
    Wave("QRS", 0.004, 0.016, (0.85, 0.45, 0.62)),
    Wave("QRS", 0.046, 0.017, (0.88, 0.38, 0.70)),
    Wave("QRS", 0.078, 0.014, (0.25, 0.10, 0.30)),
    Wave("ST", 0.150, 0.040, (-0.08, -0.03, -0.12)),
    Wave("T", 0.230, 0.050, (-0.16, -0.07, -0.24)),
    Wave("T", 0.285, 0.036, (-0.18, -0.08, -0.20)),
)
_RIGHT_BLOCK = (
    *(wave for wave in _NORMAL if wave.part == "QRS"),
    Wave("QRS", 0.056, 0.016, (-0.46, 0.00, -0.42)),
    Wave("QRS", 0.084, 0.014, (-0.28, 0.02, -0.34)),
    Wave("T", 0.235, 0.052, (0.17, 0.10, 0.06)),
    Wave("T", 0.290, 0.034, (0.18, 0.10, 0.08)),
)
_BLOCKS = {"left": _LEFT_BLOCK, "right": _RIGHT_BLOCK}

# (delay_s, width_s, share): four waves that make a level from the J point into the T wave.
_ST_SHAPE = ((0.066, 0.015, 0.8), (0.105, 0.026, 0.85), (0.160, 0.036, 0.8), (0.225, 0.042, 0.75))
# Where the injury vector points (mV at full severity). The leads that face away show the
# reciprocal change; "subendocardial" is depression everywhere but in aVR and V1.
_INJURIES: dict[str, Vector] = {
    "anterior": (0.12, -0.04, -0.26),
    "inferior": (-0.08, 0.25, 0.06),
    "lateral": (0.27, -0.14, 0.02),
    "subendocardial": (-0.22, -0.19, 0.08),
}

_FIBRILLATION_VECTOR: Vector = (-0.02, 0.055, -0.075)  # mV; largest in V1, then II, III and aVF.

_SHORTEST_BEAT = 0.5  # Of the mean length: the heart muscle must recover first.
_NORMAL_AXIS_DEG = math.degrees(math.atan2(0.75, 0.95))
# How far each part follows the heart's electrical axis: atria and injuries stay where they are.
_TURNS = {"P": 0.0, "QRS": 1.0, "ST": 0.0, "T": 0.5}
# QT shortens with the root of the beat's length (Bazett), PR less, QRS not at all.
_STRETCHES = {"P": 0.25, "QRS": 0.0, "ST": 0.5, "T": 0.5}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A person's heart, apart from any disease: drawn without knowing the class.

    Attributes
    ----------
    heart_rate : float
        Mean beats per minute.
    heart_axis_deg : float
        Frontal direction of the main QRS vector in the body; 0 to the left, 90 to the feet.
    turn_deg : float
        Rotation about the body's long axis; moves the transition zone in V1 to V6.
    amplitude, p_scale, t_scale : float
        Factors on everything's size, on P's and on T's.
    qrs_stretch : float
        Factor on the duration of QRS.
    sinus_arrhythmia : float
        Share by which breathing modulates the beat's length.
    """

    heart_rate: float
    heart_axis_deg: float
    turn_deg: float
    amplitude: float
    p_scale: float
    t_scale: float
    qrs_stretch: float
    sinus_arrhythmia: float


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What makes a page pathological.

    Attributes
    ----------
    name : str
        ``"none"``, ``"st-deviation"``, ``"wide-qrs"`` or ``"atrial-fibrillation"``.
    site : str
        Which injury or which bundle branch; empty for the others.
    severity : float
        From 0, nothing to see, to 1, plain.
    """

    name: str = "none"
    site: str = ""
    severity: float = 0.0


def draw_subject(rng: np.random.Generator, *, spread: float) -> Subject:
    """Draw a heart; `spread` widens its variation (1 is ordinary)."""
    return Subject(
        heart_rate=_normal(rng, 74, 11 * spread, low=50, high=110),
        heart_axis_deg=_normal(rng, 34, 15 * spread, low=-5, high=68),
        turn_deg=_normal(rng, 0, 7 * spread, low=-20, high=20),
        amplitude=math.exp(_normal(rng, 0, 0.16 * spread, low=-0.6, high=0.6)),
        p_scale=math.exp(_normal(rng, 0, 0.15 * spread, low=-0.5, high=0.5)),
        t_scale=math.exp(_normal(rng, 0, 0.2 * spread, low=-0.6, high=0.6)),
        qrs_stretch=_normal(rng, 1, 0.07 * spread, low=0.85, high=1.15),
        sinus_arrhythmia=rng.uniform(0.005, 0.04) * spread,
    )


def draw_condition(
    label: str, rng: np.random.Generator, *, severity: tuple[float, float]
) -> Condition:
    """Draw one of the three conditions, evenly, for a pathological page; none for a normal one."""
    if label == "normal":
        return Condition()
    name = rng.choice(("st-deviation", "wide-qrs", "atrial-fibrillation"))
    sites = {"st-deviation": tuple(_INJURIES), "wide-qrs": tuple(_BLOCKS)}.get(name, ("",))
    return Condition(name=str(name), site=str(rng.choice(sites)), severity=rng.uniform(*severity))


def heart_vector(
    t: Signal, subject: Subject, condition: Condition, rng: np.random.Generator
) -> Signal:
    """The heart's vector over time.

    The random numbers taken don't depend on the condition: the same generator serves the
    healthy and the ill alike, and goes on from the same state.

    Parameters
    ----------
    t : ndarray of shape (n_samples,), float32
        Seconds, ascending from 0.

    Returns
    -------
    ndarray of shape (3, n_samples), float32
        mV to the patient's left, to the feet, to the back.
    """
    r_peaks, lengths = _beats(float(t[-1]), subject, condition, rng)
    waves = _waves(subject, condition)
    vectors = np.array([wave.vector for wave in waves], dtype=np.float32)
    beating = combine(vectors.T, _gaussians(t, r_peaks, lengths, waves))
    return subject.amplitude * (beating + _fibrillation(t, condition, rng))


def combine(weights: Signal, courses: Signal) -> Signal:
    """Weighted sums of courses in time, ``(k, j) x (j, n_samples)``.

    Not through BLAS, whose own threads would fight with ours and may change the last bit.
    """
    sums: Signal = np.einsum("kj,jn->kn", weights, courses)
    return sums


def _normal(
    rng: np.random.Generator, mean: float, deviation: float, *, low: float, high: float
) -> float:
    return min(high, max(low, rng.normal(mean, deviation)))


def _beats(
    end_s: float, subject: Subject, condition: Condition, rng: np.random.Generator
) -> tuple[Signal, Signal]:
    """Times of the R peaks, from before 0 to after the end, and the length of the beat before.

    Both in seconds.
    """
    mean_s = 60.0 / subject.heart_rate
    n_beats = math.ceil((end_s + 4) / (_SHORTEST_BEAT * mean_s))
    jitter = rng.standard_normal(n_beats)
    start, slow, fast = rng.random(3)
    if condition.name == "atrial-fibrillation":
        spread = 0.06 + 0.2 * condition.severity
        factors = np.exp(spread * jitter - spread**2 / 2)
    else:
        # The two peaks of heart rate variability in McSharry's spectrum: 0.1 and 0.25 Hz.
        at = mean_s * np.arange(n_beats)
        breathing = np.sin(2 * np.pi * (0.25 * at + fast))
        pressure = 0.5 * np.sin(2 * np.pi * (0.1 * at + slow))
        factors = 1 + subject.sinus_arrhythmia * (breathing + pressure) + 0.006 * jitter
    lengths = mean_s * np.maximum(factors, _SHORTEST_BEAT)
    r_peaks = np.cumsum(lengths) - lengths[0] - start * mean_s - 1.0
    return r_peaks.astype(np.float32), lengths.astype(np.float32)


def _waves(subject: Subject, condition: Condition) -> list[Wave]:
    """The beat's events under the condition, turned and scaled to the subject."""
    waves = list(_NORMAL)
    if condition.name == "atrial-fibrillation":
        waves = [wave for wave in waves if wave.part != "P"]
    elif condition.name == "st-deviation":
        injury = _INJURIES[condition.site]
        waves += [
            Wave("ST", delay_s, width_s, _times(injury, share * condition.severity))
            for delay_s, width_s, share in _ST_SHAPE
        ]
    elif condition.name == "wide-qrs":
        waves = [wave for wave in waves if wave.part == "P"]
        normal = [wave for wave in _NORMAL if wave.part != "P"]
        waves += _scaled(normal, 1 - condition.severity)
        waves += _scaled(_BLOCKS[condition.site], condition.severity)
    return [_fitted(wave, subject) for wave in waves]


def _scaled(waves: Iterable[Wave], factor: float) -> list[Wave]:
    return [replace(wave, vector=_times(wave.vector, factor)) for wave in waves]


def _times(vector: Vector, factor: float) -> Vector:
    x, y, z = vector
    return factor * x, factor * y, factor * z


def _fitted(wave: Wave, subject: Subject) -> Wave:
    scale = {"P": subject.p_scale, "T": subject.t_scale}.get(wave.part, 1.0)
    x, y, z = _times(wave.vector, scale)
    follows = _TURNS[wave.part]
    # First about the long axis (left and back change places), then in the frontal plane.
    turn = math.radians(subject.turn_deg * follows)
    x, z = x * math.cos(turn) - z * math.sin(turn), x * math.sin(turn) + z * math.cos(turn)
    tilt = math.radians((subject.heart_axis_deg - _NORMAL_AXIS_DEG) * follows)
    x, y = x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)
    stretch = subject.qrs_stretch if wave.part == "QRS" else 1.0
    return Wave(wave.part, stretch * wave.delay_s, stretch * wave.width_s, (x, y, z))


def _gaussians(t: Signal, r_peaks: Signal, lengths: Signal, waves: list[Wave]) -> Signal:
    """Each wave's course over all beats with peak 1, shape (n_waves, n_samples)."""
    delays = np.array([[wave.delay_s] for wave in waves], dtype=np.float32)
    widths = np.array([[wave.width_s] for wave in waves], dtype=np.float32)
    powers = np.array([_STRETCHES[wave.part] for wave in waves], dtype=np.float32)
    before = np.searchsorted(r_peaks, t, side="right") - 1
    total = np.zeros((len(waves), len(t)), dtype=np.float32)
    # A sample sees the beat before it (S, ST, T) and the one after it (P, Q).
    for beat in (before, before + 1):
        since = t - r_peaks[beat]
        for power in np.unique(powers):
            rows = powers == power
            within = since / lengths[beat] ** power
            total[rows] += np.exp(-0.5 * ((within - delays[rows]) / widths[rows]) ** 2)
    return total


def _fibrillation(t: Signal, condition: Condition, rng: np.random.Generator) -> Signal:
    """Fibrillatory waves as a heart vector, shape (3, n_samples); zero in sinus rhythm.

    A saw-tooth of three harmonics whose rate and size drift slowly, after Stridh and Sornmo [3]_.
    """
    rate_hz, drift, swell, jolt = rng.uniform((5.0, 0, 0, 0), (7.5, 1, 1, 1))
    severity = condition.severity if condition.name == "atrial-fibrillation" else 0.0
    if not severity:
        return np.zeros((3, len(t)), dtype=np.float32)
    drifting = 0.4 * np.sin(2 * np.pi * (0.4 * t + drift))
    drifting += 0.12 * np.sin(2 * np.pi * (2.3 * t + jolt))
    phase = 2 * np.pi * (rate_hz * t + drifting)
    sawtooth = sum(np.sin(n * phase) / n for n in (1, 2, 3))
    size = (0.35 + 0.65 * severity) * (1 + 0.3 * np.sin(2 * np.pi * (0.2 * t + swell)))
    return np.outer(_FIBRILLATION_VECTOR, size * sawtooth).astype(np.float32)


# The recording: twelve leads, and what it adds to them

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
