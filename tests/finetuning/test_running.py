from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgfeat.backbones import load_network, network_from_tensors
from ecgfeat.config import ComputeSettings
from ecgfeat.errors import DataError, DivergedError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.checkpoint import CHECKPOINT
from ecgfeat.finetuning.trainer import Step, Trainer, shuffled_batches
from ecgfeat.images import decode, prepare
from ecgfeat.manifest import read_manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import LEAK
from ecgfeat.runtime import Progress

from .jobs import (
    N_TEST,
    N_TRAIN,
    RANDOM,
    assert_same_numbers,
    interrupted,
    read_rows,
    stop_at,
    train,
)


def test_every_weight_of_a_resnet_is_trained_and_the_kept_model_is_the_tested_one(tiny_pages, runs):
    pages = tiny_pages(n_train=6, n_test=2)
    run = train(pages, runs, training={"epochs": 1})
    tensors = run.model()
    for name, value in load_network(RANDOM, 2, seed=0).named_parameters():
        assert not np.array_equal(tensors[name], value.detach().numpy()), name
    network = network_from_tensors("resnet18", 2, tensors).eval()
    preprocessing = Preprocessing(crop_mode="squash", width_px=32, height_px=32)
    pixels = np.stack(
        [prepare(decode(pages / name), preprocessing) for name in run.predictions.ids]
    )
    images = (pixels / 255 - preprocessing.mean) / preprocessing.std
    with torch.inference_mode():
        logits = network(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits.softmax(1), run.predictions.probabilities, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_resnet_gives_the_same_numbers(tiny_pages, runs, tmp_path, precision):
    pages = tiny_pages(n_train=24, n_test=4)
    settings = {
        "compute": ComputeSettings(device="cpu", precision=precision),
        "training": {"batch_size": 8},
    }
    whole = train(pages, tmp_path / "whole", **settings)
    folder = interrupted(pages, runs, stop_at(lambda p: p.done == 32), **settings)
    assert_same_numbers(whole, resume_finetune(folder))


# What a run says


def test_the_log_lines_are_the_studys(pages, runs):
    reports: list[Progress] = []
    run = train(pages, runs, report=reports.append)
    assert [progress.message for progress in reports if progress.message] == [
        f"[Fine-Tuning] Epoch {r.epoch} | Loss: {r.loss:.4f} | Acc: {r.accuracy:.3f}"
        for r in run.history
    ]
    assert [record.epoch for record in run.history] == [1, 2]


def test_progress_is_counted_in_images_over_all_epochs(pages, runs):
    reports: list[Progress] = []
    train(pages, runs, report=reports.append)
    training = [progress for progress in reports if progress.stage == "training"]
    # Batches of 4, 4 and 5, told before each, and the epoch's end.
    assert [progress.done for progress in training] == [0, 4, 8, 13, 13, 17, 21, 26]
    testing = [(p.done, p.total) for p in reports if p.stage == "testing"]
    assert testing == [(0, 6), (4, 6), (6, 6)]
    assert {(progress.total, progress.unit) for progress in training} == {(26, "images")}


def test_the_cost_counts_every_training_image_of_every_epoch(pages, runs):
    cost = train(pages, runs).cost
    assert (cost.arch, cost.batch_size, cost.device) == ("resnet18", 4, "cpu")
    # Training is part of the whole, so the rate can't be lower than images over wall time.
    assert cost.images_per_s > 2 * N_TRAIN / cost.wall_s


def test_validation_is_logged_and_drawn_from_training_rows_alone(pages, runs):
    reports: list[Progress] = []
    run = train(pages, runs, report=reports.append, val_fraction=0.3)
    first = run.history[0]
    assert reports[0].total == 2 * run.config["partitions"][0]["train"]
    assert run.config["partitions"] == [{"fold": 0, "train": 9, "validation": 4, "test": 6}]
    assert next(progress.message for progress in reports if progress.message) == (
        f"[Fine-Tuning] Epoch 1 | Loss: {first.loss:.4f} | Acc: {first.accuracy:.3f}"
        f" | Val loss: {first.val_loss:.4f} | Val acc: {first.val_accuracy:.3f}"
    )
    assert first.val_accuracy in {0, 0.25, 0.5, 0.75, 1}


def test_missing_images_are_listed_in_the_run(pages, runs):
    (pages.parent / "train/a/004.png").unlink()
    run = train(pages, runs)
    assert read_rows(run.path / "missing.csv")[1:] == [["train/a/004.png", "a", "train", ""]]


# What decides the numbers


def test_training_in_bfloat16_keeps_float32_weights(pages, runs):
    run = train(pages, runs, compute=ComputeSettings(device="cpu", precision="bf16"))
    weights = torch.from_numpy(run.model()["conv1.weight"])
    assert run.cost.precision == run.config["compute"]["precision"] == "bf16"
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())
    assert run.history != train(pages, runs).history


def test_the_same_seed_gives_the_same_numbers_whatever_the_threads(pages, runs):
    one, other = (
        train(pages, runs, compute=ComputeSettings(device="cpu", precision="fp32", threads=n))
        for n in (1, 3)
    )
    assert_same_numbers(one, other)


def test_another_seed_gives_other_numbers(pages, runs):
    assert train(pages, runs, seed=0).history != train(pages, runs, seed=1).history


@given(n_rows=st.integers(2, 40), batch_size=st.integers(2, 9), epoch=st.integers(1, 3))
def test_every_image_comes_once_an_epoch_and_never_alone(n_rows, batch_size, epoch):
    batches = shuffled_batches(np.arange(n_rows), batch_size, seed=0, fold=1, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(n_rows))
    assert all(2 <= len(batch) <= batch_size + 1 for batch in batches)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_the_order_differs_from_epoch_to_epoch_and_fold_to_fold():
    orders = [
        shuffled_batches(np.arange(50), 50, seed=0, fold=fold, epoch=epoch)
        for fold in (0, 1)
        for epoch in (1, 2)
    ]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_a_diverging_loss_stops_with_advice_and_keeps_the_last_checkpoint(pages, runs, monkeypatch):
    losses = iter([0.5] * 3 + [float("nan")])

    def step(*_: object) -> Step:
        return Step(n_images=4, loss=next(losses), n_right=2)

    monkeypatch.setattr(Trainer, "step", step)
    message = (
        r"^the loss became nan: the training diverged\. Start a new run with a lower --lr \(this "
        r"one has 0\.001; try 0\.0001\), or with --warmup 0\.1 or --clip 1\.$"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        train(pages, runs)
    assert not hasattr(caught.value, "__notes__")  # going on would diverge again
    (folder,) = runs.iterdir()
    assert (folder / CHECKPOINT).exists()
    assert len(read_rows(folder / "history.csv")) == 2


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_weights_that_a_last_step_spoiled_never_reach_a_checkpoint(
    pages, runs, monkeypatch, val_fraction
):
    def spoil(trainer: Trainer, *_: object) -> Step:
        trainer.network.fc.bias.data.fill_(float("inf"))
        return Step(n_images=4, loss=0.5, n_right=2)

    monkeypatch.setattr(Trainer, "step", spoil)
    with pytest.raises(DivergedError, match="a weight is no longer finite: the training diverged"):
        train(pages, runs, val_fraction=val_fraction)
    (folder,) = runs.iterdir()
    assert not (folder / CHECKPOINT).exists()


# Classes and folds


def test_three_classes_are_told_apart(tiny_pages, tiny_network, runs):
    run = train(tiny_pages(classes=("a", "b", "c"), n_train=9, n_test=6), runs)
    assert run.predictions.classes == ("a", "b", "c")
    assert run.predictions.probabilities.shape == (6, 3)
    np.testing.assert_allclose(run.predictions.probabilities.sum(axis=1), 1)


def test_positive_makes_the_task_binary(tiny_pages, tiny_network, runs):
    pages = tiny_pages(classes=("a", "b", "c"), n_train=9, n_test=6)
    run = train(pages, runs, positive="a")
    assert run.predictions.classes == ("rest", "a")
    assert run.predictions.targets.tolist() == [
        name.split("/")[1] == "a" for name in run.predictions.ids
    ]
    assert run.model()["fc.bias"].shape == (2,)


def test_cross_validation_predicts_every_row_once_and_keeps_no_model(pages, runs):
    reports: list[Progress] = []
    run = train(pages, runs, report=reports.append, cv=3, training={"epochs": 1})
    assert sorted(run.predictions.ids) == sorted(read_manifest(pages).paths)
    assert [record.fold for record in run.history] == [0, 1, 2]
    assert [progress.message[:32] for progress in reports if progress.message] == [
        f"[Fine-Tuning] Fold {fold}/3 | Epoch 1" for fold in (1, 2, 3)
    ]
    assert {p.total for p in reports if p.stage == "training"} == {2 * (N_TRAIN + N_TEST)}
    assert not (run.path / "model.safetensors").exists()


def test_each_fold_begins_with_the_same_untrained_network(pages, runs, monkeypatch):
    seen = []

    def spy(trainer: Trainer, *batch: Any) -> Step:
        seen.append(trainer.network.fc.weight.detach().clone())
        return plain(trainer, *batch)

    plain = Trainer.step
    monkeypatch.setattr(Trainer, "step", spy)
    train(pages, runs, cv=2, training={"epochs": 1})
    n_steps = len(seen) // 2
    assert torch.equal(seen[0], seen[n_steps])
    assert not torch.equal(seen[0], seen[n_steps - 1])


# Images that can't be decoded


def test_undecodable_images_are_left_out_of_training_and_testing_and_listed(pages, runs):
    for name in ("train/a/002.png", "test/b/003.png"):
        (pages.parent / name).write_bytes(b"no picture")
    reports: list[Progress] = []
    run = train(pages, runs, report=reports.append)
    assert len(run.predictions) == N_TEST - 1
    assert "test/b/003.png" not in run.predictions.ids
    header, *rows = read_rows(run.path / "quarantine.csv")
    assert header == ["path", "reason", "n_bytes"]
    assert [(path, n_bytes) for path, _, n_bytes in rows] == [
        ("train/a/002.png", "10"),
        ("test/b/003.png", "10"),
    ]
    assert all(reason for _, reason, _ in rows)
    assert run.config["n_quarantined"] == 2
    assert reports[-1].message == (
        "[Fine-Tuning] 2 images can't be decoded and are left out, with reasons: "
        f"{run.path / 'quarantine.csv'}"
    )


def test_pages_of_one_tone_are_told_of_once_and_by_their_part(pages, runs):
    for name, colour in (("train/a/000.png", "white"), ("test/a/000.png", "ivory")):
        Image.new("RGB", (96, 72), colour).save(pages.parent / name)
    told: list[str] = []
    train(pages, runs, report=lambda progress: told.append(progress.message))
    assert [message for message in told if "one tone" in message] == [
        f"[Fine-Tuning] warning: of the {kind} images, pages of almost one tone, on which nothing "
        f"can be seen (1 images, such as {split}/a/000.png)"
        for kind, split in (("training", "train"), ("test", "test"))
    ]


def test_cross_validation_predicts_every_decodable_row_once(pages, runs):
    (pages.parent / "train/a/002.png").write_bytes(b"no picture")
    run = train(pages, runs, cv=3, training={"epochs": 1})
    assert sorted(run.predictions.ids) == sorted(
        set(read_manifest(pages).paths) - {"train/a/002.png"}
    )


def test_a_batch_left_with_one_image_is_passed_over(tiny_pages, tiny_network, runs):
    pages = tiny_pages(n_train=4, n_test=2)
    (pages / "train/a/000.png").write_bytes(b"no picture")
    run = train(pages, runs, training={"batch_size": 2, "epochs": 1})
    # One batch of two is left whole, so the share of right answers is in halves.
    assert run.history[0].accuracy in {0, 0.5, 1}


def test_a_class_without_a_decodable_training_image_is_refused(pages, runs):
    for image in (pages.parent / "train/b").iterdir():
        image.write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        train(pages, runs)
    (folder,) = runs.iterdir()
    assert str(caught.value) == (
        "6 of 13 training images can't be decoded, all of 'b': there is nothing to learn from. "
        f"The reasons are in {folder / 'quarantine.csv'}."
    )
    assert len(read_rows(folder / "quarantine.csv")) == 7


def test_a_test_without_a_decodable_image_is_refused(pages, runs):
    for image in (pages.parent / "test").rglob("*.png"):
        image.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^none of the test images can be decoded\. The reasons"):
        train(pages, runs)
    (folder,) = runs.iterdir()
    assert len(read_rows(folder / "quarantine.csv")) == N_TEST + 1


def test_a_test_on_a_picture_that_is_trained_on_is_refused_unless_allowed(pages, runs):
    tests, trained = (sorted((pages.parent / split).rglob("*.png")) for split in ("test", "train"))
    tests[0].write_bytes(trained[0].read_bytes())
    with pytest.raises(DataError, match=r"1 of .* also among those trained on.*--allow-leak"):
        train(pages, runs, training={"epochs": 1})
    assert not list(runs.glob("*"))
    said = []
    run = train(
        pages,
        runs,
        training={"epochs": 1},
        allow_leak=True,
        report=lambda p: said.append(p.message),
    )
    warning, *_ = [line for line in said if "byte for byte" in line]
    assert warning.startswith(f"warning: {LEAK}1 of ")
    assert said.index(warning) < next(i for i, line in enumerate(said) if "Epoch 1" in line)
    leak = warning.removeprefix("warning: ")
    assert leak in run.metrics["notices"]
    assert leak in run.report
    assert run.config["evaluation"]["allow_leak"] is True
