"""A run's folder: what a job leaves behind, whole or plainly unfinished.

``docs/run-format.md`` is the specification. Every file is written aside and renamed, and
``metrics.json`` comes last: a folder that has it is a finished run. Nothing read back from it
can execute code.

`records` is what a job hands over, `writing` fills the folder with it, `describing` and `drawing`
say and show what came out, `reading` opens a finished run; `tables` are its CSVs, and `files`
reads what a stranger may have changed.
"""

from ecgfeat.runs.folder import (
    Run,
    damaged,
    is_finished,
    open_run,
    read_config,
    write_history,
    write_sweep,
)
from ecgfeat.runs.records import Cost, EpochRecord, Result, count_rows
from ecgfeat.runs.writing import KIND_NAMES, create_run, write_config, write_run

__all__ = [
    "KIND_NAMES",
    "Cost",
    "EpochRecord",
    "Result",
    "Run",
    "count_rows",
    "create_run",
    "damaged",
    "is_finished",
    "open_run",
    "read_config",
    "write_config",
    "write_history",
    "write_run",
    "write_sweep",
]
