from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
from safetensors import SafetensorError

import ecgfeat.finetuning.run as keeping_module
import ecgfeat.finetuning.run as running_module
import ecgfeat.finetuning.run as starting_module
import ecgfeat.runs.writing as writing_module
from ecgfeat.config import DataSettings, FigureSettings
from ecgfeat.errors import ConfigError, Interrupted, RunError, StorageError
from ecgfeat.finetuning import finetune, resume_finetune
from ecgfeat.finetuning.checkpoint import CHECKPOINT
from ecgfeat.finetuning.trainer import Images
from ecgfeat.manifest import read_manifest
from ecgfeat.runs import open_run
from ecgfeat.runtime import Progress

from .jobs import (
    FP32,
    N_TEST,
    N_TRAIN,
    RANDOM,
    SMALL,
    after_epoch,
    assert_same_numbers,
    interrupted,
    read_rows,
    stop_at,
    train,
)

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


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ecgfeat.cli", "finetune", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def signalled_after_epoch(process: subprocess.Popen[str], epoch: int, number: int) -> float:
    """Send a signal once an epoch is logged; how many seconds the process still took."""
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if f"Epoch {epoch} |" in line:
                break
        sent_s = time.monotonic()
        process.send_signal(number)
        process.stderr.read()
    return time.monotonic() - sent_s


@pytest.mark.slow
def test_signals_and_a_kill_lose_nothing_that_was_saved(tiny_pages, runs, tmp_path):
    pages = tiny_pages(n_train=24, n_test=4)
    training = {"epochs": 8}
    whole = train(pages, tmp_path / "whole", training=training)
    options = "--weights random --size 32 --crop-mode squash --device cpu --precision fp32"
    process = start(
        pages, *options.split(), "--lr", 0.001, "--epochs", 8, "--batch-size", 4, "--out", runs
    )
    assert signalled_after_epoch(process, 2, signal.SIGTERM) < 10
    assert process.returncode == 128 + signal.SIGTERM
    (folder,) = runs.iterdir()
    for epoch, number, code in ((4, signal.SIGINT, 130), (6, signal.SIGKILL, -signal.SIGKILL)):
        process = start("--resume", folder)
        assert signalled_after_epoch(process, epoch, number) < 10
        assert process.returncode == code
    assert_same_numbers(whole, resume_finetune(folder))


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


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda p: p.stage == "training" and p.done == 0, id="before the first step"),
        pytest.param(lambda p: p.stage == "training" and p.done == 4, id="within the first epoch"),
        pytest.param(lambda p: "Epoch 1 |" in p.message, id="after an epoch"),
        pytest.param(lambda p: p.done == 13, id="within a later epoch"),
        pytest.param(lambda p: p.stage == "validating" and p.done == 4, id="validating"),
        pytest.param(lambda p: p.stage == "testing" and p.done == 4, id="testing"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(pages, runs, tmp_path, place):
    settings = {"training": {"epochs": 3}, "val_fraction": 0.3}
    whole = train(pages, tmp_path / "whole", **settings)
    folder = interrupted(pages, runs, stop_at(place), **settings)
    resumed = resume_finetune(folder)
    assert resumed.path == folder.resolve()
    assert_same_numbers(whole, resumed)


EVERYTHING = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 0.2,
    "weight_decay": 0.01,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "clip": 1.0,
    "accumulate": 2,
    "choose_by": "auroc",
    "patience": 2,
    "augment": "strong",
    "epochs": 3,
}


def test_a_run_stopped_at_every_step_ends_in_the_same_numbers(pages, runs, tmp_path):
    settings = {"training": EVERYTHING, "val_fraction": 0.3}
    whole = train(pages, tmp_path / "whole", **settings)

    class Stopping:
        """Lets one batch be trained on, then stops."""

        n_told = 0

        def __call__(self, progress: Progress) -> None:
            if progress.stage == "training" and not progress.message:
                self.n_told += 1
                if self.n_told == 2:
                    raise Interrupted

    folder = interrupted(pages, runs, Stopping(), **settings)
    n_stops = 1
    while True:
        try:
            resumed = resume_finetune(folder, report=Stopping())
            break
        except Interrupted:
            n_stops += 1
    # Two batches an epoch, one a time; after the last there is nothing left to stop.
    assert n_stops == 2 * len(whole.history) - 1
    assert_same_numbers(whole, resumed)
    assert resumed.metrics["choice"] == whole.metrics["choice"]


def test_batches_already_trained_on_are_not_decoded_again(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, stop_at(lambda p: p.done == 8))
    decoded: list[list[int]] = []

    def spy(images, batches, tick, **others):
        decoded.extend(batches)
        return plain(images, batches, tick, **others)

    plain = Images.stream
    monkeypatch.setattr(Images, "stream", spy)
    resume_finetune(folder)
    # The third batch of the first epoch, three of the second, two of test rows, and the training
    # rows once more, for what new images are held against.
    assert [len(batch) for batch in decoded] == [5, 4, 4, 5, 4, 2, 4, 4, 4, 1]


def test_the_epoch_under_way_is_logged_as_a_whole(pages, runs):
    folder = interrupted(pages, runs, stop_at(lambda p: p.done == 8))
    details = []
    resume_finetune(folder, report=lambda p: details.append((p.done, p.detail)))
    assert details[0][0] == 8
    assert details[0][1].startswith("loss 0.")


def test_a_checkpoint_is_kept_every_few_minutes_of_an_epoch(pages, runs, monkeypatch):
    clock = iter(range(0, 10_000, 61))  # every look at it is more than a minute after the last
    watch = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(keeping_module, "time", watch)
    kept: list[int] = []

    def spy(folder, state, snapshot):
        kept.append(state.step)
        plain(folder, state, snapshot)

    plain = keeping_module.save_checkpoint
    monkeypatch.setattr(keeping_module, "save_checkpoint", spy)
    train(pages, runs, training={"checkpoint_minutes": 1.0, "epochs": 1})
    assert kept == [1, 2, 3, 0]
    kept.clear()
    train(pages, runs, training={"checkpoint_minutes": 0.0, "epochs": 1})
    assert kept == [0]


def test_what_a_kill_leaves_goes_on_from_the_last_checkpoint(pages, runs, tmp_path, monkeypatch):
    whole = train(pages, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def killed(progress: Progress) -> None:
        if progress.done == 17:
            raise Killed

    monkeypatch.setattr(keeping_module.Keeping, "is_due", lambda keeping: keeping._state.step == 1)
    with pytest.raises(Killed):
        train(pages, runs, report=killed)
    (folder,) = runs.iterdir()
    dones: list[int] = []
    assert_same_numbers(whole, resume_finetune(folder, report=lambda p: dones.append(p.done)))
    assert dones[0] == 17


def test_an_epoch_that_a_kill_kept_out_of_the_history_comes_back(pages, runs, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running_module, "write_history", killed)
        with pytest.raises(Killed):
            train(pages, runs, training={"epochs": 3})
    (folder,) = runs.iterdir()
    with pytest.raises(Interrupted):
        resume_finetune(folder, report=after_epoch(2))
    assert [row[:2] for row in read_rows(folder / "history.csv")[1:]] == [["0", "1"], ["0", "2"]]


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
    whole = train(pages, tmp_path / "whole", training={"epochs": 4})
    folder = interrupted(pages, runs, after_epoch(1), training={"epochs": 4})
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
    whole_command = f"ecgfeat finetune --resume {folder.resolve()}"
    assert caught.value.__notes__ == ["kept: 1 finished epoch; to go on:", whole_command]
    with pytest.raises(Interrupted) as caught:
        resume_finetune(folder, report=stop_at(lambda p: p.done == 21))
    assert caught.value.__notes__ == [
        "kept: 1 finished epoch and 2 steps of the next; to go on:",
        whole_command,
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


def test_weights_are_not_needed_to_go_on_within_the_last_fold(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, after_epoch(1))
    monkeypatch.setattr(starting_module, "load_weights", None)
    assert resume_finetune(folder).history[-1].epoch == 2


def test_a_resumed_run_draws_its_figures_as_it_was_begun(pages, runs, monkeypatch):
    looks = []
    monkeypatch.setattr(
        writing_module, "draw_figures", lambda *given: looks.append(given[-1]) or []
    )
    look = FigureSettings(figure_format="pdf", title=False, names="a=A")
    folder = interrupted(pages, runs, after_epoch(1), figures=look)
    resume_finetune(folder)
    assert looks == [look]


def test_a_run_begun_before_figures_had_settings_can_be_gone_on_with(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    config = json.loads((folder / "config.json").read_text())
    del config["figures"]
    (folder / "config.json").write_text(json.dumps(config))
    resumed = resume_finetune(folder)
    assert len(resumed.history) == 2


def test_names_of_no_class_are_refused_before_anything_is_written(pages, runs):
    with pytest.raises(ConfigError, match=r"--names has a name for 'c', which is no class: .*a, b"):
        train(pages, runs, figures=FigureSettings(names="c=C"))
    assert not runs.exists()
