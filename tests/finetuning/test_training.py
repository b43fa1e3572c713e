from __future__ import annotations

import pytest
import torch

import ecgfeat.finetuning.trainer as training_module
from ecgfeat.errors import TrainingError

from .steps import PIXELS, TARGETS, gradients, trainer


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


@pytest.mark.slow
def test_a_compiled_network_is_trained_as_a_plain_one():
    plain, compiled = trainer(), trainer(compile=True)
    for _ in range(2):
        steps = [one.step(PIXELS, TARGETS) for one in (plain, compiled)]
        assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-4)
    assert plain.weights().keys() == compiled.weights().keys()


def test_what_the_compiler_lacks_is_no_bug_of_ours():
    lacking = type("InvalidCxxCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def compiling(*_: object) -> None:
        raise lacking("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    one = trainer()
    one.network.fc.register_forward_pre_hook(compiling)
    with pytest.raises(TrainingError) as caught:
        one.step(PIXELS, TARGETS)
    assert str(caught.value) == (
        "--compile: No working C++ compiler found. Install what torch.compile needs here (a C++ "
        "compiler, on a GPU Triton), or start a new run without --compile."
    )
