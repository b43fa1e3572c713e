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
from ecgfeat.finetuning.optimizing import freeze, make_optimizer, set_modes
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
        self._tell = tell
        self._n_parts = settings.accumulate
        self._weights: torch.Tensor | None = None
        if class_weights is not None:
            self._weights = torch.from_numpy(class_weights).to(self._device)
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
        self._trained = network
        if ranks.n_ranks > 1:
            self._trained = torch.nn.parallel.DistributedDataParallel(network)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the following steps."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def step(self, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> Step:
        """Move the weights once, by the mean loss over all processes' images.

        Where memory runs out, the images go through the network in twice as many parts, from then
        on. The gradient is the same, within rounding; only batch norm, where it is updated, takes
        its statistics from each part.

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
            When memory doesn't do for two images.
        """
        truth = torch.from_numpy(targets).to(self._device)
        own_weight = len(targets) if self._weights is None else float(self._weights[truth].sum())
        n_all, weight = self._ranks.totals(len(targets), own_weight)
        if n_all < 2:
            return Step()
        if not self.network.training:  # after an evaluation
            set_modes(self.network, self._settings)
        with repeatable_kernels(self._compute, allow_tf32=False):
            own_loss, own_right = self._gradients(pixels, truth, weight)
            self._move()
        loss, n_right = self._ranks.totals(own_loss, own_right)
        return Step(n_images=int(n_all), loss=loss / n_all, n_right=int(n_right))

    def _gradients(
        self, pixels: NDArray[np.uint8], truth: torch.Tensor, weight: float
    ) -> tuple[float, int]:
        """Backpropagate the images part by part; their summed loss, and how many are right."""
        while True:
            # A part that memory was too small for may have moved batch norm's statistics.
            buffers = [buffer.clone() for buffer in self.network.buffers()]
            try:
                return self._backpropagate(pixels, truth, weight)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(len(truth), error)
            with torch.no_grad():
                for buffer, before in zip(self.network.buffers(), buffers):
                    buffer.copy_(before)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _backpropagate(
        self, pixels: NDArray[np.uint8], truth: torch.Tensor, weight: float
    ) -> tuple[float, int]:
        self._optimizer.zero_grad()
        summed_loss, n_right = torch.zeros((), device=self._device), 0
        # Alone, no part has fewer than two images: batch norm has no statistics of one.
        n_parts = self._n_parts
        if self._ranks.n_ranks == 1:
            n_parts = min(n_parts, len(truth) // 2)
        edges = np.linspace(0, len(truth), n_parts + 1).astype(int).tolist()
        for number, (start, end) in enumerate(itertools.pairwise(edges), start=1):
            part = truth[start:end]
            with self._exchanging(number == n_parts), self._few(len(part)):
                logits = self._asking.logits(self._trained, pixels[start:end])
                losses = torch.nn.functional.cross_entropy(
                    logits,
                    part,
                    weight=self._weights,
                    label_smoothing=self._settings.label_smoothing,
                    reduction="sum",
                )
                # Processes' gradients are averaged, but are to be summed.
                share = losses * (self._ranks.n_ranks / weight)
                torch.autograd.backward(self._scaler.scale(share))
            with torch.no_grad():
                plain = torch.nn.functional.cross_entropy(logits, part, reduction="sum")
                summed_loss += plain
                n_right += int((logits.argmax(1) == part).sum())
        return summed_loss.item(), n_right

    def _exchanging(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged once a step, with its last part."""
        if isinstance(self._trained, torch.nn.parallel.DistributedDataParallel) and not is_last:
            return self._trained.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _few(self, n_images: int) -> Iterator[None]:
        """Let a process that has one image of a batch, or none, take part in the step.

        Its batch norms have nothing to take statistics from, and keep those they have.
        """
        idle = [
            module
            for module in self.network.modules()
            # Synchronised ones take all processes' images together.
            if n_images < 2 and isinstance(module, torch.nn.BatchNorm2d) and module.training
        ]
        for module in idle:
            module.eval()
        try:
            yield
        finally:
            for module in idle:
                module.train()

    def _halve(self, n_images: int, error: Exception) -> None:
        n_parts = 2 * self._n_parts
        if self._ranks.n_ranks > 1:
            raise TrainingError(
                "memory ran out in one of several processes. Start again with --resume on more "
                f"of them, or start a new run with --accumulate {n_parts}."
            ) from error
        if n_parts > n_images // 2:
            raise TrainingError(
                "memory ran out even with two images at a time. Take a smaller --size or --arch, "
                "or --freeze-to layer2."
            ) from error
        self._n_parts = n_parts
        self._tell(
            f"[Fine-Tuning] Out of memory: from now on each step's images go through the network "
            f"in {n_parts} parts"
        )

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
                n_parts = max(1, min(self._n_parts, len(batch.rows)))
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
        return Snapshot(tensors=tensors, scaler=self._scaler.state_dict(), n_parts=self._n_parts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where `snapshot` was taken."""
        self.use(snapshot.network)
        put_moments(self._optimizer, self._parameters, snapshot)
        if snapshot.scaler:
            self._scaler.load_state_dict(dict(snapshot.scaler))
        self._n_parts = snapshot.n_parts


def _is_out_of_memory(error: Exception) -> bool:
    # Only CUDA's has a kind of its own.
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        part in str(error) for part in words
    )
