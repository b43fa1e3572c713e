"""Pages on which everything varies at once, and what is known of each: lessons in reading an ECG.

`heart` gives a page one condition, by which its class is told. Here a heart has any of them
together, as far as hearts go: rate and rhythm, axis, size, conduction, hypertrophy and its strain,
injury, old infarction, the T wave, ectopic beats. What a reader would measure and name is known of
each page without a label from anyone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.synth.heart import (
    BLOCKS,
    DOWER,
    DURATION_S,
    INJURIES,
    LEADS,
    NORMAL,
    SAMPLES_PER_S,
    ST_SHAPE,
    STRETCHES,
    Condition,
    Signal,
    Subject,
    Vector,
    Wave,
    beats,
    combine,
    disturb,
    draw_disturbance,
    fibrillation,
    fitted,
    gaussians,
    scaled,
    times,
    twelve,
)
from ecgfeat.synth.page import LAYOUTS, draw, draw_style

__all__ = ["FINDINGS", "MEASURES", "NUMBERS", "Lesson", "draw_lesson"]

Numbers = NDArray[np.float32]

MEASURES = ("R", "S", "ST", "T", "P")
"""Of each lead: the heights of R and S, the level of ST, T at its largest, the span of P; in mV."""
WHOLE = (
    "log rate",
    "irregularity",
    "QRS duration",
    "axis, sine",
    "axis, cosine",
    "QT",
    "PR",
    "voltage",
)
"""Of the page: beats a minute, spread of their distances, seconds, the frontal axis, QT and PR
against the usual, and S in V1 with the larger R of V5 and V6 (Sokolow and Lyon 1949)."""
NUMBERS = (*(f"{measure} in {lead}" for measure in MEASURES for lead in LEADS), *WHOLE)
FINDINGS = (
    "left bundle branch block",
    "right bundle branch block",
    "left ventricular hypertrophy",
    "right ventricular hypertrophy",
    "strain",
    "turned T",
    "injury",
    "old infarction",
    "atrial fibrillation",
    "atrial flutter",
    "no P",
    "ectopic beats",
)
SPREAD = 1.2
"""How far the recording's and the scan's faults go; see `draw_style`."""
SIDES_PX, ASPECTS = (480, 1100), (1.3, 1.75)
"""Widths that pages are drawn at before they are resized, and how much wider than high."""
SCARS: tuple[Vector, ...] = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.0, -0.8))
"""Where dead muscle lies: in front, below, to the left, in front and to the left."""
UNSEEN_S = np.float32(1e4)
"""When a beat comes that is outside of every page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """A page and what it shows.

    Attributes
    ----------
    page : ndarray of shape (height, width, 3), uint8
    numbers : ndarray of shape (len(NUMBERS),), float32
    findings : ndarray of shape (len(FINDINGS),), bool
    layout : int
        Place in `LAYOUTS`.
    """

    page: NDArray[np.uint8]
    numbers: Numbers
    findings: NDArray[np.bool_]
    layout: int


def draw_lesson(rng: np.random.Generator, size_px: tuple[int, int]) -> Lesson:
    """Draw a page of any findings and looks.

    Parameters
    ----------
    rng : Generator
    size_px : tuple of int
        Width and height that the page, drawn at a size and aspect of its own, is squashed to.
    """
    heart = _draw_heart(rng)
    signal, r_peaks = _record(heart, rng)
    style = draw_style(rng, spread=SPREAD)
    width = int(rng.integers(*SIDES_PX))
    drawn = draw(signal, style, (width, int(width / rng.uniform(*ASPECTS))))
    return Lesson(
        page=np.asarray(drawn.resize(size_px, Image.Resampling.BILINEAR)),
        numbers=_measured(heart, r_peaks),
        findings=np.array([heart.findings.get(name, 0) > 0 for name in FINDINGS]),
        layout=list(LAYOUTS).index(style.layout),
    )


@dataclass(kw_only=True)
class _Heart:
    """A heart as it is being drawn: its normal waves, and what changes them, one after another."""

    subject: Subject
    waves: list[Wave] = field(default_factory=lambda: list(NORMAL))
    findings: dict[str, float] = field(default_factory=dict)
    """How much there is of each of `FINDINGS`."""
    rhythm: str = "sinus"
    qt: float = 1.0
    pr_s: float = 0.0
    """Later than usual."""
    extra: list[Wave] = field(default_factory=list)
    """An ectopic beat."""

    @property
    def is_blocked(self) -> bool:
        """Whether QRS is broad."""
        return any(name.endswith("block") for name in self.findings)

    def change(self, part: str, how: Callable[[Wave], Wave]) -> None:
        """Change the waves of one part."""
        self.waves = [how(wave) if wave.part == part else wave for wave in self.waves]


def _draw_heart(rng: np.random.Generator) -> _Heart:
    heart = _Heart(subject=_draw_subject(rng))
    for change in (_block, _enlarge, _turn_t, _injure, _scar, _time):
        change(heart, rng)
    heart.waves = [fitted(wave, heart.subject) for wave in heart.waves]
    return heart


def _draw_subject(rng: np.random.Generator) -> Subject:
    """Wider than `draw_subject`: every axis, and rates from 42 to 150."""
    is_usual = rng.random() < 0.5
    usual, any_rate = rng.normal(75, 14), math.exp(rng.uniform(math.log(42), math.log(150)))
    axis_deg = rng.normal(34, 25) if rng.random() < 0.6 else rng.uniform(-90, 150)
    return Subject(
        heart_rate=float(np.clip(usual if is_usual else any_rate, 42, 150)),
        heart_axis_deg=axis_deg,
        turn_deg=rng.normal(0, 18),
        amplitude=math.exp(rng.normal(0, 0.28)),
        p_scale=math.exp(rng.normal(0, 0.3)),
        t_scale=math.exp(rng.normal(-0.1, 0.45)),
        qrs_stretch=float(np.clip(rng.normal(1, 0.1), 0.8, 1.3)),
        sinus_arrhythmia=rng.uniform(0.002, 0.06),
    )


def _block(heart: _Heart, rng: np.random.Generator) -> None:
    """A bundle branch that conducts in part, or not at all."""
    chance, severity = rng.random(), rng.uniform(0.4, 1)
    if chance >= 0.2:
        return
    side = "left" if chance < 0.1 else "right"
    heart.findings[f"{side} bundle branch block"] = severity
    atria = [wave for wave in heart.waves if wave.part == "P"]
    others = [wave for wave in heart.waves if wave.part != "P"]
    heart.waves = [*atria, *scaled(others, 1 - severity), *scaled(BLOCKS[side], severity)]


def _enlarge(heart: _Heart, rng: np.random.Generator) -> None:
    """A thick ventricle: larger forces towards it, and ST and T against them where it strains."""
    chance, growth = rng.random(), rng.uniform(0.15, 1.2)
    is_strained, strain = rng.random() < 0.55, rng.uniform(0.2, 1)
    if chance < 0.3:
        heart.findings["left ventricular hypertrophy"] = max(0.0, growth - 0.3)
        heart.change("QRS", lambda wave: replace(wave, vector=_grown(wave.vector, growth)))
        against: Vector = (-0.20, -0.04, -0.14)
    elif chance < 0.36:
        heart.findings["right ventricular hypertrophy"] = growth
        to_the_right = times((-0.75, 0.15, -0.6), growth)
        heart.waves.append(Wave("QRS", 0.012, 0.014, to_the_right))
        against = (0.05, -0.12, 0.18)
    else:
        return
    if is_strained:
        heart.findings["strain"] = strain
        heart.change("T", lambda wave: _mixed(wave, 1 - 1.1 * strain, times(against, 0.9 * strain)))
        heart.waves += _level(times(against, 0.5 * strain))


def _grown(vector: Vector, growth: float) -> Vector:
    left, feet, back = vector
    to_the_back = 1.0 if back > 0 else 0.2
    return (
        left * (1 + 0.9 * growth),
        feet * (1 + 0.35 * growth),
        back * (1 + to_the_back * growth),
    )


def _turn_t(heart: _Heart, rng: np.random.Generator) -> None:
    """A T that points anywhere, as in ischaemia and much else."""
    is_turned, share, towards = rng.random() < 0.25, rng.uniform(0.3, 1), _direction(rng)
    if is_turned:
        heart.findings["turned T"] = share
        heart.change("T", lambda wave: _mixed(wave, 1 - share, times(towards, 0.25 * share)))


def _injure(heart: _Heart, rng: np.random.Generator) -> None:
    """An injury current, of a territory or anywhere."""
    is_injured, size_mv, anywhere = rng.random() < 0.25, rng.uniform(0.05, 0.35), _direction(rng)
    towards = list(INJURIES.values())[rng.integers(len(INJURIES))]
    if is_injured:
        heart.findings["injury"] = max(0.0, size_mv - 0.08)
        is_anywhere = rng.random() < 0.4
        heart.waves += _level(
            times(anywhere, size_mv) if is_anywhere else times(towards, 3.5 * size_mv)
        )


def _scar(heart: _Heart, rng: np.random.Generator) -> None:
    """Dead muscle, from which the first forces point away."""
    is_scarred, size_mv = rng.random() < 0.18, rng.uniform(0.2, 0.8)
    where = SCARS[rng.integers(len(SCARS))]
    if is_scarred:
        heart.findings["old infarction"] = size_mv
        heart.waves.append(Wave("QRS", -0.022, 0.012, times(where, -size_mv)))


def _time(heart: _Heart, rng: np.random.Generator) -> None:
    """Rhythm, PR and QT, and perhaps ectopic beats."""
    heart.rhythm = str(
        rng.choice(["sinus", "fibrillation", "flutter", "junction"], p=(0.74, 0.15, 0.05, 0.06))
    )
    heart.qt = rng.uniform(0.88, 1.2)
    is_shifted, shift_s = rng.random() < 0.35, rng.uniform(-0.12, 0.03)
    if heart.rhythm == "sinus":
        # An earlier P is a longer PR.
        heart.pr_s = -shift_s * is_shifted
        heart.change("P", lambda wave: replace(wave, delay_s=wave.delay_s - heart.pr_s))
    else:
        heart.findings["no P"] = 1
        heart.waves = [wave for wave in heart.waves if wave.part != "P"]
    if heart.rhythm in ("fibrillation", "flutter"):
        heart.findings[f"atrial {heart.rhythm}"] = 1
    heart.change(
        "T",
        lambda wave: replace(
            wave, delay_s=wave.delay_s * heart.qt, width_s=wave.width_s * heart.qt
        ),
    )
    towards, size_mv, askew = _direction(rng), rng.uniform(0.9, 1.8), _direction(rng)
    if rng.random() < 0.16:
        main = times(towards, size_mv)
        heart.findings["ectopic beats"] = 1
        heart.extra = [
            Wave("QRS", 0.0, 0.028, times(main, 0.8)),
            _mixed(Wave("QRS", 0.05, 0.03, main), 0.7, times(askew, 0.2)),
            Wave("T", 0.25, 0.06, times(main, -0.35)),
        ]


def _direction(rng: np.random.Generator) -> Vector:
    x, y, z = rng.standard_normal(3)
    return times((x, y, z), 1 / math.sqrt(x * x + y * y + z * z))


def _mixed(wave: Wave, share: float, other: Vector) -> Wave:
    """A share of the wave's own vector, and another."""
    x, y, z = times(wave.vector, share)
    return replace(wave, vector=(x + other[0], y + other[1], z + other[2]))


def _level(vector: Vector) -> list[Wave]:
    """ST off the baseline."""
    return [Wave("ST", delay, width, times(vector, share)) for delay, width, share in ST_SHAPE]


# From the heart to twelve leads


def _record(heart: _Heart, rng: np.random.Generator) -> tuple[Signal, Signal]:
    """Ten seconds of twelve leads in mV, and when the beats came."""
    t = np.arange(DURATION_S * SAMPLES_PER_S, dtype=np.float32) / np.float32(SAMPLES_PER_S)
    is_fibrillating = heart.rhythm == "fibrillation"
    severity = rng.uniform(0.4, 1)
    atria = Condition(name="atrial-fibrillation" if is_fibrillating else "none", severity=severity)
    r_peaks, lengths = beats(float(t[-1]), heart.subject, atria, rng)
    is_extra = _extra_beats(len(r_peaks), rng) & bool(heart.extra)
    r_peaks = r_peaks - np.float32(rng.uniform(0.2, 0.35)) * lengths * is_extra
    vector = fibrillation(t, atria, rng)
    for waves, chosen in ((heart.waves, ~is_extra), (heart.extra, is_extra)):
        if chosen.any():
            vector += _beating(t, waves, r_peaks[chosen], lengths[chosen])
    if heart.rhythm == "flutter":
        vector += _flutter(t, rng)
    independent = combine(DOWER, np.float32(heart.subject.amplitude) * vector)
    disturbance = draw_disturbance(rng, spread=SPREAD)
    return twelve(independent + disturb(t, disturbance, rng)), np.sort(r_peaks)


def _extra_beats(n_beats: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which beats are ectopic, were there any: every second or third, or some now and then."""
    is_regular, first, step = rng.random() < 0.3, rng.integers(2), rng.integers(2, 4)
    regular = np.arange(n_beats) % step == first
    return regular if is_regular else rng.random(n_beats) < rng.uniform(0.08, 0.3)


def _beating(t: Signal, waves: Sequence[Wave], r_peaks: Signal, lengths: Signal) -> Signal:
    """The heart's vector in mV, shape (3, n_samples), of these beats alone."""
    r_peaks = np.concatenate(([-UNSEEN_S], r_peaks, [UNSEEN_S, 2 * UNSEEN_S]))
    lengths = np.concatenate(([1], lengths, [1, 1]))
    vectors = np.array([wave.vector for wave in waves], dtype=np.float32)
    courses = gaussians(t, r_peaks.astype(np.float32), lengths.astype(np.float32), list(waves))
    return combine(vectors.T, courses)


def _flutter(t: Signal, rng: np.random.Generator) -> Signal:
    """A steady saw-tooth, largest in II, III and aVF."""
    phase = 2 * np.pi * rng.uniform(4.2, 5.5) * t
    sawtooth = sum(np.sin(n * phase) / n for n in (1, 2, 3, 4))
    return np.outer((-0.03, 0.11, -0.05), sawtooth).astype(np.float32)


# What a reader would measure


def _measured(heart: _Heart, r_peaks: Signal) -> Numbers:
    """`NUMBERS` of a page, off one beat without the recording's faults."""
    length_s = 60 / heart.subject.heart_rate
    t = np.arange(-0.35, 0.6, 1 / SAMPLES_PER_S, dtype=np.float32)
    courses = np.stack([_course(wave, t, length_s) for wave in heart.waves])
    vectors = heart.subject.amplitude * np.array([wave.vector for wave in heart.waves])
    leads = twelve(combine(DOWER, combine(vectors.T.astype(np.float32), courses)))

    def within(start_s: float, end_s: float) -> Signal:
        return leads[:, (t >= start_s) & (t <= end_s)]

    qrs = within(-0.07, 0.14 if heart.is_blocked else 0.07)
    st = within(0.14, 0.16) if heart.is_blocked else within(0.09, 0.11)
    bazett = math.sqrt(length_s)
    t_wave = within(0.17 * bazett, min(0.42 * bazett * heart.qt, 0.58))
    largest = np.abs(t_wave).argmax(1)[:, None]
    p_wave = within(-0.3, -0.075)
    r, s = qrs.max(1), -qrs.min(1)
    by_lead = (r, s, st.mean(1), np.take_along_axis(t_wave, largest, 1)[:, 0], np.ptp(p_wave, 1))
    seen = np.diff(r_peaks[(r_peaks > 0) & (r_peaks < DURATION_S)])
    lead = {name: number for number, name in enumerate(LEADS)}
    axis = math.atan2(r[lead["aVF"]] - s[lead["aVF"]], r[lead["I"]] - s[lead["I"]])
    whole = (
        math.log(heart.subject.heart_rate),
        float(seen.std() / seen.mean()) if len(seen) else 0.0,
        _duration_s(heart, courses),
        math.sin(axis),
        math.cos(axis),
        heart.qt,
        heart.pr_s,
        s[lead["V1"]] + max(r[lead["V5"]], r[lead["V6"]]),
    )
    return np.concatenate((*by_lead, whole)).astype(np.float32)


def _course(wave: Wave, t: Signal, length_s: float) -> Signal:
    """A wave's course in a beat of one length, with peak 1."""
    within = t / np.float32(length_s ** STRETCHES[wave.part])
    course: Signal = np.exp(-0.5 * ((within - wave.delay_s) / wave.width_s) ** 2)
    return course


def _duration_s(heart: _Heart, courses: Signal) -> float:
    """How long the ventricles' vector is above a sixteenth of its largest."""
    rows = [number for number, wave in enumerate(heart.waves) if wave.part == "QRS"]
    vectors = np.array([heart.waves[row].vector for row in rows], dtype=np.float32)
    size = np.abs(combine(vectors.T, courses[rows])).sum(0)
    return float((size > size.max() / 16).sum()) / SAMPLES_PER_S
