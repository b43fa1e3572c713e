"""Runs on the same test rows: their scores, and every two of them against each other."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgfeat.config import (
    RUN_KINDS,
    EvaluationSettings,
    FinetuneSettings,
    HeadSettings,
    Settings,
    SweepSettings,
)
from ecgfeat.errors import ConfigError, RunError
from ecgfeat.heads import idle_options
from ecgfeat.metrics import (
    MAIN,
    METRICS,
    AreaTest,
    Resampled,
    Score,
    compare_areas,
    holm,
    in_id_order,
    in_words,
    mcnemar_p_value,
    resample,
)
from ecgfeat.predictions import Predictions, positive_class
from ecgfeat.protocol import LEAK
from ecgfeat.runs import Cost, Run, decision_from, open_run
from ecgfeat.runtime import as_frame, html_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "ComparedRun",
    "Comparison",
    "LeftAside",
    "ListedRun",
    "Pair",
    "compare",
    "differing_settings",
    "list_runs",
]


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run's scores on the shared rows, and what it cost.

    Attributes
    ----------
    name, kind : str
        The run's.
    label : str
        The kind in words.
    scores : dict of str to Score or None
        As `metrics.evaluate` gives them.
    cost : Cost
    majority_accuracy : float or None
        What always answering the majority of the training rows gives; None in a run of earlier
        versions.
    leak : str
        That it was tested on images it was trained on, in words; empty for most.
    differs : mapping of str to str
        Its settings that the other runs have otherwise, see `differing_settings`.
    operating_point : str
        How its probabilities become answers, in words.
    """

    name: str
    kind: str
    label: str
    scores: dict[str, Score | None]
    cost: Cost
    majority_accuracy: float | None = None
    leak: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)
    operating_point: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs against each other.

    Attributes
    ----------
    first, second : str
        Names of the runs.
    differences : dict of str to Score or None
        Scores of `second` minus those of `first`, with the paired bootstrap's 95 % intervals.
    n_first_only, n_second_only : int
        Rows that only the one run got right.
    p_value : float
        See `mcnemar_p_value`.
    auroc_test : AreaTest or None
        See `compare_areas`; None with more than two classes, or where it is undefined.
    p_adjusted, auroc_p_adjusted : float or None
        The p-values of both tests, adjusted for all pairs of the comparison (see `holm`).
    is_identical : bool
        Whether both gave every row exactly the same probabilities and answer. The differences
        are then 0 by construction, with intervals of no width.
    """

    first: str
    second: str
    differences: dict[str, Score | None]
    n_first_only: int
    n_second_only: int
    p_value: float
    auroc_test: AreaTest | None
    p_adjusted: float | None
    auroc_p_adjusted: float | None
    is_identical: bool


@dataclass(frozen=True)
class LeftAside:
    """The name of a run that is not compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Runs on the same test rows.

    Attributes
    ----------
    runs : tuple of ComparedRun
        In the order given.
    pairs : tuple of Pair
        Every two of them.
    data : str
        Name of the data set.
    test_rows : str
        The test rows in words, such as ``"subset of 1000 of 18136"``.
    n_rows, n_groups : int
        Test rows, and the independent units among them: groups, and rows without one.
    classes : tuple of str
    p_value_method : str
        ``"McNemar, exact"`` or ``"McNemar, exact, by group"``.
    auroc_method : str
        ``"DeLong"`` or, with groups, ``"DeLong, by group (Obuchowski)"``.
    adjustment : str
        ``"Holm, N pairs"``.
    left_aside : tuple of LeftAside
        Runs given that can't be compared with these.
    """

    runs: tuple[ComparedRun, ...]
    pairs: tuple[Pair, ...]
    data: str
    test_rows: str
    n_rows: int
    n_groups: int
    classes: tuple[str, ...]
    p_value_method: str
    auroc_method: str
    adjustment: str
    left_aside: tuple[LeftAside, ...] = ()

    @property
    def title(self) -> str:
        """What is compared, in words."""
        title = f"{len(self.runs)} runs on {self.data}, same test rows: {self.test_rows}"
        return f"{title}, positive: {self.positive}" if self.positive else title

    @property
    def positive(self) -> str | None:
        """The positive class of a binary task, else None."""
        return positive_class(self.classes)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values, ready for ``json.dumps``."""
        return {**dataclasses.asdict(self), "positive": self.positive}

    def __repr__(self) -> str:
        heads, *rows = self._table()
        lines = [", ".join(f"{h} {v}".strip() for h, v in zip(heads, row) if v) for row in rows]
        return "\n  ".join([f"Comparison of {self.title}", *lines])

    def _repr_html_(self) -> str:
        heads, *rows = self._table()
        return html_table(f"{self.title}; 95 % intervals", heads, rows)

    def _table(self) -> list[list[str]]:
        """A row for each run and each pair, after the heads."""
        number = {run.name: f"R{index}" for index, run in enumerate(self.runs, start=1)}
        rows = [["", "", *(METRICS[name].title for name in MAIN)]]
        for run in self.runs:
            what = ", ".join([run.label, *(f"{k} {v}" for k, v in run.differs.items())])
            rows.append([number[run.name], what, *(in_words(run.scores[name]) for name in MAIN)])
        for pair in self.pairs:
            who = f"{number[pair.second]} - {number[pair.first]}"
            rows.append([who, "", *(in_words(pair.differences[name]) for name in MAIN)])
        return rows

    def to_frame(self) -> DataFrame:
        """A row for each run as a pandas DataFrame: every score with its interval, and costs.

        Raises
        ------
        ConfigError
            When pandas isn't installed.
        """
        columns: dict[str, list[object]] = {
            "run": [run.name for run in self.runs],
            "way": [run.label for run in self.runs],
        }
        for name in self.runs[0].scores:
            scores = [run.scores[name] for run in self.runs]
            for end in ("value", "low", "high"):
                column = name if end == "value" else f"{name}_{end}"
                columns[column] = [score and getattr(score, end) for score in scores]
        for cost in ("features_s", "wall_s", "peak_memory_mib"):
            columns[cost] = [getattr(run.cost, cost) for run in self.runs]
        return as_frame(columns)


class _Opened(NamedTuple):
    """A run, and what it predicted, rows in the order of their ids."""

    run: Run
    predictions: Predictions


def compare(runs: Sequence[Run | str | Path], *, leave_aside: bool = False) -> Comparison:
    """Set runs side by side that were tested on the same rows.

    The scores are those of each run's own ``metrics.json``. Differences are resampled in pairs:
    every run is scored on the same resamples, so that a difference's interval knows how their
    errors coincide; by whole groups where any has more than one row.

    Parameters
    ----------
    runs : sequence of Run, str or Path
        At least two, of different names, opened or their folders. The order of their rows does
        not matter.
    leave_aside : bool
        Of more than two, compare the largest set of runs of the same classes and test rows (of
        equal ones the first), and name the others and the reason in `Comparison.left_aside`.

    Returns
    -------
    Comparison

    Raises
    ------
    RunError
        When there is only one run, a name comes twice, or the runs' classes, test rows, targets
        or groups differ; the message says how.
    StorageError
        When a run's predictions can't be read.

    Examples
    --------
    >>> comparison = compare([open_run(path) for path in paths])  # doctest: +SKIP
    >>> comparison.pairs[0].differences["accuracy"].value  # doctest: +SKIP
    0.0686
    """
    if len(runs) < 2:
        raise RunError(f"a comparison needs at least two runs; found {len(runs)}")
    sets, left_aside = _comparable_sets(runs, stop=not leave_aside or len(runs) == 2)
    chosen = max(sets, key=len, default=[])
    if len(chosen) < 2:
        reasons = [_difference(sets[0][0], some[0]) for some in sets[1:]]
        reasons += [aside.reason for aside in left_aside]
        raise RunError(f"no two of the {len(runs)} runs can be compared: {reasons[0]}")
    for others in sets:
        if others is not chosen:
            left_aside += [
                LeftAside(other.run.name, _difference(chosen[0], other)) for other in others
            ]
    resampled = resample([opened.predictions for opened in chosen])
    sample = resampled[0].sample
    pairs = _pairs(chosen, resampled)
    first = chosen[0]
    differing = differing_settings([opened.run for opened in chosen])
    return Comparison(
        runs=tuple(
            _compared(opened.run, scored.scores(), differs)
            for opened, scored, differs in zip(chosen, resampled, differing)
        ),
        pairs=pairs,
        data=str(first.run.config["data"]),
        test_rows=str(first.run.metrics["test_rows"]),
        n_rows=len(first.predictions),
        n_groups=sample.n_units,
        classes=first.predictions.classes,
        p_value_method="McNemar, exact" + (", by group" if sample.is_grouped else ""),
        auroc_method="DeLong" + (", by group (Obuchowski)" if sample.is_grouped else ""),
        adjustment=f"Holm, {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}",
        left_aside=tuple(left_aside),
    )


def _comparable_sets(
    runs: Sequence[Run | str | Path], *, stop: bool
) -> tuple[list[list[_Opened]], list[LeftAside]]:
    """Put runs of the same classes and test rows together, and say which can't be opened.

    With `stop`, the first that can't be opened or is not like the first run is an error.
    """
    sets: list[list[_Opened]] = []
    unopened: list[LeftAside] = []
    _refuse_equal_names([run for run in runs if isinstance(run, Run)])
    for given in runs:
        try:
            run = given if isinstance(given, Run) else open_run(given)
            opened = _Opened(run, in_id_order(run.predictions))
        except RunError as error:
            if stop:
                raise
            name = given.name if isinstance(given, Run) else Path(given).name
            unopened.append(LeftAside(name, str(error)))
            continue
        _refuse_equal_names([*(other.run for some in sets for other in some), run])
        alike = next((some for some in sets if not _difference(some[0], opened)), None)
        if alike is not None:
            alike.append(opened)
        elif sets and stop:
            raise RunError(_difference(sets[0][0], opened))
        else:
            sets.append([opened])
    return sets, unopened


def _refuse_equal_names(runs: Sequence[Run]) -> None:
    """Refuse two runs of one name, which a table could not tell apart."""
    paths: dict[str, Path] = {}
    for run in runs:
        if run.name in paths:
            raise RunError(
                f"two of the runs are called {run.name} ({paths[run.name]} and {run.path}). Give "
                "each run once; rename a folder where different runs share a name."
            )
        paths[run.name] = run.path


def _difference(one: _Opened, other: _Opened) -> str:
    """Why two runs can't be compared, in words; empty where they can."""
    first, second = one.predictions, other.predictions
    who = f"{one.run.name} and {other.run.name} can't be compared"
    if first.classes != second.classes:
        return (
            f"{who}, their classes differ: {', '.join(first.classes)} in the one, "
            f"{', '.join(second.classes)} in the other. Make both runs on the same data with the "
            "same --positive."
        )
    if first.ids != second.ids:
        ours, theirs = Counter(first.ids), Counter(second.ids)
        example = min((ours - theirs) | (theirs - ours))
        owner = one.run.name if ours[example] > theirs[example] else other.run.name
        return (
            f"{who}, their test rows differ: {_rows_in_words(first)} and {_rows_in_words(second)}, "
            f"{(ours & theirs).total()} of them in both; {example} is only in {owner}. Make both "
            "runs on the same data with the same split, --test-subset and --cv."
        )
    for what, mine, yours in (
        ("class", _labels(first), _labels(second)),
        ("group", first.groups, second.groups),
    ):
        differing = [row for row, (a, b) in enumerate(zip(mine, yours)) if a != b]
        if differing:
            row = differing[0]
            return (
                f"{who}, the {what} of {len(differing)} of their {len(first)} test rows differs: "
                f"{first.ids[row]} has {mine[row]!r} in the one, {yours[row]!r} in the other. Make "
                "both runs on the same version of the data."
            )
    return ""


def _rows_in_words(predictions: Predictions) -> str:
    return f"{len(predictions)} rows ({predictions.split})"


def _labels(predictions: Predictions) -> tuple[str, ...]:
    return tuple(predictions.classes[target] for target in predictions.targets.tolist())


def _compared(run: Run, scores: dict[str, Score | None], differs: Mapping[str, str]) -> ComparedRun:
    decisions = [decision_from(fields) for fields in run.metrics.get("decisions", ())]
    points = [decision.in_words() for decision in decisions if decision.in_words()]
    leaks = [notice for notice in run.metrics.get("notices", ()) if notice.startswith(LEAK)]
    return ComparedRun(
        name=run.name,
        kind=run.kind,
        label=RUN_KINDS[run.kind].title if run.kind in RUN_KINDS else run.kind,
        scores=scores,
        cost=run.cost,
        majority_accuracy=run.metrics.get("majority", {}).get("accuracy"),
        leak="; ".join(leaks),
        differs=differs,
        operating_point="; ".join(points) or "the most probable class",
    )


def _pairs(runs: Sequence[_Opened], resampled: Sequence[Resampled]) -> tuple[Pair, ...]:
    """Every two runs against each other; both tests' p-values are adjusted over all pairs."""
    units = resampled[0].sample.units
    predictions = runs[0].predictions
    numbers = list(combinations(range(len(runs)), 2))
    right = [opened.predictions.predicted == predictions.targets for opened in runs]
    p_values = [mcnemar_p_value(right[i], right[j], units) for i, j in numbers]
    area_tests: list[AreaTest | None] = [None] * len(numbers)
    if predictions.positive is not None:
        scores = [opened.predictions.probabilities[:, 1] for opened in runs]
        found = compare_areas(predictions.targets == 1, scores, units)
        area_tests = [found[pair] for pair in numbers]
    area_p_values = [test.p_value if test else None for test in area_tests]
    tests = zip(p_values, holm(p_values), area_tests, holm(area_p_values))
    pairs = []
    for (i, j), (p_value, p_adjusted, area_test, area_p_adjusted) in zip(numbers, tests):
        first, second = runs[i].predictions, runs[j].predictions
        is_identical = np.array_equal(first.probabilities, second.probabilities) and np.array_equal(
            first.predicted, second.predicted
        )
        differences = resampled[j].minus(resampled[i])
        if is_identical:
            differences = {
                name: score and Score(0.0, 0.0, 0.0, score.method)
                for name, score in differences.items()
            }
        pairs.append(
            Pair(
                first=runs[i].run.name,
                second=runs[j].run.name,
                differences=differences,
                n_first_only=int(np.sum(right[i] & ~right[j])),
                n_second_only=int(np.sum(right[j] & ~right[i])),
                p_value=p_value,
                auroc_test=area_test,
                p_adjusted=p_adjusted,
                auroc_p_adjusted=area_p_adjusted,
                is_identical=is_identical,
            )
        )
    return tuple(pairs)


# What runs there are, and how they differ


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run's folder in a list.

    Attributes
    ----------
    number : str
        ``R1``, ``R2`` …, as it is called in a comparison of the same runs.
    path : Path
    run : Run or None
        None where it can't be opened.
    differs : mapping of str to str
        Its settings that others in the list have otherwise.
    reason : str
        Why it can't be opened; empty where it can.
    """

    number: str
    path: Path
    run: Run | None
    differs: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        described: dict[str, Any] = {"number": self.number, "path": str(self.path)}
        if self.run is None:
            return {**described, "reason": self.reason}
        return {
            **described,
            **{key: self.run.config.get(key) for key in ("kind", "data", "created")},
            "test_rows": self.run.metrics["test_rows"],
            "scores": self.run.metrics["scores"],
            "majority_accuracy": self.run.metrics.get("majority", {}).get("accuracy"),
            "differs": dict(self.differs),
        }


def list_runs(folder: str | Path = "runs", *, sort: str = "name") -> list[ListedRun]:
    """The runs of a folder, and the settings in which they differ.

    Parameters
    ----------
    folder : str or Path
        Their parent folder.
    sort : str
        ``"name"``, which is by time, or a score: the best first.

    Raises
    ------
    ConfigError
        When there is no such score.
    RunError
        When there is no such folder.

    Examples
    --------
    >>> [run.path.name for run in list_runs("runs", sort="auroc")]  # doctest: +SKIP
    ['20260131-094500-logreg-pages', '20260131-094455-linear-pages']
    """
    if sort != "name" and sort not in METRICS:
        raise ConfigError(f"--sort must be name or one of {', '.join(METRICS)}; found {sort!r}")
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder: give the folder that holds the runs' folders")
    if (folder / "config.json").exists():
        raise RunError(
            f"{folder} is a run itself: give the folder that it lies in, {folder.parent}"
        )
    paths = sorted(path for path in folder.iterdir() if (path / "config.json").exists())
    opened: list[Run] = []
    others: list[ListedRun] = []
    for path in paths:
        try:
            opened.append(open_run(path))
        except RunError as error:
            others.append(ListedRun(number="–", path=path, run=None, reason=str(error)))
    if sort != "name":
        opened.sort(key=lambda run: _rank(run, sort))
    listed = [
        ListedRun(number=f"R{number}", path=run.path, run=run, differs=differs)
        for number, (run, differs) in enumerate(zip(opened, differing_settings(opened)), start=1)
    ]
    return listed + others


def _rank(run: Run, by: str) -> float:
    score = run.metrics["scores"].get(by)
    if score is None:
        return float("inf")
    return float(score["value"]) * (1 if METRICS[by].is_loss else -1)


SECTIONS: Mapping[str, Settings] = {
    "head": HeadSettings(),
    "sweep": SweepSettings(),
    "training": FinetuneSettings(),
    "evaluation": EvaluationSettings(),
}
"""Settings in ``config.json`` that make a difference, with their defaults."""


def differing_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Of each run the settings that others have otherwise, by the option's name.

    One that only some have, such as a head's C, is told where it isn't the usual one.
    """
    found = [_settings_of(run) for run in runs]
    names = dict.fromkeys(name for settings in found for name in settings)
    values = {name: {settings.get(name) for settings in found} for name in names}
    usual = {name for name in names if values[name] - {None} == {_USUAL.get(name)}}
    differing = [name for name in names if len(values[name]) > 1 and name not in usual]
    return [{name: settings[name] for name in differing if name in settings} for settings in found]


def _as_words(section: Settings) -> dict[str, str]:
    return {item.name: _word(getattr(section, item.name)) for item in dataclasses.fields(section)}


def _word(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "none"


_USUAL = {name: word for section in SECTIONS.values() for name, word in _as_words(section).items()}


def _settings_of(run: Run) -> dict[str, str]:
    """What decides a run's numbers, as words by name; what its kind of head doesn't use is left."""
    config = run.config
    backbone = config.get("backbone", {})
    found = {
        "data": f"{config['data']} {config.get('manifest_digest', '')[:8]}".strip(),
        "recipe": str(config.get("recipe", "")) or "none",
        "arch": str(backbone.get("arch", "")),
        "weights": f"{Path(str(backbone.get('weights', ''))).name} "
        f"{str(backbone.get('weights_digest', ''))[:8]}".strip(),
        **(_as_words(run.page) if "preprocessing" in config else {}),
    }
    idle = idle_options(run.kind)
    for name, usual in SECTIONS.items():
        stored = config.get(name, {})
        if name == "sweep" and not (stored.get("sweep") or stored.get("grid")):
            continue  # nothing was chosen, whatever it would have been chosen by
        for item in dataclasses.fields(usual):
            if item.name in stored and item.name not in idle:
                found[item.name] = _word(stored[item.name])
    return found
