from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ecgfeat.backbones import load_network
from ecgfeat.config import EvaluationSettings, FinetuneSettings
from ecgfeat.finetuning.trainer import (
    Schedule,
    balanced_weights,
    freeze,
    make_optimizer,
    set_modes,
)
from ecgfeat.protocol import define_task, partitions

from .jobs import RANDOM


def rates(n_steps: int, **training: Any) -> list[float]:
    schedule = Schedule(settings=FinetuneSettings(**training), lr=0.1, n_steps=n_steps)
    return [schedule.rate(step) for step in range(n_steps)]


def test_the_study_s_rate_never_changes():
    assert rates(5) == [0.1] * 5
    assert Schedule(settings=FinetuneSettings(), lr=0.1, n_steps=5).is_constant


def test_the_rate_rises_evenly_over_the_warm_up_and_then_stays():
    np.testing.assert_allclose(rates(8, warmup=0.5), [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1])


def test_a_cosine_falls_from_the_rate_towards_nothing():
    expected = [0.05 * (1 + math.cos(math.pi * done)) for done in (0, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(rates(4, schedule="cosine"), expected)


def test_a_cosine_begins_where_the_warm_up_ends():
    found = rates(10, schedule="cosine", warmup=0.2)
    assert found.index(max(found)) == 2
    assert found[2] == 0.1
    assert found[-1] < 0.005


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_each_optimiser_steps_as_torch_s_own_does(name):
    made = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    }
    ours, plain = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    settings = FinetuneSettings(optimizer=name, weight_decay=0.5)
    optimizers = make_optimizer([ours], settings), made[name]([plain])
    optimizers[0].param_groups[0]["lr"] = 0.1
    for _ in range(3):
        for parameter, optimizer in zip((ours, plain), optimizers):
            parameter.grad = parameter.detach() ** 2
            optimizer.step()
    torch.testing.assert_close(ours, plain)


def test_balanced_weights_are_those_of_scikit_learn_over_the_training_rows():
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["a"] * 9 + ["b"] * 4 + ["c"] * 3
    task = define_task(labels)
    splits = ["test" if index % 4 == 3 else "train" for index in range(len(labels))]
    ids = [str(index) for index in range(len(labels))]
    (part,) = partitions(
        task, ids=ids, splits=splits, groups=[""] * len(ids), settings=EvaluationSettings()
    )
    expected = compute_class_weight("balanced", classes=np.arange(3), y=task.targets[part.train])
    np.testing.assert_allclose(balanced_weights(task, part), expected, rtol=1e-6)


def prepared(**training: Any) -> torch.nn.Module:
    network = load_network(RANDOM, 2, seed=0)
    settings = FinetuneSettings(**training)
    freeze(network, settings)
    set_modes(network, settings)
    return network


def trained(network: torch.nn.Module) -> set[str]:
    """The parts of the network whose weights are moved."""
    return {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}


def updated(network: torch.nn.Module) -> set[str]:
    """The parts of the network whose batch norms take new statistics."""
    return {
        name.partition(".")[0]
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and module.training
    }


LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def test_by_default_everything_is_trained():
    network = prepared()
    assert trained(network) == {"conv1", "bn1", *LAYERS, "fc"}
    assert updated(network) == {"bn1", *LAYERS}


@pytest.mark.parametrize(
    ("freeze_to", "left"),
    [("stem", LAYERS), ("layer2", ["layer3", "layer4"]), ("layer4", [])],
)
def test_freezing_to_a_layer_takes_the_beginning_out_of_training(freeze_to, left):
    network = prepared(freeze_to=freeze_to)
    assert trained(network) == {*left, "fc"}
    assert updated(network) == set(left)


def test_frozen_batch_norms_keep_their_statistics_and_train_their_weights():
    network = prepared(batch_norm="freeze")
    assert updated(network) == set()
    assert trained(network) == {"conv1", "bn1", *LAYERS, "fc"}
    assert network.training
