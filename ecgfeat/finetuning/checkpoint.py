"""The one file from which an interrupted fine-tuning goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from ecgfeat.errors import RunError, storage_error
from ecgfeat.files import replacing, typed
from ecgfeat.finetuning.job import Job
from ecgfeat.finetuning.trainer import Snapshot, Step
from ecgfeat.images import Failure
from ecgfeat.runs import Count, EpochRecord, Number

__all__ = [
    "CHECKPOINT",
    "Candidate",
    "Said",
    "State",
    "Tally",
    "load_checkpoint",
    "refuse_other_state",
    "remove_checkpoint",
    "save_checkpoint",
]


CHECKPOINT = "checkpoint.safetensors"
"""In the run's folder until the run is finished."""


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    state: State
    snapshot: Snapshot


def save_checkpoint(folder: Path, state: State, snapshot: Snapshot) -> None:
    """Put a checkpoint in the place of the one before, which stays until this one is whole.

    Raises
    ------
    StorageError
        When the disk refuses; the checkpoint before is still there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(_Checkpoint(state=state, snapshot=snapshot), "", tensors))
    metadata = {"state": text, "digest": _digest(text, tensors)}
    with replacing(folder / CHECKPOINT) as aside:
        try:
            save_file(tensors, aside, metadata=metadata)
        except SafetensorError as error:
            raise _os_error(error) from error


def _plain(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON can hold it; its arrays go into `tensors`, and their names in their places.

    Parameters
    ----------
    value : dataclass, mapping, sequence, array or plain value
    name : str
        Its place in the whole.
    tensors : dict
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return name
    if dataclasses.is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{name}/{place}", tensors) for place, part in enumerate(value)]
    return value


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the state, and every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name].numpy())
        total.update(f"{name} {values.dtype} {values.shape}\n".encode())
        total.update(values.data)
    return total.hexdigest()


def _os_error(error: Exception) -> OSError:
    # safetensors names the operating system's error only in its text.
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), str(error)) if found else OSError(str(error))


def load_checkpoint(folder: Path) -> tuple[State, Snapshot] | None:
    """Read the checkpoint of a run's folder; None where there is none yet.

    Raises
    ------
    RunError
        When it is damaged, or another version's.
    StorageError
        When it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata.get("state", "")
        if "digest" not in metadata:
            raise ValueError("it has no digest: an earlier version of ecgfeat may have written it")
        if metadata["digest"] != _digest(text, tensors):
            raise ValueError("its digest is not that of what it holds")
        found = typed(
            json.loads(text), _Checkpoint, dec_hook=partial(_array, tensors), str_keys=True
        )
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged ({error}), so this run can't go on. Start a new one."
        ) from error
    return found.state, found.snapshot


def _array(tensors: Mapping[str, torch.Tensor], kind: type, name: object) -> Any:
    """The array of a name that `_plain` left."""
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"no array {name!r}")
    return tensors[name] if kind is torch.Tensor else tensors[name].numpy()


def refuse_other_state(state: State, job: Job, folder: Path) -> None:
    """Refuse to go on from where this job can't have come to.

    Raises
    ------
    RunError
    """
    n_folds = len(job.plan)
    saids = [*state.tested, *(found.validation for found in state.chosen)]
    if state.candidate is not None:
        saids.append(state.candidate.validation)
    n_steps = 0
    if state.fold < n_folds:
        n_steps = math.ceil(len(job.plan[state.fold].train) / job.training.batch_size)
    for name, is_sound in {
        "tested": state.fold <= n_folds and len(state.chosen) == state.fold,
        "epoch": state.epoch <= job.training.epochs,
        "step": state.step <= n_steps,
        "rates": state.fold + state.is_within_fold <= len(state.rates) <= state.fold + 1,
        "candidate": state.candidate is not None or not state.epoch,
        "history": [record.epoch for record in state.history[-1:]] == [state.epoch]
        or not state.epoch,
        "rows": all(
            said.probabilities.shape == (len(said.rows), len(job.task.classes))
            and not np.any((said.rows < 0) | (said.rows >= len(job.manifest)))
            for said in saids
        ),
        "failures": all(row < len(job.manifest) for row in state.failures),
    }.items():
        if not is_sound:
            raise RunError(
                f"{folder / CHECKPOINT} is damaged (its {name} can't be those of this run), so "
                "this run can't go on. Start a new one."
            )


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint, and what a kill while saving one left beside it."""
    for path in [folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*")]:
        with contextlib.suppress(OSError):  # it only takes up space
            path.unlink()


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

    epoch: Count
    score: Number | None
    validation: Said
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class Tally:
    """Running means over mini-batches, weighted by their images."""

    n_images: Count = 0
    summed_loss: Number = 0.0
    n_right: Count = 0

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

    epoch: Count = 0
    step: Count = 0
    tally: Tally = field(default_factory=Tally)
    candidate: Candidate | None = None
    history: list[EpochRecord] = field(default_factory=list)
    rates: list[Annotated[float, Meta(gt=0, le=1e300)]] = field(default_factory=list)
    chosen: list[Candidate] = field(default_factory=list)
    tested: list[Said] = field(default_factory=list)
    failures: dict[Count, Failure] = field(default_factory=dict)
    wall_s: Number = 0.0
    training_s: Number = 0.0
    n_trained: Count = 0

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
