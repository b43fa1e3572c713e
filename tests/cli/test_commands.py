"""The commands as a person or a script meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ecgfeat import cli
from ecgfeat.cli import app
from ecgfeat.feature_cache import open_cache
from ecgfeat.runs import open_run

FAST = ["--recipe", "paper", "--weights", "random", "--size", "64", "--precision", "fp32"]


def invoke(*arguments: object) -> str:
    """Run the program; gives what it prints on stdout."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A folder in which the whole study has run, with a test subset."""
    folder = tmp_path_factory.mktemp("study")
    pages, runs = folder / "pages", folder / "runs"
    invoke("synth", pages, "--train", 24, "--test", 16, "--size", "160x120")
    invoke("extract", pages / "manifest.csv", *FAST, "--cache", folder / "pages.h5")
    same = ["--test-subset", "10", "--out", runs]
    invoke("fit-head", folder / "pages.h5", "--head", "both", *same)
    invoke("finetune", pages / "manifest.csv", *FAST, "--epochs", "1", *same)
    return folder


def test_synth_extract_fit_finetune_and_compare_end_in_three_runs_on_the_same_rows(study):
    runs = sorted((study / "runs").iterdir())
    kinds = [json.loads((run / "config.json").read_text())["kind"] for run in runs]
    assert sorted(kinds) == ["finetune", "linear", "logreg"]
    figure = study / "comparison.png"
    compared = json.loads(invoke("compare", *runs, "--figure", figure, "--json"))
    assert compared["n_rows"] == 10
    assert compared["test_rows"] == "subset of 10 of 16"
    assert len(compared["pairs"]) == 3
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_compare_shows_every_run_and_pair(study):
    runs = sorted((study / "runs").iterdir())
    shown = invoke("compare", *runs, "--figure", study / "shown.png")
    assert all(run.name in shown for run in runs)
    assert "McNemar" in shown
    assert "subset of 10 of 16" in shown


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_compare_draws_over_its_own_figure_of_any_kind_and_over_no_other(study, suffix):
    runs, figure = sorted((study / "runs").iterdir()), study / f"own.{suffix}"
    options = ("--no-title", "--names", "normal=no LVH", "--figure", figure)
    invoke("compare", *runs, *options)
    first = figure.read_bytes()
    invoke("compare", *runs, *options)
    assert figure.read_bytes() == first
    figure.write_bytes(first.replace(b"ecgfeat", b"another"))
    done = CliRunner().invoke(app, ["compare", *map(str, runs), "--figure", str(figure)])
    assert done.exit_code == 2
    assert "exists and was not made by this command: give another --figure" in done.stderr


def test_compare_names_its_figure_by_the_format(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = sorted((study / "runs").iterdir())
    named = ("--names", "pathological=LVH", "--figure-format", "svg")
    assert invoke("compare", *runs, *named).splitlines()[-1] == "figure: comparison.svg"
    assert "positive: LVH" in Path("comparison.svg").read_text()
    done = CliRunner().invoke(app, ["compare", *map(str, runs), *named, "--figure", "x.png"])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: --figure x.png and --figure-format svg are of two kinds: give one of the two"
    )


def test_every_output_of_a_subset_says_so(study):
    for run in (study / "runs").iterdir():
        assert "subset of 10 of 16" in (run / "classification_report.txt").read_text()
        assert json.loads((run / "metrics.json").read_text())["test_rows"] == "subset of 10 of 16"


@pytest.mark.parametrize("kind", ["linear", "logreg", "finetune"])
def test_predict_agrees_with_the_run_s_own_test(study, kind):
    run = next(run for run in (study / "runs").iterdir() if f"-{kind}-" in run.name)
    header, first, *_ = (run / "predictions.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(",")))
    said = json.loads(
        invoke("predict", run, study / "pages" / row["path"], "--precision", "fp32", "--json")
    )
    probabilities = said["images"][0]["probabilities"]
    for name, value in probabilities.items():
        assert value == pytest.approx(float(row[f"p_{name}"]), abs=2e-3)


def test_cross_validation_predicts_every_row_once(study):
    said = json.loads(
        invoke("fit-head", study / "pages.h5", "--cv", 4, "--out", study / "cv", "--json")
    )
    assert said["runs"][0]["n_test"] == 40
    assert said["runs"][0]["split"] == "cv"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--cv", "2"], id="cv"),
        pytest.param(["--test-subset", "8"], id="subset", marks=pytest.mark.slow),
    ],
)
def test_images_that_can_not_be_decoded_leave_both_ways_on_the_same_rows(
    tiny_pages, tmp_path, options
):
    pages = tiny_pages(n_train=24, n_test=12, size_px=(64, 64))
    for broken in ("train/a/004.png", "test/b/003.png", "test/a/000.png"):
        (pages / broken).write_bytes(b"no picture")
    cache = tmp_path / "pages.h5"
    invoke("extract", pages, *FAST, "--cache", cache)
    same = [*options, "--out", tmp_path / "runs"]
    invoke("fit-head", cache, *same)
    invoke("finetune", pages, *FAST, "--epochs", "1", *same)
    runs = list((tmp_path / "runs").iterdir())
    compared = json.loads(invoke("compare", *runs, "--figure", tmp_path / "figure.png", "--json"))
    assert compared["n_rows"] == {"--cv": 33, "--test-subset": 7}[options[0]]
    one, other = (open_run(run).predictions for run in runs)
    assert dict(zip(one.ids, one.folds.tolist())) == dict(zip(other.ids, other.folds.tolist()))


def test_cache_list_info_verify_and_export(study):
    cache = study / "pages.h5"
    assert "pages.h5" in invoke("cache", "list", study)
    info = invoke("cache", "info", cache)
    assert "center, 64 px" in info
    assert "train/normal 12" in info
    assert "is whole" in invoke("cache", "verify", cache)
    invoke("cache", "export", cache, study / "pages.npz", "--layers", "layer4")
    with np.load(study / "pages.npz") as exported:
        np.testing.assert_array_equal(exported["layer4"], open_cache(cache).features("layer4"))


def test_json_goes_to_stdout_alone_and_log_lines_to_stderr(study):
    done = CliRunner().invoke(
        app, ["fit-head", str(study / "pages.h5"), "--out", str(study / "more"), "--json"]
    )
    assert len(json.loads(done.stdout)["runs"]) == 1
    assert "[Fixed Feature] Epoch 1 | Loss: " in done.stderr


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGHUP, 129),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_what_is_computed_and_says_how_to_go_on(study, tmp_path, number, exit_code):
    command = [sys.executable, "-m", "ecgfeat.cli", "extract", str(study / "pages/manifest.csv")]
    command += [*FAST, "--size", "320", "--batch-size", "1", "--limit", "24"]
    command += ["--cache", str(tmp_path / "cut.h5")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # The lock stands from when the cache is opened until it is finished.
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(process.pid, number)
        _, said = process.communicate()
    assert process.returncode == exit_code, said
    assert "interrupted" in said
    assert "run the same command again" in said
    again = json.loads(invoke(*command[3:], "--json"))
    assert again["n_images"] == 24
    assert again["n_computed"] < 24


_REFUSED = """
import sys
from ecgfeat import cli
from ecgfeat.cli import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 1, stop.code
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    "arguments", [("extract", "no"), ("finetune", "no"), ("fit-head", "no"), ("predict", "no", "x")]
)
def test_a_wrong_path_is_refused_after_a_first_line_and_before_torch_is_loaded(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first == " ".join(["ecgfeat", *arguments, "…"])
    assert second.startswith("Error: ")


def test_a_job_outlives_the_reader_of_its_log(study, tmp_path):
    command = [sys.executable, "-m", "ecgfeat.cli", "extract", str(study / "pages/manifest.csv")]
    command += [*FAST, "--limit", "8", "--cache", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.close()
        said = process.stdout.read()
    assert process.returncode == 0
    assert b"8 images: 8 computed" in said
    (cache,) = tmp_path.glob("*.h5")
    assert len(open_cache(cache)) == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_job_outlives_a_full_disk_under_its_log(study, tmp_path):
    command = [sys.executable, "-m", "ecgfeat.cli", "fit-head", str(study / "pages.h5")]
    command += ["--head", "logreg", "--out", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == 0
    assert b"accuracy" in done.stdout


def test_a_fine_tuned_network_brings_its_page(study, tmp_path):
    run = next(run for run in (study / "runs").iterdir() if "-finetune-" in run.name)
    data, cache = study / "pages/manifest.csv", ["--limit", 4, "--cache", tmp_path]
    arguments = ["extract", data, "--weights", run, "--precision", "fp32", *cache]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert f"{run} was trained on pages by --crop-mode center --size 64: taken here" in done.stderr
    assert "--crop-mode center --size 64" in done.stdout
    assert "--size 48" in invoke(*arguments, "--size", 48)


@pytest.mark.parametrize(
    ("given", "spin_count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_give_their_core_away_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spin_count: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what main sets is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", lambda **_: None)
    cli.main()
    assert os.environ.get("GOMP_SPINCOUNT") == spin_count
