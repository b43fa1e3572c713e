"""Making a run's folder and filling it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat import metrics
from ecgfeat.errors import storage_error
from ecgfeat.files import write_bytes, write_json, write_text
from ecgfeat.runs.describing import describe_model, describe_scores, headline
from ecgfeat.runs.drawing import draw_figures
from ecgfeat.runs.reading import Run, open_run
from ecgfeat.runs.records import FORMAT_VERSION, Result
from ecgfeat.runs.tables import (
    write_history,
    write_predictions,
    write_records,
    write_sweep,
)

__all__ = ["create_run", "write_config", "write_run"]


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


def write_run(folder: Path, result: Result) -> Run:
    """Score a result and write the run's files into `folder`, ``metrics.json`` last.

    Raises
    ------
    StorageError
        When the disk refuses; the run is then unfinished, and `open_run` says so.
    """
    scores = metrics.evaluate(result.predictions, prevalence=result.prevalence)
    described = describe_scores(result, scores)
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
    write_text(folder / "classification_report.txt", f"{headline(result)}\n\n{table}")
    draw_figures(folder, result, scores)
    if result.model:
        write_bytes(folder / "model.safetensors", _serialised(result.model))
    if result.fold_models:
        write_bytes(folder / "fold_models.safetensors", _serialised(_by_fold(result.fold_models)))
    if result.model or result.fold_models:
        write_json(folder / "model.json", describe_model(result))
    write_json(folder / "metrics.json", described)
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
