"""Opening a finished run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfeat.calibration import Decision
from ecgfeat.config import PageSettings
from ecgfeat.errors import ConfigError, DataError, RunError, storage_error
from ecgfeat.files import typed, write_csv
from ecgfeat.images import dpi_of
from ecgfeat.metrics import MAIN, METRICS, in_words
from ecgfeat.predictions import Predictions
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runs.records import (
    FORMAT_VERSION,
    ConfigFile,
    Cost,
    DecisionFields,
    EpochRecord,
    Likeness,
    MetricsFile,
    ModelCard,
)
from ecgfeat.runtime import as_frame, html_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "EventFiles",
    "Run",
    "damaged",
    "decision_from",
    "is_finished",
    "open_run",
    "parse_json",
    "read_config",
    "read_file",
    "refuse_without_tensorboard",
    "write_history",
    "write_records",
    "write_sweep",
]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """A finished run; its larger files are read when asked for.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    config, metrics : dict
        ``config.json`` and ``metrics.json``.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, Any]

    def __repr__(self) -> str:
        scores = "\n".join(f"  {name}: {value}" for name, value in self._main_scores())
        return f"Run {self.name}, test rows: {self.metrics['test_rows']}\n{scores}"

    def _repr_html_(self) -> str:
        title = f"{self.name}, test rows: {self.metrics['test_rows']}"
        return html_table(title, ("score", "value, with its 95 % interval"), self._main_scores())

    def _main_scores(self) -> list[tuple[str, str]]:
        scores = self.metrics["scores"]
        names = [name for name in MAIN if scores.get(name)]
        shown = [(METRICS[name].title, in_words(scores[name])) for name in names]
        majority = self.metrics.get("majority")
        if majority:
            shown.append(("always the majority", f"accuracy {majority['accuracy']:.3f}"))
        return shown

    def to_frame(self) -> DataFrame:
        """What was predicted of each test row as a pandas DataFrame, as in ``predictions.csv``.

        Raises
        ------
        ConfigError
            When pandas isn't installed.
        """
        header, *rows = _prediction_rows(self.predictions)
        return as_frame({str(name): column for name, column in zip(header, zip(*rows))})

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def kind(self) -> str:
        """``"linear"``, ``"logreg"``, ``"both"`` or ``"finetune"``."""
        return str(self.config["kind"])

    @property
    def cost(self) -> Cost:
        """What the run took."""
        return typed(self.metrics["cost"], Cost)

    @cached_property
    def history(self) -> tuple[EpochRecord, ...]:
        """One record per fold and epoch; none for logistic regression."""
        return read_file(self.path, "history.csv", _parse_history)

    @cached_property
    def predictions(self) -> Predictions:
        """What the model said of each test row, bit for bit."""
        return read_file(self.path, "predictions.csv", _parse_predictions)

    @cached_property
    def validation(self) -> Predictions:
        """What the model said of the rows that chose; RunError where nothing was chosen."""
        return read_file(self.path, "validation_predictions.csv", _parse_predictions)

    @cached_property
    def report(self) -> str:
        """``classification_report.txt``: what was tested, then precision, recall and F1."""
        return read_file(self.path, "classification_report.txt", parse_text)

    @cached_property
    def model_card(self) -> dict[str, Any]:
        """``model.json``: what is needed to apply the model to a new image."""
        if not (self.path / "fold_models.safetensors").exists():
            self._refuse_without_model()
        card = read_file(self.path, "model.json", parse_json)
        check_version(card, self.path / "model.json")
        return card

    @property
    def checked_card(self) -> ModelCard:
        """What of ``model.json`` the model is applied by."""
        try:
            card = typed(self.model_card, ModelCard)
            made = dataclasses.replace(card.preprocessing, dpi=dpi_of(card.decoder))
            return dataclasses.replace(card, preprocessing=made)
        except ValueError as error:
            raise damaged(self.path / "model.json", str(error)) from error

    @property
    def page(self) -> PageSettings:
        """How its pages were prepared, by ``config.json``."""
        if "page" in self.config:
            return typed(self.config["page"], PageSettings)
        made = typed(self.config["preprocessing"], Preprocessing)
        return dataclasses.replace(made.page, dpi=dpi_of(str(self.config.get("decoder", ""))))

    def model(self) -> dict[str, NDArray[Any]]:
        """The model's tensors by name, from ``model.safetensors``."""
        self._refuse_without_model()
        return read_file(self.path, "model.safetensors", _parse_tensors)

    @property
    def is_cross_validated(self) -> bool:
        """Whether it has as many models as folds, or none, and not one."""
        return bool(self.metrics["split"] == "cv")

    @property
    def model_file(self) -> str:
        """The name of the file that its model is in, or those of its folds."""
        return "fold_models.safetensors" if self.is_cross_validated else "model.safetensors"

    @property
    def decisions(self) -> list[Decision]:
        """How each model's probabilities become answers: of each fold, or of the one model."""
        if not self.is_cross_validated:
            return [self.decision]
        found = [decision_from(fields) for fields in self.metrics.get("decisions", ())]
        return found or [Decision()] * len(self.fold_models())

    @property
    def decision(self) -> Decision:
        """How the model's probabilities become answers, from ``model.json``."""
        self._refuse_without_model()
        card = self.model_card
        try:
            return decision_from(card["decision"]) if "decision" in card else Decision()
        except ValueError as error:
            raise damaged(self.path / "model.json", f"decision: {error}") from error

    def likeness(self) -> Likeness | None:
        """How far new features may lie from the training rows'; None where it doesn't tell."""
        name = "likeness.safetensors"
        if not (self.path / name).exists():
            return None
        tensors = read_file(self.path, name, _parse_tensors)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        width = tensors.get("mean", np.empty(0)).shape
        expected = {"mean": width, "scale": width, "limit": (1,)}
        if shapes != expected or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise damaged(self.path / name, "it holds other arrays")
        return Likeness(**tensors)

    def fold_models(self) -> list[dict[str, NDArray[Any]]]:
        """A cross-validated head's tensors by fold, each by name."""
        name = "fold_models.safetensors"
        if not (self.path / name).exists():
            raise RunError(
                f"{self.path} keeps no models of folds: only heads that are cross-validated do. "
                "Run fit-head with --cv, and use that run."
            )
        tensors = read_file(self.path, name, _parse_tensors)
        folds = [_of_fold(tensors, fold) for fold in range(len(tensors))]
        found = list(takewhile(bool, folds))
        if sum(map(len, found)) != len(tensors):
            raise damaged(self.path / name, "its tensors are not numbered by fold from 0")
        return found

    def _refuse_without_model(self) -> None:
        if self.is_cross_validated:
            raise RunError(
                f"{self.path} keeps no model: it is a cross-validation. Run its command "
                "without --cv, and use that run."
            )


def _of_fold(tensors: Mapping[str, NDArray[Any]], fold: int) -> dict[str, NDArray[Any]]:
    prefix = f"fold{fold}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def open_run(folder: str | Path) -> Run:
    """Open a finished run.

    Parameters
    ----------
    folder : str or Path
        The run's folder, such as ``runs/20260131-094500-linear-pages``.

    Returns
    -------
    Run
        Its settings and scores; predictions, history and model are read when asked for.

    Raises
    ------
    RunError
        When the folder is no run, is unfinished, damaged, or of another format version.
    StorageError
        When it can't be read.

    Examples
    --------
    >>> run = open_run(Path("runs/20260131-094500-linear-pages"))  # doctest: +SKIP
    >>> run.metrics["scores"]["accuracy"]["value"]  # doctest: +SKIP
    0.6664
    """
    folder = Path(folder)
    try:
        path = _find(folder)
    except OSError as error:
        raise storage_error(error, "reading", folder) from error
    config = read_config(path)
    if not is_finished(path):
        raise RunError(
            f"{path} is unfinished: metrics.json, which is written last, is not there. Run its "
            "command again (finetune can go on with --resume)."
        )
    return Run(path=path, config=config, metrics=read_file(path, "metrics.json", _parse_metrics))


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``, of a finished run or of one under way.

    Raises
    ------
    RunError
        When it is missing, damaged, or of another format version.
    StorageError
        When it can't be read.
    """
    config = read_file(folder, "config.json", parse_json)
    check_version(config, folder / "config.json")
    try:
        typed(config, ConfigFile)
    except ValueError as error:
        raise damaged(folder / "config.json", str(error)) from error
    return config


def is_finished(folder: Path) -> bool:
    """Whether a run's folder has ``metrics.json``, which is written last."""
    return (folder / "metrics.json").exists()


def _find(folder: Path) -> Path:
    if not folder.is_dir():
        raise RunError(
            f"{folder} is no folder. Give a run's folder, such as "
            "runs/20260131-094500-linear-pages."
        )
    path = folder.resolve()
    if not (path / "config.json").exists():
        raise RunError(
            f"{path} is not a run: it has no config.json. Give a folder that fit-head or "
            "finetune made."
        )
    return path


def _parse_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(content))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


T = TypeVar("T")


def read_file(folder: Path, name: str, parse: Callable[[bytes], T]) -> T:
    """Read and parse one of a run's files.

    `parse` raises ValueError where the content is not as written.

    Raises
    ------
    RunError
        When the file is missing, is no plain file of the folder, or can't be parsed.
    StorageError
        When it can't be read.
    """
    path = folder / name
    try:
        _refuse_elsewhere(path)
        return parse(path.read_bytes())
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise damaged(path, str(error)) from error


def _refuse_elsewhere(path: Path) -> None:
    """Refuse a file that is missing, a pipe or device, or a link that leads out of the run."""
    if not path.exists():
        raise damaged(path.parent, f"{path.name} is missing")
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise RunError(
            f"{path} is not a plain file of this run. Put the file itself in its place, or use "
            "another run."
        )


def parse_text(content: bytes) -> str:
    """What `write_text` wrote."""
    return content.decode("utf-8", "surrogateescape")


def _parse_metrics(content: bytes) -> dict[str, Any]:
    metrics = parse_json(content)
    typed(metrics, MetricsFile)
    for fields in metrics.get("decisions", ()):
        decision_from(fields)
    return metrics


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object that `content` holds; ValueError where it is something else."""
    # NaN and infinity are no JSON: as text no number's place takes them.
    found = json.loads(content, parse_constant=str)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def decision_from(found: object) -> Decision:
    """The decision that ``Decision.as_json`` described; ValueError where it is none."""
    return Decision(**typed(found, DecisionFields))  # type: ignore[arg-type]  # checks its method


def parse_csv(content: bytes) -> list[list[str]]:
    """The rows of a CSV, its header first; ValueError where their lengths differ."""
    text = io.StringIO(parse_text(content), newline="")
    rows = list(csv.reader(text, strict=True))
    if not rows:
        raise ValueError("it is empty")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} fields, the header {len(rows[0])}")
    return rows


def check_version(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a JSON object of another format version."""
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise RunError(
            f"{path} has format version {found!r}, and this ecgfeat reads version "
            f"{FORMAT_VERSION}. Run its command again, or use the ecgfeat that wrote it."
        )


def damaged(path: Path, what: str) -> RunError:
    """The error for a file or folder whose content is not what was written."""
    return RunError(f"{path} is damaged: {what}. Run its command again.")


HISTORY_COLUMNS = tuple(field.name for field in dataclasses.fields(EpochRecord))
PREDICTION_COLUMNS = ("path", "group", "split", "fold", "target", "predicted")


def write_history(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write ``history.csv``; a value that isn't there is an empty field."""
    write_csv(folder / "history.csv", (HISTORY_COLUMNS, *map(dataclasses.astuple, history)))


def refuse_without_tensorboard() -> None:
    """Refuse to write what needs TensorBoard where it isn't installed.

    Raises
    ------
    ConfigError
    """
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise ConfigError("--tensorboard needs pip install 'ecgfeat[tensorboard]'") from error


class EventFiles:
    """A training's curves as TensorBoard shows them while they come, in ``tensorboard/``.

    An epoch is one record of a file, so that it is there whole or not at all. Records are only
    ever added, since TensorBoard goes on reading where it stopped; each process adds to a file of
    its own, for the last record of one that was killed may be cut off.

    Parameters
    ----------
    folder : Path
        The run's.
    n_folds : int
        Of several each has a folder of its own, ``fold-1`` and so on.
    """

    def __init__(self, folder: Path, n_folds: int) -> None:
        self._folder = folder / "tensorboard"
        self._n_folds = n_folds
        # TensorBoard reads them in the order of their names.
        self._name = f"events.out.tfevents.{time.time():020.9f}.{os.getpid()}"

    def write(self, history: Sequence[EpochRecord], rates: Sequence[float]) -> None:
        """Add the epochs that are not there yet.

        Parameters
        ----------
        history : sequence of EpochRecord
        rates : sequence of float
            Each fold's learning rate, where a record has none of its own.

        Raises
        ------
        StorageError
            When the disk refuses.
        """
        for fold in sorted({record.fold for record in history}):
            folder = self._folder / f"fold-{fold + 1}" if self._n_folds > 1 else self._folder
            try:
                written = _epochs_in(folder)
                for record in history:
                    if record.fold == fold and record.epoch not in written:
                        self._add(folder, record, rates[fold])
            except OSError as error:
                raise storage_error(error, "writing", folder) from error

    def _add(self, folder: Path, record: EpochRecord, lr: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        found = {name: getattr(record, name) for name in HISTORY_COLUMNS[2:]}
        found["lr"] = lr if record.lr is None else record.lr
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in found.items()
            if value is not None
        ]
        now_s = time.time()
        event = Event(wall_time=now_s, step=record.epoch, summary=Summary(value=values))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self._name).open("ab") as file:
            writer = RecordWriter(file)
            if not file.tell():
                head = Event(wall_time=now_s, file_version="brain.Event:2")
                writer.write(head.SerializeToString())
            writer.write(event.SerializeToString())


def _epochs_in(folder: Path) -> set[int]:
    """The epochs that the event files of a folder have; one that is cut off is not there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        event.step
        for path in folder.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(path)).Load()
        if event.HasField("summary")
    }


def _parse_history(content: bytes) -> tuple[EpochRecord, ...]:
    header, *rows = parse_csv(content)
    # The first writers had no learning rate to tell.
    if tuple(header) not in (HISTORY_COLUMNS, HISTORY_COLUMNS[:-1]):
        raise ValueError(f"its columns are {','.join(header)}")
    records = [{name: cell or None for name, cell in zip(header, row)} for row in rows]
    return tuple(typed(records, list[EpochRecord], strict=False))


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
    write_csv(path, (columns, *([row[name] for name in columns] for row in rows)))


def write_predictions(
    folder: Path, predictions: Predictions, name: str = "predictions.csv"
) -> None:
    """Write ``predictions.csv``, from which `Run.predictions` gets the very same floats."""
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
