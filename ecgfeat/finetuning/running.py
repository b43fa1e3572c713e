"""A fine-tuning under way: epochs, checkpoints, tests, fold by fold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ecgfeat.errors import DataError, Interrupted, StorageError
from ecgfeat.files import write_csv
from ecgfeat.finetuning.checkpoints import State, Tested, remove_checkpoint, save_checkpoint
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.streaming import Tick, consecutive_batches, shuffled_batches
from ecgfeat.finetuning.training import Snapshot, Tally, Trainer
from ecgfeat.images import DECODER
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition
from ecgfeat.runs import Cost, EpochRecord, Result, Run, append_history, write_run
from ecgfeat.runtime import Progress, Report, peak_memory_mib

__all__ = ["KIND", "Running"]

KIND = "finetune"


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
        self._folder = folder
        self._config = config
        self._state = state
        self._report = report
        self._images = job.images(state.failures)
        self._started_s = time.monotonic() - state.wall_s

    def run(self, snapshot: Snapshot) -> Run:
        """Do what is left; `snapshot` is of the network under way, if it has had an epoch."""
        with self._naming_the_way_on():
            for part in self._job.plan[self._state.fold :]:
                if self._state.epoch:
                    trainer = self._job.restored_trainer(snapshot)
                else:
                    trainer = self._job.new_trainer()
                self._train(trainer, part)
                self._test(trainer, part)
            result = self._result(trainer)
            if self._state.failures:
                self._tell_left_out()
            run = write_run(self._folder, result)
            remove_checkpoint(self._folder)
        return run

    @contextlib.contextmanager
    def _naming_the_way_on(self) -> Iterator[None]:
        try:
            yield
        except (Interrupted, StorageError, KeyboardInterrupt) as error:
            error.add_note(
                f"finished epochs kept: {len(self._state.history)}; go on with "
                f"--resume {self._folder}"
            )
            raise

    def _train(self, trainer: Trainer, part: Partition) -> None:
        """The epochs that are left of a fold."""
        settings, state = self._job.training, self._state
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            batches = shuffled_batches(
                part.train,
                settings.batch_size,
                seed=self._job.evaluation.seed,
                fold=part.fold,
                epoch=epoch,
            )
            tell = partial(self._tell_training, part, epoch)
            started_s = time.monotonic()
            tally = trainer.train(self._images, batches, tell)
            state.training_s += time.monotonic() - started_s
            state.n_trained += tally.n_images
            self._refuse_too_few(part, tally)
            val_loss, val_accuracy = self._validate(trainer, part)
            record = EpochRecord(
                fold=part.fold,
                epoch=epoch,
                loss=tally.loss,
                accuracy=tally.accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
            )
            state.history.append(record)
            state.epoch = epoch
            self._save(trainer.snapshot())
            append_history(self._folder, record)
            tell(len(part.train), record.log_line("Fine-Tuning", len(self._job.plan)))

    def _tell_training(self, part: Partition, epoch: int, done: int, message: str = "") -> None:
        # Counted over all folds and epochs, so that the time left is the job's.
        sizes = [len(other.train) * self._job.training.epochs for other in self._job.plan]
        behind = sum(sizes[: part.fold]) + len(part.train) * (epoch - 1)
        self._report(
            Progress(stage="training", done=behind + done, total=sum(sizes), message=message)
        )

    def _ticking(self, stage: str, total: int) -> Tick:
        return lambda done: self._report(Progress(stage=stage, done=done, total=total))

    def _refuse_too_few(self, part: Partition, tally: Tally) -> None:
        decoded = ~np.isin(part.train, list(self._state.failures))
        targets = self._job.task.targets[part.train]
        lost = np.setdiff1d(targets, targets[decoded])
        if tally.n_images and not len(lost):
            return
        names = ", ".join(repr(self._job.task.classes[index]) for index in lost)
        path = self._write_quarantine()
        raise DataError(
            f"{(~decoded).sum()} of {len(decoded)} training images can't be decoded, "
            f"{f'all of {names}' if names else 'too many'}: there is nothing to learn from. "
            f"The reasons are in {path}."
        )

    def _validate(self, trainer: Trainer, part: Partition) -> tuple[float | None, float | None]:
        """Loss and accuracy over the fold's validation rows; None where there are none."""
        if not len(part.validation):
            return None, None
        batches = consecutive_batches(part.validation, self._job.training.batch_size)
        tick = self._ticking("validating", len(part.validation))
        rows, log_probabilities = trainer.log_probabilities(self._images, batches, tick)
        if not len(rows):
            return None, None
        truth = self._job.task.targets[rows]
        loss = -log_probabilities[np.arange(len(rows)), truth].mean()
        right = log_probabilities.argmax(axis=1) == truth
        return float(loss), float(right.mean())

    def _test(self, trainer: Trainer, part: Partition) -> None:
        """Predict the fold's test rows, which ends the fold."""
        batches = consecutive_batches(part.test, self._job.training.batch_size)
        tick = self._ticking("testing", len(part.test))
        rows, log_probabilities = trainer.log_probabilities(self._images, batches, tick)
        self._state.tested.append(Tested(rows=rows, probabilities=np.exp(log_probabilities)))
        self._state.epoch = 0
        # Until the run is written, the last fold's checkpoint must keep its network.
        if self._state.fold < len(self._job.plan):
            self._save(Snapshot())

    def _save(self, snapshot: Snapshot) -> None:
        self._state.wall_s = time.monotonic() - self._started_s
        save_checkpoint(self._folder, self._state, snapshot)

    def _write_quarantine(self) -> Path:
        path = self._folder / "quarantine.csv"
        paths = self._job.manifest.paths
        failures = sorted(self._state.failures.items())
        rows = [(paths[row], failure.reason, failure.n_bytes) for row, failure in failures]
        write_csv(path, [("path", "reason", "n_bytes"), *rows])
        return path

    def _tell_left_out(self) -> None:
        message = (
            f"[Fine-Tuning] {len(self._state.failures)} images can't be decoded and are left "
            f"out, with reasons: {self._write_quarantine()}"
        )
        self._report(Progress(stage="testing", done=0, total=0, message=message))

    def _result(self, trainer: Trainer) -> Result:
        job, state = self._job, self._state
        is_cv = bool(job.evaluation.cv)
        return Result(
            kind=KIND,
            data_name=job.manifest.name,
            config={**self._config, "n_quarantined": len(state.failures)},
            history=tuple(state.history),
            predictions=self._predictions(),
            n_test_total=len(job.manifest) if is_cv else job.manifest.splits.count("test"),
            cost=Cost(
                wall_s=time.monotonic() - self._started_s,
                features_s=0.0,
                images_per_s=state.n_trained / state.training_s,
                peak_memory_mib=peak_memory_mib(),
                arch=job.network.arch,
                batch_size=job.training.batch_size,
                device=job.compute.device,
                precision=job.compute.precision,
            ),
            model={} if is_cv else trainer.weights(),
            model_card={
                "backbone": self._config["backbone"],
                "preprocessing": self._config["preprocessing"],
                "precision": job.compute.precision,
                "decoder": DECODER,
            },
        )

    def _predictions(self) -> Predictions:
        job = self._job
        tested = self._state.tested
        if not any(len(fold.rows) for fold in tested):
            raise DataError(
                "none of the test images can be decoded. The reasons are in "
                f"{self._write_quarantine()}."
            )
        return join(
            [
                Predictions.of_rows(
                    fold.rows,
                    fold.probabilities,
                    ids=job.manifest.paths,
                    groups=job.manifest.groups,
                    classes=job.task.classes,
                    targets=job.task.targets,
                    split=part.split,
                    fold=part.fold,
                )
                for part, fold in zip(job.plan, tested)
            ]
        )
