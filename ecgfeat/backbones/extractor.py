"""The frozen feature extractor, arranged to run as fast as the device allows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgfeat.backbones.kernels import memory_format, repeatable_kernels
from ecgfeat.backbones.networks import build_network, feature_width
from ecgfeat.backbones.weights import Weights, load_weights
from ecgfeat.config import TAPS, NetworkSettings
from ecgfeat.errors import DeviceError
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["Backbone", "load_backbone"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_COSINE = 0.999
"""Least cosine, page by page and layer by layer, between a device's features and the CPU's
float32; the promise that ``--precision auto`` makes."""
CENTRE = np.uint8(128)
"""Taken off the pixels: exclusive-or with it turns 0..255 into the signed bytes -128..127."""
CHECK_SIDE_PX = 256
"""The self-check's pages are at most this wide and high: it takes a fraction of a second."""

Features = dict[str, NDArray[np.float32]]


def load_backbone(
    settings: NetworkSettings, preprocessing: Preprocessing, compute: Compute
) -> Backbone:
    """Make a backbone of the weights asked for.

    Raises
    ------
    WeightsError
        When the weights can't be had or don't fit.
    DeviceError
        When the device fails the self-check even in float32.
    """
    return Backbone(load_weights(settings), preprocessing, compute)


class Backbone:
    """A frozen ResNet that gives the average pools of its four layers.

    A precision below float32, and any device but the CPU, is used only after a self-check: two
    synthetic pages are computed both ways, and the features must agree to `MIN_COSINE`.

    Parameters
    ----------
    weights : Weights
    preprocessing : Preprocessing
    compute : Compute

    Attributes
    ----------
    arch, weights_name, digest : str
        As in `Weights`.
    taps : mapping of str to int
        Width of each layer's pool, by the layer's name.
    preprocessing : Preprocessing
        What the pages are to be prepared by.

    Raises
    ------
    DeviceError
        When the device fails the self-check even in float32.
    """

    def __init__(self, weights: Weights, preprocessing: Preprocessing, compute: Compute) -> None:
        self.arch = weights.arch
        self.weights_name = weights.name
        self.digest = weights.digest
        self.preprocessing = preprocessing
        self.taps: Mapping[str, int] = _tap_widths(weights.arch)
        network = _folded(build_network(weights.arch, weights.tensors).eval())
        network.conv1 = _on_pixels(network.get_submodule("conv1"), preprocessing)
        pages = _check_pages(preprocessing)
        self._engine = _sound_engine(_Trunk(network), compute, pages)

    @property
    def compute(self) -> Compute:
        """What is used: float32 where the precision asked for failed the self-check."""
        return self._engine.compute

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """Average-pooled output of every layer.

        An image's features depend neither on the batch's other images nor on its place among
        them. On the batch's size they may, by rounding: keep it fixed, and fill up the last one.

        Parameters
        ----------
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8
            Prepared pages.

        Returns
        -------
        dict of str to ndarray of shape (b, width), float32
            By the layer's name. Not checked for NaN and infinity.
        """
        return self._engine.features(pixels)


class _Trunk(torch.nn.Module):
    """A ResNet up to the average pools of its layers, which it returns by name, in float32."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        stem = ("conv1", "bn1", "relu", "maxpool")
        self.stem = torch.nn.Sequential(*(network.get_submodule(name) for name in stem))
        self.layers = torch.nn.ModuleDict({name: network.get_submodule(name) for name in TAPS})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.stem(images)  # (b, 64, height / 4, width / 4)
        pools = {}
        for name, layer in self.layers.items():
            maps = layer(maps)  # (b, width, …), halved by each layer after the first
            pools[name] = maps.mean((2, 3), dtype=torch.float32)
        return pools


class _Engine:
    """A trunk laid out for one device and precision, fed with 8-bit pages."""

    def __init__(self, trunk: _Trunk, compute: Compute) -> None:
        self.compute = compute
        self._device = torch.device(compute.device)
        self._dtype = DTYPES[compute.precision]
        self._layout = memory_format(compute)
        laid_out = copy.deepcopy(trunk).to(self._device, self._dtype)
        self._trunk = laid_out.to(memory_format=self._layout)

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        # float32 is not to be TF32 in disguise, which rounds to 10 bits.
        kernels = repeatable_kernels(self.compute, allow_tf32=self.compute.precision != "fp32")
        with torch.inference_mode(), kernels:
            pools = self._trunk(self._images(pixels))
            return {name: pool.cpu().numpy() for name, pool in pools.items()}

    def _images(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """The four channels that `_on_pixels` wants, shape (b, 4, height, width)."""
        centred = torch.from_numpy((pixels ^ CENTRE).view(np.int8)).to(self._device)
        page = torch.ones_like(centred[..., :1])
        images = torch.cat([centred, page], dim=3).permute(0, 3, 1, 2)
        return images.to(self._dtype, memory_format=self._layout)


def _tap_widths(arch: str) -> dict[str, int]:
    # Each layer of a ResNet is twice as wide as the one before.
    width = feature_width(arch)
    return {name: width >> (len(TAPS) - 1 - i) for i, name in enumerate(TAPS)}


def _folded(network: torch.nn.Module) -> torch.nn.Module:
    """Fold every batch norm into the convolution before it, in place: y = γ(Wx − μ)/σ + β."""
    for parent in list(network.modules()):
        for (before, layer), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(layer, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, before, fuse_conv_bn_eval(layer, norm))
                setattr(parent, name, torch.nn.Identity())
    return network


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
    weight, bias = layer.get_parameter("weight").double(), layer.get_parameter("bias")
    mean = torch.tensor(preprocessing.mean).double().view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std).double().view(1, 3, 1, 1)
    constant = (weight * (CENTRE / 255 - mean) / std).sum(1, keepdim=True)
    convolution = torch.nn.Conv2d(4, 64, kernel_size=7, stride=2, padding=3, device="meta")
    tensors = {"weight": torch.cat([weight / (255 * std), constant], 1).float(), "bias": bias}
    convolution.load_state_dict(tensors, assign=True)
    return convolution


def _sound_engine(trunk: _Trunk, compute: Compute, pages: NDArray[np.uint8]) -> _Engine:
    """An engine whose features of `pages` agree with the CPU's in float32.

    Raises
    ------
    DeviceError
        When the device's float32 doesn't agree either.
    """
    engine = _Engine(trunk, compute)
    if (compute.device, compute.precision) == ("cpu", "fp32"):
        return engine
    exact = replace(compute, device="cpu", precision="fp32", channels_last=True)
    failing = _failing_layer(engine.features(pages), _Engine(trunk, exact).features(pages))
    if failing is None:
        return engine
    if compute.precision != "fp32":
        reason = f"{compute.precision} failed the self-check: {failing}"
        return _sound_engine(trunk, replace(compute, precision="fp32", reason=reason), pages)
    raise DeviceError(
        f"the device {compute.device} computes other features than the CPU ({failing}). Take "
        "--device cpu, and look for a newer version of torch or of the device's driver."
    )


def _failing_layer(found: Features, reference: Features) -> str | None:
    """The first layer that isn't like its reference, with its cosine; None when all are."""
    for name, expected in reference.items():
        # In double precision, whose range the products of float32 can't leave.
        x, y = found[name].astype(np.float64), expected.astype(np.float64)
        with np.errstate(invalid="ignore"):
            cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        # Written so that NaN fails.
        if not cosines.min() >= MIN_COSINE:
            return f"cosine {cosines.min():.4f} to float32 at {name}"
    return None


def _check_pages(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Two pages with grid and trace, shape (2, height, width, 3)."""
    width = min(preprocessing.width_px, CHECK_SIDE_PX)
    height = min(preprocessing.height_px, CHECK_SIDE_PX)
    pages = np.full((2, height, width, 3), (255, 250, 245), dtype=np.uint8)
    pages[:, ::8] = pages[:, :, ::8] = (240, 180, 180)
    x = np.arange(width)
    for page, period_px in zip(pages, (17.0, 41.0)):
        beat = np.exp(-np.square((x % period_px) - period_px / 2) / 8)
        y = np.rint((0.8 - 0.6 * beat) * (height - 1)).astype(np.int64)
        page[y, x] = page[np.maximum(y - 1, 0), x] = (20, 20, 30)
    return pages
