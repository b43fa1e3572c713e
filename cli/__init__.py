"""The command line of ecgfeat: one file per command."""

from __future__ import annotations

# Importing a command file adds its command to the app; their order is the order of --help.
from . import (
    demo,
    synth,
    preview,
    extract,
    audit,
    split,
    fit_head,
    finetune,
    runs,
    compare,
    report,
    predict,
    export,
    explain,
    cache,
    doctor,
)
from ._app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the program; the entry point of the ``ecgfeat`` script."""
    app()
