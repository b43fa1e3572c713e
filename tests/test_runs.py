from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfeat import metrics, runs
from ecgfeat.calibration import Decision
from ecgfeat.config import FigureSettings
from ecgfeat.errors import RunError, StorageError
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import Partition
from ecgfeat.runs import (
    Cost,
    EpochRecord,
    Result,
    Run,
    create_run,
    open_run,
    write_run,
    write_sweep,
)
from ecgfeat.runs.folder import write_predictions

SPECIFICATION = (Path(__file__).parents[1] / "docs" / "run-format.md").read_text(encoding="utf-8")
COST = Cost(
    wall_s=1.5,
    features_s=20.0,
    images_per_s=250.0,
    peak_memory_mib=321.0,
    arch="resnet18",
    batch_size=64,
    device="cpu",
    precision="fp32",
)
HISTORY = (
    EpochRecord(fold=0, epoch=1, loss=0.7, accuracy=0.5, val_loss=0.69, val_accuracy=0.55),
    EpochRecord(fold=0, epoch=2, loss=1 / 3, accuracy=0.75, val_loss=0.5, val_accuracy=0.6),
)


def some_predictions(n: int = 12, split: str = "test") -> Predictions:
    random = np.random.default_rng(n)
    positive = random.random(n)
    return Predictions(
        ids=tuple(f"test/{index:02d}.png" for index in range(n)),
        classes=("no-lvh", "lvh"),
        targets=np.arange(n) % 2,
        probabilities=np.column_stack([1 - positive, positive]),
        groups=("",) * n,
        split=split,
        folds=np.arange(n) % 3 if split == "cv" else np.zeros(n, np.int64),
    )


def some_result(**changes: object) -> Result:
    result = Result(
        kind="linear",
        data_name="pages",
        config={"evaluation": {"seed": 0}},
        history=HISTORY,
        predictions=some_predictions(),
        n_test_total=12,
        cost=COST,
        model={"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2)},
        model_card={"taps": ["layer4"]},
    )
    return replace(result, **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return create_run(tmp_path / "runs", "linear", "pages")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = create_run(tmp_path_factory.mktemp("template"), "linear", "pages")
    write_run(folder, some_result())
    return folder


@pytest.fixture
def finished(template: Path, tmp_path: Path) -> Path:
    """A finished run of `some_result`, to be spoilt."""
    return Path(shutil.copytree(template, tmp_path / "finished"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_written_run_reads_back_as_it_was(folder: Path) -> None:
    result = some_result()
    write_run(folder, result)
    run = open_run(folder)
    assert (run.path, run.name, run.kind) == (folder.resolve(), folder.name, "linear")
    assert run.config["evaluation"] == {"seed": 0}
    assert (run.config["data"], run.config["format_version"]) == ("pages", 1)
    assert run.history == HISTORY
    assert run.cost == COST
    assert run.predictions.ids == result.predictions.ids
    assert run.predictions.classes == ("no-lvh", "lvh")
    np.testing.assert_array_equal(run.predictions.targets, result.predictions.targets)
    np.testing.assert_array_equal(run.predictions.probabilities, result.predictions.probabilities)
    assert run.model_card == {
        "format_version": 1,
        "kind": "linear",
        "classes": ["no-lvh", "lvh"],
        "taps": ["layer4"],
    }
    np.testing.assert_array_equal(run.model()["weight"], result.model["weight"])
    assert run.model()["weight"].dtype == np.float32


@pytest.mark.figures
def test_a_run_holds_the_documented_files_and_nothing_else(folder: Path) -> None:
    write_run(folder, some_result())
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy_curve.png",
        "classification_report.txt",
        "config.json",
        "confusion_matrix.png",
        "history.csv",
        "loss_curve.png",
        "metrics.json",
        "model.json",
        "model.safetensors",
        "precision_recall.png",
        "predictions.csv",
        "reliability.png",
        "roc.png",
    ]


def test_a_run_without_epochs_has_no_curve_and_an_empty_history(folder: Path) -> None:
    run = write_run(folder, some_result(kind="logreg", history=()))
    assert run.history == ()
    assert not (folder / "accuracy_curve.png").exists()


def test_metrics_json_has_scores_with_intervals_and_what_they_rest_on(folder: Path) -> None:
    result = some_result()
    found = write_run(folder, result).metrics
    scores = metrics.evaluate(result.predictions)
    accuracy = scores["accuracy"]
    assert accuracy is not None
    assert found["scores"]["accuracy"] == {
        "value": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "method": "wilson",
    }
    assert list(found["scores"]) == list(scores)
    assert len(scores) == 12
    assert (found["n_test"], found["n_test_total"], found["test_rows"]) == (12, 12, "all 12")
    assert (found["split"], found["positive"], found["classes"]) == (
        "test",
        "lvh",
        ["no-lvh", "lvh"],
    )
    assert found["confusion_matrix"] == metrics.confusion_matrix(result.predictions).tolist()


def test_an_undefined_score_is_null(folder: Path) -> None:
    one_class = replace(some_predictions(), targets=np.zeros(12, np.int64))
    run = write_run(folder, some_result(predictions=one_class))
    assert run.metrics["scores"]["auroc"] is None
    assert "NaN" not in (folder / "metrics.json").read_text()


@pytest.mark.figures
def test_a_subset_of_the_test_rows_is_named_as_one_everywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(
        runs.writing.figures, "confusion_matrix_plot", lambda *args: titles.append(args[-1])
    )
    subset = some_predictions(split="test-subset")
    run = write_run(folder, some_result(predictions=subset, n_test_total=18136))
    assert run.metrics["test_rows"] == "subset of 12 of 18136"
    headline = "Linear head on pages, test rows: subset of 12 of 18136, positive: lvh"
    assert (folder / "classification_report.txt").read_text().splitlines()[0] == headline
    assert titles == [headline]


def test_the_report_is_a_headline_and_the_table(folder: Path) -> None:
    result = some_result()
    text = write_run(folder, result).report
    table = metrics.classification_table(result.predictions)
    assert text == f"Linear head on pages, test rows: all 12, positive: lvh\n\n{table}"


def test_a_cross_validation_names_its_folds_and_keeps_no_model(folder: Path) -> None:
    run = write_run(folder, some_result(predictions=some_predictions(split="cv"), model={}))
    assert run.metrics["test_rows"] == "all 12, in 3 folds"
    assert not (folder / "model.safetensors").exists()
    message = f"{run.path} keeps no model: it is a cross-validation. Run its command without --cv, "
    for read in (lambda: run.model_card, run.model):
        with pytest.raises(RunError) as caught:
            read()
        assert str(caught.value) == f"{message}and use that run."


# Every text that a Linux file name can be decoded to, the undecodable bytes as surrogates; and
# what a CSV would stumble over.
NAMES = st.one_of(
    st.binary(max_size=20).map(
        lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    ),
    st.text(alphabet=",;\"\n\r\t 'ä\udcff", max_size=8),
)
PROBABILITIES = st.floats(0, 1, allow_subnormal=True)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(NAMES, NAMES, PROBABILITIES, PROBABILITIES), min_size=1, max_size=5),
    classes=st.lists(NAMES, min_size=2, max_size=2, unique=True),
)
def test_predictions_survive_the_file_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, float, float]],
    classes: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("predictions")
    before = Predictions(
        ids=tuple(row[0] for row in rows),
        classes=tuple(classes),
        targets=np.arange(len(rows)) % 2,
        probabilities=np.array([row[2:] for row in rows]),
        groups=tuple(row[1] for row in rows),
        split="test",
        folds=np.arange(len(rows)),
    )
    write_predictions(folder, before)
    after = Run(path=folder, config={}, metrics={}).predictions
    assert (after.ids, after.groups, after.classes) == (before.ids, before.groups, before.classes)
    assert after.probabilities.tobytes() == before.probabilities.tobytes()
    np.testing.assert_array_equal(after.targets, before.targets)
    np.testing.assert_array_equal(after.folds, before.folds)


def test_predictions_csv_is_read_by_any_csv_reader(folder: Path) -> None:
    result = some_result()
    write_run(folder, result)
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("path", "group", "split", "fold", "target", "predicted"),
        *("p_no-lvh", "p_lvh"),
    ]
    assert rows[1]["path"] == "test/01.png"
    assert rows[1]["target"] == "lvh"
    assert float(rows[1]["p_lvh"]) == result.predictions.probabilities[1, 1]


def full_result(**changes: object) -> Result:
    """A result that has everything a result can have."""
    decision = Decision(method="platt", slope=0.8, offset=0.1, threshold=0.3)
    predictions = decision.apply(some_predictions())
    row = {"head": "linear", "lr": 1e-3, "C": None, "auroc": 0.75, "spread": None, "chosen": True}
    return some_result(
        predictions=predictions,
        decisions=(decision,),
        validation=decision.apply(some_predictions(20, split="validation")),
        repeats=tuple(decision.apply(reseeded(seed)) for seed in (1, 2)),
        choice={"words": "lr 0.001 by AUROC on 20 validation rows", "by": "auroc"},
        sweep=(row, {**row, "lr": 1e-2, "auroc": None, "chosen": False}),
        learning_curve=[
            {
                "fraction": n / 20,
                "n_train": n,
                "seed": seed,
                "accuracy": 0.5 + 0.1 * seed,
                "auroc": None,
            }
            for n in (10, 20)
            for seed in (0, 1)
        ],
        prevalence=0.02,
        **changes,
    )


def reseeded(seed: int) -> Predictions:
    predictions = some_predictions()
    positive = np.random.default_rng(100 + seed).random(len(predictions))
    return replace(predictions, probabilities=np.column_stack([1 - positive, positive]))


@pytest.mark.figures
def test_everything_a_result_can_have_is_kept_and_read_back(folder: Path) -> None:
    result = full_result()
    run = write_run(folder, result)
    files = {path.name for path in folder.iterdir()}
    assert {"sweep.csv", "sweep.png", "learning_curve.csv", "learning_curve.png"} <= files
    assert run.decision == result.decisions[0]
    assert run.metrics["decisions"] == [result.decisions[0].as_json()]
    assert run.metrics["choice"] == result.choice
    assert run.metrics["prevalence"] == 0.02
    assert run.metrics["scores"]["ppv_at_prevalence"]["method"] == "mover-r"
    assert result.validation is not None
    assert run.validation.split == "validation"
    for found, kept in ((run.predictions, result.predictions), (run.validation, result.validation)):
        np.testing.assert_array_equal(found.probabilities, kept.probabilities)
        np.testing.assert_array_equal(found.predicted, kept.predicted)
    # Some answers are not the most probable class, or this would prove little.
    assert (run.predictions.predicted != run.predictions.probabilities.argmax(axis=1)).any()
    with (folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lr"] for row in rows] == ["0.001", "0.01"]
    assert (rows[1]["auroc"], rows[1]["C"], rows[1]["chosen"]) == ("", "", "False")


def test_the_spread_over_seeds_counts_the_run_itself(folder: Path) -> None:
    result = full_result()
    spread = write_run(folder, result).metrics["over_seeds"]
    values = [
        float(np.mean(each.predicted == each.targets))
        for each in (result.predictions, *result.repeats)
    ]
    assert spread["accuracy"] == {
        "n": 3,
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values, ddof=1)),
    }
    assert spread["auroc"]["n"] == 3


def test_the_spread_over_folds_leaves_out_what_a_fold_leaves_undefined(folder: Path) -> None:
    predictions = some_predictions(split="cv")
    targets = predictions.targets.copy()
    targets[predictions.folds == 0] = 1
    run = write_run(
        folder, some_result(predictions=replace(predictions, targets=targets), model={})
    )
    spread = run.metrics["over_folds"]
    assert (spread["accuracy"]["n"], spread["auroc"]["n"]) == (3, 2)
    by_fold = [
        np.mean((predictions.predicted == targets)[predictions.folds == fold]) for fold in range(3)
    ]
    assert spread["accuracy"]["mean"] == pytest.approx(np.mean(by_fold))


def test_a_cross_validated_heads_models_are_kept_by_fold(folder: Path) -> None:
    models = [{"weight": np.full((2, 3), fold, np.float32)} for fold in range(3)]
    decisions = [Decision(threshold=0.1 * fold) for fold in range(3)]
    cv = some_predictions(split="cv")
    run = write_run(
        folder, some_result(predictions=cv, model={}, fold_models=models, decisions=decisions)
    )
    found = run.fold_models()
    assert len(found) == 3
    for fold, tensors in enumerate(found):
        np.testing.assert_array_equal(tensors["weight"], models[fold]["weight"])
    assert run.model_card["taps"] == ["layer4"]
    assert "decision" not in run.model_card
    assert [fields["threshold"] for fields in run.metrics["decisions"]] == [0.0, 0.1, 0.2]
    for read in (run.model, lambda: run.decision):
        with pytest.raises(RunError, match="keeps no model: it is a cross-validation"):
            read()


def test_fold_models_that_are_not_there_or_not_numbered_are_refused(finished: Path) -> None:
    run = open_run(finished)
    with pytest.raises(RunError, match="keeps no models of folds: only heads"):
        run.fold_models()
    for names in (["fold1/weight"], ["weight"], ["fold0/weight", "fold2/weight"]):
        tensors = {name: np.zeros(2, np.float32) for name in names}
        (finished / "fold_models.safetensors").write_bytes(safetensors.numpy.save(tensors))
        with pytest.raises(RunError, match="its tensors are not numbered by fold from 0"):
            run.fold_models()


def test_a_run_without_a_decision_answers_the_most_probable_class(finished: Path) -> None:
    assert open_run(finished).decision == Decision()


def test_a_hostile_decision_is_refused(finished: Path) -> None:
    for decision in ("none", {"method": "temperature", "slope": -1.0, "offset": 0.0}):
        edit_json(finished / "model.json", decision=decision)
        with pytest.raises(RunError, match=r"model.json is damaged: .*Run its command again"):
            _ = open_run(finished).decision


def test_a_sweep_under_way_keeps_what_is_done(folder: Path) -> None:
    write_sweep(folder, [{"lr": 0.1, "auroc": 0.7}])
    write_sweep(folder, [{"lr": 0.1, "auroc": 0.7}, {"lr": 0.01, "auroc": None}])
    assert (folder / "sweep.csv").read_bytes() == b"lr,auroc\r\n0.1,0.7\r\n0.01,\r\n"
    with pytest.raises(RunError, match="is not a run"):
        open_run(folder)


def test_a_run_of_the_first_writers_still_opens_and_compares() -> None:
    old = open_run(Path(__file__).parent / "data" / "run-v1")
    assert set(old.metrics["scores"]) == {"accuracy", "balanced_accuracy", "auroc"}
    assert [record.lr for record in old.history] == [None, None]
    assert old.decision == Decision()
    assert old.model()["weight"].shape == (2, 3)
    scores = metrics.evaluate(old.predictions)
    for name, kept in old.metrics["scores"].items():
        found = scores[name]
        assert found is not None
        assert dataclasses.asdict(found) == pytest.approx(kept, abs=1e-12)
    assert scores["sensitivity"] is not None


def test_the_specification_names_everything_that_is_written(folder: Path) -> None:
    models = [{"weight": np.zeros((2, 3), np.float32)}]
    cv = some_predictions(split="cv")
    found: set[str] = set()
    for name, result in (
        ("one", full_result()),
        ("cv", some_result(predictions=cv, model={}, fold_models=models)),
    ):
        (folder / name).mkdir()
        run = write_run(folder / name, result)
        found |= {path.name for path in run.path.iterdir()}
        scores, card = run.metrics["scores"], run.model_card
        found |= {*run.metrics, *scores, *scores["accuracy"], *run.metrics["cost"]}
        found |= {*run.metrics["over_folds" if name == "cv" else "over_seeds"]["accuracy"]}
        found |= {*card.get("decision", ())} | {*card} - {"taps"}
        for file, n_columns in (("history.csv", None), ("predictions.csv", 6)):
            found |= {*(run.path / file).read_text().splitlines()[0].split(",")[:n_columns]}
    assert {name for name in found if f"`{name}`" not in SPECIFICATION} == set()


def test_class_names_that_are_no_utf8_leave_json_valid(folder: Path) -> None:
    classes = ("a", os.fsdecode(b"\xff"))
    predictions = replace(some_predictions(), classes=classes)
    run = write_run(folder, some_result(predictions=predictions))
    (folder / "metrics.json").read_bytes().decode("ascii")
    assert tuple(run.metrics["classes"]) == classes
    assert run.predictions.classes == classes


def test_tensors_are_stored_right_whatever_their_strides(folder: Path) -> None:
    transposed = np.arange(6.0).reshape(2, 3).T
    run = write_run(folder, some_result(model={"coef": transposed}))
    np.testing.assert_array_equal(run.model()["coef"], transposed)


def test_many_runs_begun_in_the_same_second_have_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(10) as threads:
        begun = threads.map(lambda _: create_run(tmp_path, "linear", "pages"), range(50))
    assert len(set(begun)) == len(list(tmp_path.iterdir())) == 50


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    names = {create_run(tmp_path / "deep" / "runs", "linear", "pages").name for _ in range(4)}
    assert len(names) == 4
    assert any(name.endswith("-linear-pages-2") for name in names)


def test_a_data_name_cannot_lead_out_of_the_parent_folder(tmp_path: Path) -> None:
    folder = create_run(tmp_path / "runs", "linear", "../../evil\0/name")
    assert folder.parent == tmp_path / "runs"
    assert folder.is_dir()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"^making .*runs/.*-linear-pages failed: a file is in"):
        create_run(tmp_path / "runs", "linear", "pages")


def n_writes(monkeypatch: pytest.MonkeyPatch, folder: Path, fail_at: int) -> int:
    """Write a run whose `fail_at`-th file meets a full disk; returns how many files were begun."""
    begun = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal begun
        begun += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if begun == fail_at:
            raise OSError(errno.ENOSPC, "full")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        write_run(folder, some_result())
    return begun


N_FIGURES = 6


@pytest.mark.figures
def test_a_full_disk_at_any_file_but_a_figure_leaves_a_run_that_is_plainly_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_files = n_writes(monkeypatch, create_run(tmp_path, "linear", "pages"), fail_at=0)
    assert n_files >= 7 + N_FIGURES
    for number in range(1, n_files - N_FIGURES + 1):
        folder = create_run(tmp_path, "linear", "pages")
        with pytest.raises(StorageError, match="the disk is full: free some space"):
            n_writes(monkeypatch, folder, fail_at=number)
        with pytest.raises(RunError, match=r"is not a run|is unfinished"):
            open_run(folder)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.figures
def test_a_figure_that_meets_a_full_disk_costs_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_files = n_writes(monkeypatch, create_run(tmp_path, "linear", "pages"), fail_at=0)
    whole = None
    for number in (n_files - N_FIGURES + 1, n_files):  # all are drawn by one loop
        folder = create_run(tmp_path, "linear", "pages")
        n_writes(monkeypatch, folder, fail_at=number)
        run = open_run(folder)
        (notice,) = [line for line in run.metrics["notices"] if ".png" in line]
        name = notice.split()[0]
        assert not (folder / name).exists()
        assert "the disk is full" in notice
        present = {path.name for path in folder.iterdir()} | {name}
        whole = whole or present
        assert present == whole
        assert len(run.predictions) == 12


@pytest.mark.figures
def test_a_disk_that_stays_full_leaves_a_finished_run_and_tells_whoever_waits_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such font\nand more")

    def full(path: Path, content: object) -> None:
        if path.name == "metrics.json" and path.exists():
            raise StorageError("the disk is full")
        real(path, content)  # type: ignore[arg-type]

    real = runs.writing.write_json
    monkeypatch.setattr(runs.writing, "write_json", full)
    monkeypatch.setattr(runs.writing.figures, "roc_plot", fail)
    run = write_run(folder, some_result())
    assert run.metrics["notices"][-1] == (
        "roc.png is missing, the run's other files are whole: no such font"
    )
    assert open_run(folder).metrics["scores"] == run.metrics["scores"]


@pytest.mark.figures
def test_figures_look_as_they_are_asked_to(folder: Path) -> None:
    look = FigureSettings(figure_format="svg", title=False, names="no-lvh=no LVH, lvh=LVH")
    run = write_run(folder, full_result(), look=look)
    assert not run.metrics["notices"][1:]
    drawn = {path.stem: path.read_text() for path in folder.glob("*.svg")}
    assert drawn.keys() == {
        *("accuracy_curve", "loss_curve", "confusion_matrix", "roc", "precision_recall"),
        *("reliability", "sweep", "learning_curve"),
    }
    assert not list(folder.glob("*.png"))
    assert ">no LVH</text>" in drawn["confusion_matrix"]
    assert ">Probability of LVH</text>" in drawn["reliability"]
    assert not any("on pages" in text for text in drawn.values())
    assert run.metrics["classes"] == ["no-lvh", "lvh"]


@pytest.mark.figures
def test_a_run_is_given_before_its_figures_are_drawn(folder: Path) -> None:
    found: list[tuple[list[str], set[str]]] = []

    def look_at(run: runs.Run) -> None:
        assert open_run(run.path).metrics == run.metrics
        found.append((run.metrics["notices"], {path.suffix for path in folder.iterdir()}))

    run = write_run(folder, some_result(), on_written=look_at)
    ((notices, suffixes),) = found
    assert ".png" not in suffixes
    assert run.metrics["notices"] == notices
    assert (folder / "roc.png").exists()


@pytest.mark.figures
@pytest.mark.parametrize(
    ("history", "choice", "expected"),
    [
        (HISTORY, {}, []),
        (HISTORY, {"by": "auroc", "epoch": [2], "score": [0.7]}, [2]),
        (HISTORY, {"by": "auroc", "chosen": [{"fold": 0, "epoch": 1}]}, [1]),
        # Of another fold's logistic regression there is no history.
        (
            [replace(record, fold=1) for record in HISTORY],
            {"chosen": [{"fold": 0, "epoch": None}, {"fold": 1, "epoch": 2}]},
            [2],
        ),
    ],
)
def test_the_chosen_epoch_of_each_fold_is_drawn(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    history: list[EpochRecord],
    choice: dict[str, object],
    expected: list[int],
) -> None:
    drawn = []
    for name in ("accuracy_curve", "loss_curve"):
        monkeypatch.setattr(runs.writing.figures, name, lambda *given: drawn.append(given[-1]))
    write_run(folder, some_result(history=tuple(history), choice=choice))
    assert drawn == [expected, expected]


def skewed_predictions(right: int, *, n: int = 40, n_positive: int = 10) -> Predictions:
    """The first `n_positive` rows are positive; the first `right` of them are found."""
    targets = (np.arange(n) < n_positive).astype(np.int64)
    positive = np.where(np.arange(n) < right, 0.9, 0.1)
    return Predictions(
        ids=tuple(f"p{row}.png" for row in range(n)),
        classes=("no-lvh", "lvh"),
        targets=targets,
        probabilities=np.column_stack([1 - positive, positive]),
        groups=("",) * n,
        split="test",
        folds=np.zeros(n, np.int64),
    )


def test_a_result_that_answers_one_class_says_so_and_what_to_try(folder: Path) -> None:
    result = some_result(predictions=skewed_predictions(0), training_counts=[[30, 10]])
    run = write_run(folder, result)
    assert run.metrics["majority"] == {"classes": ["no-lvh"], "accuracy": 0.75, "p_value": 1.0}
    assert run.metrics["notices"] == [
        "answers 'no-lvh' for all 40 test rows, so it tells nothing apart: try more --epochs, "
        "another --lr or --head logreg",
        "accuracy 0.750 is no better than always answering 'no-lvh', the majority of the training "
        "rows (0.750; McNemar's p 1): test on more rows, or try more --epochs, another --lr or "
        "--head logreg",
    ]
    assert run.report.endswith("\nAlways the training rows' majority: accuracy 0.7500\n")


@pytest.mark.parametrize(("right", "is_better"), [(5, False), (6, True), (10, True)])
def test_no_better_than_the_majority_is_by_mcnemars_exact_test(
    folder: Path, right: int, is_better: bool
) -> None:
    result = some_result(predictions=skewed_predictions(right), training_counts=[[30, 10]])
    run = write_run(folder, result)
    assert run.metrics["majority"]["p_value"] == pytest.approx(2 * 0.5**right)
    assert run.metrics["notices"] == [] if is_better else len(run.metrics["notices"]) == 1


def test_rows_of_one_group_are_no_evidence_each_against_the_majority(folder: Path) -> None:
    predictions = replace(skewed_predictions(10), groups=("a",) * 10 + ("",) * 30)
    run = write_run(folder, some_result(predictions=predictions, training_counts=[[30, 10]]))
    assert run.metrics["majority"]["p_value"] == 1.0
    assert "not surely better than" in run.metrics["notices"][0]


def test_the_majority_is_that_of_each_folds_training_rows(folder: Path) -> None:
    predictions = some_predictions(split="cv")
    counts = [[9, 1], [1, 9], [9, 1]]
    run = write_run(folder, some_result(predictions=predictions, model={}, training_counts=counts))
    right = (predictions.folds == 1).astype(int) == predictions.targets
    assert run.metrics["majority"]["classes"] == ["no-lvh", "lvh", "no-lvh"]
    assert run.metrics["majority"]["accuracy"] == right.mean()


@pytest.mark.parametrize("n_rows", [9, 10])
@pytest.mark.parametrize(
    ("decision", "what"),
    [
        (Decision(method="temperature", slope=0.5), "calibrated"),
        (Decision(threshold=0.2), "its threshold set"),
        (Decision(method="temperature", slope=0.5, threshold=0.2), "calibrated and its threshold"),
    ],
)
def test_what_rests_on_fewer_than_ten_validation_rows_of_a_class_says_so(
    folder: Path, n_rows: int, decision: Decision, what: str
) -> None:
    validation = skewed_predictions(5, n_positive=n_rows)
    result = some_result(
        predictions=skewed_predictions(10), decisions=[decision], validation=validation
    )
    notices = write_run(folder, result).metrics["notices"]
    assert len(notices) == (n_rows < 10)
    for notice in notices:
        assert notice.startswith(what)
        assert "on only 9 validation rows of 'lvh': give a larger --val-fraction" in notice


def test_an_extreme_calibration_is_a_notice(folder: Path) -> None:
    decision = Decision(method="temperature", slope=1 / 24.98)
    result = some_result(predictions=skewed_predictions(10), decisions=[decision])
    (notice,) = write_run(folder, result).metrics["notices"]
    assert notice.startswith(
        "calibrated by temperature 24.98: it was surer than it was right, so its probabilities are "
        "drawn together, so far that the model's own probabilities say little"
    )
    usual = Decision(method="temperature", slope=1 / 2.4)
    assert not usual.is_extreme
    assert "drawn apart" in Decision(method="platt", slope=6.0).meaning()


def test_a_jobs_own_notices_are_kept(folder: Path) -> None:
    result = some_result(predictions=skewed_predictions(10), notices=("lr is at its grid's edge",))
    assert write_run(folder, result).metrics["notices"] == ["lr is at its grid's edge"]


def test_opening_what_is_no_run_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RunError) as caught:
        open_run(tmp_path / "absent")
    assert str(caught.value) == (
        f"{tmp_path}/absent is no folder. Give a run's folder, such as "
        "runs/20260131-094500-linear-pages."
    )
    with pytest.raises(RunError) as caught:
        open_run(folder)
    assert str(caught.value) == (
        f"{folder} is not a run: it has no config.json. Give a folder that fit-head or finetune "
        "made."
    )


def test_opening_an_unfinished_run_says_so(finished: Path) -> None:
    (finished / "metrics.json").unlink()
    with pytest.raises(RunError) as caught:
        open_run(finished)
    assert str(caught.value) == (
        f"{finished} is unfinished: metrics.json, which is written last, is not there. Run its "
        "command again (finetune can go on with --resume)."
    )


def test_another_format_version_is_refused(finished: Path) -> None:
    run = open_run(finished)
    edit_json(finished / "model.json", format_version=None)
    with pytest.raises(RunError, match="has format version None, and this ecgfeat reads version 1"):
        _ = run.model_card
    edit_json(finished / "config.json", format_version=2)
    with pytest.raises(RunError) as caught:
        open_run(finished)
    assert str(caught.value) == (
        f"{finished}/config.json has format version 2, and this ecgfeat reads version 1. Run its "
        "command again, or use the ecgfeat that wrote it."
    )


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("config.json", b"{", "config.json is damaged: Expecting property name"),
        ("config.json", b"[1]", "config.json is damaged: it holds no JSON object"),
        ("config.json", b"\xff", "config.json is damaged: 'utf-8' codec can't decode"),
        ("metrics.json", b"[" * 100_000, "metrics.json is damaged: "),
        (
            "metrics.json",
            b"{}",
            "metrics.json is damaged: a field is missing or wrong (object missing required field",
        ),
        ("history.csv", b"", "history.csv is damaged: it is empty"),
        ("history.csv", b"epoch\r\n1\r\n", "history.csv is damaged: its columns are epoch"),
        (
            "predictions.csv",
            b"path\r\n",
            "predictions.csv is damaged: it has 0 rows of the columns",
        ),
        ("predictions.csv", b'path\r\n"a', "predictions.csv is damaged: unexpected end of data"),
        ("model.safetensors", b"nothing", "model.safetensors is damaged: "),
        ("model.json", b"", "model.json is damaged: Expecting value"),
    ],
)
def test_a_damaged_file_is_named(finished: Path, name: str, content: bytes, what: str) -> None:
    (finished / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_everything(finished)
    assert what in str(caught.value)
    assert str(caught.value).endswith("Run its command again.")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (",no-lvh,", ",lvw,", "no column has the probabilities of lvw"),
        (",0,", ",x,", "invalid literal"),
        (",0,no-lvh,", ",0,no-lvh,extra,", "row 2 has 9 fields, the header 8"),
        ("\r\ntest/01", "nan\r\ntest/01", "could not convert string to float"),
    ],
)
def test_damaged_predictions_say_what_is_wrong(
    finished: Path, old: str, new: str, what: str
) -> None:
    path = finished / "predictions.csv"
    path.write_bytes(path.read_bytes().decode().replace(old, new, 1).encode())
    with pytest.raises(RunError, match=f"predictions.csv is damaged: {what}"):
        read_everything(finished)


def read_everything(folder: Path) -> None:
    run = open_run(folder)
    _ = run.history, run.predictions, run.model_card, run.model()


def test_a_missing_file_is_named(finished: Path) -> None:
    (finished / "predictions.csv").unlink()
    with pytest.raises(RunError, match=r"is damaged: predictions.csv is missing. Run its command"):
        read_everything(finished)


def test_links_out_of_the_run_and_pipes_are_refused(finished: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    (finished / "predictions.csv").rename(outside)
    for make in (lambda path: path.symlink_to(outside), os.mkfifo):
        make(finished / "predictions.csv")
        with pytest.raises(RunError, match=r"predictions.csv is not a plain file of this run\."):
            read_everything(finished)
        (finished / "predictions.csv").unlink()


def test_a_run_may_be_reached_through_a_link(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(finished)
    read_everything(tmp_path / "latest")


def test_test_rows_that_could_not_be_decoded_are_told(folder: Path) -> None:
    run = write_run(folder, some_result(n_test_total=14))
    assert run.metrics["test_rows"] == "12 of 14"


def test_rows_are_counted_by_fold() -> None:
    part = Partition(
        fold=1,
        train=np.arange(5),
        validation=np.arange(5, 7),
        test=np.arange(7, 8),
        split="cv",
    )
    assert runs.count_rows([part]) == [{"fold": 1, "train": 5, "validation": 2, "test": 1}]


def test_runs_are_opened_without_torch_or_matplotlib(finished: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ecgfeat.runs import open_run;"
        f"run = open_run(Path({str(finished)!r})); run.predictions; run.model();"
        "print({'torch', 'torchvision', 'matplotlib', 'sklearn', 'h5py'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
