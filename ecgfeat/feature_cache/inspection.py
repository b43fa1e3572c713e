"""What a person wants to know of a cache, whether it is whole, and its way to other programs."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import CacheDamagedError, CacheFormatError, CacheLockedError, ConfigError
from ecgfeat.feature_cache.format import Header
from ecgfeat.feature_cache.reader import FeatureCache, open_cache, part_paths
from ecgfeat.feature_cache.writer import writing
from ecgfeat.manifest import SPLITS

__all__ = ["CacheInfo", "cache_info", "export_cache", "list_caches", "verify_cache"]


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """A cache in numbers; counts are by ``"split/class"``.

    Attributes
    ----------
    path : Path
    data_name : str
    header : Header
    n_images : int
    images, missing, quarantined : mapping of str to int
        Rows; listed files that were absent; files left out because they can't be used.
    created : str
        UTC.
    extraction_s : float
        Seconds that computing took.
    versions : mapping of str to str
    n_bytes : int
        Size of the file.
    n_parts : int
        Parts beside it that wait to be put together.
    """

    path: Path
    data_name: str
    header: Header
    n_images: int
    images: Mapping[str, int]
    missing: Mapping[str, int]
    quarantined: Mapping[str, int]
    created: str
    extraction_s: float
    versions: Mapping[str, str]
    n_bytes: int
    n_parts: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {**asdict(self), "path": str(self.path)}


def cache_info(path: Path) -> CacheInfo:
    """Describe a cache, which is verified first.

    Raises
    ------
    CacheError, StorageError
        As `open_cache` does.
    """
    cache = open_cache(path)
    left_out = cache.quarantined
    return CacheInfo(
        path=cache.path,
        data_name=cache.data_name,
        header=cache.header,
        n_images=len(cache),
        images=_count(zip(cache.splits, cache.labels)),
        missing={f"{split}/{label}": n for (label, split), n in cache.missing.items()},
        quarantined=_count((item.split, item.label) for item in left_out),
        created=cache.created,
        extraction_s=cache.extraction_s,
        versions=cache.versions,
        n_bytes=cache.path.stat().st_size,
        n_parts=len(part_paths(cache.path)),
    )


def _count(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    return dict(sorted(Counter("/".join(pair) for pair in pairs).items()))


def list_caches(folder: Path) -> list[Path]:
    """The caches in a folder, by name; also those of which there are only parts so far."""
    begun = (path.with_suffix("") for path in folder.glob("*.h5.parts"))
    return sorted({*folder.glob("*.h5"), *begun})


def verify_cache(path: Path) -> list[str]:
    """Look for damage in a cache and the parts beside it.

    Returns
    -------
    list of str
        What is damaged, a sentence each; empty when all is well.

    Raises
    ------
    CacheError
        When there is neither a cache nor a part of one.
    StorageError
    """
    parts = part_paths(path)
    files = [path, *parts] if path.exists() or not parts else parts
    return [finding for file in files for finding in _verify_file(file)]


def _verify_file(path: Path) -> list[str]:
    try:
        cache = open_cache(path)
        for tap in cache.header.taps:
            cache.features(tap)
    except (CacheDamagedError, CacheFormatError, CacheLockedError) as error:
        return [str(error)]
    return [f"{path}: {fault}" for fault in _faults(cache)]


def _faults(cache: FeatureCache) -> list[str]:
    """What a whole file can still have wrong when another program wrote it."""
    faults = {
        "two rows have the same path": len(set(cache.paths)) != len(cache),
        "a label isn't one of the classes": not set(cache.labels) <= set(cache.classes),
        "a split is none of train, val and test": not set(cache.splits) <= set(SPLITS),
    }
    return [fault for fault, found in faults.items() if found]


def export_cache(path: str | Path, npz_path: str | Path, taps: Sequence[str] = ()) -> None:
    """Write a cache as ``.npz``, which ``numpy.load`` reads without pickle.

    Parameters
    ----------
    path, npz_path : str or Path
    taps : sequence of str
        Layers to take along; all by default. Each becomes an array of its name, beside
        ``path``, ``label``, ``split``, ``group`` and ``classes``.

    Raises
    ------
    ConfigError
        When the cache has no such layer, or would be overwritten.
    CacheError, StorageError
    """
    npz_path = Path(npz_path)
    cache = open_cache(path)
    if npz_path.exists() and npz_path.samefile(path):
        raise ConfigError(f"{npz_path} is the cache itself: give another file to write")
    texts = {
        "path": cache.paths,
        "label": cache.labels,
        "split": cache.splits,
        "group": cache.groups,
        "classes": cache.classes,
    }
    taps = tuple(taps or cache.header.taps)
    cache.require(taps)
    # One layer in memory at a time, which numpy.savez wouldn't do.
    with writing(npz_path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, values in texts.items():
            _add(archive, name, np.array(values, dtype=np.str_))
        for tap in taps:
            _add(archive, tap, cache.features(tap))


def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
