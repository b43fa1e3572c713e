"""A run's folder: what a job leaves behind, whole or plainly unfinished.

``docs/run-format.md`` is the specification. Every file is written aside and renamed, and
``metrics.json`` comes after all but the figures: a folder that has it is a finished run. Nothing
read back from it can execute code.

`records` is what a job hands over and what its files must hold, `writing` fills the folder with
it and says what its reader should be warned of, and `folder` opens a finished run and holds its
files' forms.
"""

from ecgfeat.runs.folder import (
    EventFiles,
    Run,
    damaged,
    decision_from,
    is_finished,
    open_run,
    parse_json,
    read_config,
    read_file,
    refuse_without_tensorboard,
    write_history,
    write_records,
    write_sweep,
)
from ecgfeat.runs.records import (
    Cost,
    Count,
    EpochRecord,
    Likeness,
    ModelCard,
    Number,
    Result,
    count_classes,
    count_rows,
    moments,
)
from ecgfeat.runs.writing import create_run, ignore, write_config, write_run

__all__ = [
    "Cost",
    "Count",
    "EpochRecord",
    "EventFiles",
    "Likeness",
    "ModelCard",
    "Number",
    "Result",
    "Run",
    "count_classes",
    "count_rows",
    "create_run",
    "damaged",
    "decision_from",
    "ignore",
    "is_finished",
    "moments",
    "open_run",
    "parse_json",
    "read_config",
    "read_file",
    "refuse_without_tensorboard",
    "write_config",
    "write_history",
    "write_records",
    "write_run",
    "write_sweep",
]
