"""Tables of a comparison, to be pasted; and the list of runs, with only what differs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ecgfeat
from ecgfeat.cli import app
from ecgfeat.config import HeadSettings
from ecgfeat.errors import ConfigError, RunError
from ecgfeat.feature_cache import open_cache
from ecgfeat.methods import paper_tables
from ecgfeat.metrics import classification_table

from .studies import run_of, weights_drawn_once

__all__ = ["weights_drawn_once"]  # a fixture
KINDS = ("linear", "logreg", "finetune")


@pytest.fixture(scope="module")
def tables(study: Path) -> dict[str, str]:
    runs = [run_of(study, kind) for kind in KINDS]
    comparison = ecgfeat.compare(runs)
    return {form: paper_tables(comparison, runs, form) for form in ("markdown", "latex", "csv")}


def test_markdown_has_a_row_for_each_run_and_pair(study: Path, tables: dict[str, str]) -> None:
    lines = tables["markdown"].splitlines()
    heads = (
        "|  | way | accuracy | balanced accuracy | AUROC | sensitivity | specificity | answers |"
    )
    assert heads in lines
    for number, kind in enumerate(KINDS, start=1):
        (line,) = [line for line in lines if line.startswith(f"| R{number} |")]
        scores = run_of(study, kind).metrics["scores"]
        for name in ("accuracy", "auroc", "sensitivity", "specificity"):
            found = scores[name]
            assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in line
    pairs = [line.split("|")[1].strip() for line in lines if " − " in line]
    assert pairs == ["R2 − R1", "R3 − R1", "R3 − R2"]


def test_latex_is_escaped_and_balanced(tables: dict[str, str]) -> None:
    text = tables["latex"]
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") >= 2
    assert r"95 \% intervals" in text
    assert not re.search(r"(?<!\\)[%#]", text)
    rows = [line for line in text.splitlines() if line.startswith("R")]
    assert all(row.endswith(r" \\") for row in rows)
    assert {row.count(" & ") for row in rows if row.startswith("R1 &")} == {7}


def test_csv_has_numbers_alone(study: Path, tables: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables["csv"])))
    linear = run_of(study, "linear")
    (accuracy,) = [
        row
        for row in rows
        if (row["run"], row["minus"], row["score"]) == (linear.name, "", "accuracy")
    ]
    assert float(accuracy["value"]) == linear.metrics["scores"]["accuracy"]["value"]
    pairs = [row for row in rows if row["minus"] and row["score"] == "auroc"]
    assert len(pairs) == 3
    for row in pairs:
        assert 0 <= float(row["p"]) <= float(row["p_adjusted"]) <= 1


def test_runs_by_the_study_s_recipe_get_its_own_table(study: Path, tmp_path: Path) -> None:
    (cache,) = study.glob("pages2-*.h5")
    runs = ecgfeat.fit_heads(
        open_cache(cache),
        kinds="both",
        head=HeadSettings(layers="layer4", epochs=2),
        recipe="paper",
        out_dir=tmp_path,
    )
    text = paper_tables(ecgfeat.compare(runs), runs, "markdown")
    for run in runs:
        table = classification_table(run.predictions).split()
        shown = text[text.index(f"R{runs.index(run) + 1}: pages2") :]
        for name in run.predictions.classes:
            place = table.index(name)
            assert f"| {' | '.join(table[place : place + 5])} |" in shown
    others = [run_of(study, kind) for kind in ("linear", "logreg")]
    assert "support" not in paper_tables(ecgfeat.compare(others), others, "markdown")


def test_compare_prints_tables_beside_a_folder_that_is_no_run(study: Path, tmp_path: Path) -> None:
    (tmp_path / "stray").mkdir()
    given = [str(run_of(study, kind).path) for kind in KINDS[:2]]
    done = CliRunner().invoke(
        app, ["compare", *given, str(tmp_path / "stray"), "--format", "markdown"]
    )
    assert done.exit_code == 0, done.stderr
    assert "| R2 − R1 |" in done.stdout
    assert "left aside: stray" in done.stderr
    both = CliRunner().invoke(app, ["compare", *given, "--format", "csv", "--json"])
    assert both.exit_code == 2
    assert "--format and --json are two forms of the same" in both.stderr


def test_runs_are_listed_with_what_differs_alone(study: Path) -> None:
    listed = {one.run.kind: one for one in ecgfeat.list_runs(study / "runs2") if one.run}
    assert set(listed) == set(KINDS)
    assert listed["linear"].differs["layers"] == "layer2,layer4"
    assert listed["linear"].differs["epochs"] == "2"
    assert "lr" not in listed["logreg"].differs  # which only a linear head has
    for one in listed.values():
        assert "data" not in one.differs
        assert "seed" not in one.differs
    best = ecgfeat.list_runs(study / "runs2", sort="auroc")
    areas = [one.run.metrics["scores"]["auroc"]["value"] for one in best if one.run]
    assert areas == sorted(areas, reverse=True)
    losses = ecgfeat.list_runs(study / "runs2", sort="log_loss")
    values = [one.run.metrics["scores"]["log_loss"]["value"] for one in losses if one.run]
    assert values == sorted(values)


def test_what_is_no_run_is_listed_with_its_reason(study: Path, tmp_path: Path) -> None:
    run = run_of(study, "linear")
    shutil.copytree(run.path, tmp_path / run.name)
    begun = tmp_path / "20260101-000000-finetune-pages"
    begun.mkdir()
    (begun / "config.json").write_text((run.path / "config.json").read_text())
    done = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert f"{tmp_path}: 1 run\n" in done.stdout
    assert f"R1  {run.name}" in done.stdout
    assert "is unfinished" in done.stdout
    found = json.loads(CliRunner().invoke(app, ["runs", str(tmp_path), "--json"]).stdout)["runs"]
    assert [("scores" in one, "reason" in one) for one in found] == [(True, False), (False, True)]
    table = CliRunner().invoke(app, ["runs", str(tmp_path), "--csv"])
    (row,) = csv.DictReader(io.StringIO(table.stdout))
    assert float(row["accuracy"]) == run.metrics["scores"]["accuracy"]["value"]
    assert "left out: " in table.stderr


def test_a_list_of_runs_that_cant_be_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sort must be name or one of accuracy, "):
        ecgfeat.list_runs(study / "runs2", sort="beauty")
    with pytest.raises(RunError, match="is no folder: give the folder that holds the runs"):
        ecgfeat.list_runs(tmp_path / "gone")
    with pytest.raises(RunError, match="is a run itself: give the folder"):
        ecgfeat.list_runs(run_of(study, "linear").path)
    both = CliRunner().invoke(app, ["runs", str(study / "runs2"), "--csv", "--json"])
    assert both.exit_code == 2
