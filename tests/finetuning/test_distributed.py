from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ecgfeat.finetuning.distributed as distributed_module
from ecgfeat.errors import ConfigError
from ecgfeat.finetuning.distributed import ALONE, Ranks, joined
from ecgfeat.runs import Run, open_run

from .in_processes import FROZEN
from .jobs import train

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_every_row_of_a_batch_is_one_process_s():
    batch = list(range(7))
    shares = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert sorted(row for share in shares for row in share) == batch
    assert sorted(map(len, shares)) == [2, 2, 3]


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_of_its_own_trains_alone(environment):
    with joined("cpu", environment) as ranks:
        assert ranks is ALONE
        assert ranks.totals(1.0, 2.0) == (1.0, 2.0)
        assert ranks.gathered("x") == ["x"]
        assert list(ranks.in_step(iter("abc"))) == ["a", "b", "c"]


def test_several_processes_on_mps_are_refused():
    with (
        pytest.raises(ConfigError, match="several processes can't share MPS: start one, or take"),
        joined("mps", TORCHRUN),
    ):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(distributed_module.torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU of its own: there"),
        joined("cuda", TORCHRUN),
    ):
        pass


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, Any]:
    """What two processes said of every scenario of `in_processes`, and the data's place."""
    from tests.conftest import draw_page

    folder = tmp_path_factory.mktemp("two")
    for split, n_pages in (("train", 13), ("test", 5)):
        for index in range(n_pages):
            path = folder / "pages" / split / "ab"[index % 2] / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_page(index + (1000 if split == "test" else 0), index % 2, (48, 36)).save(path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.finetuning.in_processes", folder / "pages", folder]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    said = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]
    return {"pages": folder / "pages", "said": said}


def the_run(two_processes: dict[str, Any], scenario: str) -> Run:
    """The one run that both processes made."""
    first, second = (said[scenario] for said in two_processes["said"])
    assert first["path"] == second["path"]
    run = open_run(Path(first["path"]))
    assert len([path for path in run.path.parent.iterdir() if path.is_dir()]) == 1
    return run


def assert_close(one: Run, other: Run) -> None:
    for record, expected in zip(one.history, other.history, strict=True):
        assert record.loss == pytest.approx(expected.loss, rel=1e-4)
        assert record.accuracy == expected.accuracy
    assert one.predictions.ids == other.predictions.ids
    np.testing.assert_allclose(
        one.predictions.probabilities, other.predictions.probabilities, rtol=1e-3, atol=1e-4
    )
    for name, tensor in other.model().items():
        np.testing.assert_allclose(one.model()[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_train_and_test_as_one_does(two_processes, tiny_network, tmp_path):
    alone = train(two_processes["pages"], tmp_path, training=FROZEN, val_fraction=0.3)
    together = the_run(two_processes, "whole")
    assert_close(together, alone)
    assert together.history[0].val_loss == pytest.approx(alone.history[0].val_loss, rel=1e-4)
    # Five test rows for two processes: none twice, none left out.
    assert len(together.predictions) == len(set(together.predictions.ids)) == 5


def test_a_page_that_one_process_can_t_decode_is_left_out_by_all(two_processes):
    run = the_run(two_processes, "one_meets_a_broken_page")
    assert len(run.predictions) == 4
    assert run.config["n_quarantined"] == 1
    assert "test/a/000.png" in (run.path / "quarantine.csv").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux names a process's threads")
def test_no_thread_of_the_group_is_left_to_abort_a_process_that_ends(two_processes):
    assert [said["threads"] for said in two_processes["said"]] == [[], []]


def test_when_one_is_asked_to_stop_all_do_and_go_on_to_the_same_numbers(
    two_processes, tiny_network, tmp_path
):
    said = [said["stopped_and_resumed"] for said in two_processes["said"]]
    assert [one["signal_number"] for one in said] == [15, 15]
    assert [one["kept"] for one in said] == [[1, 1], [1, 1]]
    alone = train(two_processes["pages"], tmp_path, training=FROZEN)
    assert_close(the_run(two_processes, "stopped_and_resumed"), alone)


def test_a_process_left_with_one_image_or_none_takes_part_in_the_step(two_processes):
    losses = [said["updated"]["loss"] for said in two_processes["said"]]
    assert losses[0] == losses[1]
    tensors = the_run(two_processes, "updated").model()
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def test_when_one_fails_all_end(two_processes):
    first, second = (said["one_fails"] for said in two_processes["said"])
    assert second == {"kind": "StorageError", "message": "the second one's disk failed"}
    assert first["kind"] == "TrainingError"
    assert first["message"].startswith("another process of this training failed: its own message")


@pytest.mark.slow
def test_torchrun_starts_the_command_and_the_first_process_speaks(two_processes, tmp_path):
    command = (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "ecgfeat.cli", "finetune", str(two_processes["pages"]), "--weights", "random"),
        *("--size", "32", "--crop-mode", "squash", "--device", "cpu", "--precision", "fp32"),
        *("--batch-norm", "freeze", "--batch-size", "5", "--epochs", "2", "--json"),
        # Adam would make a whole step of what rounding leaves of a gradient that is next to none.
        *("--optimizer", "sgd", "--lr", "0.001"),
        *("--out", str(tmp_path / "runs")),
    )
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (folder,) = (tmp_path / "runs").iterdir()
    assert told["runs"][0]["path"] == str(folder)
    assert done.stderr.count("[Fine-Tuning] Epoch 1 |") == 1
    training = {**FROZEN, "optimizer": "sgd"}
    assert_close(
        open_run(folder), train(two_processes["pages"], tmp_path / "alone", training=training)
    )
