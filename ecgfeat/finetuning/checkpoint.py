"""The one file from which an interrupted fine-tuning goes on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.errors import RunError, storage_error
from ecgfeat.files import replacing
from ecgfeat.finetuning.trainer import Snapshot, Step
from ecgfeat.images import Failure
from ecgfeat.runs import EpochRecord

__all__ = [
    "CHECKPOINT",
    "Candidate",
    "Said",
    "State",
    "Tally",
    "load_checkpoint",
    "remove_checkpoint",
    "save_checkpoint",
]


CHECKPOINT = "checkpoint.safetensors"
"""In the run's folder until the run is finished."""
PLAIN = ("epoch", "step", "rates", "wall_s", "training_s", "n_trained")
"""Fields of `State` that JSON holds as they are."""


def save_checkpoint(folder: Path, state: State, snapshot: Snapshot) -> None:
    """Put a checkpoint in the place of the one before, which stays until this one is whole.

    Raises
    ------
    StorageError
        When the disk refuses; the checkpoint before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = dict(snapshot.tensors)
    for fold, said in enumerate(state.tested):
        tensors.update(_tensors(said, f"tested.{fold}"))
    for fold, candidate in enumerate(state.chosen):
        tensors.update(_tensors(candidate.validation, f"chosen.{fold}"))
    if state.candidate:
        tensors.update(_tensors(state.candidate.validation, "candidate"))
        for name, value in state.candidate.weights.items():
            tensors[f"candidate.weights.{name}"] = value
    plain = {
        **{name: getattr(state, name) for name in PLAIN},
        "tally": asdict(state.tally),
        "history": [asdict(record) for record in state.history],
        "candidate": state.candidate and _plain(state.candidate),
        "chosen": [_plain(candidate) for candidate in state.chosen],
        "failures": [asdict(failure) for failure in state.failures.values()],
        "scaler": dict(snapshot.scaler),
        "n_parts": snapshot.n_parts,
    }
    with replacing(folder / CHECKPOINT) as aside:
        try:
            save_file(tensors, aside, metadata={"state": json.dumps(plain)})
        except SafetensorError as error:
            raise _os_error(error) from error


def _tensors(said: Said, name: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}.rows": torch.from_numpy(said.rows),
        f"{name}.probabilities": torch.from_numpy(said.probabilities),
    }


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {"epoch": candidate.epoch, "score": candidate.score}


def _os_error(error: Exception) -> OSError:
    # safetensors names the operating system's error only in its text.
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), str(error)) if found else OSError(str(error))


def load_checkpoint(folder: Path) -> tuple[State, Snapshot] | None:
    """Read the checkpoint of a run's folder; None where there is none yet.

    Raises
    ------
    RunError
        When it is damaged.
    StorageError
        When it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        snapshot = Snapshot(tensors=tensors, scaler=plain["scaler"], n_parts=plain["n_parts"])
        return _state(plain, tensors), snapshot
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}), so this run can't go on. Start a new one."
        ) from error


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint, and what a kill while saving one left beside it."""
    for path in [folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*")]:
        with contextlib.suppress(OSError):  # it only takes up space
            path.unlink()


def _state(plain: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> State:
    n_folds = len(plain["chosen"])
    candidate = plain["candidate"]
    return State(
        **{name: plain[name] for name in PLAIN},
        tally=Tally(**plain["tally"]),
        history=[EpochRecord(**record) for record in plain["history"]],
        candidate=candidate and _candidate(candidate, "candidate", tensors),
        chosen=[
            _candidate(fields, f"chosen.{fold}", tensors)
            for fold, fields in enumerate(plain["chosen"])
        ],
        tested=[_said(f"tested.{fold}", tensors) for fold in range(n_folds)],
        failures={failure["row"]: Failure(**failure) for failure in plain["failures"]},
    )


def _candidate(
    fields: Mapping[str, Any], name: str, tensors: Mapping[str, torch.Tensor]
) -> Candidate:
    prefix = f"{name}.weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return Candidate(**fields, validation=_said(name, tensors), weights=weights)


def _said(name: str, tensors: Mapping[str, torch.Tensor]) -> Said:
    return Said(
        rows=tensors[f"{name}.rows"].numpy(),
        probabilities=tensors[f"{name}.probabilities"].numpy(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What a network said of some rows.

    Attributes
    ----------
    rows : ndarray of shape (m,), int64
        Those that could be decoded.
    probabilities : ndarray of shape (m, n_classes), float64
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """The epoch of a fold that would be tested if it were the last one.

    Attributes
    ----------
    epoch : int
    score : float or None
        What it was chosen by; None where simply the last epoch is taken.
    validation : Said
        Of the validation rows; empty where there are none.
    weights : mapping of str to Tensor
        The network's after that epoch; empty where simply the last epoch is taken.
    """

    epoch: int
    score: float | None
    validation: Said
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Tally:
    """Running means over mini-batches, weighted by their images."""

    n_images: int = 0
    summed_loss: float = 0.0
    n_right: int = 0

    def add(self, step: Step) -> None:
        """Take in a step."""
        self.n_images += step.n_images
        self.summed_loss += step.loss * step.n_images
        self.n_right += step.n_right

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.summed_loss / self.n_images

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.n_right / self.n_images


@dataclass(kw_only=True)
class State:
    """How far a fine-tuning has come; without a checkpoint, nowhere.

    No random state is among it: order and augmentation of the images follow from seed, fold,
    epoch and row, and a ResNet draws no random numbers.

    Attributes
    ----------
    epoch : int
        Finished epochs of the fold under way.
    step : int
        Batches of the epoch under way that are done with.
    tally : Tally
        Over those batches.
    candidate : Candidate or None
        The fold's best epoch so far.
    history : list of EpochRecord
    rates : list of float
        The learning rate of each fold begun.
    chosen : list of Candidate
        One per finished fold, without its weights.
    tested : list of Said
        One per finished fold, of its test rows.
    failures : dict of int to Failure
        Images that can't be decoded, by row.
    wall_s, training_s : float
        Seconds for all of it, and for the training steps alone.
    n_trained : int
        Images trained on, each once per epoch.
    """

    epoch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    candidate: Candidate | None = None
    history: list[EpochRecord] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    chosen: list[Candidate] = field(default_factory=list)
    tested: list[Said] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    wall_s: float = 0.0
    training_s: float = 0.0
    n_trained: int = 0

    @property
    def fold(self) -> int:
        """The fold under way."""
        return len(self.tested)

    @property
    def is_within_fold(self) -> bool:
        """Whether the fold's network has been trained already."""
        return bool(self.epoch or self.step)

    @property
    def in_words(self) -> str:
        """What of the work is done, for people."""
        n_epochs = len(self.history)
        words = f"{n_epochs} finished epoch{'s' * (n_epochs != 1)}"
        return f"{words} and {self.step} steps of the next" if self.step else words

    def take_in(self, step: Step, seconds: float) -> None:
        """Go on to the next batch."""
        self.step += 1
        self.tally.add(step)
        self.n_trained += step.n_images
        self.training_s += seconds

    def end_epoch(self, record: EpochRecord, candidate: Candidate) -> None:
        """Go on to the next epoch."""
        self.history.append(record)
        self.candidate = candidate
        self.epoch, self.step, self.tally = record.epoch, 0, Tally()

    def end_fold(self, tested: Said) -> None:
        """Go on to the next fold."""
        assert self.candidate is not None
        kept = self.candidate
        self.chosen.append(
            Candidate(epoch=kept.epoch, score=kept.score, validation=kept.validation)
        )
        self.tested.append(tested)
        self.candidate = None
        self.epoch = 0
