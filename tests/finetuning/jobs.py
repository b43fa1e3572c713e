"""Small fine-tunings, and a network that is trained in a millisecond."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ecgfeat.finetuning.job as job_module
import ecgfeat.finetuning.job as refusing_module
import ecgfeat.finetuning.run as starting_module
from ecgfeat.architectures import LAYERS
from ecgfeat.backbones import Weights
from ecgfeat.config import (
    ComputeSettings,
    EvaluationSettings,
    FigureSettings,
    FinetuneSettings,
    NetworkSettings,
    PageSettings,
)
from ecgfeat.errors import Interrupted
from ecgfeat.finetuning import finetune
from ecgfeat.manifest import read_manifest
from ecgfeat.runs import Run
from ecgfeat.runtime import Progress, Report, silent

RANDOM = NetworkSettings(weights="random")
SMALL = PageSettings(size="32", crop_mode="squash")
FP32 = ComputeSettings(device="cpu", precision="fp32", threads=2)
N_TRAIN, N_TEST = 13, 6


class TinyNetwork(torch.nn.Module):
    """Convolution, batch norm and a last layer: a ResNet's parts, in a millisecond."""

    def __init__(self, n_classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = torch.nn.Conv2d(3, 8, 7, stride=4)
            self.bn1 = torch.nn.BatchNorm2d(8)
            for layer in LAYERS:
                setattr(self, layer, torch.nn.Identity())
            self.fc = torch.nn.Linear(8, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.bn1(self.conv1(images)).relu()
        for layer in LAYERS:
            maps = getattr(self, layer)(maps)
        logits: torch.Tensor = self.fc(maps.mean((2, 3)))
        return logits


def use_tiny_network(put: Callable[[object, str, object], None]) -> None:
    """Put a `TinyNetwork` in the place of every ResNet, with `setattr` or pytest's own."""

    def restored(_: str, n_classes: int, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
        network = TinyNetwork(n_classes, 0)
        network.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
        return network

    weights = Weights("resnet18", "random:0", {"conv1.bias": torch.zeros(8)})
    for module in (starting_module, refusing_module):
        put(module, "load_weights", lambda _: weights)
    put(job_module, "load_network", lambda _, n_classes, seed: TinyNetwork(n_classes, seed))
    put(job_module, "network_from_tensors", restored)


def train(
    pages: Path,
    runs: Path,
    *,
    report: Report = silent,
    compute: ComputeSettings = FP32,
    training: dict[str, Any] | None = None,
    figures: FigureSettings = FigureSettings(),
    **evaluation: Any,
) -> Run:
    """Fine-tune for 2 epochs in batches of 4, or by what `training` gives."""
    return finetune(
        read_manifest(pages),
        network=RANDOM,
        page=SMALL,
        compute=compute,
        training=FinetuneSettings(**{"epochs": 2, "batch_size": 4, **(training or {})}),
        evaluation=EvaluationSettings(**evaluation),
        figures=figures,
        out_dir=runs,
        report=report,
    )


def stop_at(place: Callable[[Progress], bool]) -> Report:
    def report(progress: Progress) -> None:
        if place(progress):
            raise Interrupted

    return report


def after_epoch(epoch: int) -> Report:
    return stop_at(lambda progress: f"Epoch {epoch} |" in progress.message)


def interrupted(pages: Path, runs: Path, report: Report, **changes: Any) -> Path:
    """Begin a run that `report` stops; its folder."""
    with pytest.raises(Interrupted):
        train(pages, runs, report=report, **changes)
    (folder,) = runs.iterdir()
    return folder


def assert_same_numbers(one: Run, other: Run) -> None:
    assert one.history == other.history
    assert one.predictions.ids == other.predictions.ids
    np.testing.assert_array_equal(one.predictions.probabilities, other.predictions.probabilities)
    if one.predictions.split == "cv":
        np.testing.assert_array_equal(one.predictions.folds, other.predictions.folds)
        return
    assert one.model().keys() == other.model().keys()
    for name, tensor in one.model().items():
        np.testing.assert_array_equal(tensor, other.model()[name], err_msg=name)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))
