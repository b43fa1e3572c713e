"""A network up to its layers' pools, with everything that is fixed folded into its convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgfeat.architectures import LAYERS, family_of
from ecgfeat.backbones.weights import Weights, build_network
from ecgfeat.config import Tap
from ecgfeat.preprocessing import Preprocessing

__all__ = ["CENTRE", "Trunk", "build_trunk", "cell_spans", "pooled"]


CENTRE = np.uint8(128)
"""Taken off the pixels: exclusive-or with it turns 0..255 into the signed bytes -128..127."""


class Trunk(torch.nn.Module):
    """A network up to the last layer that a tap needs; it returns the taps by name, in float32.

    Its images have the four channels that `on_pixels` tells of. The maps handed from layer to
    layer may be overwritten by the next, so whatever is wanted of them is taken at once.
    """

    def __init__(
        self,
        stem: torch.nn.Sequential,
        layers: Mapping[str, torch.nn.Module],
        taps: Sequence[Tap],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layers = torch.nn.ModuleDict(layers)
        self.taps = tuple(taps)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pools of shape (b, width), by the tap's name, of images (b, 4, height, width)."""
        pools = {}
        for name, maps in self.maps(images):
            for tap in self.taps:
                if tap.layer == name:
                    pools[tap.name] = pooled(maps, tap)
        return pools

    def maps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and maps of each layer in turn."""
        maps = self.stem(images)  # (b, channels, height / 4, width / 4)
        for name, layer in self.layers.items():
            maps = layer(maps)  # (b, channels, …), halved by each layer after the first
            yield name, maps


def build_trunk(weights: Weights, preprocessing: Preprocessing, taps: Sequence[Tap]) -> Trunk:
    """A trunk in float32 on the CPU, in torch's plain memory layout."""
    network, family = build_network(weights.arch, weights.tensors).eval(), family_of(weights.arch)
    n_layers = 1 + max(LAYERS.index(tap.layer) for tap in taps)
    layers = {name: _in_order(network, family.stage(name)) for name in LAYERS[:n_layers]}
    trunk = Trunk(_in_order(network, family.stem), layers, taps)
    _fold_norms(trunk)
    trunk.stem[0] = _on_pixels(trunk.stem[0], preprocessing)
    return trunk


def _in_order(network: torch.nn.Module, parts: Sequence[str]) -> torch.nn.Sequential:
    return torch.nn.Sequential(*map(network.get_submodule, parts))


def _fold_norms(network: torch.nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place: y = γ(Wx − μ)/σ + β."""
    for parent in list(network.modules()):
        for (before, layer), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(layer, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(layer, norm))
                setattr(parent, name, torch.nn.Identity())


def _on_pixels(layer: torch.nn.Module, preprocessing: Preprocessing) -> torch.nn.Conv2d:
    """Fold the normalisation of 8-bit pixels p into the first convolution.

    (p/255 − mean) / std = (p − 128) / (255 std) + (128/255 − mean) / std

    The first term is fed with p − 128, a whole number that every precision holds exactly. The
    second is the same on all of the page, so it becomes the weight of a fourth channel, which is
    1 on the page. All four are 0 in the padding, where the normalised image is 0 as well: the
    fold is exact up to the border.

    Normalised pixels in bfloat16 would be off by up to 1/128, half a grey level, and on paper,
    which is nearly white, all in the same direction: on LUDB's pages that is four fifths of the
    error that bfloat16 makes in layer4 (1 − cosine at most 9e-4 with it, 2e-4 without).
    """
    assert isinstance(layer, torch.nn.Conv2d)
    weight, bias = layer.weight.double(), layer.get_parameter("bias")
    mean = torch.tensor(preprocessing.mean).double().view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std).double().view(1, 3, 1, 1)
    constant = (weight * (CENTRE / 255 - mean) / std).sum(1, keepdim=True)
    convolution = torch.nn.Conv2d(
        4,
        layer.out_channels,
        kernel_size=layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        device="meta",
    )
    tensors = {"weight": torch.cat([weight / (255 * std), constant], 1).float(), "bias": bias}
    convolution.load_state_dict(tensors, assign=True)
    return convolution


def pooled(maps: torch.Tensor, tap: Tap) -> torch.Tensor:
    """Pool each channel over the page, or in each cell of the tap's grid.

    Cells are those of torch's ``adaptive_avg_pool2d``: cell i of k over n pixels is from
    floor(i n / k) to ceil((i + 1) n / k), so that they share a row where k doesn't divide n. Its
    own kernels are not used: below float32 they round the result, and on MPS they refuse such n.

    Parameters
    ----------
    maps : Tensor of shape (b, channels, height, width)
    tap : Tap

    Returns
    -------
    Tensor of shape (b, n_cells × channels), float32
        Cell by cell, as one reads a page, each with all of its channels.
    """
    pool = POOLS[tap.pool]
    if tap.n_cells == 1:
        return pool(maps)
    # Copied, since the CPU pools what doesn't lie together up to ten times as slowly.
    height, width = maps.shape[2:]
    cells = [
        pool(maps[:, :, rows, columns].clone()) for rows, columns in cell_spans(tap, height, width)
    ]
    return torch.cat(cells, dim=1)


def cell_spans(tap: Tap, height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of a map that each cell of the tap's grid has, as one reads a page."""
    return [
        (rows, columns)
        for rows in _spans(height, tap.rows)
        for columns in _spans(width, tap.columns)
    ]


def _spans(n_px: int, n_cells: int) -> list[slice]:
    return [slice(i * n_px // n_cells, -(-(i + 1) * n_px // n_cells)) for i in range(n_cells)]


def _average(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean((2, 3), dtype=torch.float32)


def _maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps.amax((2, 3)).float()


def _standard_deviation(maps: torch.Tensor) -> torch.Tensor:
    """Of the pixels there are (divided by n). torch's own takes ten times as long on the CPU."""
    exact = maps.float()
    squares = (exact - exact.mean((2, 3), keepdim=True)).square_()
    return squares.mean((2, 3)).sqrt_()


POOLS = {"avg": _average, "max": _maximum, "std": _standard_deviation}
"""By a tap's `pool`; each takes maps (b, channels, height, width) to (b, channels), float32."""
