"""What the figures show, and that they are files as promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ecgfeat.errors import ConfigError, StorageError
from ecgfeat.figures import (
    accuracy_curve,
    comparison_plot,
    confusion_matrix_plot,
    learning_curve_plot,
    loss_curve,
    precision_recall_plot,
    reliability_plot,
    roc_plot,
    sweep_plot,
)
from ecgfeat.figures.style import FORMATS
from ecgfeat.metrics import MACRO, curves, evaluate
from ecgfeat.predictions import Predictions

STRANGE_NAMES = ("a$b$c", "心室", "x\ny", "bad \udcff byte", "with_a_very_long_name_" * 6, "")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures written, as matplotlib's objects."""
    figures: list[Figure] = []
    write = Figure.savefig

    def record(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        write(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def history_of(n_epochs: int, *, n_folds: int = 1, validated: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "fold": fold,
            "epoch": epoch,
            "loss": 1 / epoch,
            "accuracy": 0.5 + 0.02 * epoch + 0.1 * fold,
            "val_loss": 1 / epoch if validated else None,
            "val_accuracy": 0.4 + 0.01 * epoch if validated else None,
        }
        for fold in range(n_folds)
        for epoch in range(1, n_epochs + 1)
    ]


def run_of(name: str, value: float, *, wall_s: float = 4.2, auroc: bool = True) -> dict[str, Any]:
    score = {"value": value, "low": value - 0.02, "high": value + 0.03, "method": "bootstrap"}
    return {
        "name": name,
        "label": "Linear head",
        "scores": {
            "accuracy": score,
            "balanced_accuracy": score,
            "auroc": score if auroc else None,
        },
        "cost": {
            "wall_s": wall_s,
            "features_s": 12.0,
            "peak_memory_mib": 812.0,
            "arch": "resnet18",
            "batch_size": 64,
            "device": "cpu",
        },
    }


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


class TestAccuracyCurve:
    def test_training_alone_is_one_line(self, tmp_path: Path, drawn: list[Figure]) -> None:
        accuracy_curve(history_of(5), tmp_path / "curve.png", "Linear head on pages")
        (axes,) = drawn[0].axes
        (line,) = axes.lines
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
        assert line.get_ydata() == pytest.approx([0.52, 0.54, 0.56, 0.58, 0.6])
        assert line.get_label() == "Training: 0.600 at the end"
        assert drawn[0].get_suptitle() == "Linear head on pages"

    def test_validation_shares_the_axes(self, tmp_path: Path, drawn: list[Figure]) -> None:
        accuracy_curve(history_of(5, validated=True), tmp_path / "curve.png", "Fine-tuning")
        (axes,) = drawn[0].axes
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["Training: 0.600 at the end", "Validation: 0.450 at the end"]

    def test_folds_are_thin_lines_around_their_mean(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        accuracy_curve(history_of(2, n_folds=3), tmp_path / "curve.png", "Linear head")
        *folds, mean = drawn[0].axes[0].lines
        assert [line.get_ydata()[-1] for line in folds] == pytest.approx([0.54, 0.64, 0.74])
        assert mean.get_ydata()[-1] == pytest.approx(0.64)
        assert mean.get_linewidth() > 2 * folds[0].get_linewidth()
        assert drawn[0].get_supxlabel().endswith("Bold: mean of 3 folds.")

    @pytest.mark.parametrize(
        ("n_epochs", "expected"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (60, [10, 20, 30, 40, 50, 60])]
    )
    def test_epochs_are_whole_numbers(
        self, tmp_path: Path, drawn: list[Figure], n_epochs: int, expected: list[int]
    ) -> None:
        accuracy_curve(history_of(n_epochs), tmp_path / "curve.png", "Linear head")
        axes = drawn[0].axes[0]
        first, last = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if first <= tick <= last] == expected


class TestConfusionMatrix:
    def test_cells_hold_counts_and_shares_of_the_true_class(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        matrix = np.array([[1500, 500], [0, 3]])
        confusion_matrix_plot(matrix, ["normal", "mi"], tmp_path / "matrix.png", "A title")
        assert texts_of(drawn[0]) == ["1,500\n75.0 %", "500\n25.0 %", "0\n0.0 %", "3\n100.0 %"]
        (axes,) = drawn[0].axes
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "normal\n(n = 2,000)",
            "mi\n(n = 3)",
        ]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["normal", "mi"]

    def test_a_class_without_rows_has_no_shares(self, tmp_path: Path, drawn: list[Figure]) -> None:
        confusion_matrix_plot(np.array([[4, 0], [0, 0]]), ["a", "b"], tmp_path / "m.png", "A title")
        assert texts_of(drawn[0])[2:] == ["0\n–", "0\n–"]

    def test_long_class_names_are_turned_and_broken(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        names = ["normal", "atrioventricular reentrant tachycardia", "b", "c", "d", "e"]
        confusion_matrix_plot(np.eye(6, dtype=int), names, tmp_path / "m.png", "A title")
        labels = drawn[0].axes[0].get_xticklabels()
        assert {label.get_rotation() for label in labels} == {40.0}
        assert labels[1].get_text() == "atrioventricular\nreentrant tachycardia"
        assert drawn[0].axes[0].get_yticklabels()[1].get_text() == (
            "atrioventricular\nreentrant tachycardia\n(n = 1)"
        )

    def test_a_word_longer_than_a_line_makes_longer_lines(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        names = ["electroencephalographically", "b"]
        confusion_matrix_plot(np.eye(2, dtype=int), names, tmp_path / "m.png", "A title")
        (axes,) = drawn[0].axes
        assert axes.get_xticklabels()[0].get_text() == names[0]
        assert axes.get_yticklabels()[0].get_text() == f"{names[0]}\n(n = 1)"

    def test_too_many_classes_are_drawn_without_numbers(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        names = [f"class {index}" for index in range(90)]
        confusion_matrix_plot(np.eye(90, dtype=int), names, tmp_path / "m.png", "A title")
        (axes,) = drawn[0].axes
        assert not axes.texts
        assert len(axes.get_xticklabels()) == 30
        with Image.open(tmp_path / "m.png") as image:
            assert max(image.size) < 6000


def comparison_of(
    runs: Sequence[dict[str, Any]], *, positive: str | None = "lvh", **changes: Any
) -> dict[str, Any]:
    """As `Comparison.as_json` has it, with the differences that the runs' values give."""
    pairs = []
    for number, first in enumerate(runs):
        for second in runs[number + 1 :]:
            differences = {}
            for name, score in second["scores"].items():
                if score is None:
                    differences[name] = None
                    continue
                value = score["value"] - first["scores"][name]["value"]
                differences[name] = {"value": value, "low": value - 0.01, "high": value + 0.02}
            pairs.append(
                {"first": first["name"], "second": second["name"], "differences": differences}
            )
    return {"runs": [{**run, **changes} for run in runs], "pairs": pairs, "positive": positive}


def dotted_lines_of(axes: Axes) -> list[float]:
    return [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]


class TestComparisonPlot:
    def test_each_score_has_its_interval_and_each_run_its_cost(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        runs = [run_of("first", 0.666), run_of("second", 0.735, wall_s=5230.0)]
        comparison_plot(comparison_of(runs), tmp_path / "comparison.png", "2 runs")
        accuracy, _, _, _, time, memory = drawn[0].axes[:6]
        interval, dot = accuracy.lines[2:]
        assert interval.get_xdata() == pytest.approx([0.715, 0.765])
        assert dot.get_xdata() == pytest.approx([0.735])
        assert [text.get_text() for text in accuracy.texts][:2] == ["0.666", "0.735"]
        assert [bar.get_width() for bar in time.patches] == [4.2, 5230.0]
        assert [text.get_text() for text in memory.texts] == ["812 MiB", "812 MiB"]

    @pytest.mark.parametrize(
        ("wall_s", "words"),
        [
            ((0.2, 599.0), ["0.2 s", "599 s"]),
            ((4.2, 5230.0), ["0.07 min", "87.2 min"]),
            ((0.2, 90_000.0), ["< 0.01 h", "25 h"]),
        ],
    )
    def test_all_times_have_one_unit(
        self, tmp_path: Path, drawn: list[Figure], wall_s: tuple[float, float], words: list[str]
    ) -> None:
        runs = [run_of(str(seconds), 0.6, wall_s=seconds) for seconds in wall_s]
        comparison_plot(comparison_of(runs), tmp_path / "comparison.png", "2 runs")
        extraction, time = drawn[0].axes[3:5]
        assert [text.get_text() for text in time.texts] == words
        unit = words[0].split()[-1]
        assert {text.get_text().split()[-1] for text in extraction.texts} == {unit}

    def test_chance_is_a_line_in_each_score(self, tmp_path: Path, drawn: list[Figure]) -> None:
        runs = [run_of("first", 0.9), run_of("second", 0.95)]
        comparison = comparison_of(runs, majority_accuracy=0.625)
        comparison_plot(comparison, tmp_path / "c.png", "2 runs")
        panels = drawn[0].axes[:3]
        assert [dotted_lines_of(axes) for axes in panels] == [[0.625], [0.5], [0.5]]
        low, high = panels[0].get_xlim()
        assert low < 0.5 < 0.98 < high < 1.1

    def test_no_chance_is_claimed_of_many_classes_or_an_unknown_majority(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        runs = [run_of("first", 0.9), run_of("second", 0.95)]
        comparison = comparison_of(runs, positive=None, majority_accuracy=None)
        comparison_plot(comparison, tmp_path / "c.png", "2 runs")
        assert [dotted_lines_of(axes) for axes in drawn[0].axes[:3]] == [[], [], []]

    def test_differences_to_the_first_run_lie_around_a_line_at_zero(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        runs = [run_of("first", 0.6), run_of("second", 0.7), run_of("third", 0.55)]
        comparison_plot(comparison_of(runs), tmp_path / "c.png", "3 runs")
        accuracy = drawn[0].axes[6]
        zero, *others = accuracy.lines
        assert list(zero.get_xdata()) == [0, 0]
        assert others[0].get_xdata() == pytest.approx([0.09, 0.12])
        assert others[3].get_xdata() == pytest.approx([-0.05])
        words = [text.get_text() for text in accuracy.texts]
        assert words == ["+0.100", "−0.050", "R2 − R1", "R3 − R1"]
        assert accuracy.get_xlabel() == "Difference to R1"

    def test_a_score_that_is_not_drawn_does_not_stretch_the_axes(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        run = run_of("first", 0.6)
        run["scores"]["log_loss"] = {"value": 18.0, "low": 9.0, "high": 30.0}
        other = run_of("second", 0.7)
        other["scores"]["log_loss"] = {"value": 3.0, "low": 2.0, "high": 4.0}
        comparison_plot(comparison_of([run, other]), tmp_path / "c.png", "2 runs")
        low, high = drawn[0].axes[0].get_xlim()
        assert 0.4 < low < high < 0.8

    def test_runs_are_numbered_from_the_top(self, tmp_path: Path, drawn: list[Figure]) -> None:
        runs = [run_of("first", 0.6), run_of("x$y$z", 0.7)]
        comparison_plot(comparison_of(runs), tmp_path / "c.png", "2 runs")
        axes = drawn[0].axes[0]
        names = [text.get_text() for text in axes.texts][2:]
        details = "resnet18, batch 64, cpu"
        assert names == ["R1  Linear head", details, "first", "R2  Linear head", details, "x$y$z"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]

    @pytest.mark.parametrize(("n_runs", "n_colours"), [(6, 6), (7, 1)])
    def test_no_two_runs_share_a_colour_unless_all_do(
        self, tmp_path: Path, drawn: list[Figure], n_runs: int, n_colours: int
    ) -> None:
        runs = [run_of(str(number), 0.6) for number in range(n_runs)]
        comparison_plot(comparison_of(runs), tmp_path / "c.png", "Runs")
        upper, lower, bars = drawn[0].axes[0], drawn[0].axes[6], drawn[0].axes[4].patches
        dots = [line.get_color() for line in upper.lines if line.get_marker() == "o"]
        assert len(dots) == n_runs
        assert len(set(dots)) == n_colours
        differing = [line.get_color() for line in lower.lines if line.get_marker() == "o"]
        assert differing == dots[1:]
        assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == dots

    def test_an_undefined_score_is_said_to_be(self, tmp_path: Path, drawn: list[Figure]) -> None:
        runs = [run_of("first", 0.6, auroc=False), run_of("second", 0.7, auroc=False)]
        comparison_plot(comparison_of(runs), tmp_path / "c.png", "2 runs")
        assert [text.get_text() for text in drawn[0].axes[2].texts] == ["undefined", "undefined"]
        assert [text.get_text() for text in drawn[0].axes[8].texts] == ["undefined"]


class TestFiles:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_same_numbers_give_the_same_bytes(
        self, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        comparison = comparison_of([run_of("first", 0.6), run_of("second", 0.7)])
        comparison_plot(comparison, tmp_path / f"one.{suffix}", "2 runs")
        # A later time, in another folder and with another seed of hashes.
        program = (
            "import json, sys, time; from ecgfeat.figures import comparison_plot\n"
            "time.time = lambda: 2e9\n"
            "comparison_plot(json.loads(sys.argv[1]), sys.argv[2], '2 runs')\n"
        )
        path = tmp_path / "other" / f"two.{suffix}"
        command = [sys.executable, "-c", program, json.dumps(comparison), str(path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
        one, two = (tmp_path / f"one.{suffix}").read_bytes(), path.read_bytes()
        assert one == two
        assert b"Date" not in one
        assert b"dc:date" not in one

    def test_text_of_a_pdf_or_svg_stays_text(self, tmp_path: Path) -> None:
        for suffix in ("pdf", "svg"):
            accuracy_curve(history_of(2), tmp_path / f"curve.{suffix}", "Linear head on pages")
        assert ">Linear head on pages</text>" in (tmp_path / "curve.svg").read_text()
        pdf = (tmp_path / "curve.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType, type 42
        assert b"/Type3" not in pdf

    def test_another_suffix_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"a figure must end in \.png, \.pdf or \.svg; found"):
            accuracy_curve(history_of(2), tmp_path / "curve.jpg", "Linear head")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_an_empty_title_takes_no_room(
        self, tmp_path: Path, drawn: list[Figure], suffix: str
    ) -> None:
        for number, title in enumerate(("A title", "")):
            accuracy_curve(history_of(2), tmp_path / f"{number}.{suffix}", title)
        titled, plain = (figure.axes[0].get_position().y1 for figure in drawn)
        assert drawn[1].get_suptitle() == ""
        assert plain > titled + 0.03

    def test_a_figure_is_laid_out_and_drawn_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        for owner, name in ((ConstrainedLayoutEngine, "execute"), (Figure, "draw")):
            plain = getattr(owner, name)

            def counted(*args: Any, plain: Any = plain, name: str = name) -> None:
                done.append(name)
                plain(*args)

            monkeypatch.setattr(owner, name, counted)
        accuracy_curve(history_of(2), tmp_path / "curve.png", "Linear head")
        assert done == ["execute", "draw"]

    def test_file_is_a_png_of_300_dpi_that_says_who_made_it(self, tmp_path: Path) -> None:
        accuracy_curve(history_of(2), tmp_path / "curve.png", "Linear head")
        assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
        with Image.open(tmp_path / "curve.png") as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.info["Software"] == "ecgfeat"

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_names_in_any_script_are_drawn_without_warnings(
        self, tmp_path: Path, suffix: str
    ) -> None:
        n = len(STRANGE_NAMES)
        title = " ".join(STRANGE_NAMES)
        confusion_matrix_plot(np.eye(n, dtype=int), STRANGE_NAMES, tmp_path / f"m.{suffix}", title)
        runs = [run_of(name, 0.6) for name in STRANGE_NAMES]
        comparison_plot(comparison_of(runs), tmp_path / f"c.{suffix}", STRANGE_NAMES[0])
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_folder_that_can_not_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "curve.png"
        with pytest.raises(StorageError) as caught:
            accuracy_curve(history_of(1), path, "Linear head")
        assert str(caught.value) == (
            f"making the folder {path.parent} failed: a file is in the way: name another folder"
        )

    def test_a_failed_write_leaves_the_earlier_figure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "curve.png"
        path.write_bytes(b"earlier")

        def fail(figure: Figure, file: Path, **options: Any) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Figure, "savefig", fail)
        with pytest.raises(StorageError, match="the disk is full"):
            accuracy_curve(history_of(1), path, "Linear head")
        assert path.read_bytes() == b"earlier"
        assert list(tmp_path.iterdir()) == [path]

    def test_matplotlib_is_loaded_when_drawing_and_pyplot_never(self, tmp_path: Path) -> None:
        program = (
            "import sys, pathlib, ecgfeat.figures as figures\n"
            "assert 'matplotlib' not in sys.modules\n"
            "record = {'fold': 0, 'epoch': 1, 'accuracy': 0.5, 'val_accuracy': None}\n"
            "figures.accuracy_curve([record], pathlib.Path(sys.argv[1]), 'A title')\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "curve.png")]
        subprocess.run(command, check=True)
        assert (tmp_path / "curve.png").exists()


SETTINGS = """
text.usetex: True
font.family: no such font
axes.facecolor: black
savefig.dpi: 10
backend: module://nope
"""


@pytest.mark.parametrize("backend", ["module://nope", "nope", "tkagg", ""])
def test_personal_settings_change_nothing_in_a_figure(tmp_path: Path, backend: str) -> None:
    (tmp_path / "matplotlibrc").write_text(SETTINGS)
    program = (
        "import os, sys, numpy as np, ecgfeat.figures as figures\n"
        "record = {'fold': 0, 'epoch': 1, 'accuracy': 0.5, 'val_accuracy': None}\n"
        "figures.accuracy_curve([record], sys.argv[1], 'A $title_')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert not [name for name in sys.modules if 'backend_tk' in name]\n"
        "assert os.environ.get('MPLBACKEND') == sys.argv[2]\n"
    )
    environ = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path)}
    path = tmp_path / "strange.png"
    subprocess.run([sys.executable, "-c", program, str(path), backend], check=True, env=environ)
    record = {"fold": 0, "epoch": 1, "accuracy": 0.5, "val_accuracy": None}
    accuracy_curve([record], tmp_path / "plain.png", "A $title_")
    assert path.read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_figure_leaves_personal_settings_as_they_were(tmp_path: Path) -> None:
    with matplotlib.rc_context({"axes.facecolor": "black", "lines.linewidth": 9}):
        accuracy_curve(history_of(2), tmp_path / "curve.png", "A title")
        assert matplotlib.rcParams["axes.facecolor"] == "black"
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_the_majority_is_a_line_in_the_accuracy_curve(tmp_path: Path, drawn: list[Figure]) -> None:
    accuracy_curve(history_of(3), tmp_path / "curve.png", "A title", 0.625)
    assert [list(line.get_ydata()) for line in drawn[0].axes[0].lines][-1] == [0.625, 0.625]
    assert legend_of(drawn[0])[-1] == "Majority class: 0.625"
    assert "majority class" in drawn[0].get_supxlabel()


class TestChosenEpoch:
    def test_a_ring_marks_it_on_the_validation_line(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        history = history_of(5, validated=True)
        accuracy_curve(history, tmp_path / "curve.png", "Fine-tuning", chosen=[3])
        loss_curve(history, tmp_path / "loss.png", "Fine-tuning", chosen=[3])
        for figure, value in zip(drawn, (0.43, 1 / 3)):
            (ring,) = [line for line in figure.axes[0].lines if line.get_markersize() == 13]
            assert list(ring.get_xdata()) == [3]
            assert ring.get_ydata() == pytest.approx([value])
            assert legend_of(figure)[-1] == "Chosen: epoch 3"

    def test_each_fold_has_its_own(self, tmp_path: Path, drawn: list[Figure]) -> None:
        accuracy_curve(history_of(4, n_folds=2), tmp_path / "c.png", "Linear head", chosen=[4, 2])
        (ring,) = [line for line in drawn[0].axes[0].lines if line.get_markersize() == 13]
        assert list(ring.get_xdata()) == [4, 2]
        assert ring.get_ydata() == pytest.approx([0.58, 0.64])
        assert legend_of(drawn[0])[-1] == "Chosen: epochs 4, 2"

    def test_none_is_marked_where_none_was_chosen(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        accuracy_curve(history_of(4), tmp_path / "c.png", "Linear head")
        assert "Chosen" not in " ".join(legend_of(drawn[0]))
        assert "Ring" not in drawn[0].get_supxlabel()


def predictions_of(classes: Sequence[str], *, n: int = 60) -> Predictions:
    random = np.random.default_rng(0)
    k = len(classes)
    targets = np.arange(n) % k
    powers = np.exp(random.normal(size=(n, k)) + 1.5 * np.eye(k)[targets])
    return Predictions(
        ids=tuple(map(str, range(n))),
        classes=tuple(classes),
        targets=targets,
        probabilities=powers / powers.sum(axis=1, keepdims=True),
        groups=("",) * n,
        split="test",
        folds=np.zeros(n, np.int64),
    )


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


class TestLossCurve:
    def test_training_and_validation_share_the_axes(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        loss_curve(history_of(4, validated=True), tmp_path / "loss.png", "Linear head")
        assert legend_of(drawn[0]) == ["Training: 0.250 at the end", "Validation: 0.250 at the end"]
        (axes,) = drawn[0].axes
        assert axes.get_ylabel() == "Loss (cross-entropy)"

    def test_folds_that_end_early_end_the_mean(self, tmp_path: Path, drawn: list[Figure]) -> None:
        history = [*history_of(2), *({**record, "fold": 1} for record in history_of(4))]
        accuracy_curve(history, tmp_path / "curve.png", "Fine-tuning")
        mean = drawn[0].axes[0].lines[-1].get_ydata()
        assert np.isfinite(mean).tolist() == [True, True, False, False]
        assert legend_of(drawn[0]) == ["Training: 0.560 at the end"]


class TestCurves:
    def test_a_binary_task_shows_curve_score_and_operating_point(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        predictions = predictions_of(("no-lvh", "lvh"))
        found, scores = curves(predictions, n_bootstrap=30), evaluate(predictions, n_bootstrap=30)
        roc_plot(found.roc, scores, tmp_path / "roc.png", "Title")
        precision_recall_plot(found.precision_recall, scores, 0.5, tmp_path / "pr.png", "Title")
        auroc, sensitivity = scores["auroc"], scores["sensitivity"]
        words = f"AUROC {auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]"
        assert legend_of(drawn[0])[0] == words
        assert legend_of(drawn[0])[1].startswith(f"answers: sensitivity {sensitivity.value:.3f}")
        assert legend_of(drawn[1])[0].startswith("Average precision 0.")
        (point,) = [line for line in drawn[0].axes[0].lines if line.get_marker() == "D"]
        assert point.get_ydata() == [sensitivity.value]

    @pytest.mark.parametrize(("k", "n_lines"), [(3, 4), (6, 7), (7, 1)])
    def test_few_classes_have_a_line_each_and_many_their_mean(
        self, tmp_path: Path, drawn: list[Figure], k: int, n_lines: int
    ) -> None:
        predictions = predictions_of([*STRANGE_NAMES, "more"][:k], n=140)
        found, scores = curves(predictions, n_bootstrap=5), evaluate(predictions, n_bootstrap=5)
        roc_plot(found.roc, scores, tmp_path / "roc.png", "Title")
        assert len(legend_of(drawn[0])) == n_lines
        assert legend_of(drawn[0])[-1].startswith(f"{MACRO}:\nAUROC")
        if k < 7:
            assert legend_of(drawn[0])[0] == f"a$b$c: AUROC {found.roc.areas['a$b$c']:.3f}"

    def test_reliability_names_the_positive_class_and_hides_no_point(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        predictions = predictions_of(("no-lvh", "lvh"))
        found, scores = curves(predictions, n_bootstrap=30), evaluate(predictions, n_bootstrap=30)
        reliability_plot(found.reliability, scores, "lvh", tmp_path / "r.png", "Title")
        (axes,) = drawn[0].axes
        assert axes.get_xlabel() == "Probability of lvh"
        assert legend_of(drawn[0])[0].startswith("Calibration error 0.")
        assert legend_of(drawn[0])[-1] == "10 rows"
        assert axes.lines[1].get_ydata().tolist() == found.reliability.true.tolist()
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
        assert "about equal numbers of rows" in drawn[0].get_supxlabel()

    def test_points_of_the_reliability_are_as_large_as_their_rows(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        predictions = predictions_of(("no-lvh", "lvh"), n=600)
        found, scores = curves(predictions, n_bootstrap=5), evaluate(predictions, n_bootstrap=5)
        reliability_plot(found.reliability, scores, "lvh", tmp_path / "r.png", "Title")
        (axes,) = drawn[0].axes
        n_rows = found.reliability.n_rows
        _, points, *_ = axes.collections
        assert points.get_sizes() / n_rows == pytest.approx(
            [points.get_sizes()[0] / n_rows[0]] * 10
        )
        assert legend_of(drawn[0])[-2:] == [f"{n_rows.min()} rows", f"{n_rows.max()} rows"]
        assert "equal width" in drawn[0].get_supxlabel()


def candidate(**changes: Any) -> dict[str, Any]:
    row = {
        "fold": 0,
        "head": "linear",
        "layers": "layer4",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "C": None,
        "epoch": 5,
        "auroc": 0.7,
        "spread": None,
        "chosen": False,
    }
    return {**row, **changes}


class TestSweep:
    def test_two_settings_span_a_map_of_the_best_over_the_others(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        rows = [
            candidate(lr=lr, weight_decay=decay, layers=layers, auroc=score)
            for lr, decay, layers, score in (
                (1e-3, 0.0, "layer4", 0.7),
                (1e-3, 0.0, "layer3", 0.8),
                (1e-2, 0.0, "layer4", None),
                (1e-3, 0.1, "layer4", 0.6),
                (1e-2, 0.1, "layer4", 0.65),
            )
        ]
        rows[1]["chosen"] = True
        sweep_plot(rows, "auroc", tmp_path / "sweep.png", "Sweep")
        axes = drawn[0].axes[0]
        assert texts_of(drawn[0]) == ["0.800", "–", "0.600", "0.650"]
        assert axes.get_xlabel() == "learning rate"
        assert axes.get_ylabel() == "weight decay"
        (outline,) = axes.patches
        assert outline.get_xy() == (-0.5, -0.5)

    def test_all_maps_share_one_scale_with_a_bar(self, tmp_path: Path, drawn: list[Figure]) -> None:
        rows = [
            candidate(lr=lr, weight_decay=decay, auroc=0.6 + lr)
            for lr in (1e-3, 1e-2)
            for decay in (0.0, 0.1)
        ]
        layers = [f"layer{number}" for number in range(7)]
        rows += [
            candidate(head="logreg", lr=None, C=C, layers=name, auroc=0.8 + C / 100)
            for C in (0.1, 1.0)
            for name in layers
        ]
        sweep_plot(rows, "auroc", tmp_path / "sweep.png", "Sweep")
        linear, logreg, bar = drawn[0].axes
        limits = [axes.images[0].get_clim() for axes in (linear, logreg)]
        assert limits[0] == limits[1] == pytest.approx((0.601, 0.81))
        assert bar.get_ylabel() == "AUROC"
        assert bar.get_ylim() == pytest.approx((0.601, 0.81))

    def test_each_line_is_named_in_full_beside_the_panel(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        long = "layer1-4x4,layer2-4x4,layer3,layer4"
        rows = [
            candidate(head="logreg", lr=None, C=C, layers=layers)
            for C in (0.1, 1.0)
            for layers in ("layer4", long)
        ]
        sweep_plot(rows, "auroc", tmp_path / "sweep.png", "Sweep")
        (legend,) = drawn[0].legends
        words = ["".join(text.get_text().split()) for text in legend.get_texts()]
        assert words == [f"layers:{long}", "layers:layer4"]
        (axes,) = drawn[0].axes
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())

    def test_folds_are_averaged_and_a_path_over_c_is_a_line(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        rows = [
            candidate(head="logreg", lr=None, C=C, fold=fold, auroc=0.6 + 0.1 * fold, spread=0.02)
            for C in (0.1, 1.0, 10.0)
            for fold in (0, 1)
        ]
        sweep_plot(rows, "auroc", tmp_path / "sweep.png", "Sweep")
        axes = drawn[0].axes[0]
        assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.65] * 3)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "1", "10"]

    def test_both_kinds_of_head_have_a_panel_and_one_candidate_is_enough(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        both = [candidate(), candidate(head="logreg", lr=None, C=1.0)]
        sweep_plot(both, "auroc", tmp_path / "both.png", "Sweep")
        sweep_plot([candidate(auroc=None)], "auroc", tmp_path / "one.png", "Sweep")
        titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
        assert titles == ["Linear head", "Logistic regression"]


def test_the_learning_curve_has_a_band_over_the_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        {
            "fraction": n / 200,
            "n_train": n + seed,  # groups are of unlike sizes
            "seed": seed,
            "accuracy": 0.5 + n / 1000 + seed / 100,
            "auroc": None,
        }
        for n in (50, 100, 200)
        for seed in (0, 1, 2)
    ]
    learning_curve_plot(rows, tmp_path / "curve.png", "Linear head")
    (axes,) = drawn[0].axes
    assert axes.get_title(loc="left") == "Accuracy"
    assert axes.lines[0].get_xdata().tolist() == [51, 101, 201]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.56, 0.61, 0.71])
    low, high = (f(axes.collections[0].get_paths()[0].vertices[:, 1]) for f in (min, max))
    assert (low, high) == pytest.approx((0.55, 0.72))
