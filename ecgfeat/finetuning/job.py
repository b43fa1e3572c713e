"""What decides a fine-tuning, and how ``config.json`` keeps it so that it can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ecgfeat.backbones import Weights, load_network, network_from_tensors
from ecgfeat.config import (
    ComputeSettings,
    DataSettings,
    EvaluationSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
    as_json,
)
from ecgfeat.finetuning.streaming import Images
from ecgfeat.finetuning.training import Snapshot, Trainer
from ecgfeat.images import Failure
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition, Task, define_task, partitions
from ecgfeat.runs import count_rows
from ecgfeat.runtime import Compute, machine, resolve_compute, versions

__all__ = ["Job", "describe_backbone", "describe_rows", "job_from_config", "manifest_from_config"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Everything that decides a fine-tuning's numbers.

    Attributes
    ----------
    manifest : Manifest
    network, page, training, evaluation : settings
    compute : Compute
    """

    manifest: Manifest
    network: NetworkSettings
    page: PageSettings
    compute: Compute
    training: FinetuneSettings
    evaluation: EvaluationSettings

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
        )

    def new_trainer(self) -> Trainer:
        """A network that has seen none of the images."""
        network = load_network(self.network, len(self.task.classes), self.evaluation.seed)
        return Trainer(network, self.training, self.preprocessing, self.compute)

    def restored_trainer(self, snapshot: Snapshot) -> Trainer:
        """The network as it was when `snapshot` was taken."""
        arrays = {name: tensor.numpy() for name, tensor in snapshot.network.items()}
        network = network_from_tensors(self.network.arch, len(self.task.classes), arrays)
        trainer = Trainer(network, self.training, self.preprocessing, self.compute)
        trainer.restore(snapshot)
        return trainer

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
            "preprocessing": asdict(self.preprocessing),
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


def describe_rows(manifest: Manifest) -> dict[str, Any]:
    """How many images there are to train and test on, and a digest that any change changes."""
    rows = [*zip(manifest.paths, manifest.labels, manifest.splits, manifest.groups)]
    return {
        "train": manifest.splits.count("train"),
        "test": manifest.splits.count("test"),
        "missing": len(manifest.missing),
        # Unlike the manifest's own digest it depends on the order, which folds and batches do.
        "digest": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def manifest_from_config(config: Mapping[str, Any]) -> Manifest:
    """Look at the data again, where and how the run did."""
    settings = dict(config["source"])
    data = Path(settings.pop("data"))
    root = settings.pop("root")
    return read_manifest(data, DataSettings(root=root and Path(root), **settings))


def job_from_config(config: Mapping[str, Any], manifest: Manifest) -> Job:
    """Make the job again that `Job.describe` described.

    Raises
    ------
    DeviceError
        When its device or precision isn't here.
    """
    compute = ComputeSettings(**config["compute"])
    return Job(
        manifest=manifest,
        network=NetworkSettings(**config["network"]),
        page=PageSettings(**config["page"]),
        compute=resolve_compute(compute, purpose="train"),
        training=FinetuneSettings(**config["training"]),
        evaluation=EvaluationSettings(**config["evaluation"]),
    )
