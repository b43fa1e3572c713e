"""The weights a backbone starts from: torchvision's, random ones, or a file's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.architectures import ARCHITECTURES, family_of
from ecgfeat.config import NetworkSettings
from ecgfeat.errors import WeightsError, storage_error
from ecgfeat.runs import open_run

__all__ = [
    "Weights",
    "build_network",
    "load_network",
    "load_weights",
    "network_from_tensors",
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
    note : str
        What of the file was left aside, in words for people; may be empty.
    """

    arch: str
    name: str
    tensors: Mapping[str, torch.Tensor]
    note: str = ""

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
    found: StateDict
    note = ""
    if asked == "random" or asked.startswith("random:"):
        seed = _seed(asked)
        name, found = f"random:{seed}", _drawn(lambda: _new_network(arch), seed)
    elif asked == "imagenet":
        path = _imagenet_file(arch)
        name, (found, note) = asked, _backbone_in(_content(path), arch, path, "")
    else:
        path, choice = _path_and_choice(asked)
        name = str(path.resolve()) + (choice and f"#{choice}")
        content = _of_run(path) if path.is_dir() else _content(path)
        found, note = _backbone_in(content, arch, path, choice)
    tensors = {tensor: _float32(tensor, found[tensor], name) for tensor in _feature_shapes(arch)}
    return Weights(arch, name, tensors, note)


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
    family = family_of(settings.arch)
    width = family.widths[settings.arch]
    head = _drawn(lambda: torch.nn.Linear(width, n_classes), seed)
    tensors.update({f"{family.classifier}.{name}": value for name, value in head.items()})
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
    family = family_of(arch)
    head = {
        f"{family.classifier}.weight": (n_classes, family.widths[arch]),
        f"{family.classifier}.bias": (n_classes,),
    }
    found = {name: torch.from_numpy(values) for name, values in tensors.items()}
    expected = {**_feature_shapes(arch), **head}
    source = "the run's model"
    shapes = _shapes(found)
    if shapes != expected:
        raise _misshapen(shapes, expected, arch, source)
    return build_network(arch, {name: _float32(name, found[name], source) for name in expected})


TIMEOUT_S = 5.0
"""Seconds without an answer, of each of the host's addresses, after which a download fails."""


def _imagenet_file(arch: str) -> Path:
    """Path of torchvision's default weights, downloaded if they aren't there yet."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(arch).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
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


def _content(path: Path) -> object:
    """What a file of `READERS` holds; nothing in it is executed."""
    if path.suffix not in READERS and path.exists():
        raise WeightsError(
            f"weights must be a {', '.join(READERS)} file; found {path}. If it holds a state "
            "dict, rename it."
        )
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
    return READERS[path.suffix](content, path)


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


READERS = {
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), _read_pickle),
    ".safetensors": _read_safetensors,
}
"""By a file's suffix; each takes its bytes and its path."""
N_NAMED = 3
"""Tensors that a message names; the others it counts."""
MAX_DEPTH = 8
"""Mappings within mappings that are looked into."""
COUNTER = "num_batches_tracked"
"""Ending of batch norm's step counters: nothing reads them, and old state dicts lack them."""

StateDict = Mapping[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


class _Place(NamedTuple):
    """Where in a checkpoint a backbone lies, whole."""

    label: str  # The keys and the prefix before its names; a dot for none.
    tensors: StateDict  # By the network's own names.
    strangers: list[str]  # What else the state dict holds.


def _path_and_choice(asked: str) -> tuple[Path, str]:
    """Tell ``PATH#LABEL``, one of a checkpoint's networks, from a mere path."""
    path, (before, _, choice) = Path(asked).expanduser(), asked.rpartition("#")
    if before and not path.exists() and Path(before).expanduser().is_file():
        return Path(before).expanduser(), choice
    return path, ""


def _backbone_in(content: object, arch: str, path: Path, choice: str) -> tuple[StateDict, str]:
    """Find the one backbone in a checkpoint, and say what beside it is left aside.

    It may lie under any keys and any prefix, as ``model_state_dict`` and ``module.encoder.``, or
    be numbered as by ``Sequential(*network.children())``.
    """
    found = _state_dicts(content, path)
    places = _places(found, arch)
    if not places:
        raise _misfit(found, arch, path)
    labels = ", ".join(place.label for place in places)
    if choice:
        places = [place for place in places if place.label == choice]
        if not places:
            raise WeightsError(
                f"{path} holds no {arch} under {choice!r}; it has one under {labels}"
            )
    if not all(_are_same(place.tensors, places[0].tensors) for place in places[1:]):
        raise WeightsError(
            f"{path} holds more than one {arch}, under {labels}: say which with "
            f"--weights '{path}#{places[0].label}'"
        )
    strangers = places[0].strangers
    note = f"{path}: {len(strangers)} tensors are no part of {arch} and are left aside"
    return places[0].tensors, f"{note} ({_some(strangers)})" if strangers else ""


def _state_dicts(content: object, path: Path) -> list[tuple[str, StateDict]]:
    """The mappings in `content` that hold tensors, each with the keys before it."""
    found: list[tuple[str, StateDict]] = []
    seen: set[int] = set()
    level = [("", content)]
    for _ in range(MAX_DEPTH):
        deeper: list[tuple[str, object]] = []
        for keys, inner in level:
            if not isinstance(inner, Mapping) or id(inner) in seen:
                continue
            seen.add(id(inner))
            named = {name: value for name, value in inner.items() if isinstance(name, str)}
            tensors = {n: value for n, value in named.items() if isinstance(value, torch.Tensor)}
            found += [(keys, tensors)] if tensors else []
            deeper += [(f"{keys}{name}.", value) for name, value in named.items()]
        level = deeper
    if found:
        return found
    if isinstance(content, Mapping) and content:
        name, value = next(iter(content.items()))
        finding = f"no plain state dict: {name!r} is a {type(value).__name__}, not a tensor"
    else:
        kind = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        finding = f"no state dict (names with tensors) but {kind}"
    raise WeightsError(
        f"{path} holds {finding}. Save it with torch.save(model.state_dict(), PATH)."
    )


def _places(found: list[tuple[str, StateDict]], arch: str) -> list[_Place]:
    return [
        place
        for keys, tensors in found
        for numbers in ({}, _numbers(arch))
        for prefix in _prefixes(tensors, arch, numbers)
        if (place := _place(keys, tensors, prefix, arch, numbers))
    ]


def _prefixes(tensors: StateDict, arch: str, numbers: Mapping[str, str]) -> list[str]:
    """What stands before the first of the network's names, wherever that is found."""
    first = _in_file(next(iter(_feature_shapes(arch))), numbers)
    ends = (name for name in tensors if name == first or name.endswith(f".{first}"))
    return [name.removesuffix(first) for name in ends]


def _place(
    keys: str, tensors: StateDict, prefix: str, arch: str, numbers: Mapping[str, str]
) -> _Place | None:
    """The backbone under `prefix`; None where it is another or not whole."""
    expected = _feature_shapes(arch)
    in_file = {name: prefix + _in_file(name, numbers) for name in expected}
    inside = {name: tensors[there] for name, there in in_file.items() if there in tensors}
    if _shapes(inside) != expected:
        return None
    used = set(in_file.values())
    classifier = prefix + _in_file(f"{family_of(arch).classifier}.", numbers)
    strangers = [
        name
        for name in tensors
        if name not in used and not name.startswith(classifier) and not name.endswith(COUNTER)
    ]
    # What stands in the network's own parts makes it another, larger network.
    parts = {there.removeprefix(prefix).split(".")[0] for there in used}
    own = (name for name in strangers if name.startswith(prefix))
    if any(name.removeprefix(prefix).split(".")[0] in parts for name in own):
        return None
    label = (keys + prefix).removesuffix(".") or "."
    return _Place(label, inside, strangers)


@functools.cache
def _numbers(arch: str) -> dict[str, str]:
    """The place of each of the network's parts, as a Sequential of them numbers them."""
    return {name: str(i) for i, (name, _) in enumerate(_skeleton(arch).named_children())}


def _in_file(name: str, numbers: Mapping[str, str]) -> str:
    part, dot, rest = name.partition(".")
    return numbers.get(part, part) + dot + rest


def _are_same(one: StateDict, other: StateDict) -> bool:
    return all(one[name] is other[name] or torch.equal(one[name], other[name]) for name in one)


def _misfit(found: list[tuple[str, StateDict]], arch: str, path: Path) -> WeightsError:
    source = str(path.resolve())
    other = next((other for other in ARCHITECTURES if _places(found, other)), None)
    if other is not None:
        return WeightsError(
            f"{source} holds the weights of {other}, but the architecture asked for is {arch}. "
            f"Take --arch {other}, or give weights of {arch}."
        )
    # Told of the state dict that comes nearest.
    plain = [
        _shapes({name.removeprefix(prefix): value for name, value in tensors.items()})
        for _, tensors in found
        for prefix in (*_prefixes(tensors, arch, {})[:N_NAMED], _shared_prefix(tensors), "")
    ]
    expected = _feature_shapes(arch)
    nearest = max(plain, key=lambda shapes: len(expected.keys() & shapes.keys()))
    return _misshapen(_without_head(nearest, arch), expected, arch, source)


def _shared_prefix(names: Iterable[str]) -> str:
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 - letter by letter is meant
    return shared.rpartition(".")[0] + "."


def _misshapen(found: Shapes, expected: Shapes, arch: str, source: str) -> WeightsError:
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


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _some(names: list[str]) -> str:
    shown = [name if len(name) <= 80 else f"{name[:79]}…" for name in names[:N_NAMED]]
    rest = len(names) - N_NAMED
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def _new_network(arch: str) -> torch.nn.Module:
    """One of torchvision's for 1000 classes, with random weights."""
    from torchvision.models import get_model

    network: torch.nn.Module = get_model(arch, weights=None)
    return network


def _skeleton(arch: str) -> torch.nn.Module:
    # On the meta device nothing is allocated and no random number is drawn.
    with torch.device("meta"):
        return _new_network(arch)


@functools.cache
def _feature_shapes(arch: str) -> Shapes:
    """Shape of each tensor that decides `arch`'s features."""
    return _without_head(_shapes(_skeleton(arch).state_dict()), arch)


def _shapes(tensors: StateDict) -> Shapes:
    """Shape of each tensor that isn't a counter."""
    return {name: tuple(v.shape) for name, v in tensors.items() if not name.endswith(COUNTER)}


def _without_head(shapes: Shapes, arch: str) -> Shapes:
    """Leave out the classification layer."""
    head = f"{family_of(arch).classifier}."
    return {name: shape for name, shape in shapes.items() if not name.startswith(head)}


def build_network(arch: str, tensors: StateDict) -> torch.nn.Module:
    """Make one of torchvision's networks that takes over `tensors`.

    Parameters
    ----------
    arch : str
    tensors : mapping of str to Tensor, float32
        Without a classification layer, the network has none.
    """
    network, classifier = _skeleton(arch), family_of(arch).classifier
    last: torch.nn.Module = torch.nn.Identity()
    if f"{classifier}.weight" in tensors:
        n_classes, width = tensors[f"{classifier}.weight"].shape
        last = torch.nn.Linear(width, n_classes, device="meta")
    network.set_submodule(classifier, last)
    names = [name for name in network.state_dict() if name.endswith(COUNTER)]
    counters = {name: torch.zeros((), dtype=torch.int64) for name in names}
    network.load_state_dict({**counters, **tensors}, assign=True)
    return network


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
