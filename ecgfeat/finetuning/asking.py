"""From prepared pages to a network's logits, on one device and in one precision."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones import memory_format
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["Asking"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Asking:
    """How pages are put to a network.

    Parameters
    ----------
    preprocessing : Preprocessing
        Mean and standard deviation of the pixels.
    compute : Compute

    Attributes
    ----------
    device : torch.device
    layout : torch.memory_format
        Of images and weights.
    is_scaled : bool
        Whether gradients would underflow unless the loss is scaled up (Micikevicius et al. 2018).
    """

    def __init__(self, preprocessing: Preprocessing, compute: Compute) -> None:
        self.device = torch.device(compute.device)
        self.layout = memory_format(compute)
        self.is_scaled = compute.precision == "fp16"
        self._autocast = AUTOCAST.get(compute.precision)
        self._mean = torch.tensor(preprocessing.mean, device=self.device)
        self._std = torch.tensor(preprocessing.std, device=self.device)

    def logits(self, network: torch.nn.Module, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Logits in float32, shape (b, n_classes), whatever the network is computed in.

        Parameters
        ----------
        network : Module
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8
        """
        with self._autocasting():
            logits: torch.Tensor = network(self._normalised(pixels))
        return logits.float()

    def _autocasting(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def _normalised(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        b, height, width, _ = pixels.shape
        # Whole rows at once: broadcasting over three channels is ten times slower on the CPU.
        rows = torch.from_numpy(pixels).to(self.device).view(b, height, width * 3).float()
        rows.div_(255).sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        images = rows.view(b, height, width, 3).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self.layout)
