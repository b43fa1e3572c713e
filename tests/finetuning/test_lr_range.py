from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ecgfeat.finetuning.lr_range as lr_range_module
import ecgfeat.finetuning.run as running_module
from ecgfeat.config import EvaluationSettings, FigureSettings, FinetuneSettings
from ecgfeat.errors import DataError, DivergedError, Interrupted
from ecgfeat.finetuning import resume_finetune
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.lr_range import (
    HIGHEST,
    LOWEST,
    N_STEPS,
    SHARE,
    LrRange,
    choose_lr,
    find_lr,
    n_images_tried,
    write_lr_range,
)
from ecgfeat.manifest import read_manifest
from ecgfeat.runtime import resolve_compute

from .jobs import FP32, RANDOM, SMALL, after_epoch, assert_same_numbers, interrupted, train

RATES = np.geomspace(LOWEST, HIGHEST, N_STEPS)


@pytest.fixture
def job(pages: Path) -> Job:
    return Job(
        manifest=read_manifest(pages),
        network=RANDOM,
        page=SMALL,
        compute=resolve_compute(FP32, purpose="train"),
        training=FinetuneSettings(lr="auto", batch_size=4),
        evaluation=EvaluationSettings(),
    )


def find(job: Job, fold: int = 0) -> LrRange:
    return find_lr(job, job.plan[fold], job.images({}), lambda _: None)


def valley(turn: float, noise: float = 0.0) -> np.ndarray:
    """Losses that fall, by the logarithm of the rate, up to `turn`, and rise after it."""
    distance = np.abs(np.log10(RATES / turn))
    return 0.2 + 0.2 * distance + noise * np.random.default_rng(0).normal(size=N_STEPS)


@pytest.mark.parametrize("turn", [1e-4, 3e-3, 0.1])
def test_the_rate_is_a_share_of_the_one_at_which_the_loss_turns(turn):
    assert choose_lr(RATES, valley(turn)).lr == pytest.approx(SHARE * turn, rel=0.1)


def test_noise_from_batch_to_batch_moves_it_little():
    assert choose_lr(RATES, valley(1e-3, noise=0.05)).lr == pytest.approx(SHARE * 1e-3, rel=0.6)


def test_a_single_lucky_batch_doesnt_choose():
    losses = valley(1e-3)
    losses[90] = 0.0
    assert choose_lr(RATES, losses).lr == choose_lr(RATES, valley(1e-3)).lr


def test_the_rate_has_two_digits():
    lr = choose_lr(RATES, valley(1.2345e-3)).lr
    assert lr == float(f"{lr:.1e}")


@pytest.mark.parametrize("losses", [np.linspace(1, 2, N_STEPS), np.array([])])
def test_where_the_loss_never_falls_there_is_no_rate_to_choose(losses):
    with pytest.raises(DivergedError) as error:
        choose_lr(RATES[: len(losses)], losses)
    assert str(error.value) == (
        "--lr auto: the loss fell at none of the learning rates tried, so there is none to "
        "choose. Give --lr as a number, such as 1e-4."
    )


def test_the_rates_rise_evenly_over_decades(job):
    rates = [step.lr for step in find(job).tried]
    assert rates == RATES[: len(rates)].tolist()
    assert len(rates) > N_STEPS / 2


def test_it_is_the_same_every_time_and_for_any_number_of_threads(job):
    first = find(job)
    assert find(job) == first
    assert find(replace(job, compute=replace(job.compute, threads=1))) == first
    assert find(replace(job, evaluation=EvaluationSettings(seed=1))) != first


def test_the_network_it_trains_is_thrown_away(job):
    (part,) = job.plan
    before = job.new_trainer(part).weights()
    find(job)
    after = job.new_trainer(part).weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_the_training_rows_of_the_fold_are_opened(job):
    manifest = job.manifest
    job = replace(job, evaluation=EvaluationSettings(val_fraction=0.3))
    (part,) = job.plan
    for row in (*part.validation, *part.test):
        manifest.image_path(row).unlink()
    failures: dict[int, Any] = {}
    find_lr(job, part, job.images(failures), lambda _: None)
    assert not failures


def test_a_batch_with_fewer_than_two_images_is_passed_over(job):
    (part,) = job.plan
    for row in part.train[2:]:
        job.manifest.image_path(row).write_bytes(b"nothing")
    found = find(job)
    assert found.tried[0].lr == LOWEST
    assert len(found.tried) < N_STEPS / 2  # most batches have one of the two good images or none


def test_pages_are_augmented_as_in_training(job):
    augmented = replace(job, training=replace(job.training, augment="strong"))
    assert find(augmented) != find(job)


def test_it_stops_when_the_loss_is_lost(job):
    wild = replace(job, training=replace(job.training, optimizer="sgd", batch_size=13))
    behind: list[int] = []
    (part,) = wild.plan
    found = find_lr(wild, part, wild.images({}), behind.append)
    assert all(np.isfinite(step.loss) for step in found.tried)
    assert n_images_tried(wild, part) == N_STEPS * len(part.train)
    assert behind == [len(part.train) * step for step in range(len(behind))]


def test_an_interruption_passes_through(job):
    def stop(done: int) -> None:
        if done:
            raise Interrupted

    with pytest.raises(Interrupted):
        find_lr(job, job.plan[0], job.images({}), stop)


def test_the_figure_has_the_format_of_the_others(tmp_path, job):
    look = FigureSettings(figure_format="svg", title=False)
    write_lr_range(tmp_path, choose_lr(RATES, valley(1e-3)), job.plan[0], 1, look)
    assert "range test" not in (tmp_path / "lr_range.svg").read_text()
    assert len(list(tmp_path.glob("lr_range*"))) == 2


@pytest.mark.parametrize(("n_folds", "stem"), [(1, "lr_range"), (3, "lr_range-2")])
def test_table_and_figure_are_written(tmp_path, job, n_folds, stem):
    found = choose_lr(RATES, valley(1e-3))
    part = replace(job.plan[0], fold=n_folds // 2)
    write_lr_range(tmp_path, found, part, n_folds)
    with (tmp_path / f"{stem}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed"]
    assert [float(row["loss"]) for row in rows] == [step.loss for step in found.tried]
    assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("lr_range*"))) == 2


def test_a_figure_that_can_not_be_drawn_costs_no_training(tmp_path, job, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(lr_range_module.figures, "lr_range_plot", fail)
    shown = write_lr_range(tmp_path, choose_lr(RATES, valley(1e-3)), job.plan[0], 1)
    assert shown == "lr_range.csv (its figure can't be drawn: no such font)"
    assert (tmp_path / "lr_range.csv").exists()


def test_a_run_trains_with_the_rate_found_and_says_so(pages, runs, tmp_path):
    lines = []
    run = train(pages, runs, training={"lr": "auto"}, report=lambda p: lines.append(p.message))
    with (run.path / "lr_range.csv").open() as file:
        steps = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]
    rates, losses = (np.array([step[name] for step in steps]) for name in ("lr", "loss"))
    found = choose_lr(rates, losses).lr
    assert run.config["training"]["lr"] == "auto"
    assert run.metrics["choice"]["lr"] == [found]
    assert_same_numbers(run, train(pages, tmp_path / "given", training={"lr": found}))
    assert f"[Fine-Tuning] Learning rate {found:g}, by the range test in lr_range.png" in lines


def test_each_fold_finds_its_own_rate(pages, runs):
    run = train(pages, runs, training={"lr": "auto"}, cv=2)
    assert len(run.metrics["choice"]["lr"]) == 2
    assert {path.name for path in run.path.glob("lr_range*.png")} == {
        "lr_range-1.png",
        "lr_range-2.png",
    }


def test_a_resumed_run_keeps_the_rate_it_found(pages, runs, tmp_path, monkeypatch):
    whole = train(pages, tmp_path / "whole", training={"lr": "auto"})
    folder = interrupted(pages, runs, after_epoch(1), training={"lr": "auto"})
    monkeypatch.setattr(running_module, "find_lr", None)  # not to be called again
    assert_same_numbers(resume_finetune(folder), whole)


def test_images_that_can_t_be_decoded_are_named_before_the_rate(pages, runs):
    for image in (pages.parent / "train").rglob("*.png"):
        image.write_bytes(b"no picture")
    with pytest.raises(DataError, match="13 of 13 training images can't be decoded, all of 'a'"):
        train(pages, runs, training={"lr": "auto"})
