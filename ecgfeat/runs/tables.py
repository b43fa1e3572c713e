"""The tables of a run: history, predictions, sweep and learning curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgfeat.errors import DataError
from ecgfeat.files import write_csv
from ecgfeat.predictions import Predictions
from ecgfeat.runs.files import parse_csv, read_file
from ecgfeat.runs.records import EpochRecord

__all__ = [
    "read_history",
    "read_predictions",
    "write_history",
    "write_predictions",
    "write_records",
    "write_sweep",
]

HISTORY_COLUMNS = ("fold", "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr")
PREDICTION_COLUMNS = ("path", "group", "split", "fold", "target", "predicted")


def write_history(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write ``history.csv``; a value that isn't there is an empty field."""
    rows = (_fields(dataclasses.astuple(record)) for record in history)
    write_csv(folder / "history.csv", (HISTORY_COLUMNS, *rows))


def _fields(values: Iterable[object]) -> list[object]:
    return ["" if value is None else value for value in values]


def read_history(folder: Path) -> tuple[EpochRecord, ...]:
    """Read ``history.csv``."""
    return read_file(folder, "history.csv", _parse_history)


def _parse_history(content: bytes) -> tuple[EpochRecord, ...]:
    header, *rows = parse_csv(content)
    # The first writers had no learning rate to tell.
    if tuple(header) not in (HISTORY_COLUMNS, HISTORY_COLUMNS[:-1]):
        raise ValueError(f"its columns are {','.join(header)}")
    return tuple(
        EpochRecord(
            fold=int(fold),
            epoch=int(epoch),
            loss=float(loss),
            accuracy=float(accuracy),
            val_loss=float(val_loss) if val_loss else None,
            val_accuracy=float(val_accuracy) if val_accuracy else None,
            lr=float(*lr) if any(lr) else None,
        )
        for fold, epoch, loss, accuracy, val_loss, val_accuracy, *lr in rows
    )


def write_sweep(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``sweep.csv``, one row per candidate; also while a sweep goes on, to keep its work.

    Parameters
    ----------
    folder : Path
        The run's.
    rows : sequence of mapping
        At least one; all have the keys of the first, which are the columns.

    Raises
    ------
    StorageError
        When the disk refuses.
    """
    write_records(folder / "sweep.csv", rows)


def write_records(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write mappings of the same keys as a CSV; None is an empty field."""
    columns = tuple(rows[0])
    write_csv(path, (columns, *(_fields(row[name] for name in columns) for row in rows)))


def write_predictions(
    folder: Path, predictions: Predictions, name: str = "predictions.csv"
) -> None:
    """Write ``predictions.csv``, from which `read_predictions` gets the very same floats."""
    write_csv(folder / name, _prediction_rows(predictions))


def _prediction_rows(predictions: Predictions) -> Iterator[Sequence[object]]:
    classes = predictions.classes
    yield (*PREDICTION_COLUMNS, *(f"p_{name}" for name in classes))
    for path, group, fold, target, predicted, probabilities in zip(
        predictions.ids,
        predictions.groups,
        predictions.folds.tolist(),
        predictions.targets.tolist(),
        predictions.predicted.tolist(),
        predictions.probabilities.tolist(),
    ):
        labels = classes[target], classes[predicted]
        yield (path, group, predictions.split, fold, *labels, *probabilities)


def read_predictions(folder: Path, name: str = "predictions.csv") -> Predictions:
    """Read ``predictions.csv``."""
    return read_file(folder, name, _parse_predictions)


def _parse_predictions(content: bytes) -> Predictions:
    header, *rows = parse_csv(content)
    n_fixed = len(PREDICTION_COLUMNS)
    if tuple(header[:n_fixed]) != PREDICTION_COLUMNS or not rows:
        raise ValueError(f"it has {len(rows)} rows of the columns {','.join(header)}")
    classes = tuple(column.removeprefix("p_") for column in header[n_fixed:])
    number = {name: index for index, name in enumerate(classes)}
    unknown = {label for row in rows for label in row[4:6]} - set(number)
    if unknown:
        raise ValueError(f"no column has the probabilities of {', '.join(sorted(unknown))}")
    try:
        return Predictions(
            ids=tuple(row[0] for row in rows),
            classes=classes,
            targets=np.array([number[row[4]] for row in rows], dtype=np.int64),
            probabilities=np.array([row[n_fixed:] for row in rows], dtype=np.float64),
            groups=tuple(row[1] for row in rows),
            split=rows[0][2],
            folds=np.array([row[3] for row in rows], dtype=np.int64),
            answers=np.array([number[row[5]] for row in rows], dtype=np.int64),
        )
    except DataError as error:
        raise ValueError(str(error)) from error
