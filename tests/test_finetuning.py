from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

import ecgfeat.finetuning.job as job_module
import ecgfeat.finetuning.starting as starting_module
from ecgfeat import figures
from ecgfeat.backbones import Weights, load_network, network_from_tensors
from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import DataError, EcgfeatError, Interrupted, RunError, StorageError
from ecgfeat.finetuning import finetune, resume_finetune
from ecgfeat.finetuning.checkpoints import CHECKPOINT
from ecgfeat.finetuning.streaming import shuffled_batches
from ecgfeat.finetuning.training import Trainer
from ecgfeat.images import decode, prepare
from ecgfeat.manifest import read_manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs import Run, open_run
from ecgfeat.runtime import Compute, Progress, Report, silent

RANDOM = NetworkSettings(weights="random")
SMALL = PageSettings(size="32", crop_mode="squash")
FP32 = ComputeSettings(device="cpu", precision="fp32", threads=2)
N_TRAIN, N_TEST = 13, 6


class TinyNetwork(torch.nn.Module):
    """Convolution, batch norm and a last layer: a ResNet's parts, in a millisecond."""

    def __init__(self, n_classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = torch.nn.Conv2d(3, 8, 7, stride=4)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.fc = torch.nn.Linear(8, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.bn1(self.conv1(images)).relu().mean((2, 3)))
        return logits


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a `TinyNetwork` in the place of every ResNet; flush no disk and draw no figure."""

    def restored(_: str, n_classes: int, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
        network = TinyNetwork(n_classes, 0)
        network.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
        return network

    weights = Weights("resnet18", "random:0", {"conv1.bias": torch.zeros(8)})
    monkeypatch.setattr(starting_module, "load_weights", lambda _: weights)
    monkeypatch.setattr(job_module, "load_network", lambda _, n, seed: TinyNetwork(n, seed))
    monkeypatch.setattr(job_module, "network_from_tensors", restored)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(figures, "accuracy_curve", lambda *_: None)
    monkeypatch.setattr(figures, "confusion_matrix_plot", lambda *_: None)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for a second one takes longer than the work
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def pages(tiny_pages, tiny_network) -> Path:
    csv_path: Path = tiny_pages(n_train=N_TRAIN, n_test=N_TEST, size_px=(48, 36), as_csv=True)
    return csv_path


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


def train(
    pages: Path,
    runs: Path,
    *,
    report: Report = silent,
    compute: ComputeSettings = FP32,
    epochs: int = 2,
    batch_size: int = 4,
    **evaluation: Any,
) -> Run:
    return finetune(
        read_manifest(pages),
        network=RANDOM,
        page=SMALL,
        compute=compute,
        training=FinetuneSettings(epochs=epochs, batch_size=batch_size),
        evaluation=EvaluationSettings(**evaluation),
        out_dir=runs,
        report=report,
    )


def stop_at(place: Callable[[Progress], bool]) -> Report:
    def report(progress: Progress) -> None:
        if place(progress):
            raise Interrupted

    return report


def after_epoch(epoch: int) -> Report:
    return stop_at(lambda progress: f"Epoch {epoch} |" in progress.message)


def interrupted(pages: Path, runs: Path, report: Report, **changes: Any) -> Path:
    """Begin a run that `report` stops; its folder."""
    with pytest.raises(Interrupted):
        train(pages, runs, report=report, **changes)
    (folder,) = runs.iterdir()
    return folder


def assert_same_numbers(one: Run, other: Run) -> None:
    assert one.history == other.history
    assert one.predictions.ids == other.predictions.ids
    np.testing.assert_array_equal(one.predictions.probabilities, other.predictions.probabilities)
    if one.predictions.split == "cv":
        np.testing.assert_array_equal(one.predictions.folds, other.predictions.folds)
        return
    assert one.model().keys() == other.model().keys()
    for name, tensor in one.model().items():
        np.testing.assert_array_equal(tensor, other.model()[name], err_msg=name)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


# A ResNet


def test_every_weight_of_a_resnet_is_trained_and_the_kept_model_is_the_tested_one(tiny_pages, runs):
    pages = tiny_pages(n_train=6, n_test=2)
    run = train(pages, runs, epochs=1)
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
    settings = {"compute": ComputeSettings(device="cpu", precision=precision), "batch_size": 8}
    whole = train(pages, tmp_path / "whole", **settings)
    folder = interrupted(pages, runs, stop_at(lambda p: p.done == 32), **settings)
    assert_same_numbers(whole, resume_finetune(folder))


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import safetensors.torch
from ecgfeat.config import *
from ecgfeat.finetuning import finetune
from ecgfeat.manifest import read_manifest

def save(tensors, path, metadata):
    plain(tensors, path, metadata)
    saved.append(path)
    if len(saved) == 2:
        os.truncate(path, 1_000_000)
        os.kill(os.getpid(), signal.SIGKILL)

saved, plain = [], safetensors.torch.save_file
safetensors.torch.save_file = save
finetune(
    read_manifest(sys.argv[1]),
    network=NetworkSettings(weights="random"),
    page=PageSettings(size="32", crop_mode="squash"),
    compute=ComputeSettings(device="cpu", precision="fp32", threads=2),
    training=FinetuneSettings(epochs=2, batch_size=4),
    out_dir=Path(sys.argv[2]),
)
"""


@pytest.mark.slow
def test_a_run_killed_while_saving_goes_on_to_the_same_numbers(tiny_pages, runs, tmp_path):
    pages = tiny_pages(n_train=12, n_test=4)
    whole = train(pages, tmp_path / "whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, pages, runs], timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (folder,) = runs.iterdir()
    assert len([path for path in folder.iterdir() if "checkpoint" in path.name]) == 2
    reports: list[Progress] = []
    assert_same_numbers(whole, resume_finetune(folder, report=reports.append))
    assert [p.message[14:21] for p in reports if p.message] == ["Epoch 2"]
    assert not [path for path in folder.iterdir() if "checkpoint" in path.name]


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
    steps = iter([(0.5, 2)] * 3 + [(float("nan"), 2)])
    monkeypatch.setattr(Trainer, "_step", lambda *_: next(steps))
    message = (
        r"^the loss became nan: the training diverged\. Start a new run with a lower --lr \(this "
        r"one has 0\.001; try 0\.0001\)\.$"
    )
    with pytest.raises(EcgfeatError, match=message):
        train(pages, runs)
    (folder,) = runs.iterdir()
    assert (folder / CHECKPOINT).exists()
    assert len(read_rows(folder / "history.csv")) == 2


def test_weights_that_a_last_step_spoiled_never_reach_a_checkpoint(pages, runs, monkeypatch):
    def spoil(trainer: Trainer, *_: object) -> tuple[float, int]:
        trainer.network.fc.bias.data.fill_(float("inf"))
        return 0.5, 2

    monkeypatch.setattr(Trainer, "_step", spoil)
    with pytest.raises(EcgfeatError, match="a weight is no longer finite: the training diverged"):
        train(pages, runs)
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
    run = train(pages, runs, report=reports.append, cv=3, epochs=1)
    assert sorted(run.predictions.ids) == sorted(read_manifest(pages).paths)
    assert [record.fold for record in run.history] == [0, 1, 2]
    assert [progress.message[:32] for progress in reports if progress.message] == [
        f"[Fine-Tuning] Fold {fold}/3 | Epoch 1" for fold in (1, 2, 3)
    ]
    assert {p.total for p in reports if p.stage == "training"} == {2 * (N_TRAIN + N_TEST)}
    assert not (run.path / "model.safetensors").exists()


def test_each_fold_begins_with_the_same_untrained_network(pages, runs, monkeypatch):
    seen = []

    def spy(trainer: Trainer, images, batches, tick):
        seen.append(trainer.network.fc.weight.detach().clone())
        return plain(trainer, images, batches, tick)

    plain = Trainer.train
    monkeypatch.setattr(Trainer, "train", spy)
    train(pages, runs, cv=2, epochs=2)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


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


def test_cross_validation_predicts_every_decodable_row_once(pages, runs):
    (pages.parent / "train/a/002.png").write_bytes(b"no picture")
    run = train(pages, runs, cv=3, epochs=1)
    assert sorted(run.predictions.ids) == sorted(
        set(read_manifest(pages).paths) - {"train/a/002.png"}
    )


def test_a_batch_left_with_one_image_is_passed_over(tiny_pages, tiny_network, runs):
    pages = tiny_pages(n_train=4, n_test=2)
    (pages / "train/a/000.png").write_bytes(b"no picture")
    run = train(pages, runs, batch_size=2, epochs=1)
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


# Going on


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda p: p.done == 4, id="in the first epoch"),
        pytest.param(lambda p: "Epoch 1 |" in p.message, id="after an epoch"),
        pytest.param(lambda p: p.done == 13, id="within a later epoch"),
        pytest.param(lambda p: p.stage == "validating" and p.done == 4, id="validating"),
        pytest.param(lambda p: p.stage == "testing", id="testing"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(pages, runs, tmp_path, place):
    settings = {"epochs": 3, "val_fraction": 0.3}
    whole = train(pages, tmp_path / "whole", **settings)
    folder = interrupted(pages, runs, stop_at(place), **settings)
    resumed = resume_finetune(folder)
    assert resumed.path == folder.resolve()
    assert_same_numbers(whole, resumed)


def test_a_resumed_cross_validation_does_not_repeat_finished_folds(pages, runs, tmp_path):
    whole = train(pages, tmp_path / "whole", cv=3)
    second_fold = stop_at(lambda p: "Fold 2/3 | Epoch 1 " in p.message)
    folder = interrupted(pages, runs, second_fold, cv=3)
    reports: list[Progress] = []
    resumed = resume_finetune(folder, report=reports.append)
    assert_same_numbers(whole, resumed)
    assert [p.message[14:34] for p in reports if p.message] == [
        "Fold 2/3 | Epoch 2 |",
        "Fold 3/3 | Epoch 1 |",
        "Fold 3/3 | Epoch 2 |",
    ]


def test_a_run_can_be_interrupted_again_and_again(pages, runs, tmp_path):
    whole = train(pages, tmp_path / "whole", epochs=4)
    folder = interrupted(pages, runs, after_epoch(1), epochs=4)
    for epoch in (2, 3):
        with pytest.raises(Interrupted):
            resume_finetune(folder, report=after_epoch(epoch))
        assert len(read_rows(folder / "history.csv")) == epoch + 1
    assert_same_numbers(whole, resume_finetune(folder))


def test_quarantined_images_and_time_are_remembered(pages, runs):
    (pages.parent / "train/a/002.png").write_bytes(b"no picture")
    folder = interrupted(pages, runs, after_epoch(2))
    resumed = resume_finetune(folder)
    assert resumed.config["n_quarantined"] == 1
    assert resumed.cost.images_per_s > 2 * (N_TRAIN - 1) / resumed.cost.wall_s


def test_the_way_on_stands_in_a_note_of_the_exception(pages, runs):
    with pytest.raises(Interrupted) as caught:
        train(pages, runs, report=after_epoch(1))
    (folder,) = runs.iterdir()
    assert caught.value.__notes__ == [
        f"finished epochs kept: 1; go on with --resume {folder.resolve()}"
    ]


def test_an_interrupted_run_is_no_run_yet(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    with pytest.raises(RunError, match="is unfinished"):
        open_run(folder)


def test_a_finished_run_keeps_no_checkpoint_and_no_rest_of_one(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    (folder / f".{CHECKPOINT}.4711").write_bytes(b"left by a kill while saving")
    resume_finetune(folder)
    assert not [path.name for path in folder.iterdir() if "checkpoint" in path.name]


def test_the_checkpoint_before_survives_a_stop_while_saving(pages, runs, tmp_path, monkeypatch):
    whole = train(pages, tmp_path / "whole")
    saved = []

    def stop_in_the_middle(tensors, path, metadata):
        if saved:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        saved.append(path)
        plain(tensors, path, metadata)

    plain = safetensors.torch.save_file
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", stop_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            train(pages, runs)
    (folder,) = runs.iterdir()
    assert_same_numbers(whole, resume_finetune(folder))


def test_a_full_disk_is_named_and_the_run_can_go_on(pages, runs, tmp_path, monkeypatch):
    whole = train(pages, tmp_path / "whole")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(StorageError, match=r"checkpoint\.safetensors failed: the disk is full"):
            train(pages, runs)
    (folder,) = runs.iterdir()
    assert_same_numbers(whole, resume_finetune(folder))


def test_the_loss_scaler_and_the_moments_go_through_a_snapshot(tiny_network):
    compute = Compute(device="cpu", precision="fp16", threads=1, channels_last=True, reason="")
    preprocessing = Preprocessing.from_settings(SMALL)

    def trainer(seed: int) -> Trainer:
        return Trainer(TinyNetwork(2, seed), FinetuneSettings(), preprocessing, compute)

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    targets = np.array([0, 1, 0, 1])
    one, other = trainer(0), trainer(1)
    one._step(pixels, targets)
    other.restore(one.snapshot())
    assert one.snapshot().scaler["scale"] > 1
    assert one._step(pixels, targets) == other._step(pixels, targets)
    for name, tensor in one.snapshot().tensors.items():
        assert torch.equal(tensor, other.snapshot().tensors[name]), name


# What can't go on


def test_a_finished_run_is_not_resumed(pages, runs):
    run = train(pages, runs)
    with pytest.raises(RunError) as caught:
        resume_finetune(run.path)
    assert str(caught.value) == (
        f"{run.path} is finished: there is nothing left to resume. To train longer or otherwise, "
        "start a new run."
    )


def test_a_folder_that_is_no_fine_tuning_is_not_resumed(pages, runs):
    with pytest.raises(RunError, match=r"is no run: it has no config\.json"):
        resume_finetune(pages.parent)
    folder = interrupted(pages, runs, after_epoch(1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "kind": "linear"}))
    with pytest.raises(RunError, match="is a run of kind 'linear', and only a fine-tuning"):
        resume_finetune(folder)


@pytest.mark.parametrize("section", ["training", "source", "rows"])
def test_a_damaged_config_is_named(pages, runs, section):
    folder = interrupted(pages, runs, stop_at(lambda p: p.done == 4))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, section: {"nonsense": 1}}))
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        resume_finetune(folder)


def test_a_damaged_checkpoint_is_named(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    content = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged .* Start a new one"):
        resume_finetune(folder)


def lose_an_image(pages: Path) -> None:
    (pages.parent / "train/a/000.png").unlink()


def add_a_row(pages: Path) -> None:
    (pages.parent / "new.png").write_bytes((pages.parent / "train/a/000.png").read_bytes())
    pages.write_text(f"{pages.read_text()}new.png,a,train,\n")


def relabel(pages: Path) -> None:
    pages.write_text(pages.read_text().replace("000.png,a,train", "000.png,b,train"))


def reorder(pages: Path) -> None:
    header, *rows = pages.read_text().splitlines()
    pages.write_text("\n".join([header, *reversed(rows)]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lose_an_image,
            "then 13 training and 6 test images (0 missing), "
            "now 12 training and 6 test images (1 missing)",
        ),
        (
            add_a_row,
            "then 13 training and 6 test images (0 missing), "
            "now 14 training and 6 test images (0 missing)",
        ),
        (relabel, "still 13 training and 6 test images (0 missing), but not the same rows"),
        (reorder, "still 13 training and 6 test images (0 missing), but not the same rows"),
    ],
)
def test_changed_data_are_refused_with_the_counts(pages, runs, change, words):
    folder = interrupted(pages, runs, after_epoch(1))
    change(pages)
    with pytest.raises(RunError) as caught:
        resume_finetune(folder)
    assert str(caught.value) == (
        f"the data have changed since {folder.resolve()} was begun: {words}. Put them back as "
        "they were (paths, labels, splits, groups and their order), or start a new run."
    )


def test_a_part_of_the_data_goes_on_when_the_same_part_is_given(pages, runs):
    manifest = read_manifest(pages).limited(8)
    with pytest.raises(Interrupted):
        finetune(
            manifest, network=RANDOM, page=SMALL, compute=FP32, out_dir=runs, report=after_epoch(1)
        )
    (folder,) = runs.iterdir()
    with pytest.raises(RunError, match="the data have changed"):
        resume_finetune(folder)
    assert len(resume_finetune(folder, manifest=manifest).predictions) == 4


def test_the_root_of_a_csv_is_found_again_from_elsewhere(pages, runs, tmp_path, monkeypatch):
    moved = tmp_path / "lists" / "pages.csv"
    moved.parent.mkdir()
    pages.rename(moved)
    monkeypatch.chdir(pages.parent)
    manifest = read_manifest(moved, DataSettings(root=Path()))
    with pytest.raises(Interrupted):
        finetune(
            manifest, network=RANDOM, page=SMALL, compute=FP32, out_dir=runs, report=after_epoch(1)
        )
    monkeypatch.chdir(tmp_path)
    (folder,) = runs.iterdir()
    assert len(resume_finetune(folder).predictions) == N_TEST


def test_changed_weights_are_refused_where_another_fold_would_begin_with_them(
    pages, runs, monkeypatch
):
    folder = interrupted(pages, runs, after_epoch(1), cv=2)
    other = Weights("resnet18", "random:0", {"conv1.bias": torch.ones(8)})
    monkeypatch.setattr(starting_module, "load_weights", lambda _: other)
    with pytest.raises(RunError, match=r"^the weights random:0 have changed since the run"):
        resume_finetune(folder)


def test_weights_are_not_needed_to_go_on_within_the_last_fold(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, after_epoch(1))
    monkeypatch.setattr(starting_module, "load_weights", None)
    assert resume_finetune(folder).history[-1].epoch == 2
