"""Training the whole network on the images: streamed, and never lost.

A run's folder is made at the start. After every epoch and every few minutes a checkpoint replaces
the one before, and `resume_finetune` goes on from it; on the CPU it ends in the very numbers of an
uninterrupted run.

`run` begins a run or takes one up again, and does the epochs and tests, fold by fold; `job` is what
decides its numbers, `trainer` the network with its steps, and `checkpoint` what is kept of it.
`lr_range` finds a learning rate, `from_head` begins with a fitted head, and `distributed` lets
several processes share the work.
"""

from ecgfeat.finetuning.from_head import read_head
from ecgfeat.finetuning.run import finetune, resume_finetune

__all__ = ["finetune", "read_head", "resume_finetune"]
