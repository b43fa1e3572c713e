"""A labelled set of synthetic pages: images and their ``manifest.csv``.

Every page is drawn from seeds of its own, made of the set's seed, the split and the page's
number: neither how many pages are asked for nor the number of threads changes one. (Which ones are
copied, if any, does hang on how many there are.) What must not tell the class (the heart, the
recording's faults, the page's looks) is drawn by functions that are not given it.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ecgfeat.config import SynthSettings
from ecgfeat.errors import ConfigError, DataError, storage_error
from ecgfeat.files import replacing
from ecgfeat.photograph import AMOUNTS, photograph
from ecgfeat.runtime import Progress, Report, n_cpus, silent
from ecgfeat.synth.heart import (
    CLASSES,
    Condition,
    Disturbance,
    Subject,
    draw_condition,
    draw_disturbance,
    draw_subject,
    electrical_axis_deg,
    record,
)
from ecgfeat.synth.page import Style, draw, draw_style

__all__ = ["SynthSummary", "draw_page", "synthesize"]

JPEG_QUALITY = 90
"""On Pillow's scale: thin traces keep their edges. PNG has no artefacts at all."""
CHUNK = 16
"""Pages a thread draws between two reports."""
MAX_THREADS = 4
"""Text and small arrays are drawn under Python's lock, where more threads would only wait."""
COPY_QUALITY, COPY_COLOURS = 75, 64
"""What the copies that aren't byte for byte are saved at: JPEG, and PNG."""
PURPOSES = ("order", "subject", "page", "copies")
"""What a seed is for; a new purpose goes last, so that the others keep their seeds."""
SUBJECT_PAIRS = 5
"""Of so many pages of a class the last shows the same subject as the one before, so that a
grouped evaluation has something to hold together."""


Row = dict[str, str]
"""One row of the manifest."""


class Level(NamedTuple):
    """What a difficulty means."""

    severity: tuple[float, float]  # Range of the pathological pages' severity, within 0 to 1.
    spread: float  # Factor on the variation that doesn't tell the class.


LEVELS = {
    "easy": Level((0.8, 1.0), 0.5),
    "medium": Level((0.4, 1.0), 1.0),
    "hard": Level((0.15, 0.6), 1.5),
}


@dataclass(frozen=True, kw_only=True)
class SynthSummary:
    """What `synthesize` made.

    Attributes
    ----------
    n_train, n_test : int
        Pages drawn.
    n_copies, n_undecodable, n_missing : int
        What was planted beside them.
    classes : tuple of str
        The second is the positive one.
    manifest_path : Path
        What `read_manifest` takes.
    seconds : float
        What drawing them took.
    """

    n_train: int
    n_test: int
    n_copies: int
    n_undecodable: int
    n_missing: int
    classes: tuple[str, ...]
    manifest_path: Path
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Page:
    """All there is to know of a page before it is drawn."""

    subject: Subject
    condition: Condition
    disturbance: Disturbance
    style: Style
    recording_seed: np.random.SeedSequence
    photo_seed: np.random.SeedSequence


def draw_page(label: str, *, seed: int, settings: SynthSettings) -> Image.Image:
    """Draw one page.

    With the same seed, pages of both classes show the same heart, recording and looks; only
    the condition differs.

    Parameters
    ----------
    label : str
        One of `CLASSES`.
    seed : int
        Replaces the settings' own.
    settings : SynthSettings
        `difficulty`, `size` and `photo` are used.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    ConfigError
        When there is no such class.
    """
    if label not in CLASSES:
        raise ConfigError(f"a page's class must be one of {', '.join(CLASSES)}; found {label!r}")
    subject_seed, page_seed = np.random.SeedSequence(seed).spawn(2)
    return _render(_plan(label, subject_seed, page_seed, LEVELS[settings.difficulty]), settings)


def synthesize(
    out: str | Path, settings: SynthSettings = SynthSettings(), *, report: Report = silent
) -> SynthSummary:
    """Draw a set of pages into a new or empty folder.

    Images go to ``OUT/images``, one row each to ``OUT/manifest.csv`` (path, label, split, group
    and what each page shows), which is written last. What the settings plant comes after the pages,
    by its name: ``copy-of-train-000012.jpg``, ``undecodable-000000.jpg``, ``missing-000000.jpg``.
    If the work ends early, what it drew is taken away again.

    Parameters
    ----------
    out : str or Path
    settings : SynthSettings
    report : callable
        Told the progress; may raise `Interrupted`.

    Returns
    -------
    SynthSummary

    Raises
    ------
    DataError
        When `out` is a file or isn't empty.
    StorageError
        When the disk refuses.
    Interrupted

    Examples
    --------
    >>> from ecgfeat.config import SynthSettings
    >>> summary = synthesize(Path("pages"), SynthSettings(train=20, test=10))  # doctest: +SKIP
    >>> summary.manifest_path  # doctest: +SKIP
    PosixPath('pages/manifest.csv')
    """
    started_s = time.monotonic()
    out = Path(out)
    _claim(out)
    manifest_path = out / "manifest.csv"
    try:
        rows = list(_draw_all(out, settings, report))
        _write_manifest(rows, manifest_path)
    except BaseException:
        shutil.rmtree(out / "images", ignore_errors=True)
        raise
    return SynthSummary(
        n_train=settings.train,
        n_test=settings.test,
        n_copies=settings.copies,
        n_undecodable=settings.undecodable,
        n_missing=settings.missing,
        classes=CLASSES,
        manifest_path=manifest_path,
        seconds=time.monotonic() - started_s,
    )


def _claim(out: Path) -> None:
    """Make the folder, or see that it is empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = next(out.iterdir(), None)
        if found is None:
            (out / "images").mkdir()
    except FileExistsError:
        raise DataError(
            f"{out} is a file; the pages need a folder. Give an empty or new folder."
        ) from None
    except OSError as error:
        raise storage_error(error, "making the folder", out) from error
    if found is not None:
        raise DataError(
            f"{out} is not empty (it holds {found.name!r}), and pages are never mixed with "
            "other files. Give an empty or new folder."
        )


def _draw_all(out: Path, settings: SynthSettings, report: Report) -> Iterator[Row]:
    """Draw and write every page and what is planted; yield the manifest's rows, in order."""
    jobs = list(_jobs(settings))
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    done = 0
    pool = ThreadPoolExecutor(min(n_cpus(), MAX_THREADS), thread_name_prefix="synth")
    try:
        for rows in pool.map(lambda chunk: [job(out, settings) for job in chunk], chunks):
            yield from rows
            done += len(rows)
            report(Progress(stage="drawing", done=done, total=len(jobs), unit="pages"))
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(settings: SynthSettings) -> Iterator[Callable[[Path, SynthSettings], Row]]:
    """What makes each file, and gives its row."""
    for split, n_pages in (("train", settings.train), ("test", settings.test)):
        for index in range(n_pages):
            yield partial(_make_page, split, index)
    random = np.random.default_rng(_seed(settings.seed, "train", "copies", 0))
    originals = np.sort(random.choice(settings.train, settings.copies, replace=False))
    for number, index in enumerate(originals.tolist()):
        yield partial(_make_copy, number, index)
    for number in range(settings.undecodable):
        yield partial(_make_undecodable, number)
    for number in range(settings.missing):
        yield partial(_make_missing, number)


def _make_page(split: str, index: int, out: Path, settings: SynthSettings) -> Row:
    row, page = _page(settings, split, index)
    _write(out / row["path"], _encoded(_render(page, settings), settings))
    return row


def _make_copy(number: int, index: int, out: Path, settings: SynthSettings) -> Row:
    """A training page again, as a test page of another group."""
    row, page = _page(settings, "train", index)
    original = _encoded(_render(page, settings), settings)
    if number % 2:
        with Image.open(io.BytesIO(original)) as image:
            original = _encoded(image, settings, as_copy=True)
    row["path"] = row["path"].replace("images/", "images/copy-of-")
    row |= {"split": "test", "group": f"copy-{number:06d}"}
    _write(out / row["path"], original)
    return row


def _make_undecodable(number: int, out: Path, settings: SynthSettings) -> Row:
    row, page = _page(settings, "train", settings.train + number)
    whole = _encoded(_render(page, settings), settings)
    broken = (whole[: len(whole) // 2], b"", b"<html>404 Not Found</html>\n")[number % 3]
    row |= _planted_as("undecodable", number, settings)
    _write(out / row["path"], broken)
    return row


def _make_missing(number: int, out: Path, settings: SynthSettings) -> Row:
    row, _ = _page(settings, "train", settings.train + settings.undecodable + number)
    return row | _planted_as("missing", number, settings)


def _planted_as(kind: str, number: int, settings: SynthSettings) -> Row:
    """Name and split of a file that can't be read: every fifth is a test page."""
    name = f"{kind}-{number:06d}"
    return {
        "path": f"images/{name}.{_suffix(settings)}",
        "split": "train" if number % 5 else "test",
        "group": name,
    }


def _encoded(image: Image.Image, settings: SynthSettings, *, as_copy: bool = False) -> bytes:
    """A file's bytes; as a copy with fewer colours or at a lower quality, by its format."""
    if as_copy and settings.format == "png":
        image = image.quantize(COPY_COLOURS)
    file = io.BytesIO()
    # PNG at its quickest: the usual level takes four times as long to save 7 %.
    quality = COPY_QUALITY if as_copy else JPEG_QUALITY
    image.save(file, settings.format, quality=quality, compress_level=1)
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise storage_error(error, "writing", path) from error


def _suffix(settings: SynthSettings) -> str:
    return "jpg" if settings.format == "jpeg" else "png"


def _page(settings: SynthSettings, split: str, index: int) -> tuple[Row, Page]:
    """Plan one page of the set, and its row of the manifest."""
    label = _label(settings.seed, split, index)
    subject_index = _subject_index(settings.seed, split, index)
    page = _plan(
        label,
        _seed(settings.seed, split, "subject", subject_index),
        _seed(settings.seed, split, "page", index),
        LEVELS[settings.difficulty],
    )
    named = {
        "path": f"images/{split}-{index:06d}.{_suffix(settings)}",
        "label": label,
        "split": split,
        "group": f"{split}-{subject_index:06d}",
    }
    return named | _metadata(page), page


def _seed(seed: int, split: str, purpose: str, number: int) -> np.random.SeedSequence:
    key = (("train", "test").index(split), PURPOSES.index(purpose), number)
    return np.random.SeedSequence(seed, spawn_key=key)


def _label(seed: int, split: str, index: int) -> str:
    """The page's class: pages come in pairs, one of each class in either order."""
    swapped = np.random.default_rng(_seed(seed, split, "order", index // 2)).random() < 0.5
    return CLASSES[(index + swapped) % 2]


def _subject_index(seed: int, split: str, index: int) -> int:
    """Number of the first page that shows the same subject: this page's own, mostly."""
    pair = index // 2
    if pair % SUBJECT_PAIRS != SUBJECT_PAIRS - 1:
        return index
    first = 2 * (pair - 1)
    same = _label(seed, split, first) == _label(seed, split, index)
    return first if same else first + 1


def _plan(
    label: str,
    subject_seed: np.random.SeedSequence,
    page_seed: np.random.SeedSequence,
    level: Level,
) -> Page:
    person, sheet = np.random.default_rng(subject_seed), np.random.default_rng(page_seed)
    recording_seed, photo_seed = page_seed.spawn(2)
    return Page(
        subject=draw_subject(person, spread=level.spread),
        condition=draw_condition(label, person, severity=level.severity),
        disturbance=draw_disturbance(sheet, spread=level.spread),
        style=draw_style(sheet, spread=level.spread),
        recording_seed=recording_seed,
        photo_seed=photo_seed,
    )


def _render(page: Page, settings: SynthSettings) -> Image.Image:
    rng = np.random.default_rng(page.recording_seed)
    signal = record(page.subject, page.condition, page.disturbance, rng)
    image = draw(signal, page.style, (settings.width_px, settings.height_px))
    if settings.photo == "none":
        return image
    return photograph(image, AMOUNTS[settings.photo], np.random.default_rng(page.photo_seed))


def _metadata(page: Page) -> Row:
    """What an audit for bias would ask for."""
    subject, condition = page.subject, page.condition
    disturbance, style = page.disturbance, page.style
    return {
        "condition": condition.name,
        "site": condition.site,
        "severity": f"{condition.severity:.3f}",
        "heart_rate": f"{subject.heart_rate:.1f}",
        "axis_deg": f"{electrical_axis_deg(subject):.1f}",
        "amplitude": f"{subject.amplitude:.3f}",
        "noise_mv": f"{disturbance.noise_mv:.4f}",
        "mains_mv": f"{disturbance.mains_mv:.4f}",
        "wander_mv": f"{disturbance.wander_mv:.4f}",
        "layout": style.layout,
        "grid": style.grid,
        "grid_style": style.grid_style,
        "pen": style.pen,
        "pulse": "yes" if style.pulse else "no",
        "header": "yes" if style.header else "no",
        "rotation_deg": f"{style.rotation_deg:.2f}",
    }


def _write_manifest(rows: list[Row], path: Path) -> None:
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=tuple(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
