"""``ecgfeat runs``: the runs of a folder, and how they differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecgfeat.errors import ConfigError

from ._app import app
from ._console import Output
from ._options import command

if TYPE_CHECKING:
    from ecgfeat.comparison import ListedRun

__all__ = ["runs"]

_EXAMPLES = """
ecgfeat runs
ecgfeat runs study/runs --sort auroc
ecgfeat runs --csv > runs.csv
"""


@command(app, "runs", examples=_EXAMPLES)
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder that holds the runs' folders.")
    ] = Path("runs"),
    *,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="NAME", help="By name, or by a score: the best first."),
    ] = "name",
    csv: Annotated[
        bool, typer.Option("--csv", help="Print a CSV instead: every score, a run a row.")
    ] = False,
    output: Output,
) -> None:
    """List the runs of a folder: their headline, and only the settings in which they differ."""
    from ecgfeat.comparison import list_runs

    if csv and output.as_json:
        raise ConfigError("--csv and --json are two forms of the same: give one of the two")
    listed = list_runs(folder, sort=sort)
    if csv:
        _write_csv(listed)
        for one in listed:
            if one.run is None:
                output.log(f"left out: {one.reason}")
        return
    _show(output, folder, listed)
    output.result({"runs": [one.as_json() for one in listed]})


def _show(output: Output, folder: Path, listed: list[ListedRun]) -> None:
    from ecgfeat.metrics import in_words

    opened = [(one, one.run) for one in listed if one.run is not None]
    n_runs = "1 run" if len(opened) == 1 else f"{len(opened)} runs"
    output.say(f"{folder}: {n_runs}" if opened else f"{folder} holds no finished run")
    for one, run in opened:
        scores, majority = run.metrics["scores"], run.metrics.get("majority")
        against = f" (majority {majority['accuracy']:.3f})" if majority else ""
        output.say(f"\n{one.number}  {run.name}")
        output.say(f"    accuracy {in_words(scores['accuracy'])}{against}")
        output.say(f"    AUROC    {in_words(scores.get('auroc'))} on {run.metrics['test_rows']}")
        for name, value in one.differs.items():
            output.say(f"    {name.replace('_', ' ')}: {value}")
    for one in listed:
        if one.run is None:
            output.say(f"\n–   {one.path.name}\n    {one.reason}")


def _write_csv(listed: list[ListedRun]) -> None:
    import csv

    from ecgfeat.metrics import METRICS

    rows = csv.writer(sys.stdout, lineterminator="\n")
    names = dict.fromkeys(name for one in listed for name in one.differs)
    scores = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")]
    rows.writerow(["number", "run", "kind", "data", *names, *scores])
    for one in listed:
        if one.run is None:
            continue
        found = one.run.metrics["scores"]
        values = [
            (found.get(name) or {}).get(end, "")
            for name in METRICS
            for end in ("value", "low", "high")
        ]
        differs = [one.differs.get(name, "") for name in names]
        rows.writerow(
            [one.number, one.run.name, one.run.kind, one.run.config["data"], *differs, *values]
        )
