"""The network being trained: a step, what it says of images, and its state."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from ecgfeat.architectures import FAMILIES
from ecgfeat.config import FinetuneSettings
from ecgfeat.errors import TrainingError
from ecgfeat.finetuning.distributed import ALONE, Ranks
from ecgfeat.images import Alter, Batch, Failure, Remarks, stream
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.protocol import Partition, Task
from ecgfeat.runtime import (
    Compute,
    free_device_memory,
    is_out_of_memory,
    memory_format,
    repeatable_kernels,
)

__all__ = [
    "Asking",
    "Batches",
    "Gradients",
    "Images",
    "Loss",
    "Schedule",
    "Snapshot",
    "Step",
    "Tensors",
    "Tick",
    "Trainer",
    "balanced_weights",
    "consecutive_batches",
    "freeze",
    "ignore",
    "make_optimizer",
    "moments_of",
    "put_moments",
    "set_modes",
    "shuffled_batches",
]


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
        network = ranks.with_joint_statistics(network, compute.device)
        freeze(network, settings)
        set_modes(network, settings)
        self.network = network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(self._parameters, settings)
        self._scaler = torch.amp.GradScaler(compute.device, enabled=self._asking.is_scaled)
        if settings.compile:
            network.compile()
        self._gradients = Gradients(
            ranks.with_joint_gradients(network),
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
        rows, logits = self._asked(images, batches, tick, self._asking.logits)
        said = torch.log_softmax(torch.from_numpy(logits), dim=1)
        return rows, said.numpy()

    def features(
        self, images: Images, batches: Batches, tick: Tick, *, parts: Sequence[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Averages of what some parts of the network give, side by side, in evaluation mode.

        Returns
        -------
        rows : ndarray of shape (m,), int64
            As of `log_probabilities`.
        features : ndarray of shape (m, width), float32
        """

        def ask(network: torch.nn.Module, pixels: NDArray[np.uint8]) -> torch.Tensor:
            return self._asking.averages(parts, network, pixels)

        rows, features = self._asked(images, batches, tick, ask)
        return rows, features.astype(np.float32)

    def _asked(
        self,
        images: Images,
        batches: Batches,
        tick: Tick,
        ask: Callable[[torch.nn.Module, NDArray[np.uint8]], torch.Tensor],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What is found of the images in evaluation mode, shape (m, …), and their rows."""
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
                    ask(self.network, pixels).cpu()
                    for pixels in np.array_split(batch.pixels, n_parts)
                ]
                found.append(batch.rows)
            tick(sum(len(rows) for rows in batches))
        # Double precision only once on the CPU: MPS has none.
        own = np.concatenate(found), torch.cat(answers).double().numpy()
        rows, values = (np.concatenate(parts) for parts in zip(*self._ranks.gathered(own)))
        place = {row: number for number, row in enumerate(itertools.chain(*batches))}
        order = np.argsort([place[row] for row in rows.tolist()])
        return rows[order], values[order]

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


Batches = list[list[int]]
"""Row numbers, batch by batch."""
Tick = Callable[[int], None]
"""Told how many images are behind; may raise `Interrupted`."""


def shuffled_batches(
    rows: NDArray[np.int64], batch_size: int, *, seed: int, fold: int, epoch: int
) -> Batches:
    """Every row once, in an order that seed, fold and epoch alone decide.

    A single row left over joins the batch before it: batch norm has no statistics of one image.
    """
    order = np.random.default_rng((seed, fold, epoch)).permutation(rows)
    batches = consecutive_batches(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def consecutive_batches(rows: NDArray[np.int64], batch_size: int) -> Batches:
    """The rows in the order given, cut into batches."""
    return [rows[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The images to be streamed, and a note of those that can't be decoded.

    Attributes
    ----------
    paths : sequence of Path, length n
    targets : ndarray of shape (n,), int64
    preprocessing : Preprocessing
    threads : int
        Threads that decode.
    failures : dict of int to Failure
        By row; filled as such images are met.
    remarks : Remarks
        Filled likewise.
    ranks : Ranks
        Each process decodes its own share of every batch.
    """

    paths: Sequence[Path]
    targets: NDArray[np.int64]
    preprocessing: Preprocessing
    threads: int
    failures: dict[int, Failure]
    remarks: Remarks = field(default_factory=Remarks)
    ranks: Ranks = ALONE

    def stream(
        self, batches: Batches, tick: Tick, *, alter: Alter | None = None
    ) -> Generator[Batch]:
        """Decode `batches` in order, calling `tick` before each is handed out."""
        n_behind = 0
        shares = (self.ranks.share(rows) for rows in batches)
        decoded = stream(self.paths, shares, self.preprocessing, threads=self.threads, alter=alter)
        with contextlib.closing(decoded):
            for rows, batch in zip(batches, decoded):
                self.failures.update((failure.row, failure) for failure in batch.failures)
                self.remarks.take_in(batch)
                tick(n_behind)
                yield batch
                n_behind += len(rows)


MOMENTUM = 0.9
"""Of stochastic gradient descent, as the ResNets themselves were trained (He et al. 2016)."""
BATCH_NORMS = (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: FinetuneSettings
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD; its rate is set later."""
    decay = settings.weight_decay
    # Fused: one pass over memory. On two cores that is a fifth of the default's time.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=MOMENTUM, weight_decay=decay, fused=True
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=0.0, weight_decay=decay, fused=True)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step.

    It rises evenly over the first steps (Goyal et al. 2017), and is then held, or falls to 0 on
    half a cosine (Loshchilov & Hutter 2017).

    Attributes
    ----------
    settings : FinetuneSettings
    lr : float
        The highest rate.
    n_steps : int
        Of the whole training, all epochs together.
    """

    settings: FinetuneSettings
    lr: float
    n_steps: int

    @property
    def n_warmup(self) -> int:
        """How many steps the rate rises; the one after them is the first at its height."""
        return round(self.settings.warmup * self.n_steps)

    @property
    def is_constant(self) -> bool:
        """Whether every step has the same rate."""
        return self.settings.schedule == "constant" and not self.n_warmup

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.n_warmup:
            return self.lr * (step + 1) / (self.n_warmup + 1)
        if self.settings.schedule == "constant":
            return self.lr
        done = (step - self.n_warmup) / max(1, self.n_steps - self.n_warmup)
        return self.lr * (1 + math.cos(math.pi * done)) / 2


class Loss:
    """Cross-entropy, its targets smoothed and its classes weighted as the settings say.

    Parameters
    ----------
    settings : FinetuneSettings
    class_weights : ndarray of shape (n_classes,), float32, or None
        How much each class counts; None for equally.
    device : torch.device
    """

    def __init__(
        self,
        settings: FinetuneSettings,
        class_weights: NDArray[np.float32] | None,
        device: torch.device,
    ) -> None:
        self._smoothing = settings.label_smoothing
        self._class_weights: torch.Tensor | None = None
        if class_weights is not None:
            self._class_weights = torch.from_numpy(class_weights).to(device)

    def weight(self, truth: torch.Tensor) -> float:
        """What the summed loss of some images is divided by for its mean."""
        if self._class_weights is None:
            return len(truth)
        return float(self._class_weights[truth].sum())

    def summed(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss summed over images; `truth` of shape (b,), int64."""
        return torch.nn.functional.cross_entropy(
            logits,
            truth,
            weight=self._class_weights,
            label_smoothing=self._smoothing,
            reduction="sum",
        )


def balanced_weights(task: Task, part: Partition) -> NDArray[np.float32]:
    """Weight of each class, n / (k · n_class) over the training rows, shape (k,)."""
    n_rows = np.bincount(task.targets[part.train], minlength=len(task.classes))
    return (len(part.train) / (len(task.classes) * n_rows)).astype(np.float32)


def freeze(network: torch.nn.Module, settings: FinetuneSettings) -> None:
    """Take the weights up to and including a layer out of training."""
    for name in _frozen(network, settings):
        for parameter in network.get_submodule(name).parameters():
            parameter.requires_grad_(False)


def set_modes(network: torch.nn.Module, settings: FinetuneSettings) -> None:
    """Put a network in training mode, all but the batch norms whose statistics are to stay."""
    network.train()
    kept = _frozen(network, settings) if settings.batch_norm == "update" else [""]
    for name in kept:
        for module in network.get_submodule(name).modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


def _frozen(network: torch.nn.Module, settings: FinetuneSettings) -> list[str]:
    """Names of the parts up to the layer that is frozen to."""
    if settings.freeze_to == "none":
        return []
    names = {name for name, _ in network.named_modules()}
    family = next(family for family in FAMILIES if family.stem[0] in names)
    return list(family.up_to(settings.freeze_to))


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
        most = self._ranks.most_parts(n_all)
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
        if self._ranks.are_several:
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


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Everything that a step changes, on the CPU.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        ``network.<name>`` and ``optimizer.<number of the parameter>.<name>``.
    scaler : mapping of str to float
        The loss scaler's state; empty where the loss isn't scaled.
    n_parts : int
        Parts in which a step's images go through the network.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scaler: Mapping[str, float] = field(default_factory=dict)
    n_parts: Annotated[int, Meta(ge=1)] = 1

    @property
    def network(self) -> Tensors:
        """The network's own tensors."""
        return _under("network.", self.tensors)


def moments_of(optimizer: torch.optim.Optimizer) -> Tensors:
    """What an optimiser remembers, as in `Snapshot.tensors`."""
    return {
        f"optimizer.{number}.{key}": value
        for number, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }


def put_moments(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], snapshot: Snapshot
) -> None:
    """Let an optimiser of `parameters` remember what `moments_of` gave."""
    slots: dict[int, Tensors] = {}
    for name, value in _under("optimizer.", snapshot.tensors).items():
        number, _, key = name.partition(".")
        parameter = parameters[int(number)]
        # A moment lies in memory as its parameter does: the optimiser's kernels expect it.
        like = parameter if value.shape == parameter.shape else value
        slots.setdefault(int(number), {})[key] = torch.empty_like(like, requires_grad=False).copy_(
            value
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


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

    def averages(
        self, parts: Sequence[str], network: torch.nn.Module, pixels: NDArray[np.uint8]
    ) -> torch.Tensor:
        """Averages over the maps that some parts give, in float32, shape (b, width).

        `parts` are names in the order of the network.
        """
        found: list[torch.Tensor] = []

        def keep(_: torch.nn.Module, given: object, maps: torch.Tensor) -> None:
            found.append(maps.float().mean((2, 3)))

        with contextlib.ExitStack() as hooks, self._autocasting():
            for part in parts:
                hooks.enter_context(network.get_submodule(part).register_forward_hook(keep))
            network.forward(self._normalised(pixels))  # what is compiled passes hooks by
        return torch.cat(found, dim=1)

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
