"""The gradient of a step's loss, made in as many parts as memory asks for."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones.memory import free_device_memory, is_out_of_memory
from ecgfeat.errors import TrainingError
from ecgfeat.finetuning.asking import Asking
from ecgfeat.finetuning.distributed import Ranks
from ecgfeat.finetuning.optimizing import Loss

__all__ = ["Gradients", "most_parts"]


def most_parts(n_images: int, n_ranks: int) -> int:
    """Into how many parts a step's images may go, so that none is too small for batch norm.

    Of each part some process then has two images. It depends on what all of them know: each makes
    as many parts, since synchronised statistics are exchanged part by part.
    """
    return max(1, n_images // (2 * n_ranks))


class Gradients:
    """Puts the gradient of a step's mean loss into a network's parameters.

    Parameters
    ----------
    network : Module
        The one that is called: with several processes, what puts their gradients together.
    asking : Asking
    loss : Loss
    scaler : GradScaler
    n_parts : int
        Parts in which a step's images go through the network, one after another.
    ranks : Ranks
    tell : callable
        Told a line for people when memory has run out.

    Attributes
    ----------
    n_parts : int
        Doubled where memory runs out.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        asking: Asking,
        loss: Loss,
        scaler: torch.amp.GradScaler,
        *,
        n_parts: int,
        ranks: Ranks,
        tell: Callable[[str], None],
    ) -> None:
        self._network = network
        self._asking = asking
        self._loss = loss
        self._scaler = scaler
        self._ranks = ranks
        self._tell = tell
        self.n_parts = n_parts

    def make(
        self, pixels: NDArray[np.uint8], truth: torch.Tensor, *, n_all: int, weight: float
    ) -> tuple[float, int]:
        """Backpropagate this process's share of a step's images.

        Where memory runs out, it is done again in twice as many parts, as from then on. The
        gradient is the same, within rounding; only batch norm, where it is updated, takes its
        statistics from each part.

        Parameters
        ----------
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8
        truth : Tensor of shape (b,), int64
            On the device.
        n_all, weight : int, float
            The images of all processes, and what their summed loss is divided by.

        Returns
        -------
        summed_loss : float
            Plain cross-entropy of this process's images.
        n_right : int

        Raises
        ------
        TrainingError
            When memory doesn't do for two images, or runs out in one of several processes.
        """
        most = most_parts(n_all, self._ranks.n_ranks)
        while True:
            n_parts = min(self.n_parts, most)
            # A part that memory was too small for may have moved batch norm's statistics.
            buffers = [buffer.clone() for buffer in self._network.buffers()]
            try:
                return self._make(pixels, truth, weight, n_parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_hopeless(n_parts, most, error)
            # Not before: the error holds on to what was computed.
            with torch.no_grad():
                for buffer, before in zip(self._network.buffers(), buffers):
                    buffer.copy_(before)
            free_device_memory(self._asking.device.type)
            self.n_parts = min(2 * n_parts, most)
            self._tell(
                "[Fine-Tuning] Out of memory: from now on each step's images go through the "
                f"network in {self.n_parts} parts"
            )

    def _refuse_hopeless(self, n_parts: int, most: int, error: Exception) -> None:
        if n_parts == most:
            raise TrainingError(
                "memory ran out even with two images at a time. Take a smaller --size or --arch, "
                "or --freeze-to layer2."
            ) from error
        if self._ranks.n_ranks > 1:
            # The others are waiting within the step, and can't be told to begin it again.
            raise TrainingError(
                "memory ran out in one of several processes. Start again with --resume on more "
                f"of them, or start a new run with --accumulate {2 * n_parts}."
            ) from error

    def _make(
        self, pixels: NDArray[np.uint8], truth: torch.Tensor, weight: float, n_parts: int
    ) -> tuple[float, int]:
        self._network.zero_grad()
        summed_loss, n_right = torch.zeros((), device=self._asking.device), 0
        edges = np.linspace(0, len(truth), n_parts + 1).astype(int).tolist()
        for number, (start, end) in enumerate(itertools.pairwise(edges), start=1):
            part = truth[start:end]
            with self._exchanging(number == n_parts), self._few(len(part)):
                logits = self._asking.logits(self._network, pixels[start:end])
                # Processes' gradients are averaged, but are to be summed.
                share = self._loss.summed(logits, part) * (self._ranks.n_ranks / weight)
                torch.autograd.backward(self._scaler.scale(share))
            with torch.no_grad():
                summed_loss += torch.nn.functional.cross_entropy(logits, part, reduction="sum")
                n_right += int((logits.argmax(1) == part).sum())
        return summed_loss.item(), n_right

    def _exchanging(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged once a step, with its last part."""
        if isinstance(self._network, torch.nn.parallel.DistributedDataParallel) and not is_last:
            return self._network.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _few(self, n_images: int) -> Iterator[None]:
        """Let a process that has one image of a part, or none, take part in the step.

        Its batch norms have nothing to take statistics from, and keep those they have.
        """
        idle = [
            module
            for module in self._network.modules()
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
