from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

import ecgfeat.finetuning.job as job_module
import ecgfeat.finetuning.keeping as keeping_module
import ecgfeat.finetuning.locking as locking_module
import ecgfeat.finetuning.starting as starting_module
from ecgfeat.backbones import Weights
from ecgfeat.config import DataSettings
from ecgfeat.errors import Interrupted, RunError, StorageError
from ecgfeat.finetuning import finetune, resume_finetune
from ecgfeat.finetuning.checkpoints import CHECKPOINT
from ecgfeat.finetuning.streaming import Images
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
    process = start(pages, *options.split(), "--epochs", 8, "--batch-size", 4, "--out", runs)
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
    # The third batch of the first epoch, three of the second, and two of test rows.
    assert [len(batch) for batch in decoded] == [5, 4, 4, 5, 4, 2]


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
    assert caught.value.__notes__ == [
        f"kept: 1 finished epoch; go on with --resume {folder.resolve()}"
    ]
    with pytest.raises(Interrupted) as caught:
        resume_finetune(folder, report=stop_at(lambda p: p.done == 21))
    assert caught.value.__notes__ == [
        f"kept: 1 finished epoch and 2 steps of the next; go on with --resume {folder.resolve()}"
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


def test_a_changed_head_is_refused_where_another_fold_would_begin_with_it(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, after_epoch(1), cv=2)
    config = json.loads((folder / "config.json").read_text())
    config["from_head"] = {"run": "heads", "digest": "0"}
    (folder / "config.json").write_text(json.dumps(config))

    class OtherHead:
        def describe(self) -> dict[str, str]:
            return {"run": "heads", "digest": "1"}

    monkeypatch.setattr(job_module, "read_head", lambda _: OtherHead())
    with pytest.raises(RunError, match=r"^the head heads has changed since the run was begun\."):
        resume_finetune(folder)


def test_a_run_is_gone_on_with_by_one_at_a_time(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))

    def second(progress: Progress) -> None:
        with pytest.raises(RunError) as caught:
            resume_finetune(folder)
        assert str(caught.value) == (
            f"{folder.resolve()} is being worked on by process {os.getpid()} on "
            f"{socket.gethostname()}. Wait for it to end, or stop it first."
        )
        refused.append(progress.done)

    refused: list[int] = []
    run = resume_finetune(folder, report=second)
    assert refused
    assert not (run.path / ".lock").exists()


def test_a_dead_process_s_lock_does_not_stay(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    assert (folder / ".lock").read_text().startswith("process ")
    assert resume_finetune(folder).history[-1].epoch == 2


def test_a_file_system_without_locks_still_goes_on(pages, runs, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locking_module.fcntl, "flock", none)
    folder = interrupted(pages, runs, after_epoch(1))
    assert resume_finetune(folder).history[-1].epoch == 2
