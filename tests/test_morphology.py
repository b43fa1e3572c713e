"""Lessons: what is said of a page is what it shows."""

from __future__ import annotations

import numpy as np
import pytest

from ecgfeat.synth import FINDINGS, LAYOUTS, MEASURES, NUMBERS, draw_lesson, morphology
from ecgfeat.synth.heart import DURATION_S, LEADS, SAMPLES_PER_S


def hearts(n: int) -> list[morphology._Heart]:
    return [morphology._draw_heart(np.random.default_rng((3, seed))) for seed in range(n)]


def number(numbers: np.ndarray, name: str) -> float:
    return float(numbers[NUMBERS.index(name)])


def test_a_lesson_is_a_page_with_all_that_is_asked_of_it():
    lesson = draw_lesson(np.random.default_rng(0), (224, 160))
    assert lesson.page.shape == (160, 224, 3)
    assert lesson.page.dtype == np.uint8
    assert lesson.numbers.shape == (len(NUMBERS),)
    assert lesson.findings.shape == (len(FINDINGS),)
    assert 0 <= lesson.layout < len(LAYOUTS)
    assert len(NUMBERS) == len(set(NUMBERS)) == len(MEASURES) * len(LEADS) + len(morphology.WHOLE)


def test_the_same_numbers_draw_the_same_lesson():
    one, same, other = (draw_lesson(np.random.default_rng(seed), (112, 80)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.page, same.page)
    np.testing.assert_array_equal(one.numbers, same.numbers)
    assert (one.page != other.page).any()


def test_every_number_is_finite_and_every_finding_is_met_and_missed():
    found = [
        (morphology._measured(heart, np.arange(0, 10, 0.8)), heart.findings)
        for heart in hearts(300)
    ]
    assert np.isfinite(np.stack([numbers for numbers, _ in found])).all()
    for name in FINDINGS:
        n_met = sum(findings.get(name, 0) > 0 for _, findings in found)
        assert 5 <= n_met <= 150, name


@pytest.mark.parametrize("seed", range(8))
def test_what_is_said_of_a_lead_can_be_read_off_its_signal(monkeypatch, seed):
    monkeypatch.setattr(morphology, "SPREAD", 0.0)  # a recording without faults
    rng = np.random.default_rng((4, seed))
    heart = morphology._draw_heart(rng)
    heart.extra, heart.rhythm = [], "sinus"
    signal, r_peaks = morphology._record(heart, rng)
    numbers = morphology._measured(heart, r_peaks)
    inside = r_peaks[(r_peaks > 1) & (r_peaks < DURATION_S - 1)]
    end_s = 0.14 if heart.is_blocked else 0.07
    for row, lead in enumerate(LEADS):
        beats = [
            signal[row, int((r - 0.07) * SAMPLES_PER_S) : int((r + end_s) * SAMPLES_PER_S) + 1]
            for r in inside
        ]
        assert number(numbers, f"R in {lead}") == pytest.approx(
            np.median([beat.max() for beat in beats]), abs=0.06
        )
        assert number(numbers, f"S in {lead}") == pytest.approx(
            -np.median([beat.min() for beat in beats]), abs=0.06
        )
    assert np.exp(number(numbers, "log rate")) == pytest.approx(
        60 / np.diff(inside).mean(), rel=0.1
    )


def mean_with_and_without(finding: str, name: str) -> tuple[float, float]:
    values: dict[bool, list[float]] = {True: [], False: []}
    for heart in hearts(200):
        rng = np.random.default_rng(1)
        numbers = morphology._measured(heart, morphology._record(heart, rng)[1])
        values[heart.findings.get(finding, 0) > 0].append(number(numbers, name))
    return float(np.mean(values[True])), float(np.mean(values[False]))


@pytest.mark.parametrize(
    ("finding", "name", "factor"),
    [
        ("left bundle branch block", "QRS duration", 1.2),
        ("left ventricular hypertrophy", "voltage", 1.4),
        ("right bundle branch block", "QRS duration", 1.4),
        ("atrial fibrillation", "irregularity", 2.0),
        ("ectopic beats", "irregularity", 1.5),
        ("right bundle branch block", "R in V1", 1.3),
    ],
)
def test_a_finding_shows_in_what_is_measured(finding, name, factor):
    with_it, without = mean_with_and_without(finding, name)
    assert with_it > factor * without


def test_fibrillation_has_no_p():
    for heart in hearts(200):
        if heart.findings.get("atrial fibrillation"):
            assert heart.findings["no P"]
            assert not any(wave.part == "P" for wave in heart.waves)
