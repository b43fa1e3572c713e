"""What is wrong with the data: leaks, copies, shortcuts, doubtful labels.

`audit` takes every check in turn. `copies` finds the same page twice, `shortcuts` what else tells
the class, `labels` what the labels are worth. Pages are read where `copies` or `shortcuts` need
them.
"""

from ecgfeat.data_audit.checks import (
    Audit,
    Finding,
    Level,
    audit,
    lost_files,
    scored_rows,
    strata_of,
    stratum_table,
)

__all__ = [
    "Audit",
    "Finding",
    "Level",
    "audit",
    "lost_files",
    "scored_rows",
    "strata_of",
    "stratum_table",
]
