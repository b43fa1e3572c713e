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
    short = {run["name"]: f"R{index + 1}" for index, run in enumerate(shown["runs"])}
    scores = dict.fromkeys(_SCORE_NAMES.values(), "left")
    costs = dict.fromkeys(["features", "training", "peak memory", "batch"], "right")
    runs = output.table(
        comparison.title, {"": "left", "run": "left", "network": "left"} | scores | costs
    )
    for run in shown["runs"]:
        cost = run["cost"]
        runs.add_row(
            short[run["name"]],
            run["name"],
            cost["arch"],
            *(interval(run["scores"][name]) for name in _SCORE_NAMES),
            f"{cost['features_s']:.1f} s",
            f"{cost['wall_s']:.1f} s",
            f"{cost['peak_memory_mib']:.0f} MiB",
            str(cost["batch_size"]),
        )
    pairs = output.table(
        f"Paired differences with 95 % intervals; p: {comparison.p_value_method}",
        {"": "left"} | scores | {"right by one only": "right", "p": "right"},
    )
    for pair in shown["pairs"]:
        same = " (identical)" if pair["is_identical"] else ""
        pairs.add_row(
            f"{short[pair['second']]} − {short[pair['first']]}{same}",
            *(interval(pair["differences"][name]) for name in _SCORE_NAMES),
            f"{short[pair['second']]} {pair['n_second_only']}, "
            f"{short[pair['first']]} {pair['n_first_only']}",
            f"{pair['p_value']:.3g}",
        )
    output.show(runs, pairs)
    output.say(f"figure: {figure}")
