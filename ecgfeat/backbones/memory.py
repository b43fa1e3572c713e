"""Telling that memory has run out, which every allocator says in its own way."""

from __future__ import annotations

import torch

__all__ = ["free_device_memory", "is_out_of_memory"]

_WORDS = (
    "out of memory",  # CUDA and MPS, also where it isn't a torch.OutOfMemoryError
    "alloc_failed",  # cuDNN and cuBLAS
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory",  # the same on Windows
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy raised `error` for a lack of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def free_device_memory(device: str) -> None:
    """Give what torch keeps for reuse back to the device."""
    if device == "cuda":
        torch.cuda.empty_cache()
    if device == "mps":
        torch.mps.empty_cache()
