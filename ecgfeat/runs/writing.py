"""Making a run's folder and filling it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat import figures, metrics
from ecgfeat.config import RUN_KINDS, FigureSettings
from ecgfeat.errors import StorageError, storage_error
from ecgfeat.files import write_bytes, write_json, write_text
from ecgfeat.metrics import METRICS, Sample, Score, mcnemar_p_value
from ecgfeat.predictions import Predictions
from ecgfeat.protocol import LEAK
from ecgfeat.runs.folder import (
    Run,
    open_run,
    write_history,
    write_predictions,
    write_records,
    write_sweep,
)
from ecgfeat.runs.records import FORMAT_VERSION, Result

__all__ = ["create_run", "ignore", "write_config", "write_run"]


def ignore(_: object) -> None:
    """Do nothing with it."""


def create_run(out_dir: Path, kind: str, data_name: str) -> Path:
    """Make a folder ``<YYYYMMDD-HHMMSS>-<kind>-<data>`` (``-2``, ``-3`` … where it is taken).

    Raises
    ------
    StorageError
        When the folder can't be made.
    """
    # The name may come out of a stranger's cache: it must not lead anywhere else.
    safe_name = re.sub(r"[^\w.-]+", "_", data_name)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{kind}-{safe_name}"
    folder, n_taken = out_dir / stem, 1
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
            except FileExistsError:
                n_taken += 1
                folder = out_dir / f"{stem}-{n_taken}"
            else:
                return folder
    except OSError as error:
        raise storage_error(error, "making", folder) from error


def write_run(
    folder: Path,
    result: Result,
    *,
    look: FigureSettings = FigureSettings(),
    on_written: Callable[[Run], None] = ignore,
) -> Run:
    """Score a result and write the run's files into `folder`, the figures last.

    The run is finished with ``metrics.json``. A figure that can't be drawn or written costs
    nothing but itself: one of the run's notices says so.

    Parameters
    ----------
    folder : Path
    result : Result
    look : FigureSettings
        Of the figures.
    on_written : callable
        Given the finished run before its figures are drawn, which may take as long as a head.

    Returns
    -------
    Run

    Raises
    ------
    StorageError
        When the disk refuses; the run is then unfinished, and `open_run` says so.
    """
    scores = metrics.evaluate(result.predictions, prevalence=result.prevalence)
    majority = majority_of(result)
    described = {
        **describe_scores(result, scores),
        "majority": dataclasses.asdict(majority),
        "notices": notices_of(result, majority),
    }
    write_config(folder, result.kind, result.data_name, result.config)
    write_history(folder, result.history)
    write_predictions(folder, result.predictions)
    if result.validation is not None:
        write_predictions(folder, result.validation, "validation_predictions.csv")
    if result.sweep:
        write_sweep(folder, result.sweep)
    if result.learning_curve:
        write_records(folder / "learning_curve.csv", result.learning_curve)
    table = metrics.classification_table(result.predictions)
    report = f"{headline(result)}\n\n{table}"
    # Of balanced classes everyone knows it, and the study's report has no such line.
    if not math.isclose(majority.accuracy, 1 / len(result.predictions.classes)):
        report += f"\nAlways the training rows' majority: accuracy {majority.accuracy:.4f}\n"
    report += "".join(f"\n{line}\n" for line in described["notices"] if line.startswith(LEAK))
    write_text(folder / "classification_report.txt", report)
    if result.model:
        write_bytes(folder / "model.safetensors", _serialised(result.model))
    if result.fold_models:
        write_bytes(folder / "fold_models.safetensors", _serialised(_by_fold(result.fold_models)))
    if result.likeness is not None:
        write_bytes(folder / "likeness.safetensors", _serialised(vars(result.likeness)))
    if result.model or result.fold_models:
        write_json(folder / "model.json", describe_model(result))
    write_json(folder / "metrics.json", described)
    run = open_run(folder)
    on_written(run)
    failures = draw_figures(folder, result, scores, majority.accuracy, look)
    if not failures:
        return run
    described["notices"] = [*described["notices"], *failures]
    # On a full disk the earlier file stays, and whoever waits for the run is still told.
    with contextlib.suppress(StorageError):
        write_json(folder / "metrics.json", described)
    return dataclasses.replace(run, metrics=json.loads(json.dumps(described)))


def write_config(
    folder: Path, kind: str, data_name: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``config.json`` and return it; a job that can be resumed does so when it begins."""
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    head = {"format_version": FORMAT_VERSION, "kind": kind, "data": data_name, "created": created}
    whole = {**head, **config}
    write_json(folder / "config.json", whole)
    return whole


def _by_fold(models: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {
        f"fold{fold}/{name}": tensor
        for fold, tensors in enumerate(models)
        for name, tensor in tensors.items()
    }


def _serialised(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    # safetensors takes an array's memory as it lies, whatever its strides.
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def describe_model(result: Result) -> dict[str, Any]:
    """The content of ``model.json``."""
    card = {
        "format_version": FORMAT_VERSION,
        "kind": result.kind,
        "classes": result.predictions.classes,
        **result.model_card,
    }
    if result.model and result.decisions:
        card["decision"] = result.decisions[0].as_json()
    return card


def describe_scores(result: Result, scores: Mapping[str, Score | None]) -> dict[str, Any]:
    """The content of ``metrics.json``, with `scores` as `metrics.evaluate` gives them."""
    predictions = result.predictions
    described = {
        "n_test": len(predictions),
        "n_test_total": result.n_test_total,
        "test_rows": _tested_rows(result),
        "split": predictions.split,
        "classes": predictions.classes,
        "positive": predictions.positive,
        "scores": {name: score and dataclasses.asdict(score) for name, score in scores.items()},
        "confusion_matrix": metrics.confusion_matrix(predictions).tolist(),
        "cost": dataclasses.asdict(result.cost),
    }
    if result.prevalence:
        described["prevalence"] = result.prevalence
    if predictions.split == "cv":
        numbers = predictions.folds
        folds = [predictions.take(np.flatnonzero(numbers == fold)) for fold in np.unique(numbers)]
        described["over_folds"] = _spread(folds)
    if result.repeats:
        described["over_seeds"] = _spread([predictions, *result.repeats])
    if result.decisions:
        described["decisions"] = [decision.as_json() for decision in result.decisions]
    if result.choice:
        described["choice"] = dict(result.choice)
    return described


def _spread(parts: Sequence[Predictions]) -> dict[str, Any]:
    """Number, mean and standard deviation (n - 1) of each score over those that define it."""
    values = [metrics.score_values(part) for part in parts]
    spread = {}
    for name in METRICS:
        found = [value[name] for value in values if name in value and np.isfinite(value[name])]
        if found:
            std = float(np.std(found, ddof=1)) if len(found) > 1 else None
            spread[name] = {"n": len(found), "mean": float(np.mean(found)), "std": std}
    return spread


def headline(result: Result) -> str:
    """Kind of run, data, test rows and positive class, in a line."""
    title = (
        f"{RUN_KINDS[result.kind].title} on {result.data_name}, test rows: {_tested_rows(result)}"
    )
    positive = result.predictions.positive
    return f"{title}, positive: {positive}" if positive else title


def _tested_rows(result: Result) -> str:
    """The test rows in words, which say so wherever they are a subset."""
    predictions, n = result.predictions, len(result.predictions)
    if predictions.split == "test-subset":
        return f"subset of {n} of {result.n_test_total}"
    words = f"all {n}" if n == result.n_test_total else f"{n} of {result.n_test_total}"
    if predictions.split == "cv":
        return f"{words}, in {len(np.unique(predictions.folds))} folds"
    return words


def draw_figures(
    folder: Path,
    result: Result,
    scores: Mapping[str, Score | None],
    majority: float,
    look: FigureSettings,
) -> list[str]:
    """Draw all that the result has; returns a line for each figure that could not be written."""
    failures = []
    predictions = result.predictions
    named = dataclasses.replace(predictions, classes=look.rename(predictions.classes))
    drawn = dataclasses.replace(result, predictions=named)
    for stem, draw in _figures(drawn, scores, majority, has_title=look.title):
        name = f"{stem}.{look.figure_format}"
        try:
            draw(folder / name)
        # A trained model is worth more than its picture, whatever went wrong in drawing it.
        except Exception as error:  # noqa: BLE001
            why = str(error) or type(error).__name__
            failures.append(
                f"{name} is missing, the run's other files are whole: {why.splitlines()[0]}"
            )
    return failures


Drawing = tuple[str, Callable[[Path], None]]


def _figures(
    result: Result, scores: Mapping[str, Score | None], majority: float, *, has_title: bool
) -> Iterator[Drawing]:
    """Stem of each figure's file name, and what draws it there."""
    predictions = result.predictions
    title = headline(result) if has_title else ""
    yield from _training_figures(result, majority, has_title=has_title)
    yield (
        "confusion_matrix",
        lambda path: figures.confusion_matrix_plot(
            metrics.confusion_matrix(predictions), predictions.classes, path, title
        ),
    )
    found = metrics.curves(predictions)
    roc, precision_recall = found.roc, found.precision_recall
    if roc and precision_recall:
        share = float(np.mean(predictions.targets == 1)) if predictions.positive else None
        yield "roc", lambda path: figures.roc_plot(roc, scores, path, title)
        yield (
            "precision_recall",
            lambda path: figures.precision_recall_plot(
                precision_recall, scores, share, path, title
            ),
        )
    yield (
        "reliability",
        lambda path: figures.reliability_plot(
            found.reliability, scores, predictions.positive, path, title
        ),
    )


def _training_figures(result: Result, majority: float, *, has_title: bool) -> Iterator[Drawing]:
    on_data = f"on {result.data_name}"
    title = f"{RUN_KINDS[result.kind].title} {on_data}" if has_title else ""
    if result.history:
        history = [dataclasses.asdict(record) for record in result.history]
        chosen = _chosen_epochs(result)
        yield (
            "accuracy_curve",
            lambda path: figures.accuracy_curve(history, path, title, majority, chosen),
        )
        yield "loss_curve", lambda path: figures.loss_curve(history, path, title, chosen)
    if result.sweep:
        by = str(result.choice.get("by", "auroc"))
        shown = by if by in METRICS and by in result.sweep[0] else "accuracy"
        of_sweep = f"Sweep {on_data}" if has_title else ""
        yield "sweep", lambda path: figures.sweep_plot(result.sweep, shown, path, of_sweep)
    if result.learning_curve:
        yield (
            "learning_curve",
            lambda path: figures.learning_curve_plot(result.learning_curve, path, title),
        )


def _chosen_epochs(result: Result) -> list[int]:
    """The epoch that validation rows chose, by fold with epochs; empty where they chose none."""
    choice = result.choice
    by_fold = dict(enumerate(choice.get("epoch", ())))
    by_fold |= {row["fold"]: row["epoch"] for row in choice.get("chosen", ())}
    folds = sorted({record.fold for record in result.history})
    return [by_fold[fold] for fold in folds] if by_fold.keys() >= set(folds) else []


# What a reader should be warned of

FEW_ROWS = 10
"""With fewer rows of a class a choice, calibration or threshold follows single rows."""

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Majority:
    """Always answering the class that most training rows have.

    Attributes
    ----------
    classes : tuple of str
        The class answered, by fold.
    accuracy : float
    p_value : float
        Of the result's right answers against these, see `mcnemar_p_value`.
    """

    classes: tuple[str, ...]
    accuracy: float
    p_value: float


def majority_of(result: Result) -> Majority:
    """Answer the test rows by the majority of the training rows of each fold."""
    predictions = result.predictions
    counts = result.training_counts or [_counts(predictions).tolist()]
    # A tie goes to the class first in order.
    answers = np.array([int(np.argmax(fold)) for fold in counts])
    answered = answers[np.minimum(predictions.folds, len(answers) - 1)]
    is_right = answered == predictions.targets
    return Majority(
        classes=tuple(predictions.classes[index] for index in answers),
        accuracy=float(is_right.mean()),
        p_value=mcnemar_p_value(
            is_right,
            predictions.predicted == predictions.targets,
            Sample.of(predictions).units,
        ),
    )


def notices_of(result: Result, majority: Majority) -> list[str]:
    """The result's notices, those that the job passed in last."""
    predictions, found = result.predictions, []
    answered = np.unique(predictions.predicted)
    if len(answered) == 1:
        found.append(
            f"answers {predictions.classes[answered[0]]!r} for all {len(predictions)} test rows, "
            f"so it tells nothing apart: try {RUN_KINDS[result.kind].retry}"
        )
    accuracy = float(np.mean(predictions.predicted == predictions.targets))
    if accuracy <= majority.accuracy or majority.p_value >= SIGNIFICANT:
        better = "no better" if accuracy <= majority.accuracy else "not surely better"
        found.append(
            f"accuracy {accuracy:.3f} is {better} than always answering "
            f"{_names(majority.classes)}, the majority of the training rows "
            f"({majority.accuracy:.3f}; McNemar's p {majority.p_value:.2g}): test on more rows, "
            f"or try {RUN_KINDS[result.kind].retry}"
        )
    return [*found, *_few_rows(result), *_extreme(result), *result.notices]


def _extreme(result: Result) -> list[str]:
    """That the calibration had to correct very much."""
    found = [decision for decision in result.decisions if decision.is_extreme]
    if not found:
        return []
    return [
        f"calibrated by {found[0].in_words()}: {found[0].meaning()}, so far that the model's own "
        "probabilities say little, and may be off on other data: fit with a stronger penalty or "
        "fewer epochs, and look at the reliability figure"
    ]


def _few_rows(result: Result) -> list[str]:
    if not result.decisions or result.validation is None:
        return []
    done = []
    if any(decision.method != "none" for decision in result.decisions):
        done.append("calibrated")
    if any(decision.threshold is not None for decision in result.decisions):
        done.append("its threshold set")
    by_fold = np.array(
        [
            _counts(result.validation.take(np.flatnonzero(result.validation.folds == fold)))
            for fold in np.unique(result.validation.folds)
        ]
    )
    fewest = by_fold.min(axis=0)
    rarest = int(fewest.argmin())
    if not done or fewest[rarest] >= FEW_ROWS:
        return []
    name = result.validation.classes[rarest]
    return [
        f"{' and '.join(done)} on only {fewest[rarest]} validation rows of {name!r}: give a larger "
        "--val-fraction or more data"
    ]


def _counts(predictions: Predictions) -> NDArray[np.int64]:
    """Rows by true class."""
    counts: NDArray[Any] = np.bincount(predictions.targets, minlength=len(predictions.classes))
    return counts.astype(np.int64)


def _names(classes: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in dict.fromkeys(classes))
