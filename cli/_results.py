"""How runs and their comparison look on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import Output

if TYPE_CHECKING:
    from ecgfeat.comparison import Comparison
    from ecgfeat.runs import Run

__all__ = ["runs_as_json", "show_comparison", "show_runs"]

_SCORE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}


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
    """The runs side by side, every pair's difference, and where the figure is."""
    shown = comparison.as_json()
    runs = output.table(
        comparison.title,
        {"run": "left", **dict.fromkeys(_SCORE_NAMES.values(), "left")}
        | {"time": "right", "peak memory": "right", "network": "left", "batch": "right"},
    )
    for run in shown["runs"]:
        cost = run["cost"]
        runs.add_row(
            run["name"],
            *(interval(run["scores"][name]) for name in _SCORE_NAMES),
            f"{cost['wall_s']:.1f} s",
            f"{cost['peak_memory_mib']:.0f} MiB",
            cost["arch"],
            str(cost["batch_size"]),
        )
    pairs = output.table(
        f"Differences (second minus first), 95 % intervals; p: {comparison.p_value_method}",
        {"first": "left", "second": "left", **dict.fromkeys(_SCORE_NAMES.values(), "left")}
        | {"right by one only": "right", "p": "right"},
    )
    for pair in shown["pairs"]:
        pairs.add_row(
            pair["first"],
            pair["second"],
            *(interval(pair["differences"][name]) for name in _SCORE_NAMES),
            f"{pair['n_first_only']} : {pair['n_second_only']}",
            f"{pair['p_value']:.3g}",
        )
    output.show(runs, pairs)
    output.say(f"figure: {figure}")
