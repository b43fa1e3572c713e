"""A trunk laid out for one device and precision, and whether it computes there what it should."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones.fusion import Shape, fused
from ecgfeat.backbones.kernels import memory_format, repeatable_kernels
from ecgfeat.backbones.trunk import CENTRE, Trunk
from ecgfeat.errors import DeviceError
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["CheckPages", "Engine", "Features", "sound_engine", "synthetic_pages"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_COSINE = 0.999
"""Least cosine, page by page and tap by tap, between a device's features and the CPU's
float32; the promise that ``--precision auto`` makes."""
CHECK_SIDE_PX = 256
"""The synthetic pages are at most this wide and high: a fraction of a second."""

Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckPages:
    """A few pages by which a precision or a device is judged.

    Attributes
    ----------
    given : ndarray of shape (b, height_px, width_px, 3), uint8
        Prepared as they will be for the network.
    exact : ndarray of the same shape, uint8
        The same pages, prepared as for float32.
    """

    given: NDArray[np.uint8]
    exact: NDArray[np.uint8]


class Engine:
    """A trunk laid out for one device and precision, fed with 8-bit pages."""

    def __init__(self, trunk: Trunk, compute: Compute, images: Shape, *, fuse: bool) -> None:
        self.compute = compute
        self.is_fused = False
        self._device = torch.device(compute.device)
        self._dtype = DTYPES[compute.precision]
        self._layout = memory_format(compute)
        laid_out = copy.deepcopy(trunk).to(self._device, self._dtype)
        self._trunk = laid_out.to(memory_format=self._layout)
        if fuse and compute.device == "cpu":
            faster = fused(self._trunk, images)
            self.is_fused = faster is not None
            self._trunk = faster or self._trunk

    def kernels(self) -> contextlib.AbstractContextManager[None]:
        """What CUDA may compute with."""
        # float32 is not to be TF32 in disguise, which rounds to 10 bits.
        return repeatable_kernels(self.compute, allow_tf32=self.compute.precision != "fp32")

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """Features of prepared pages (b, height_px, width_px, 3)."""
        with torch.inference_mode(), self.kernels():
            pools = self._trunk(self._images(pixels))
            # Joined, so that there is one copy to wait for.
            joined = torch.cat(list(pools.values()), dim=1).cpu().numpy()
        ends = np.cumsum([pool.shape[1] for pool in pools.values()])
        return dict(zip(pools, np.split(joined, ends[:-1], axis=1)))

    def _images(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """The four channels that the trunk wants, shape (b, 4, height, width)."""
        centred = torch.from_numpy((pixels ^ CENTRE).view(np.int8))
        if self.compute.device == "cuda":
            # From pinned memory the copy doesn't hold up this thread.
            centred = centred.pin_memory().to(self._device, non_blocking=True)
        images = torch.nn.functional.pad(centred, (0, 1), value=1).permute(0, 3, 1, 2)
        return images.to(self._device, self._dtype, memory_format=self._layout)


def sound_engine(trunk: Trunk, compute: Compute, images: Shape, check: CheckPages) -> Engine:
    """An engine whose features of the check's pages agree with the CPU's plain float32.

    Raises
    ------
    DeviceError
        When the device's float32 doesn't agree either.
    """
    exact = replace(compute, device="cpu", precision="fp32", channels_last=True)
    plain = Engine(trunk, exact, images, fuse=False)
    reference = plain.features(check.exact)
    while True:
        engine = Engine(trunk, compute, images, fuse=True)
        # Only float32 is given the pages as the reference is.
        pages = check.exact if compute.precision == "fp32" else check.given
        failing = _failing_tap(engine.features(pages), reference)
        if failing is None:
            return engine
        if compute.precision == "fp32":
            break
        reason = f"{compute.precision} failed the self-check: {failing}"
        compute = replace(compute, precision="fp32", reason=reason)
    if compute.device == "cpu":
        plain.compute = compute
        return plain
    raise DeviceError(
        f"the device {compute.device} computes other features than the CPU ({failing}). Take "
        "--device cpu, and look for a newer version of torch or of the device's driver."
    )


def _failing_tap(found: Features, reference: Features) -> str | None:
    """The first tap that isn't like its reference, with its cosine; None when all are."""
    for name, expected in reference.items():
        # In double precision, whose range the products of float32 can't leave.
        x, y = found[name].astype(np.float64), expected.astype(np.float64)
        with np.errstate(invalid="ignore"):
            cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        # Alike, though without a direction: the standard deviation in cells of a single pixel.
        cosines[~(x.any(axis=1) | y.any(axis=1))] = 1
        # Written so that NaN fails.
        if not cosines.min() >= MIN_COSINE:
            return f"cosine {cosines.min():.4f} to float32 at {name}"
    return None


def synthetic_pages(preprocessing: Preprocessing) -> CheckPages:
    """Two pages with grid and trace."""
    width = min(preprocessing.width_px, CHECK_SIDE_PX)
    height = min(preprocessing.height_px, CHECK_SIDE_PX)
    pages = np.full((2, height, width, 3), (255, 250, 245), dtype=np.uint8)
    pages[:, ::8] = pages[:, :, ::8] = (240, 180, 180)
    x = np.arange(width)
    for page, period_px in zip(pages, (17.0, 41.0)):
        beat = np.exp(-np.square((x % period_px) - period_px / 2) / 8)
        y = np.rint((0.8 - 0.6 * beat) * (height - 1)).astype(np.int64)
        page[y, x] = page[np.maximum(y - 1, 0), x] = (20, 20, 30)
    return CheckPages(given=pages, exact=pages)
