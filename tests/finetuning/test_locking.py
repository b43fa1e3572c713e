from __future__ import annotations

import errno
import fcntl
import os
import re
import socket

import pytest

from ecgfeat.errors import RunError
from ecgfeat.finetuning import resume_finetune
from ecgfeat.runtime import Progress

from .jobs import after_epoch, interrupted


def test_a_run_is_gone_on_with_by_one_at_a_time(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))

    def second(progress: Progress) -> None:
        with pytest.raises(RunError) as caught:
            resume_finetune(folder)
        assert re.fullmatch(
            f"{re.escape(str(folder.resolve()))} is being worked on by process {os.getpid()} on "
            rf"{re.escape(socket.gethostname())} since [\d: -]+ UTC\. Wait for it to end, or stop "
            r"it first\.",
            str(caught.value),
        )
        refused.append(progress.done)

    refused: list[int] = []
    run = resume_finetune(folder, report=second)
    assert refused
    assert not (run.path / ".lock").exists()


def test_a_dead_process_s_lock_does_not_stay(pages, runs):
    folder = interrupted(pages, runs, after_epoch(1))
    assert not (folder / ".lock").exists()
    # As an earlier version left it, whichever way it ended.
    (folder / ".lock").write_text("process 1 on node7")
    assert resume_finetune(folder).history[-1].epoch == 2


def test_a_file_system_without_locks_still_goes_on(pages, runs, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = interrupted(pages, runs, after_epoch(1))
    assert resume_finetune(folder).history[-1].epoch == 2
