"""How the weights are moved: which of them, by what rule, at what rate, for which loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.config import FinetuneSettings
from ecgfeat.protocol import Partition, Task

__all__ = [
    "Loss",
    "Schedule",
    "balanced_weights",
    "freeze",
    "make_optimizer",
    "set_modes",
]

MOMENTUM = 0.9
"""Of stochastic gradient descent, as the ResNets themselves were trained (He et al. 2016)."""
STEM = ("conv1", "bn1", "relu", "maxpool")
"""What comes before a ResNet's first layer."""
BATCH_NORMS = (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD; its rate is set later."""
    decay = settings.weight_decay
    # Fused: one pass over memory. On two cores that is a fifth of the default's time.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=MOMENTUM, weight_decay=decay, fused=True
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=0.0, weight_decay=decay, fused=True)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step.

    It rises evenly over the first steps (Goyal et al. 2017), and is then held, or falls to 0 on
    half a cosine (Loshchilov & Hutter 2017).

    Attributes
    ----------
    settings : FinetuneSettings
    lr : float
        The highest rate.
    n_steps : int
        Of the whole training, all epochs together.
    """

    settings: FinetuneSettings
    lr: float
    n_steps: int

    @property
    def n_warmup(self) -> int:
        """How many steps the rate rises; the one after them is the first at its height."""
        return round(self.settings.warmup * self.n_steps)

    @property
    def is_constant(self) -> bool:
        """Whether every step has the same rate."""
        return self.settings.schedule == "constant" and not self.n_warmup

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.n_warmup:
            return self.lr * (step + 1) / (self.n_warmup + 1)
        if self.settings.schedule == "constant":
            return self.lr
        done = (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


class Loss:
    """Cross-entropy, its targets smoothed and its classes weighted as the settings say.

    Parameters
    ----------
    settings : FinetuneSettings
    class_weights : ndarray of shape (n_classes,), float32, or None
        How much each class counts; None for equally.
    device : torch.device
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        class_weights: NDArray[np.float32] | None,
        device: torch.device,
    ) -> None:
        self._smoothing = settings.label_smoothing
        self._class_weights: torch.Tensor | None = None
        if class_weights is not None:
            self._class_weights = torch.from_numpy(class_weights).to(device)

    def weight(self, truth: torch.Tensor) -> float:
        """What the summed loss of some images is divided by for its mean."""
        if self._class_weights is None:
            return len(truth)
        return float(self._class_weights[truth].sum())

    def summed(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss summed over images; `truth` of shape (b,), int64."""
        return torch.nn.functional.cross_entropy(
            logits,
            truth,
            weight=self._class_weights,
            label_smoothing=self._smoothing,
            reduction="sum",
        )


def balanced_weights(task: Task, part: Partition) -> NDArray[np.float32]:
    """Weight of each class, n / (k · n_class) over the training rows, shape (k,)."""
    n_rows = np.bincount(task.targets[part.train], minlength=len(task.classes))
    return (len(part.train) / (len(task.classes) * n_rows)).astype(np.float32)


def freeze(network: torch.nn.Module, settings: FinetuneSettings) -> None:
    """Take the weights up to and including a layer out of training."""
    for name in _frozen(network, settings):
        for parameter in network.get_submodule(name).parameters():
            parameter.requires_grad_(False)


def set_modes(network: torch.nn.Module, settings: FinetuneSettings) -> None:
    """Put a network in training mode, all but the batch norms whose statistics are to stay."""
    network.train()
    kept = _frozen(network, settings) if settings.batch_norm == "update" else [""]
    for name in kept:
        for module in network.get_submodule(name).modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


def _frozen(network: torch.nn.Module, settings: FinetuneSettings) -> list[str]:
    """Names of the children up to the layer that is frozen to."""
    if settings.freeze_to == "none":
        return []
    names = [name for name, _ in network.named_children()]
    last = STEM[-1] if settings.freeze_to == "stem" else settings.freeze_to
    return names[: names.index(last) + 1]
