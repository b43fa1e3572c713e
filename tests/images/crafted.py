"""JPEG and PNG files put together by hand, byte by byte, for what no encoder at hand writes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..conftest import draw_page

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First x, first y, step in x, step in y of PNG's seven interlacing passes."""

Page = NDArray[np.uint8]


def page_of(size_px: tuple[int, int], seed: int = 0) -> Page:
    """A drawn page with a little noise, so that every block of a JPEG has something to tell."""
    page = np.asarray(draw_page(seed, 1, size_px)).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-6, 7, page.shape)
    return np.clip(page + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image | Page, image_format: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


# PNG


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(
    size_px: tuple[int, int], depth: int, colour_type: int, *, interlaced: bool = False
) -> bytes:
    return chunk(b"IHDR", struct.pack(">2I5B", *size_px, depth, colour_type, 0, 0, interlaced))


def png(
    samples: NDArray[np.integer],
    depth: int,
    colour_type: int,
    extra: Iterable[bytes] = (),
    *,
    interlaced: bool = False,
) -> bytes:
    """A PNG of `samples`, (height, width) or (height, width, channels), with `extra` chunks."""
    height, width = samples.shape[:2]
    passes = [samples]
    if interlaced:
        passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    data = b"".join(b"\x00" + _packed(row, depth) for part in passes if part.size for row in part)
    return b"".join(
        [
            PNG_MAGIC,
            png_header((width, height), depth, colour_type, interlaced=interlaced),
            *extra,
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND"),
        ]
    )


def _packed(row: NDArray[np.integer], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def white_png(size_px: tuple[int, int]) -> bytes:
    """A white PNG of one bit per pixel: a bomb where `size_px` is large."""
    width, height = size_px
    row = b"\x00" + b"\xff" * -(-width // 8)
    compressor = zlib.compressobj(9)
    packed = [compressor.compress(row * 100) for _ in range(height // 100)]
    packed += [compressor.compress(row * (height % 100)), compressor.flush()]
    idat = chunk(b"IDAT", b"".join(packed))
    return PNG_MAGIC + png_header(size_px, 1, 0) + idat + chunk(b"IEND")


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


ADOBE = {kind: segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, kind])) for kind in (0, 1, 2)}
"""Adobe's segment for components that are RGB or CMYK (0), YCbCr (1), YCCK (2)."""


def frame(
    size_px: tuple[int, int], factors: Sequence[tuple[int, int]], *, marker: int = 0xC0
) -> bytes:
    """A frame header; `factors` are each component's horizontal and vertical sampling."""
    parts = [bytes([1 + i, 16 * h + v, 0]) for i, (h, v) in enumerate(factors)]
    return segment(marker, struct.pack(">BHHB", 8, *size_px[::-1], len(parts)) + b"".join(parts))


def jpeg_of_planes(
    planes: Sequence[Page],
    size_px: tuple[int, int],
    factors: Sequence[tuple[int, int]],
    extra: bytes = b"",
) -> bytes:
    """A baseline JPEG with one scan per component, each taken from a grey JPEG of that plane.

    Any sampling is possible: `planes` must have the size that `factors` give them.
    """
    tables, scans = b"", []
    for number, plane in enumerate(planes, start=1):
        grey = encoded(plane, "JPEG", quality=90)
        parts = _segments(grey)
        tables = b"".join(segment(m, body) for m, body in parts if m in (0xDB, 0xC4))
        start = sum(4 + len(body) for _, body in parts) + 2
        scan = segment(0xDA, bytes([1, number, 0, 0, 63, 0]))
        scans.append(scan + grey[start : grey.rindex(b"\xff\xd9")])
    return b"\xff\xd8" + extra + tables + frame(size_px, factors) + b"".join(scans) + b"\xff\xd9"


def sampled_planes(page: Page, factors: Sequence[tuple[int, int]]) -> list[Page]:
    """The page's Y, Cb and Cr, each at the size that its sampling factors give it."""
    height, width = page.shape[:2]
    most_h, most_v = (max(sizes) for sizes in zip(*factors))
    planes = Image.fromarray(page).convert("YCbCr").split()
    return [
        np.asarray(plane.resize((-(-width * h // most_h), -(-height * v // most_v))))
        for plane, (h, v) in zip(planes, factors)
    ]


def _segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Markers and bodies up to and with the scan's header."""
    found: list[tuple[int, bytes]] = []
    position = 2
    while not found or found[-1][0] != 0xDA:
        _, marker, length = struct.unpack_from(">BBH", jpeg, position)
        found.append((marker, jpeg[position + 4 : position + 2 + length]))
        position += 2 + length
    return found


def with_segments(jpeg: bytes, extra: bytes) -> bytes:
    """The JPEG with `extra` segments after its start marker."""
    return jpeg[:2] + extra + jpeg[2:]


def resized_header(jpeg: bytes, size_px: tuple[int, int]) -> bytes:
    """The JPEG with another size in its (baseline) frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", *size_px[::-1]) + jpeg[at + 4 :]


def many_scans(size_px: tuple[int, int], n_scans: int) -> bytes:
    """A grey progressive JPEG whose scans say "all zero" in a few bytes each."""
    width, height = size_px
    n_blocks = -(-width // 8) * -(-height // 8)
    tables = segment(0xDB, b"\x00" + b"\x01" * 64)
    one_code = bytes([1] + 15 * [0])  # one code of one bit, for the symbol that follows
    tables += segment(0xC4, b"\x00" + one_code + b"\x00")
    tables += segment(0xC4, b"\x10" + one_code + b"\xe0")  # a run of 2**14 + 14 more bits' blocks
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + _stuffed("0" * n_blocks)
    runs = _stuffed(("0" + "1" * 14) * -(-n_blocks // 32767))
    more = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + runs
    header = frame(size_px, [(1, 1)], marker=0xC2)
    return b"\xff\xd8" + tables + header + first + more * (n_scans - 1) + b"\xff\xd9"


def _stuffed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


# TIFF


def tiff(samples: NDArray[np.integer], tags: dict[int, int], data: bytes = b"") -> bytes:
    """A TIFF of one strip; `tags` are SHORTs beside or in place of the usual ones."""
    height, width = samples.shape[:2]
    order = ">" if samples.dtype.byteorder == ">" else "<"
    n_channels = samples.shape[2] if samples.ndim == 3 else 1
    data = data or samples.tobytes()
    depth = 8 * samples.itemsize
    usual = {256: width, 257: height, 258: depth, 259: 1, 262: 1, 277: n_channels, 278: height}
    entries = usual | tags
    end = 8 + 2 + 12 * (len(entries) + 2) + 4
    depths = struct.pack(f"{order}{n_channels}H", *[depth] * n_channels)
    directory = b""
    for tag in sorted([*entries, 273, 279]):
        if tag == 258 and len(depths) > 4:
            entry = (tag, 3, n_channels, end)
        elif tag in (273, 279):
            entry = (tag, 4, 1, end + len(depths) if tag == 273 else len(data))
        else:
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, entries[tag], 0)
            continue
        directory += struct.pack(f"{order}HHII", *entry)
    head = struct.pack(f"{order}HIH", 42, 8, len(entries) + 2)
    return (b"MM" if order == ">" else b"II") + head + directory + bytes(4) + depths + data


# EXIF


def exif_tiff(orientation: int, order: str = ">") -> bytes:
    """EXIF data with the orientation as its second entry; `order` is struct's."""
    head = b"MM\x00*" if order == ">" else b"II*\x00"
    make = struct.pack(f"{order}HHII", 0x010F, 2, 4, 0)
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(f"{order}IH", 8, 2) + make + entry + bytes(4)


def exif_segment(tiff: bytes) -> bytes:
    return segment(0xE1, b"Exif\x00\x00" + tiff)
