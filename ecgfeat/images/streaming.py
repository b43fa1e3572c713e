"""Batches of decoded images, in order, made ahead by threads in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfeat.errors import ImageError
from ecgfeat.images.decoding import (
    DIGEST_BYTES,
    decode_picture,
    digest,
    read_file,
    read_header,
    size_on_disk,
)
from ecgfeat.images.formats import MAX_PIXELS
from ecgfeat.images.resizing import fit
from ecgfeat.preprocessing import Preprocessing

__all__ = ["Alter", "Batch", "Failure", "stream"]

LEAST_CONTRAST = 24
"""Between the darkest and the lightest of 256 grey levels; a faint trace has more than 100."""
Rows = Sequence[int] | NDArray[np.int64]
Alter = Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]]
"""From a row and its prepared page (height_px, width_px, 3) to another page of that shape."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be had.

    Attributes
    ----------
    row : int
        Its position in the paths.
    reason : str
        For people.
    n_bytes : int
        Size of the file; 0 where there is none.
    passing : bool, default False
        Whether the file's bytes couldn't be had, so that another try may succeed.
    """

    row: int
    reason: str
    n_bytes: int
    passing: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The images of one batch that decoded, and those that did not.

    Attributes
    ----------
    rows : ndarray of shape (b,), int64
        Positions in the paths, in the order asked for.
    pixels : ndarray of shape (b, height_px, width_px, 3), uint8
        The network's input before normalisation, RGB.
    digests : ndarray of shape (b, 16), uint8
        `image_digest` of each, of the very bytes that were decoded.
    n_bytes : ndarray of shape (b,), int64
        How many bytes those were.
    failures : list of Failure
        In the order asked for.
    remarks : list of (int, str)
        Row, and what people should know of how its image was decoded.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    n_bytes: NDArray[np.int64]
    failures: list[Failure]
    remarks: list[tuple[int, str]] = field(default_factory=list)


def stream(
    paths: Sequence[Path],
    batches: Iterable[Rows],
    preprocessing: Preprocessing,
    *,
    threads: int,
    alter: Alter | None = None,
    looks: Sequence[tuple[int, int]] | None = None,
) -> Generator[Batch, None, None]:
    """Decode and prepare images in threads, ahead of the caller.

    Order and content do not depend on the number of threads. While the caller works on a batch,
    the next is made, and no more batches than keep the threads busy, however many there are.
    Closing the generator, or leaving it by an exception, stops the threads after the images
    that they are at.

    Parameters
    ----------
    paths : sequence of Path
    batches : iterable of sequences of int
        Positions in `paths`, batch by batch; taken as needed, in the calling thread.
    preprocessing : Preprocessing
    threads : int
        At least 1.
    alter : callable, optional
        Changes each prepared page, in the thread that decoded it; of the row and the page alone.
    looks : sequence of (int, int), optional
        Size and time of change (ns) of each of `paths`; a file of others has become another.

    Yields
    ------
    Batch
        One for each of `batches`, even where none of its images could be decoded.

    Raises
    ------
    StorageError, MemoryError
        When the machine, not an image, is the reason.
    """
    budget = _PixelBudget(MAX_PIXELS)
    ahead: deque[_Promise] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ecgfeat-images")
    try:
        for rows in batches:
            ahead.append(_Promise(pool, budget, paths, rows, preprocessing, alter, looks))
            n_behind_the_first = sum(map(len, ahead)) - len(ahead[0])
            if n_behind_the_first >= max(len(rows), 2 * threads):
                yield ahead.popleft().keep()
        while ahead:
            yield ahead.popleft().keep()
    finally:
        pool.shutdown(cancel_futures=True)


class _Promise:
    """A batch under way; its arrays are filled by the threads, an image each at a time."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        budget: _PixelBudget,
        paths: Sequence[Path],
        rows: Rows,
        preprocessing: Preprocessing,
        alter: Alter | None,
        looks: Sequence[tuple[int, int]] | None,
    ) -> None:
        n_images = len(rows)
        self._looks = None if looks is None else [looks[row] for row in rows]
        self._paths = [paths[row] for row in rows]
        self._rows = np.asarray(rows, np.int64)
        self._budget = budget
        self._preprocessing = preprocessing
        self._alter = alter
        size_px = (preprocessing.height_px, preprocessing.width_px)
        self._pixels = np.empty((n_images, *size_px, 3), np.uint8)
        self._digests = np.empty((n_images, DIGEST_BYTES), np.uint8)
        self._n_bytes = np.empty(n_images, np.int64)
        self._remarks: dict[int, str] = {}  # by row
        self._futures = [pool.submit(self._fill, index) for index in range(n_images)]

    def __len__(self) -> int:
        return len(self._paths)

    def keep(self) -> Batch:
        """Wait for every image; raises what a thread raised, but for an image's own faults."""
        wait(self._futures)  # once, and not for each image: that would wake this thread as often
        good: list[int] = []
        failures: list[Failure] = []
        for index, future in enumerate(self._futures):
            try:
                future.result()
                good.append(index)
            except ImageError as error:
                failures.append(
                    Failure(
                        row=int(self._rows[index]),
                        reason=str(error),
                        n_bytes=size_on_disk(self._paths[index]),
                        passing=error.passing,
                    )
                )
        # A slice where all is well: it copies nothing.
        kept = good if failures else slice(None)
        return Batch(
            rows=self._rows[kept],
            pixels=self._pixels[kept],
            digests=self._digests[kept],
            n_bytes=self._n_bytes[kept],
            failures=failures,
            remarks=sorted(self._remarks.items()),
        )

    def _fill(self, index: int) -> None:
        data = read_file(self._paths[index], self._looks[index] if self._looks else None)
        self._n_bytes[index] = len(data)
        self._digests[index] = np.frombuffer(digest(data), np.uint8)
        picture = read_header(data)
        width, height = picture.size_px
        with self._budget.hold(width * height):
            page = fit(decode_picture(picture), self._preprocessing)
        if remark := picture.remark or _of_one_tone(page):
            self._remarks[int(self._rows[index])] = remark
        if self._alter is not None:
            page = self._alter(int(self._rows[index]), page)
        self._pixels[index] = page


def _of_one_tone(page: NDArray[np.uint8]) -> str:
    """Whether nothing can be seen on a prepared page."""
    is_even = int(page.max()) - int(page.min()) < LEAST_CONTRAST
    return "pages of almost one tone, on which nothing can be seen" if is_even else ""


class _PixelBudget:
    """Bounds the pixels that threads decode at once, so that memory does not grow with them."""

    def __init__(self, n_pixels: int) -> None:
        self._free = n_pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= n_pixels)
            self._free -= n_pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += n_pixels
                self._changed.notify_all()
