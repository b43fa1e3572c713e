"""Small data and fake features, so that a cache is written in milliseconds without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecgfeat.config import DataSettings
from ecgfeat.feature_cache import FeatureCache, Header, open_writer
from ecgfeat.feature_cache.writer import CacheWriter
from ecgfeat.manifest import Manifest, read_manifest

from ..conftest import write_csv

TAPS = {"layer1": 6, "layer4": 10}
HEADER = Header(
    arch="resnet18",
    weights="random",
    weights_digest="ab" * 32,
    crop_mode="center",
    size="224",
    resampling="pillow-bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    decoder="pillow 13.0.0, simplejpeg 1.9.0",
    device="cpu",
    precision="fp32",
    taps=TAPS,
)


@dataclass(frozen=True)
class Failure:
    row: int
    reason: str
    passing: bool = False


def make_manifest(root: Path, n_rows: int = 24) -> Manifest:
    """`n_rows` tiny files, every third of them in test, some in groups of two; one is missing."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "path": f"page{row:04d}.png",
            "label": "ab"[row % 2],
            "split": "train" if row % 3 else "test",
            "group": f"g{row // 6}" if row < 12 and row % 3 == 1 else "",
            "age": str(40 + row),
            "site/ward": "x",
        }
        for row in range(n_rows)
    ]
    for row in rows:
        if not (root / row["path"]).exists():
            (root / row["path"]).write_bytes(row["path"].encode())
    gone = {**rows[0], "path": "gone.png", "label": "b", "split": "train", "group": ""}
    write_csv(root / "pages.csv", [*rows, gone])
    return made_manifest(root)


def made_manifest(root: Path) -> Manifest:
    """What `make_manifest` made there, as it is now."""
    return read_manifest(root / "pages.csv", DataSettings())


def drop(manifest: Manifest, rows: Iterable[int]) -> Manifest:
    """The manifest without some rows."""
    gone = set(rows)

    def kept(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value for row, value in enumerate(values) if row not in gone)

    per_row = ("paths", "labels", "splits", "groups", "n_bytes", "mtime_ns")
    return replace(
        manifest,
        **{name: kept(getattr(manifest, name)) for name in per_row},
        metadata={name: kept(values) for name, values in manifest.metadata.items()},
    )


def digest_of(manifest: Manifest, row: int) -> bytes:
    return hashlib.blake2b(manifest.image_path(row).read_bytes(), digest_size=16).digest()


def fake_features(manifest: Manifest, rows: Iterable[int], taps: dict[str, int]) -> dict[str, Any]:
    """Features that depend on the image's bytes alone."""
    seeds = [int.from_bytes(digest_of(manifest, row)[:8]) for row in rows]
    return {
        tap: np.array(
            [np.random.default_rng([seed, width]).random(width) for seed in seeds], np.float32
        ).reshape(-1, width)
        for tap, width in taps.items()
    }


def commit(writer: CacheWriter, manifest: Manifest, rows: Any, bad: Iterable[int] = ()) -> None:
    """Compute and commit `rows`, of which the `bad` can't be decoded."""
    bad = set(bad)
    good = np.array([row for row in rows if row not in bad], dtype=np.int64)
    digests = [np.frombuffer(digest_of(manifest, row), np.uint8) for row in good]
    writer.commit(
        rows=good,
        features=fake_features(manifest, good, dict(HEADER.taps)),
        digests=np.array(digests, np.uint8).reshape(-1, 16),
        failures=[Failure(row, "cut off") for row in rows if row in bad],
    )


def fill(
    path: Path,
    manifest: Manifest,
    *,
    part: int = 5,
    bad: Iterable[int] = (),
    header: Header = HEADER,
    **options: Any,
) -> FeatureCache:
    """A whole extraction."""
    with open_writer(path, header, manifest, **options) as writer:
        rows = writer.pending
        for start in range(0, len(rows), part):
            commit(writer, manifest, rows[start : start + part], bad)
        return writer.finish()


def data_of(cache: FeatureCache) -> dict[str, Any]:
    """Every data set of a cache, as bytes: what must not depend on how it came to be."""
    columns = {name: cache.column(name) for name in cache.columns()}
    columns |= {tap: cache.features(tap) for tap in cache.header.taps}
    return {
        name: (array.dtype.str, array.shape, array.tobytes()) for name, array in columns.items()
    }


def extract_in_process(path: Path, root: Path, log: Path, shard: Any = None, part: int = 2) -> None:
    """A whole extraction for a process of its own; what is committed is noted in `log`."""
    manifest = made_manifest(root)
    with open_writer(path, HEADER, manifest, shard=shard) as writer:
        rows = writer.pending
        for start in range(0, len(rows), part):
            some = rows[start : start + part]
            commit(writer, manifest, some)
            with log.open("a") as file:
                file.writelines(f"{manifest.paths[row]}\n" for row in some)
        if shard is None:
            writer.finish()
