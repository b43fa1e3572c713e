"""``fit-head`` as it is used to choose among many heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ecgfeat.cli import app
from ecgfeat.cli._console import Output
from ecgfeat.runs import writing

FAST = ["--recipe", "paper", "--weights", "random", "--size", "64", "--precision", "fp32"]

FitHead = Callable[..., dict]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache of 40 synthetic pages."""
    folder = tmp_path_factory.mktemp("fit-head")
    pages = folder / "pages"
    for arguments in (
        ["synth", pages, "--train", "24", "--test", "16", "--size", "160x120"],
        ["extract", pages / "manifest.csv", *FAST, "--cache", folder / "pages.h5"],
    ):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
    return folder / "pages.h5"


@pytest.fixture
def fit_head(cache, tmp_path) -> FitHead:
    """Run ``fit-head``; gives the one run's metrics, and what was logged as ``"log"``."""

    def run(*arguments: str) -> dict:
        command = ["fit-head", str(cache), *arguments, "--out", str(tmp_path / "runs"), "--json"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        (found,) = json.loads(done.stdout)["runs"]
        return {**found, "log": done.stderr}

    return run


def refused(cache: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fit-head", str(cache), *arguments])
    return done.exit_code, done.stderr.strip().splitlines()[-1]


def test_a_grid_may_be_given_in_pieces_or_at_once(fit_head):
    pieces = fit_head("--grid", "lr=1e-3,1e-2", "--grid", "layers=layer4,layer3+layer4")
    at_once = fit_head("--grid", "lr=1e-3,1e-2 layers=layer4,layer3+layer4")
    assert pieces["choice"]["n_heads"] == at_once["choice"]["n_heads"] == 4
    assert pieces["choice"]["chosen"] == at_once["choice"]["chosen"]
    assert "Tried 4/4 heads | Best: linear, layers " in pieces["log"]


def test_the_default_sweep_tries_more_than_a_hundred_heads(fit_head, tmp_path):
    run = fit_head("--sweep", "default", "--head", "both", "--folds", "3")
    assert run["choice"]["n_heads"] == 132
    rows = (Path(run["path"]) / "sweep.csv").read_text().splitlines()
    assert len(rows) == 133
    assert run["n_test"] == 16


def test_a_sweep_is_read_from_a_file_that_a_grid_amends(fit_head, tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text('lr = [1e-4, 1e-3]\nclass_weights = ["none", "balanced"]\n')
    run = fit_head("--sweep", str(file), "--grid", "lr=0.1", "--choose-by", "log_loss")
    assert run["choice"]["n_heads"] == 2
    assert run["choice"]["chosen"][0]["lr"] == 0.1


def test_a_run_can_be_repeated_from_its_config(fit_head, tmp_path):
    options = ["--grid", "lr=1e-3,1e-2", "--folds", "2", "--seeds", "2"]
    first = fit_head(*options, "--label-smoothing", "0.1", "--class-weights", "balanced")
    config = json.loads((Path(first["path"]) / "config.json").read_text())
    repeat = []
    for section in ("head", "sweep", "evaluation"):
        for name, value in config[section].items():
            option = f"--{name.replace('_', '-')}"
            for word in value if isinstance(value, list) else [value]:
                if isinstance(word, bool):
                    repeat += [option] if word else []
                elif word != "":
                    repeat += [option, str(word)]
    again = fit_head(*repeat)
    assert again["scores"] == first["scores"]
    assert again["choice"]["chosen"] == first["choice"]["chosen"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--grid", "rate=1"],
            "--grid names 'rate'; it takes layers, lr, weight_decay, label_smoothing, "
            "class_weights, C, seed",
        ),
        (
            ["--grid", "C=1"],
            "--grid names C, which only a logreg head has: also give --head logreg or both, "
            "or leave it out",
        ),
        (
            ["--sweep", "best"],
            "--sweep takes default, or a TOML file such as lr = [1e-4, 1e-3]; there is no best",
        ),
        (
            ["--refit"],
            "--refit trains a chosen head once more, and nothing is chosen: also give --sweep "
            "default, --grid or --folds",
        ),
        (
            ["--folds", "3", "--val-fraction", "0.2"],
            "--folds and --val-fraction both say which rows choose: give one of the two",
        ),
        (["--choose-by", "luck"], ""),
        (
            ["--choose-by", "accuracy"],
            "--choose-by accuracy has nothing to choose from: also give --sweep default, --grid or "
            "--folds, or leave it out",
        ),
        (
            ["--folds", "3", "--calibrate"],
            "--calibrate and --at-sensitivity hold for the very head that saw the validation rows, "
            "and --folds and --refit train a linear head again: give --val-fraction without "
            "--refit, or --head logreg, whose probabilities keep their scale",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(cache, arguments, message):
    code, found = refused(cache, *arguments)
    assert code == 2
    if message:
        assert found == f"Error: {message}"


def test_too_few_images_for_the_folds_is_an_error_of_the_data(cache):
    assert refused(cache, "--folds", "13") == (
        1,
        "Error: --folds 13 needs at least 13 groups (or ungrouped rows) of every class; 'normal' "
        "has 10. Give a smaller --folds.",
    )


@pytest.mark.figures
def test_figures_are_drawn_as_asked_after_the_results_are_shown(cache, tmp_path, monkeypatch):
    shown = []
    plain = Output.say

    def say(output, line):
        shown.append((line, sorted(path.suffix for path in tmp_path.rglob("roc.*"))))
        plain(output, line)

    def fail(*_):
        raise RuntimeError("no such font")

    monkeypatch.setattr(Output, "say", say)
    monkeypatch.setattr(writing.figures, "reliability_plot", fail)
    command = ["fit-head", str(cache), "--head", "both", "--out", str(tmp_path / "runs")]
    look = ["--figure-format", "svg", "--no-title", "--names", "normal=no LVH"]
    done = CliRunner().invoke(app, [*command, *look])
    assert done.exit_code == 0, done.output
    reports = [suffixes for line, suffixes in shown if "precision    recall" in line]
    assert reports == [[], [".svg"]]  # the second run's, after the first one's figures
    words = "reliability.svg is missing, the run's other files are whole: no such font"
    said = [line for line, _ in shown if words in line]
    assert [line.split(": ")[0] for line in said] == ["notice", "notice"]
    runs = sorted((tmp_path / "runs").iterdir())
    assert all(any(run.name in line for line in said) for run in runs)
    for run in runs:
        assert not list(run.glob("*.png"))
        assert ">no LVH</text>" in (run / "confusion_matrix.svg").read_text()
        config = json.loads((run / "config.json").read_text())
        expected = {"figure_format": "svg", "title": False, "names": "normal=no LVH"}
        assert config["figures"] == expected


def test_a_name_of_no_class_is_refused(cache):
    assert refused(cache, "--names", "mi=MI") == (
        2,
        "Error: --names has a name for 'mi', which is no class: there are normal, pathological",
    )


def test_what_is_on_by_default_can_be_turned_off(fit_head):
    run = fit_head("--recipe", "paper", "--head", "linear", "--standardize")
    assert json.loads((Path(run["path"]) / "config.json").read_text())["head"]["standardize"]
    run = fit_head("--head", "linear", "--no-standardize")
    assert not json.loads((Path(run["path"]) / "config.json").read_text())["head"]["standardize"]
