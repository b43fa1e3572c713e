"""How runs and their comparison look on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import Output

if TYPE_CHECKING:
    from rich.table import Table

    from ecgfeat.comparison import Comparison
    from ecgfeat.runs import Run

__all__ = ["runs_as_json", "show_comparison", "show_runs"]

_SCORE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}

_SCORE_COLUMNS = {"": "left", **dict.fromkeys(_SCORE_NAMES.values(), "left")}


def show_runs(output: Output, runs: Sequence[Run]) -> None:
    """Each run's report, scores, cost and folder."""
    for run in runs:
        output.say(run.report)
        for name, score in run.metrics["scores"].items():
            output.say(f"{_SCORE_NAMES.get(name, name):<18} {interval(score)}")
        cost = run.cost
        output.say(
            f"{cost.wall_s:.1f} s, {cost.images_per_s:.1f} images/s, "
            f"peak memory {cost.peak_memory_mib:.0f} MiB, {cost.device} {cost.precision}"
        )
        output.say(f"run: {run.path}\n")


def runs_as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs for ``--json``: folder, kind and metrics of each."""
    return {"runs": [{"path": str(run.path), "kind": run.kind, **run.metrics} for run in runs]}


def interval(score: Mapping[str, Any] | None) -> str:
    """A score with its 95 % interval; a dash where it isn't defined."""
    if score is None:
        return "–"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def show_comparison(output: Output, comparison: Comparison, figure: Path) -> None:
    """The runs side by side, every pair's difference, and where the figure is.

    In tables of their own, so that none is wider than a terminal's usual 80 columns.
    """
    shown = comparison.as_json()
    short = {run["name"]: f"R{index + 1}" for index, run in enumerate(shown["runs"])}
    output.say(comparison.title)
    for name, number in short.items():
        output.say(f"{number}  {name}")
    output.show(*_run_tables(output, shown, short), *_pair_tables(output, shown, short))
    output.say(f"figure: {figure}")


def _run_tables(
    output: Output, shown: Mapping[str, Any], short: Mapping[str, str]
) -> tuple[Table, Table]:
    scores = output.table("Scores, with 95 % intervals", _SCORE_COLUMNS)
    costs = output.table(
        "Cost",
        {"": "left", "network": "left"}
        | dict.fromkeys(["extraction", "training", "peak memory", "batch"], "right"),
    )
    for run in shown["runs"]:
        number, cost = short[run["name"]], run["cost"]
        scores.add_row(number, *(interval(run["scores"][name]) for name in _SCORE_NAMES))
        costs.add_row(
            number,
            cost["arch"],
            f"{cost['features_s']:.1f} s",
            f"{cost['wall_s']:.1f} s",
            f"{cost['peak_memory_mib']:.0f} MiB",
            str(cost["batch_size"]),
        )
    return scores, costs


def _pair_tables(
    output: Output, shown: Mapping[str, Any], short: Mapping[str, str]
) -> tuple[Table, Table]:
    differences = output.table("Paired differences, with 95 % intervals", _SCORE_COLUMNS)
    tests = output.table(
        shown["p_value_method"], {"": "left", "right by one only": "left", "p": "right"}
    )
    for pair in shown["pairs"]:
        first, second = short[pair["first"]], short[pair["second"]]
        name = f"{second} - {first}"
        differences.add_row(name, *(interval(pair["differences"][name]) for name in _SCORE_NAMES))
        only = f"{second} {pair['n_second_only']}, {first} {pair['n_first_only']}"
        same = " (identical predictions)" if pair["is_identical"] else ""
        tests.add_row(name, only + same, f"{pair['p_value']:.3g}")
    return differences, tests
