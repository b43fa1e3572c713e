"""Batches of images as the network takes them, made ahead by threads in bounded memory.

Below, how a page becomes the network's input: one resize, then cut out or pad.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.files import page_named
from ecgfeat.images.cleaning import find_sheet, inked
from ecgfeat.images.decoding import (
    DIGEST_BYTES,
    decode_picture,
    digest,
    read_file,
    read_header,
    size_on_disk,
)
from ecgfeat.images.formats import MAX_PIXELS, Page, as_array, as_image, size_px
from ecgfeat.preprocessing import FAST_RESAMPLING, Preprocessing

__all__ = [
    "Alter",
    "Batch",
    "Failure",
    "Remarks",
    "paper_colour",
    "prepare",
    "straightened",
    "straightened_in_words",
    "stream",
]

LEAST_CONTRAST = 24
"""Between the darkest and the lightest of 256 grey levels; a faint trace has more than 100."""
WHITE = 255
FOUND_PX = 700
"""Longer side, at least, of the picture in which a photographed page is looked for."""
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
    straightened : list of int
        Rows of the photographs in which the page was found and straightened.
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    n_bytes: NDArray[np.int64]
    failures: list[Failure]
    remarks: list[tuple[int, str]] = field(default_factory=list)
    straightened: list[int] = field(default_factory=list)


class Remarks:
    """What people should know of how images were decoded, over batches and epochs."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, set[int]] = defaultdict(set)
        self._straightened: set[int] = set()
        self._decoded: set[int] = set()

    @classmethod
    def of(cls, shares: Iterable[Remarks]) -> Remarks:
        """Those of several processes together."""
        joint = cls()
        for share in shares:
            joint._decoded |= share._decoded
            joint._straightened |= share._straightened
            for remark, rows in share._rows.items():
                joint._rows[remark] |= rows
        return joint

    def clear(self) -> None:
        """Forget all."""
        for found in (self._rows, self._straightened, self._decoded):
            found.clear()

    def take_in(self, batch: Batch) -> None:
        """Add those of a batch."""
        self._decoded.update(batch.rows.tolist())
        self._straightened.update(batch.straightened)
        for row, remark in batch.remarks:
            self._rows[remark].add(row)

    def in_words(self, names: Sequence[object]) -> tuple[str, ...]:
        """What may be wrong, one line each; `names` are the images', by row."""
        return tuple(
            f"{remark} ({len(rows)} images, such as {names[min(rows)]})"
            for remark, rows in self._rows.items()
        )

    def on_cleaning(self, preprocessing: Preprocessing) -> str:
        """How many photographs were straightened; empty where pages aren't cleaned."""
        if preprocessing.clean == "none" or not self._decoded:
            return ""
        return straightened_in_words(len(self._straightened), len(self._decoded))


def straightened_in_words(n_found: int, n_images: int) -> str:
    """In how many images ``--clean photo`` found a photographed page."""
    others = "; the others were taken for scans" if n_found < n_images else ""
    return f"photographs: the page was found and straightened in {n_found} of {n_images}{others}"


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
    """A batch under way; it is filled by the threads, an image each at a time."""

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
        self._budget = budget
        self._preprocessing = preprocessing
        self._alter = alter
        size_px = (preprocessing.height_px, preprocessing.width_px)
        self._batch = Batch(
            rows=np.asarray(rows, np.int64),
            pixels=np.empty((n_images, *size_px, 3), np.uint8),
            digests=np.empty((n_images, DIGEST_BYTES), np.uint8),
            n_bytes=np.empty(n_images, np.int64),
            failures=[],
        )
        self._n_left = n_images
        self._counting = threading.Lock()
        self._all_done = threading.Event()
        self._futures = [pool.submit(self._fill, index) for index in range(n_images)]

    def __len__(self) -> int:
        return len(self._paths)

    def keep(self) -> Batch:
        """Wait for every image; raises what a thread raised, but for an image's own faults."""
        # Once, and not for each image: that would wake this thread as often. Not by
        # `concurrent.futures.wait`, which takes the locks of all and, met by Ctrl-C as it does so,
        # never gives them back: the pool's threads then wait for ever.
        if self._futures:
            self._all_done.wait()
        batch, good = self._batch, list[int]()
        for index, future in enumerate(self._futures):
            try:
                future.result()
                good.append(index)
            except ImageError as error:
                batch.failures.append(
                    Failure(
                        row=int(batch.rows[index]),
                        reason=str(error),
                        n_bytes=size_on_disk(self._paths[index]),
                        passing=error.passing,
                    )
                )
        # A slice where all is well: it copies nothing.
        kept = good if batch.failures else slice(None)
        return Batch(
            rows=batch.rows[kept],
            pixels=batch.pixels[kept],
            digests=batch.digests[kept],
            n_bytes=batch.n_bytes[kept],
            failures=batch.failures,
            remarks=sorted(set(batch.remarks)),
            straightened=sorted(set(batch.straightened)),
        )

    def _fill(self, index: int) -> None:
        try:
            self._make(index)
        finally:
            with self._counting:
                self._n_left -= 1
                if not self._n_left:
                    self._all_done.set()

    def _make(self, index: int) -> None:
        path = self._paths[index]
        data = read_file(path, self._looks[index] if self._looks else None)
        named = page_named(path)
        self._batch.n_bytes[index] = len(data)
        self._batch.digests[index] = np.frombuffer(digest(data, named), np.uint8)
        picture = read_header(data, page=named.page, dpi=self._preprocessing.dpi)
        width, height = picture.size_px
        with self._budget.hold(width * height):
            page, is_straightened = fit(decode_picture(picture), self._preprocessing)
        row = int(self._batch.rows[index])
        if is_straightened:
            self._batch.straightened.append(row)
        if remark := picture.remark or _of_one_tone(page):
            self._batch.remarks.append((row, remark))
        if self._alter is not None:
            page = self._alter(row, page)
        self._batch.pixels[index] = page


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


# From a page to the network's input


def prepare(page: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bring a page to the network's input, before normalisation.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
        In RGB, as `decode` gives it.
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of shape (preprocessing.height_px, preprocessing.width_px, 3), uint8
        In crop mode ``center``, byte for byte what torchvision's ``Resize`` and ``CenterCrop``
        make of the page: with ``pillow-bilinear`` as a Pillow image, with ``torch-bilinear``
        those of ``transforms.v2`` as an 8-bit tensor.

    Raises
    ------
    ImageError
        When the page is so narrow that ``center`` would enlarge it beyond all bounds.
    """
    return np.array(fit(page, preprocessing)[0])


def fit(page: Page, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], bool]:
    """`prepare` for a page of either kind, and whether it was found in a photograph.

    The array may be a view, or one not to be written to.
    """
    is_cleaned = preprocessing.clean == "photo"
    if is_cleaned:
        small = _shrunk(page, preprocessing)
        sheet = find_sheet(small)
    else:
        sheet = None
    width, height = sheet.size_px if sheet else size_px(page)
    geometry = preprocessing.geometry((width, height))
    wide, high = geometry.resized_px
    if wide * high > MAX_PIXELS:
        raise ImageError(
            f"too narrow: crop mode {preprocessing.crop_mode} would resize its "
            f"{width:,} x {height:,} pixels to {wide:,} x {high:,}; "
            "take --crop-mode border or squash"
        )
    if sheet:
        resized = sheet.straightened(small, (wide, high))
    else:
        resize = _fast_resize if preprocessing.filter == FAST_RESAMPLING else _exact_resize
        resized = resize(page, (wide, high))
    if is_cleaned:
        resized = inked(resized, has_rim=sheet is not None)
    left, top = geometry.offset_px
    if wide >= preprocessing.width_px and high >= preprocessing.height_px:
        rows = slice(top, top + preprocessing.height_px)
        return resized[rows, left : left + preprocessing.width_px], sheet is not None
    canvas = np.empty((preprocessing.height_px, preprocessing.width_px, 3), np.uint8)
    canvas[:] = WHITE if is_cleaned else paper_colour(page)
    canvas[-top : high - top, -left : wide - left] = resized
    return canvas, sheet is not None


def straightened(page: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The page over which `prepare` lays the network's input, with its light and colours.

    Parameters
    ----------
    page : ndarray of shape (height, width, 3), uint8
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of shape (height, width, 3), uint8
        The page itself, unless it is found in a photograph and cleaned.
    """
    if preprocessing.clean == "none":
        return page
    small = _shrunk(page, preprocessing)
    sheet = find_sheet(small)
    if sheet is None:
        return page
    scale = page.shape[1] / small.shape[1]
    width, height = (round(side * scale) for side in sheet.size_px)
    return sheet.straightened(page, (width, height))


def _shrunk(page: Page, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """A photograph at a size at which the page in it has a little more than the input's pixels."""
    longest = max(size_px(page))
    to = max(FOUND_PX, 8 * max(preprocessing.width_px, preprocessing.height_px) // 5)
    if longest <= to:
        return as_array(page)
    width, height = (max(1, round(side * to / longest)) for side in size_px(page))
    return _fast_resize(page, (width, height))


def _exact_resize(page: Page, to_px: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(as_image(page).resize(to_px, Image.Resampling.BILINEAR))


def _fast_resize(page: Page, to_px: tuple[int, int]) -> NDArray[np.uint8]:
    import torch

    # (1, 3, height, width) over the page's own bytes, which is torch's channels_last.
    pixels = torch.from_numpy(as_array(page))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        pixels, size=(to_px[1], to_px[0]), mode="bilinear", antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()


def paper_colour(page: Page) -> tuple[int, int, int]:
    """The colour of the page's paper: what most of it looks like.

    Of tones 32 levels wide in each channel the most frequent is taken (of two the darker), and
    its per-channel median. Not from the edges alone, which may run along a line of the grid.
    """
    array = np.asarray(page)
    rows, columns = (_spread(n, at_most) for n, at_most in zip(array.shape, _SAMPLED))
    pixels = array[rows[:, None], columns].reshape(-1, 3)
    tones = pixels >> 5
    codes = (tones[:, 0].astype(np.intp) << 6) | (tones[:, 1] << 3) | tones[:, 2]
    alike = pixels[codes == np.bincount(codes).argmax()]
    middle = len(alike) // 2
    red, green, blue = np.partition(alike, middle, axis=0)[middle].tolist()
    return red, green, blue


_SAMPLED = (97, 101)
"""Rows and columns looked at: primes, so that their distance is hardly ever the grid's."""


def _spread(n: int, at_most: int) -> NDArray[np.intp]:
    """Up to `at_most` positions, spread evenly over `n`."""
    n_taken = min(n, at_most)
    return (2 * np.arange(n_taken) + 1) * n // (2 * n_taken)
