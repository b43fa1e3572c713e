"""In a notebook: strings are paths, results show themselves, and a line tells how far a job is."""

from __future__ import annotations

import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ecgfeat
from ecgfeat.errors import ConfigError
from ecgfeat.runtime import Progress, html_table

from .studies import run_of, weights_drawn_once

__all__ = ["weights_drawn_once"]  # a fixture
GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide.md"


class Cells(HTMLParser):
    """The words of a table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_results_show_themselves_in_words_and_as_tables(study: Path) -> None:
    cache = ecgfeat.open_cache(str(next(study.glob("pages2-*.h5"))))
    assert repr(cache).splitlines()[0] == f"FeatureCache {cache.path}"
    assert "12 images of pages2: train 4 a, 4 b; test 2 a, 2 b" in repr(cache)
    assert "layer4 (512)" in repr(cache)
    assert "layer4, 512 features" in Cells(cache._repr_html_()).found
    run = run_of(study, "logreg")
    score = run.metrics["scores"]["accuracy"]
    shown = f"accuracy: {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert repr(run).startswith(f"Run {run.name}, test rows: all 4\n")
    assert shown in repr(run)
    assert shown.partition(": ")[2] in Cells(run._repr_html_()).found
    comparison = ecgfeat.compare([run_of(study, "linear").path, str(run.path)])
    assert repr(comparison).startswith(f"Comparison of {comparison.title}\n  R1, Linear head")
    found = Cells(comparison._repr_html_()).found
    assert {"R1", "R2", "R2 - R1", "AUROC"} <= set(found)
    answers = ecgfeat.predict(run, study / "pages2" / "test")
    assert repr(answers).startswith("InferenceResult of 4 images: ")
    assert {"answer", answers.predicted[0]} <= set(Cells(answers._repr_html_()).found)
    (explained,) = ecgfeat.explain(run, answers.paths[0], check=False).explanations
    assert f"b {explained.probability:.3f}, log odds {explained.logit:+.2f}" in repr(explained)
    for thing in (cache, run, comparison, answers, explained):
        assert len(repr(thing)) < 1500


def test_others_words_are_no_markup() -> None:
    assert html_table("<b>", ["&"], [["<script>"]]) == (
        "<table><caption>&lt;b&gt;</caption><thead><tr><th>&amp;</th></tr></thead>"
        "<tbody><tr><td>&lt;script&gt;</td></tr></tbody></table>"
    )


def test_frames_where_pandas_is_installed(study: Path) -> None:
    pytest.importorskip("pandas")
    cache = ecgfeat.open_cache(next(study.glob("pages2-*.h5")))
    rows = cache.to_frame("layer4")
    assert list(rows["path"]) == list(cache.paths)
    assert (rows["layer4[3]"].to_numpy() == cache.features("layer4")[:, 3]).all()
    run = run_of(study, "logreg")
    predicted = run.to_frame()
    assert list(predicted["path"]) == list(run.predictions.ids)
    assert (predicted["p_b"].to_numpy() == run.predictions.probabilities[:, 1]).all()
    compared = ecgfeat.compare([run_of(study, "linear"), run]).to_frame()
    assert list(compared["run"]) == [run_of(study, "linear").name, run.name]
    assert compared["accuracy"][1] == run.metrics["scores"]["accuracy"]["value"]
    assert compared["auroc_low"][0] == compared["auroc_low"].iloc[0]


def test_without_pandas_the_error_says_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"to_frame\(\) needs pandas: pip install pandas"):
        run_of(study, "logreg").to_frame()


def test_progress_is_one_line_that_is_written_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecgfeat.runtime.LEAST_S", 1e-9)
    out = io.StringIO()
    report = ecgfeat.progress(out)
    for done in range(101):
        report(Progress(stage="extracting", done=done, total=100))
    report(Progress(stage="fitting", done=0, total=0, message="Epoch 1"))
    for done in (0, 3):
        report(Progress(stage="fitting", done=done, total=3, unit="epochs"))
    lines = [line for line in re.split(r"[\r\n]+", out.getvalue()) if line.strip()]
    assert lines[0] == "extracting 0/100 images"
    assert re.fullmatch(r"extracting 100/100 images, [\d.]+ images/s, 0:00 left", lines[1])
    assert lines[2] == "Epoch 1"
    assert lines[3].strip() == "fitting 0/3 epochs"
    assert lines[4].startswith("fitting 3/3 epochs, ")
    assert out.getvalue().endswith("\n")
    # A job that goes on with the same stage counts its pace anew.
    report(Progress(stage="fitting", done=0, total=3, unit="epochs"))
    assert out.getvalue().endswith("\rfitting 0/3 epochs")


def test_a_pace_is_not_told_by_what_went_before_one_could_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("ecgfeat.runtime.LEAST_S", 3600)
    report = ecgfeat.progress(out)
    for done in (0, 24):
        report(Progress(stage="drawing", done=done, total=24))
    assert out.getvalue().split("\r")[-1].strip() == "drawing 24/24 images"


def test_the_guide_s_example_runs_from_top_to_bottom(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block of the guide in order, as a notebook's cells."""
    (tmp_path / "pages").symlink_to(study / "pages2")
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text().partition("## In Python\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(cells) >= 2
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "docs/guide.md", "exec"), names)
    assert names["comparison"].runs
    assert (tmp_path / "report.html").exists()
