"""The weights a backbone starts from: torchvision's, random ones, or a file's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlparse

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.config import ARCHITECTURES, NetworkSettings
from ecgfeat.errors import WeightsError, storage_error
from ecgfeat.runs import open_run

__all__ = [
    "Shapes",
    "Weights",
    "build_network",
    "expected_shapes",
    "feature_width",
    "fit",
    "imagenet_file",
    "load_network",
    "load_weights",
    "network_from_tensors",
    "new_network",
    "read_state_dict",
    "without_head",
]


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights that fit their architecture, without its classification layer.

    Attributes
    ----------
    arch : str
    name : str
        ``imagenet``, ``random:SEED``, or the absolute path of the file.
    tensors : mapping of str to Tensor, float32
    """

    arch: str
    name: str
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def from_state_dict(cls, arch: str, name: str, found: Mapping[str, torch.Tensor]) -> Weights:
        """Take them from a state dict, with a classification layer or none.

        Raises
        ------
        WeightsError
            When they don't fit the architecture or aren't finite.
        """
        tensors = fit(without_head(found), expected_shapes(arch), arch=arch, source=name)
        return cls(arch, name, tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every tensor's name, shape and float32 bytes, hexadecimal.

        The same weights have the same digest, whatever file they came in.
        """
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            values = self.tensors[name].numpy()
            total.update(f"{name} {values.shape}\n".encode())
            total.update(np.ascontiguousarray(values, dtype="<f4").data)
        return total.hexdigest()


def load_weights(settings: NetworkSettings) -> Weights:
    """Get the weights asked for: downloaded, drawn, or read from a file.

    Raises
    ------
    WeightsError
        When they can't be had or don't fit the architecture; the message names the ways out.
    StorageError
        When the disk refuses.
    """
    arch, asked = settings.arch, settings.weights
    if asked == "imagenet":
        return Weights.from_state_dict(arch, asked, read_state_dict(imagenet_file(arch)))
    if asked == "random" or asked.startswith("random:"):
        seed = _seed(asked)
        drawn = _drawn(lambda: new_network(arch), seed)
        return Weights.from_state_dict(arch, f"random:{seed}", drawn)
    path = Path(asked).expanduser()
    return Weights.from_state_dict(arch, str(path.resolve()), read_state_dict(path))


def _seed(asked: str) -> int:
    text = asked.partition(":")[2] if ":" in asked else "0"
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise WeightsError(
            f"--weights random:SEED needs a whole number, such as random:0; found {asked!r}"
        )
    return int(text)


def _drawn(make: Callable[[], torch.nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """State dict of a module made under `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value.detach() for name, value in make().state_dict().items()}


def load_network(settings: NetworkSettings, n_classes: int, seed: int) -> torch.nn.Module:
    """Make a torchvision ResNet to be fine-tuned: the weights asked for under a new last layer.

    Parameters
    ----------
    settings : NetworkSettings
    n_classes : int
    seed : int
        Of the last layer's weights; the global random state is left alone.

    Raises
    ------
    WeightsError, StorageError
        As `load_weights`.
    """
    tensors = dict(load_weights(settings).tensors)
    width = feature_width(settings.arch)
    head = _drawn(lambda: torch.nn.Linear(width, n_classes), seed)
    tensors.update({f"fc.{name}": value for name, value in head.items()})
    return build_network(settings.arch, tensors)


def network_from_tensors(
    arch: str, n_classes: int, tensors: Mapping[str, NDArray[Any]]
) -> torch.nn.Module:
    """Make a torchvision ResNet of `n_classes` from the tensors that a run kept.

    Raises
    ------
    WeightsError
        When they don't fit.
    """
    head = {"fc.weight": (n_classes, feature_width(arch)), "fc.bias": (n_classes,)}
    found = {name: torch.from_numpy(values) for name, values in tensors.items()}
    expected = {**expected_shapes(arch), **head}
    return build_network(arch, fit(found, expected, arch=arch, source="the run's model"))


TIMEOUT_S = 5.0
"""Seconds without an answer, of each of the host's addresses, after which a download fails."""


def imagenet_file(arch: str) -> Path:
    """Path of torchvision's default weights, downloaded if they aren't there yet.

    Raises
    ------
    WeightsError
        When the download fails, or a file of that name has another hash; the message names the
        ways out.
    StorageError
        When torch's folder can't be written or read.
    """
    from torchvision.models import get_model_weights

    url: str = get_model_weights(arch).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(urlparse(url).path).name
    # torchvision publishes its files as NAME-HASH.pth.
    hash_prefix = path.stem.rpartition("-")[2]
    if not path.exists():
        _download(url, path, hash_prefix, arch)
    elif not _sha256(path).startswith(hash_prefix):
        raise WeightsError(
            f"{path} isn't the file that torchvision published: its SHA-256 should begin with "
            f"{hash_prefix}. Delete it, and the next run downloads it again."
        )
    return path


def _download(url: str, path: Path, hash_prefix: str, arch: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, "making", path.parent) from error
    try:
        # Writes aside, checks the hash and renames. The weights' own get_state_dict does the
        # same, but announces it on stdout, which belongs to the program's results.
        with _socket_timeout(TIMEOUT_S):
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsError(
            f"the ImageNet weights of {arch} can't be downloaded from {url} ({_cause(error)}). "
            "Give weights of your own with --weights PATH; or download that file elsewhere and "
            f"put it at {path}; or go on untrained with --weights random."
        ) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torch.hub has no time-out of its own.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _cause(error: Exception) -> str:
    """What went wrong, in the words of the system or the host."""
    if isinstance(error, RuntimeError):
        return "what arrived is cut short or altered: its SHA-256 is another"
    reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error(error, "reading", path) from error


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


HEAD = "fc."
"""Beginning of the classification layer's names."""
COUNTER = "num_batches_tracked"
"""Ending of batch norm's step counters: nothing reads them, and old state dicts lack them."""
N_NAMED = 3
"""Tensors that an error names; the others it counts."""

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]


def new_network(arch: str) -> torch.nn.Module:
    """A torchvision ResNet for 1000 classes, with random weights."""
    from torchvision.models import get_model

    network: torch.nn.Module = get_model(arch, weights=None)
    return network


def _skeleton(arch: str) -> torch.nn.Module:
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        return new_network(arch)


@functools.cache
def _shapes(arch: str) -> Shapes:
    return _shapes_of(_without_counters(_skeleton(arch).state_dict()))


def feature_width(arch: str) -> int:
    """Width of layer4's average pool."""
    return _shapes(arch)["fc.weight"][1]


def without_head(tensors: Mapping[str, T]) -> dict[str, T]:
    """Leave out the classification layer."""
    return {name: value for name, value in tensors.items() if not name.startswith(HEAD)}


def expected_shapes(arch: str) -> Shapes:
    """Shape of each tensor that decides `arch`'s features."""
    return without_head(_shapes(arch))


def build_network(arch: str, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Make a torchvision ResNet that takes over `tensors`.

    Parameters
    ----------
    arch : str
    tensors : mapping of str to Tensor, float32
        As `fit` returns them; without a classification layer, the network has none.
    """
    network = _skeleton(arch)
    if "fc.weight" in tensors:
        n_classes, width = tensors["fc.weight"].shape
        network.fc = torch.nn.Linear(width, n_classes, device="meta")
    else:
        network.fc = torch.nn.Identity()
    names = [name for name in network.state_dict() if name.endswith(COUNTER)]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in names}
    network.load_state_dict({**counters, **tensors}, assign=True)
    return network


def fit(
    found: Mapping[str, torch.Tensor], expected: Shapes, *, arch: str, source: str
) -> dict[str, torch.Tensor]:
    """Check a state dict against the shapes it should have, and copy it in float32.

    Raises
    ------
    WeightsError
        When it doesn't fit `arch` or isn't finite; the message names the architecture it does
        fit, or what is wrong with it. `source` stands at its beginning.
    """
    found = _without_counters(found)
    if _shapes_of(found) != expected:
        raise _misfit(_shapes_of(found), expected, arch, source)
    return {name: _float32(name, found[name], source) for name in expected}


def _without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}


def _shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _float32(name: str, value: torch.Tensor, source: str) -> torch.Tensor:
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if not plain or not value.is_floating_point():
        raise WeightsError(
            f"{source}: {name} must hold plain floating-point numbers; found {value.dtype} "
            f"({value.layout}). Save the weights before quantising or pruning them."
        )
    value = value.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(value).all():
        raise WeightsError(
            f"{source}: {name} holds NaN or infinity, so every feature would be meaningless. The "
            "training that made it diverged, or the file is damaged: give other weights."
        )
    return value


def _misfit(found: Shapes, expected: Shapes, arch: str, source: str) -> WeightsError:
    other = _fitting_architecture(found)
    if other is not None and other != arch:
        return WeightsError(
            f"{source} holds the weights of {other}, but the architecture asked for is {arch}. "
            f"Take --arch {other}, or give weights of {arch}."
        )
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {_words(found[name])} instead of {_words(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    findings = [
        missing and f"{len(missing)} of {len(expected)} tensors are missing ({_some(missing)})",
        unexpected and f"{len(unexpected)} don't belong to it ({_some(unexpected)})",
        misshapen and f"{len(misshapen)} have another shape ({_some(misshapen)})",
    ]
    return WeightsError(
        f"{source} doesn't fit {arch}: {', '.join(text for text in findings if text)}. "
        f"Give a state dict of torchvision's {arch}, or the --arch that it was saved from."
    )


def _fitting_architecture(found: Shapes) -> str | None:
    features = without_head(found)
    return next((arch for arch in ARCHITECTURES if expected_shapes(arch) == features), None)


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _some(names: list[str]) -> str:
    rest = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {rest} more" if rest > 0 else "")
