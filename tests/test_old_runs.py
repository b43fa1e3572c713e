"""Runs of every kind that format 1's first writers made, read and used for ever.

``tests/data/runs-v1`` holds them with their images, their cache, and what they said of its test
images when they were made. It is not to be made again: a change that can't read it needs a new
format version. Figures were left out, and most weights of the fine-tuning are a short pattern, so
that they pack well.
"""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgfeat import compare, open_cache, open_run, predict
from ecgfeat.config import ComputeSettings
from ecgfeat.errors import WeightsError
from ecgfeat.metrics import evaluate

OLD = Path(__file__).parent / "data" / "runs-v1"
FP32 = ComputeSettings(device="cpu", precision="fp32")


@pytest.fixture
def finetuned(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(OLD / "finetune", tmp_path / "finetune"))
    packed = folder / "model.safetensors.xz"
    (folder / "model.safetensors").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


@pytest.mark.parametrize("kind", ["linear", "logreg", "sweep", "cross-validated", "finetune"])
def test_an_old_run_opens_with_the_scores_it_was_kept_with(kind: str) -> None:
    run = open_run(OLD / kind)
    assert len(run.predictions.ids) == (18 if kind == "cross-validated" else 6)
    found = evaluate(run.predictions)
    assert {"accuracy", "auroc", "log_loss"} <= set(run.metrics["scores"])
    for name, kept in run.metrics["scores"].items():
        score = found[name]
        assert (kept is None) == (score is None)
        if score is not None:
            assert score.value == pytest.approx(kept["value"], abs=1e-9)
            assert score.low == pytest.approx(kept["low"], abs=1e-9)


def assert_predicts_as_it_did(run_path: Path, kept_path: Path) -> None:
    kept = json.loads(kept_path.read_text())
    images = sorted(OLD.glob("pages/test/*/*.png"))
    try:
        found = predict(open_run(run_path), images, compute=FP32)
    except WeightsError as error:
        # Only the heads' backbone may lack, which is drawn anew from its seed.
        if kept_path.name.startswith("finetune"):
            raise
        pytest.skip(f"torch draws other random weights here than when it was made: {error}")
    old = [list(image["probabilities"].values()) for image in kept["images"]]
    assert [image["path"] for image in kept["images"]] == [
        path.relative_to(OLD).as_posix() for path in images
    ]
    assert found.probabilities == pytest.approx(np.array(old), abs=1e-4)


@pytest.mark.parametrize("kind", ["linear", "logreg", "sweep"])
def test_an_old_head_predicts_what_it_did(kind: str) -> None:
    assert_predicts_as_it_did(OLD / kind, OLD / f"{kind}-predicted.json")


def test_an_old_fine_tuning_predicts_what_it_did(finetuned: Path) -> None:
    assert_predicts_as_it_did(finetuned, OLD / "finetune-predicted.json")


def test_old_runs_are_compared() -> None:
    comparison = compare([open_run(OLD / kind) for kind in ("linear", "logreg", "sweep")])
    assert len(comparison.as_json()["runs"]) == 3


def test_the_old_runs_cache_opens() -> None:
    cache = open_cache(OLD / "pages.h5")
    assert cache.header.taps == {"layer1-2x2": 256, "layer4": 512}
    assert len(cache.listing.paths) == 18
