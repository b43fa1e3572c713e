"""The one file from which an interrupted fine-tuning goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.errors import RunError
from ecgfeat.files import replacing
from ecgfeat.finetuning.training import Snapshot
from ecgfeat.images import Failure
from ecgfeat.runs import EpochRecord

__all__ = [
    "CHECKPOINT",
    "State",
    "Tested",
    "load_checkpoint",
    "remove_checkpoint",
    "save_checkpoint",
]

CHECKPOINT = "checkpoint.safetensors"
"""In the run's folder until the run is finished."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """What was said of a fold's test rows.

    Attributes
    ----------
    rows : ndarray of shape (m,), int64
        Test rows that could be decoded.
    probabilities : ndarray of shape (m, n_classes), float64
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]


@dataclass(kw_only=True)
class State:
    """How far a fine-tuning has come; without a checkpoint, nowhere.

    No random state is among it: the order of the images follows from seed, fold and epoch, and
    a ResNet draws no random numbers.

    Attributes
    ----------
    epoch : int
        Finished epochs of the fold under way.
    history : list of EpochRecord
    tested : list of Tested
        One per finished fold.
    failures : dict of int to Failure
        Images that can't be decoded, by row.
    wall_s, training_s : float
        Seconds for all of it, and for the training steps alone.
    n_trained : int
        Images trained on, each once per epoch.
    """

    epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    tested: list[Tested] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    wall_s: float = 0.0
    training_s: float = 0.0
    n_trained: int = 0

    @property
    def fold(self) -> int:
        """The fold under way."""
        return len(self.tested)


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
    for fold, tested in enumerate(state.tested):
        tensors[f"tested.{fold}.rows"] = torch.from_numpy(tested.rows)
        tensors[f"tested.{fold}.probabilities"] = torch.from_numpy(tested.probabilities)
    plain = {
        "epoch": state.epoch,
        "history": [dataclasses.asdict(record) for record in state.history],
        "failures": [
            {"row": row, "reason": failure.reason, "n_bytes": failure.n_bytes}
            for row, failure in state.failures.items()
        ],
        "wall_s": state.wall_s,
        "training_s": state.training_s,
        "n_trained": state.n_trained,
        "scaler": dict(snapshot.scaler),
    }
    with replacing(folder / CHECKPOINT) as aside:
        try:
            save_file(tensors, aside, metadata={"state": json.dumps(plain)})
        except SafetensorError as error:
            raise _os_error(error) from error


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
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _state(plain, tensors), Snapshot(tensors=tensors, scaler=plain["scaler"])
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
    n_tested = sum(name.startswith("tested.") for name in tensors) // 2
    return State(
        epoch=plain["epoch"],
        history=[EpochRecord(**record) for record in plain["history"]],
        tested=[
            Tested(
                rows=tensors[f"tested.{fold}.rows"].numpy(),
                probabilities=tensors[f"tested.{fold}.probabilities"].numpy(),
            )
            for fold in range(n_tested)
        ],
        failures={failure["row"]: Failure(**failure) for failure in plain["failures"]},
        wall_s=plain["wall_s"],
        training_s=plain["training_s"],
        n_trained=plain["n_trained"],
    )
