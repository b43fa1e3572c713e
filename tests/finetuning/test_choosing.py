from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ecgfeat.finetuning.run as running_module
from ecgfeat.config import EvaluationSettings, FinetuneSettings
from ecgfeat.errors import ConfigError, DataError
from ecgfeat.finetuning import finetune, resume_finetune
from ecgfeat.finetuning.checkpoint import Candidate, Said
from ecgfeat.finetuning.run import is_enough
from ecgfeat.finetuning.trainer import Trainer
from ecgfeat.manifest import read_manifest

from .jobs import FP32, RANDOM, SMALL, after_epoch, interrupted, train


@pytest.fixture
def scored(monkeypatch):
    """Make validation say what the test wants, epoch by epoch."""

    def set_scores(scores: list[float]) -> None:
        coming = iter(scores)
        monkeypatch.setattr(running_module, "score_epoch", lambda *_: next(coming))

    return set_scores


@pytest.fixture
def tested_weights(monkeypatch) -> list[np.ndarray]:
    """The last layer's bias whenever something is predicted: validation rows, then test rows."""
    seen: list[np.ndarray] = []

    def spy(trainer: Trainer, *images):
        seen.append(trainer.network.fc.bias.detach().numpy().copy())
        return plain(trainer, *images)

    plain = Trainer.log_probabilities
    monkeypatch.setattr(Trainer, "log_probabilities", spy)
    return seen


def test_the_last_epoch_is_tested_where_none_is_chosen(pages, runs, tested_weights):
    run = train(pages, runs, training={"epochs": 3}, val_fraction=0.3)
    np.testing.assert_array_equal(tested_weights[-1], tested_weights[2])
    assert "choice" not in run.metrics


@pytest.mark.parametrize(
    ("name", "scores", "best"),
    [
        ("auroc", [0.5, 0.9, 0.7, 0.9], 2),
        ("log_loss", [0.5, 0.9, 0.2, 0.3], 3),
        ("accuracy", [0.5, 0.5, 0.5, 0.5], 1),
    ],
)
def test_the_best_epoch_s_weights_are_tested_and_kept(
    pages, runs, scored, tested_weights, name, scores, best
):
    scored(scores)
    training = {"epochs": 4, "choose_by": name}
    run = train(pages, runs, training=training, val_fraction=0.3)
    of_epochs, tested = tested_weights[:4], tested_weights[4]
    np.testing.assert_array_equal(tested, of_epochs[best - 1])
    np.testing.assert_array_equal(run.model()["fc.bias"], tested)
    assert run.metrics["choice"] == {
        "words": f"epoch {best} by {name} on validation rows",
        "by": name,
        "epoch": [best],
        "score": [scores[best - 1]],
    }
    assert len(run.history) == 4


def test_the_best_epoch_is_remembered_over_an_interruption(pages, runs, scored, tested_weights):
    scored([0.9, 0.5, 0.7])
    training = {"epochs": 3, "choose_by": "auroc"}
    folder = interrupted(pages, runs, after_epoch(2), training=training, val_fraction=0.3)
    run = resume_finetune(folder)
    np.testing.assert_array_equal(run.model()["fc.bias"], tested_weights[0])
    assert run.metrics["choice"]["epoch"] == [1]


def test_the_validation_predictions_are_the_chosen_epoch_s(pages, runs):
    training = {"epochs": 3, "choose_by": "log_loss"}
    run = train(pages, runs, training=training, val_fraction=0.3)
    best = min(run.history, key=lambda record: record.val_loss)
    said = run.validation
    truth = said.probabilities[np.arange(len(said)), said.targets]
    assert -np.log(truth).mean() == pytest.approx(best.val_loss)
    assert run.metrics["choice"]["score"] == [pytest.approx(best.val_loss)]
    assert not set(said.ids) & set(run.predictions.ids)


def test_training_stops_when_patience_is_over(pages, runs, scored):
    scored([0.5, 0.8, 0.7, 0.8, 0.9])
    training = {"epochs": 9, "choose_by": "auroc", "patience": 2}
    run = train(pages, runs, training=training, val_fraction=0.3)
    assert [record.epoch for record in run.history] == [1, 2, 3, 4]
    assert run.metrics["choice"]["epoch"] == [2]


def test_patience_counts_from_the_best_epoch():
    best = Candidate(
        epoch=2, score=0.5, validation=Said(rows=np.empty(0), probabilities=np.empty((0, 2)))
    )
    training = FinetuneSettings(epochs=9, choose_by="auroc", patience=3)
    assert [epoch for epoch in range(10) if is_enough(epoch, best, training)] == [5, 6, 7, 8, 9]
    impatient = FinetuneSettings(epochs=9, choose_by="auroc")
    assert [epoch for epoch in range(10) if is_enough(epoch, best, impatient)] == [9]


def test_every_fold_chooses_its_own_epoch(pages, runs, scored):
    scored([0.5, 0.9, 0.9, 0.5])
    run = train(pages, runs, training={"choose_by": "auroc"}, cv=2, val_fraction=0.3)
    assert run.metrics["choice"]["epoch"] == [2, 1]


def test_choosing_without_validation_rows_is_refused_before_anything_is_written(pages, runs):
    with pytest.raises(ConfigError) as caught:
        train(pages, runs, training={"choose_by": "auroc"})
    assert str(caught.value) == (
        "--choose-by auroc needs validation rows, and there are none: also give --val-fraction, "
        "such as 0.2"
    )
    assert not runs.exists()


def test_patience_without_a_score_is_refused():
    with pytest.raises(ConfigError, match="--patience waits for a better score: also give --choo"):
        FinetuneSettings(patience=2)


def spoil_validation_images(pages: Path, runs: Path, label: str) -> None:
    """Make those of a class undecodable that ``--val-fraction 0.3`` keeps out."""
    manifest = read_manifest(pages)
    train(pages, runs, val_fraction=0.3)
    (run,) = runs.iterdir()
    said = (run / "validation_predictions.csv").read_text()
    for path, own in zip(manifest.paths, manifest.labels):
        if path in said and own == label:
            (pages.parent / path).write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ({"choose_by": "auroc"}, {}),
        ({}, {"calibrate": True}),
        ({}, {"at_sensitivity": 0.9}),
    ],
)
def test_validation_rows_that_lose_a_class_stop_the_training_early(
    pages, runs, training, evaluation
):
    spoil_validation_images(pages, runs / "first", "a")
    with pytest.raises(DataError) as caught:
        train(pages, runs / "second", training=training, val_fraction=0.3, **evaluation)
    (folder,) = (runs / "second").iterdir()
    assert str(caught.value) == (
        "2 of 4 validation images can't be decoded, all of 'a': nothing can be chosen or decided "
        f"by them. The reasons are in {folder / 'quarantine.csv'}."
    )
    assert not (folder / "history.csv").exists()


def test_validation_rows_that_lose_a_class_still_give_curves(pages, runs):
    spoil_validation_images(pages, runs / "first", "a")
    run = train(pages, runs / "second", val_fraction=0.3)
    assert run.history[-1].val_loss is not None


def test_probabilities_are_calibrated_on_the_validation_rows(pages, runs):
    raw = train(pages, runs / "raw", val_fraction=0.3)
    run = train(pages, runs / "calibrated", val_fraction=0.3, calibrate=True)
    assert run.decision.method == "temperature"
    np.testing.assert_allclose(
        run.predictions.probabilities, run.decision.probabilities(raw.predictions.probabilities)
    )
    np.testing.assert_array_equal(run.model()["fc.bias"], raw.model()["fc.bias"])


def test_every_fold_has_an_operating_point_of_its_own(pages, runs):
    run = train(pages, runs, cv=3, val_fraction=0.3, at_sensitivity=0.9)
    decisions = run.metrics["decisions"]
    assert len(decisions) == 3
    assert all(0 < decision["threshold"] < 1 for decision in decisions)


def test_calibration_without_validation_rows_is_refused_before_anything_is_written(pages, runs):
    with pytest.raises(ConfigError, match="--calibrate is fixed on validation rows, and there are"):
        finetune(
            read_manifest(pages),
            network=RANDOM,
            page=SMALL,
            compute=FP32,
            evaluation=EvaluationSettings(calibrate=True),
            out_dir=runs,
        )
    assert not runs.exists()
