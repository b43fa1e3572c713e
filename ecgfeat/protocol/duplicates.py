"""The same picture on both sides of a split, or under two labels: what flatters a test."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["duplicates_in_words"]


def duplicates_in_words(
    pictures: Sequence[Hashable],
    labels: Sequence[str],
    sides: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> list[str]:
    """Warn of pictures that are the same byte for byte, where that spoils a result.

    Parameters
    ----------
    pictures : sequence of hashable, length n
        Equal for equal files: their digests.
    labels : sequence of str, length n
    sides : iterable of pairs of ndarray of int64
        Rows that are trained on or chosen by, and rows that are tested, fold by fold.

    Returns
    -------
    list of str
        At most two lines, each with the mend.

    Examples
    --------
    >>> sides = [(np.array([0, 1]), np.array([2, 3]))]
    >>> duplicates_in_words(["x", "y", "x", "z"], ["a", "b", "a", "b"], sides)[0][:44]
    '1 of 2 test images is also among those train'
    """
    found = []
    n_tested = n_known = 0
    for known, tested in sides:
        seen = {pictures[row] for row in known}
        n_tested += len(tested)
        n_known += sum(pictures[row] in seen for row in tested)
    if n_known:
        verb = "is" if n_known == 1 else "are"
        found.append(
            f"{n_known} of {n_tested} test images {verb} also among those trained on, byte for "
            "byte, which flatters every score: take them out, or name their patients "
            "(--group-column, --group-by)"
        )
    first: dict[Hashable, str] = {}
    under_two = {
        picture
        for picture, label in zip(pictures, labels)
        if first.setdefault(picture, label) != label
    }
    if under_two:
        n = len(under_two)
        found.append(
            f"{n} picture{'' if n == 1 else 's'} lie{'s' if n == 1 else ''} under two labels, byte "
            "for byte: correct the labels, or take them out"
        )
    return found
