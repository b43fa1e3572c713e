"""torchvision's ImageNet weights: found in torch's folder, or downloaded into it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlparse

import torch

from ecgfeat.errors import WeightsError, storage_error

__all__ = ["imagenet_file"]

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
