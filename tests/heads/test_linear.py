from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ecgfeat.heads.linear as linear_module
from ecgfeat.errors import Interrupted
from ecgfeat.heads import (
    HeadEpoch,
    LinearSpec,
    fit_linear_heads,
    head_probabilities,
)
from ecgfeat.predictions import softmax
from ecgfeat.protocol import Partition

GRID = [
    LinearSpec(lr=lr, weight_decay=weight_decay, label_smoothing=smoothing, balanced=balanced)
    for lr in (1e-3, 0.02)
    for weight_decay, smoothing, balanced in (
        (0.0, 0.0, False),
        (0.1, 0.0, False),
        (0.0, 0.2, False),
        (0.0, 0.0, True),
        (0.05, 0.1, True),
    )
]


def some_features(
    n: int = 200, width: int = 12, n_classes: int = 2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of classes that overlap and are unequally many, on features of unlike scales."""
    random = np.random.default_rng(seed)
    y = random.permutation(np.sqrt(np.arange(n) / n) * n_classes).astype(np.int64)
    centres = random.normal(size=(n_classes, width))
    X = (centres[y] + random.normal(size=(n, width)) * 2) * np.geomspace(0.1, 10, width)
    return X.astype(np.float32), y


def part_of(train: range, validation: range = range(0)) -> Partition:
    none = np.empty(0, np.int64)
    rows = {"train": np.array(train, np.int64), "validation": np.array(validation, np.int64)}
    return Partition(fold=0, **rows, test=none, split="test")


def fit(
    X: NDArray[Any],
    y: NDArray[np.int64],
    part: Partition,
    specs: Sequence[LinearSpec],
    *,
    epochs: int = 3,
    batch_size: int = 48,
) -> tuple[list[dict[str, NDArray[Any]]], list[list[HeadEpoch]]]:
    """The heads, and what was told of each epoch of each seed."""
    told: list[list[HeadEpoch]] = []
    tensors = fit_linear_heads(
        X,
        y,
        part,
        n_classes=int(y.max()) + 1,
        specs=specs,
        epochs=epochs,
        batch_size=batch_size,
        on_epoch=lambda epoch, heads: told.append(heads),
    )
    return tensors, told


def pytorchs_own(
    X: NDArray[Any], y: NDArray[np.int64], part: Partition, spec: LinearSpec, *, epochs: int = 3
) -> tuple[list[float], dict[str, NDArray[Any]]]:
    """Plain losses by epoch, weight and bias, from PyTorch's own loop with the same start."""
    import torch  # not by the module: heads must not need it

    n_classes, width = int(y.max()) + 1, X.shape[1]
    generator = np.random.default_rng(spec.seed)
    bound = width**-0.5
    start = torch.from_numpy(
        generator.uniform(-bound, bound, n_classes * (width + 1)).astype(X.dtype)
    )
    layer = torch.nn.Linear(width, n_classes, dtype=start.dtype)
    torch.nn.utils.vector_to_parameters(start, layer.parameters())
    adam = torch.optim.Adam(layer.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    counts = np.bincount(y[part.train], minlength=n_classes)
    class_weights = torch.tensor(len(part.train) / (n_classes * counts), dtype=start.dtype)
    criterion = torch.nn.CrossEntropyLoss(
        weight=class_weights if spec.balanced else None, label_smoothing=spec.label_smoothing
    )
    losses = []
    for _ in range(epochs):
        order = generator.permutation(part.train)
        loss_sum = 0.0
        for first in range(0, len(order), 48):
            rows = order[first : first + 48]
            logits, targets = layer(torch.from_numpy(X[rows])), torch.from_numpy(y[rows])
            adam.zero_grad()
            criterion(logits, targets).backward()
            adam.step()
            loss_sum += torch.nn.functional.cross_entropy(logits, targets).item() * len(rows)
        losses.append(loss_sum / len(order))
    return losses, {name: value.detach().numpy() for name, value in layer.named_parameters()}


@pytest.fixture
def torch_on_one_thread() -> Iterator[None]:
    """On layers this small, more threads only wait for each other."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.usefixtures("torch_on_one_thread")
@pytest.mark.parametrize("n_classes", [2, 5])
def test_heads_trained_in_one_pass_are_what_pytorchs_own_loop_gives_each(
    n_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "CHUNK_BYTES", 100 * 12 * 8)  # two batches in float64
    monkeypatch.setattr(linear_module, "BLOCK_HEADS", (1, 3))
    X, y = some_features(n=330, n_classes=n_classes)
    part = part_of(range(5, 325))
    specs = [*GRID, replace(GRID[4], seed=3)]
    _, told = fit(X, y, part, specs)
    exact, _ = fit(X.astype(np.float64), y, part, specs)
    for index, spec in enumerate(specs):
        found = [head.record.loss for heads in told for head in heads if head.spec_index == index]
        losses, _ = pytorchs_own(X, y, part, spec)
        np.testing.assert_allclose(found, losses, atol=1e-5)
        _, expected = pytorchs_own(X.astype(np.float64), y, part, spec)
        for name in ("weight", "bias"):
            np.testing.assert_allclose(exact[index][name], expected[name], atol=1e-9)


def test_a_head_is_the_same_alone_as_among_others() -> None:
    X, y = some_features(n=330, n_classes=3)
    part = part_of(range(300), range(300, 330))
    specs = [replace(spec, seed=seed) for seed in (0, 1) for spec in GRID * 4]
    exact, _ = fit(X.astype(np.float64), y, part, specs)
    _, told = fit(X, y, part, specs)
    for index in (0, 7, 44, 79):
        (alone,), _ = fit(X.astype(np.float64), y, part, [specs[index]])
        np.testing.assert_allclose(exact[index]["weight"], alone["weight"], atol=1e-12)
        _, alone_told = fit(X, y, part, [specs[index]])
        among = [head for heads in told for head in heads if head.spec_index == index]
        for head, (expected,) in zip(among, alone_told):
            assert head.record.loss == pytest.approx(expected.record.loss, abs=1e-5)
            assert head.record.val_loss == pytest.approx(expected.record.val_loss, abs=1e-5)


def test_each_seed_is_told_by_itself_and_the_last_epoch_is_what_is_returned() -> None:
    X, y = some_features()
    specs = [LinearSpec(lr=0.01, seed=seed) for seed in (5, 2, 5)]
    tensors, told = fit(X, y, part_of(range(200)), specs, epochs=2)
    assert [[head.spec_index for head in heads] for heads in told] == [[0, 2], [0, 2], [1], [1]]
    assert [heads[0].record.epoch for heads in told] == [1, 2, 1, 2]
    for heads in (told[1], told[3]):
        for head in heads:
            np.testing.assert_array_equal(
                head.tensors["weight"], tensors[head.spec_index]["weight"]
            )
    assert not np.allclose(told[0][0].tensors["weight"], tensors[0]["weight"])
    assert head.val_logits is None
    assert head.record.val_loss is None
    assert not np.allclose(tensors[0]["weight"], tensors[1]["weight"])
    np.testing.assert_allclose(tensors[0]["weight"], tensors[2]["weight"], atol=1e-6)


def test_validation_rows_are_scored_after_the_epoch_and_never_trained_on() -> None:
    X, y = some_features(n_classes=3)
    tensors, told = fit(X, y, part_of(range(150), range(150, 200)), GRID)
    without, _ = fit(X, y, part_of(range(150)), GRID)
    for index, head in enumerate(told[-1]):
        np.testing.assert_array_equal(tensors[index]["weight"], without[index]["weight"])
        probabilities = softmax(head.val_logits.astype(np.float64))
        expected = head_probabilities(tensors[index], X[150:])
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        loss = -np.log(expected[np.arange(50), y[150:]]).mean()
        assert head.record.val_loss == pytest.approx(loss, abs=1e-5)
        assert head.record.val_accuracy == (expected.argmax(1) == y[150:]).mean()


def test_a_head_that_diverges_does_so_in_silence_and_alone() -> None:
    X, y = some_features(n=100)
    X[::7] *= 1e18
    part = part_of(range(80), range(80, 100))
    sound = LinearSpec(lr=1e-3)
    exact_X = X.astype(np.float64)
    specs = [sound, LinearSpec(lr=1e300), sound]
    tensors, told = fit(exact_X, y, part, specs)
    (alone,), _ = fit(exact_X, y, part, [sound])
    assert not np.isfinite(tensors[1]["weight"]).all()
    assert not math.isfinite(told[-1][1].record.val_loss)
    for index in (0, 2):
        np.testing.assert_allclose(tensors[index]["weight"], alone["weight"], atol=1e-9)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(20, 64), (65, 64), (1, 1)])
def test_a_batch_may_be_larger_than_the_rows_and_the_last_one_shorter(
    n_rows: int, batch_size: int
) -> None:
    X, y = some_features(n_classes=3)
    y[:n_rows] %= 2  # the third class is absent from the training rows
    tensors, told = fit(X, y, part_of(range(n_rows)), GRID, batch_size=batch_size)
    for head, (weight, bias) in zip(told[-1], (tensor.values() for tensor in tensors)):
        assert math.isfinite(head.record.loss)
        assert (weight.shape, bias.shape, weight.dtype) == ((3, 12), (3,), np.float32)


def test_linear_heads_start_as_pytorchs_linear_layer_does() -> None:
    import torch  # not by the module: heads must not need it

    X, y = some_features(width=400)
    (tensors,), _ = fit(X, y, part_of(range(200)), [LinearSpec(lr=1e-12)], epochs=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.nn.Linear(400, 2).weight.detach().numpy()
    for found in (tensors["weight"], weight):
        assert 0.049 < np.abs(found).max() <= 0.05
        assert found.std() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert np.abs(tensors["bias"]).max() <= 0.05


def test_the_seed_alone_decides_and_the_global_one_is_left_alone() -> None:
    X, y = some_features()
    part = part_of(range(150))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    (first,), _ = fit(X, y, part, [LinearSpec(lr=1e-3, seed=1)])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    (again,), _ = fit(X, y, part, [LinearSpec(lr=1e-3, seed=1)])
    assert first["weight"].tobytes() == again["weight"].tobytes()


def test_what_the_caller_raises_ends_the_training() -> None:
    X, y = some_features()
    epochs = []

    def stop(epoch: int, heads: list[HeadEpoch]) -> None:
        epochs.append(epoch)
        raise Interrupted

    with pytest.raises(Interrupted):
        fit_linear_heads(
            X,
            y,
            part_of(range(200)),
            n_classes=2,
            specs=GRID,
            epochs=3,
            batch_size=32,
            on_epoch=stop,
        )
    assert epochs == [1]
