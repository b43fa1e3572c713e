"""Files of a run, read with plain parsers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ecgfeat.errors import RunError, storage_error
from ecgfeat.runs.records import FORMAT_VERSION

__all__ = [
    "check_version",
    "damaged",
    "parse_csv",
    "parse_json",
    "parse_text",
    "read_file",
]

T = TypeVar("T")


def read_file(folder: Path, name: str, parse: Callable[[bytes], T]) -> T:
    """Read and parse one of a run's files.

    `parse` raises ValueError where the content is not as written.

    Raises
    ------
    RunError
        When the file is missing, is no plain file of the folder, or can't be parsed.
    StorageError
        When it can't be read.
    """
    path = folder / name
    try:
        _refuse_elsewhere(path)
        return parse(path.read_bytes())
    except OSError as error:
        raise storage_error(error, "reading", path) from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise damaged(path, str(error)) from error


def _refuse_elsewhere(path: Path) -> None:
    """Refuse a file that is missing, a pipe or device, or a link that leads out of the run."""
    if not path.exists():
        raise damaged(path.parent, f"{path.name} is missing")
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise RunError(
            f"{path} is not a plain file of this run. Put the file itself in its place, or use "
            "another run."
        )


def parse_text(content: bytes) -> str:
    """What `write_text` wrote."""
    return content.decode("utf-8", "surrogateescape")


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object that `content` holds; ValueError where it is something else."""
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def parse_csv(content: bytes) -> list[list[str]]:
    """The rows of a CSV, its header first; ValueError where their lengths differ."""
    text = io.StringIO(parse_text(content), newline="")
    rows = list(csv.reader(text, strict=True))
    if not rows:
        raise ValueError("it is empty")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {number} has {len(row)} fields, the header {len(rows[0])}")
    return rows


def check_version(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a JSON object of another format version."""
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise RunError(
            f"{path} has format version {found!r}, and this ecgfeat reads version "
            f"{FORMAT_VERSION}. Run its command again, or use the ecgfeat that wrote it."
        )


def damaged(path: Path, what: str) -> RunError:
    """The error for a file or folder whose content is not what was written."""
    return RunError(f"{path} is damaged: {what}. Run its command again.")
