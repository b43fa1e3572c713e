"""The frozen feature extractor, arranged to run as fast as the device allows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfeat.backbones.engine import CheckPages, Features, sound_engine, synthetic_pages
from ecgfeat.backbones.memory import free_device_memory, is_out_of_memory
from ecgfeat.backbones.networks import feature_width
from ecgfeat.backbones.trunk import build_trunk
from ecgfeat.backbones.weights import Weights
from ecgfeat.config import LAYERS, TAPS, parse_tap
from ecgfeat.errors import ConfigError, DeviceError
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute

__all__ = ["Backbone", "Lanes", "default_batch_size", "filled", "tap_widths"]

CPU_BATCH_SIZE = 4
"""With packed weights the smallest batch is nearly as fast as any, and 4 images of 224×224 stay
in a core's caches."""
DEVICE_BATCH_SIZE = 128
"""Enough to fill a GPU without asking for more than about 2 GiB of its memory."""
DEVICE_LANES = {"cuda": 2}
"""Batches at once on a device other than the CPU: on CUDA, one is copied while one is computed."""


def default_batch_size(compute: Compute) -> int:
    """Images per forward pass where no one asks for another number."""
    return CPU_BATCH_SIZE if compute.device == "cpu" else DEVICE_BATCH_SIZE


class Backbone:
    """A frozen ResNet that gives the pools of its layers that are asked for.

    Layers after the last one asked for are neither kept nor computed.

    Whatever isn't plain float32 on the CPU is used only after a self-check: a few pages are
    computed both ways, and the features must agree to `MIN_COSINE`.

    Parameters
    ----------
    weights : Weights
    preprocessing : Preprocessing
        What the pages are to be prepared by.
    compute : Compute
    taps : sequence of str
        Names as `ecgfeat.config.parse_tap` reads them; by default the averages of all four
        layers.
    batch_size : int, optional
        Images of most batches to come, for which the network is laid out.
    check : CheckPages, optional
        The self-check's pages; by default synthetic ones.

    Attributes
    ----------
    arch, weights_name, digest : str
        As in `Weights`.
    taps : mapping of str to int
        Width of each tap, by its name.

    Raises
    ------
    ConfigError
        When `taps` is empty or names what is none.
    DeviceError
        When the device fails the self-check even in float32.
    """

    def __init__(
        self,
        weights: Weights,
        preprocessing: Preprocessing,
        compute: Compute,
        *,
        taps: Sequence[str] = TAPS,
        batch_size: int = 0,
        check: CheckPages | None = None,
    ) -> None:
        if not taps:
            raise ConfigError("a backbone needs at least one tap, such as layer4; found none")
        self.arch = weights.arch
        self.weights_name = weights.name
        self.digest = weights.digest
        self.taps = tap_widths(weights.arch, taps)
        self._engine = sound_engine(
            build_trunk(weights, preprocessing, [parse_tap(name) for name in taps]),
            compute,
            (
                batch_size or default_batch_size(compute),
                4,
                preprocessing.height_px,
                preprocessing.width_px,
            ),
            check or synthetic_pages(preprocessing),
        )
        self._largest_batch: int | None = None
        self._lock = threading.Lock()

    @property
    def compute(self) -> Compute:
        """What is used: float32 where the precision asked for failed the self-check."""
        return self._engine.compute

    @property
    def largest_batch(self) -> int | None:
        """Images that the device's memory was found to hold at once; None while it held all."""
        return self._largest_batch

    def features(self, pixels: NDArray[np.uint8]) -> Features:
        """The taps of a batch of pages.

        An image's features depend neither on the batch's other images nor on its place among
        them. On the batch's size they may, by rounding: keep it fixed, and fill up the last one.
        Where the device's memory is too small for the batch, it is computed in halves.

        Parameters
        ----------
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8
            Prepared pages.

        Returns
        -------
        dict of str to ndarray of shape (b, width), float32
            By the tap's name. Not checked for NaN and infinity.

        Raises
        ------
        DeviceError
            When the memory doesn't even hold one image.
        """
        if not len(pixels):
            return {tap: np.empty((0, width), np.float32) for tap, width in self.taps.items()}
        while True:
            size = min(len(pixels), self._largest_batch or len(pixels))
            try:
                return _joined(
                    [self._engine.features(piece) for piece in _pieces(pixels, size)], len(pixels)
                )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            # Only here has the failed attempt let go of its memory.
            self._make_room(size, reason)

    def _make_room(self, size: int, reason: str) -> None:
        device = self.compute.device
        if device == "cpu":
            raise DeviceError(
                f"the memory is too small for a batch of {size}: take a smaller --batch-size or "
                f"--size, or fewer --threads ({reason})"
            )
        if size == 1:
            raise DeviceError(
                f"the memory of {device} is too small for a single image: take a smaller --size, "
                f"or --device cpu ({reason})"
            )
        free_device_memory(device)
        with self._lock:  # the other lane may have found out the same
            self._largest_batch = min(self._largest_batch or size, size // 2)

    @contextlib.contextmanager
    def lanes(self) -> Iterator[Lanes]:
        """Let several batches be computed at once, each in a thread of its own.

        On the CPU there are as many lanes as torch has threads, and each computes with one: they
        wait neither for one another nor, as threads of one computation do, for one that decoding
        an image has taken the core from. So the numbers don't depend on how many there are.
        """
        on_cpu = self.compute.device == "cpu"
        n_threads = torch.get_num_threads()
        n_lanes = n_threads if on_cpu else DEVICE_LANES.get(self.compute.device, 1)
        pool = ThreadPoolExecutor(
            n_lanes,
            thread_name_prefix="ecgfeat-lane",
            initializer=_begin_lane,
            initargs=(self.compute.device,),
        )
        try:
            # Held here too, since a lane that ends must not end it for the others.
            with self._engine.kernels():
                yield Lanes(backbone=self, n_lanes=n_lanes, pool=pool)
        finally:
            pool.shutdown(cancel_futures=True)
            if on_cpu:
                torch.set_num_threads(n_threads)  # each lane has set it for all new threads


@dataclass(frozen=True, kw_only=True, eq=False)
class Lanes:
    """Where batches are computed beside the caller; made by `Backbone.lanes`.

    Attributes
    ----------
    backbone : Backbone
    n_lanes : int
        Batches computed at once.
    pool : ThreadPoolExecutor
    """

    backbone: Backbone
    n_lanes: int
    pool: ThreadPoolExecutor

    def start(self, pixels: NDArray[np.uint8]) -> Future[Features]:
        """Begin `Backbone.features`, after the batches that were begun before."""
        return self.pool.submit(self.backbone.features, pixels)


def _begin_lane(device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


def tap_widths(arch: str, taps: Sequence[str] = TAPS) -> Mapping[str, int]:
    """Width of each tap's features, by its name: the layer's channels times the grid's cells.

    Raises
    ------
    ConfigError
        When a tap's name is none.
    """
    # Each layer of a ResNet is twice as wide as the one before.
    width = feature_width(arch)
    channels = {name: width >> (len(LAYERS) - 1 - i) for i, name in enumerate(LAYERS)}
    return {tap.name: channels[tap.layer] * tap.n_cells for tap in map(parse_tap, taps)}


def filled(pixels: NDArray[np.uint8], n_images: int) -> NDArray[np.uint8]:
    """A batch of `n_images`, filled up with black ones.

    The kernels that torch chooses depend on the batch's shape, and with them the last bits. A
    fixed shape makes an image's features independent of where in the data it stands.
    """
    missing = n_images - len(pixels)
    if not missing:
        return pixels
    return np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])


def _pieces(pixels: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    """Batches of `size` images each; the last is filled up with black ones."""
    pixels = filled(pixels, len(pixels) + -len(pixels) % size)
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]


def _joined(pieces: list[Features], n_images: int) -> Features:
    if len(pieces) == 1:
        return pieces[0]
    return {tap: np.concatenate([piece[tap] for piece in pieces])[:n_images] for tap in pieces[0]}
