"""What a job runs on: device, precision, threads and versions; how it reports, and is shown.

Standard library only; torch is imported inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import html
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, TextIO

from ecgfeat.config import ComputeSettings
from ecgfeat.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame

__all__ = [
    "Compute",
    "Pace",
    "Progress",
    "Report",
    "as_frame",
    "control_groups",
    "free_device_memory",
    "html_table",
    "is_out_of_memory",
    "machine",
    "memory_format",
    "n_cpus",
    "peak_memory_mib",
    "progress",
    "repeatable_kernels",
    "resolve_compute",
    "silent",
    "stage_in_words",
    "supported_precisions",
    "versions",
]

MAX_THREADS = 32
"""Decoding threads taken by default at most: 32 decode 2,000 scanned pages of 2200×1700 a second,
and small images fewer threads than that, whose turns at Python's lock are what one waits for."""
CLEARLY_FASTER = 1.3
"""Speed over float32 from which a lower precision is worth its rounding."""
PACKAGES = (
    "ecgfeat",
    "torch",
    "torchvision",
    "numpy",
    "h5py",
    "scikit-learn",
    "pillow",
    "simplejpeg",
    "safetensors",
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a running job.

    Attributes
    ----------
    stage : str
        What is being done: ``"extracting"``, ``"fitting"``, ``"training"``, ``"testing"``.
    done, total : int
        In `unit`; `total` is 0 where it isn't a count.
    unit : str
    message : str
        A log line for people; empty for a mere tick.
    detail : str
        What stands beside the count, such as the loss; may be empty.
    """

    stage: str
    done: int
    total: int
    unit: str = "images"
    message: str = ""
    detail: str = ""


Report = Callable[[Progress], None]
"""Called in the job's own thread, between batches; may raise `Interrupted` to stop it there."""


def silent(progress: Progress) -> None:
    """The report that says nothing."""


LEAST_S = 0.1
"""A pace is told after so many seconds: by less it could be any."""


class Pace:
    """How fast a stage of a job goes, from one report of it to the next."""

    def __init__(self) -> None:
        self._stage = ""
        self._started_s = 0.0
        self._first_done = 0

    def begins(self, told: Progress) -> bool:
        """Whether the report is the first of a stage, from which its pace is counted."""
        if told.stage == self._stage:
            return False
        self._stage, self._first_done = told.stage, told.done
        self._started_s = time.monotonic()
        return True

    def has_moved(self, told: Progress) -> bool:
        """Whether anything was done since the stage's first report."""
        return told.done != self._first_done

    def in_words(self, told: Progress) -> str:
        """Such as ``extracting 320/450 images, 48.1 images/s, 0:02 left``."""
        words = f"{stage_in_words(told)} {told.done}/{told.total} {told.unit}"
        if told.done == told.total:
            self._stage = ""  # one of the same name begins anew
        seconds = time.monotonic() - self._started_s
        if seconds < LEAST_S or not self.has_moved(told):
            return words
        rate = (told.done - self._first_done) / seconds
        left_s = (told.total - told.done) / rate
        return f"{words}, {rate:.1f} {told.unit}/s, {_clock(left_s)} left"


def stage_in_words(told: Progress) -> str:
    """The stage, and what stands beside the count."""
    return f"{told.stage} ({told.detail})" if told.detail else told.stage


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


REDRAWN_S = 0.2
"""A line is written again no sooner."""


def progress(stream: TextIO | None = None) -> Report:
    """A report for notebooks and scripts: one line with rate and time left, written over itself.

    Parameters
    ----------
    stream : text stream, optional
        By default stderr.

    Examples
    --------
    >>> ecgfeat.extract("pages", report=ecgfeat.progress())  # doctest: +SKIP
    extracting 450/450 images, 48.1 images/s, 0:00 left
    """
    out = sys.stderr if stream is None else stream
    pace = Pace()
    last_s, width = 0.0, 0

    def report(told: Progress) -> None:
        nonlocal last_s, width
        if told.message:
            out.write(f"\r{told.message:<{width}}\n")
            width = 0
        if not told.total:
            return
        is_new, is_last = pace.begins(told), told.done >= told.total
        now = time.monotonic()
        if not (is_new or is_last) and now - last_s < REDRAWN_S:
            return
        last_s, line = now, pace.in_words(told)
        out.write(f"\r{line:<{width}}")
        width = len(line)
        if is_last:
            out.write("\n")
            width = 0
        out.flush()

    return report


# How results are shown where they were asked for, such as in a notebook


def html_table(title: str, heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table as HTML, for ``_repr_html_``; all words are escaped."""
    cells = "".join(f"<th>{html.escape(str(head))}</th>" for head in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f"<table><caption>{html.escape(title)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def as_frame(columns: Mapping[str, Sequence[object]]) -> DataFrame:
    """Columns as a pandas DataFrame.

    Raises
    ------
    ConfigError
        When pandas isn't installed: ecgfeat itself does without.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("to_frame() needs pandas: pip install pandas") from error
    return pandas.DataFrame(columns)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how exactly the network is computed, with nothing left open.

    Attributes
    ----------
    device : {"cpu", "cuda", "mps"}
    precision : {"fp32", "bf16", "fp16"}
    threads : int
        Threads that decode images.
    channels_last : bool
        Memory layout of images and weights.
    reason : str
        Why this precision, in words for people.
    """

    device: str
    precision: str
    threads: int
    channels_last: bool
    reason: str


def resolve_compute(settings: ComputeSettings, *, purpose: Literal["extract", "train"]) -> Compute:
    """Turn ``auto`` into what this machine has.

    Parameters
    ----------
    settings : ComputeSettings
    purpose : {"extract", "train"}
        Training on MPS stays in float32, whose loss needs no scaling.

    Raises
    ------
    DeviceError
        When the device or the precision asked for isn't there; the message names what is.
    """
    device = _resolve_device(settings.device)
    if settings.precision == "auto":
        precision, reason = _choose_precision(device, purpose)
    else:
        precision, reason = settings.precision, "asked for"
        if precision not in supported_precisions(device):
            raise DeviceError(
                f"--precision {precision} isn't sound on {device} here; it has "
                f"{', '.join(supported_precisions(device))}. Ask for one of these, or for auto."
            )
    return Compute(
        device=device,
        precision=precision,
        threads=settings.threads or min(n_cpus(), MAX_THREADS),
        # On MPS, channels_last convolutions have given wrong results.
        channels_last=device != "mps",
        reason=reason,
    )


def _resolve_device(asked: str) -> str:
    available = _available_devices()
    if asked == "auto":
        return available[0]
    if asked not in available:
        raise DeviceError(
            f"--device {asked} is asked for, but torch finds only {', '.join(available)} here. "
            f"Take --device {available[0]} or auto; for {asked}, check its driver and that "
            "torch was built for it."
        )
    return asked


def _available_devices() -> tuple[str, ...]:
    """Devices that torch can use here, the fastest first."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return (*(name for name, there in found.items() if there), "cpu")


def supported_precisions(device: str) -> tuple[str, ...]:
    """Precisions that `device` computes soundly, float32 first."""
    import torch

    if device == "cpu":
        return ("fp32", "bf16")
    # Devices before Ampere (compute capability 8) merely emulate bfloat16.
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        return ("fp32", "fp16")
    return ("fp32", "bf16", "fp16")


def _choose_precision(device: str, purpose: str) -> tuple[str, str]:
    if device == "cuda":
        native = "bf16" in supported_precisions(device)
        return ("bf16", "native on this GPU") if native else ("fp16", "this GPU has no bfloat16")
    if device == "mps" and purpose == "train":
        return "fp32", "training on MPS is done in float32"
    speedup = _bfloat16_speedup(device)
    if speedup >= CLEARLY_FASTER:
        return "bf16", f"bfloat16 {speedup:.1f}x as fast as float32 here"
    return "fp32", f"bfloat16 only {speedup:.1f}x as fast as float32 here"


def _bfloat16_speedup(device: str, budget_s: float = 0.1) -> float:
    """How many times as fast as float32 the device computes bfloat16 convolutions.

    Two of a ResNet's convolutions are timed in turn, until `budget_s` is spent; the shortest
    time of each counts, since whatever else the machine does can only lengthen them. On the CPU
    it is one thread's own time, so that a busy machine gives the same answer. Zero where the
    device refuses bfloat16.
    """
    import torch

    layers = [_probe_layer(64, 28, device), _probe_layer(256, 14, device)]
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for dtype in best:
            _time_layers(layers, dtype)
        end = time.perf_counter() + budget_s
        while True:
            for dtype in best:
                best[dtype] = min(best[dtype], _time_layers(layers, dtype))
            if time.perf_counter() >= end:
                break
    except (RuntimeError, TypeError):
        return 0.0
    finally:
        torch.set_num_threads(n_threads)
    return best[torch.float32] / best[torch.bfloat16]


def _probe_layer(channels: int, side_px: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    layout = torch.contiguous_format if device == "mps" else torch.channels_last
    images = torch.ones(4, channels, side_px, side_px, device=device)
    kernel = torch.ones(channels, channels, 3, 3, device=device)
    return images.to(memory_format=layout), kernel.to(memory_format=layout)


def _time_layers(layers: list[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> float:
    """Seconds for one pass over `layers`, the casts apart."""
    import torch

    device = layers[0][0].device
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    cast = [(images.to(dtype), kernel.to(dtype)) for images, kernel in layers]
    with torch.inference_mode():
        _finish(device)
        start = clock()
        for images, kernel in cast:
            torch.nn.functional.conv2d(images, kernel, padding=1)
        _finish(device)
        return clock() - start


def _finish(device: torch.device) -> None:
    import torch

    if device.type == "mps":
        torch.mps.synchronize()


def memory_format(compute: Compute) -> torch.memory_format:
    """The layout of images and weights that `compute` asks for."""
    import torch

    return torch.channels_last if compute.channels_last else torch.contiguous_format


def repeatable_kernels(
    compute: Compute, *, allow_tf32: bool = True
) -> contextlib.AbstractContextManager[None]:
    """While inside, let CUDA take only kernels that give the same numbers every time.

    Parameters
    ----------
    compute : Compute
    allow_tf32 : bool, default True
        Let float32 convolutions round to TF32's 10 bits, as PyTorch's own default does.
    """
    import torch

    if compute.device != "cuda":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, allow_tf32=allow_tf32
    )
    return context


_WORDS = (
    "out of memory",  # CUDA and MPS, also where it isn't a torch.OutOfMemoryError
    "alloc_failed",  # cuDNN and cuBLAS
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory",  # the same on Windows
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy raised `error` for a lack of memory."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def free_device_memory(device: str) -> None:
    """Give what torch keeps for reuse back to the device."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
    if device == "mps":
        torch.mps.empty_cache()


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB (Linux and macOS)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return peak * unit / 2**20


def n_cpus() -> int:
    """Cores this process may use: those it is bound to, or fewer by its container's quota."""
    n_bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min([n_bound or 1, *(math.ceil(share) for share in _cpu_quotas())])


_QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
"""Microseconds granted of each period, in control groups of version 2 and of version 1."""


def _cpu_quotas() -> list[float]:
    """Cores' worth of time that each control group grants which limits it."""
    shares = []
    for group in control_groups():
        for names in _QUOTA_FILES:
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = " ".join((group / name).read_text() for name in names).split()
                if int(quota) > 0:  # -1 is no limit
                    shares.append(int(quota) / int(period))
    return shares


_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def control_groups() -> list[Path]:
    """Folders of this process's control groups (cgroups) and of those above; none elsewhere.

    In version 1 there is one for each kind of limit, in version 2 one for all.
    """
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            # A container often sees its own group as the root, though it is called otherwise.
            own = PurePosixPath(group.lstrip("/"))
            folders += [_GROUPS / controllers / part for part in (own, *own.parents)]
    return folders


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; none is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str = "cpu") -> dict[str, object]:
    """What the machine is, for a run's record; neither its name nor its user's.

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}
        The device the job ran on.
    """
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "n_cpus": n_cpus(),
        "device": _device_name(device),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name()
