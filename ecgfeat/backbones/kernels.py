"""How a network lies in memory, and which of CUDA's kernels compute it."""

from __future__ import annotations

import contextlib

import torch

from ecgfeat.runtime import Compute

__all__ = ["memory_format", "repeatable_kernels"]


def memory_format(compute: Compute) -> torch.memory_format:
    """The layout of images and weights that `compute` asks for."""
    return torch.channels_last if compute.channels_last else torch.contiguous_format


def repeatable_kernels(
    compute: Compute, *, allow_tf32: bool = True
) -> contextlib.AbstractContextManager[None]:
    """While inside, let CUDA take only kernels that give the same numbers every time.

    Parameters
    ----------
    compute : Compute
    allow_tf32 : bool, default True
        Let float32 convolutions round to TF32's 10 bits, as PyTorch's own default does.
    """
    if compute.device != "cuda":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=allow_tf32
    )
    return context
