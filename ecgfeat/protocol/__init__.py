"""Who trains and who is tested: the same for heads and for fine-tuning.

Both take their rows from here, so that runs on the same data are compared on the same rows.

`tasks` numbers the classes, and `splits` lays down training, validation and test rows, and
warns of pictures that are in two of them.
"""

from ecgfeat.protocol.splits import (
    LEAK,
    Leaks,
    Partition,
    dealt,
    drawn_units,
    find_leaks,
    group_numbers,
    has_validation,
    hash_place,
    inner_folds,
    joined,
    keep_rows,
    n_kept_out,
    partitions,
    refuse_thin_validation,
    same_pictures,
    stratified_subset,
    training_share,
)
from ecgfeat.protocol.tasks import Task, class_order, define_task, positive_in_words

__all__ = [
    "LEAK",
    "Leaks",
    "Partition",
    "Task",
    "class_order",
    "dealt",
    "define_task",
    "drawn_units",
    "find_leaks",
    "group_numbers",
    "has_validation",
    "hash_place",
    "inner_folds",
    "joined",
    "keep_rows",
    "n_kept_out",
    "partitions",
    "positive_in_words",
    "refuse_thin_validation",
    "same_pictures",
    "stratified_subset",
    "training_share",
]
