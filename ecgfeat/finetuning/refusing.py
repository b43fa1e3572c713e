"""Refusing what would fail after hours, or go on otherwise than it began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgfeat.backbones import Weights, load_weights
from ecgfeat.calibration import refuse_undecidable
from ecgfeat.config import EvaluationSettings, FinetuneSettings
from ecgfeat.errors import ConfigError, DataError, RunError
from ecgfeat.finetuning.choosing import is_deciding
from ecgfeat.finetuning.distributed import Ranks
from ecgfeat.finetuning.job import Job, describe_backbone, describe_rows
from ecgfeat.manifest import Manifest
from ecgfeat.protocol import refuse_thin_validation

__all__ = ["refuse_changed_beginning", "refuse_changed_rows", "refuse_impossible"]


def refuse_impossible(job: Job, weights: Weights) -> None:
    """Refuse what the options, the data or the head don't allow.

    Raises
    ------
    ConfigError, DataError, WeightsError, RunError
    """
    training, evaluation = job.training, job.evaluation
    _refuse_unchoosable(training, evaluation)
    _refuse_thin_shares(training, job.ranks)
    refuse_undecidable(
        evaluation,
        n_classes=len(job.task.classes),
        has_validation=bool(evaluation.val_fraction),
    )
    _refuse_differing_rows(job.manifest, job.ranks)
    plan = job.plan
    if is_deciding(training, evaluation):
        refuse_thin_validation(plan, job.task)
    if job.head is not None:
        job.head.refuse_misfit(
            weights=weights,
            preprocessing=job.preprocessing,
            classes=job.task.classes,
            evaluation=evaluation,
            manifest=job.manifest,
            plan=plan,
        )


def _refuse_unchoosable(training: FinetuneSettings, evaluation: EvaluationSettings) -> None:
    if training.choose_by != "last" and not evaluation.val_fraction:
        raise ConfigError(
            f"--choose-by {training.choose_by} needs validation rows, and there are none: also "
            "give --val-fraction, such as 0.2"
        )


def _refuse_thin_shares(training: FinetuneSettings, ranks: Ranks) -> None:
    least = 2 * training.accumulate * ranks.n_ranks
    if training.batch_size < least:
        parts = f" in {training.accumulate} parts" if training.accumulate > 1 else ""
        raise ConfigError(
            f"--batch-size {training.batch_size}, shared by {ranks.n_ranks} processes{parts}, "
            f"leaves fewer than 2 images for each: give at least {least}, or start fewer processes"
        )


def _refuse_differing_rows(manifest: Manifest, ranks: Ranks) -> None:
    """Refuse to go out of step: each process lists the data itself."""
    first, *others = ranks.gathered(describe_rows(manifest))
    for number, rows in enumerate(others, start=2):
        if rows != first:
            raise DataError(
                f"the processes of this training don't see the same data: the first has "
                f"{_in_words(first)}, process {number} has {_in_words(rows)}. Every machine must "
                "see the same list and the same files."
            )


def _in_words(rows: Mapping[str, Any]) -> str:
    return f"{rows['train']} training and {rows['test']} test images ({rows['missing']} missing)"


def refuse_changed_rows(begun: Mapping[str, Any], manifest: Manifest, folder: Path) -> None:
    """Refuse to go on with other rows than the run was begun with.

    Raises
    ------
    RunError
    """
    found = describe_rows(manifest)
    if found == begun:
        return
    then, now = _in_words(begun), _in_words(found)
    change = f"then {then}, now {now}" if then != now else f"still {now}, but not the same rows"
    raise RunError(
        f"the data have changed since {folder} was begun: {change}. Put them back as they were "
        "(paths, labels, splits, groups and their order), or start a new run."
    )


def refuse_changed_beginning(begun: Mapping[str, Any], job: Job) -> None:
    """Refuse to begin another network otherwise than those before it.

    Raises
    ------
    RunError
    """
    if describe_backbone(load_weights(job.network)) != begun["backbone"]:
        raise RunError(
            f"the weights {job.network.weights} have changed since the run was begun. Put them "
            "back as they were, or start a new run."
        )
    if job.head is not None and job.head.describe() != begun["from_head"]:
        raise RunError(
            f"the head {job.from_head} has changed since the run was begun. Put it back as it "
            "was, or start a new run."
        )
