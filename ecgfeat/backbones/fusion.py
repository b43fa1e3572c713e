"""A trunk for the CPU: weights packed once, ReLU and addition inside the convolutions.

What torch's own compiler does with a frozen network on the CPU, done by hand: it needs no C++
compiler and no minute of start-up. The operators are torch's, but not of its public interface;
where they are missing or refuse, the plain trunk serves, and every fused one is compared with it
before use (see `engine`).
"""

from __future__ import annotations

from typing import Any

import torch

from ecgfeat.backbones.trunk import Trunk

__all__ = ["Shape", "fused"]

Shape = tuple[int, int, int, int]
"""Of images or maps: (b, channels, height, width)."""


def fused(trunk: Trunk, images: Shape) -> Trunk | None:
    """The same trunk with its convolutions packed and fused; None where torch can't.

    Parameters
    ----------
    trunk : Trunk
        In the precision and memory layout that it will be computed in, on the CPU.
    images : tuple of 4 int
        Shape of the images to come. Others give the same numbers, but the weights are then
        packed anew for every batch.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        with torch.inference_mode():
            return _fused(trunk, images)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None


def _fused(trunk: Trunk, images: Shape) -> Trunk:
    first = _Convolution(trunk.stem[0], images, "relu")
    pool: Any = trunk.stem[2]
    maps = _shape_after(pool, first.shape, first.shape[1])
    layers = {}
    for name, blocks in trunk.layers.named_children():
        fused_blocks = []
        for block in blocks.children():
            fused_blocks.append(_Block(block, maps))
            maps = fused_blocks[-1].shape
        layers[name] = torch.nn.Sequential(*fused_blocks)
    return Trunk(torch.nn.Sequential(first, pool), layers.items(), trunk.taps)


class _Convolution(torch.nn.Module):
    """A convolution with packed weights, followed by ``"relu"`` or ``"none"``.

    Attributes
    ----------
    shape : tuple of 4 int
        Of what comes out.
    """

    def __init__(self, convolution: Any, maps: Shape, activation: str) -> None:
        super().__init__()
        self.shape = _shape_after(convolution, maps, convolution.out_channels)
        self._how = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            convolution.weight, *self._how, maps
        )
        self._bias = convolution.bias
        self._activation = activation

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        after: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, self._weight, self._bias, *self._how, self._activation, [], None
        )
        return after

    def onto(self, identity: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """relu(identity + convolution of `maps`), which takes the place of `identity`."""
        after: torch.Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            identity, maps, self._weight, self._bias, *self._how, "add", 1.0, "relu", [], None
        )
        return after


class _Block(torch.nn.Module):
    """A residual block; it overwrites its input where that is what is added at the end."""

    def __init__(self, block: Any, maps: Shape) -> None:
        super().__init__()
        shortcut = block.downsample
        self._shortcut = None if shortcut is None else _Convolution(shortcut[0], maps, "none")
        *others, last = (layer for name, layer in block.named_children() if name.startswith("conv"))
        first = []
        for layer in others:
            first.append(_Convolution(layer, maps, "relu"))
            maps = first[-1].shape
        self._first = torch.nn.Sequential(*first)
        self._last = _Convolution(last, maps, "none")
        self.shape = self._last.shape

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        identity = maps if self._shortcut is None else self._shortcut(maps)
        return self._last.onto(identity, self._first(maps))


def _shape_after(layer: Any, maps: Shape, channels: int) -> Shape:
    """Shape of what a convolution or a pooling makes of `maps`, by the formula in torch's docs."""
    how = map(_pair, (layer.padding, layer.dilation, layer.kernel_size, layer.stride))
    height, width = (
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for side, padding, dilation, kernel, stride in zip(maps[2:], *how)
    )
    return maps[0], channels, height, width


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
