"""Small sets of real pages, and caches of them whose features are their thumbnails."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ecgfeat.config import DataSettings, SynthSettings
from ecgfeat.feature_cache import FeatureCache, open_writer
from ecgfeat.images import decode
from ecgfeat.manifest import Manifest, read_manifest
from ecgfeat.synth import draw_page

from ..conftest import write_csv
from ..feature_cache.fakes import HEADER, Failure

TAPS = {"layer4": 24 * 18 + 8}
SETTINGS = SynthSettings(size="240x180", difficulty="medium")
LARGE = SynthSettings(size="480x360", difficulty="medium")
Rows = list[dict[str, str]]


@lru_cache(maxsize=128)
def page(seed: int, label: str = "normal", settings: SynthSettings = SETTINGS) -> Image.Image:
    """A synthetic page, drawn once."""
    return draw_page(label, seed=seed, settings=settings)


def make_set(root: Path, n_rows: int = 40, **columns: Any) -> Rows:
    """A page of its own for each row, two classes in turn, every fourth pair in test."""
    rows = []
    for row in range(n_rows):
        label = ("normal", "pathological")[row % 2]
        path = f"{label}/{row:03d}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        page(row, label).save(root / path)
        split = "test" if row // 2 % 4 == 3 else "train"
        rows.append({"path": path, "label": label, "split": split})
        rows[-1] |= {name: str(of(row)) for name, of in columns.items()}
    return rows


def listed(root: Path, rows: Iterable[dict[str, str]], **settings: Any) -> Manifest:
    """The rows as a manifest."""
    return read_manifest(write_csv(root / "pages.csv", rows), DataSettings(**settings))


def cached(manifest: Manifest, *, bad: Iterable[int] = (), **replaced: Any) -> FeatureCache:
    """A cache beside the pages, without any network."""
    manifest, bad = replace(manifest, **replaced), set(bad)
    path = manifest.root.parent / "c.h5"
    good = np.array([row for row in range(len(manifest)) if row not in bad], dtype=np.int64)
    data = [manifest.image_path(row).read_bytes() for row in good]
    digests = [hashlib.blake2b(one, digest_size=16).digest() for one in data]
    with open_writer(path, replace(HEADER, taps=TAPS), manifest) as writer:
        writer.commit(
            rows=good,
            features={"layer4": np.stack([features_of(manifest, row) for row in good])},
            digests=np.array([np.frombuffer(one, np.uint8) for one in digests]),
            failures=[Failure(row, "cut off") for row in sorted(bad)],
        )
        return writer.finish()


def features_of(manifest: Manifest, row: int) -> np.ndarray:
    """A thumbnail of the page, and eight numbers that tell its class by its picture's name."""
    small = Image.fromarray(decode(manifest.image_path(row))).convert("L").resize((24, 18))
    seed = int.from_bytes(np.asarray(small).tobytes()[:8])
    rng = np.random.default_rng(seed)
    sign = 3.0 * ("pathological" in manifest.paths[row])
    told = rng.normal(size=8) + sign
    return np.concatenate([np.asarray(small, np.float32).ravel() / 40, told]).astype(np.float32)
