"""The network being trained: a step, what it says of images, and its state."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones import repeatable_kernels
from ecgfeat.config import FinetuneSettings
from ecgfeat.errors import TrainingError
from ecgfeat.finetuning.asking import Asking
from ecgfeat.finetuning.distributed import ALONE, Ranks
from ecgfeat.finetuning.gradients import Gradients
from ecgfeat.finetuning.optimizing import Loss, freeze, make_optimizer, set_modes
from ecgfeat.finetuning.snapshots import Snapshot, Tensors, moments_of, put_moments
from ecgfeat.finetuning.streaming import Batches, Images, Tick
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["Step", "Trainer", "ignore"]


def ignore(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step says of its images, as they were answered before it.

    Attributes
    ----------
    n_images : int
        Those trained on, all processes together; 0 where fewer than two could be decoded.
    loss : float
        Mean cross-entropy, plain: without smoothing and class weights. May not be finite.
    n_right : int
    """

    n_images: int = 0
    loss: float = 0.0
    n_right: int = 0


class Trainer:
    """A network with its optimiser and its loss scaler.

    Parameters
    ----------
    network : Module
        Taken over: moved to the device, and trained.
    settings : FinetuneSettings
    preprocessing : Preprocessing
        Mean and standard deviation of the pixels.
    compute : Compute
    class_weights : ndarray of shape (n_classes,), float32, optional
        How much each class counts in the loss; by default equally.
    ranks : Ranks
        The processes that train copies of the network, a share of every step's images each.
    tell : callable
        Told a line for people when memory has run out.

    Attributes
    ----------
    network : Module
        As given, so without what puts the processes' gradients together.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        settings: FinetuneSettings,
        preprocessing: Preprocessing,
        compute: Compute,
        *,
        class_weights: NDArray[np.float32] | None = None,
        ranks: Ranks = ALONE,
        tell: Callable[[str], None] = ignore,
    ) -> None:
        self._compute = compute
        self._asking = Asking(preprocessing, compute)
        self._device = self._asking.device
        self._settings = settings
        self._ranks = ranks
        self._loss = Loss(settings, class_weights, self._device)
        network = network.to(self._device).to(memory_format=self._asking.layout)
        if ranks.n_ranks > 1 and compute.device == "cuda":
            # Their statistics are then taken over all processes' images; the CPU has none such.
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)  # type: ignore[no-untyped-call]
        freeze(network, settings)
        set_modes(network, settings)
        self.network = network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(self._parameters, settings)
        self._scaler = torch.amp.GradScaler(compute.device, enabled=self._asking.is_scaled)
        if settings.compile:
            network.compile()
        if ranks.n_ranks > 1:
            network = torch.nn.parallel.DistributedDataParallel(network)
        self._gradients = Gradients(
            network,
            self._asking,
            self._loss,
            self._scaler,
            n_parts=settings.accumulate,
            ranks=ranks,
            tell=tell,
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the following steps."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> Step:
        """Move the weights once, by the mean loss over all processes' images.

        Parameters
        ----------
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8
            This process's share of the images.
        targets : ndarray of shape (b,), int64

        Returns
        -------
        Step

        Raises
        ------
        TrainingError
            When memory doesn't do for two images, or nothing compiles the network.
        """
        truth = torch.from_numpy(targets).to(self._device)
        n_all, weight = self._ranks.totals(len(targets), self._loss.weight(truth))
        if n_all < 2:
            return Step()
        if not self.network.training:  # after an evaluation
            set_modes(self.network, self._settings)
        with repeatable_kernels(self._compute, allow_tf32=False), _naming_the_compiler():
            own_loss, own_right = self._gradients.make(
                pixels, truth, n_all=int(n_all), weight=weight
            )
            self._move()
        loss, n_right = self._ranks.totals(own_loss, own_right)
        return Step(n_images=int(n_all), loss=loss / n_all, n_right=int(n_right))

    def _move(self) -> None:
        if self._settings.clip:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def log_probabilities(
        self, images: Images, batches: Batches, tick: Tick
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What the network says of the images, in evaluation mode.

        Returns
        -------
        rows : ndarray of shape (m,), int64
            Rows that can be decoded, in the order of `batches`, whichever process decoded them.
        log_probabilities : ndarray of shape (m, n_classes), float64
        """
        found: list[NDArray[np.int64]] = []
        answers: list[torch.Tensor] = []
        self._ranks.take_over(self.network.buffers())
        self.network.eval()
        with (
            self._ranks.together(),
            torch.inference_mode(),
            repeatable_kernels(self._compute, allow_tf32=False),
            contextlib.closing(images.stream(batches, tick)) as stream,
        ):
            for batch in stream:
                n_parts = max(1, min(self._gradients.n_parts, len(batch.rows)))
                answers += [
                    self._asking.logits(self.network, pixels).cpu()
                    for pixels in np.array_split(batch.pixels, n_parts)
                ]
                found.append(batch.rows)
            tick(sum(len(rows) for rows in batches))
        # Double precision only once on the CPU: MPS has none.
        own = np.concatenate(found), torch.cat(answers).double().numpy()
        rows, logits = (np.concatenate(parts) for parts in zip(*self._ranks.gathered(own)))
        place = {row: number for number, row in enumerate(itertools.chain(*batches))}
        order = np.argsort([place[row] for row in rows.tolist()])
        said = torch.log_softmax(torch.from_numpy(logits[order]), dim=1)
        return rows[order], said.numpy()

    def is_finite(self) -> bool:
        """Whether every weight and statistic of the network is."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._state().values())

    def _state(self) -> Tensors:
        tensors: Tensors = self.network.state_dict()
        return tensors

    def weights(self) -> Tensors:
        """The network's tensors by torchvision's names: copies, on the CPU."""
        return {
            name: value.to("cpu", copy=True).contiguous() for name, value in self._state().items()
        }

    def use(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put the weights of another epoch in the network's."""
        self.network.load_state_dict(dict(weights))

    def snapshot(self) -> Snapshot:
        """Everything that a step changes, on the CPU; to be saved before the next step."""
        weights = {f"network.{name}": value for name, value in self._state().items()}
        found = {**weights, **moments_of(self._optimizer)}
        tensors = {name: value.cpu().contiguous() for name, value in found.items()}
        return Snapshot(
            tensors=tensors, scaler=self._scaler.state_dict(), n_parts=self._gradients.n_parts
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where `snapshot` was taken."""
        self.use(snapshot.network)
        put_moments(self._optimizer, self._parameters, snapshot)
        if snapshot.scaler:
            self._scaler.load_state_dict(dict(snapshot.scaler))
        self._gradients.n_parts = snapshot.n_parts


@contextlib.contextmanager
def _naming_the_compiler() -> Iterator[None]:
    """Say of torch.compile's failures, which come with the first step, whose they are."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TrainingError(
            f"--compile: {str(error).splitlines()[0]}. Install what torch.compile needs here (a "
            "C++ compiler, on a GPU Triton), or start a new run without --compile."
        ) from error
