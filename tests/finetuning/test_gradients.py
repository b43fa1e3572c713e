from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgfeat.errors import Interrupted, TrainingError
from ecgfeat.finetuning.distributed import Ranks

from .steps import PIXELS, PREPROCESSING, TARGETS, TinyNetwork, gradients, trainer


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


@given(n_asked=st.integers(1, 9), shares=st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_no_part_of_a_step_is_too_small_for_batch_norm(n_asked, shares):
    n_ranks = len(shares)
    n_parts = min(n_asked, Ranks(0, n_ranks).most_parts(sum(shares)))
    edges = np.linspace(0, max(shares), n_parts + 1).astype(int)
    assert n_parts == 1 or np.diff(edges).min() >= 2


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


def test_a_stop_while_memory_runs_out_leaves_no_trace_either():
    def stop(line: str) -> None:
        raise Interrupted

    one = trainer()
    one._gradients._tell = stop
    before = one.snapshot().tensors["network.bn1.running_mean"].clone()
    one.network.fc.register_forward_pre_hook(SmallMemory(4, OUT_OF_MEMORY[0]))
    with pytest.raises(Interrupted):
        one.step(PIXELS, TARGETS)
    assert torch.equal(one.snapshot().tensors["network.bn1.running_mean"], before)


def test_parts_are_halved_down_to_two_images_of_any_number():
    told: list[str] = []
    one = trainer(told=told)
    memory = SmallMemory(3, OUT_OF_MEMORY[0])
    one.network.fc.register_forward_pre_hook(memory)
    one.step(PIXELS[:7], TARGETS[:7])
    assert memory.sizes == [7, 3, 4, 2, 2, 3]
    assert one.snapshot().n_parts == 3


def test_memory_that_runs_out_in_one_of_several_processes_names_the_mend():
    one = trainer()
    one._gradients._ranks = Ranks(1, 2)
    one.network.fc.register_forward_pre_hook(SmallMemory(3, OUT_OF_MEMORY[0]))
    truth = torch.from_numpy(TARGETS)
    with pytest.raises(TrainingError) as caught:
        one._gradients.make(PIXELS, truth, n_all=16, weight=16.0)
    assert str(caught.value) == (
        "memory ran out in one of several processes. Start again with --resume on more of them, "
        "or start a new run with --accumulate 2."
    )
