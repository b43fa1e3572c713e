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
it looks for milliseconds, which another program on one of the cores makes long. Beside a busy core,
1,000 looks made float32 fine-tuning 1.4 times as fast (bfloat16 0.85 times, a plain training loop
8 times); on a quiet machine they changed nothing."""


def main() -> None:
    """Run the program; the entry point of the ``ecgfeat`` script."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read once, as torch is loaded
    app(prog_name="ecgfeat")  # also as `python -m ecgfeat.cli`
