"""The data's own pages, by which the precision of their features is judged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ecgfeat.backbones import CheckPages
from ecgfeat.config import PageSettings
from ecgfeat.errors import EcgfeatError
from ecgfeat.images import decode, prepare
from ecgfeat.manifest import Manifest
from ecgfeat.preprocessing import Preprocessing

__all__ = ["check_pages"]

N_PAGES = 3
"""Pages computed both ways: with those of the grid, a tenth of a second at 224×224."""


def check_pages(
    manifest: Manifest, page: PageSettings, preprocessing: Preprocessing
) -> CheckPages | None:
    """A few of the manifest's pages, resized both ways; None where none can be decoded."""
    exact = Preprocessing.from_settings(page)
    pages = [
        (prepare(decoded, preprocessing), prepare(decoded, exact))
        for decoded in _decodable(manifest)
    ]
    if not pages:
        return None
    given, reference = zip(*pages)
    return CheckPages(given=np.stack(given), exact=np.stack(reference))


def _decodable(manifest: Manifest) -> Iterator[NDArray[np.uint8]]:
    rows = np.linspace(0, len(manifest) - 1, N_PAGES).astype(int)
    for row in np.unique(rows).tolist():
        try:
            yield decode(manifest.image_path(row))
        except EcgfeatError:
            continue  # its turn, and its reason, come with the others
