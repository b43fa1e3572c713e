"""How runs and their comparison look on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgfeat.errors import DataError

from ._console import Output

if TYPE_CHECKING:
    from rich.table import Table

    from ecgfeat.comparison import Comparison
    from ecgfeat.inference import FailedImage
    from ecgfeat.runs import Run

__all__ = [
    "refuse_unread",
    "runs_as_json",
    "show_comparison",
    "show_later_notices",
    "show_runs",
]

_ALL_PAIRS = 6
"""Up to so many runs every pair is shown; of more, only the pairs with the best run."""


def show_runs(output: Output, runs: Sequence[Run]) -> None:
    """Each run's report, scores, cost and folder, within a terminal's usual 80 columns."""
    for run in runs:
        output.say(run.report)
        for line in (
            *_score_lines(run.metrics),
            *_majority_lines(run.metrics),
            *_positive_lines(run),
            *_origin_lines(run.metrics),
            *(f"notice: {line}" for line in run.metrics.get("notices", ())),
        ):
            output.say(line)
        cost = run.cost
        output.say(
            f"{cost.wall_s:.1f} s, {cost.images_per_s:.1f} images/s, "
            f"peak memory {cost.peak_memory_mib:.0f} MiB, {cost.device} {cost.precision}"
        )
        output.say(f"run: {run.path}\n")


def show_later_notices(output: Output, shown: Sequence[Run], runs: Sequence[Run]) -> None:
    """What the same runs have to say since they were shown: which figures are missing."""
    for before, after in zip(shown, runs):
        for line in after.metrics.get("notices", ())[len(before.metrics.get("notices", ())) :]:
            output.say(f"notice: {after.name}: {line}")


def _score_lines(shown: Mapping[str, Any]) -> list[str]:
    """The scores with their intervals, in two columns; those at a stated prevalence below."""
    from ecgfeat.metrics import METRICS, in_words

    cells = [
        f"{METRICS[name].title if name in METRICS else name:<17} {in_words(score):<20}"
        for name, score in shown["scores"].items()
        if not name.endswith("_at_prevalence")
    ]
    half = (len(cells) + 1) // 2
    lines = [f"{left}   {right}".rstrip() for left, right in zip(cells, [*cells[half:], ""][:half])]
    lines += [
        f"{METRICS[name].title} {shown['prevalence']:g}: {in_words(score)}"
        for name, score in shown["scores"].items()
        if name.endswith("_at_prevalence")
    ]
    if shown["positive"] is None:
        lines.append("F1, AUROC and average precision: means over the classes")
    return lines


def _majority_lines(shown: Mapping[str, Any]) -> list[str]:
    """What the accuracy is to be held against; nothing in a run of earlier versions."""
    majority = shown.get("majority")
    if majority is None:
        return []
    names = " or ".join(dict.fromkeys(majority["classes"]))
    return [
        f"majority: always {names} has accuracy {majority['accuracy']:.3f} "
        f"(McNemar's p {majority['p_value']:.3g})",
        f"chance: balanced accuracy {1 / len(shown['classes']):.3g}, AUROC 0.5",
    ]


def _positive_lines(run: Run) -> list[str]:
    """Which class was taken for the positive one, why, and how to turn it."""
    from ecgfeat.protocol import positive_in_words

    given = run.config.get("evaluation", {}).get("positive", "")
    words = positive_in_words(run.metrics["classes"], given)
    return [f"positive: {words}"] if words else []


def _origin_lines(shown: Mapping[str, Any]) -> list[str]:
    """What the answers rest on, how they were chosen, and how much the scores spread."""
    from ecgfeat.metrics import METRICS
    from ecgfeat.runs import decision_from

    lines = []
    for fold, fields in enumerate(shown.get("decisions", ())):
        decision = decision_from(fields)
        words, meaning = decision.in_words(), decision.meaning()
        where = f"fold {fold + 1}" if len(shown["decisions"]) > 1 else "decision"
        if words:
            lines += [f"{where}: {words}", *([f"  {meaning}"] if meaning else [])]
    if "words" in shown.get("choice", {}):
        lines.append(f"choice: {shown['choice']['words']}")
    for key, what in (("over_folds", "folds"), ("over_seeds", "seeds")):
        spread = shown.get(key, {})
        found = [
            (METRICS[name].title, spread[name]) for name in ("accuracy", "auroc") if name in spread
        ]
        if found and all(v["std"] is not None for _, v in found):
            words = ", ".join(f"{title} {v['mean']:.3f} ± {v['std']:.3f}" for title, v in found)
            lines.append(f"over {found[0][1]['n']} {what}: {words}")
    return lines


def refuse_unread(output: Output, failures: Sequence[FailedImage], n_images: int) -> None:
    """Name the images that could not be read, and end with an error where there are some."""
    for failure in failures:
        output.log(f"{failure.path} is left out: {failure.reason}")
    if failures:
        raise DataError(
            f"{len(failures)} of {n_images} images could not be read: see the lines above"
        )


def runs_as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs for ``--json``: folder, kind and metrics of each."""
    return {"runs": [{"path": str(run.path), "kind": run.kind, **run.metrics} for run in runs]}


def show_comparison(output: Output, comparison: Comparison, figure: Path) -> None:
    """The runs side by side, the pairs' differences, and where the figure is.

    In tables of their own, so that none is wider than a terminal's usual 80 columns.
    """
    shown = comparison.as_json()
    short = {run["name"]: f"R{index + 1}" for index, run in enumerate(shown["runs"])}
    output.say(comparison.title)
    for run in shown["runs"]:
        output.say(f"{short[run['name']]}  {run['name']}")
        words = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in run["differs"].items()
        )
        if words:
            output.say(f"    {words}")
    majorities = {run["majority_accuracy"] for run in shown["runs"]} - {None}
    if majorities:
        words = ", ".join(f"{accuracy:.3f}" for accuracy in sorted(majorities))
        output.say(f"majority: always answering it has accuracy {words}")
    output.show(*_run_tables(output, shown, short), *_pair_tables(output, shown, short))
    for run in shown["runs"]:
        if run["leak"]:
            output.say(f"notice: {short[run['name']]}: {run['leak']}")
    for aside in comparison.left_aside:
        output.say(f"left aside: {aside.name}: {aside.reason}")
    output.say(f"figure: {figure}")


def _run_tables(
    output: Output, shown: Mapping[str, Any], short: Mapping[str, str]
) -> tuple[Table, Table]:
    scores = output.table("Scores, with 95 % intervals", _score_columns())
    costs = output.table(
        "Cost",
        {"": "left", "network": "left"}
        | dict.fromkeys(["extraction", "training", "peak memory", "batch"], "right"),
    )
    for run in shown["runs"]:
        number, cost = short[run["name"]], run["cost"]
        scores.add_row(number, *_intervals(run["scores"]))
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
    from ecgfeat.metrics import p_in_words

    pairs, which = _pairs_to_show(shown, short)
    differences = output.table(f"Paired differences, with 95 % intervals{which}", _score_columns())
    tests = output.table(
        f"Tests: p, and p adjusted for all pairs ({shown['adjustment']})",
        {"": "left", "right by one only": "left", "McNemar": "right"}
        | dict.fromkeys(["adjusted", "AUROC", "adjusted "], "right"),
    )
    for pair in pairs:
        first, second = short[pair["first"]], short[pair["second"]]
        name = f"{second} - {first}"
        differences.add_row(name, *_intervals(pair["differences"]))
        only = f"{second} {pair['n_second_only']}, {first} {pair['n_first_only']}"
        same = " (identical predictions)" if pair["is_identical"] else ""
        area = pair["auroc_test"]
        p_values = (
            pair["p_value"],
            pair["p_adjusted"],
            area and area["p_value"],
            pair["auroc_p_adjusted"],
        )
        tests.add_row(name, only + same, *map(p_in_words, p_values))
    methods = f"Right answers: {shown['p_value_method']}."
    if shown["positive"] is not None:
        methods += f" AUROC: {shown['auroc_method']}."
    tests.caption, tests.caption_justify = methods, "left"
    return differences, tests


def _pairs_to_show(
    shown: Mapping[str, Any], short: Mapping[str, str]
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The pairs that fit a screen, and which they are, for a title."""
    if len(shown["runs"]) <= _ALL_PAIRS:
        return shown["pairs"], ""
    best = max(shown["runs"], key=lambda run: run["scores"]["accuracy"]["value"])["name"]
    kept = [pair for pair in shown["pairs"] if best in (pair["first"], pair["second"])]
    return kept, f": pairs with {short[best]}, the most accurate (--json has all)"


def _score_columns() -> dict[str, str]:
    from ecgfeat.metrics import MAIN, METRICS

    return {"": "left", **dict.fromkeys((METRICS[name].title for name in MAIN), "left")}


def _intervals(scores: Mapping[str, Any]) -> list[str]:
    from ecgfeat.metrics import MAIN, in_words

    return [in_words(scores[name]) for name in MAIN]
