"""Beginning a fine-tuning, and going on with an interrupted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgfeat.backbones import load_weights
from ecgfeat.config import (
    ComputeSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import ConfigError, RunError
from ecgfeat.finetuning.checkpoints import State, load_checkpoint
from ecgfeat.finetuning.job import (
    Job,
    describe_backbone,
    describe_rows,
    job_from_config,
    manifest_from_config,
)
from ecgfeat.finetuning.running import KIND, Running
from ecgfeat.finetuning.training import Snapshot
from ecgfeat.manifest import Manifest, write_missing
from ecgfeat.runs import Run, create_run, damaged, is_finished, read_config, write_config
from ecgfeat.runtime import Report, resolve_compute, silent

__all__ = ["finetune", "resume_finetune"]


def finetune(
    manifest: Manifest,
    *,
    network: NetworkSettings = NetworkSettings(),
    page: PageSettings = PageSettings(),
    compute: ComputeSettings = ComputeSettings(),
    training: FinetuneSettings = FinetuneSettings(),
    evaluation: EvaluationSettings = EvaluationSettings(),
    out_dir: Path = Path("runs"),
    report: Report = silent,
) -> Run:
    """Train all weights of a network on the images, and test it once at the end.

    An image that can't be decoded is left out, of training and of testing, and listed in the
    run's ``quarantine.csv``.

    Parameters
    ----------
    manifest : Manifest
    network, page, compute, training, evaluation : settings
    out_dir : Path
        Parent of the run's folder.
    report : callable
        Told the progress before every batch, and a log line after every epoch. When it raises
        `Interrupted`, finished epochs are kept; a note on the exception names the folder that
        `resume_finetune` takes.

    Returns
    -------
    Run
        Of kind ``"finetune"``, finished and tested.

    Raises
    ------
    EcgfeatError
        When the training diverges; the last good checkpoint is kept.
    DataError
        When there are too few images to train or to test on.
    WeightsError, ConfigError, DeviceError
        Before anything is written.
    StorageError, Interrupted

    Examples
    --------
    >>> from ecgfeat.config import FinetuneSettings
    >>> manifest = read_manifest("pages/manifest.csv")  # doctest: +SKIP
    >>> run = finetune(manifest, training=FinetuneSettings(lr=1e-4))  # doctest: +SKIP
    """
    backbone = describe_backbone(load_weights(network))
    job = Job(
        manifest=manifest,
        # Resolved: a relative path may lead elsewhere when the run goes on.
        network=replace(network, weights=backbone["weights"]),
        page=page,
        compute=resolve_compute(compute, purpose="train"),
        training=training,
        evaluation=evaluation,
    )
    config = {"backbone": backbone, **job.describe()}
    folder = create_run(out_dir, KIND, manifest.name).resolve()
    config = write_config(folder, KIND, manifest.name, config)
    if manifest.missing:
        write_missing(manifest, folder / "missing.csv")
    return Running(job, folder, config, State(), report).run(Snapshot())


def resume_finetune(
    run_folder: Path, *, manifest: Manifest | None = None, report: Report = silent
) -> Run:
    """Go on with an interrupted fine-tuning, from its last finished epoch.

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
        When the folder is no unfinished fine-tuning, or the data or weights have changed.
    DataError, DeviceError, WeightsError, EcgfeatError, StorageError, Interrupted
        As in `finetune`.
    """
    folder = run_folder.resolve()
    config = _unfinished_config(folder)
    try:
        if manifest is None:
            manifest = manifest_from_config(config)
        job = job_from_config(config, manifest)
        _refuse_changed_rows(config["rows"], manifest, folder)
        state, snapshot = load_checkpoint(folder) or (State(), Snapshot())
        _refuse_changed_weights(config["backbone"], job, state)
    except (ConfigError, KeyError, TypeError) as error:
        raise damaged(
            folder / "config.json", f"a setting is missing or unknown ({error})"
        ) from error
    return Running(job, folder, config, state, report).run(snapshot)


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


def _refuse_changed_rows(begun: Mapping[str, Any], manifest: Manifest, folder: Path) -> None:
    found = describe_rows(manifest)
    if found == begun:
        return
    then, now = (
        f"{rows['train']} training and {rows['test']} test images ({rows['missing']} missing)"
        for rows in (begun, found)
    )
    change = f"then {then}, now {now}" if then != now else f"still {now}, but not the same rows"
    raise RunError(
        f"the data have changed since {folder} was begun: {change}. Put them back as they were "
        "(paths, labels, splits, groups and their order), or start a new run."
    )


def _refuse_changed_weights(begun: Mapping[str, Any], job: Job, state: State) -> None:
    begins_a_network = state.epoch == 0 or state.fold + 1 < len(job.plan)
    if begins_a_network and describe_backbone(load_weights(job.network)) != begun:
        raise RunError(
            f"the weights {job.network.weights} have changed since the run was begun. Put them "
            "back as they were, or start a new run."
        )
