"""Which images there are, and each one's label, split and group.

The data are a folder tree or a CSV; both end in the same `Manifest`. What is listed but absent
is counted and left out, never replaced.

`listing` reads what the data name, `splitting` sends rows to train and test where the data don't,
and `reading` looks which files are there: a `Manifest`, which `model` holds.
"""

from ecgfeat.manifest.listing import IMAGE_SUFFIXES, read_manifest
from ecgfeat.manifest.manifest import Manifest, MissingImage, write_missing

__all__ = ["IMAGE_SUFFIXES", "Manifest", "MissingImage", "read_manifest", "write_missing"]
