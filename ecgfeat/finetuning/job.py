"""What decides a fine-tuning, and how ``config.json`` keeps it so that it can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from torch.nn import Module

from ecgfeat.augmentation import augmenting
from ecgfeat.backbones import Weights, load_network, load_weights, network_from_tensors
from ecgfeat.calibration import refuse_undecidable
from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    FigureSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
    as_json,
)
from ecgfeat.errors import ConfigError, DataError, ImageError, RunError
from ecgfeat.files import typed
from ecgfeat.finetuning.distributed import ALONE, Ranks
from ecgfeat.finetuning.from_head import FittedHead, HeadOrigin, read_head
from ecgfeat.finetuning.trainer import Images, Snapshot, Trainer, balanced_weights, ignore
from ecgfeat.images import Alter, Failure, decode
from ecgfeat.manifest import Manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import (
    Leaks,
    Partition,
    Task,
    define_task,
    find_leaks,
    has_validation,
    partitions,
    refuse_thin_validation,
    same_pictures,
)
from ecgfeat.runs import Count, count_rows
from ecgfeat.runtime import Compute, machine, versions

__all__ = [
    "KIND",
    "Begun",
    "Job",
    "describe_backbone",
    "describe_rows",
    "is_deciding",
    "refuse_changed_beginning",
    "refuse_changed_rows",
    "refuse_impossible",
]


KIND = "finetune"
"""Of the runs, in their ``config.json``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything that decides a fine-tuning's numbers, and how its figures look.

    Attributes
    ----------
    manifest : Manifest
    network, page, training, evaluation, figures : settings
    compute : Compute
    from_head : Path or None
        Run of the head that the last layer begins as; None for random weights.
    ranks : Ranks
        The processes that share the work.
    """

    manifest: Manifest
    network: NetworkSettings
    page: PageSettings
    compute: Compute
    training: FinetuneSettings
    evaluation: EvaluationSettings
    figures: FigureSettings = FigureSettings()
    from_head: Path | None = None
    ranks: Ranks = ALONE

    @cached_property
    def head(self) -> FittedHead | None:
        """The head that the last layer begins as; read when first asked for."""
        return None if self.from_head is None else read_head(self.from_head)

    @cached_property
    def task(self) -> Task:
        """The classes, and each row's."""
        return define_task(self.manifest.labels, self.evaluation.positive)

    @cached_property
    def plan(self) -> list[Partition]:
        """Who trains and who is tested, fold by fold."""
        return partitions(
            self.task,
            ids=self.manifest.paths,
            splits=self.manifest.splits,
            groups=self.manifest.groups,
            settings=self.evaluation,
        )

    @cached_property
    def leaks(self) -> Leaks:
        """What is on both sides of the plan, or under two labels."""
        sides = [part.sides for part in self.plan]
        data = self.manifest
        return find_leaks(self._pictures(), data.labels, data.groups, sides)

    def _pictures(self) -> list[bytes]:
        """What is equal for equal pictures; files that are none, such as empty ones, equal none."""
        found = self.manifest.pictures()
        for rows in same_pictures(found):
            try:
                decode(self.manifest.image_path(rows[0]), dpi=self.page.dpi)
            except ImageError:
                for row in rows:
                    found[row] = os.fsencode(self.manifest.paths[row])
        return found

    @property
    def preprocessing(self) -> Preprocessing:
        """From page to network input."""
        return Preprocessing.from_settings(self.page)

    def images(self, failures: dict[int, Failure]) -> Images:
        """The images to be streamed; those that can't be decoded are added to `failures`."""
        return Images(
            paths=self.manifest.image_paths(),
            targets=self.task.targets,
            preprocessing=self.preprocessing,
            threads=self.compute.threads,
            failures=failures,
            ranks=self.ranks,
        )

    def alter(self, fold: int, epoch: int) -> Alter | None:
        """What augments the training pages of an epoch, if anything does."""
        if self.training.augment == "none":
            return None
        return augmenting(self.training.augment, seed=self.evaluation.seed, fold=fold, epoch=epoch)

    def new_trainer(self, part: Partition, tell: Callable[[str], None] = ignore) -> Trainer:
        """A network that has seen none of the images; a fitted head has seen `part`'s."""
        network = load_network(self.network, len(self.task.classes), self.evaluation.seed)
        if self.head is not None:
            self.head.put_into(network, part.fold)
        return self._trainer(network, part, tell)

    def restored_trainer(
        self, part: Partition, snapshot: Snapshot, tell: Callable[[str], None] = ignore
    ) -> Trainer:
        """The network as it was when `snapshot` was taken."""
        arrays = {name: tensor.numpy() for name, tensor in snapshot.network.items()}
        network = network_from_tensors(self.network.arch, len(self.task.classes), arrays)
        trainer = self._trainer(network, part, tell)
        trainer.restore(snapshot)
        return trainer

    def _trainer(self, network: Module, part: Partition, tell: Callable[[str], None]) -> Trainer:
        is_balanced = self.training.class_weights == "balanced"
        return Trainer(
            network,
            self.training,
            self.preprocessing,
            self.compute,
            class_weights=balanced_weights(self.task, part) if is_balanced else None,
            ranks=self.ranks,
            tell=tell,
        )

    def describe(self) -> dict[str, Any]:
        """The job as plain values, from which `job_from_config` makes it again."""
        return {
            "source": _describe_source(self.manifest),
            "manifest_digest": self.manifest.digest,
            "rows": describe_rows(self.manifest),
            "network": as_json(self.network),
            "page": as_json(self.page),
            "compute": {
                # What auto was resolved to: a run goes on as it was begun.
                "device": self.compute.device,
                "precision": self.compute.precision,
                "threads": self.compute.threads,
            },
            "training": as_json(self.training),
            "evaluation": as_json(self.evaluation),
            "figures": as_json(self.figures),
            "from_head": self.head and self.head.describe(),
            "preprocessing": self.preprocessing.as_json(),
            "partitions": count_rows(self.plan),
            "versions": versions(),
            "machine": machine(self.compute.device),
        }


def describe_backbone(weights: Weights) -> dict[str, str]:
    """Which weights a run begins with."""
    return {"arch": weights.arch, "weights": weights.name, "weights_digest": weights.digest}


def _describe_source(manifest: Manifest) -> dict[str, Any]:
    settings = as_json(manifest.settings)
    if settings["root"] is not None:
        settings["root"] = str(manifest.root)
    return {"data": str(manifest.source), **settings}


class RowCounts(TypedDict):
    """How many images a training has, and a digest that any change changes."""

    train: Count
    test: Count
    missing: Count
    digest: str


def describe_rows(manifest: Manifest) -> RowCounts:
    """How many images there are to train and test on, and a digest that any change changes."""
    rows = [*zip(manifest.paths, manifest.labels, manifest.splits, manifest.groups)]
    return {
        "train": manifest.splits.count("train"),
        "test": manifest.splits.count("test"),
        "missing": len(manifest.missing),
        # Unlike the manifest's own digest it depends on the order, which folds and batches do.
        "digest": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


SECTIONS = {
    "source": DataSettings,
    "network": NetworkSettings,
    "page": PageSettings,
    "compute": ComputeSettings,
    "training": FinetuneSettings,
    "evaluation": EvaluationSettings,
    "figures": FigureSettings,
}
"""The settings in ``config.json``."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What ``config.json`` says of a fine-tuning under way, as `Job.describe` described it.

    Attributes
    ----------
    data : Path
    source : DataSettings
    rows : dict
        As `describe_rows` gives them.
    backbone, from_head : dict
        As `describe_backbone` and `FittedHead.describe` give them; without a head None.
    network, page, compute, training, evaluation, figures : settings
        Runs of earlier versions say nothing of figures.
    """

    data: Path
    source: DataSettings
    rows: RowCounts
    backbone: dict[str, str]
    from_head: HeadOrigin | None
    network: NetworkSettings
    page: PageSettings
    compute: ComputeSettings
    training: FinetuneSettings
    evaluation: EvaluationSettings
    figures: FigureSettings = FigureSettings()

    @staticmethod
    def of(config: Mapping[str, Any]) -> Begun:
        """Check ``config.json``; ValueError where it can't be gone on by."""
        with_figures = {"figures": {}, **config}
        sections = typed(
            {name: with_figures.get(name) for name in SECTIONS}, dict[str, dict[str, Any]]
        )
        data = sections["source"].pop("data", None)
        for name, found in sections.items():
            unknown = found.keys() - {field.name for field in dataclasses.fields(SECTIONS[name])}
            if unknown:  # passed over it would make another training of this one
                raise ValueError(f"{name}: unknown setting {min(unknown)!r}")
        return typed({**config, **sections, "data": data}, Begun, dec_hook=_as_path)

    def job(self, manifest: Manifest, compute: Compute, ranks: Ranks) -> Job:
        """Make the job again, on the same device as then."""
        return Job(
            manifest=manifest,
            network=self.network,
            page=self.page,
            compute=compute,
            training=self.training,
            evaluation=self.evaluation,
            figures=self.figures,
            from_head=Path(self.from_head["run"]) if self.from_head else None,
            ranks=ranks,
        )


def _as_path(_: type, text: object) -> Path:
    if not isinstance(text, str):
        raise ValueError(f"expected a path, got {text!r}")
    return Path(text)


def refuse_impossible(job: Job, weights: Weights) -> None:
    """Refuse what the options, the data or the head don't allow.

    Raises
    ------
    ConfigError, DataError, WeightsError, RunError
    """
    training, evaluation = job.training, job.evaluation
    _refuse_unchoosable(training, evaluation, job.manifest.splits)
    job.figures.rename(job.task.classes)
    _refuse_thin_shares(training, job.ranks)
    refuse_undecidable(
        evaluation,
        n_classes=len(job.task.classes),
        has_validation=has_validation(job.manifest.splits, evaluation),
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


def _refuse_unchoosable(
    training: FinetuneSettings, evaluation: EvaluationSettings, splits: Sequence[str]
) -> None:
    if training.choose_by != "last" and not has_validation(splits, evaluation):
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


def _in_words(rows: RowCounts) -> str:
    return f"{rows['train']} training and {rows['test']} test images ({rows['missing']} missing)"


def refuse_changed_rows(begun: RowCounts, manifest: Manifest, folder: Path) -> None:
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


def refuse_changed_beginning(begun: Begun, job: Job) -> None:
    """Refuse to begin another network otherwise than those before it.

    Raises
    ------
    RunError
    """
    if describe_backbone(load_weights(job.network)) != begun.backbone:
        raise RunError(
            f"the weights {job.network.weights} have changed since the run was begun. Put them "
            "back as they were, or start a new run."
        )
    if job.head is not None and job.head.describe() != begun.from_head:
        raise RunError(
            f"the head {job.from_head} has changed since the run was begun. Put it back as it "
            "was, or start a new run."
        )


def is_deciding(training: FinetuneSettings, evaluation: EvaluationSettings) -> bool:
    """Whether anything depends on validation rows: epoch, calibration or operating point."""
    return training.choose_by != "last" or evaluation.is_deciding
