"""The feature cache: one HDF5 file per extraction that neither loses nor lies.

Written part by part (`open_writer`), read by row, layer and split (`open_cache`), checked byte
by byte. docs/cache-format.md is its specification; nothing else in ecgfeat imports h5py.
"""

from __future__ import annotations

from ecgfeat.feature_cache.format import Header
from ecgfeat.feature_cache.inspection import (
    CacheInfo,
    cache_info,
    export_cache,
    list_caches,
    verify_cache,
)
from ecgfeat.feature_cache.reader import (
    FeatureCache,
    Listing,
    Quarantined,
    open_cache,
    part_paths,
)
from ecgfeat.feature_cache.writer import CacheWriter, existing_header, open_writer

__all__ = [
    "CacheInfo",
    "CacheWriter",
    "FeatureCache",
    "Header",
    "Listing",
    "Quarantined",
    "cache_info",
    "existing_header",
    "export_cache",
    "list_caches",
    "open_cache",
    "open_writer",
    "part_paths",
    "verify_cache",
]
