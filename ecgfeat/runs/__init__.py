"""A run's folder: what a job leaves behind, whole or plainly unfinished.

``docs/run-format.md`` is the specification. Every file is written aside and renamed, and
``metrics.json`` comes last: a folder that has it is a finished run. Nothing read back from it
can execute code.
"""

from ecgfeat.runs.reading import Run, open_run
from ecgfeat.runs.records import Cost, EpochRecord, Result, count_rows
from ecgfeat.runs.writing import KIND_NAMES, append_history, create_run, write_config, write_run

__all__ = [
    "KIND_NAMES",
    "Cost",
    "EpochRecord",
    "Result",
    "Run",
    "append_history",
    "count_rows",
    "create_run",
    "open_run",
    "write_config",
    "write_run",
]
