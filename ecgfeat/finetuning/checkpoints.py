"""The one file from which an interrupted fine-tuning goes on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ecgfeat.errors import RunError, storage_error
from ecgfeat.files import replacing
from ecgfeat.finetuning.snapshots import Snapshot
from ecgfeat.finetuning.state import Candidate, Said, State, Tally
from ecgfeat.images import Failure
from ecgfeat.runs import EpochRecord

__all__ = ["CHECKPOINT", "load_checkpoint", "remove_checkpoint", "save_checkpoint"]

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
