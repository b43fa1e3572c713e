"""Makes ``tests/data/cache-v1.h5``, a version-1 cache that is kept and reread for ever.

Made once, with ``python -m tests.feature_cache.make_cache_v1``. It is not to be made again: a
change that can't read the file as it is needs a new format version, and another file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ecgfeat.feature_cache import open_writer
from ecgfeat.manifest import Manifest, MissingImage

from .fakes import HEADER, Failure, make_manifest

CACHE_V1 = Path(__file__).resolve().parents[1] / "data" / "cache-v1.h5"


def describe(root: Path) -> Manifest:
    names = (*(f"train/normal/Ä {row}.png" for row in range(8)), "test/8.png", "test/9.png")
    return replace(
        make_manifest(root, 12),
        name="study",
        paths=(*names, "test/\udcff.png", "train/broken.png"),
        labels=("normal", "afib") * 4 + ("normal", "normal", "afib", "afib"),
        splits=("train",) * 8 + ("test",) * 3 + ("train",),
        groups=("p0", "p0", "p1") + ("",) * 9,
        metadata={"age/years": tuple(str(40 + row) for row in range(12))},
        n_bytes=tuple(range(1000, 1012)),
        mtime_ns=(1_700_000_000_000_000_000,) * 12,
        missing=(
            MissingImage("test/gone.png", "paced", "test", ""),
            MissingImage("test/gone too.png", "paced", "test", ""),
        ),
    )


def main() -> None:
    taps = {"layer3": 4, "layer4": 8}
    header = replace(HEADER, size="448x320", weights="imagenet", taps=taps)
    rows = np.arange(11)
    values = {tap: rows[:, None] + np.arange(width) / width for tap, width in taps.items()}
    with TemporaryDirectory() as folder:
        manifest = describe(Path(folder))
        CACHE_V1.parent.mkdir(exist_ok=True)
        with open_writer(CACHE_V1, header, manifest) as writer:
            writer.commit(
                rows,
                {tap: features.astype(np.float32) for tap, features in values.items()},
                np.arange(11 * 16, dtype=np.uint8).reshape(11, 16),
                [Failure(11, "cut off: the file ends early")],
            )
            writer.finish()


if __name__ == "__main__":
    main()
