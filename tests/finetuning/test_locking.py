from __future__ import annotations

import errno
import os
import socket

import pytest

import ecgfeat.finetuning.run as locking_module
from ecgfeat.errors import RunError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.runtime import Progress

from .jobs import after_epoch, interrupted


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
