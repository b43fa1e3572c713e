"""DATA, read and told before anything is loaded that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ecgfeat.config import DataSettings

from ._console import Output

if TYPE_CHECKING:
    from ecgfeat.manifest import Manifest

__all__ = ["read_data"]


def read_data(data: Path, settings: DataSettings, output: Output) -> Manifest:
    """List the images, and say what was found, guessed and left out."""
    from ecgfeat.manifest import read_manifest

    manifest = read_manifest(data, settings)
    for line in manifest.summary():
        output.log(line)
    return manifest
