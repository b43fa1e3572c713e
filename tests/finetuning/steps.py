"""A trainer of a tiny network, and a batch for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ecgfeat.config import FinetuneSettings
from ecgfeat.finetuning.trainer import Trainer
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

from .jobs import SMALL, TinyNetwork

PREPROCESSING = Preprocessing.from_settings(SMALL)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
TARGETS = np.array([0, 1, 1, 0, 1, 1, 1, 0])


def trainer(
    *,
    seed: int = 0,
    precision: str = "fp32",
    class_weights: np.ndarray | None = None,
    told: list[str] | None = None,
    **training: Any,
) -> Trainer:
    compute = Compute(device="cpu", precision=precision, threads=1, channels_last=True, reason="")
    made = Trainer(
        TinyNetwork(2, seed),
        FinetuneSettings(**training),
        PREPROCESSING,
        compute,
        class_weights=class_weights,
        tell=(told if told is not None else []).append,
    )
    made.set_lr(0.01)
    return made


def gradients(one: Trainer) -> list[torch.Tensor]:
    return [p.grad.clone() for p in one.network.parameters() if p.grad is not None]
