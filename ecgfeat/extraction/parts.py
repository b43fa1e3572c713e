"""The images through the network, committed part by part."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ecgfeat.backbones import Backbone, Lanes, filled
from ecgfeat.errors import Interrupted, WeightsError
from ecgfeat.feature_cache import CacheWriter
from ecgfeat.images import Batch, Failure, stream
from ecgfeat.manifest import Manifest
from ecgfeat.preprocessing import Preprocessing
from ecgfeat.runtime import Progress, Report, peak_memory_mib

__all__ = ["Computed", "compute_pending"]


PART_ROWS = 512
"""Rows committed together: what a kill can cost, about five seconds of two cores' work."""
BATCHES_PER_LANE = 3
"""Batches begun ahead for each lane: enough to go on while a part is written to the disk."""

ESTIMATE_AFTER_S = 5.0
"""The first batches are slower: the network's kernels are chosen in them."""
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Computed:
    """How many images went through the network, in how many seconds, and what was odd.

    `remarks` holds rows by what people should know of how they were decoded.
    """

    n_images: int = 0
    seconds: float = 0.0
    remarks: Mapping[str, list[int]] = field(default_factory=dict)


def compute_pending(
    writer: CacheWriter,
    manifest: Manifest,
    backbone: Backbone,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    report: Report,
) -> Computed:
    """Compute and commit what the cache lacks."""
    pending = writer.pending
    parts = _chunks(pending, PART_ROWS)
    batches = [rows for part in parts for rows in _chunks(part, batch_size)]
    n_reused = len(manifest) - len(pending)
    part = _Part(writer)
    remarks: dict[str, list[int]] = defaultdict(list)
    n_seen = 0
    is_estimated = False
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        lanes = stack.enter_context(backbone.lanes())
        images = stream(
            manifest.image_paths(),
            batches,
            preprocessing,
            threads=backbone.compute.threads,
            looks=list(zip(manifest.n_bytes, manifest.mtime_ns)),
        )
        stack.enter_context(contextlib.closing(images))
        largest = None
        for rows, (batch, features) in zip(batches, _computed(lanes, images, batch_size)):
            part.add(batch, features)
            n_seen += len(rows)
            for row, remark in batch.remarks:
                remarks[remark].append(row)
            if n_seen % PART_ROWS == 0 or n_seen == len(pending):
                part.commit()
            message = ""
            if backbone.largest_batch != largest:
                largest = backbone.largest_batch
                message = f"out of memory: going on in batches of {largest}"
            computing_s = time.monotonic() - started
            if not is_estimated and computing_s > ESTIMATE_AFTER_S and n_seen < len(pending):
                is_estimated = True
                message = message or _estimate(backbone, n_seen, len(pending), computing_s)
            done, total = n_reused + n_seen, len(manifest)
            try:
                report(Progress(stage="extracting", done=done, total=total, message=message))
            except Interrupted:
                part.commit()
                raise
    return Computed(part.n_computed, time.monotonic() - started, dict(remarks))


def _estimate(backbone: Backbone, n_seen: int, n_pending: int, computing_s: float) -> str:
    """What is to come in time, disk and memory, by what was seen."""
    minutes = computing_s / n_seen * (n_pending - n_seen) / 60
    disk_mib = n_pending * sum(backbone.taps.values()) * 4 / 2**20
    return (
        f"about {max(1, round(minutes))} min to go; these features take {disk_mib:.0f} MiB of "
        f"disk, and memory stays near the {peak_memory_mib():.0f} MiB of now"
    )


def _computed(
    lanes: Lanes, images: Iterable[Batch], batch_size: int
) -> Iterator[tuple[Batch, Features]]:
    """Each batch with its features, in order; several are under way."""
    ahead: deque[tuple[Batch, Future[Features]]] = deque()
    for batch in images:
        pixels = filled(batch.pixels, batch_size) if len(batch.rows) else batch.pixels
        ahead.append((batch, lanes.start(pixels)))
        if len(ahead) > BATCHES_PER_LANE * lanes.n_lanes:
            yield _finished(*ahead.popleft())
    while ahead:
        yield _finished(*ahead.popleft())


def _finished(batch: Batch, features: Future[Features]) -> tuple[Batch, Features]:
    return batch, {tap: values[: len(batch.rows)] for tap, values in features.result().items()}


def _chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


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
