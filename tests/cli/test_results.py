"""How runs and comparisons look on the screen."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from ecgfeat.calibration import Decision
from ecgfeat.cli._console import Output, _Log
from ecgfeat.cli._results import show_comparison, show_runs
from ecgfeat.comparison import compare
from ecgfeat.runs import Run
from ecgfeat.runtime import Progress

from ..test_comparison import predictions_of, run_of
from ..test_runs import full_result, some_predictions, some_result, write_run


def shown(monkeypatch: pytest.MonkeyPatch, show: object, *given: object) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stdout(io.StringIO()) as text:
        output = Output(as_json=False)
        output._results.width = 80
        show(output, *given)  # type: ignore[operator]
    return text.getvalue().splitlines()


def test_a_run_is_told_in_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, full_result())
    lines = shown(monkeypatch, show_runs, [run])
    assert lines[0] == "Linear head on pages, test rows: all 12, positive: lvh"
    assert max(len(line) for line in lines if not line.startswith(("run:", "notice:"))) <= 80
    text = "\n".join(lines)
    for words in (
        "PPV at prevalence 0.02: 0.",
        "calibration error 0.",
        "chance: balanced accuracy 0.5, AUROC 0.5",
        "decision: Platt's slope 0.8, offset 0.1, positive from 0.3",
        "  it was surer than it was right, so its probabilities are drawn together",
        "choice: lr 0.001 by AUROC on 20 validation rows",
        "over 3 seeds: accuracy 0.",
    ):
        assert words in text, words


def test_a_cross_validation_tells_its_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions = [Decision(threshold=0.25), Decision(threshold=0.5), Decision(threshold=0.75)]
    result = some_result(predictions=some_predictions(split="cv"), model={}, decisions=decisions)
    text = "\n".join(shown(monkeypatch, show_runs, [write_run(tmp_path, result)]))
    assert "fold 2: positive from 0.5" in text
    assert "over 3 folds: accuracy 0." in text
    assert "±" in text


SHOW_CURSOR = "\x1b[?25h"


def runs_of(n: int) -> list[Run]:
    return [
        run_of(f"20260131-12000{i}-linear-pages", predictions_of(i, signal=0.2 * i))
        for i in range(n)
    ]


@pytest.mark.parametrize(("n_runs", "n_pairs"), [(2, 1), (6, 15), (20, 19)])
def test_a_comparison_is_told_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, n_runs: int, n_pairs: int
) -> None:
    comparison = compare(runs_of(n_runs))
    lines = shown(monkeypatch, show_comparison, comparison, Path("comparison.png"))
    assert max(map(len, lines)) <= 80
    names = [line.split()[0:3] for line in lines if " - R" in line]
    assert len(names) == 2 * n_pairs
    text = "\n".join(lines)
    assert "AUROC: DeLong." in text
    assert ("--json has all" in text) == (n_runs == 20)
    best = max(comparison.runs, key=lambda run: run.scores["accuracy"].value).name
    number = f"R{[run.name for run in comparison.runs].index(best) + 1}"
    if n_runs == 20:
        assert all(number in name for name in names)
    assert np.isfinite([pair.p_value for pair in comparison.pairs]).all()


def test_others_words_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    table = output.table("runs in [bold]a[/bold]", {"run": "left"})
    table.add_row("[/x] [red]name[/red]")
    output.show(table)
    output.say("[/y] said")
    output.log("[/z] logged")
    shown = capsys.readouterr()
    assert "[/x] [red]name[/red]" in shown.out
    assert "runs in [bold]a[/bold]" in shown.out
    assert "[/y] said" in shown.out
    assert "[/z] logged" in shown.err


def test_results_begin_on_a_line_of_their_own_though_a_progress_bar_is_drawn() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as terminal:
        output = Output(as_json=False)
        output._log = _Log(file=terminal, force_terminal=True)
        with output.reporting() as report:
            for number in (1, 2):
                report(Progress(stage="drawing", done=number, total=3))
                output.say(f"result {number}")
    lines = terminal.getvalue().split("\n")
    assert sum("drawing" in line for line in lines) >= 2
    assert [line.removeprefix(SHOW_CURSOR) for line in lines if "result" in line] == [
        "result 1",
        "result 2",
    ]
