"""Making a run's folder and filling it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat import figures, metrics
from ecgfeat.errors import storage_error
from ecgfeat.files import write_bytes, write_json, write_text
from ecgfeat.runs.reading import Run, open_run
from ecgfeat.runs.records import FORMAT_VERSION, EpochRecord, Result
from ecgfeat.runs.tables import read_history, write_history, write_predictions

__all__ = ["KIND_NAMES", "append_history", "create_run", "write_config", "write_run"]

KIND_NAMES = {
    "linear": "Linear head",
    "logreg": "Logistic regression",
    "finetune": "Fine-tuning",
}


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


def append_history(folder: Path, record: EpochRecord) -> None:
    """Add an epoch to ``history.csv`` while training goes on.

    Records of the same and later epochs are dropped: a resumed training repeats them.
    """
    earlier = read_history(folder) if (folder / "history.csv").exists() else ()
    place = (record.fold, record.epoch)
    kept = [other for other in earlier if (other.fold, other.epoch) < place]
    write_history(folder, (*kept, record))


def write_run(folder: Path, result: Result) -> Run:
    """Score a result and write the run's files into `folder`, ``metrics.json`` last.

    Raises
    ------
    StorageError
        When the disk refuses; the run is then unfinished, and `open_run` says so.
    """
    scores = _describe_scores(result)
    write_config(folder, result.kind, result.data_name, result.config)
    write_history(folder, result.history)
    write_predictions(folder, result.predictions)
    table = metrics.classification_table(result.predictions)
    write_text(folder / "classification_report.txt", f"{_headline(result)}\n\n{table}")
    _draw_figures(folder, result)
    if result.model:
        write_bytes(folder / "model.safetensors", _serialised(result.model))
        write_json(folder / "model.json", _describe_model(result))
    write_json(folder / "metrics.json", scores)
    return open_run(folder)


def write_config(
    folder: Path, kind: str, data_name: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``config.json`` and return it; a job that can be resumed does so when it begins."""
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    head = {"format_version": FORMAT_VERSION, "kind": kind, "data": data_name, "created": created}
    whole = {**head, **config}
    write_json(folder / "config.json", whole)
    return whole


def _describe_model(result: Result) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": result.kind,
        "classes": result.predictions.classes,
        **result.model_card,
    }


def _describe_scores(result: Result) -> dict[str, Any]:
    predictions = result.predictions
    return {
        "n_test": len(predictions),
        "n_test_total": result.n_test_total,
        "test_rows": _tested_rows(result),
        "split": predictions.split,
        "classes": predictions.classes,
        "positive": predictions.positive,
        "scores": {
            name: score and dataclasses.asdict(score)
            for name, score in metrics.evaluate(predictions).items()
        },
        "confusion_matrix": metrics.confusion_matrix(predictions).tolist(),
        "cost": dataclasses.asdict(result.cost),
    }


def _headline(result: Result) -> str:
    title = f"{KIND_NAMES[result.kind]} on {result.data_name}, test rows: {_tested_rows(result)}"
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


def _draw_figures(folder: Path, result: Result) -> None:
    if result.history:
        figures.accuracy_curve(
            [dataclasses.asdict(record) for record in result.history],
            folder / "accuracy_curve.png",
            f"{KIND_NAMES[result.kind]} on {result.data_name}",
        )
    figures.confusion_matrix_plot(
        metrics.confusion_matrix(result.predictions),
        result.predictions.classes,
        folder / "confusion_matrix.png",
        _headline(result),
    )


def _serialised(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    # safetensors takes an array's memory as it lies, whatever its strides.
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
