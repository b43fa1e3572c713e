"""A fine-tuning under way: epochs, checkpoints, tests, fold by fold."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.architectures import family_of
from ecgfeat.backbones import Weights, load_weights
from ecgfeat.calibration import Decision, decide
from ecgfeat.config import (
    DEFAULT_RECIPE,
    ComputeSettings,
    EvaluationSettings,
    FigureSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
    RecipeSettings,
)
from ecgfeat.errors import (
    ConfigError,
    DataError,
    DeviceError,
    DivergedError,
    Interrupted,
    RunError,
    StorageError,
    TrainingError,
)
from ecgfeat.files import write_csv
from ecgfeat.finetuning.checkpoint import (
    Candidate,
    Said,
    State,
    load_checkpoint,
    refuse_other_state,
    remove_checkpoint,
    save_checkpoint,
)
from ecgfeat.finetuning.distributed import Ranks, joined
from ecgfeat.finetuning.from_head import read_head
from ecgfeat.finetuning.job import (
    KIND,
    Begun,
    Job,
    describe_backbone,
    is_deciding,
    refuse_changed_beginning,
    refuse_changed_rows,
    refuse_impossible,
)
from ecgfeat.finetuning.lr_range import find_lr, n_images_tried, write_lr_range
from ecgfeat.finetuning.trainer import (
    Schedule,
    Snapshot,
    Tick,
    Trainer,
    consecutive_batches,
    shuffled_batches,
)
from ecgfeat.images import Remarks, decoder_of
from ecgfeat.locking import hold
from ecgfeat.manifest import Manifest, read_manifest, write_missing
from ecgfeat.metrics import METRICS, score_values
from ecgfeat.predictions import Predictions, join
from ecgfeat.protocol import Partition
from ecgfeat.runs import (
    Cost,
    EpochRecord,
    EventFiles,
    Likeness,
    Result,
    Run,
    count_classes,
    create_run,
    damaged,
    ignore,
    is_finished,
    open_run,
    read_config,
    refuse_without_tensorboard,
    write_config,
    write_history,
    write_run,
)
from ecgfeat.runtime import Compute, Progress, Report, peak_memory_mib, resolve_compute, silent

__all__ = [
    "Keeping",
    "Running",
    "choose",
    "diverged",
    "finetune",
    "is_enough",
    "predictions_of",
    "result_of",
    "resume_finetune",
    "score_epoch",
    "sole",
]


MOST_MEASURED = 1024
"""Training rows, evenly spaced, that go through the trained network once more: few beside what
training takes, and of as many new images like them one or two lie beyond the farthest."""


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
    on_written : callable
        Given the finished run before its figures are drawn, in the first process.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        config: dict[str, Any],
        state: State,
        report: Report,
        on_written: Callable[[Run], None] = ignore,
    ) -> None:
        self._job = job
        self._ranks = job.ranks
        self._folder = folder
        self._config = config
        self._state = state
        self._report = report
        self._on_written = on_written
        self._images = job.images(state.failures)
        self._keeping = Keeping(job, folder, state)
        self._events = EventFiles(folder, len(job.plan)) if job.training.tensorboard else None
        self._likeness: Likeness | None = None
        self._told: set[str] = set()

    def run(self, snapshot: Snapshot) -> Run:
        """Do what is left; `snapshot` is of the network under way, if it has had a step."""
        with self._naming_the_way_on():
            # A kill may have come between a checkpoint and its curves.
            self._ranks.first_does(self._write_curves)
            for part in self._job.plan[self._state.fold :]:
                trainer = self._trainer(part, snapshot)
                try:
                    self._train(trainer, part)
                    self._test(trainer, part)
                except Interrupted:
                    self._keeping.save(trainer)
                    raise
            if self._state.failures:
                self._tell_left_out()
            self._refuse_untested()
            self._ranks.first_does(lambda: self._write(trainer))
        return open_run(self._folder)

    @contextlib.contextmanager
    def _naming_the_way_on(self) -> Iterator[None]:
        try:
            yield
        except DivergedError:
            raise
        except (Interrupted, StorageError, TrainingError, KeyboardInterrupt) as error:
            error.add_note(f"kept: {self._keeping.kept}; to go on:")
            error.add_note(f"ecgfeat finetune --resume {shlex.quote(str(self._folder))}")
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
        n_folds, look = len(self._job.plan), self._job.figures
        shown = self._ranks.first_does(
            lambda: write_lr_range(self._folder, found, part, n_folds, look)
        )
        self._tell(f"[Fine-Tuning] Learning rate {found.lr:g}, by the range test in {shown}")
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
            self._ranks.first_does(self._write_curves)
            with self._ranks.together():
                self._tell_training(part, epoch, len(part.train), line)
            self._tell_remarks("training")

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
        self._images.remarks.clear()
        said, _ = self._ask(trainer, part.test, "testing")
        self._keeping.share_failures()  # each process has met those of its own share
        self._tell_remarks("test")
        if not self._job.evaluation.cv:
            self._likeness = self._measure(trainer, part)
        self._state.end_fold(said)
        # Until the run is written, the last fold's checkpoint must keep its network.
        if self._state.fold < len(self._job.plan):
            self._keeping.save(None)

    def _measure(self, trainer: Trainer, part: Partition) -> Likeness | None:
        """What new images are held against: training rows' features, as a test has them.

        Of all layers, for the last one of a trained network has room for its classes alone: strange
        pages lie among them.
        """
        rows = part.train[:: -(-len(part.train) // MOST_MEASURED)]
        found, X = trainer.features(
            self._images,
            consecutive_batches(rows, self._job.training.batch_size),
            self._ticking("measuring", len(rows)),
            parts=[stage[-1] for stage in family_of(self._job.network.arch).stages],
        )
        if len(found) < 2 or not np.isfinite(X).all():
            return None
        return Likeness.of(X, np.arange(len(X)))

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
        result = result_of(
            self._job, self._state, self._config, trainer, self._likeness, self._keeping.wall_s
        )
        write_run(self._folder, result, look=self._job.figures, on_written=self._on_written)
        remove_checkpoint(self._folder)

    def _write_curves(self) -> None:
        """What the finished epochs gave, for whoever watches."""
        history = self._state.history
        if history or (self._folder / "history.csv").exists():
            write_history(self._folder, history)
            if self._events is not None:
                self._events.write(history, self._state.rates)

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
        with self._ranks.together():
            self._report(Progress(stage="training", done=0, total=0, message=message))

    def _tell_remarks(self, kind: str) -> None:
        """What is odd about the training or the test images, once each."""
        if kind in self._told:
            return
        self._told.add(kind)
        remarks = Remarks.of(self._ranks.gathered(self._images.remarks))
        if cleaning := remarks.on_cleaning(self._job.preprocessing):
            self._tell(f"[Fine-Tuning] Of the {kind} images, {cleaning}")
        for line in remarks.in_words(self._job.manifest.paths):
            self._tell(f"[Fine-Tuning] warning: of the {kind} images, {line}")

    def _tell_left_out(self) -> None:
        self._tell(
            f"[Fine-Tuning] {len(self._state.failures)} images can't be decoded and are left "
            f"out, with reasons: {self._keeping.write_quarantine()}"
        )


def finetune(
    manifest: Manifest | str | Path,
    *,
    network: NetworkSettings | None = None,
    page: PageSettings | None = None,
    compute: ComputeSettings = ComputeSettings(),
    training: FinetuneSettings | None = None,
    evaluation: EvaluationSettings = EvaluationSettings(),
    figures: FigureSettings = FigureSettings(),
    from_head: Run | str | Path | None = None,
    out_dir: str | Path = "runs",
    recipe: str = DEFAULT_RECIPE,
    report: Report = silent,
    on_written: Callable[[Run], None] = ignore,
) -> Run:
    """Train all weights of a network on the images, and test it once at the end.

    An image that can't be decoded is left out, of training and of testing, and listed in the
    run's ``quarantine.csv``.

    Parameters
    ----------
    manifest : Manifest, str or Path
        What `read_manifest` gives, or takes.
    page, training : settings, optional
        The recipe's by default; `page` with `from_head` the head's.
    network : settings, optional
        With `from_head` the head's by default.
    compute, evaluation, figures : settings
    from_head : Run, str or Path, optional
        Run of a fitted head that the last layer begins as. Another network or page than its own
        is refused.
    out_dir : str or Path
        Parent of the run's folder.
    recipe : str
        Name of the recipe that the settings are taken from, for ``config.json``.
    report : callable
        Told the progress before every batch, and a log line after every epoch. When it raises
        `Interrupted`, every step that was done is kept; a note on the exception names the folder
        that `resume_finetune` takes.
    on_written : callable, optional
        Given the run once its results are written, before its figures are drawn; under
        ``torchrun`` in the first process alone.

    Returns
    -------
    Run
        Of kind ``"finetune"``, finished and tested.

    Raises
    ------
    DivergedError
        When the loss or a weight stops being finite; the last good checkpoint is kept.
    TrainingError
        When memory doesn't do for two images, or another process of the training failed.
    DataError
        When there are too few images to train, to validate or to test on; before anything is
        written, unless they are too few because they can't be decoded.
    WeightsError, ConfigError, DeviceError
        Before anything is written.
    RunError
        When the head doesn't fit the network, the data or the folds.
    StorageError, Interrupted

    Notes
    -----
    Under ``torchrun`` every process calls this; they share the work of one run, and all return it.

    Examples
    --------
    >>> from ecgfeat.config import FinetuneSettings
    >>> run = finetune("pages", training=FinetuneSettings(lr=1e-4))  # doctest: +SKIP
    """
    chosen = RecipeSettings().chosen(recipe)
    training = training or chosen.training
    head = None if from_head is None else read_head(from_head)
    network = network or (head.network if head else NetworkSettings())
    page = page or (head.page if head else chosen.page)
    if head is not None:
        head.refuse_other(network, page)
    if training.tensorboard:
        refuse_without_tensorboard()
    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest)
    manifest.refuse_inside(Path(out_dir), "--out")
    resolved = resolve_compute(compute, purpose="train")
    with joined(resolved.device) as ranks:
        # Which precision is fast is measured, and may come out otherwise in each process.
        resolved = ranks.gathered(resolved)[0]
        if page.clean != "none" and training.augment == "photo":
            mend = (
                "give one of the two"
                if head is None
                else "leave the first out, as the head was fitted with the second"
            )
            raise ConfigError(
                "--augment photo photographs the pages after --clean photo has made scans of "
                f"them: {mend}"
            )
        weights = load_weights(network)
        if weights.note:
            report(Progress(stage="training", done=0, total=0, message=weights.note))
        job = Job(
            manifest=manifest,
            # Resolved: a relative path may lead elsewhere when the run goes on.
            network=replace(network, weights=weights.name),
            page=page,
            compute=_with_own_threads(resolved, compute),
            training=training,
            evaluation=evaluation,
            figures=figures,
            from_head=None if head is None else head.run.path.resolve(),
            ranks=ranks,
        )
        refuse_impossible(job, weights)
        # Now, and not after hours; on every rank, so that none waits for one that has stopped.
        for line in job.leaks.refuse(manifest.source, allowed=evaluation.allow_leak):
            report(Progress(stage="training", done=0, total=0, message=f"warning: {line}"))
        folder, config = _begin(job, weights, Path(out_dir), recipe)
        with _sole(ranks, folder):
            return Running(job, folder, config, State(), report, on_written).run(Snapshot())


def _with_own_threads(compute: Compute, asked: ComputeSettings) -> Compute:
    """By default the processes of a machine share its cores."""
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or "1")
    if asked.threads or n_processes == 1:
        return compute
    return replace(compute, threads=max(1, compute.threads // n_processes))


def _begin(job: Job, weights: Weights, out_dir: Path, recipe: str) -> tuple[Path, dict[str, Any]]:
    """Make the run's folder; the first process does, for all."""

    def begin() -> tuple[Path, dict[str, Any]]:
        name = job.manifest.name
        folder = create_run(out_dir, KIND, name).resolve()
        backbone = describe_backbone(weights)
        config = {"recipe": recipe, "backbone": backbone, **job.describe()}
        if job.manifest.missing:
            write_missing(job.manifest, folder / "missing.csv")
        return folder, write_config(folder, KIND, name, config)

    return job.ranks.first_does(begin)


@contextlib.contextmanager
def _sole(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Keep others from going on with the run; the first process does, for all."""
    with contextlib.ExitStack() as held:
        ranks.first_does(lambda: held.enter_context(sole(folder)))
        yield


def resume_finetune(
    run_folder: str | Path,
    *,
    manifest: Manifest | None = None,
    report: Report = silent,
    on_written: Callable[[Run], None] = ignore,
) -> Run:
    """Go on with an interrupted fine-tuning, from its last checkpoint.

    Parameters
    ----------
    run_folder : str or Path
        Its settings are the run's own; none can be changed.
    manifest : Manifest, optional
        The run's images, where they were not simply what the data listed; by default the data
        are listed again as they were at the start.
    report, on_written : callable
        As in `finetune`.

    Returns
    -------
    Run

    Raises
    ------
    RunError
        When the folder is no unfinished fine-tuning, another process is at it, or the data, the
        weights or the head have changed.
    DataError, DeviceError, WeightsError, TrainingError, StorageError, Interrupted
        As in `finetune`.
    """
    folder = Path(run_folder).resolve()
    config, begun = _unfinished(folder)
    if begun.training.tensorboard:
        refuse_without_tensorboard()
    compute = _same_compute(begun.compute, folder)
    with joined(compute.device) as ranks, _sole(ranks, folder):
        config, begun = _unfinished(folder)  # perhaps somebody else has just finished it
        if manifest is None:
            manifest = read_manifest(begun.data, begun.source)
        job = begun.job(manifest, compute, ranks)
        refuse_changed_rows(begun.rows, manifest, folder)
        state, snapshot = load_checkpoint(folder) or (State(), Snapshot())
        refuse_other_state(state, job, folder)
        if not state.is_within_fold or state.fold + 1 < len(job.plan):
            refuse_changed_beginning(begun, job)
        return Running(job, folder, config, state, report, on_written).run(snapshot)


def _same_compute(settings: ComputeSettings, folder: Path) -> Compute:
    """The device and precision that the run was begun with."""
    try:
        return resolve_compute(settings, purpose="train")
    except DeviceError as error:
        raise DeviceError(
            f"{folder} was begun with --device {settings.device} --precision "
            f"{settings.precision}, which this machine doesn't have, and a run goes on as it was "
            "begun. Go on with it where there is one, or start a new run."
        ) from error


def _unfinished(folder: Path) -> tuple[dict[str, Any], Begun]:
    if not (folder / "config.json").exists():
        raise RunError(
            f"{folder} is no run: it has no config.json. Give a folder that finetune made."
        )
    config = read_config(folder)
    if config.get("kind") != KIND:
        raise RunError(
            f"{folder} is a run of kind {config.get('kind')!r}, and only a fine-tuning can be "
            "resumed. Fitting a head takes seconds: run its command again."
        )
    if is_finished(folder):
        raise RunError(
            f"{folder} is finished: there is nothing left to resume. To train longer or "
            "otherwise, start a new run."
        )
    try:
        return config, Begun.of(config)
    except ValueError as error:
        raise damaged(folder / "config.json", str(error)) from error


def choose(
    best: Candidate | None,
    new: Candidate,
    trainer: Trainer,
    training: FinetuneSettings,
) -> Candidate:
    """The better of the best epoch so far and the one just ended; the earlier where equal."""
    if training.choose_by == "last":
        return new
    sign = -1 if METRICS[training.choose_by].is_loss else 1
    assert new.score is not None
    if best is not None and best.score is not None and sign * new.score <= sign * best.score:
        return best
    return replace(new, weights=trainer.weights())


def score_epoch(validation: Predictions, training: FinetuneSettings) -> float | None:
    """What an epoch is chosen by; None where simply the last one is taken."""
    if training.choose_by == "last":
        return None
    return score_values(validation)[training.choose_by]


def is_enough(epoch: int, best: Candidate | None, training: FinetuneSettings) -> bool:
    """Whether a fold's training is over after `epoch` epochs."""
    if epoch == training.epochs:
        return True
    if not training.patience or best is None:
        return False
    return epoch - best.epoch >= training.patience


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
        """Whether the last checkpoint is old enough for another, by any process's clock."""
        minutes = self._job.training.checkpoint_minutes
        if not minutes:
            return False
        is_old = time.monotonic() - self._saved_s > 60 * minutes
        (n_old,) = self._ranks.totals(is_old)
        return n_old > 0

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
        self._ranks.first_does(
            lambda: save_checkpoint(
                self._folder, state, trainer.snapshot() if trainer else Snapshot()
            )
        )
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
        """List those images with their reasons; returns where. All processes call it."""
        path = self._folder / "quarantine.csv"
        paths = self._job.manifest.paths
        failures = sorted(self._state.failures.items())
        rows = [(paths[row], failure.reason, failure.n_bytes) for row, failure in failures]
        self._ranks.first_does(lambda: write_csv(path, [("path", "reason", "n_bytes"), *rows]))
        return path


def diverged(what: str, state: State) -> DivergedError:
    """The error that says so, with advice."""
    lr = state.rates[state.fold]
    return DivergedError(
        f"{what}: the training diverged. Start a new run with a lower --lr (this one has "
        f"{lr:g}; try {lr / 10:g}), or with --warmup 0.1 or --clip 1."
    )


def predictions_of(job: Job, part: Partition, said: Said, split: str) -> Predictions:
    """What was said, beside the truth."""
    return Predictions.of_rows(
        said.rows,
        said.probabilities,
        ids=job.manifest.paths,
        groups=job.manifest.groups,
        classes=job.task.classes,
        targets=job.task.targets,
        split=split,
        fold=part.fold,
    )


def result_of(
    job: Job,
    state: State,
    config: dict[str, Any],
    trainer: Trainer,
    likeness: Likeness | None,
    wall_s: float,
) -> Result:
    """Put together what the folds gave.

    Parameters
    ----------
    job : Job
    state : State
        Every fold is finished.
    config : dict
        What ``config.json`` holds.
    trainer : Trainer
        The last fold's, with the weights that were tested.
    likeness : Likeness or None
    wall_s : float
    """
    is_cv = bool(job.evaluation.cv)
    validated = [
        predictions_of(job, part, candidate.validation, "validation")
        for part, candidate in zip(job.plan, state.chosen)
    ]
    tested = [
        predictions_of(job, part, said, part.split) for part, said in zip(job.plan, state.tested)
    ]
    decisions = _decisions(job, validated)
    if decisions:
        validated, tested = (
            [decision.apply(said) for decision, said in zip(decisions, predictions)]
            for predictions in (validated, tested)
        )
    return Result(
        kind=KIND,
        data_name=job.manifest.name,
        config={**config, "n_quarantined": len(state.failures)},
        history=tuple(state.history),
        predictions=join(tested),
        n_test_total=len(job.manifest) if is_cv else job.manifest.splits.count("test"),
        cost=Cost(
            wall_s=wall_s,
            features_s=0.0,
            images_per_s=state.n_trained / state.training_s,
            peak_memory_mib=peak_memory_mib(),
            arch=job.network.arch,
            batch_size=job.training.batch_size,
            device=job.compute.device,
            precision=job.compute.precision,
        ),
        model={} if is_cv else {k: v.numpy() for k, v in trainer.weights().items()},
        model_card={
            "backbone": config["backbone"],
            "preprocessing": config["preprocessing"],
            "precision": job.compute.precision,
            "decoder": decoder_of(job.manifest.paths, job.page.dpi),
        },
        decisions=decisions,
        validation=join(validated) if any(map(len, validated)) else None,
        choice=_choice(job, state),
        prevalence=job.evaluation.prevalence,
        training_counts=count_classes(job.plan, job.task),
        likeness=likeness,
        notices=job.leaks.refuse(job.manifest.source, allowed=True),
    )


def _decisions(job: Job, validated: Sequence[Predictions]) -> list[Decision]:
    """From probabilities to answers, fold by fold; empty where nothing is asked for."""
    evaluation = job.evaluation
    if not evaluation.is_deciding:
        return []
    return [decide(said, method="temperature", settings=evaluation) for said in validated]


def _choice(job: Job, state: State) -> dict[str, Any]:
    """Which epoch was tested and at which rate it was trained, by fold, where that was chosen."""
    training, words = job.training, []
    choice: dict[str, Any] = {}
    if training.choose_by != "last":
        choice["by"] = training.choose_by
        choice["epoch"] = [candidate.epoch for candidate in state.chosen]
        choice["score"] = [candidate.score for candidate in state.chosen]
        words.append(f"epoch {_listed(choice['epoch'])} by {training.choose_by} on validation rows")
    if training.lr == "auto":
        choice["lr"] = list(state.rates)
        words.append(f"learning rate {_listed(state.rates)} by a range test on training rows")
    return {"words": "; ".join(words), **choice} if words else {}


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only one to go on with the run.

    Raises
    ------
    RunError
        When another process is at it; the message says who.
    StorageError
    """

    def refusal(who: str, remedy: str) -> RunError:
        return RunError(
            f"{folder} is being worked on by {who}. Wait for it to end, or stop it first. "
            f"{remedy}".rstrip()
        )

    with hold(folder / ".lock", refusal):
        yield
