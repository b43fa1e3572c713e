"""Choosing among heads: by which rows, by which numbers, and what is done with the chosen one."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ecgfeat.heads.fit as fit_module
import ecgfeat.heads.sweep as sweep_module
from ecgfeat.calibration import decide
from ecgfeat.config import EvaluationSettings
from ecgfeat.errors import ConfigError, DataError, Interrupted
from ecgfeat.heads import fit_logistic, head_probabilities
from ecgfeat.heads.sweep import SCORES, validation_scores
from ecgfeat.protocol import LEAK, Partition, define_task, inner_folds, partitions
from ecgfeat.runs import Result
from ecgfeat.runtime import Progress

from .fakes import StandInCache, fit

GRID = ("lr=1e-3,1e-2,1e-1", "weight_decay=0,0.1")
PATH = ("C=0.001,0.1,10",)


@pytest.fixture
def result_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fit` up to what is handed over to be kept: the one `Result`."""
    results: list[Result] = []
    monkeypatch.setattr(
        fit_module, "write_run", lambda _, result, **options: results.append(result)
    )

    def run(cache: Any = None, *kinds: Any, **options: Any) -> Result:
        results.clear()
        fit(tmp_path, cache, *kinds, **options)
        (result,) = results
        return result

    return run


def plan_of(cache: StandInCache, **settings: Any) -> list[Partition]:
    return partitions(
        define_task(cache.labels),
        ids=cache.paths,
        splits=cache.splits,
        groups=cache.groups,
        settings=EvaluationSettings(**settings),
    )


def folds_of(cache: StandInCache, part: Partition, n_folds: int, seed: int = 0) -> list[Partition]:
    return inner_folds(
        part,
        define_task(cache.labels),
        ids=cache.paths,
        groups=cache.groups,
        n_folds=n_folds,
        seed=seed,
    )


def logistic_scores(cache: StandInCache, part: Partition, C: float) -> NDArray[np.float64]:
    """What logistic regression is worth on a partition's validation rows."""
    X, y = cache.features(["layer4"]), define_task(cache.labels).targets
    tensors = fit_logistic(X, y, part.train, C=C).tensors
    probabilities = head_probabilities(tensors, X[part.validation])
    return validation_scores(probabilities[None], y[part.validation])[0]


def flip_test_labels(cache: StandInCache) -> StandInCache:
    """The same cache, its test rows of the other class."""
    cache.labels = tuple(
        {"a": "b", "b": "a"}[label] if split == "test" else label
        for label, split in zip(cache.labels, cache.splits)
    )
    return cache


def test_a_sweep_is_one_run_with_a_row_for_every_head(tmp_path: Path) -> None:
    (run,) = fit(tmp_path, None, "linear", "logreg", grid=(*GRID, *PATH), epochs=3)
    assert run.path.name.split("-")[2] == "sweep"
    choice = run.metrics["choice"]
    assert (choice["n_heads"], choice["by"], choice["rows"]) == (9, "auroc", "validation")
    assert (choice["val_fraction"], choice["n_rows"], choice["seeds"]) == (0.2, [16], [0])
    (chosen,) = choice["chosen"]
    assert run.kind == chosen["head"]
    with (run.path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["head"] for row in rows] == ["linear"] * 6 + ["logreg"] * 3
    assert [row["chosen"] for row in rows].count("True") == 1
    assert max(float(row["auroc"]) for row in rows) == chosen["auroc"]
    assert choice["words"].startswith("Chosen among 9 heads by AUROC on 16 validation rows: ")
    assert run.config["sweep"]["grid"] == [*GRID, *PATH]
    assert run.config["grid"]["lr"] == [1e-3, 1e-2, 1e-1]
    assert run.config["evaluation"]["val_fraction"] == 0.2


@pytest.mark.parametrize(
    "how", [{}, {"folds": 3}, {"val_fraction": 0.3, "refit": True}], ids=["part", "folds", "refit"]
)
def test_the_test_rows_have_no_say_in_the_choice(result_of: Any, how: dict[str, Any]) -> None:
    options = {"grid": (*GRID, *PATH), "epochs": 3, "learning_curve": True, "calibrate": not how}
    first = result_of(None, "linear", "logreg", **options, **how)
    other = result_of(flip_test_labels(StandInCache()), "linear", "logreg", **options, **how)
    assert first.sweep == other.sweep
    assert first.learning_curve == other.learning_curve
    assert first.decisions == other.decisions
    for name, tensor in first.model.items():
        np.testing.assert_array_equal(tensor, other.model[name])
    assert not np.array_equal(first.predictions.targets, other.predictions.targets)


@pytest.mark.parametrize("choose_by", SCORES)
def test_the_best_score_chooses_head_and_epoch(result_of: Any, choose_by: str) -> None:
    result = result_of(None, grid=GRID, epochs=4, choose_by=choose_by)
    (chosen,) = (row for row in result.sweep if row["chosen"])
    sign = 1 if choose_by == "log_loss" else -1
    assert sign * chosen[choose_by] == min(sign * row[choose_by] for row in result.sweep)
    assert len(result.history) == chosen["epoch"]
    alone = result_of(None, lr=chosen["lr"], weight_decay=chosen["weight_decay"], epochs=4, grid=())
    assert len(alone.history) == 4


def test_every_head_scores_as_when_it_is_trained_alone(result_of: Any) -> None:
    grid = ("lr=1e-3,1e-1", "layers=layer3,layer4+layer3")
    result = result_of(None, grid=grid, epochs=3, choose_by="log_loss", seed=5)
    assert len(result.sweep) == 4
    for row in result.sweep:
        alone = result_of(
            None, lr=row["lr"], layers=row["layers"], epochs=3, val_fraction=0.2, seed=5
        )
        losses = [record.val_loss for record in alone.history]
        assert row["epoch"] == 1 + losses.index(min(losses))
        assert row["log_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_the_chosen_head_is_trained_alone_up_to_its_epoch(result_of: Any) -> None:
    result = result_of(None, grid=GRID, epochs=4, choose_by="accuracy")
    (chosen,) = (row for row in result.sweep if row["chosen"])
    last = result.history[-1]
    assert last.epoch == chosen["epoch"]
    assert last.val_loss == pytest.approx(chosen["log_loss"], abs=1e-5)
    assert last.val_accuracy == chosen["accuracy"]
    assert len(result.validation) == 16
    assert result.validation.split == "validation"


def test_equal_scores_are_told_apart_by_log_loss_and_then_by_order(result_of: Any) -> None:
    # With two validation rows nearly everything ties.
    result = result_of(None, "logreg", grid=("C=1,100,0.1",), choose_by="auroc", val_fraction=0.03)
    assert len({row["auroc"] for row in result.sweep}) == 1
    (chosen,) = (row for row in result.sweep if row["chosen"])
    assert chosen["log_loss"] == min(row["log_loss"] for row in result.sweep)
    result = result_of(None, "logreg", grid=("class_weights=balanced,none",))
    assert [row["chosen"] for row in result.sweep] == [True, False]


def test_folds_inside_the_training_rows_choose_by_their_mean(result_of: Any) -> None:
    cache = StandInCache()
    result = result_of(cache, "logreg", grid=PATH, folds=4, choose_by="log_loss")
    (part,) = plan_of(cache)
    inner = folds_of(cache, part, 4)
    for row in result.sweep:
        scores = np.array([logistic_scores(cache, fold, row["C"]) for fold in inner])
        found = [row[name] for name in SCORES]
        np.testing.assert_allclose(found, scores.mean(axis=0), atol=1e-5)
        assert row["spread"] == pytest.approx(scores[:, 0].std(ddof=1), abs=1e-4)
    (chosen,) = (row for row in result.sweep if row["chosen"])
    X, y = cache.features(["layer4"]), define_task(cache.labels).targets
    expected = fit_logistic(X, y, part.train, C=chosen["C"]).tensors
    np.testing.assert_allclose(result.model["coef"], expected["coef"], atol=1e-4)
    assert sorted(result.validation.ids) == [cache.paths[row] for row in part.train]
    assert result.choice["words"].startswith(
        "Chosen among 3 heads by log loss on 4 folds of 80 training rows, then trained on all "
        "training rows: logreg, layers layer4, class_weights none, C "
    )


def test_folds_alone_choose_the_epoch(result_of: Any) -> None:
    result = result_of(None, folds=4, epochs=6, lr=0.3, choose_by="log_loss")
    (row,) = result.sweep
    assert len(result.history) == row["epoch"] < 6
    assert all(record.val_loss is None for record in result.history)
    assert result.choice["words"].startswith("Chosen by log loss on 4 folds of 80 training rows")


def test_refitting_trains_on_all_training_rows_and_decides_before(result_of: Any) -> None:
    cache = StandInCache()
    options = {"grid": PATH, "choose_by": "log_loss", "calibrate": True}
    once = result_of(cache, "logreg", **options)
    again = result_of(cache, "logreg", **options, refit=True)
    assert again.sweep == once.sweep
    assert again.decisions == once.decisions
    assert again.config["partitions"] == [{"fold": 0, "train": 80, "validation": 0, "test": 40}]
    (chosen,) = (row for row in again.sweep if row["chosen"])
    (part,) = plan_of(cache)
    X, y = cache.features(["layer4"]), define_task(cache.labels).targets
    expected = fit_logistic(X, y, part.train, C=chosen["C"]).tensors
    np.testing.assert_allclose(again.model["coef"], expected["coef"], atol=1e-4)
    assert not np.allclose(once.model["coef"], again.model["coef"], atol=1e-3)
    assert again.choice["refit"] is True


@pytest.mark.parametrize("how", [{}, {"folds": 3}], ids=["part", "folds"])
def test_in_cross_validation_each_fold_chooses_by_its_own_training_rows(
    result_of: Any, how: dict[str, int]
) -> None:
    cache = StandInCache(grouped=True)
    result = result_of(cache, "logreg", grid=PATH, cv=3, seed=2, choose_by="log_loss", **how)
    plan = plan_of(cache, cv=3, seed=2, val_fraction=0.0 if how else 0.2)
    groups = np.array(cache.groups)
    assert [row["fold"] for row in result.sweep] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for part, chosen in zip(plan, result.choice["chosen"], strict=True):
        inner = folds_of(cache, part, 3, seed=2) if how else [part]
        seen = np.concatenate([np.concatenate([p.train, p.validation]) for p in inner])
        assert not set(groups[seen]) & set(groups[part.test])
        losses = {
            C: np.mean([logistic_scores(cache, fold, C)[0] for fold in inner])
            for C in (0.001, 0.1, 10)
        }
        assert chosen["C"] == min(losses, key=losses.__getitem__)
    assert sorted(result.predictions.ids) == sorted(cache.paths)
    assert len(result.fold_models) == 3
    assert result.model == {}
    assert result.model_card["taps"] == ("layer4",)


def test_folds_that_choose_other_kinds_and_layers_say_so(
    result_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = iter([0, 3])
    monkeypatch.setattr(
        "ecgfeat.heads.experiment.best", lambda found: found[min(next(takes, 0), 3)]
    )
    monkeypatch.setattr("ecgfeat.heads.experiment.HeadJob._try", _quietly)
    result = result_of(None, "linear", "logreg", grid=("layers=layer3,layer4",), cv=2, seeds=2)
    assert result.kind == "both"
    assert [chosen["head"] for chosen in result.choice["chosen"]] == ["linear", "logreg"]
    assert result.model_card["fold_taps"] == [("layer3",), ("layer4",)]
    assert [set(tensors) for tensors in result.fold_models] == [
        {"weight", "bias"},
        {"mean", "scale", "coef", "intercept"},
    ]
    (repeat,) = result.repeats
    same = repeat.probabilities == result.predictions.probabilities
    assert same[repeat.folds == 1].all()
    assert not same[repeat.folds == 0].any()


def _quietly(job: Any, fold: Any, meter: Any, on_tried: Any) -> Any:
    return sweep_module.try_heads(
        job.data,
        job.pool,
        fold.choosing,
        seeds=job.seeds,
        choose_by=job.sweep.choose_by,
        meter=meter,
        on_tried=lambda _: None,
    )


def test_seeds_repeat_the_head_and_are_no_candidates(result_of: Any) -> None:
    three = result_of(None, seeds=3, seed=4)
    assert len(three.repeats) == 2
    for seed, predictions in zip((4, 5, 6), (three.predictions, *three.repeats)):
        alone = result_of(None, grid=(f"seed={seed}",), folds=0, val_fraction=0.2, epochs=5)
        assert alone.choice["seeds"] == [seed]
        assert predictions.ids == alone.predictions.ids
    first = result_of(None, seed=4)
    np.testing.assert_array_equal(first.predictions.probabilities, three.predictions.probabilities)
    assert len({predictions.probabilities.tobytes() for predictions in three.repeats}) == 2


def test_heads_are_ranked_by_the_mean_over_seeds(result_of: Any) -> None:
    options = {"epochs": 1, "val_fraction": 0.25}
    apart = [result_of(None, grid=(*GRID, f"seed={seed}"), **options) for seed in (3, 8)]
    together = result_of(None, grid=(*GRID, "seed=3,8"), **options)
    for rows in zip(together.sweep, *(result.sweep for result in apart)):
        for name in SCORES:
            mean = (rows[1][name] + rows[2][name]) / 2
            assert rows[0][name] == pytest.approx(mean, abs=1e-6)
    assert together.sweep[0]["spread"] is not None
    assert apart[0].sweep[0]["spread"] is None
    assert len(together.repeats) == 1


def test_logistic_regression_is_not_repeated(result_of: Any) -> None:
    result = result_of(None, "linear", "logreg", grid=("C=0.1", "lr=1e-9"), seeds=3)
    assert result.kind == "logreg"
    assert list(result.repeats) == []


@pytest.mark.parametrize(
    ("kind", "method", "how"),
    [
        ("linear", "temperature", {"val_fraction": 0.3}),
        ("logreg", "platt", {"val_fraction": 0.3}),
        ("logreg", "platt", {"folds": 3}),
    ],
    ids=["linear", "logreg", "folds"],
)
@pytest.mark.parametrize("cv", [0, 3])
def test_decisions_are_fixed_on_validation_rows_and_applied_to_the_test_rows(
    result_of: Any, kind: Any, method: Any, how: dict[str, Any], cv: int
) -> None:
    plain = result_of(None, kind, cv=cv, **how)
    settings = {"calibrate": True, "at_sensitivity": 0.9}
    decided = result_of(None, kind, cv=cv, **how, **settings)
    assert len(decided.decisions) == (cv or 1)
    assert plain.decisions == ()
    for fold, decision in enumerate(decided.decisions):
        assert decision.method == method
        rows = plain.predictions.folds == fold
        expected = decision.probabilities(plain.predictions.probabilities[rows])
        np.testing.assert_array_equal(decided.predictions.probabilities[rows], expected)
        answers = (expected[:, 1] >= decision.threshold).astype(int)
        np.testing.assert_array_equal(decided.predictions.predicted[rows], answers)
    if not cv:
        evaluation = EvaluationSettings(**settings)
        assert decided.decisions[0] == decide(plain.validation, method=method, settings=evaluation)
    found = decided.validation.predicted[decided.validation.targets == 1]
    assert found.mean() >= 0.9
    assert decided.choice["words"].startswith("Decided on" if "val_fraction" in how else "Chosen")


def test_the_learning_curve_grows_and_ends_at_the_head_itself(result_of: Any) -> None:
    result = result_of(None, grid=GRID, epochs=3, learning_curve=True, choose_by="log_loss")
    curve = result.learning_curve
    assert [row["seed"] for row in curve] == [0, 1, 2] * 6
    assert [row["n_train"] for row in curve[::3]] == [4, 6, 12, 26, 44, 64]
    (chosen,) = (row for row in result.sweep if row["chosen"])
    for name in SCORES:
        assert curve[15][name] == pytest.approx(chosen[name], abs=1e-5)


def test_the_learning_curve_takes_the_seeds_asked_for(result_of: Any) -> None:
    result = result_of(None, "logreg", seeds=4, seed=2, val_fraction=0.2, learning_curve=True)
    assert [row["seed"] for row in result.learning_curve[:5]] == [2, 3, 4, 5, 2]
    assert len({row["auroc"] for row in result.learning_curve[-4:]}) == 1


def test_a_head_that_diverges_is_not_chosen(result_of: Any) -> None:
    cache = StandInCache()
    cache.by_tap["layer3"] = np.sign(cache.by_tap["layer4"]) * np.float32(3e38)
    result = result_of(cache, grid=("layers=layer3,layer4",), folds=3)
    diverged, sound = result.sweep
    assert diverged["auroc"] is diverged["log_loss"] is diverged["spread"] is None
    assert sound["chosen"] is True
    json.dumps(result.choice, allow_nan=False)
    with pytest.raises(DataError) as caught:
        result_of(cache, grid=("layers=layer3", "lr=1,2"))
    assert str(caught.value) == (
        "all 2 heads diverged, so there is none to choose. Try lower values of lr."
    )


def test_an_interrupted_sweep_keeps_what_is_finished_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "HEADS_AT_ONCE", 2)

    def stop(progress: Progress) -> None:
        if "Tried 4/6" in progress.message:
            raise Interrupted

    with pytest.raises(Interrupted) as caught:
        fit(tmp_path, None, grid=GRID, report=stop)
    (folder,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"{folder / 'sweep.csv'} keeps the 4 heads that were tried"]
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["lr"], row["weight_decay"]) for row in rows] == [
        ("0.001", "0.0"),
        ("0.001", "0.1"),
        ("0.01", "0.0"),
        ("0.01", "0.1"),
    ]
    assert not (folder / "metrics.json").exists()


def test_a_sweep_that_is_stopped_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted) as caught:
        fit(tmp_path, None, grid=GRID, report=stop)
    assert caught.value.__notes__ == [
        "no head had been tried on all its rows and seeds: nothing is kept"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"grid": (*GRID, *PATH), "folds": 3, "cv": 2, "seeds": 2, "epochs": 3},
        {"grid": (*GRID, *PATH, "seed=1,2"), "refit": True, "learning_curve": True},
        {"folds": 2},
        {"val_fraction": 0.2, "seeds": 2, "learning_curve": True},
    ],
)
def test_progress_counts_up_to_its_total_in_every_stage(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    reports: list[Progress] = []
    kinds = ("linear", "logreg") if "C=" in str(options.get("grid")) else ("linear",)
    fit(tmp_path, None, *kinds, report=reports.append, **options)
    stages = list(dict.fromkeys(progress.stage for progress in reports))
    n_stages = ("grid" in options or "folds" in options) + 1 + ("learning_curve" in options)
    assert len(stages) == n_stages
    for stage in stages:
        done = [progress.done for progress in reports if progress.stage == stage]
        (total,) = {progress.total for progress in reports if progress.stage == stage}
        assert done == sorted(done)
        assert done[-1] == total > 0


def test_the_best_so_far_is_told(tmp_path: Path) -> None:
    reports: list[Progress] = []
    (run,) = fit(tmp_path, None, grid=GRID, cv=2, report=reports.append)
    told = [progress.message for progress in reports if "Tried" in progress.message]
    assert [line[:41] for line in told] == [
        "[Fixed Feature] Fold 1/2 | Tried 6/6 head",
        "[Fixed Feature] Fold 2/2 | Tried 6/6 head",
    ]
    chosen = run.metrics["choice"]["chosen"][1]
    assert told[1].endswith(f", epoch {chosen['epoch']}: AUROC {chosen['auroc']:.4f}")


class CountingCache(StandInCache):
    """Counts how often features are read."""

    n_read = 0

    def features(self, taps: Any) -> NDArray[np.float32]:
        self.n_read += 1
        return super().features(taps)


@pytest.mark.parametrize(
    ("options", "n_read"),
    [
        ({"cv": 3, "seeds": 2}, 1),
        ({"grid": GRID, "cv": 2, "folds": 2, "seeds": 2}, 1),
        ({"grid": ("layers=layer3,layer4",), "choose_by": "auroc"}, 3),
    ],
)
def test_features_are_read_once_for_each_set_of_layers(
    result_of: Any, options: dict[str, Any], n_read: int
) -> None:
    cache = CountingCache()
    result_of(cache, **options)
    assert cache.n_read <= n_read


@pytest.mark.parametrize("how", [{"cv": 3}, {"grid": GRID, "folds": 3}, {"val_fraction": 0.2}])
def test_no_rows_are_copied(result_of: Any, how: dict[str, Any]) -> None:
    cache = StandInCache(n=12_000)
    cache.by_tap["layer4"] = np.tile(cache.by_tap["layer4"], (1, 60))
    size = cache.by_tap["layer4"].nbytes
    result_of(None, epochs=1, **how)  # so that what is imported isn't counted
    tracemalloc.start()
    result_of(cache, epochs=1, **how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"folds": 3, "val_fraction": 0.2},
            "--folds and --val-fraction both say which rows choose: give one of the two",
        ),
        (
            {"learning_curve": True},
            "--learning-curve is scored on validation rows, and there are none: also give "
            "--val-fraction 0.2 or --folds 5",
        ),
        (
            {"learning_curve": True, "cv": 3, "folds": 2},
            "--learning-curve draws one curve, and --cv trains on other rows in every fold: give "
            "one of the two",
        ),
        (
            {"kinds": ("linear", "svm")},
            "kinds must name heads to fit (linear, logreg); found 'svm'",
        ),
        (
            {"kinds": ("logreg",), "seeds": 2},
            "--seeds repeats the training of a linear head, and logistic regression has nothing "
            "that a seed could change: leave it out, or give --head linear or both",
        ),
        (
            {"folds": 41},
            "--folds 41 needs at least 41 groups (or ungrouped rows) of every class; 'a' has 40. "
            "Give a smaller --folds.",
        ),
        (
            {"grid": ("layers=layer1",)},
            "--layers names ('layer1',), but there is only ['layer3', 'layer4']",
        ),
        (
            {"calibrate": True},
            "--calibrate is fixed on validation rows, and there are none: also give "
            "--val-fraction, such as 0.2",
        ),
    ],
)
def test_what_can_not_be_done_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    cache = StandInCache()
    refuse_reading(cache)
    with pytest.raises((ConfigError, DataError)) as caught:
        fit(tmp_path, cache, *options.pop("kinds", ("linear",)), **options)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def refuse_reading(cache: StandInCache) -> None:
    """Make reading features, without which there is no work, an error."""

    def refuse(_: object) -> NDArray[np.float32]:
        raise AssertionError("features were read")

    cache.features = refuse  # type: ignore[method-assign]


NO_VALIDATION = (
    "there would be no validation rows of {}, so nothing could be chosen, calibrated or decided: "
    "too few groups (or ungrouped rows) hold these classes. Add data, give another "
    "--val-fraction, --folds or --seed, or join classes with --positive."
)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": ("lr=1,2",)},
        {"val_fraction": 0.2, "calibrate": True},
        {"val_fraction": 0.2, "at_sensitivity": 0.9},
        {"val_fraction": 0.2, "learning_curve": True},
    ],
    ids=["choosing", "calibrating", "deciding", "learning"],
)
def test_validation_rows_without_a_class_are_refused_where_they_decide(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    cache = StandInCache()
    of_b = [i for i, label in enumerate(cache.labels) if label == "b"]
    cache.groups = tuple("one patient" if i in of_b else "" for i in range(120))
    cache.splits = tuple("train" if i in of_b else split for i, split in enumerate(cache.splits))
    refuse_reading(cache)
    with pytest.raises(DataError) as caught:
        fit(tmp_path, cache, **options)
    assert str(caught.value) == NO_VALIDATION.format("'b'")


def test_one_group_only_is_refused(tmp_path: Path) -> None:
    cache = StandInCache()
    cache.groups = tuple("one" if split == "train" else "" for split in cache.splits)
    refuse_reading(cache)
    with pytest.raises(DataError) as caught:
        fit(tmp_path, cache, grid=GRID)
    assert str(caught.value) == NO_VALIDATION.format("'a', 'b'")
    cache.groups = ("one",) * 120
    with pytest.raises(DataError, match="--cv 2 needs at least 2 groups"):
        fit(tmp_path, cache, cv=2)


def test_an_inner_fold_without_a_class_is_refused(tmp_path: Path) -> None:
    cache = StandInCache()
    of_b = [i for i, label in enumerate(cache.labels) if label == "b" and i % 3]
    cache.groups = tuple(f"g{i % 2}" if i in of_b[:20] else "" for i in range(120))
    cache.labels = tuple("b" if i in of_b[:20] else "a" for i in range(120))
    cache.splits = tuple("test" if i in (0, 1) else "train" for i in range(120))
    with pytest.raises(DataError, match="--folds 3 needs at least 3 groups"):
        fit(tmp_path, cache, folds=3)


def test_features_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    cache = StandInCache()
    cache.by_tap["layer4"] = np.ones_like(cache.by_tap["layer4"])
    with pytest.raises(DataError) as caught:
        fit(tmp_path, cache)
    assert str(caught.value) == (
        "all 120 images have the same features in layer4, so no head can tell them apart. Look at "
        "the images (are they blank?) and at the weights, and extract again."
    )
    assert list(tmp_path.iterdir()) == []


def test_one_constant_feature_is_fine(result_of: Any) -> None:
    cache = StandInCache()
    cache.by_tap["layer4"][:, 2] = 4
    assert math.isfinite(result_of(cache, grid=GRID).choice["chosen"][0]["auroc"])


def test_a_choice_at_the_edge_of_its_grid_says_so(result_of: Any) -> None:
    chosen = result_of(None, "logreg", grid=("C=1e-6,1e-5,1e-4",)).notices
    assert [line for line in chosen if "--grid C=…" in line]


def test_a_test_on_a_picture_that_is_trained_on_is_refused_unless_allowed(result_of: Any) -> None:
    cache = StandInCache()
    assert not [line for line in result_of(cache, "logreg").notices if "byte for byte" in line]
    cache.pictures[cache.splits.index("test")] = cache.pictures[cache.splits.index("train")]
    with pytest.raises(DataError, match=r"1 of .* also among those trained on.*--allow-leak"):
        result_of(cache, "logreg")
    notices = result_of(cache, "logreg", allow_leak=True).notices
    assert [line for line in notices if line.startswith(LEAK + "1 of ")]


def test_a_named_validation_part_chooses(result_of: Any) -> None:
    cache = StandInCache()
    train = [row for row, split in enumerate(cache.splits) if split == "train"]
    named = set(train[:20])
    cache.splits = tuple("val" if row in named else s for row, s in enumerate(cache.splits))
    result = result_of(cache, "logreg", grid=PATH)
    assert set(result.validation.ids) == {cache.paths[row] for row in named}
    assert result.choice["n_rows"] == [len(named)]
    with pytest.raises(ConfigError, match=r"the data name \d+ of their own"):
        result_of(cache, "logreg", grid=PATH, val_fraction=0.2)
