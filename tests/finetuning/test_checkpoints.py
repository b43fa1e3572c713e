from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from ecgfeat.errors import RunError, StorageError
from ecgfeat.finetuning.checkpoint import (
    CHECKPOINT,
    Candidate,
    Said,
    State,
    Tally,
    load_checkpoint,
    save_checkpoint,
)
from ecgfeat.finetuning.trainer import Snapshot
from ecgfeat.images import Failure
from ecgfeat.runs import EpochRecord


def said(n_rows: int) -> Said:
    rng = np.random.default_rng(n_rows)
    return Said(rows=np.arange(n_rows), probabilities=rng.random((n_rows, 2)))


def a_state() -> State:
    return State(
        epoch=1,
        step=3,
        tally=Tally(n_images=12, summed_loss=0.1 + 0.2, n_right=7),
        candidate=Candidate(
            epoch=1, score=1 / 3, validation=said(4), weights={"fc.bias": torch.ones(2)}
        ),
        history=[EpochRecord(fold=0, epoch=1, loss=0.7, accuracy=0.5, val_loss=1 / 3, lr=1e-4)],
        rates=[1e-4, 3e-4],
        chosen=[Candidate(epoch=5, score=None, validation=said(0))],
        tested=[said(5)],
        failures={7: Failure(row=7, reason="no picture", n_bytes=10, passing=True)},
        wall_s=0.1,
        training_s=0.3,
        n_trained=12,
    )


def test_a_state_comes_back_as_it_was(tmp_path):
    state = a_state()
    tensors = {"network.fc.bias": torch.zeros(2), "optimizer.0.step": torch.tensor(3.0)}
    save_checkpoint(tmp_path, state, Snapshot(tensors=tensors, scaler={"scale": 1024.0}, n_parts=4))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    found, network = loaded
    plain = ("epoch", "step", "tally", "history", "rates", "failures", "wall_s", "n_trained")
    for name in plain:
        assert getattr(found, name) == getattr(state, name), name
    assert found.candidate is not None
    assert (found.candidate.epoch, found.candidate.score) == (1, 1 / 3)
    assert torch.equal(found.candidate.weights["fc.bias"], torch.ones(2))
    for one, other in (
        (found.candidate.validation, said(4)),
        (found.chosen[0].validation, said(0)),
        (found.tested[0], said(5)),
    ):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    assert (network.scaler, network.n_parts) == ({"scale": 1024.0}, 4)
    assert network.network.keys() == {"fc.bias"}


def test_a_run_without_a_checkpoint_has_none(tmp_path):
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_checkpoint_cut_short_is_named(tmp_path, keep):
    save_checkpoint(tmp_path, a_state(), Snapshot())
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_said_to_be_one(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / CHECKPOINT, metadata={"state": "{}"})
    with pytest.raises(RunError, match="it has no digest: an earlier version of ecgfeat may have"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_can_t_be_read_is_no_damaged_one(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    save_checkpoint(tmp_path, a_state(), Snapshot())
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(StorageError, match=r"reading .*checkpoint\.safetensors failed: permission"):
        load_checkpoint(tmp_path)


KILLING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from ecgfeat.finetuning.checkpoint import load_checkpoint, save_checkpoint
from ecgfeat.finetuning.trainer import Snapshot
from ecgfeat.finetuning.checkpoint import State

def save_for_ever(told):
    load = load_checkpoint(folder)
    step = load[0].step if load else 0
    while True:
        step += 1
        tensors = {f"network.{i}": torch.full((250_000,), float(step)) for i in range(4)}
        save_checkpoint(folder, State(step=step), Snapshot(tensors=tensors))
        os.write(told, step.to_bytes(4, "big"))

folder, n_kills = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(0)
in_the_middle = last = 0
for _ in range(n_kills):
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        save_for_ever(tell)
    os.close(tell)
    os.read(told, 4)  # it saves by now
    time.sleep(draw.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    rests = list(folder.glob(".*"))
    in_the_middle += bool(rests)
    for path in rests:
        path.unlink()
    state, snapshot = load_checkpoint(folder)
    assert state.step > last, "a checkpoint is lost"
    assert all(bool((t == state.step).all()) for t in snapshot.tensors.values()), "half old"
    last = state.step
print(in_the_middle)
"""


def kill_while_saving(folder, n_kills: int) -> int:
    """How many of the kills came in the middle of saving."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLING, str(folder), str(n_kills)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_kill_while_saving_leaves_the_checkpoint_before_or_the_new_one(tmp_path):
    assert kill_while_saving(tmp_path, 12)


@pytest.mark.slow
def test_a_hundred_kills_are_followed_by_a_hundred_loads(tmp_path):
    assert kill_while_saving(tmp_path, 100) > 20
