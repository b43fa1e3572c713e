"""A backbone taught on synthetic pages: kept, gone on with, taken by --weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ecgfeat import adaptation
from ecgfeat.adaptation import WEIGHTS, Adapted, adapt
from ecgfeat.backbones import load_weights
from ecgfeat.config import AdaptSettings, ComputeSettings, NetworkSettings
from ecgfeat.errors import ConfigError, DivergedError, Interrupted, RunError
from ecgfeat.finetuning.trainer import Step, Trainer
from ecgfeat.runtime import Progress, Report, silent

RANDOM = NetworkSettings(weights="random")
FP32 = ComputeSettings(device="cpu", precision="fp32", threads=2)


@pytest.fixture(autouse=True)
def _small_exams(monkeypatch):
    monkeypatch.setattr(adaptation, "EXAM_PAGES", 12)
    monkeypatch.setattr(adaptation, "EXAM_EVERY", 8)


def taught(
    folder: Path,
    *,
    report: Report = silent,
    network: NetworkSettings = RANDOM,
    **settings: Any,
) -> Adapted:
    chosen = {
        "pages": 22,
        "batch_size": 4,
        "layers": "layer1-2x2,layer4",
        "size": "64x64",
        **settings,
    }
    return adapt(
        folder,
        network=network,
        compute=FP32,
        settings=AdaptSettings(**chosen),
        report=report,
    )


def tensors(made: Adapted) -> dict[str, np.ndarray]:
    with safe_open(made.weights_path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "EXAM_PAGES", 12)
        patch.setattr(adaptation, "EXAM_EVERY", 8)
        yield taught(tmp_path_factory.mktemp("whole") / "out")


def test_what_comes_out_is_taken_like_any_other_weights(whole):
    found = load_weights(NetworkSettings(weights=str(whole.weights_path)))
    assert found.digest == whole.digest
    assert not found.note  # nothing had to be dropped or guessed
    begun_with = load_weights(RANDOM)
    assert found.digest != begun_with.digest
    assert found.tensors.keys() == begun_with.tensors.keys()
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


def test_the_file_says_where_it_comes_from(whole):
    with safe_open(whole.weights_path, framework="np") as file:
        origin = json.loads(file.metadata()["ecgfeat"])
    assert origin["weights"] == "random:0"
    assert origin["weights_digest"] == load_weights(RANDOM).digest
    assert origin["settings"]["pages"] == 22
    assert [exam["pages"] for exam in origin["exams"]] == [8, 16, 22]
    assert "licence" in origin["licence"]


def test_exams_are_held_now_and_then_and_kept(whole):
    assert [exam.pages for exam in whole.history] == [8, 16, 22]
    lines = (whole.weights_path.parent / "history.csv").read_text().splitlines()
    assert lines[0].startswith("pages,loss,R,S,ST,T,P,whole,findings")
    assert len(lines) == 4
    assert {path.name for path in whole.weights_path.parent.iterdir()} == {
        "config.json",
        "history.csv",
        WEIGHTS,
    }


@pytest.mark.parametrize("n_pages", [8, 12, 20])
def test_a_stopped_one_goes_on_to_the_very_same_weights(whole, tmp_path, n_pages):
    def stop(progress: Progress) -> None:
        if progress.stage == "adapting" and progress.done >= n_pages:
            raise Interrupted

    with pytest.raises(Interrupted) as caught:
        taught(tmp_path / "out", report=stop)
    assert f"kept: {n_pages} of 22 pages" in caught.value.__notes__[0]
    again = taught(tmp_path / "out")
    for name, tensor in tensors(whole).items():
        np.testing.assert_array_equal(tensor, tensors(again)[name], err_msg=name)
    found, expected = (
        [replace(exam, seconds=0.0) for exam in one.history] for one in (again, whole)
    )
    assert found == expected


def test_a_finished_one_isnt_done_again(whole):
    before = whole.weights_path.stat().st_mtime_ns
    again = taught(whole.weights_path.parent)
    assert again == replace(whole, was_done=True)
    assert whole.weights_path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"lr": 1e-4}, "--lr"),
        ({"pages": 30}, "--pages"),
        ({"size": "32x32"}, "--size"),
        ({"network": NetworkSettings(weights="random:1")}, "--weights"),
    ],
)
def test_other_settings_are_refused_by_name(whole, changed, option):
    with pytest.raises(ConfigError, match=option):
        taught(whole.weights_path.parent, **changed)


def test_a_strange_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        taught(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "finetune"}')
    with pytest.raises(RunError, match="damaged"):
        taught(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="is a file"):
        taught(file)


def weights_of(made: Adapted) -> dict[str, torch.Tensor]:
    return dict(load_weights(NetworkSettings(weights=str(made.weights_path))).tensors)


def test_the_weights_are_the_mean_of_what_was_given_and_what_was_learnt(tmp_path):
    given = load_weights(RANDOM).tensors
    whole, half, none = (
        weights_of(taught(tmp_path / str(blend), pages=8, blend=blend)) for blend in (1.0, 0.5, 0.0)
    )
    for name, tensor in given.items():
        assert torch.equal(none[name], tensor), name
        torch.testing.assert_close(half[name], (tensor + whole[name]) / 2)
    assert not torch.equal(whole["conv1.weight"], given["conv1.weight"])


def test_layers_that_are_frozen_stay(tmp_path):
    made = weights_of(taught(tmp_path / "out", pages=8, freeze_to="layer2"))
    given = load_weights(RANDOM).tensors
    for name, tensor in given.items():
        is_frozen = name.startswith(("conv1", "bn1", "layer1", "layer2"))
        assert torch.equal(tensor, made[name]) == is_frozen, name


def test_a_loss_that_is_no_number_is_named(monkeypatch, tmp_path):
    spoiled = Step(n_images=4, loss=float("nan"))
    monkeypatch.setattr(Trainer, "step", lambda *_: spoiled)
    with pytest.raises(DivergedError, match="lower --lr"):
        taught(tmp_path / "out")


def test_it_learns_what_it_is_shown(monkeypatch, tmp_path):
    """The same few pages again and again: they must come to be known."""
    lesson = adaptation._Teaching._lesson
    monkeypatch.setattr(
        adaptation._Teaching,
        "_lesson",
        lambda self, purpose, number: lesson(self, "exam", number % 8),
    )
    made = taught(tmp_path / "out", pages=160, batch_size=8, lr=1e-3, layers="layer4")
    losses = [exam.loss for exam in made.history]
    assert losses[-1] < 0.5 * losses[0]
