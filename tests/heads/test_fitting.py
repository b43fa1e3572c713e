from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ecgfeat.heads.logistic as logistic_module
from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError, Interrupted
from ecgfeat.heads import fit_heads, fit_logistic, head_probabilities
from ecgfeat.protocol import define_task, partitions
from ecgfeat.runs import open_run
from ecgfeat.runtime import Progress

from .fakes import StandInCache, fit


def test_both_heads_make_two_runs_on_the_same_rows_the_linear_one_first(tmp_path: Path) -> None:
    cache = StandInCache()
    linear_run, logistic_run = fit(tmp_path, cache, "logreg", "linear")
    assert (linear_run.kind, logistic_run.kind) == ("linear", "logreg")
    expected = tuple(path for path, split in zip(cache.paths, cache.splits) if split == "test")
    assert linear_run.predictions.ids == logistic_run.predictions.ids == expected
    assert [record.epoch for record in linear_run.history] == [1, 2, 3, 4, 5]
    assert logistic_run.history == ()
    assert logistic_run.metrics["scores"]["accuracy"]["value"] > 0.6


def test_no_kind_of_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_heads(StandInCache(), kinds=[], out_dir=tmp_path)
    assert str(caught.value) == "kinds must name heads to fit (linear, logreg); found none"


def test_the_stored_model_gives_the_runs_predictions(tmp_path: Path) -> None:
    cache = StandInCache(n_classes=3)
    for run in fit(tmp_path, cache, "linear", "logreg", layers="layer4,layer3"):
        assert run.model_card["taps"] == ["layer4", "layer3"]
        X = cache.features(run.model_card["taps"])[[s == "test" for s in cache.splits]]
        probabilities = head_probabilities(run.model(), X)
        np.testing.assert_array_equal(probabilities, run.predictions.probabilities)


def test_the_model_card_says_how_to_make_the_features_of_a_new_image(tmp_path: Path) -> None:
    (run,) = fit(tmp_path)
    assert run.model_card == {
        "format_version": 1,
        "kind": "linear",
        "classes": ["a", "b"],
        "taps": ["layer4"],
        "backbone": {"arch": "resnet18", "weights": "random", "weights_digest": "ab" * 32},
        "preprocessing": {
            "crop_mode": "squash",
            "width_px": 448,
            "height_px": 320,
            "resampling": "pillow-bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "precision": "fp32",
        "device": "cpu",
        "decoder": "pillow 13.0.0",
    }


def test_the_config_says_what_decided_the_run(tmp_path: Path) -> None:
    cache = StandInCache()
    (run,) = fit(tmp_path, cache, "logreg", C=0.5, seed=4, val_fraction=0.25)
    config = run.config
    assert (config["kind"], config["data"]) == ("logreg", "pages")
    assert (config["head"]["C"], config["evaluation"]["seed"]) == (0.5, 4)
    assert config["cache"] == {"path": "cache/pages.h5", "digest": "cd" * 32, "n_images": 120}
    assert config["manifest_digest"] == "ef" * 32
    assert config["backbone"]["arch"] == "resnet18"
    assert config["preprocessing"]["crop_mode"] == "squash"
    assert config["partitions"] == [{"fold": 0, "train": 60, "validation": 20, "test": 40}]
    assert config["solver"][0]["converged"] is True
    assert {"torch", "numpy", "scikit-learn"} <= set(config["versions"])
    assert "n_cpus" in config["machine"]


def test_the_specification_names_everything_that_heads_write(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "run-format.md").read_text(encoding="utf-8")
    for run in fit(tmp_path, None, "linear", "logreg"):
        config, card = run.config, run.model_card
        nested = ("backbone", "preprocessing", "cache", "evaluation", "machine")
        keys = {*config, *card, *run.model(), *(key for name in nested for key in config[name])}
        keys.update(*config["partitions"], *config.get("solver", []))
        assert {key for key in keys if f"`{key}`" not in text} == set()


def test_the_cost_counts_each_training_row_once_per_epoch(tmp_path: Path) -> None:
    linear_run, logistic_run = fit(tmp_path, None, "linear", "logreg", epochs=3, batch_size=16)
    for run, n_passes, batch_size, precision in (
        (linear_run, 3, 16, "fp32"),
        (logistic_run, 1, 80, "fp64"),
    ):
        cost = run.cost
        assert (cost.arch, cost.device, cost.precision) == ("resnet18", "cpu", precision)
        assert cost.batch_size == batch_size
        assert cost.images_per_s >= 80 * n_passes / cost.wall_s
        assert cost.peak_memory_mib > 10


def test_cross_validation_predicts_every_row_by_a_head_that_saw_neither_it_nor_its_group(
    tmp_path: Path,
) -> None:
    cache = StandInCache(grouped=True)
    linear_run, logistic_run = fit(tmp_path, cache, "linear", "logreg", cv=3, epochs=2)
    assert sorted(linear_run.predictions.ids) == sorted(cache.paths)
    assert linear_run.predictions.split == "cv"
    assert [(r.fold, r.epoch) for r in linear_run.history] == [
        (fold, epoch) for fold in range(3) for epoch in (1, 2)
    ]
    assert not (linear_run.path / "model.safetensors").exists()
    task = define_task(cache.labels)
    plan = partitions(
        task,
        ids=cache.paths,
        splits=cache.splits,
        groups=cache.groups,
        settings=EvaluationSettings(cv=3),
    )
    X = cache.features(["layer4"])
    for part in plan:
        groups = np.array(cache.groups)
        assert not set(groups[part.train]) & set(groups[part.test])
        tensors = fit_logistic(X, task.targets, part.train, C=1.0).tensors
        of_fold = logistic_run.predictions.folds == part.fold
        found = logistic_run.predictions.probabilities[of_fold]
        np.testing.assert_array_equal(found, head_probabilities(tensors, X[part.test]))


def test_log_lines_are_the_studys(tmp_path: Path) -> None:
    reports: list[Progress] = []
    (run,) = fit(tmp_path, epochs=2, report=reports.append)
    first = run.history[0]
    assert reports[0] == Progress(
        stage="fitting",
        done=1,
        total=2,
        unit="epochs",
        message=f"[Fixed Feature] Epoch 1 | Loss: {first.loss:.4f} | Acc: {first.accuracy:.3f}",
    )
    reports.clear()
    (run,) = fit(tmp_path, epochs=1, cv=2, val_fraction=0.25, report=reports.append)
    last = run.history[-1]
    assert reports[-1].message == (
        f"[Fixed Feature] Fold 2/2 | Epoch 1 | Loss: {last.loss:.4f} | Acc: {last.accuracy:.3f} | "
        f"Val loss: {last.val_loss:.4f} | Val acc: {last.val_accuracy:.3f}"
    )
    assert (reports[-1].done, reports[-1].total) == (2, 2)


def test_a_fit_that_does_not_converge_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic_module, "MAX_ITERATIONS", 1)
    reports: list[Progress] = []
    (run,) = fit(tmp_path, None, "logreg", report=reports.append)
    assert [progress.message for progress in reports] == [
        "[Fixed Feature] Logistic regression not converged after 1 iterations: its scores may "
        "still change; a lower --C makes it converge sooner"
    ]
    assert run.config["solver"] == [{"n_iterations": 1, "converged": False}]


def test_a_subset_of_the_test_rows_is_named_as_one(tmp_path: Path) -> None:
    (run,) = fit(tmp_path, test_subset=10)
    assert run.metrics["test_rows"] == "subset of 10 of 40"
    assert len(run.predictions) == 10


def test_classes_against_the_rest_make_a_binary_head(tmp_path: Path) -> None:
    (run,) = fit(tmp_path, StandInCache(n_classes=3), positive="b")
    assert run.predictions.classes == ("rest", "b")
    assert run.model()["weight"].shape == (2, 7)


def test_training_that_diverges_says_so_and_leaves_no_folder(tmp_path: Path) -> None:
    cache = StandInCache()
    cache.by_tap["layer4"] = np.sign(cache.by_tap["layer4"]) * np.float32(3e38)
    with pytest.raises(DataError) as caught:
        fit(tmp_path, cache)
    assert str(caught.value) == (
        "the model gave probabilities that are not finite: its training diverged. Try a lower --lr."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fit_keeps_the_finished_run_and_leaves_no_other_folder(
    tmp_path: Path,
) -> None:
    def stop(progress: Progress) -> None:
        if progress.unit == "fits":
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(tmp_path, None, "linear", "logreg", report=stop)
    (folder,) = tmp_path.iterdir()
    assert open_run(folder).kind == "linear"


def test_heads_import_neither_torch_nor_torchvision(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from tests.heads.fakes import fit; fit(Path(sys.argv[2]), None, 'linear', 'logreg');"
        "print({'torch', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parents[2]), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
    assert len(list(tmp_path.iterdir())) == 2
