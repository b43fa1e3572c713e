"""What the figures show, and that they are files as promised."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ecgfeat.errors import StorageError
from ecgfeat.figures import accuracy_curve, comparison_plot, confusion_matrix_plot

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

    def test_long_class_names_are_turned_and_cut(self, tmp_path: Path, drawn: list[Figure]) -> None:
        names = ["normal", "atrioventricular reentrant tachycardia", "b", "c", "d", "e"]
        confusion_matrix_plot(np.eye(6, dtype=int), names, tmp_path / "m.png", "A title")
        labels = drawn[0].axes[0].get_xticklabels()
        assert {label.get_rotation() for label in labels} == {40.0}
        assert labels[1].get_text() == "atrioventricular reentrant…"
        assert drawn[0].axes[0].get_yticklabels()[1].get_text() == (
            "atrioventricular\nreentrant tachycardia\n(n = 1)"
        )

    def test_too_many_classes_are_drawn_without_numbers(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        names = [f"class {index}" for index in range(90)]
        confusion_matrix_plot(np.eye(90, dtype=int), names, tmp_path / "m.png", "A title")
        (axes,) = drawn[0].axes
        assert not axes.texts
        assert len(axes.get_xticklabels()) == 30
        with Image.open(tmp_path / "m.png") as image:
            assert max(image.size) < 3500


class TestComparisonPlot:
    def test_each_score_has_its_interval_and_each_run_its_cost(
        self, tmp_path: Path, drawn: list[Figure]
    ) -> None:
        runs = [run_of("first", 0.666), run_of("second", 0.735, wall_s=5230.0)]
        comparison_plot(runs, tmp_path / "comparison.png", "2 runs")
        accuracy, _, _, _, time, memory = drawn[0].axes
        interval, dot = accuracy.lines[2:]
        assert interval.get_xdata() == pytest.approx([0.715, 0.765])
        assert dot.get_xdata() == pytest.approx([0.735])
        assert [text.get_text() for text in accuracy.texts][:2] == ["0.666", "0.735"]
        assert [bar.get_width() for bar in time.patches] == [4.2, 5230.0]
        assert [text.get_text() for text in time.texts] == ["4.2 s", "87.2 min"]
        assert [text.get_text() for text in memory.texts] == ["812 MiB", "812 MiB"]

    def test_runs_are_named_from_the_top(self, tmp_path: Path, drawn: list[Figure]) -> None:
        comparison_plot([run_of("first", 0.6), run_of("x$y$z", 0.7)], tmp_path / "c.png", "2 runs")
        axes = drawn[0].axes[0]
        names = [text.get_text() for text in axes.texts][2:]
        details = "resnet18, batch 64, cpu"
        assert names == ["Linear head", details, "first", "Linear head", details, "x$y$z"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]

    def test_an_undefined_score_is_said_to_be(self, tmp_path: Path, drawn: list[Figure]) -> None:
        runs = [run_of("first", 0.6, auroc=False), run_of("second", 0.7, auroc=False)]
        comparison_plot(runs, tmp_path / "c.png", "2 runs")
        assert [text.get_text() for text in drawn[0].axes[2].texts] == ["undefined", "undefined"]


class TestFiles:
    def test_same_numbers_give_the_same_bytes(self, tmp_path: Path) -> None:
        runs = [run_of("first", 0.6), run_of("second", 0.7)]
        for name in ("one.png", "two.png"):
            comparison_plot(runs, tmp_path / name, "2 runs")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()

    def test_file_is_a_png_of_150_dpi_that_names_no_software(self, tmp_path: Path) -> None:
        accuracy_curve(history_of(2), tmp_path / "curve.png", "Linear head")
        assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
        with Image.open(tmp_path / "curve.png") as image:
            assert image.format == "PNG"
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
            assert "Software" not in image.info

    def test_names_in_any_script_are_drawn_without_warnings(self, tmp_path: Path) -> None:
        n = len(STRANGE_NAMES)
        confusion_matrix_plot(
            np.eye(n, dtype=int), STRANGE_NAMES, tmp_path / "m.png", " ".join(STRANGE_NAMES)
        )
        runs = [run_of(name, 0.6) for name in STRANGE_NAMES]
        comparison_plot(runs, tmp_path / "c.png", STRANGE_NAMES[0])
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_folder_that_can_not_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "curve.png"
        with pytest.raises(StorageError) as caught:
            accuracy_curve(history_of(1), path, "Linear head")
        assert str(caught.value) == (
            f"writing {path} failed: a file is in the way: name another folder"
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
