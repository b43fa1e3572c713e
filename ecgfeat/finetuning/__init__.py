"""Training the whole network on the images: streamed, and never lost.

A run's folder is made at the start. After every epoch and every few minutes a checkpoint replaces
the one before, and `resume_finetune` goes on from it; on the CPU it ends in the very numbers of an
uninterrupted run.

`starting` begins a run or takes one up again, unless `refusing` has a reason against it; `job` is
what decides its numbers, and `running` does the epochs and tests, fold by fold. `streaming` has the
images, `training` the network with its steps, for which `gradients` are made part by part;
`optimizing` has the rules for both, and `asking` the way from pages to logits. `choosing` says
which epoch is tested, `results` what the run is in the end; `lr_range` finds a learning rate,
`from_head` begins with a fitted head. `state` is how far it has come, and `keeping`, `checkpoints`
and `snapshots` see to it that it stays; `locking` lets one process at it, `distributed` several
that share the work.
"""

from ecgfeat.finetuning.run import finetune, resume_finetune

__all__ = ["finetune", "resume_finetune"]
