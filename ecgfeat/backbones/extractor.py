"""The frozen feature extractor, arranged to run as fast as the device allows."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgfeat.architectures import LAYERS, family_of
from ecgfeat.backbones.weights import Weights, build_network
from ecgfeat.config import TAPS, PageSettings, Tap, parse_tap
from ecgfeat.errors import ConfigError, DeviceError
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import (
    Compute,
    free_device_memory,
    is_out_of_memory,
    memory_format,
    repeatable_kernels,
)

__all__ = [
    "CENTRE",
    "Backbone",
    "CheckPages",
    "Features",
    "Lanes",
    "Trunk",
    "build_trunk",
    "cell_spans",
    "default_batch_size",
    "filled",
    "pooled",
    "tap_widths",
]


CPU_BATCH_PX, CPU_BATCH_SIZE = 400_000, 8
"""Pixels of a batch on the CPU, and images at most: 8 of 224×224, 3 of 448×320, 1 of 896×640. So
many stay in a core's caches; fewer are slower for want of work, more up to 1.5 times as slow."""
DEVICE_BATCH_SIZE = 128
"""Enough to fill a GPU without asking for more than about 2 GiB of its memory."""
DEVICE_LANES = {"cuda": 2}
"""Batches at once on a device other than the CPU: on CUDA, one is copied while one is computed."""


def default_batch_size(compute: Compute, page: PageSettings | Preprocessing) -> int:
    """Images per forward pass where no one asks for another number."""
    if compute.device != "cpu":
        return DEVICE_BATCH_SIZE
    n_images = round(CPU_BATCH_PX / (page.width_px * page.height_px))
    return min(max(1, n_images), CPU_BATCH_SIZE)


class Backbone:
    """A frozen network that gives the pools of its layers that are asked for.

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

    def maps(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The maps of every layer up to the last one that a tap needs, by the layer's name.

        What `features` are the pools of.

        Parameters
        ----------
        pixels : ndarray of shape (b, height_px, width_px, 3), uint8

        Returns
        -------
        dict of str to ndarray of shape (b, channels, height, width), float32
        """
        return self._engine.maps(pixels)

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
    width = family_of(arch).widths[arch]
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

    def __init__(self, trunk: Trunk, compute: Compute) -> None:
        self.compute = compute
        self._device = torch.device(compute.device)
        self._dtype = DTYPES[compute.precision]
        self._layout = memory_format(compute)
        laid_out = copy.deepcopy(trunk).to(self._device, self._dtype)
        self._trunk = laid_out.to(memory_format=self._layout)

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

    def maps(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The layers' maps of prepared pages."""
        with torch.inference_mode(), self.kernels():
            # Copied, since the next layer may write over them.
            return {
                name: maps.to("cpu", torch.float32, copy=True).numpy()
                for name, maps in self._trunk.maps(self._images(pixels))
            }

    def _images(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """The four channels that the trunk wants, shape (b, 4, height, width)."""
        centred = torch.from_numpy((pixels ^ CENTRE).view(np.int8))
        if self.compute.device == "cuda":
            # From pinned memory the copy doesn't hold up this thread.
            centred = centred.pin_memory().to(self._device, non_blocking=True)
        images = torch.nn.functional.pad(centred, (0, 1), value=1).permute(0, 3, 1, 2)
        return images.to(self._device, self._dtype, memory_format=self._layout)


def sound_engine(trunk: Trunk, compute: Compute, check: CheckPages) -> Engine:
    """An engine whose features of the check's pages agree with the CPU's plain float32.

    Raises
    ------
    DeviceError
        When the device's float32 doesn't agree either.
    """
    if (compute.device, compute.precision) == ("cpu", "fp32"):
        return Engine(trunk, compute)
    exact = Engine(trunk, replace(compute, device="cpu", precision="fp32", channels_last=True))
    reference = exact.features(check.exact)
    engine = Engine(trunk, compute)
    # Only float32 is given the pages as the reference is.
    pages = check.exact if compute.precision == "fp32" else check.given
    failing = _failing_tap(engine.features(pages), reference)
    if failing is None:
        return engine
    if compute.precision != "fp32":
        reason = f"{compute.precision} failed the self-check: {failing}"
        return sound_engine(trunk, replace(compute, precision="fp32", reason=reason), check)
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


# The network up to its layers' pools, with everything that is fixed folded into its convolutions


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
