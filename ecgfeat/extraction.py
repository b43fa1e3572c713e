"""Every image through the frozen network once: the features go into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.backbones import Backbone, load_backbone
from ecgfeat.config import (
    ComputeSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    as_json,
)
from ecgfeat.errors import ConfigError, Interrupted, WeightsError
from ecgfeat.feature_cache import (
    CacheWriter,
    Header,
    Quarantined,
    existing_header,
    open_writer,
)
from ecgfeat.files import write_csv
from ecgfeat.images import DECODER, Batch, Failure, stream
from ecgfeat.manifest import Manifest, write_missing
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Compute, Progress, Report, peak_memory_mib, resolve_compute, silent

__all__ = ["Extraction", "extract", "shard_of"]

PART_ROWS = 512
"""Rows committed together: what a kill can cost, about five seconds of two cores' work."""
CPU_BATCH_SIZE = 16
"""Beyond 16 images of 224×224 a ResNet-18's activations leave the processor's caches."""
DEVICE_BATCH_SIZE = 128
"""Enough to fill a GPU without asking for more than about 2 GiB of its memory."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    cache : Path
        The cache's file; while shards are at work, where it will be.
    complete : bool
        Whether the cache holds every row; False after one shard.
    n_images : int
        Rows in the cache.
    n_computed : int
        Images that went through the network this time.
    missing, quarantined : int
        Listed files that are absent; files that can't be decoded.
    missing_by_class : mapping of str to int
        Absent files by ``"split/class"``.
    wall_s, images_per_s : float
        Time for the whole job; rate of the images computed, start-up apart.
    """

    cache: Path
    complete: bool
    n_images: int
    n_computed: int
    missing: int
    missing_by_class: Mapping[str, int]
    quarantined: int
    wall_s: float
    images_per_s: float
    peak_memory_mib: float
    device: str
    precision: str
    precision_reason: str

    @property
    def size_mib(self) -> float:
        """The cache's size in MiB."""
        return self.cache.stat().st_size / 2**20 if self.complete else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**asdict(self), "cache": str(self.cache), "size_mib": self.size_mib}

    def summary(self) -> list[str]:
        """The same in words, one line each."""
        rate = f"{self.images_per_s:.1f} images/s, " if self.n_computed else ""
        lines = [
            f"{self.n_images} images: {self.n_computed} computed, "
            f"{self.n_images - self.n_computed} already there",
            f"{rate}{self.wall_s:.1f} s in all, peak memory {self.peak_memory_mib:.0f} MiB, "
            f"{self.device} {self.precision} ({self.precision_reason})",
        ]
        if self.missing:
            counts = ", ".join(f"{name} {n}" for name, n in self.missing_by_class.items())
            lines.append(f"{self.missing} listed images are missing ({counts}): {self.missing_csv}")
        if self.quarantined:
            lines.append(
                f"{self.quarantined} images are left out, with reasons: {self.quarantine_csv}"
            )
        if self.complete:
            lines.append(f"cache: {self.cache} ({self.size_mib:.1f} MiB)")
        else:
            lines.append(f"shard done; once all are, a plain extract puts {self.cache} together")
        return lines

    @property
    def missing_csv(self) -> Path:
        """Where the absent files are listed, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-missing.csv")

    @property
    def quarantine_csv(self) -> Path:
        """Where the files left out are listed with their reasons, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-quarantine.csv")


def extract(
    manifest: Manifest,
    *,
    cache: Path = Path("cache"),
    page: PageSettings = PageSettings(),
    network: NetworkSettings = NetworkSettings(),
    work: ExtractionSettings = ExtractionSettings(),
    compute: ComputeSettings = ComputeSettings(),
    rehash: bool = False,
    shard: str = "",
    report: Report = silent,
) -> Extraction:
    """Compute the features of every image of `manifest` that the cache doesn't hold yet.

    Parameters
    ----------
    manifest : Manifest
    cache : Path
        A folder, in which the settings name the file, or a file ending in ``.h5``.
    page, network, work, compute : settings
    rehash : bool
        Compare every image's bytes with what was computed, not just size and time of change.
    shard : str
        ``"i/n"`` computes every n-th part only; empty takes the rank that torchrun or SLURM
        give, if any.
    report : callable
        Told the progress; may raise `Interrupted`, upon which the part under way is kept.

    Raises
    ------
    CacheMismatchError
        When the file holds features computed another way.
    CacheLockedError, CacheDamagedError, WeightsError, DeviceError, StorageError, Interrupted
    """
    started = time.monotonic()
    share = shard_of(shard, os.environ)
    if work.limit and cache.suffix == ".h5":
        raise ConfigError(
            "--limit would cut a cache of all images down to these: give --cache a folder"
        )
    if work.limit:
        # Another name, so that the cache of all images isn't cut down to these.
        name = f"{manifest.name}-limit{work.limit}"
        manifest = replace(manifest.limited(work.limit), name=name)
    path = cache_file(cache, manifest.name, page, network, compute)
    preprocessing = Preprocessing.from_settings(page)
    resolved = _resolve(compute, existing_header(path))
    backbone = load_backbone(network, preprocessing, resolved)
    header = _header(backbone, preprocessing)
    with (
        _saying_how_to_go_on(),
        open_writer(path, header, manifest, rehash=rehash, shard=share, report=report) as writer,
    ):
        n_computed, computing_s = _compute_pending(writer, manifest, backbone, work, report)
        finished = None if share else writer.finish()
    extraction = Extraction(
        cache=path,
        complete=finished is not None,
        n_images=len(finished.paths) if finished else n_computed,
        n_computed=n_computed,
        missing=len(manifest.missing),
        missing_by_class={
            f"{split}/{label}": n for (label, split), n in manifest.missing_counts().items()
        },
        quarantined=len(finished.quarantined) if finished else 0,
        wall_s=time.monotonic() - started,
        images_per_s=n_computed / computing_s if computing_s else 0.0,
        peak_memory_mib=peak_memory_mib(),
        device=backbone.compute.device,
        precision=backbone.compute.precision,
        precision_reason=backbone.compute.reason,
    )
    if finished:
        write_missing(manifest, extraction.missing_csv)
        _write_quarantine(finished.quarantined, extraction.quarantine_csv)
    return extraction


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note("what was computed is kept: run the same command again to go on from there")
        raise


def _write_quarantine(quarantined: Sequence[Quarantined], path: Path) -> None:
    rows = [(item.path, item.reason, item.n_bytes) for item in quarantined]
    write_csv(path, [("path", "reason", "n_bytes"), *rows])


def shard_of(text: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which share to compute, as (index, count); None for all of it.

    Parameters
    ----------
    text : str
        ``"i/n"`` from the command line, or empty.
    environment : mapping
        ``RANK`` and ``WORLD_SIZE`` (torchrun) or, inside an ``srun`` step, ``SLURM_PROCID`` and
        ``SLURM_STEP_NUM_TASKS`` are taken where `text` is empty.

    Raises
    ------
    ConfigError
        When the text isn't of that form.
    """
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if not text and int(environment.get(size, "1")) > 1 and rank in environment:
            text = f"{environment[rank]}/{environment[size]}"
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard must be I/N with I from 0 to N-1, such as 0/4; found {text!r}")
    return int(match[1]), int(match[2])


def cache_file(
    cache: Path,
    data_name: str,
    page: PageSettings,
    network: NetworkSettings,
    compute: ComputeSettings,
) -> Path:
    """The cache's file: `cache` itself if it ends in ``.h5``, else a file of that folder.

    The name holds a digest of the settings as asked for, so that ``auto`` names the same file
    wherever it is resolved; what it was resolved to stands in the header.
    """
    if cache.suffix == ".h5":
        return cache
    if cache.suffix in (".hdf5", ".hdf", ".he5"):
        raise ConfigError(f"--cache must be a folder, or a file ending in .h5; found {cache}")
    asked = {
        "arch": network.arch,
        "weights": Path(network.weights).name,
        "preprocessing": Preprocessing.from_settings(page).fingerprint,
        "precision": compute.precision,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return cache / f"{data_name}-{network.arch}-{digest[:8]}.h5"


def _resolve(compute: ComputeSettings, begun: Header | None) -> Compute:
    """`compute` with nothing left open; ``auto`` precision is what the cache was begun with."""
    if begun is None or compute.precision != "auto":
        return resolve_compute(compute, purpose="extract")
    asked = ComputeSettings(**{**as_json(compute), "precision": begun.precision})
    return replace(resolve_compute(asked, purpose="extract"), reason="as the cache was begun")


def _header(backbone: Backbone, preprocessing: Preprocessing) -> Header:
    return Header(
        arch=backbone.arch,
        weights=backbone.weights_name,
        weights_digest=backbone.digest,
        crop_mode=preprocessing.crop_mode,
        size=preprocessing.size,
        resampling=preprocessing.resampling,
        mean=preprocessing.mean,
        std=preprocessing.std,
        precision=backbone.compute.precision,
        device=backbone.compute.device,
        decoder=DECODER,
        taps=backbone.taps,
    )


def _compute_pending(
    writer: CacheWriter,
    manifest: Manifest,
    backbone: Backbone,
    work: ExtractionSettings,
    report: Report,
) -> tuple[int, float]:
    """Compute and commit what the cache lacks; returns how many images, and the seconds."""
    on_cpu = backbone.compute.device == "cpu"
    batch_size = work.batch_size or (CPU_BATCH_SIZE if on_cpu else DEVICE_BATCH_SIZE)
    pending = writer.pending
    parts = _chunks(pending, PART_ROWS)
    batches = [rows for part in parts for rows in _chunks(part, batch_size)]
    n_reused = len(manifest) - len(pending)
    part = _Part(writer)
    n_seen = 0
    started = time.monotonic()
    images = stream(
        manifest.image_paths(), batches, backbone.preprocessing, threads=backbone.compute.threads
    )
    with contextlib.closing(images):
        for rows, batch in zip(batches, images):
            part.add(batch, _features(backbone, batch.pixels, batch_size))
            n_seen += len(rows)
            if n_seen % PART_ROWS == 0 or n_seen == len(pending):
                part.commit()
            try:
                report(Progress(stage="extracting", done=n_reused + n_seen, total=len(manifest)))
            except Interrupted:
                part.commit()
                raise
    return part.n_computed, time.monotonic() - started


def _chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _features(
    backbone: Backbone, pixels: NDArray[np.uint8], batch_size: int
) -> dict[str, NDArray[np.float32]]:
    """Features of a batch, always computed at the shape of a full one.

    The kernels that torch chooses depend on the batch's shape, and with them the last bits. A
    fixed shape makes an image's features independent of where in the data it stands.
    """
    n_images = len(pixels)
    if not n_images:
        return {tap: np.empty((0, width), np.float32) for tap, width in backbone.taps.items()}
    if n_images < batch_size:
        padding = np.zeros((batch_size - n_images, *pixels.shape[1:]), np.uint8)
        pixels = np.concatenate([pixels, padding])
    return {tap: values[:n_images] for tap, values in backbone.features(pixels).items()}


class _Part:
    """The part under way: what has been computed and isn't committed yet."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._may_be_the_first = len(writer.pending) == writer.n_rows
        self.n_computed = 0
        self._n_finite = 0
        self._clear()

    def _clear(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._digests: list[NDArray[np.uint8]] = []
        self._features: list[dict[str, NDArray[np.float32]]] = []
        self._failures: list[Failure] = []

    def add(self, batch: Batch, features: dict[str, NDArray[np.float32]]) -> None:
        """Take in a batch; images whose features aren't finite become failures."""
        finite = np.ones(len(batch.rows), dtype=bool)
        for values in features.values():
            finite &= np.isfinite(values).all(axis=1)
        for row, n_bytes in zip(batch.rows[~finite].tolist(), batch.n_bytes[~finite].tolist()):
            self._failures.append(Failure(row=row, reason=_NOT_FINITE, n_bytes=n_bytes))
        self._failures.extend(batch.failures)
        self._rows.append(batch.rows[finite])
        self._digests.append(batch.digests[finite])
        self._features.append({tap: values[finite] for tap, values in features.items()})
        self.n_computed += len(batch.rows)
        self._n_finite += int(finite.sum())

    def commit(self) -> None:
        """Write the part, unless it is empty.

        Raises
        ------
        WeightsError
            When no image at all gave finite features.
        """
        if self._may_be_the_first and self.n_computed and not self._n_finite:
            raise WeightsError(
                f"the network gave {_NOT_FINITE} for all of the first {self.n_computed} images. "
                "Try --precision fp32, or check the weights."
            )
        if not self._rows:
            return
        self._writer.commit(
            rows=np.concatenate(self._rows),
            features={
                tap: np.concatenate([values[tap] for values in self._features])
                for tap in self._features[0]
            },
            digests=np.concatenate(self._digests),
            failures=self._failures,
        )
        self._clear()


_NOT_FINITE = "features that are NaN or infinite"
