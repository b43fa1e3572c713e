"""The command line of ecgfeat: one file per command."""

from __future__ import annotations

import os

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


_SPIN_COUNT = "1000"
"""How often a thread of GNU's OpenMP looks whether the others are done before it sleeps. By default
it looks for milliseconds, and where another program has one of the cores, a step of training then
takes 10 to 30 times as long. 1,000 looks cost a few per cent on a quiet machine."""


def main() -> None:
    """Run the program; the entry point of the ``ecgfeat`` script."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read once, as torch is loaded
    app()
