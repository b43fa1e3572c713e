"""The machine, what is installed, and what to mend, before a job of hours finds out.

Each check gives findings in words that may be pasted into a bug report: neither the home folder
nor its owner's name is in them. Whatever is heavy is imported by the check that needs it, since
that it can be imported is the first thing to know.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
import timeit
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ecgfeat.config import (
    ComputeSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    SynthSettings,
)
from ecgfeat.errors import CacheLockedError, DeviceError, EcgfeatError, ImageError, Interrupted
from ecgfeat.runtime import (
    Progress,
    Report,
    control_groups,
    machine,
    n_cpus,
    resolve_compute,
    silent,
    supported_precisions,
    versions,
)

if TYPE_CHECKING:
    from ecgfeat.backbones import Backbone

__all__ = ["Finding", "diagnose"]

Level = Literal["ok", "note", "warning", "error"]

N_PAGES = 10_000
"""Pages of the data set that times and sizes are told for."""
SCAN = SynthSettings(size="2200x1700")
"""The page that is decoded: a sheet of letter paper, scanned at 200 dpi."""
MAX_CHANGE = {"JPEG": 4.0, "PNG": 0.0}
"""Grey levels by which a drawn page may come out changed, on average; JPEG is of quality 90."""
PAGE = PageSettings()
"""What the network's speed is measured on."""
BUDGET_S = 10.0
"""For measuring speeds, all of them together; each gets a batch at least, however slow it is."""
MIN_MEMORY_GIB = 2.0
"""An extraction on two cores peaks near 1.1 GiB, a fine-tuning near 1.6 (README.md)."""
MIN_DISK_GIB = 1.0
"""A fine-tuning's folder has two checkpoints of a network and its optimizer's state."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    title : str
        What was looked at, in a word or two.
    level : {"ok", "note", "warning", "error"}
        With an error some command can't run; with a warning it runs, but slower than it could or
        not safely; a note is worth knowing.
    found : str
        What was found, in a line for people.
    remedy : str
        A command line, or a sentence that ends in a full stop; empty where nothing is to be done.
    """

    title: str
    level: Level
    found: str
    remedy: str = ""


def diagnose(
    *,
    cache: str | Path = "cache",
    out_dir: str | Path = "runs",
    weights: str = "imagenet",
    compute: ComputeSettings = ComputeSettings(),
    report: Report = silent,
) -> list[Finding]:
    """Look at the machine, at what is installed, and at how both get on with each other.

    Nothing is downloaded, and nothing stays on the disk.

    Parameters
    ----------
    cache, out_dir : str or Path
        Where features and runs would go; they need not be there.
    weights : str
        Weights to look into, as `NetworkSettings` takes them.
    compute : ComputeSettings
    report : callable
        Told the progress; may raise `Interrupted`.

    Returns
    -------
    list of Finding
        In the order of the checks. What can't be looked at is an error in it, too.
    """
    cache_dir = Path(cache).parent if Path(cache).suffix == ".h5" else Path(cache)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "processor": _processor,
        "memory": _memory,
        "folders": partial(_folders, cache_dir, Path(out_dir)),
        "locks": partial(_locks, cache_dir),
        "decoding": _decoding,
        "torch": _torch,  # without which the rest can't be looked at
        "threads": _threads,
        "devices": _devices,
        "weights": partial(_weights, weights),
        "speed": partial(_speed, compute, report),
    }
    findings: list[Finding] = []
    tick = Progress(stage="checking", done=0, total=len(checks), unit="checks")
    for number, (title, check) in enumerate(checks.items()):
        report(replace(tick, done=number, detail=title))
        findings += map(_anonymous, _carried_out(title, check))
        if title == "torch" and findings[-1].level == "error":
            break
    report(replace(tick, done=len(checks)))
    return findings


def _carried_out(title: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; what stops it is the last of them."""
    try:
        yield from check()
    except Interrupted:
        raise
    except EcgfeatError as error:  # its message ends in what to do
        found, _, remedy = str(error).partition(". ")
        yield Finding(title, "error", found, remedy)
    except (AttributeError, ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        remedy = "Install ecgfeat anew in a fresh environment; if that doesn't help, report this."
        yield Finding(title, "error", f"could not be checked: {_in_a_line(error)}", remedy)


def _anonymous(finding: Finding) -> Finding:
    """The finding with ``~`` for the home folder, and USER for its name in other paths."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is none
    texts = [finding.found, finding.remedy]
    for private, stand_in in ((home, "~"), (f"/{Path(home).name}", "/USER")):
        if private != "/":
            whole = rf"{re.escape(private)}(?![\w.-])"
            texts = [re.sub(whole, stand_in, text) for text in texts]
    return replace(finding, found=texts[0], remedy=texts[1])


def _judged(title: str, found: str, remedy: str, level: Level = "warning") -> Finding:
    """Of `level` where there is something to mend."""
    return Finding(title, level if remedy else "ok", found, remedy)


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _text(path: str | Path) -> str:
    """What a file of the system says; empty where there is none."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


_REQUIREMENT = re.compile(r'([\w.-]+)>=([\d.]+)(?:; extra == "(\w+)")?')


def _packages() -> Iterator[Finding]:
    """What ecgfeat's own metadata say it needs, always and for its extras."""
    needed, extras = versions(), dict[str, str]()
    lacking, absent = list[str](), list[str]()
    for line in metadata.requires("ecgfeat") or ():
        match = _REQUIREMENT.fullmatch(line)
        if match and match[3] not in ("test", "dev"):
            name, least, extra = match.groups()
            version = _version(name)
            (extras if extra else needed)[name] = version
            if _numbers(version) < _numbers(least):
                (absent if extra else lacking).append(f"'{name}>={least}'")
    remedy = f"pip install --upgrade {' '.join(lacking)}" if lacking else ""
    yield _judged("packages", _listed(needed), remedy, "error")
    remedy = f"pip install --upgrade {' '.join(absent)}" if absent else ""
    yield _judged("extras", _listed(extras), remedy, "note")


def _version(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _numbers(version: str) -> list[int]:
    """For comparing: 2.9 equals 2.9.0, and no version is less than any."""
    return [*map(int, re.findall(r"\d+", version)), 0, 0][:3] if version else []


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())


def _torch() -> Iterator[Finding]:
    """Whether torch and torchvision can be loaded into one process."""
    found = _listed({name: _version(name) for name in ("torch", "torchvision")})
    try:
        import torch
        import torchvision  # noqa: F401 - loading it is the check
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        found += (
            f" can't be loaded together ({_in_a_line(error)}): they must be of one release, and "
            "both for the CPU or for the same CUDA; threads, devices, weights and speed wait for it"
        )
        build = _version("torch").partition("+")[2]
        index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
        remedy = f"pip install --force-reinstall torch torchvision{index}"
        yield Finding("torch", "error", found, remedy)
        return
    kernels = torch.backends.cpu.get_cpu_capability()
    yield Finding("torch", "ok", f"{found}, computing with {kernels}")


_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Those that convolutions gain by, by Linux's names."""


def _processor() -> Iterator[Finding]:
    here, n_all, n_usable, load = machine(), os.cpu_count() or 1, n_cpus(), os.getloadavg()[0]
    told = re.search(r"^(?:flags|Features)\s*:(.*)", _text("/proc/cpuinfo"), re.MULTILINE)
    flags = told[1].split() if told else []
    isa = [name.upper() for name in _INSTRUCTION_SETS if name in flags]
    words = ", ".join(isa) or "instruction sets not known here"
    is_old = "sse2" in flags and "avx2" not in flags
    remedy = "Take another: without AVX2 the network is several times slower." if is_old else ""
    found = f"{here['processor']}: {words} ({here['platform']})"
    yield _judged("processor", found, remedy)

    remedy = ""
    if n_usable < n_all:
        remedy = "Ask for more: --cpus-per-task in SLURM, --cpus of docker run, taskset."
    elif load > n_usable / 2:
        remedy = "Others are at work here: when they are done, the speeds are higher."
    found = f"{n_usable} of {n_all} usable; load {load:.1f}"
    yield _judged("cores", found, remedy, "note")


def _memory() -> Iterator[Finding]:
    total_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    told = re.search(r"^MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    free_gib = int(told[1]) / 2**20 if told else total_gib
    found = f"{free_gib:.1f} of {total_gib:.1f} GiB free"
    for group in control_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2, of version 1
            limit = _text(group / name).strip()
            if limit.isdigit() and int(limit) / 2**30 < free_gib:
                free_gib = int(limit) / 2**30
                found = f"the container's limit is {free_gib:.1f} GiB"
    remedy = "Close other programs; take fewer --threads." if free_gib < MIN_MEMORY_GIB else ""
    yield _judged("memory", found, remedy)


def _threads() -> Iterator[Finding]:
    """Whether torch has threads for the cores, and no more."""
    import torch

    n_threads, n_usable = torch.get_num_threads(), n_cpus()
    given = os.environ.get("OMP_NUM_THREADS")
    found = f"{n_threads} for the network on {n_usable} usable cores, OMP_NUM_THREADS "
    found += given or "not set"
    remedy = ""
    if n_threads > n_usable:
        found += "; threads beyond the cores only wait for one another"
        remedy = f"export OMP_NUM_THREADS={n_usable}"
    elif given and n_threads < min(n_usable, max(2, n_usable / 2)):  # two may share a core
        found += "; the other cores have nothing to do"
        remedy = "unset OMP_NUM_THREADS"
    yield _judged("threads", found, remedy)


def _devices() -> Iterator[Finding]:
    import torch

    names, remedy = [], ""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(n_gpus):
        gpu = torch.cuda.get_device_properties(number)
        names.append(f"cuda:{number} {gpu.name} ({gpu.total_memory / 2**30:.1f} GiB)")
    if n_gpus:
        names[0] += f", {torch.cuda.mem_get_info(0)[0] / 2**30:.1f} GiB of it free"
    if torch.backends.mps.is_available():
        names.append("mps (Apple GPU)")
    cuda, rocm = torch.version.cuda, torch.version.hip
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "the CPU"
    found = f"{', '.join([*names, 'cpu'])}; torch is built for {built_for}"
    if not names and (_text("/proc/driver/nvidia/version") or shutil.which("nvidia-smi")):
        found = f"an NVIDIA driver is here, but torch finds no GPU: {found}"
        remedy = (
            "Install a newer driver, or the torch for its CUDA: https://pytorch.org/get-started."
        )
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            remedy = "unset CUDA_VISIBLE_DEVICES"
    yield _judged("devices", found, remedy)


def _folders(cache_dir: Path, out_dir: Path) -> Iterator[Finding]:
    for title, folder, option in (
        ("cache folder", cache_dir, "--cache"),
        ("runs folder", out_dir, "--out"),
        ("temporary", Path(tempfile.gettempdir()), "the environment variable TMPDIR"),
    ):
        place = _writable(folder)
        if place is None:
            found, remedy = f"{folder}: can't be written to", f"Name another with {option}."
            yield Finding(title, "error", found, remedy)
            continue
        free_gib = shutil.disk_usage(place).free / 2**30
        is_full = free_gib < MIN_DISK_GIB
        remedy = f"Free some space, or name a folder elsewhere with {option}." if is_full else ""
        yield _judged(title, f"{folder}: {free_gib:.1f} GiB free", remedy)


def _writable(folder: Path) -> Path | None:
    """The folder or what is there of it; None where nothing can be made in it."""
    path = folder.absolute()
    place = next(part for part in (path, *path.parents) if os.path.lexists(part))
    return place if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else None


def _locks(cache_dir: Path) -> Iterator[Finding]:
    """Take a cache's lock as a writer does, and see whether a second one is kept out."""
    from ecgfeat.feature_cache.writer import hold_cache

    folder = _writable(cache_dir)
    if folder is None:
        return  # said of the folder
    cache = folder / f".ecgfeat-doctor-{os.getpid()}.h5"
    with hold_cache(cache, None):
        is_kernels = json.loads(cache.with_name(f"{cache.name}.lock").read_text())["vouched"]
        try:
            with hold_cache(cache, None):
                is_exclusive = False
        except CacheLockedError:
            is_exclusive = True
    remedy = "Keep the cache on a local disk, --cache DIR, and copy the finished file over."
    if not is_exclusive:
        found = "two processes can write one cache at a time: the folder's locks keep nobody out"
        yield Finding("locks", "error", found, remedy)
    elif not is_kernels:
        found = "the folder knows no locks: one that a crash leaves may need deleting by hand"
        yield Finding("locks", "warning", found, remedy)
    else:
        yield Finding("locks", "ok", "the cache's folder can lock: one writer at a time")


def _decoding() -> Iterator[Finding]:
    """A drawn page as JPEG and PNG through the way that every image takes."""
    import numpy as np

    from ecgfeat.images import DECODER, decode
    from ecgfeat.synth import draw_page

    drawn = draw_page("normal", seed=0, settings=SCAN)
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="ecgfeat-doctor-") as folder:
        for kind, most in MAX_CHANGE.items():
            path = Path(folder, kind)
            drawn.save(path, kind, quality=90)
            change = np.abs(decode(path).astype(float) - np.asarray(drawn)).mean()
            if not change <= most:
                raise ImageError(
                    f"{kind} comes out {change:.0f} grey levels off, on average, from {DECODER}. "
                    "pip install --force-reinstall pillow simplejpeg"
                )
            seconds[kind] = min(timeit.repeat(partial(decode, path), number=1, repeat=3))
    words = ", ".join(f"{kind} in {each_s * 1000:.0f} ms" for kind, each_s in seconds.items())
    minutes = N_PAGES * seconds["JPEG"] / n_cpus() / 60
    found = f"{SCAN.size} as {words} ({DECODER}); {N_PAGES:,} JPEGs on all cores: {minutes:.1f} min"
    yield Finding("decoding", "ok", found)


def _weights(asked: str) -> Iterator[Finding]:
    """What the weights are; torchvision's only where they are there already."""
    import torch
    from torchvision.models import get_model_weights

    from ecgfeat.backbones import load_weights

    network = NetworkSettings(weights=asked)
    published = get_model_weights(network.arch).DEFAULT
    path = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    if asked == "imagenet" and not path.exists():
        size_mb = published.meta["_file_size"]
        found = f"{path} isn't there: the first extract downloads it ({size_mb:.0f} MB)"
        remedy = f"Without internet put {published.url} there, or give your own: --weights PATH."
        yield Finding("weights", "note", found, remedy)
        return
    weights = load_weights(network)
    found = f"{weights.name}: {weights.arch}, SHA-256 {weights.digest[:16]}…"
    yield Finding("weights", "ok", "; ".join(filter(None, [found, weights.note])))


def _speed(compute: ComputeSettings, report: Report) -> Iterator[Finding]:
    """How fast the default network runs, and whether its features are the CPU's float32."""
    from ecgfeat.backbones import Backbone, load_weights, tap_widths
    from ecgfeat.preprocessing import Preprocessing

    network, page = NetworkSettings(weights="random"), Preprocessing.from_settings(PAGE)
    weights, taps = load_weights(network), ExtractionSettings().taps
    chosen = resolve_compute(compute, purpose="extract")
    speeds: dict[str, list[str]] = {"cpu": [], chosen.device: []}
    sound: list[str] = []
    jobs = [(device, precision) for device in speeds for precision in supported_precisions(device)]
    for device, precision in jobs:
        told = f"measuring {precision} on {device}"
        report(Progress(stage="measuring", done=0, total=0, message=told))
        asked = replace(compute, device=device, precision=precision)  # type: ignore[arg-type]
        try:
            used = resolve_compute(asked, purpose="extract")
            backbone = Backbone(weights, page, used, taps=taps)
            if backbone.compute.precision != precision:
                raise DeviceError(backbone.compute.reason)
            rate = _pages_per_s(backbone, BUDGET_S / len(jobs), report)
        except (DeviceError, RuntimeError, TypeError) as error:  # torch's where a device lacks it
            found = f"{precision} on {device}: {_in_a_line(error)}"
            remedy = "Take another --precision or --device, or a newer torch or driver."
            yield _judged("features", found, remedy, "error" if precision == "fp32" else "warning")
            continue
        minutes = N_PAGES / rate / 60
        speeds[device].append(f"{minutes:.1f} min in {precision} ({rate:.1f} pages/s)")
        sound.append(f"{precision} on {device}")
    for device, words in speeds.items():
        found = f"{N_PAGES:,} pages of {PAGE.size} through {network.arch}: {', '.join(words)}"
        if device == chosen.device:
            found += f"; {chosen.precision} is taken: {chosen.reason}"
        if words:
            yield Finding(f"speed on {device}", "ok", found)
    if sound:
        width = sum(tap_widths(network.arch, taps).values())
        found = (
            f"{', '.join(sound)}: the same (cosine 0.999 or more); {width:,} a page, "
            f"{N_PAGES * width * 4 / 2**20:.0f} MiB in the cache for {N_PAGES:,} pages"
        )
        yield Finding("features", "ok", found)


def _pages_per_s(backbone: Backbone, budget_s: float, report: Report) -> float:
    """Pages a second through the network, as many batches at once as an extraction has."""
    import numpy as np

    from ecgfeat.backbones import default_batch_size

    shape = (default_batch_size(backbone.compute, PAGE), PAGE.height_px, PAGE.width_px, 3)
    pages = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    with backbone.lanes() as lanes:
        for first in [lanes.start(pages) for _ in range(lanes.n_lanes)]:
            first.result()  # slower than the rest: kernels are chosen
        began, n_done = time.perf_counter(), 0
        ahead = deque(lanes.start(pages) for _ in range(2 * lanes.n_lanes))
        while not n_done or time.perf_counter() - began < budget_s:
            ahead.popleft().result()
            ahead.append(lanes.start(pages))
            n_done += 1
            report(Progress(stage="measuring", done=n_done, total=0))
        return n_done * len(pages) / (time.perf_counter() - began)
