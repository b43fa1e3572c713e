"""Training the whole network on the images: streamed, and never lost.

A run's folder is made at the start. After every epoch a checkpoint replaces the one before, and
`resume_finetune` goes on from it; on the CPU it ends in the very numbers of an uninterrupted run.

`starting` begins a run or takes one up again, `job` is what decides its numbers, `running` does
the epochs and tests, fold by fold, with `training`'s network on `streaming`'s images, and
`checkpoints` keeps how far it has come.
"""

from ecgfeat.finetuning.starting import finetune, resume_finetune

__all__ = ["finetune", "resume_finetune"]
