"""Reading a state dict from a file that a stranger may have made: nothing in it is executed."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ecgfeat.errors import WeightsError, storage_error
from ecgfeat.runs import open_run

__all__ = ["read_state_dict"]

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the state dict in a checkpoint."""
PREFIXES = ("module.", "model.", "backbone.")
"""What DataParallel and common wrapper classes put before every name."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors from a ``.pth``, ``.pt`` or ``.safetensors`` file, or a run's folder.

    A checkpoint that holds the state dict under one of `WRAPPERS` is unwrapped, and a prefix
    that every name shares (`PREFIXES`) is taken off.

    Raises
    ------
    WeightsError
        When there is no such file, it isn't a state dict, or the run trained no network.
    RunError
        When the run is unfinished, damaged or keeps no model.
    StorageError
        When it can't be read.
    """
    if path.is_dir():
        return _of_run(path)
    if path.suffix not in READERS and path.exists():
        raise WeightsError(
            f"weights must be a {', '.join(READERS)} file; found {path}. If it holds a state "
            "dict, rename it."
        )
    content = _content(path)
    return _without_prefix(_tensors(READERS[path.suffix](content, path), path))


def _of_run(folder: Path) -> dict[str, torch.Tensor]:
    """The network that a fine-tuning kept."""
    if not (folder / "config.json").exists():
        raise WeightsError(
            f"{folder} is a folder, but no run: give the file of a state dict (.pth or "
            ".safetensors), or the folder of a fine-tuning run"
        )
    run = open_run(folder)
    if run.kind != "finetune":
        raise WeightsError(
            f"{folder} is a run of kind {run.kind!r}, whose head reads the features of another "
            "network's weights and holds none. Give those weights, or the folder of a fine-tuning "
            "run."
        )
    return {name: torch.from_numpy(values) for name, values in run.model().items()}


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(
            f"there is no file {path}: --weights takes imagenet, random, random:SEED, or the "
            "path of a state dict (.pth or .safetensors) or of a fine-tuning's folder"
        ) from None
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    if not content:
        raise WeightsError(f"{path} is empty: copy or download it again")
    return content


def _read_safetensors(content: bytes, path: Path) -> object:
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except Exception as error:  # its own kind, and torch's where the header lies
        raise _damaged(path, "safetensors") from error


def _read_pickle(content: bytes, path: Path) -> object:
    try:
        # torch warns about what is refused further on, such as sparse tensors.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise WeightsError(
                f"{path} holds Python objects besides tensors, which could run code and are not "
                "loaded. Save the weights alone: torch.save(model.state_dict(), PATH)."
            ) from error
        raise _damaged(path, "PyTorch") from error


def _damaged(path: Path, kind: str) -> WeightsError:
    return WeightsError(
        f"{path} can't be read as a {kind} file: it is damaged, cut short or something else. "
        "Copy or download it again."
    )


READERS = {".pth": _read_pickle, ".pt": _read_pickle, ".safetensors": _read_safetensors}


def _tensors(content: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        found = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{path} holds no state dict (names with tensors) but {found}. Save it with "
            "torch.save(model.state_dict(), PATH)."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} holds no plain state dict: {name!r} is a {type(value).__name__}, not a "
                "tensor. Save it with torch.save(model.state_dict(), PATH)."
            )
    return dict(content)


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            stripped = {name.removeprefix(prefix): value for name, value in tensors.items()}
            return _without_prefix(stripped)
    return tensors
