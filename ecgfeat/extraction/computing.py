"""The images through the network, committed part by part."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from numpy.typing import NDArray

from ecgfeat.backbones import Backbone
from ecgfeat.config import (
    ExtractionSettings,
)
from ecgfeat.errors import Interrupted, WeightsError
from ecgfeat.feature_cache import (
    CacheWriter,
)
from ecgfeat.images import Batch, Failure, stream
from ecgfeat.manifest import Manifest
from ecgfeat.runtime import Progress, Report

__all__ = ["compute_pending"]

PART_ROWS = 512
"""Rows committed together: what a kill can cost, about five seconds of two cores' work."""
CPU_BATCH_SIZE = 16
"""Beyond 16 images of 224×224 a ResNet-18's activations leave the processor's caches."""
DEVICE_BATCH_SIZE = 128
"""Enough to fill a GPU without asking for more than about 2 GiB of its memory."""


def compute_pending(
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
