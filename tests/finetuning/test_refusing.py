from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

import ecgfeat.finetuning.job as job_module
import ecgfeat.finetuning.job as refusing_module
import ecgfeat.finetuning.run as starting_module
from ecgfeat.backbones import Weights
from ecgfeat.errors import ConfigError, DataError, DeviceError, RunError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.checkpoint import (
    CHECKPOINT,
    Candidate,
    Said,
    load_checkpoint,
    save_checkpoint,
)
from ecgfeat.finetuning.distributed import Ranks
from ecgfeat.finetuning.job import describe_rows
from ecgfeat.images import Failure
from ecgfeat.manifest import read_manifest

from ..conftest import write_csv
from .jobs import after_epoch, interrupted, read_rows, stop_at, train

T = TypeVar("T")

# What can't begin; nothing is written then


def test_data_without_a_test_split_leave_no_folder_behind(pages, runs):
    rows = pages.read_text().splitlines()
    pages.write_text("\n".join(row for row in rows if ",test," not in row))
    with pytest.raises(DataError, match="the split 'test' is empty"):
        train(pages, runs)
    assert not runs.exists()


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ({"choose_by": "auroc"}, {}),
        ({}, {"calibrate": True}),
        ({}, {"at_sensitivity": 0.9}),
    ],
)
def test_validation_rows_without_a_class_can_t_decide(pages, runs, training, evaluation):
    header, *rows = read_rows(pages)
    # One group holds every training page of b, so that none can be kept out.
    grouped = [
        dict(zip(header, [*row[:3], "one" if row[1:3] == ["b", "train"] else ""])) for row in rows
    ]
    write_csv(pages, grouped)
    with pytest.raises(DataError, match="there would be no validation rows of 'b', so nothing"):
        train(pages, runs, training=training, val_fraction=0.3, **evaluation)
    assert not runs.exists()
    assert train(pages, runs, val_fraction=0.3).history[0].val_loss is not None


class TwoRanks(Ranks):
    """The first of two processes, the other of which sees what the test says."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__(0, 2)
        self.change = change

    def gathered(self, value: T) -> list[T]:
        return [value, self.change(value)]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "words"),
    [
        (3, 1, "--batch-size 3, shared by 2 processes, leaves fewer than 2 images for each: give "),
        (8, 3, "--batch-size 8, shared by 2 processes in 3 parts, leaves fewer than 2 images for "),
    ],
)
def test_shares_too_small_for_batch_norm_are_refused(batch_size, accumulate, words):
    training = job_module.FinetuneSettings(batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(ConfigError) as caught:
        refusing_module._refuse_thin_shares(training, Ranks(0, 2))
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith(f"give at least {4 * accumulate}, or start fewer processes")


def test_processes_that_see_other_data_are_refused(pages):
    manifest = read_manifest(pages)
    refusing_module._refuse_differing_rows(manifest, TwoRanks(lambda rows: rows))
    found = describe_rows(manifest)
    fewer = {**found, "train": 12, "missing": 1, "digest": "0"}
    with pytest.raises(DataError) as caught:
        refusing_module._refuse_differing_rows(manifest, TwoRanks(lambda rows: fewer))
    assert str(caught.value) == (
        "the processes of this training don't see the same data: the first has 13 training and 6 "
        "test images (0 missing), process 2 has 12 training and 6 test images (1 missing). Every "
        "machine must see the same list and the same files."
    )


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", 10**9),
        ("epoch", 2),
        ("step", 10**6),
        ("rates", []),
        ("rates", [1e-4] * 9),
        ("candidate", None),
        ("history", []),
        (
            "chosen",
            [
                Candidate(
                    epoch=1,
                    score=None,
                    validation=Said(rows=np.arange(1), probabilities=np.ones((1, 2))),
                )
            ],
        ),
        ("failures", {10**6: Failure(row=10**6, reason="", n_bytes=0)}),
    ],
)
def test_a_checkpoint_that_another_run_would_have_is_refused(pages, runs, name, value):
    folder = interrupted(pages, runs, after_epoch(1))
    state, snapshot = load_checkpoint(folder)
    setattr(state, name, value)
    save_checkpoint(folder, state, snapshot)
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged \(its \w+ can't be"):
        resume_finetune(folder)


def test_what_a_checkpoint_says_of_other_rows_is_refused(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    state, snapshot = load_checkpoint(folder)
    for rows, n_classes in ((np.array([10**6]), 2), (np.array([-1]), 2), (np.array([0]), 3)):
        said = Said(rows=rows, probabilities=np.ones((1, n_classes)))
        state.candidate = replace(state.candidate, validation=said)
        save_checkpoint(folder, state, snapshot)
        with pytest.raises(RunError, match="its rows can't be those of this run"):
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


def test_changed_weights_are_refused_where_another_fold_would_begin_with_them(
    pages, runs, monkeypatch
):
    folder = interrupted(pages, runs, after_epoch(1), cv=2)
    other = Weights("resnet18", "random:0", {"conv1.bias": torch.ones(8)})
    monkeypatch.setattr(refusing_module, "load_weights", lambda _: other)
    with pytest.raises(RunError, match=r"^the weights random:0 have changed since the run"):
        resume_finetune(folder)


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


def test_a_machine_without_the_run_s_device_is_named(pages, runs, monkeypatch):
    folder = interrupted(pages, runs, after_epoch(1))
    config = json.loads((folder / "config.json").read_text())
    config["compute"] = {"device": "cuda", "precision": "bf16", "threads": 2}
    (folder / "config.json").write_text(json.dumps(config))

    def without(*_: object, **__: object) -> None:
        raise DeviceError("--device cuda is asked for")

    monkeypatch.setattr(starting_module, "resolve_compute", without)
    with pytest.raises(DeviceError) as caught:
        resume_finetune(folder)
    assert str(caught.value) == (
        f"{folder.resolve()} was begun with --device cuda --precision bf16, which this machine "
        "doesn't have, and a run goes on as it was begun. Go on with it where there is one, or "
        "start a new run."
    )
