"""Which images there are, and each one's label, split and group.

The data are a folder tree or a CSV; both end in the same `Manifest`. What is listed but absent
is counted and left out, never replaced; what was guessed or ignored is said in its summary.

`vocabulary` knows what people call splits, columns and junk, `tree` and `table` list the rows,
and `listing` splits them where the data don't, and looks which files are there.
"""

from ecgfeat.manifest.listing import read_manifest
from ecgfeat.manifest.manifest import SPLITS, Manifest, MissingImage, write_missing
from ecgfeat.manifest.table import list_images
from ecgfeat.manifest.tree import (
    EXTRAS,
    IMAGE_KINDS,
    IMAGE_SUFFIXES,
    PDFIUM,
    images_below,
    pages_named,
)
from ecgfeat.manifest.vocabulary import group_in, looks_like_patient, plain, split_called

__all__ = [
    "EXTRAS",
    "IMAGE_KINDS",
    "IMAGE_SUFFIXES",
    "PDFIUM",
    "SPLITS",
    "Manifest",
    "MissingImage",
    "group_in",
    "images_below",
    "list_images",
    "looks_like_patient",
    "pages_named",
    "plain",
    "read_manifest",
    "split_called",
    "write_missing",
]
