from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ecgfeat.finetuning.training as training_module
from ecgfeat.config import FinetuneSettings
from ecgfeat.errors import TrainingError
from ecgfeat.finetuning.training import Trainer
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

from .jobs import SMALL, TinyNetwork

PREPROCESSING = Preprocessing.from_settings(SMALL)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
TARGETS = np.array([0, 1, 1, 0, 1, 1, 1, 0])


def trainer(
    *,
    seed: int = 0,
    precision: str = "fp32",
    class_weights: np.ndarray | None = None,
    told: list[str] | None = None,
    **training: Any,
) -> Trainer:
    compute = Compute(device="cpu", precision=precision, threads=1, channels_last=True, reason="")
    made = Trainer(
        TinyNetwork(2, seed),
        FinetuneSettings(**training),
        PREPROCESSING,
        compute,
        class_weights=class_weights,
        tell=(told if told is not None else []).append,
    )
    made.set_lr(0.01)
    return made


def gradients(one: Trainer) -> list[torch.Tensor]:
    return [p.grad.clone() for p in one.network.parameters() if p.grad is not None]


def plain_loss(
    network: torch.nn.Module, weight: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    images = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255 - mean) / std
    return torch.nn.functional.cross_entropy(
        network(images), torch.from_numpy(TARGETS), weight=weight, label_smoothing=smoothing
    )


@pytest.mark.parametrize("weights", [None, np.array([0.5, 2.0], np.float32)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_that_of_torch_s_mean_loss(weights, smoothing, parts):
    ours = trainer(
        class_weights=weights, label_smoothing=smoothing, accumulate=parts, batch_norm="freeze"
    )
    plain = TinyNetwork(2, 0).eval()
    loss = plain_loss(plain, None if weights is None else torch.from_numpy(weights), smoothing)
    loss.backward()
    step = ours.step(PIXELS, TARGETS)
    for found, parameter in zip(gradients(ours), plain.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)
    assert step.loss == pytest.approx(plain_loss(TinyNetwork(2, 0).eval()).item(), rel=1e-5)
    assert step.n_images == 8


def test_a_gradient_longer_than_the_clip_is_shortened_to_it():
    free, clipped = trainer(), trainer(clip=0.001)
    for one in (free, clipped):
        one.step(PIXELS, TARGETS)
    lengths = [torch.stack([g.norm() for g in gradients(one)]).norm() for one in (free, clipped)]
    assert lengths[0] > 0.01
    assert lengths[1] == pytest.approx(0.001, rel=1e-3)


def test_the_loss_scaler_and_the_moments_go_through_a_snapshot():
    one, other = trainer(seed=0, precision="fp16"), trainer(seed=1, precision="fp16")
    one.step(PIXELS, TARGETS)
    other.restore(one.snapshot())
    assert one.snapshot().scaler["scale"] > 1
    assert one.step(PIXELS, TARGETS) == other.step(PIXELS, TARGETS)
    for name, tensor in one.snapshot().tensors.items():
        assert torch.equal(tensor, other.snapshot().tensors[name]), name


def test_clipping_sees_gradients_as_they_are_however_the_loss_is_scaled():
    one = trainer(precision="fp16", clip=0.001)
    one.step(PIXELS, TARGETS)
    assert torch.stack([g.norm() for g in gradients(one)]).norm() <= 0.0011


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_frozen_weights_have_no_moments_and_those_left_go_through_a_snapshot(
    optimizer, monkeypatch
):
    monkeypatch.setattr(
        training_module, "freeze", lambda network, _: network.conv1.requires_grad_(False)
    )
    one, other = trainer(seed=0, optimizer=optimizer), trainer(seed=1, optimizer=optimizer)
    before = one.network.conv1.weight.clone()
    one.step(PIXELS, TARGETS)
    other.restore(one.snapshot())
    assert one.step(PIXELS, TARGETS) == other.step(PIXELS, TARGETS)
    assert torch.equal(one.network.conv1.weight, before)
    assert torch.equal(one.network.fc.weight, other.network.fc.weight)


# Memory


class SmallMemory:
    """Raises as CUDA does where more images than it has room for come at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room = room
        self.error = error
        self.sizes: list[int] = []

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.sizes.append(len(inputs[0]))
        if len(inputs[0]) > self.room:
            raise self.error


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.5 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_the_same_gradient_is_made_in_parts(error):
    told: list[str] = []
    plain = trainer(batch_norm="freeze")
    small = trainer(batch_norm="freeze", told=told)
    memory = SmallMemory(3, error)
    # After batch norm, so that a part which fails has gone most of the way.
    small.network.fc.register_forward_pre_hook(memory)
    steps = [one.step(PIXELS, TARGETS) for one in (plain, small)]
    for one, other in zip(*map(gradients, (plain, small)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert steps[0].n_right == steps[1].n_right
    assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-6)
    assert memory.sizes == [8, 4, 2, 2, 2, 2]
    assert told == [
        f"[Fine-Tuning] Out of memory: from now on each step's images go through the network in "
        f"{n_parts} parts"
        for n_parts in (2, 4)
    ]
    small.step(PIXELS, TARGETS)
    assert memory.sizes[6:] == [2, 2, 2, 2]
    assert small.snapshot().n_parts == 4


def test_a_part_that_failed_leaves_no_trace_in_the_statistics():
    once, again = trainer(accumulate=2), trainer()
    again.network.fc.register_forward_pre_hook(SmallMemory(4, OUT_OF_MEMORY[0]))
    for one in (once, again):
        one.step(PIXELS, TARGETS)
    for name, tensor in once.snapshot().tensors.items():
        assert torch.equal(tensor, again.snapshot().tensors[name]), name


def test_memory_too_small_for_two_images_is_named():
    one = trainer()
    one.network.fc.register_forward_pre_hook(SmallMemory(1, OUT_OF_MEMORY[0]))
    with pytest.raises(TrainingError) as caught:
        one.step(PIXELS, TARGETS)
    assert str(caught.value) == (
        "memory ran out even with two images at a time. Take a smaller --size or --arch, or "
        "--freeze-to layer2."
    )


def test_another_error_of_the_network_is_not_taken_for_a_lack_of_memory():
    one = trainer()
    one.network.fc.register_forward_pre_hook(SmallMemory(1, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        one.step(PIXELS, TARGETS)


@pytest.mark.slow
def test_a_compiled_network_is_trained_as_a_plain_one():
    plain, compiled = trainer(), trainer(compile=True)
    for _ in range(2):
        steps = [one.step(PIXELS, TARGETS) for one in (plain, compiled)]
        assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-4)
    assert plain.weights().keys() == compiled.weights().keys()
