"""Files that were sound, broken at random."""

from __future__ import annotations

import random
import re
import struct
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ecgfeat.errors import ImageError
from ecgfeat.images.decoding import read_header
from ecgfeat.images.formats import MAX_PIXELS, Jpeg, blaming_the_file, load
from ecgfeat.runtime import peak_memory_mib

from . import crafted
from .crafted import PNG_MAGIC, chunk, encoded, jpeg_of_planes, page_of, png
from .outcomes import DECODED, outcome

REASON = re.compile(
    r"(empty|cut off|damaged|not a|too many pixels|too long|a kind of JPEG)\b[\x20-\x7e]{0,120}"
)


def sound_files() -> list[bytes]:
    """One of every kind that has its own path."""
    page = page_of((40, 30))
    grey = page[..., 0]
    jpeg = encoded(page, "JPEG")
    rgba = np.dstack([page, grey])
    oriented = crafted.with_segments(jpeg, crafted.exif_segment(crafted.exif_tiff(6)))
    palette = [chunk(b"PLTE", bytes(range(256)) * 3), chunk(b"tRNS", bytes(range(100)))]
    return [
        jpeg,
        encoded(page, "JPEG", progressive=True),
        oriented,
        encoded(grey, "JPEG"),
        encoded(page, "JPEG", subsampling=0, restart_marker_blocks=2),
        encoded(Image.fromarray(page).convert("CMYK"), "JPEG"),
        jpeg_of_planes(
            crafted.sampled_planes(page, factors := [(4, 2), (1, 1), (1, 1)]), (40, 30), factors
        ),
        crafted.many_scans((40, 30), 9),
        encoded(page, "PNG"),
        png(rgba, 8, 6, interlaced=True),
        png(grey, 8, 3, palette),
        png(grey // 64, 2, 0, [chunk(b"tRNS", b"\x00\x02")]),
        png(page.astype(np.uint16) * 256, 16, 2, interlaced=True),
        png(rgba[..., 2:].astype(np.uint16) * 256, 16, 4),
        encoded(page, "PNG", exif=b"Exif\x00\x00" + crafted.exif_tiff(3)),
        encoded(page, "TIFF"),
        encoded(page, "GIF"),
        encoded(page, "BMP"),
        encoded(page, "WEBP"),
    ]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Break the file in one to four places."""
    broken = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(broken))
        span = chance.choice([1, 2, 4, 16, 64])
        (kind,) = chance.choices(range(1, 7), weights=[8, 2, 2, 2, 2, 1])
        if kind == 1:
            broken[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            broken[at : at + span] = chance.randbytes(span)
        elif kind == 3:
            broken[at : at + span] = bytes([chance.choice([0, 255])]) * span
        elif kind == 4:
            broken[at:at] = broken[at : at + span]
        elif kind == 5:
            del broken[at + 1 : at + 1 + span]
        else:
            del broken[at + 1 :]
    if data.startswith(PNG_MAGIC) and chance.random() < 0.7:
        return repaired(bytes(broken))
    return bytes(broken)


def repaired(data: bytes) -> bytes:
    """The PNG with its checksums made right, so that the damage behind them is met."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        length = min(length, len(data) - at - 12)
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts)


@pytest.mark.parametrize(
    "n_files", [10_000, pytest.param(200_000, marks=pytest.mark.slow)], ids=str
)
def test_mutated_files_are_decoded_or_refused_with_a_reason(
    capfd: pytest.CaptureFixture[str], n_files: int
) -> None:
    chance = random.Random(n_files)
    sound = sound_files()
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    before_mib = peak_memory_mib()
    for number in range(n_files):
        data = mutated(sound[number % len(sound)], chance)
        started = time.monotonic()
        reason = outcome(data)
        slowest_s = max(slowest_s, time.monotonic() - started)
        assert reason == DECODED or REASON.fullmatch(reason), (number, reason)
        outcomes[reason.split(":")[0] or "decoded"] += 1
    assert slowest_s < 10
    # A WebP's header makes Pillow take 4 bytes for each pixel that it claims, within the limit.
    assert peak_memory_mib() - before_mib < 4.5 * MAX_PIXELS / 2**20
    assert min(outcomes[name] for name in ("decoded", "damaged", "cut off")) > n_files / 10
    assert capfd.readouterr() == ("", "")


def test_what_simplejpeg_accepts_of_broken_jpegs_pillow_decodes_to_the_same_pixels() -> None:
    chance = random.Random(0)
    jpegs = [data for data in sound_files() if data.startswith(b"\xff\xd8")]
    n_accepted = 0
    for number in range(3_000):
        try:
            picture = read_header(mutated(jpegs[number % len(jpegs)], chance))
            with blaming_the_file():
                page = picture.decode()
        except ImageError:
            continue
        assert isinstance(picture, Jpeg)
        reference = load(picture.data, "JPEG").convert("RGB")
        assert np.array_equal(np.asarray(page), np.asarray(reference))
        n_accepted += 1
    assert n_accepted > 300
