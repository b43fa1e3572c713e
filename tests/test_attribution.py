"""Where a model looked: contributions that sum to the logit, in the page's own coordinates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.attribution import RANDOM_WEIGHTS, Explainer, Explanation, explanation_plot
from ecgfeat.cli import app
from ecgfeat.config import (
    ComputeSettings,
    EvaluationSettings,
    ExtractionSettings,
    HeadSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.feature_cache import open_cache
from ecgfeat.images import decode, prepare
from ecgfeat.inference import predict, read_model
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs import Run

from .conftest import draw_page
from .studies import FP32, run_of, weights_drawn_once
from .test_inference import by_region

__all__ = ["by_region", "weights_drawn_once"]  # fixtures


def log_odds(probabilities: np.ndarray, target: int) -> float:
    """Of a class against the geometric mean of the others."""
    logs = np.log(probabilities)
    return float(logs[target] - np.delete(logs, target).mean())


def check_sums(run: Run, images: list[Path]) -> None:
    said = predict(run, images, compute=FP32)
    found = ecgfeat.explain(run, images, compute=FP32, check=False).explanations
    assert len(found) == len(images)
    for one, probabilities in zip(found, said.probabilities):
        target = said.classes.index(one.label)
        assert one.probability == pytest.approx(probabilities[target], abs=1e-4)
        assert one.logit == pytest.approx(log_odds(probabilities, target), abs=1e-4)
        in_cells = sum(cells.sum() for cells in one.cells.values())
        assert one.heat.sum() == pytest.approx(in_cells, abs=1e-4)
        assert one.offset + one.heat.sum() == one.logit
        assert np.abs(one.heat).max() > 0


@pytest.mark.parametrize("kind", ["linear", "logreg", "finetune"])
def test_contributions_sum_to_the_logit(study: Path, pages: list[Path], kind: str) -> None:
    check_sums(run_of(study, kind), pages[:3])


@pytest.mark.parametrize("kind", ["linear", "logreg"])
def test_of_more_classes_the_answer_is_explained_against_the_others(
    study: Path, pages: list[Path], kind: str
) -> None:
    run = run_of(study, kind, n_classes=3)
    check_sums(run, pages[:2])
    (found,) = ecgfeat.explain(run, pages[:1], compute=FP32, check=False).explanations
    assert found.label == found.predicted
    others = [
        ecgfeat.explain(run, pages[:1], label=name, compute=FP32, check=False).explanations[0]
        for name in "abc"
    ]
    # Each is set against the mean of the others, so all of them are nothing.
    assert sum(one.heat for one in others) == pytest.approx(np.zeros_like(found.heat), abs=1e-5)


def test_grids_and_other_pools_sum_too(by_region: tuple[Run, Run], pages: list[Path]) -> None:
    for run in by_region:
        check_sums(run, pages[:2])
        (found,) = ecgfeat.explain(run, pages[:1], compute=FP32, check=False).explanations
        shapes = {tap: cells.shape for tap, cells in found.cells.items()}
        assert shapes == {"layer2-std-2x3": (2, 3), "layer1-4x4": (4, 4), "layer2-max": (1, 1)}


def test_a_calibrated_and_a_cross_validated_head_sum_too(study: Path, pages: list[Path]) -> None:
    (cache,) = study.glob("pages2-*.h5")
    settings = EvaluationSettings(val_fraction=0.25, calibrate=True)
    for kind in ("linear", "logreg"):
        (run,) = ecgfeat.fit_heads(
            open_cache(cache),
            kinds=kind,
            head=HeadSettings(layers="layer1,layer4", epochs=2),
            evaluation=settings,
            out_dir=study / "calibrated",
        )
        assert run.decision.method != "none"
        check_sums(run, pages[:2])
    (run,) = ecgfeat.fit_heads(
        open_cache(cache),
        kinds="logreg",
        head=HeadSettings(layers="layer4"),
        evaluation=EvaluationSettings(cv=2),
        out_dir=study / "folds",
    )
    explainer = Explainer(run, check=False, compute=FP32)
    whole = explainer.explain(pages[0])
    folds = [explainer.explain(pages[0], fold=fold) for fold in (0, 1)]
    assert whole.heat == pytest.approx((folds[0].heat + folds[1].heat) / 2, abs=1e-6)
    pixels = prepare(decode(pages[0]), read_model(run).card.preprocessing)[None]
    features = explainer._backbone.features(pixels)
    for one, head in zip(folds, read_model(run).heads):
        assert one.logit == pytest.approx(log_odds(head.probabilities(features)[0], 1), abs=1e-4)


PAGES_PX = {"center": (400, 300), "border": (400, 150), "squash": (400, 300)}


@pytest.mark.parametrize("crop_mode", PAGES_PX)
def test_the_map_lies_where_the_network_saw_the_page(crop_mode: str) -> None:
    preprocessing = Preprocessing.from_settings(PageSettings(crop_mode=crop_mode, size="64x48"))
    page_px = PAGES_PX[crop_mode]
    found = explanation(np.ones((12, 16)), page_px, preprocessing)
    left, right, bottom, top = found.extent_px
    if crop_mode == "squash":
        assert (left, right, bottom, top) == (0, 400, 300, 0)
    elif crop_mode == "center":  # the middle 224 of 256, of a page of the input's own shape
        assert (left, right) == pytest.approx((25, 375), abs=4)
        assert (top, bottom) == pytest.approx((18.75, 281.25), abs=4)
    else:  # the whole width, and padding above and below
        assert (left, right) == (0, 400)
        assert (top, bottom) == pytest.approx((-75, 225))
    # A dark spot on the page is where the map says.
    page = np.full((page_px[1], page_px[0], 3), 255, np.uint8)
    page[100:120, 200:230] = 0
    rows, columns = np.nonzero(prepare(page, preprocessing)[..., 0] < 128)
    width, height = preprocessing.width_px, preprocessing.height_px
    assert left + (columns.mean() + 0.5) / width * (right - left) == pytest.approx(215, abs=5)
    assert top + (rows.mean() + 0.5) / height * (bottom - top) == pytest.approx(110, abs=5)


def explanation(heat: np.ndarray, page_px: tuple[int, int], how: Preprocessing) -> Explanation:
    return Explanation(
        path=Path("page.png"),
        label="b",
        predicted="b",
        probability=0.5,
        logit=float(heat.sum()),
        offset=0.0,
        cells={"layer4": heat.sum(keepdims=True)},
        heat=heat,
        page_px=page_px,
        preprocessing=how,
        random_heat=np.empty((0, 0)),
        likeness_to_random=float("nan"),
    )


def test_the_share_of_a_box_of_the_page() -> None:
    how = Preprocessing.from_settings(PageSettings(crop_mode="squash", size="64x48"))
    heat = np.array([[1.0, 3.0], [-5.0, 0.0]])
    found = explanation(heat, (200, 100), how)
    assert found.share_in((0, 0, 200, 100)) == 1
    assert found.share_in((100, 0, 200, 50)) == 0.75
    assert found.share_in((150, 0, 200, 50)) == 0.375
    assert found.share_in((0, 50, 200, 100)) == 0
    assert explanation(-np.ones((2, 2)), (200, 100), how).share_in((0, 0, 200, 100)) == 0


def test_a_planted_mark_gets_the_largest_share(tmp_path: Path) -> None:
    """A class that has a mark in the lower right of the page, and nothing else to tell it by."""
    for index in range(40):
        page = draw_page(index)
        if index % 2:
            page.paste((60, 60, 60), (64, 48, 80, 60))
        target = tmp_path / "pages" / "ab"[index % 2] / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        page.save(target)
    cache = ecgfeat.extract(
        ecgfeat.read_manifest(tmp_path / "pages"),
        cache=tmp_path,
        page=PageSettings(crop_mode="squash", size="96x72"),
        network=NetworkSettings(weights="random:1"),
        work=ExtractionSettings(layers="layer1-4x4,layer2-4x4"),
        compute=FP32,
    ).cache
    (run,) = ecgfeat.fit_heads(
        open_cache(cache),
        kinds="logreg",
        head=HeadSettings(layers="layer1-4x4,layer2-4x4", C=0.01),
        out_dir=tmp_path,
    )
    tested = [tmp_path / "pages" / path for path in run.predictions.ids]
    found = ecgfeat.explain(run, tested, compute=FP32, check=False).explanations
    with_mark, without = (
        np.mean([one.heat for one in found if one.path.parent.name == name], axis=0)
        for name in "ba"
    )
    difference = replace(found[0], heat=with_mark - without)
    quarters = [(48 * (i % 2), 36 * (i // 2)) for i in range(4)]
    shares = [difference.share_in((x, y, x + 48, y + 36)) for x, y in quarters]
    assert np.argmax(shares) == 3
    assert shares[3] > 0.35
    assert sum(shares) == pytest.approx(1)


def test_random_weights_are_the_check(study: Path, pages: list[Path]) -> None:
    """Of a network that is random itself by the check's own seed, the map is the same."""
    (cache,) = study.glob("pages2-*.h5")
    other = ecgfeat.extract(
        ecgfeat.read_manifest(study / "pages2"),
        cache=study / "seed0",
        page=PageSettings(size="64x48", crop_mode="border"),
        network=NetworkSettings(weights=RANDOM_WEIGHTS),
        work=ExtractionSettings(layers="layer4"),
        compute=FP32,
    ).cache
    runs = [
        ecgfeat.fit_heads(
            open_cache(path), kinds="logreg", head=HeadSettings(layers="layer4"), out_dir=study / to
        )[0]
        for path, to in ((cache, "one"), (other, "other"))
    ]
    likeness = [
        ecgfeat.explain(run, pages[:1], compute=FP32).explanations[0].likeness_to_random
        for run in runs
    ]
    assert likeness[1] == pytest.approx(1)
    assert likeness[0] < 0.99


def test_the_command_draws_and_tells(study: Path, pages: list[Path], tmp_path: Path) -> None:
    run = run_of(study, "logreg")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given = [str(pages[0]), str(pages[0]), str(broken)]
    call = ["explain", str(run.path), *given, "--out", str(tmp_path / "seen"), "--device", "cpu"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 1
    assert f"{broken} is left out" in done.stderr
    assert "1 of 3 images could not be read" in done.stderr
    assert "log odds" in done.stdout
    assert "layer4" in done.stdout
    names = {picture.name for picture in (tmp_path / "seen").iterdir()}
    assert names == {f"{pages[0].stem}.png", f"{pages[0].stem}-2.png"}
    again = CliRunner().invoke(app, [*call[:3], *call[5:], "--json", "--no-check"])
    assert again.exit_code == 0, again.stderr
    (image,) = json.loads(again.stdout)["images"]
    assert image["likeness_to_random"] is None
    assert image["picture"].endswith(f"{pages[0].stem}.png")


def test_the_picture_shows_page_and_check(study: Path, pages: list[Path], tmp_path: Path) -> None:
    explainer = Explainer(run_of(study, "finetune"), compute=ComputeSettings(device="cpu"))
    explanation_plot(explainer.explain(pages[0]), tmp_path / "with.png")
    without = Explainer(run_of(study, "finetune"), check=False, compute=FP32)
    explanation_plot(without.explain(pages[0]), tmp_path / "without.png")
    sizes = [decode(tmp_path / name).shape for name in ("with.png", "without.png")]
    assert sizes[0][1] > sizes[1][1]


def test_what_is_refused(study: Path, pages: list[Path], tmp_path: Path) -> None:
    run = run_of(study, "logreg")
    with pytest.raises(ConfigError, match="there is no class 'z': give one of a, b"):
        ecgfeat.explain(run, pages[:1], label="z", compute=FP32)
    with pytest.raises(DataError, match="there are no images"):
        ecgfeat.explain(run, [], compute=FP32)
    theirs = tmp_path / f"{pages[0].stem}.png"
    theirs.write_bytes(pages[0].read_bytes())
    done = CliRunner().invoke(
        app, ["explain", str(run.path), str(pages[0]), "--out", str(tmp_path), "--no-check"]
    )
    assert done.exit_code == 2
    assert "was not made by this command: give another --out" in done.stderr
    assert theirs.read_bytes() == pages[0].read_bytes()
