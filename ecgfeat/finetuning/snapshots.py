"""A network and its optimiser between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

__all__ = ["Snapshot", "Tensors", "moments_of", "put_moments"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Everything that a step changes, on the CPU.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        ``network.<name>`` and ``optimizer.<number of the parameter>.<name>``.
    scaler : mapping of str to float
        The loss scaler's state; empty where the loss isn't scaled.
    n_parts : int
        Parts in which a step's images go through the network.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scaler: Mapping[str, float] = field(default_factory=dict)
    n_parts: int = 1

    @property
    def network(self) -> Tensors:
        """The network's own tensors."""
        return _under("network.", self.tensors)


def moments_of(optimizer: torch.optim.Optimizer) -> Tensors:
    """What an optimiser remembers, as in `Snapshot.tensors`."""
    return {
        f"optimizer.{number}.{key}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }


def put_moments(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], snapshot: Snapshot
) -> None:
    """Let an optimiser of `parameters` remember what `moments_of` gave."""
    slots: dict[int, Tensors] = {}
    for name, value in _under("optimizer.", snapshot.tensors).items():
        number, _, key = name.partition(".")
        parameter = parameters[int(number)]
        # A moment lies in memory as its parameter does: the optimiser's kernels expect it.
        like = parameter if value.shape == parameter.shape else value
        slots.setdefault(int(number), {})[key] = torch.empty_like(like, requires_grad=False).copy_(
            value
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
