"""The network being trained: a step, a pass over the images, and what it says of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones import memory_format, repeatable_kernels
from ecgfeat.config import FinetuneSettings
from ecgfeat.errors import EcgfeatError
from ecgfeat.finetuning.streaming import Batches, Images, Tick
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["Snapshot", "Tally", "Trainer"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Tally:
    """Running means over mini-batches, weighted by their images."""

    n_images: int = 0
    summed_loss: float = 0.0
    n_right: int = 0

    def add(self, n_images: int, loss: float, n_right: int) -> None:
        """Take in a mini-batch and its mean loss."""
        self.n_images += n_images
        self.summed_loss += loss * n_images
        self.n_right += n_right

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.summed_loss / self.n_images

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.n_right / self.n_images


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A `Trainer` between two steps.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        ``network.<name>`` and ``optimizer.<number of the parameter>.<name>``.
    scaler : mapping of str to float
        The loss scaler's state; empty where the loss isn't scaled.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scaler: Mapping[str, float] = field(default_factory=dict)

    @property
    def network(self) -> dict[str, torch.Tensor]:
        """The network's own tensors."""
        return _under("network.", self.tensors)


class Trainer:
    """A network with its optimiser (Adam, Kingma & Ba 2015) and its loss scaler.

    Parameters
    ----------
    network : Module
        Taken over: moved to the device, all of its weights updated.
    settings : FinetuneSettings
    preprocessing : Preprocessing
        Mean and standard deviation of the pixels.
    compute : Compute
    """

    def __init__(
        self,
        network: torch.nn.Module,
        settings: FinetuneSettings,
        preprocessing: Preprocessing,
        compute: Compute,
    ) -> None:
        self._compute = compute
        self._device = torch.device(compute.device)
        self._autocast = AUTOCAST.get(compute.precision)
        self._layout = memory_format(compute)
        self._mean = torch.tensor(preprocessing.mean, device=self._device)
        self._std = torch.tensor(preprocessing.std, device=self._device)
        self._settings = settings
        self.network = network.to(self._device).to(memory_format=self._layout)
        self._optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over memory: on two cores, a fifth of the default's time
        )
        # float16 gradients underflow unless the loss is scaled up (Micikevicius et al. 2018).
        self._scaler = torch.amp.GradScaler(compute.device, enabled=self._autocast is torch.float16)

    def train(self, images: Images, batches: Batches, tick: Tick) -> Tally:
        """One pass over the images.

        A batch of which fewer than two images can be decoded is passed over.

        Raises
        ------
        EcgfeatError
            When the loss or a weight stops being finite.
        """
        tally = Tally()
        self.network.train()
        with (
            repeatable_kernels(self._compute),
            contextlib.closing(images.stream(batches, tick)) as stream,
        ):
            for batch in stream:
                if len(batch.rows) > 1:
                    loss, n_right = self._step(batch.pixels, images.targets[batch.rows])
                    if not math.isfinite(loss):
                        raise self._diverged(f"the loss became {loss}")
                    tally.add(len(batch.rows), loss, n_right)
        if not all(torch.isfinite(tensor).all() for tensor in self.network.state_dict().values()):
            raise self._diverged("a weight is no longer finite")
        return tally

    def _step(self, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> tuple[float, int]:
        truth = torch.from_numpy(targets).to(self._device)
        logits = self._logits(pixels)
        loss = torch.nn.functional.cross_entropy(logits, truth)
        self._optimizer.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.item(), int((logits.argmax(1) == truth).sum())

    def _diverged(self, what: str) -> EcgfeatError:
        lr = self._settings.lr
        return EcgfeatError(
            f"{what}: the training diverged. Start a new run with a lower --lr (this one has "
            f"{lr:g}; try {lr / 10:g})."
        )

    def log_probabilities(
        self, images: Images, batches: Batches, tick: Tick
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What the network says of the images, in evaluation mode.

        Returns
        -------
        rows : ndarray of shape (m,), int64
            Rows that can be decoded, in the order of `batches`.
        log_probabilities : ndarray of shape (m, n_classes), float64
        """
        found: list[NDArray[np.int64]] = []
        answers: list[torch.Tensor] = []
        self.network.eval()
        with (
            torch.inference_mode(),
            repeatable_kernels(self._compute),
            contextlib.closing(images.stream(batches, tick)) as stream,
        ):
            for batch in stream:
                found.append(batch.rows)
                answers.append(self._logits(batch.pixels).cpu())
        tick(sum(len(rows) for rows in batches))
        # Double precision only once on the CPU: MPS has none.
        logits = torch.cat(answers).double()
        return np.concatenate(found), torch.log_softmax(logits, dim=1).numpy()

    def _logits(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Logits in float32, shape (b, n_classes), whatever the network is computed in."""
        with self._autocasting():
            logits: torch.Tensor = self.network(self._normalised(pixels))
        return logits.float()

    def _autocasting(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._autocast)

    def _normalised(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        b, height, width, _ = pixels.shape
        # Whole rows at once: broadcasting over three channels is ten times slower on the CPU.
        rows = torch.from_numpy(pixels).to(self._device).view(b, height, width * 3).float()
        rows.div_(255).sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        images = rows.view(b, height, width, 3).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self._layout)

    def weights(self) -> dict[str, NDArray[Any]]:
        """The network's tensors by torchvision's names, on the CPU."""
        tensors = self.network.state_dict()
        return {name: value.cpu().contiguous().numpy() for name, value in tensors.items()}

    def snapshot(self) -> Snapshot:
        """Everything that a step changes, on the CPU; to be saved before the next step."""
        weights = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        moments = {
            f"optimizer.{number}.{key}": value
            for number, slots in self._optimizer.state_dict()["state"].items()
            for key, value in slots.items()
        }
        tensors = {name: value.cpu().contiguous() for name, value in {**weights, **moments}.items()}
        return Snapshot(tensors=tensors, scaler=self._scaler.state_dict())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where `snapshot` was taken."""
        self.network.load_state_dict(snapshot.network)
        slots: dict[int, dict[str, torch.Tensor]] = {}
        parameters = list(self.network.parameters())
        for name, value in _under("optimizer.", snapshot.tensors).items():
            number, _, key = name.partition(".")
            parameter = parameters[int(number)]
            # A moment lies in memory as its parameter does: the optimiser's kernels expect it.
            like = parameter if value.shape == parameter.shape else value
            slots.setdefault(int(number), {})[key] = torch.empty_like(
                like, requires_grad=False
            ).copy_(value)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if snapshot.scaler:
            self._scaler.load_state_dict(dict(snapshot.scaler))


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
