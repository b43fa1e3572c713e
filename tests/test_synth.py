from __future__ import annotations

import csv
import errno
import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.config import DataSettings, SynthSettings
from ecgfeat.errors import ConfigError, DataError, ImageError, Interrupted, StorageError
from ecgfeat.images import decode
from ecgfeat.manifest import read_manifest
from ecgfeat.runtime import Progress
from ecgfeat.synth import CLASSES, dataset, draw_page, synthesize
from ecgfeat.synth.heart import (
    LEADS,
    SAMPLES_PER_S,
    Condition,
    Disturbance,
    Subject,
    electrical_axis_deg,
    record,
)
from ecgfeat.synth.page import LAYOUTS, Style, draw, trace_coverage

SILENCE = Disturbance(noise_mv=0.0, mains_mv=0.0, mains_hz=50, wander_mv=0.0)
NOISE = Disturbance(noise_mv=0.02, mains_mv=0.01, mains_hz=60, wander_mv=0.1)
SUBJECT = Subject(
    heart_rate=60.0,
    heart_axis_deg=38.0,
    turn_deg=0.0,
    amplitude=1.0,
    p_scale=1.0,
    t_scale=1.0,
    qrs_stretch=1.0,
    sinus_arrhythmia=0.0,
)
STYLE = Style(
    layout="3x4+1",
    grid="red",
    grid_style="lines",
    grid_strength=1.0,
    pen="black",
    pen_mm=0.4,
    paper=(255, 255, 255),
    pulse=True,
    header="",
    shift_mm=(0.0, 0.0),
    rotation_deg=0.0,
    shade=(0.0, 0.0),
)
TINY = SynthSettings(train=12, test=6, size="133x100")


def recorded(
    condition: Condition | None = None,
    *,
    subject: Subject = SUBJECT,
    disturbance: Disturbance = SILENCE,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    signal = record(subject, condition or Condition(), disturbance, np.random.default_rng(seed))
    return dict(zip(LEADS, signal))


def r_peaks(leads: dict[str, NDArray[np.float32]]) -> list[int]:
    """Samples of the R peaks, from the steepest places of the precordial leads."""
    slope = sum(np.abs(np.gradient(leads[name])) for name in ("V2", "V3", "V4", "V5"))
    height = np.max(slope)
    peaks: list[int] = []
    for sample in np.flatnonzero(slope > 0.4 * height):
        if not peaks or sample - peaks[-1] > 0.25 * SAMPLES_PER_S:
            peaks.append(int(sample))
    around = round(0.1 * SAMPLES_PER_S)
    return [
        peak + int(np.argmax(np.abs(leads["V5"][peak : peak + around])))
        for peak in peaks
        if around < peak < len(slope) - 4 * around
    ]


def around_r(
    leads: dict[str, NDArray[np.float32]], name: str, from_s: float, to_s: float
) -> NDArray[np.float32]:
    """One lead's mean beat between two times after the R peak."""
    first, last = round(from_s * SAMPLES_PER_S), round(to_s * SAMPLES_PER_S)
    peaks = [r for r in r_peaks(leads) if r + first >= 0 and r + last <= len(leads[name])]
    return np.mean([leads[name][r + first : r + last] for r in peaks], axis=0)


def qrs(leads: dict[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    return around_r(leads, name, -0.06, 0.06)


# The leads


@pytest.mark.parametrize("disturbance", [SILENCE, NOISE])
def test_limb_leads_obey_einthoven_and_goldberger(disturbance: Disturbance) -> None:
    leads = recorded(disturbance=disturbance)
    one, two = leads["I"], leads["II"]
    assert np.ptp(one) > 0.3
    np.testing.assert_array_equal(leads["III"], two - one)
    np.testing.assert_allclose(leads["aVR"], -(one + two) / 2, atol=1e-6)
    np.testing.assert_allclose(leads["aVL"], (one - leads["III"]) / 2, atol=1e-6)
    np.testing.assert_allclose(leads["aVF"], (two + leads["III"]) / 2, atol=1e-6)


def test_a_normal_heart_looks_normal_in_every_lead() -> None:
    leads = recorded()
    for name in ("I", "II", "aVF", "V4", "V5", "V6"):
        assert qrs(leads, name).max() > 2 * -qrs(leads, name).min(), name
        assert around_r(leads, name, 0.2, 0.32).max() > 0.08, f"T upright in {name}"
    assert -qrs(leads, "aVR").min() > 2 * qrs(leads, "aVR").max()
    assert around_r(leads, "aVR", 0.2, 0.32).min() < -0.08
    assert around_r(leads, "II", -0.2, -0.1).max() == pytest.approx(0.14, abs=0.05)
    assert around_r(leads, "aVR", -0.2, -0.1).max() < 0.0
    p_in_v1 = around_r(leads, "V1", -0.2, -0.1)
    assert -p_in_v1.min() > 0.02 < p_in_v1.max()


def test_the_r_wave_grows_from_v1_to_v4_and_septal_waves_are_in_place() -> None:
    leads = recorded()
    r = [float(qrs(leads, f"V{number}").max()) for number in range(1, 7)]
    s = [float(-qrs(leads, f"V{number}").min()) for number in range(1, 7)]
    assert r[0] < r[1] < r[2] < r[3] > r[5]
    assert [height > depth for height, depth in zip(r, s)] == [False, False, True, True, True, True]
    assert int(np.argmax(s)) in (1, 2)
    in_v1, in_v6 = qrs(leads, "V1"), qrs(leads, "V6")
    assert in_v1.argmax() < in_v1.argmin(), "V1 is rS"
    assert -0.2 < in_v6[: in_v6.argmax()].min() < -0.05, "V6 begins with a small q"


def test_normal_intervals_are_normal() -> None:
    assert 0.07 < qrs_duration_s(recorded()) < 0.11
    leads = recorded()
    p = around_r(leads, "II", -0.3, -0.06)
    p_onset_s = 0.3 - np.flatnonzero(p > 0.02)[0] / SAMPLES_PER_S
    assert 0.12 < p_onset_s - 0.04 < 0.2, "PR"
    t = around_r(leads, "II", 0.1, 0.5)
    t_end_s = 0.1 + np.flatnonzero(t > 0.02)[-1] / SAMPLES_PER_S
    assert 0.35 < t_end_s + 0.04 < 0.44, "QT at 60/min"


@pytest.mark.parametrize("rate", [50.0, 75.0, 110.0])
def test_the_heart_beats_at_its_rate(rate: float) -> None:
    leads = recorded(subject=replace(SUBJECT, heart_rate=rate))
    assert np.diff(r_peaks(leads)).mean() / SAMPLES_PER_S == pytest.approx(60 / rate, rel=0.02)


@pytest.mark.parametrize("in_body_deg", [-5.0, 15.0, 38.0, 68.0])
def test_the_axis_is_what_the_limb_leads_show(in_body_deg: float) -> None:
    subject = replace(SUBJECT, heart_axis_deg=in_body_deg)
    leads = recorded(subject=subject)
    area = {name: float(qrs(leads, name).sum()) for name in ("I", "aVF")}
    shown_deg = np.degrees(np.arctan2(area["aVF"] * 2 / np.sqrt(3), area["I"]))
    assert shown_deg == pytest.approx(electrical_axis_deg(subject), abs=12)
    assert -30 < shown_deg < 95, "normal hearts have a normal axis"


# The conditions


def st_level_mv(leads: dict[str, NDArray[np.float32]], name: str) -> float:
    """ST 70 ms after the J point, against the PR segment."""
    level = around_r(leads, name, 0.11, 0.13).mean() - around_r(leads, name, -0.09, -0.06).mean()
    return float(level)


def qrs_duration_s(leads: dict[str, NDArray[np.float32]]) -> float:
    """How long the mean beat moves faster than any T wave in some precordial lead."""
    beats = np.stack([around_r(leads, f"V{number}", -0.1, 0.16) for number in range(1, 7)])
    speed = np.abs(np.gradient(beats, axis=1)).max(axis=0) * SAMPLES_PER_S
    quick = np.flatnonzero(speed > 9.0)  # mV/s
    return float(quick[-1] - quick[0]) / SAMPLES_PER_S


def irregularity(leads: dict[str, NDArray[np.float32]]) -> float:
    intervals = np.diff(r_peaks(leads))
    return float(intervals.std() / intervals.mean())


def between_beats_mv(leads: dict[str, NDArray[np.float32]]) -> float:
    """Standard deviation in V1 from the end of T to the next P."""
    after = round(0.45 * SAMPLES_PER_S)
    parts = [leads["V1"][r + after : r + after + 75] for r in r_peaks(leads)]
    return float(np.mean([part.std() for part in parts if len(part) > 50]))


@pytest.mark.parametrize(
    ("site", "raised", "lowered"),
    [
        ("anterior", ("V2", "V3", "V4"), ()),
        ("inferior", ("II", "III", "aVF"), ("I", "aVL")),
        ("lateral", ("I", "aVL", "V5"), ("III", "aVF")),
        ("subendocardial", ("aVR",), ("I", "II", "V4", "V5", "V6")),
    ],
)
def test_st_deviation_has_its_reciprocal_change(
    site: str, raised: tuple[str, ...], lowered: tuple[str, ...]
) -> None:
    leads = recorded(Condition(name="st-deviation", site=site, severity=1.0))
    assert all(st_level_mv(leads, name) > 0.1 for name in raised)
    assert all(st_level_mv(leads, name) < -0.05 for name in lowered)
    assert all(abs(st_level_mv(recorded(), name)) < 0.06 for name in LEADS)


@pytest.mark.parametrize("site", ["left", "right"])
def test_a_bundle_branch_block_widens_the_qrs(site: str) -> None:
    leads = recorded(Condition(name="wide-qrs", site=site, severity=1.0))
    assert 0.12 < qrs_duration_s(leads) < 0.2
    in_v1 = around_r(leads, "V1", -0.08, 0.12)
    if site == "left":
        assert in_v1[: in_v1.argmin()].max() < 0.02 < 0.8 < -in_v1.min(), "QS in V1"
    else:
        assert in_v1[in_v1.argmin() :].max() > 0.4, "R' in V1"


def test_atrial_fibrillation_has_no_p_wave_and_no_rhythm() -> None:
    condition = Condition(name="atrial-fibrillation", severity=1.0)
    hearts = [recorded(condition, seed=seed) for seed in range(8)]
    assert np.mean([irregularity(leads) for leads in hearts]) > 0.15
    assert irregularity(recorded()) < 0.02
    p = np.mean([around_r(leads, "II", -0.18, -0.12) for leads in hearts], axis=0)
    assert p.max() < around_r(recorded(), "II", -0.18, -0.12).max() / 2
    assert between_beats_mv(recorded()) < 0.01
    assert np.mean([between_beats_mv(leads) for leads in hearts]) > 0.03


def test_severity_goes_from_nothing_to_plain() -> None:
    levels = [
        st_level_mv(recorded(Condition(name="st-deviation", site="inferior", severity=s)), "III")
        for s in (0.0, 0.5, 1.0)
    ]
    assert levels[0] == pytest.approx(st_level_mv(recorded(), "III"), abs=1e-6)
    assert levels[1] == pytest.approx((levels[0] + levels[2]) / 2, abs=0.01)


def planned(n_pages: int, difficulty: str = "medium") -> list[tuple[dict[str, str], dataset.Page]]:
    settings = SynthSettings(difficulty=difficulty)  # type: ignore[arg-type]
    return [dataset._page(settings, "train", index) for index in range(n_pages)]


def test_three_measurements_of_the_signal_tell_the_classes_apart() -> None:
    """ST level, QRS duration and irregularity, against thresholds as in a textbook."""
    called = []
    for row, page in planned(120):
        rng = np.random.default_rng(page.recording_seed)
        leads = dict(zip(LEADS, record(page.subject, page.condition, SILENCE, rng)))
        st_mv = max(
            max(abs(st_level_mv(leads, name)) for name in ("I", "aVL", "III", "aVF")),
            max(-st_level_mv(leads, name) for name in ("V4", "V5")),
            st_level_mv(leads, "V3") - 0.1,
        )
        ill = st_mv > 0.07 or qrs_duration_s(leads) > 0.105 or irregularity(leads) > 0.09
        called.append(ill == (row["label"] == "pathological"))
    assert np.mean(called) > 0.9


# What must not tell the class


def test_with_one_seed_both_classes_have_the_same_heart_looks_and_noise() -> None:
    seeds = np.random.SeedSequence(5).spawn(2)
    level = dataset.LEVELS["medium"]
    normal, pathological = (dataset._plan(label, *seeds, level) for label in CLASSES)
    assert normal.subject == pathological.subject
    assert normal.style == pathological.style
    assert normal.disturbance == pathological.disturbance
    assert normal.condition.name == "none" != pathological.condition.name
    noises = [
        record(SUBJECT, Condition(name=name, site=site, severity=1e-9), NOISE, rng)
        - record(SUBJECT, Condition(name=name, site=site, severity=1e-9), SILENCE, again)
        for name, site, rng, again in (
            ("none", "", np.random.default_rng(3), np.random.default_rng(3)),
            ("wide-qrs", "left", np.random.default_rng(3), np.random.default_rng(3)),
            ("atrial-fibrillation", "", np.random.default_rng(3), np.random.default_rng(3)),
        )
    ]
    assert np.abs(noises[0]).max() > 0.05
    np.testing.assert_allclose(noises[1], noises[0], atol=1e-5)
    np.testing.assert_allclose(noises[2], noises[0], atol=1e-5)


def test_no_nuisance_in_the_metadata_tells_the_class() -> None:
    rows = [row for row, _ in planned(3000)]
    ill = np.array([row["label"] == "pathological" for row in rows])
    about_the_class = {"path", "label", "split", "group", "condition", "site", "severity"}
    for name in rows[0].keys() - about_the_class:
        values = [row[name] for row in rows]
        try:
            numbers = np.array([float(value) for value in values])
        except ValueError:
            for kind, count in Counter(values).items():
                share = ill[[value == kind for value in values]].mean()
                # Four standard errors of a fair coin.
                assert share == pytest.approx(0.5, abs=2 / np.sqrt(count)), f"{name}={kind}"
        else:
            ranks = numbers.argsort().argsort()
            auroc = (ranks[ill].mean() - ranks[~ill].mean()) / len(rows) + 0.5
            assert auroc == pytest.approx(0.5, abs=0.042), name


def test_outside_the_traces_a_page_is_the_same_for_both_classes() -> None:
    settings = SynthSettings(size="400x300")
    differing = []
    for seed in range(12):
        normal, pathological = (
            np.asarray(draw_page(label, seed=seed, settings=settings)) for label in CLASSES
        )
        np.testing.assert_array_equal(normal[:12], pathological[:12])
        np.testing.assert_array_equal(normal[:, :6], pathological[:, :6])
        differing.append(float((normal != pathological).any(axis=2).mean()))
    assert min(differing) > 0.005


def test_difficulty_brings_the_classes_closer_and_spreads_the_rest() -> None:
    severities, noises = zip(
        *(
            (
                np.mean([p.condition.severity for _, p in pages if p.condition.name != "none"]),
                np.mean([p.disturbance.noise_mv for _, p in pages]),
            )
            for pages in (planned(200, level) for level in ("easy", "medium", "hard"))
        )
    )
    assert severities[0] > severities[1] > severities[2] > 0
    assert 0 < noises[0] < noises[1] < noises[2]


# The drawing


def test_a_trace_covers_what_a_round_pen_would() -> None:
    rng = np.random.default_rng(1)
    width, height, pen_px, per_sample = 60, 40, 2.4, 1.5
    y = (20 + np.cumsum(rng.normal(0, 3.0, 33))).clip(4, 36).astype(np.float32)
    found = trace_coverage(
        y[None], left_px=5.0, px_per_sample=per_sample, pen_px=pen_px, size_px=(width, height)
    )
    fine = 8
    at_x, at_y = np.meshgrid(
        (np.arange(width * fine) + 0.5) / fine, (np.arange(height * fine) + 0.5) / fine
    )
    nearest = np.full(at_x.shape, np.inf)
    x = 5.0 + per_sample * np.arange(len(y))
    for x0, y0, x1, y1 in zip(x, y, x[1:], y[1:]):
        along = ((at_x - x0) * (x1 - x0) + (at_y - y0) * (y1 - y0)) / (
            (x1 - x0) ** 2 + (y1 - y0) ** 2
        )
        along = along.clip(0, 1)
        distance = np.hypot(at_x - x0 - along * (x1 - x0), at_y - y0 - along * (y1 - y0))
        nearest = np.minimum(nearest, distance)
    covered = (nearest <= pen_px / 2).reshape(height, fine, width, fine).mean(axis=(1, 3))
    inner = slice(8, 50)  # A disc's caps at the ends are left out.
    error = np.abs(found[:, inner] / 255 - covered[:, inner])
    assert error.mean() < 0.01
    assert error.max() < 0.3


def test_a_level_trace_is_as_thick_as_its_pen() -> None:
    for y_px in (10.0, 10.3, 10.5):
        ink = trace_coverage(
            np.full((1, 50), y_px, dtype=np.float32),
            left_px=0.0,
            px_per_sample=1.0,
            pen_px=1.7,
            size_px=(40, 20),
        )
        np.testing.assert_allclose(ink.sum(axis=0) / 255, 1.7, atol=0.02)
        centre = (ink * (np.arange(20)[:, None] + 0.5)).sum(axis=0) / ink.sum(axis=0)
        np.testing.assert_allclose(centre, y_px, atol=0.05)


def test_traces_off_the_page_leave_no_ink() -> None:
    y = np.stack([np.full(50, -30.0), np.full(50, 300.0)]).astype(np.float32)
    ink = trace_coverage(y, left_px=-9.0, px_per_sample=2.0, pen_px=2.0, size_px=(40, 20))
    assert ink.shape == (20, 40)
    assert not ink.any()


def dark_lines(profile: NDArray[np.float64]) -> NDArray[np.int64]:
    inner = profile[1:-1]
    valley = (inner <= profile[:-2]) & (inner < profile[2:])
    return np.flatnonzero(valley & (inner < profile.min() + 0.3 * np.ptp(profile))) + 1


def test_the_page_is_to_scale() -> None:
    flat = np.zeros((12, 2500), dtype=np.float32)
    style = replace(STYLE, grid_style="major")
    page = np.asarray(draw(flat, style, (2760, 2070)).convert("L"), dtype=np.float64)
    per_mm = 10
    for profile in (page[40:100].mean(axis=0), page[:, 20:60].mean(axis=1)):
        assert set(np.diff(dark_lines(profile)).tolist()) == {5 * per_mm}
    ink = np.flatnonzero((page < 60).any(axis=0))
    assert ink[-1] - ink[0] == pytest.approx((9 + 25 * 10) * per_mm, abs=12)
    pulse = np.flatnonzero((page[:, ink[0] : ink[0] + 9 * per_mm] < 60).any(axis=1))
    rows = np.split(pulse, np.flatnonzero(np.diff(pulse) > 1) + 1)
    assert [len(row) for row in rows] == [pytest.approx(10 * per_mm + 4, abs=2)] * 4


def test_every_layout_shows_all_leads() -> None:
    for layout in LAYOUTS.values():
        assert {lead for row in layout.rows for lead in row} == set(LEADS)


@pytest.mark.parametrize("size", ["100x100", "100x900", "1000x120", "1200x900"])
def test_pages_of_any_size_hold_paper_grid_and_ink(size: str) -> None:
    settings = SynthSettings(size=size)
    page = draw_page("normal", seed=1, settings=settings)
    assert page.mode == "RGB"
    assert page.size == (settings.width_px, settings.height_px)
    grey = np.asarray(page.convert("L"))
    assert grey.min() < 120 < 180 < grey.max()


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        draw_page("healthy", seed=0, settings=TINY)
    assert str(caught.value) == (
        "a page's class must be one of normal, pathological; found 'healthy'"
    )


# The set on disk


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def rows_of(manifest_path: Path) -> list[dict[str, str]]:
    with manifest_path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_set_is_whole_balanced_and_readable(tmp_path: Path) -> None:
    summary = synthesize(tmp_path / "new" / "set", TINY)
    assert (summary.n_train, summary.n_test, summary.classes) == (12, 6, CLASSES)
    rows = rows_of(summary.manifest_path)
    counts = Counter((row["split"], row["label"]) for row in rows)
    assert counts == {(s, c): n for s, n in (("train", 6), ("test", 3)) for c in CLASSES}
    manifest = read_manifest(summary.manifest_path, DataSettings())
    assert not manifest.missing
    assert len(manifest.paths) == 18
    assert manifest.metadata["layout"] == tuple(row["layout"] for row in rows)
    for row in rows:
        with Image.open(tmp_path / "new" / "set" / row["path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (133, 100))
    assert {path.name for path in (tmp_path / "new" / "set").iterdir()} == {
        "images",
        "manifest.csv",
    }


def test_png_is_lossless(tmp_path: Path) -> None:
    settings = replace(TINY, train=2, test=0, format="png")
    synthesize(tmp_path, settings)
    row, page = dataset._page(settings, "train", 1)
    assert row["path"] == "images/train-000001.png"
    with Image.open(tmp_path / row["path"]) as image:
        np.testing.assert_array_equal(
            np.asarray(image), np.asarray(dataset._render(page, settings))
        )


def test_same_seed_same_bytes_on_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, train=40)
    monkeypatch.setattr(dataset, "n_cpus", lambda: 1)
    synthesize(tmp_path / "one", settings)
    monkeypatch.setattr(dataset, "n_cpus", lambda: 4)
    synthesize(tmp_path / "four", settings)
    assert digests(tmp_path / "one") == digests(tmp_path / "four")
    assert len(digests(tmp_path / "one")) == 47


def test_pages_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    synthesize(tmp_path / "few", TINY)
    synthesize(tmp_path / "more", replace(TINY, train=21, test=8))
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    del few["manifest.csv"]
    assert few.items() <= more.items()
    more_rows = {row["path"]: row for row in rows_of(tmp_path / "more" / "manifest.csv")}
    for row in rows_of(tmp_path / "few" / "manifest.csv"):
        assert more_rows[row["path"]] == row


def test_another_seed_and_another_split_give_other_pages(tmp_path: Path) -> None:
    synthesize(tmp_path / "a", TINY)
    synthesize(tmp_path / "b", replace(TINY, seed=1))
    pages = [digest for out in ("a", "b") for digest in digests(tmp_path / out).values()]
    assert len(pages) == len(set(pages)) == 2 * 19


def test_some_subjects_have_two_pages_of_one_class_in_one_split() -> None:
    shown = defaultdict(list)
    for split in ("train", "test"):
        for index in range(100):
            row, page = dataset._page(TINY, split, index)
            shown[row["group"]].append((split, row["label"], page))
    assert Counter(len(pages) for pages in shown.values()) == {1: 120, 2: 40}
    for pages in shown.values():
        assert len({(split, label) for split, label, _ in pages}) == 1
        assert len({(page.subject, page.condition) for _, _, page in pages}) == 1
        assert len({page.style for _, _, page in pages}) == len(pages)


def test_the_order_of_pages_does_not_give_the_class_away() -> None:
    labels = [dataset._label(0, "train", index) for index in range(400)]
    even = Counter(labels[::2])
    assert 70 < even["normal"] < 130
    assert Counter(labels) == {"normal": 200, "pathological": 200}


def test_photographs_are_of_the_same_pages_each_taken_in_its_own_way(tmp_path: Path) -> None:
    flat, photos = replace(TINY, size="200x150"), replace(TINY, size="200x150", photo="2")
    for name, settings in (("flat", flat), ("photos", photos), ("again", photos)):
        synthesize(tmp_path / name, settings)
    manifests = {path.read_text() for path in tmp_path.glob("*/manifest.csv")}
    assert len(manifests) == 1
    paths = sorted((tmp_path / "flat" / "images").iterdir())
    differences = []
    for path in paths:
        photo, again = (tmp_path / name / "images" / path.name for name in ("photos", "again"))
        assert photo.read_bytes() == again.read_bytes()
        differences.append(decode(photo).astype(int) - decode(path))
    assert min(np.abs(difference).mean() for difference in differences) > 5
    assert len({difference.tobytes() for difference in differences}) == len(paths)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError) as caught:
        synthesize(tmp_path, TINY)
    assert str(caught.value) == (
        f"{tmp_path} is not empty (it holds 'notes.txt'), and pages are never mixed with other "
        "files. Give an empty or new folder."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(DataError) as caught:
        synthesize(tmp_path / "set", TINY)
    assert str(caught.value) == (
        f"{tmp_path / 'set'} is a file; the pages need a folder. Give an empty or new folder."
    )


def test_a_full_disk_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, n_written = Path.write_bytes, 0

    def write_until_full(self: Path, content: bytes) -> int:
        nonlocal n_written
        n_written += 1
        if n_written > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(StorageError) as caught:
        synthesize(tmp_path, TINY)
    assert str(caught.value).startswith(f"writing {tmp_path / 'images'}")
    assert str(caught.value).endswith(
        "the disk is full: free some space, or name a folder on another disk"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_copies_broken_and_missing_files_are_planted_beside_the_same_pages(
    tmp_path: Path, image_format: str
) -> None:
    settings = replace(TINY, format=image_format)
    synthesize(tmp_path / "plain", settings)
    planted = replace(settings, copies=4, undecodable=6, missing=5)
    done = synthesize(tmp_path / "faulty", planted)
    assert (done.n_copies, done.n_undecodable, done.n_missing) == (4, 6, 5)
    rows = {row["path"]: row for row in rows_of(done.manifest_path)}
    assert len(rows) == TINY.train + TINY.test + 15
    for plain in rows_of(tmp_path / "plain" / "manifest.csv"):
        assert rows[plain["path"]] == plain
        page = tmp_path / "plain" / plain["path"]
        assert (tmp_path / "faulty" / plain["path"]).read_bytes() == page.read_bytes()

    n_identical = 0
    for path in (path for path in rows if "copy-of-" in path):
        original = path.replace("copy-of-", "")
        assert rows[path]["label"] == rows[original]["label"]
        assert (rows[original]["split"], rows[path]["split"]) == ("train", "test")
        assert rows[path]["group"] != rows[original]["group"]
        one, other = ((tmp_path / "faulty" / name).read_bytes() for name in (original, path))
        n_identical += one == other
        pixels, again = (decode(tmp_path / "faulty" / name) for name in (original, path))
        assert 0 <= np.abs(pixels.astype(int) - again).mean() < 8
    assert n_identical == 2

    for path, row in rows.items():
        if "undecodable-" in path:
            with pytest.raises(ImageError):
                decode(tmp_path / "faulty" / path)
        elif "missing-" in path:
            assert not (tmp_path / "faulty" / path).exists()
            assert row["label"] in CLASSES
    assert {rows[path]["split"] for path in rows if "undecodable-" in path} == {"train", "test"}
    with pytest.raises(ConfigError, match="--copies 13 needs as many training pages"):
        replace(TINY, copies=13)


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"^making the folder .* failed: a file is where a"):
        synthesize(tmp_path / "file" / "set", TINY)


def test_progress_counts_every_page_and_may_stop_the_work(tmp_path: Path) -> None:
    seen: list[Progress] = []
    settings = replace(TINY, train=40)
    synthesize(tmp_path / "whole", settings, report=seen.append)
    assert [tick.done for tick in seen] == [16, 32, 46]
    assert {(tick.stage, tick.unit, tick.total) for tick in seen} == {("drawing", "pages", 46)}

    def stop(progress: Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        synthesize(tmp_path / "stopped", settings, report=stop)
    assert list((tmp_path / "stopped").iterdir()) == []


def test_drawing_pages_imports_no_torch() -> None:
    code = "import sys, ecgfeat.synth; print('torch' in sys.modules, 'h5py' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
