"""A fine-tuning under way: epochs, checkpoints, tests, fold by fold."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import (
    DataError,
    DivergedError,
    Interrupted,
    StorageError,
    TrainingError,
)
from ecgfeat.finetuning.checkpoints import remove_checkpoint
from ecgfeat.finetuning.choosing import choose, is_deciding, is_enough, score_epoch
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.keeping import Keeping, diverged
from ecgfeat.finetuning.lr_range import find_lr, n_images_tried, write_lr_range
from ecgfeat.finetuning.optimizing import Schedule
from ecgfeat.finetuning.results import predictions_of, result_of
from ecgfeat.finetuning.snapshots import Snapshot
from ecgfeat.finetuning.state import Candidate, Said, State
from ecgfeat.finetuning.streaming import Tick, consecutive_batches, shuffled_batches
from ecgfeat.finetuning.training import Trainer
from ecgfeat.protocol import Partition
from ecgfeat.runs import EpochRecord, Run, open_run, write_history, write_run
from ecgfeat.runtime import Progress, Report

__all__ = ["Running"]


class Running:
    """A fine-tuning under way in its folder.

    Parameters
    ----------
    job : Job
    folder : Path
    config : dict
        What ``config.json`` holds.
    state : State
        Brought up to date as the work goes on.
    report : callable
    """

    def __init__(
        self, job: Job, folder: Path, config: dict[str, Any], state: State, report: Report
    ) -> None:
        self._job = job
        self._ranks = job.ranks
        self._folder = folder
        self._config = config
        self._state = state
        self._report = report
        self._images = job.images(state.failures)
        self._keeping = Keeping(job, folder, state)

    def run(self, snapshot: Snapshot) -> Run:
        """Do what is left; `snapshot` is of the network under way, if it has had a step."""
        with self._naming_the_way_on():
            for part in self._job.plan[self._state.fold :]:
                trainer = self._trainer(part, snapshot)
                try:
                    self._train(trainer, part)
                    self._test(trainer, part)
                except Interrupted:
                    self._keeping.save(trainer)
                    raise
            if self._state.failures:
                with self._ranks.together():
                    self._tell_left_out()
            self._refuse_untested()
            with self._ranks.together():
                if self._ranks.is_first:
                    self._write(trainer)
        return open_run(self._folder)

    @contextlib.contextmanager
    def _naming_the_way_on(self) -> Iterator[None]:
        try:
            yield
        except DivergedError:
            raise
        except (Interrupted, StorageError, TrainingError, KeyboardInterrupt) as error:
            error.add_note(
                f"kept: {self._keeping.kept}; go on with --resume {shlex.quote(str(self._folder))}"
            )
            raise

    def _trainer(self, part: Partition, snapshot: Snapshot) -> Trainer:
        state = self._state
        if len(state.rates) == part.fold:
            state.rates.append(self._rate(part))
        if state.is_within_fold:
            return self._job.restored_trainer(part, snapshot, self._tell)
        return self._job.new_trainer(part, self._tell)

    def _rate(self, part: Partition) -> float:
        """The fold's learning rate."""
        lr = self._job.training.lr
        if lr != "auto":
            return lr
        tick = self._ticking("finding the rate", n_images_tried(self._job, part))
        try:
            found = find_lr(self._job, part, self._images, tick)
        except DivergedError:
            self._refuse_untrainable(part, is_any=True)  # which would be why
            raise
        with self._ranks.together():
            if self._ranks.is_first:
                figure = write_lr_range(self._folder, found, part, len(self._job.plan))
                self._tell(
                    f"[Fine-Tuning] Learning rate {found.lr:g}, by the range test in {figure.name}"
                )
        return found.lr

    # Training

    def _train(self, trainer: Trainer, part: Partition) -> None:
        """The epochs that are left of a fold."""
        state, training = self._state, self._job.training
        while not is_enough(state.epoch, state.candidate, training):
            epoch = state.epoch + 1
            lr = self._train_epoch(trainer, part, epoch)
            self._refuse_untrainable(part, is_any=state.tally.n_images > 0)
            self._keeping.refuse_spoiled(trainer)  # of such weights nothing can be said
            said, val_loss, val_accuracy = self._validate(trainer, part)
            record = EpochRecord(
                fold=part.fold,
                epoch=epoch,
                loss=state.tally.loss,
                accuracy=state.tally.accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                lr=lr,
            )
            validation = predictions_of(self._job, part, said, "validation")
            score = score_epoch(validation, training)
            new = Candidate(epoch=epoch, score=score, validation=said)
            state.end_epoch(record, choose(state.candidate, new, trainer, training))
            self._keeping.save(trainer)
            line = record.log_line("Fine-Tuning", len(self._job.plan))
            with self._ranks.together():
                if self._ranks.is_first:
                    write_history(self._folder, state.history)
                self._tell_training(part, epoch, len(part.train), line)

    def _train_epoch(self, trainer: Trainer, part: Partition, epoch: int) -> float | None:
        """The steps that are left of an epoch; its last learning rate, if that changes."""
        job, state = self._job, self._state
        batches = shuffled_batches(
            part.train,
            job.training.batch_size,
            seed=job.evaluation.seed,
            fold=part.fold,
            epoch=epoch,
        )
        n_steps = len(batches)
        schedule = Schedule(
            settings=job.training, lr=state.rates[part.fold], n_steps=n_steps * job.training.epochs
        )
        n_done = sum(map(len, batches[: state.step]))
        stream = self._images.stream(
            batches[state.step :],
            lambda n_behind: self._tell_training(part, epoch, n_done + n_behind),
            alter=job.alter(part.fold, epoch),
        )
        with contextlib.closing(stream):
            before_s = time.monotonic()
            for batch in self._ranks.in_step(stream):
                trainer.set_lr(schedule.rate((epoch - 1) * n_steps + state.step))
                step = trainer.step(batch.pixels, self._images.targets[batch.rows])
                if not math.isfinite(step.loss):
                    raise diverged(f"the loss became {step.loss}", state)
                state.take_in(step, time.monotonic() - before_s)
                if self._keeping.is_due():
                    self._keeping.save(trainer)
                before_s = time.monotonic()
        return None if schedule.is_constant else schedule.rate(epoch * n_steps - 1)

    def _refuse_untrainable(self, part: Partition, *, is_any: bool) -> None:
        self._keeping.refuse_lost(
            part.train, "training", "there is nothing to learn from", is_any=is_any
        )

    # Validating and testing

    def _validate(
        self, trainer: Trainer, part: Partition
    ) -> tuple[Said, float | None, float | None]:
        """What is said of the fold's validation rows, with loss and accuracy if there are any."""
        said, log_probabilities = self._ask(trainer, part.validation, "validating")
        if is_deciding(self._job.training, self._job.evaluation):
            self._keeping.refuse_lost(
                part.validation, "validation", "nothing can be chosen or decided by them"
            )
        if not len(said.rows):
            return said, None, None
        truth = self._job.task.targets[said.rows]
        loss = -log_probabilities[np.arange(len(truth)), truth].mean()
        right = log_probabilities.argmax(axis=1) == truth
        return said, float(loss), float(right.mean())

    def _test(self, trainer: Trainer, part: Partition) -> None:
        """Predict the fold's test rows, which ends the fold."""
        assert self._state.candidate is not None
        if self._state.candidate.weights:
            trainer.use(self._state.candidate.weights)
        said, _ = self._ask(trainer, part.test, "testing")
        self._state.end_fold(said)
        # Until the run is written, the last fold's checkpoint must keep its network.
        if self._state.fold < len(self._job.plan):
            self._keeping.save(None)

    def _refuse_untested(self) -> None:
        if not any(len(said.rows) for said in self._state.tested):
            raise DataError(
                "none of the test images can be decoded. The reasons are in "
                f"{self._keeping.write_quarantine()}."
            )

    def _ask(
        self, trainer: Trainer, rows: NDArray[np.int64], stage: str
    ) -> tuple[Said, NDArray[np.float64]]:
        """What the network says of some rows, and the logarithms of its probabilities."""
        if not len(rows):
            none = np.empty((0, len(self._job.task.classes)))
            return Said(rows=rows, probabilities=none), none
        batches = consecutive_batches(rows, self._job.training.batch_size)
        tick = self._ticking(stage, len(rows))
        found, log_probabilities = trainer.log_probabilities(self._images, batches, tick)
        return Said(rows=found, probabilities=np.exp(log_probabilities)), log_probabilities

    # Writing and telling

    def _write(self, trainer: Trainer) -> None:
        """Write the run's files; the checkpoint goes last."""
        result = result_of(self._job, self._state, self._config, trainer, self._keeping.wall_s)
        write_run(self._folder, result)
        remove_checkpoint(self._folder)

    def _tell_training(self, part: Partition, epoch: int, done: int, message: str = "") -> None:
        # Counted over all folds and epochs, so that the time left is the job's.
        sizes = [len(other.train) * self._job.training.epochs for other in self._job.plan]
        behind = sum(sizes[: part.fold]) + len(part.train) * (epoch - 1)
        tally = self._state.tally
        detail = f"loss {tally.loss:.4f}, acc {tally.accuracy:.3f}" if tally.n_images else ""
        self._report(
            Progress(
                stage="training",
                done=behind + done,
                total=sum(sizes),
                message=message,
                detail=detail,
            )
        )

    def _ticking(self, stage: str, total: int) -> Tick:
        return lambda done: self._report(Progress(stage=stage, done=done, total=total))

    def _tell(self, message: str) -> None:
        self._report(Progress(stage="training", done=0, total=0, message=message))

    def _tell_left_out(self) -> None:
        self._tell(
            f"[Fine-Tuning] {len(self._state.failures)} images can't be decoded and are left "
            f"out, with reasons: {self._keeping.write_quarantine()}"
        )
