"""Who trains and who is tested: the same for heads and for fine-tuning.

Both take their rows from here, so that runs on the same data are compared on the same rows.

`tasks` numbers the classes, `plan` lays down training, validation and test rows, `folds` deals
rows out, and `sampling` draws rows and whole groups of each class.
"""

from ecgfeat.protocol.splits import (
    Partition,
    group_numbers,
    hash_place,
    inner_folds,
    keep_rows,
    n_kept_out,
    partitions,
    refuse_thin_validation,
    stratified_subset,
    training_share,
)
from ecgfeat.protocol.tasks import Task, class_order, define_task

__all__ = [
    "Partition",
    "Task",
    "class_order",
    "define_task",
    "group_numbers",
    "hash_place",
    "inner_folds",
    "keep_rows",
    "n_kept_out",
    "partitions",
    "refuse_thin_validation",
    "stratified_subset",
    "training_share",
]
