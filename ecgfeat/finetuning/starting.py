"""Beginning a fine-tuning, and going on with an interrupted one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgfeat.backbones import Weights, load_weights
from ecgfeat.config import (
    ComputeSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import ConfigError, DeviceError, RunError
from ecgfeat.finetuning.checkpoints import load_checkpoint
from ecgfeat.finetuning.distributed import Ranks, joined
from ecgfeat.finetuning.from_head import read_head
from ecgfeat.finetuning.job import (
    KIND,
    Job,
    describe_backbone,
    job_from_config,
    manifest_from_config,
)
from ecgfeat.finetuning.locking import sole
from ecgfeat.finetuning.refusing import (
    refuse_changed_beginning,
    refuse_changed_rows,
    refuse_impossible,
)
from ecgfeat.finetuning.running import Running
from ecgfeat.finetuning.snapshots import Snapshot
from ecgfeat.finetuning.state import State
from ecgfeat.manifest import Manifest, write_missing
from ecgfeat.runs import Run, create_run, damaged, is_finished, read_config, write_config
from ecgfeat.runtime import Compute, Report, resolve_compute, silent

__all__ = ["finetune", "resume_finetune"]


def finetune(
    manifest: Manifest,
    *,
    network: NetworkSettings = NetworkSettings(),
    page: PageSettings = PageSettings(),
    compute: ComputeSettings = ComputeSettings(),
    training: FinetuneSettings = FinetuneSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(),
    from_head: Path | None = None,
    out_dir: Path = Path("runs"),
    recipe: str = "",
    report: Report = silent,
) -> Run:
    """Train all weights of a network on the images, and test it once at the end.

    An image that can't be decoded is left out, of training and of testing, and listed in the
    run's ``quarantine.csv``.

    Parameters
    ----------
    manifest : Manifest
    network, page, compute, training, evaluation : settings
    from_head : Path, optional
        Run of a fitted head that the last layer begins as. Where `network` and `page` are left
        at their defaults, the head's own are taken.
    out_dir : Path
        Parent of the run's folder.
    recipe : str
        Name of the recipe that the settings began as, for ``config.json``; the settings decide.
    report : callable
        Told the progress before every batch, and a log line after every epoch. When it raises
        `Interrupted`, every step that was done is kept; a note on the exception names the folder
        that `resume_finetune` takes.

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
    >>> manifest = read_manifest("pages/manifest.csv")  # doctest: +SKIP
    >>> run = finetune(manifest, training=FinetuneSettings(lr=1e-4))  # doctest: +SKIP
    """
    resolved = resolve_compute(compute, purpose="train")
    with joined(resolved.device) as ranks:
        # Which precision is fast is measured, and may come out otherwise in each process.
        resolved = ranks.gathered(resolved)[0]
        head = None if from_head is None else read_head(from_head)
        if head is not None:
            network, page = head.adopt(network, page)
        weights = load_weights(network)
        job = Job(
            manifest=manifest,
            # Resolved: a relative path may lead elsewhere when the run goes on.
            network=replace(network, weights=weights.name),
            page=page,
            compute=_with_own_threads(resolved, compute),
            training=training,
            evaluation=evaluation,
            from_head=None if head is None else head.run.path.resolve(),
            ranks=ranks,
        )
        refuse_impossible(job, weights)
        folder, config = _begin(job, weights, out_dir, recipe)
        with _sole(ranks, folder):
            return Running(job, folder, config, State(), report).run(Snapshot())


def _with_own_threads(compute: Compute, asked: ComputeSettings) -> Compute:
    """By default the processes of a machine share its cores."""
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked.threads or n_processes == 1:
        return compute
    return replace(compute, threads=max(1, compute.threads // n_processes))


def _begin(job: Job, weights: Weights, out_dir: Path, recipe: str) -> tuple[Path, dict[str, Any]]:
    """Make the run's folder; the first process does, for all."""
    begun: tuple[Path, dict[str, Any]] | None = None
    with job.ranks.together():
        if job.ranks.is_first:
            name = job.manifest.name
            folder = create_run(out_dir, KIND, name).resolve()
            backbone = describe_backbone(weights)
            config = {"recipe": recipe, "backbone": backbone, **job.describe()}
            begun = folder, write_config(folder, KIND, name, config)
            if job.manifest.missing:
                write_missing(job.manifest, folder / "missing.csv")
    found = job.ranks.gathered(begun)[0]
    assert found is not None
    return found


@contextlib.contextmanager
def _sole(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Keep others from going on with the run; the first process does, for all."""
    with contextlib.ExitStack() as held:
        with ranks.together():
            if ranks.is_first:
                held.enter_context(sole(folder))
        yield


def resume_finetune(
    run_folder: Path, *, manifest: Manifest | None = None, report: Report = silent
) -> Run:
    """Go on with an interrupted fine-tuning, from its last checkpoint.

    Parameters
    ----------
    run_folder : Path
        Its settings are the run's own; none can be changed.
    manifest : Manifest, optional
        The run's images, where they were not simply what the data listed; by default the data
        are listed again as they were at the start.
    report : callable
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
    folder = run_folder.resolve()
    config = _unfinished_config(folder)
    with _naming_damage(folder):
        compute = _same_compute(config, folder)
    with joined(compute.device) as ranks, _sole(ranks, folder):
        config = _unfinished_config(folder)  # perhaps somebody else has just finished it
        with _naming_damage(folder):
            if manifest is None:
                manifest = manifest_from_config(config)
            job = job_from_config(config, manifest, compute, ranks)
            refuse_changed_rows(config["rows"], manifest, folder)
            state, snapshot = load_checkpoint(folder) or (State(), Snapshot())
            if not state.is_within_fold or state.fold + 1 < len(job.plan):
                refuse_changed_beginning(config, job)
        return Running(job, folder, config, state, report).run(snapshot)


def _same_compute(config: dict[str, Any], folder: Path) -> Compute:
    """The device and precision that the run was begun with."""
    settings = ComputeSettings(**config["compute"])
    try:
        return resolve_compute(settings, purpose="train")
    except DeviceError as error:
        raise DeviceError(
            f"{folder} was begun with --device {settings.device} --precision "
            f"{settings.precision}, which this machine doesn't have, and a run goes on as it was "
            "begun. Go on with it where there is one, or start a new run."
        ) from error


@contextlib.contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ConfigError, KeyError, TypeError) as error:
        raise damaged(
            folder / "config.json", f"a setting is missing or unknown ({error})"
        ) from error


def _unfinished_config(folder: Path) -> dict[str, Any]:
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
    return config
