"""What a fine-tuning under way leaves in its folder, so that nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import DataError, DivergedError
from ecgfeat.files import write_csv
from ecgfeat.finetuning.checkpoints import save_checkpoint
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.snapshots import Snapshot
from ecgfeat.finetuning.state import State
from ecgfeat.finetuning.training import Trainer

__all__ = ["Keeping", "diverged"]


class Keeping:
    """Checkpoints, and the list of images that can't be decoded; the first process writes them.

    Parameters
    ----------
    job : Job
    folder : Path
    state : State
        What a checkpoint holds, as it is when it is saved.

    Attributes
    ----------
    kept : str
        What the last checkpoint has, for people.
    """

    def __init__(self, job: Job, folder: Path, state: State) -> None:
        self._job = job
        self._ranks = job.ranks
        self._folder = folder
        self._state = state
        self._started_s = time.monotonic() - state.wall_s
        self._saved_s = time.monotonic()
        self.kept = state.in_words

    @property
    def wall_s(self) -> float:
        """Seconds of work so far, those before an interruption among them."""
        return time.monotonic() - self._started_s

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another, by the first process's clock."""
        minutes = self._job.training.checkpoint_minutes
        if not minutes:
            return False
        is_old = time.monotonic() - self._saved_s > 60 * minutes
        (is_due,) = self._ranks.totals(is_old and self._ranks.is_first)
        return bool(is_due)

    def save(self, trainer: Trainer | None) -> None:
        """Keep a checkpoint: of the network under way, or of none between two folds.

        Raises
        ------
        DivergedError
            When a weight isn't finite; the checkpoint before stays.
        StorageError
        """
        state = self._state
        if state.fold == len(self._job.plan):
            return  # the last checkpoint has all but the test, which is soon done again
        if trainer is not None:
            self.refuse_spoiled(trainer)
        self.share_failures()
        state.wall_s = self.wall_s
        with self._ranks.together():
            if self._ranks.is_first:
                save_checkpoint(self._folder, state, trainer.snapshot() if trainer else Snapshot())
        self._saved_s = time.monotonic()
        self.kept = state.in_words

    def refuse_spoiled(self, trainer: Trainer) -> None:
        """Refuse to go on with weights that aren't finite.

        Raises
        ------
        DivergedError
        """
        (n_spoiled,) = self._ranks.totals(not trainer.is_finite())
        if n_spoiled:
            raise diverged("a weight is no longer finite", self._state)

    def share_failures(self) -> None:
        """Let every process know which images can't be decoded."""
        for failures in self._ranks.gathered(self._state.failures):
            self._state.failures.update(failures)

    def refuse_lost(
        self, rows: NDArray[np.int64], kind: str, so: str, *, is_any: bool = True
    ) -> None:
        """Refuse rows that leave no image of a class to go on with.

        Parameters
        ----------
        rows : ndarray of shape (m,), int64
        kind, so : str
            Which rows these are, and what follows, in words.
        is_any : bool
            Whether any of them could be used at all.

        Raises
        ------
        DataError
        """
        self.share_failures()
        is_decoded = ~np.isin(rows, list(self._state.failures))
        targets = self._job.task.targets[rows]
        lost = np.setdiff1d(targets, targets[is_decoded])
        if is_any and not len(lost):
            return
        names = ", ".join(repr(self._job.task.classes[index]) for index in lost)
        path = self.write_quarantine()
        raise DataError(
            f"{(~is_decoded).sum()} of {len(rows)} {kind} images can't be decoded, "
            f"{f'all of {names}' if names else 'too many'}: {so}. The reasons are in {path}."
        )

    def write_quarantine(self) -> Path:
        """List those images with their reasons; returns where."""
        path = self._folder / "quarantine.csv"
        paths = self._job.manifest.paths
        failures = sorted(self._state.failures.items())
        rows = [(paths[row], failure.reason, failure.n_bytes) for row, failure in failures]
        if self._ranks.is_first:
            write_csv(path, [("path", "reason", "n_bytes"), *rows])
        return path


def diverged(what: str, state: State) -> DivergedError:
    """The error that says so, with advice."""
    lr = state.rates[state.fold]
    return DivergedError(
        f"{what}: the training diverged. Start a new run with a lower --lr (this one has "
        f"{lr:g}; try {lr / 10:g}), or with --warmup 0.1 or --clip 1."
    )
