"""Opening a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ecgfeat.calibration import Decision
from ecgfeat.errors import RunError, storage_error
from ecgfeat.predictions import Predictions
from ecgfeat.runs.files import check_version, damaged, parse_json, parse_text, read_file
from ecgfeat.runs.records import Cost, EpochRecord
from ecgfeat.runs.tables import read_history, read_predictions

__all__ = ["Run", "is_finished", "open_run", "read_config"]


@dataclass(frozen=True, kw_only=True, eq=False)
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
        return Cost(**self.metrics["cost"])

    @cached_property
    def history(self) -> tuple[EpochRecord, ...]:
        """One record per fold and epoch; none for logistic regression."""
        return read_history(self.path)

    @cached_property
    def predictions(self) -> Predictions:
        """What the model said of each test row, bit for bit."""
        return read_predictions(self.path)

    @cached_property
    def validation(self) -> Predictions:
        """What the model said of the rows that chose; RunError where nothing was chosen."""
        return read_predictions(self.path, "validation_predictions.csv")

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

    def model(self) -> dict[str, NDArray[Any]]:
        """The model's tensors by name, from ``model.safetensors``."""
        self._refuse_without_model()
        return read_file(self.path, "model.safetensors", _parse_tensors)

    @property
    def decision(self) -> Decision:
        """How the model's probabilities become answers, from ``model.json``."""
        self._refuse_without_model()
        try:
            return Decision.from_json(self.model_card.get("decision", _NO_DECISION))
        except ValueError as error:
            raise damaged(self.path / "model.json", str(error)) from error

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
        if self.metrics["split"] == "cv":
            raise RunError(
                f"{self.path} keeps no model: it is a cross-validation. Run its command "
                "without --cv, and use that run."
            )


_NO_DECISION = Decision().as_json()


def _of_fold(tensors: Mapping[str, NDArray[Any]], fold: int) -> dict[str, NDArray[Any]]:
    prefix = f"fold{fold}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def open_run(folder: Path) -> Run:
    """Open a finished run.

    Parameters
    ----------
    folder : Path
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
    run = Run(path=path, config=config, metrics=read_file(path, "metrics.json", parse_json))
    try:
        _ = run.kind, run.cost, run.metrics["split"]
    except (KeyError, TypeError) as error:
        raise damaged(path, f"a field is missing or unknown ({error})") from error
    return run


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
