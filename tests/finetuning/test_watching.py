"""What one can watch while a training goes on: history.csv, and TensorBoard's curves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ecgfeat.finetuning.run as running_module
from ecgfeat.errors import ConfigError, Interrupted, StorageError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.checkpoint import CHECKPOINT
from ecgfeat.runs import EpochRecord, EventFiles, Run

from .jobs import after_epoch, interrupted, read_rows, stop_at, train

TENSORBOARD = {"tensorboard": True}


class Killed(BaseException):
    """What no handler on the way takes."""


def epochs_in_history(folder: Path) -> list[tuple[str, str]]:
    _, *rows = read_rows(folder / "history.csv")
    return [(fold, epoch) for fold, epoch, *_ in rows]


def curves_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in a folder's event files, in the order of the files and records."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    curves: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in loading.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def assert_curves_are_the_history(run: Run, *, lr: float) -> None:
    n_folds = len({record.fold for record in run.history})
    for fold in range(n_folds):
        folder = run.path / "tensorboard"
        curves = curves_in(folder / f"fold-{fold + 1}" if n_folds > 1 else folder)
        records = [record for record in run.history if record.fold == fold]
        expected = {
            name: [
                (record.epoch, pytest.approx(getattr(record, name), rel=1e-6)) for record in records
            ]
            for name in ("loss", "accuracy", "val_loss", "val_accuracy")
            if getattr(records[0], name) is not None
        }
        rates = [lr if record.lr is None else record.lr for record in records]
        expected["lr"] = [
            (record.epoch, pytest.approx(rate, rel=1e-6)) for record, rate in zip(records, rates)
        ]
        assert curves == expected


# history.csv


def test_the_history_grows_with_every_epoch(pages, runs):
    seen = []

    def report(progress):
        if "Epoch" in progress.message:
            (folder,) = runs.iterdir()
            seen.append(epochs_in_history(folder))

    train(pages, runs, training={"epochs": 3}, report=report)
    assert seen == [[("0", str(epoch)) for epoch in range(1, n + 1)] for n in (1, 2, 3)]


def test_a_history_behind_its_checkpoint_catches_up_before_the_next_step(pages, runs, monkeypatch):
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(running_module, "write_history", killed)
        with pytest.raises(Killed):
            train(pages, runs)
    (folder,) = runs.iterdir()
    assert not (folder / "history.csv").exists()
    with pytest.raises(Interrupted):
        resume_finetune(folder, report=stop_at(lambda progress: progress.total > 0))
    assert epochs_in_history(folder) == [("0", "1")]


def test_a_history_whose_checkpoint_is_gone_begins_anew(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    (folder / CHECKPOINT).unlink()
    with pytest.raises(Interrupted):
        resume_finetune(folder, report=stop_at(lambda progress: progress.total > 0))
    assert epochs_in_history(folder) == []


# TensorBoard


@pytest.mark.parametrize(
    "more",
    [{}, {"val_fraction": 0.3, "training": {"schedule": "cosine"}}, {"cv": 3}],
    ids=["plain", "validation", "cv"],
)
def test_tensorboard_shows_what_the_history_has(pages, runs, more):
    pytest.importorskip("tensorboard")
    settings = {"lr": 0.002, **TENSORBOARD, **more.pop("training", {})}
    run = train(pages, runs, training=settings, **more)
    assert_curves_are_the_history(run, lr=0.002)
    # As TensorBoard itself reads them.
    accumulating = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = run.path / "tensorboard" / ("fold-2" if "cv" in more else "")
    events = accumulating.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_tensorboards_curves_are_there_after_every_epoch(pages, runs):
    pytest.importorskip("tensorboard")
    folder = interrupted(pages, runs, after_epoch(1), training={"epochs": 3, **TENSORBOARD})
    assert [step for step, _ in curves_in(folder / "tensorboard")["loss"]] == [1]


def test_a_resumed_training_goes_on_with_its_curves_without_duplicates(pages, runs, monkeypatch):
    pytest.importorskip("tensorboard")

    def killed(*_: object) -> None:
        raise Killed

    training = {"epochs": 4, "lr": 0.002, **TENSORBOARD}
    folder = interrupted(pages, runs, after_epoch(2), training=training)
    with monkeypatch.context() as patch:  # after the third epoch's checkpoint, before its curves
        patch.setattr(running_module, "write_history", killed)
        with pytest.raises(Killed):
            resume_finetune(folder)
    assert_curves_are_the_history(resume_finetune(folder), lr=0.002)


def test_an_epoch_cut_off_by_a_kill_is_written_again(tmp_path):
    pytest.importorskip("tensorboard")
    history = [EpochRecord(fold=0, epoch=epoch, loss=1 / epoch, accuracy=0.5) for epoch in (1, 2)]
    EventFiles(tmp_path, 1).write(history, [0.1])
    (path,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(path, path.stat().st_size - 5)
    later = EventFiles(tmp_path, 1)
    for _ in range(2):
        later.write(history, [0.1])
    assert curves_in(tmp_path / "tensorboard")["loss"] == [(1, 1.0), (2, 0.5)]


def test_a_disk_that_refuses_the_curves_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(StorageError, match=r"^writing .*tensorboard failed: a file is"):
        EventFiles(tmp_path, 1).write([EpochRecord(fold=0, epoch=1, loss=1, accuracy=1)], [0.1])


def test_a_run_without_the_option_has_no_such_folder(pages, runs):
    run = train(pages, runs)
    assert not (run.path / "tensorboard").exists()
    assert run.config["training"]["tensorboard"] is False


def test_without_the_extra_a_training_is_refused_before_any_work(pages, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ConfigError) as caught:
        train(pages, runs, training=TENSORBOARD)
    assert str(caught.value) == "--tensorboard needs pip install 'ecgfeat[tensorboard]'"
    assert not runs.exists()


def test_a_run_begun_with_the_extra_is_not_gone_on_with_without_it(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, after_epoch(1))
    config = json.loads((folder / "config.json").read_text())
    config["training"]["tensorboard"] = True
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ConfigError, match="--tensorboard needs pip install"):
        resume_finetune(folder)


_REFUSED = """
import sys
from ecgfeat.cli import app
sys.modules["tensorboard"] = None
try:
    app(["finetune", "pages", "--tensorboard"])
except SystemExit as stop:
    assert stop.code == 2, stop.code
assert "torch" not in sys.modules
"""


def test_the_command_says_so_before_it_looks_at_the_data(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "ecgfeat finetune pages …",
        "Error: --tensorboard needs pip install 'ecgfeat[tensorboard]'",
    ]
