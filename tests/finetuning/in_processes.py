"""One process of several that fine-tune together: its part of the tests in `test_distributed`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the group, as `joined` says

from ecgfeat.errors import EcgfeatError, Interrupted, StorageError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.checkpoint import load_checkpoint
from ecgfeat.finetuning.trainer import Trainer
from ecgfeat.runs import writing
from ecgfeat.runtime import Progress

from .jobs import train, use_tiny_network

RANK = int(os.environ.get("RANK", "0"))
FROZEN = {"batch_norm": "freeze", "batch_size": 5}


def the_second_stops(progress: Progress) -> None:
    if RANK == 1 and progress.stage == "training" and progress.done == 18:
        raise Interrupted(15)


def whole(pages: Path, runs: Path) -> dict[str, Any]:
    run = train(pages, runs, training=FROZEN, val_fraction=0.3)
    return {"path": str(run.path)}


def stopped_and_resumed(pages: Path, runs: Path) -> dict[str, Any]:
    try:
        train(pages, runs, training={**FROZEN, "checkpoint_minutes": 0.0}, report=the_second_stops)
    except Interrupted as stop:
        signal_number = stop.signal_number
    (folder,) = runs.iterdir()
    state, _ = load_checkpoint(folder) or (None, None)
    assert state is not None
    run = resume_finetune(folder)
    return {
        "path": str(run.path),
        "signal_number": signal_number,
        "kept": [state.epoch, state.step],
    }


def updated(pages: Path, runs: Path) -> dict[str, Any]:
    """With batch norm updated; the last batch leaves one process a single image."""
    run = train(pages, runs, training={"batch_size": 10, "epochs": 1, "accumulate": 2})
    return {"path": str(run.path), "loss": run.history[0].loss}


def one_meets_a_broken_page(pages: Path, runs: Path) -> dict[str, Any]:
    """A test image can't be decoded: one process alone finds out, and all must know."""
    broken = pages.parent / "broken"
    if RANK == 0:
        shutil.copytree(pages, broken)
        (broken / "test" / "a" / "000.png").write_bytes(b"no picture")
    torch.distributed.barrier()
    run = train(broken, runs, training=FROZEN)
    return {"path": str(run.path)}


def one_fails(pages: Path, runs: Path) -> dict[str, Any]:
    def step(trainer: Trainer, *batch: Any) -> Any:
        if RANK == 1:
            with trainer._ranks.together():
                raise StorageError("the second one's disk failed")
        with trainer._ranks.together():
            return None

    plain, Trainer.step = Trainer.step, step
    try:
        train(pages, runs, training=FROZEN)
    except EcgfeatError as error:
        return {"kind": type(error).__name__, "message": str(error)}
    finally:
        Trainer.step = plain
    return {}


def threads_of_the_group() -> list[str]:
    """Those that still exchange for the group, as Linux names them."""
    names = (task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    pages, out = Path(sys.argv[1]), Path(sys.argv[2])
    use_tiny_network(setattr)
    writing.draw_figures = lambda *_: []  # tests/conftest.py says why
    torch.distributed.init_process_group("gloo")  # once: the port is free but for a moment
    scenarios = (whole, stopped_and_resumed, updated, one_meets_a_broken_page, one_fails)
    said = {scenario.__name__: scenario(pages, out / scenario.__name__) for scenario in scenarios}
    torch.distributed.destroy_process_group()
    said["threads"] = threads_of_the_group()
    (out / f"said-{RANK}.json").write_text(json.dumps(said))
