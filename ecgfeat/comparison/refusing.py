"""Runs that can't be compared, and how their test rows differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ecgfeat.errors import RunError
from ecgfeat.predictions import Predictions
from ecgfeat.runs import Run

__all__ = ["refuse_different_rows", "refuse_equal_names"]


def refuse_equal_names(runs: Sequence[Run]) -> None:
    """Refuse two runs of one name, which a table could not tell apart."""
    paths: dict[str, Path] = {}
    for run in runs:
        if run.name in paths:
            raise RunError(
                f"two of the runs are called {run.name} ({paths[run.name]} and {run.path}). Give "
                "each run once; rename a folder where different runs share a name."
            )
        paths[run.name] = run.path


def refuse_different_rows(
    first_name: str, first: Predictions, second_name: str, second: Predictions
) -> None:
    """Refuse runs that were not tested on the same rows; both in the order of their ids.

    Raises
    ------
    RunError
        When classes, test rows, targets or groups differ.
    """
    who = f"{first_name} and {second_name}"
    if first.classes != second.classes:
        raise RunError(
            f"{who} can't be compared, their classes differ: {', '.join(first.classes)} in the "
            f"one, {', '.join(second.classes)} in the other. Make both runs on the same data "
            "with the same --positive."
        )
    if first.ids != second.ids:
        ours, theirs = Counter(first.ids), Counter(second.ids)
        example = min((ours - theirs) | (theirs - ours))
        owner = first_name if ours[example] > theirs[example] else second_name
        raise RunError(
            f"{who} can't be compared, their test rows differ: {_rows_in_words(first)} and "
            f"{_rows_in_words(second)}, {(ours & theirs).total()} of them in both; {example} is "
            f"only in {owner}. Make both runs on the same data with the same split, "
            "--test-subset and --cv."
        )
    for what, one, other in (
        ("class", _labels(first), _labels(second)),
        ("group", first.groups, second.groups),
    ):
        differing = [row for row, (a, b) in enumerate(zip(one, other)) if a != b]
        if differing:
            row = differing[0]
            raise RunError(
                f"{who} can't be compared, the {what} of {len(differing)} of their {len(first)} "
                f"test rows differs: {first.ids[row]} has {one[row]!r} in the one, "
                f"{other[row]!r} in the other. Make both runs on the same version of the data."
            )


def _rows_in_words(predictions: Predictions) -> str:
    return f"{len(predictions)} rows ({predictions.split})"


def _labels(predictions: Predictions) -> tuple[str, ...]:
    return tuple(predictions.classes[target] for target in predictions.targets.tolist())
