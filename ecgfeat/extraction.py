"""Every image through the frozen network once: the features go into a cache, part by part."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfeat.backbones import (
    Backbone,
    CheckPages,
    Lanes,
    Weights,
    default_batch_size,
    filled,
    load_weights,
    tap_widths,
)
from ecgfeat.config import (
    DEFAULT_RECIPE,
    TAPS,
    ComputeSettings,
    ExtractionSettings,
    NetworkSettings,
    PageSettings,
    RecipeSettings,
    as_json,
)
from ecgfeat.errors import (
    CacheError,
    CacheMismatchError,
    ConfigError,
    DeviceError,
    EcgfeatError,
    Interrupted,
    WeightsError,
)
from ecgfeat.feature_cache import (
    CacheWriter,
    FeatureCache,
    Header,
    Quarantined,
    existing_header,
    open_cache,
    open_writer,
    part_paths,
)
from ecgfeat.files import write_csv
from ecgfeat.images import (
    Batch,
    Failure,
    Remarks,
    decode,
    decoder_of,
    dpi_of,
    draws_pdf,
    prepare,
    stream,
)
from ecgfeat.manifest import Manifest, read_manifest, write_missing
from ecgfeat.preprocessing import (
    EXACT_RESAMPLING,
    FAST_RESAMPLING,
    Preprocessing,
    cleaning_of,
)
from ecgfeat.protocol import find_leaks
from ecgfeat.runtime import Compute, Progress, Report, peak_memory_mib, resolve_compute, silent

__all__ = ["Extraction", "check_pages", "extract", "shard_of"]


def extract(
    manifest: Manifest | str | Path,
    *,
    cache: str | Path = "cache",
    page: PageSettings | None = None,
    network: NetworkSettings = NetworkSettings(),
    work: ExtractionSettings | None = None,
    compute: ComputeSettings = ComputeSettings(),
    recipe: str = DEFAULT_RECIPE,
    rehash: bool = False,
    shard: str = "",
    report: Report = silent,
) -> Extraction:
    """Compute the features of every image of `manifest` that the cache doesn't hold yet.

    Parameters
    ----------
    manifest : Manifest, str or Path
        What `read_manifest` gives, or takes.
    cache : str or Path
        A folder, in which the settings name the file, or a file ending in ``.h5``.
    page, work : settings, optional
        The recipe's by default.
    network, compute : settings
    recipe : str
        Name of the recipe that the settings are taken from, for those who use the cache. A
        cache that has one keeps it.
    rehash : bool
        Compare every image's bytes with what was computed, not just size and time of change.
    shard : str
        ``"i/n"`` computes every n-th part only; empty takes the rank that torchrun or SLURM
        give, if any.
    report : callable
        Told the progress; may raise `Interrupted`, upon which the part under way is kept.

    Returns
    -------
    Extraction
        What was done, and where the cache is.

    Raises
    ------
    ConfigError
        When `shard` can't be, or the cache would lie inside the data.
    CacheMismatchError
        When the file holds features computed another way.
    CacheLockedError, CacheDamagedError, WeightsError, DeviceError, StorageError, Interrupted

    Examples
    --------
    >>> done = extract("pages")  # doctest: +SKIP
    >>> X, y, groups = open_cache(done.cache).arrays("train", ["layer4"])  # doctest: +SKIP
    """
    started = time.monotonic()
    chosen = RecipeSettings().chosen(recipe)
    page, work = page or chosen.page, work or chosen.extraction
    share = shard_of(shard, os.environ)
    if share and not shard:
        found = f"the environment (torchrun or srun) makes this share {share[0]}/{share[1]}"
        _say(report, f"{found}; --shard 0/1 takes all of it")
    cache = Path(cache)
    if not isinstance(manifest, Manifest):
        manifest = read_manifest(manifest)
    manifest.refuse_inside(cache, "--cache")
    page = _page_for(manifest, page)
    path = _own_file(cache, manifest, page, network, compute, work.taps, report)
    begun = existing_header(path)
    if begun:
        _refuse_other_dpi(begun, manifest, page, path)
        _refuse_other_cleaning(begun, page, path)
    weights = load_weights(network)
    if weights.note:
        _say(report, weights.note)
    plan = _Plan(
        manifest=manifest,
        page=page,
        weights=weights,
        compute=_resolve(compute, begun),
        resampling=begun.resampling if begun else "",
        taps=work.taps,
        batch_size=work.batch_size,
    )
    # A new cache's precision is what the self-check leaves of the one asked for.
    backbone = None if begun else plan.load_backbone()
    if backbone:
        plan = replace(plan, compute=backbone.compute)
    header = _header(plan, (begun.recipe if begun else "") or recipe)
    computed = Computed()
    with (
        _saying_how_to_go_on(),
        open_writer(path, header, manifest, rehash=rehash, shard=share, report=report) as writer,
    ):
        if len(writer.pending):
            backbone = backbone or plan.load_backbone_as_begun(path)
            computed = compute_pending(
                writer,
                manifest,
                backbone,
                plan.preprocessing,
                batch_size=plan.full_batch,
                report=report,
            )
        finished = None if share else writer.finish()
    extraction = Extraction(
        cache=path,
        complete=finished is not None,
        n_images=len(finished.paths) if finished else computed.n_images,
        n_computed=computed.n_images,
        missing=len(manifest.missing),
        missing_by_class=manifest.missing_by_class(),
        quarantined=len(finished.quarantined) if finished else 0,
        wall_s=time.monotonic() - started,
        images_per_s=computed.n_images / computed.seconds if computed.seconds else 0.0,
        peak_memory_mib=peak_memory_mib(),
        device=plan.compute.device,
        precision=plan.compute.precision,
        precision_reason=plan.compute.reason,
        cleaning=computed.remarks.on_cleaning(plan.preprocessing),
        warnings=(
            *computed.remarks.in_words(manifest.paths),
            *(_duplicates(finished) if finished else ()),
        ),
    )
    if finished:
        write_missing(manifest, extraction.missing_csv)
        _write_quarantine(finished.quarantined, extraction.quarantine_csv)
    return extraction


def _duplicates(cache: FeatureCache) -> tuple[str, ...]:
    splits = np.array(cache.splits)
    sides = np.flatnonzero(splits != "test"), np.flatnonzero(splits == "test")
    leaks = find_leaks(cache.pictures, cache.labels, cache.groups, [sides])
    return tuple(leaks.in_words())


@contextlib.contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note("what was computed is kept: run the same command again to go on from there")
        raise
    except MemoryError as error:
        raise DeviceError(
            "there is too little memory to decode the images: run the same command again, which "
            "goes on from there, with fewer --threads"
        ) from error


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
    what = "--shard"
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if not text and environment.get(size, "") not in ("", "1") and environment.get(rank):
            text, what = f"{environment[rank]}/{environment[size]}", f"{rank}/{size}"
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"{what} must be I/N with I from 0 to N-1, such as 0/4; found {text!r}")
    return None if match[2] == "1" else (int(match[1]), int(match[2]))


def _own_file(
    cache: Path,
    manifest: Manifest,
    page: PageSettings,
    network: NetworkSettings,
    compute: ComputeSettings,
    taps: Sequence[str],
    report: Report,
) -> Path:
    """The data's own cache, one made before names told where the data are among them.

    What it holds of images that are no longer listed is counted and said.
    """
    settings = page, network, compute, taps
    path = cache_file(cache, manifest.name, *settings, source=manifest.source)
    before = cache_file(cache, manifest.name, *settings)
    there = [before] if before.exists() else part_paths(before)
    is_new = not path.exists() and not part_paths(path)
    if is_new and any(_Overlap.of(file, manifest).n_same for file in there):
        path = before
    if path.exists():
        overlap = _Overlap.of(path, manifest)
        if not overlap.n_common:
            raise CacheError(
                f"{path} holds the features of other data: none of its images is one of "
                f"{manifest.source}. Give another file with --cache."
            )
        limit = manifest.settings.limit
        if limit and overlap.n_unlisted:
            raise ConfigError(
                f"--limit {limit} would cut {path}, which holds {overlap.n_unlisted} images more: "
                "give another file or a folder with --cache"
            )
        for n_images, what in (
            (overlap.n_unlisted, "are no longer listed: left out of it"),
            (overlap.n_common - overlap.n_same, "have changed: computed again"),
        ):
            if n_images:
                _say(report, f"{n_images} images of {path.name} {what}")
    return path


class _Overlap(NamedTuple):
    """How a cache and a manifest meet.

    Images of both; of them those of the same size and time of change; images no longer listed.
    """

    n_common: int
    n_same: int
    n_unlisted: int

    @classmethod
    def of(cls, path: Path, manifest: Manifest) -> _Overlap:
        cache = open_cache(path, verify=False)
        columns = (cache.column(name).tolist() for name in ("n_bytes", "mtime_ns"))
        there = set(zip(cache.paths, *columns))
        listed = set(zip(manifest.paths, manifest.n_bytes, manifest.mtime_ns))
        n_common = len(set(cache.paths).intersection(manifest.paths))
        return cls(n_common, len(there & listed), len(cache) - n_common)


def _page_for(manifest: Manifest, page: PageSettings) -> PageSettings:
    """The page with the usual dots per inch where no PDF is drawn, and they decide nothing."""
    has_pdf = draws_pdf(decoder_of(manifest.paths))
    return page if has_pdf else replace(page, dpi=PageSettings.dpi)


def _refuse_other_dpi(begun: Header, manifest: Manifest, page: PageSettings, path: Path) -> None:
    """Refuse a cache by the field's name; its decoder, which tells of it, would be many words."""
    found = dpi_of(begun.decoder)
    is_drawn = draws_pdf(begun.decoder) and draws_pdf(decoder_of(manifest.paths))
    if is_drawn and found != page.dpi:
        raise CacheMismatchError("dpi", page.dpi, found, path)


def _refuse_other_cleaning(begun: Header, page: PageSettings, path: Path) -> None:
    """Refuse a cache by the option's name; its resampling, which tells of it, is of two things."""
    found = cleaning_of(begun.resampling)
    if found != page.clean:
        raise CacheMismatchError("clean", page.clean, found, path)


def _say(report: Report, message: str) -> None:
    report(Progress(stage="extracting", done=0, total=0, message=message))


def cache_file(
    cache: Path,
    data_name: str,
    page: PageSettings,
    network: NetworkSettings,
    compute: ComputeSettings,
    taps: Sequence[str] = TAPS,
    source: Path | None = None,
) -> Path:
    """The cache's file: `cache` itself if it ends in ``.h5``, else a file of that folder.

    The name holds a digest of the settings as asked for, so that ``auto`` names the same file
    wherever it is resolved; what it was resolved to stands in the header. The taps count only
    where they aren't the default ones, which were once all there were. The digest covers where
    the data are (`source`), so that two folders of one name have a cache each.
    """
    if cache.suffix == ".h5":
        return cache
    if cache.suffix in (".hdf5", ".hdf", ".he5"):
        raise ConfigError(f"--cache must be a folder, or a file ending in .h5; found {cache}")
    asked: dict[str, object] = {
        "arch": network.arch,
        "weights": Path(network.weights).name,
        "preprocessing": Preprocessing.from_settings(page).fingerprint,
        "precision": compute.precision,
    }
    if set(taps) != set(TAPS):
        asked["taps"] = sorted(taps)
    if source is not None:
        asked["source"] = str(source)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return cache / f"{data_name}-{network.arch}-{digest[:8]}.h5"


def _resolve(compute: ComputeSettings, begun: Header | None) -> Compute:
    """`compute` with nothing left open; ``auto`` precision is what the cache was begun with."""
    if begun is None or compute.precision != "auto":
        return resolve_compute(compute, purpose="extract")
    asked = ComputeSettings(**{**as_json(compute), "precision": begun.precision})
    return replace(resolve_compute(asked, purpose="extract"), reason="as the cache was begun")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """How the features are computed, before a backbone is there to compute them.

    Attributes
    ----------
    manifest : Manifest
    page : PageSettings
    weights : Weights
    compute : Compute
    resampling : str
        As the cache was begun; empty where it is new.
    taps : tuple of str
    batch_size : int
        As asked for; 0 takes the default.
    """

    manifest: Manifest
    page: PageSettings
    weights: Weights
    compute: Compute
    resampling: str
    taps: tuple[str, ...]
    batch_size: int

    @property
    def preprocessing(self) -> Preprocessing:
        """From page to network input: float32 deserves the exact resize, the others the fast."""
        is_exact = self.compute.precision == "fp32"
        resampling = self.resampling or (EXACT_RESAMPLING if is_exact else FAST_RESAMPLING)
        return Preprocessing.from_settings(self.page, resampling=resampling)

    @property
    def full_batch(self) -> int:
        """Images per forward pass."""
        return self.batch_size or default_batch_size(self.compute, self.preprocessing)

    def load_backbone(self) -> Backbone:
        """Lay the network out, and check it on pages of the data."""
        check = None
        if self.compute.precision != "fp32":
            check = check_pages(self.manifest, self.page, self.preprocessing)
        return Backbone(
            self.weights,
            self.preprocessing,
            self.compute,
            taps=self.taps,
            check=check,
        )

    def load_backbone_as_begun(self, path: Path) -> Backbone:
        """The same for a cache that must go on in the precision that it has.

        Raises
        ------
        DeviceError
            When the precision fails the self-check now.
        """
        backbone = self.load_backbone()
        if backbone.compute.precision != self.compute.precision:
            raise DeviceError(
                f"{path} was begun in {self.compute.precision}, but here "
                f"{backbone.compute.reason}. Go on where it was begun, or give another file with "
                "--cache."
            )
        return backbone


def _header(plan: _Plan, recipe: str) -> Header:
    weights, preprocessing, compute = plan.weights, plan.preprocessing, plan.compute
    return Header(
        arch=weights.arch,
        weights=weights.name,
        weights_digest=weights.digest,
        crop_mode=preprocessing.crop_mode,
        size=preprocessing.size,
        resampling=preprocessing.resampling,
        mean=preprocessing.mean,
        std=preprocessing.std,
        precision=compute.precision,
        device=compute.device,
        decoder=decoder_of(plan.manifest.paths, preprocessing.dpi),
        taps=tap_widths(weights.arch, plan.taps),
        recipe=recipe,
    )


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
    cleaning : str
        How many photographs were straightened this time; empty where pages aren't cleaned.
    warnings : tuple of str
        What the images themselves show to be wrong, each with the mend.
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
    cleaning: str = ""
    warnings: tuple[str, ...] = ()

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
        if self.cleaning:
            is_some = self.n_computed < self.n_images
            lines.append(f"{self.cleaning}{' (of those computed now)' if is_some else ''}")
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
        return lines + [f"warning: {warning}" for warning in self.warnings]

    @property
    def missing_csv(self) -> Path:
        """Where the absent files are listed, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-missing.csv")

    @property
    def quarantine_csv(self) -> Path:
        """Where the files left out are listed with their reasons, beside the cache."""
        return self.cache.with_name(f"{self.cache.stem}-quarantine.csv")


N_PAGES = 3
"""Pages computed both ways: with those of the grid, a tenth of a second at 224×224."""


def check_pages(
    manifest: Manifest, page: PageSettings, preprocessing: Preprocessing
) -> CheckPages | None:
    """A few of the manifest's pages, resized both ways; None where none can be decoded."""
    exact = Preprocessing.from_settings(page)
    pages = [
        (prepare(decoded, preprocessing), prepare(decoded, exact))
        for decoded in _decodable(manifest, page.dpi)
    ]
    if not pages:
        return None
    given, reference = zip(*pages)
    return CheckPages(given=np.stack(given), exact=np.stack(reference))


def _decodable(manifest: Manifest, dpi: int) -> Iterator[NDArray[np.uint8]]:
    rows = np.linspace(0, len(manifest) - 1, N_PAGES).astype(int)
    for row in np.unique(rows).tolist():
        try:
            yield decode(manifest.image_path(row), dpi=dpi)
        except EcgfeatError:
            continue  # its turn, and its reason, come with the others


# The images through the network

PART_ROWS = 512
"""Rows committed together: what a kill can cost, about five seconds of two cores' work."""
BATCHES_PER_LANE = 3
"""Batches begun ahead for each lane: enough to go on while a part is written to the disk."""

ESTIMATE_AFTER_S = 5.0
"""The first batches are slower: the network's kernels are chosen in them."""
Features = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Computed:
    """How many images went through the network, in how many seconds, and what was odd."""

    n_images: int = 0
    seconds: float = 0.0
    remarks: Remarks = field(default_factory=Remarks)


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
    remarks = Remarks()
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
            remarks.take_in(batch)
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
    return Computed(part.n_computed, time.monotonic() - started, remarks)


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
