"""Images are input from strangers: crafted and mutated files, each with its defined outcome."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecgfeat.errors import ImageError
from ecgfeat.files import MAX_IMAGE_BYTES
from ecgfeat.images import MAX_PIXELS, decode

from . import crafted
from .crafted import PNG_MAGIC, chunk, encoded, jpeg_of_planes, page_of, png, segment
from .outcomes import DECODED, outcome

PAGE = page_of((40, 30))
JPEG = encoded(PAGE, "JPEG")
PROGRESSIVE = encoded(PAGE, "JPEG", progressive=True)
PNG = encoded(PAGE, "PNG")
SCAN = JPEG.index(b"\xff\xda")
END, HEADER = chunk(b"IEND"), crafted.png_header((40, 30), 8, 2)
DATA = chunk(b"IDAT", zlib.compress(b"".join(b"\x00" + row.tobytes() for row in PAGE)))

CUT_OFF = "cut off: the file ends before the picture does"
JPEG_HEADER = "damaged: the JPEG header is not sound"


UNSOUND_JPEG = "damaged: the JPEG data are not sound ("  # and then the decoder's words
UNSOUND = "damaged: the picture data are not sound ("
TOO_MANY = "too many pixels: at most 89 million are decoded"
HEADER_UNSOUND = "damaged: the header is not sound"


def patched_tiff_size(data: bytes, width: int, height: int) -> bytes:
    """A little-endian TIFF with another width and height in its directory."""
    (start,) = struct.unpack_from("<I", data, 4)
    (n_entries,) = struct.unpack_from("<H", data, start)
    broken = bytearray(data)
    for index in range(n_entries):
        at = start + 2 + 12 * index
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257):
            struct.pack_into("<HHII", broken, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(broken)


def many_pages(tiff: bytes, n_pages: int) -> bytes:
    """A little-endian TIFF followed by directories that hold hardly anything."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (n_entries,) = struct.unpack_from("<H", tiff, start)
    parts = [tiff[: (at := start + 2 + 12 * n_entries)], struct.pack("<I", len(tiff))]
    parts.append(tiff[at + 4 :])
    for page in range(1, n_pages + 1):
        behind = len(tiff) + 18 * page if page < n_pages else 0
        parts.append(struct.pack("<HHHIII", 1, 256, 3, 1, 40, behind))
    return b"".join(parts)


def gif_pictures(n_pictures: int) -> bytes:
    """So many more pictures of a GIF, of a pixel each, and its end."""
    picture = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return picture * n_pictures + b";"


def unsupported(kind: str) -> str:
    return f"a kind of JPEG that is not supported ({kind}): save it as PNG"


def not_but(name: str) -> str:
    return f"not a picture that can be read but {name}"


def too_many(size: str) -> str:
    return f"too many pixels: {size}, at most 89 million are decoded"


def other(image_format: str) -> bytes:
    return encoded(PAGE, image_format)


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    """`data` with the first `old` replaced, which must be there."""
    assert old in data
    return data.replace(old, new, 1)


def bad_checksum(part: bytes) -> bytes:
    return part[:-1] + bytes([part[-1] ^ 1])


def with_frame(marker: int) -> bytes:
    return patched(JPEG, b"\xff\xc0", bytes([0xFF, marker]))


def with_chunks(*chunks: bytes) -> bytes:
    return PNG_MAGIC + b"".join(chunks)


def rgb_header(**fields: int) -> bytes:
    values = {"depth": 8, "colour_type": 2, "compression": 0, "filters": 0, "interlace": 0}
    return chunk(b"IHDR", struct.pack(">2I5B", 40, 30, *(values | fields).values()))


Case = tuple[Callable[[], bytes], str]

BOMBS: dict[str, Case] = {
    "JPEG of 14,000 x 14,000": (
        lambda: crafted.resized_header(JPEG, (14_000, 14_000)),
        too_many("14,000 x 14,000"),
    ),
    "JPEG of 30,000 x 30,000": (
        lambda: crafted.resized_header(JPEG, (30_000, 30_000)),
        too_many("30,000 x 30,000"),
    ),
    "PNG of 14,000 x 14,000": (
        lambda: crafted.white_png((14_000, 14_000)),
        too_many("14,000 x 14,000"),
    ),
    "PNG of 30,000 x 30,000": (
        lambda: with_chunks(crafted.png_header((30_000, 30_000), 8, 2), DATA, END),
        too_many("30,000 x 30,000"),
    ),
    "PNG of 2**31-1 x 2**31-1": (
        lambda: with_chunks(crafted.png_header((2**31 - 1, 2**31 - 1), 8, 2), DATA, END),
        too_many("2,147,483,647 x 2,147,483,647"),
    ),
    "PNG one pixel wide and 80 million high": (
        lambda: with_chunks(crafted.png_header((1, 80_000_000), 1, 0), DATA, END),
        "too long: 1 x 80,000,000 pixels, at most 65,535 a side are decoded",
    ),
    "PNG whose second header is a bomb": (
        lambda: with_chunks(HEADER, crafted.png_header((30_000, 30_000), 8, 2), DATA, END),
        "damaged: the PNG must have one header of 13 bytes",
    ),
    "JPEG whose second frame header is a bomb": (
        lambda: crafted.with_segments(JPEG, crafted.frame((30_000, 30_000), [(1, 1)] * 3)),
        "damaged: the JPEG header must give the picture's size once",
    ),
    "PNG with 64 MiB of text in 64 KiB": (
        lambda: png(PAGE, 8, 2, [chunk(b"zTXt", b"a\x00\x00" + _zeros(2**26))]),
        DECODED,
    ),
    "PNG with a colour profile of 64 MiB": (
        lambda: png(PAGE, 8, 2, [chunk(b"iCCP", b"a\x00\x00" + _zeros(2**26))]),
        DECODED,
    ),
    "PNG with 64 MiB of data behind the picture": (
        lambda: with_chunks(crafted.png_header((40, 30), 8, 0), chunk(b"IDAT", _zeros(2**26)), END),
        DECODED,
    ),
    "PNG with 100,000 chunks": (
        lambda: with_chunks(HEADER, chunk(b"IDAT") * 100_000, DATA, END),
        "damaged: the PNG has more than 65,536 chunks",
    ),
    "JPEG with 100,000 segments": (
        lambda: crafted.with_segments(JPEG, segment(0xE5, b"") * 100_000),
        "damaged: the JPEG header has more than 65,536 segments",
    ),
    "progressive JPEG of 100 scans": (lambda: crafted.many_scans((400, 300), 100), DECODED),
    "progressive JPEG of 20,000 scans": (
        lambda: crafted.many_scans((9_000, 9_000), 20_000),
        "damaged: the JPEG has more than 100 scans",
    ),
}

CASES: dict[str, Case] = BOMBS | {
    # Nothing, or hardly anything
    "no bytes": (lambda: b"", "empty: the file has no bytes"),
    "one zero": (lambda: b"\x00", "not a picture: every byte is zero"),
    "all zeros": (lambda: bytes(5000), "not a picture: every byte is zero"),
    "a line of text": (lambda: b"lead,I,II,III\n", "not a picture that can be read"),
    "only a JPEG's first byte": (lambda: b"\xff", CUT_OFF),
    "only a JPEG's magic": (lambda: b"\xff\xd8", CUT_OFF),
    "only fill bytes after the magic": (lambda: b"\xff\xd8" + b"\xff" * 5000, CUT_OFF),
    "only a PNG's magic": (lambda: PNG_MAGIC, CUT_OFF),
    "half a PNG's magic": (lambda: PNG_MAGIC[:4], CUT_OFF),
    # Cut off
    "JPEG cut in its header": (lambda: JPEG[:100], CUT_OFF),
    "JPEG cut before its scan": (lambda: JPEG[:SCAN], CUT_OFF),
    "JPEG cut in its scan": (lambda: JPEG[: SCAN + 200], CUT_OFF),
    "JPEG without its end marker": (lambda: JPEG[:-2], CUT_OFF),
    "progressive JPEG cut between scans": (
        lambda: PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")],
        CUT_OFF,
    ),
    "JPEG cut, with an end marker glued on": (
        lambda: JPEG[: SCAN + 200] + b"\xff\xd9",
        UNSOUND_JPEG,
    ),
    "JPEG cut, its thumbnail whole": (
        lambda: crafted.with_segments(JPEG, crafted.exif_segment(JPEG))[:-2],
        CUT_OFF,
    ),
    "PNG cut in its data": (lambda: PNG[:-100], CUT_OFF),
    "PNG without its end chunk": (lambda: PNG[:-12], CUT_OFF),
    "PNG with half its data in a whole chunk": (
        lambda: with_chunks(HEADER, chunk(b"IDAT", DATA[8:-200]), END),
        CUT_OFF,
    ),
    "PNG with an empty data chunk": (lambda: with_chunks(HEADER, chunk(b"IDAT"), END), CUT_OFF),
    # Other formats, by whatever name
    "TIFF of its first bytes alone": (lambda: other("TIFF")[:8], HEADER_UNSOUND),
    "GIF of its first bytes alone": (lambda: other("GIF")[:8], HEADER_UNSOUND),
    "BMP of its first bytes alone": (lambda: other("BMP")[:8], HEADER_UNSOUND),
    "TIFF cut": (lambda: encoded(PAGE, "TIFF", compression="tiff_lzw")[:-300], HEADER_UNSOUND),
    "GIF cut": (lambda: other("GIF")[:-200], CUT_OFF),
    "BMP cut": (lambda: other("BMP")[:-200], CUT_OFF),
    "TIFF that claims too much": (
        lambda: patched_tiff_size(other("TIFF"), 60_000, 60_000),
        TOO_MANY,
    ),
    "BMP that claims too much": (
        lambda: other("BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + other("BMP")[26:],
        TOO_MANY,
    ),
    "GIF that claims too much": (
        lambda: other("GIF")[:6] + struct.pack("<HH", 60_000, 60_000) + other("GIF")[10:],
        TOO_MANY,
    ),
    "TIFF of 20,000 pages": (lambda: many_pages(other("TIFF"), 20_000), DECODED),
    "GIF of 20,000 pictures": (lambda: other("GIF")[:-1] + gif_pictures(20_000), DECODED),
    "TIFF of 32-bit floats": (
        lambda: encoded(np.ones((9, 9), np.float32), "TIFF"),
        "numbers with a fraction as samples: save it as PNG",
    ),
    "EPS": (lambda: other("EPS"), not_but("a PostScript file (EPS)")),
    "EPS with a preview": (
        lambda: b"\xc5\xd0\xd3\xc6" + bytes(26) + other("EPS"),
        not_but("a PostScript file (EPS)"),
    ),
    "FPX": (
        lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
        not_but("a FlashPix or old Office file"),
    ),
    "WebP of its first bytes alone": (
        lambda: b"RIFF\x24\x00\x00\x00WEBPVP8 ",
        UNSOUND,
    ),
    "AVIF": (lambda: b"\x00\x00\x00\x20ftypavif", not_but("an AVIF")),
    "HEIC": (lambda: b"\x00\x00\x00\x18ftypheic", not_but("an HEIC")),
    "JPEG 2000": (lambda: b"\x00\x00\x00\x0cjP  \r\n\x87\n", not_but("a JPEG 2000")),
    "ZIP": (lambda: b"PK\x03\x04\x14\x00", not_but("a ZIP archive")),
    "SVG": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9"/>',
        not_but("an SVG"),
    ),
    "SVG with a prologue": (
        lambda: b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<svg/>',
        not_but("an SVG"),
    ),
    "XML": (lambda: b'<?xml version="1.0"?><AnnotatedECG/>', not_but("an XML file")),
    "a web page": (
        lambda: b"\n<!DOCTYPE html><title>404</title>",
        not_but("a web page (HTML)"),
    ),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        not_but("a Git LFS pointer: fetch the picture with 'git lfs pull'"),
    ),
    "a PNG after a transfer as text": (
        lambda: PNG.replace(b"\r\n", b"\n"),
        not_but("a PNG broken by a transfer as text"),
    ),
    # PNGs that lie
    "a flipped bit in the PNG's data": (
        lambda: with_chunks(HEADER, bad_checksum(DATA), END),
        "damaged: a checksum in the PNG is wrong (IDAT)",
    ),
    "a flipped bit in the PNG's header": (
        lambda: with_chunks(bad_checksum(HEADER), DATA, END),
        "damaged: a checksum in the PNG is wrong (IHDR)",
    ),
    "a flipped bit in a comment": (
        lambda: with_chunks(HEADER, bad_checksum(chunk(b"tEXt", b"a\x00b")), DATA, END),
        DECODED,
    ),
    "data that do not unpack": (
        lambda: with_chunks(HEADER, chunk(b"IDAT", b"\x78\x9c" + bytes(900)), END),
        UNSOUND,
    ),
    "a palette too few": (
        lambda: with_chunks(crafted.png_header((40, 30), 8, 3), DATA, END),
        "damaged: the PNG's palette is missing or broken",
    ),
    "a palette of seven bytes": (
        lambda: png(PAGE[..., 0] % 2, 8, 3, [chunk(b"PLTE", bytes(7))]),
        "damaged: the PNG's palette is missing or broken",
    ),
    "indices beyond the palette": (
        lambda: png(PAGE[..., 0], 8, 3, [chunk(b"PLTE", bytes(6))]),
        DECODED,
    ),
    "transparency longer than the palette": (
        lambda: png(PAGE[..., 0], 8, 3, [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes(300))]),
        UNSOUND,
    ),
    "a transparent colour of one byte": (
        lambda: png(PAGE, 8, 2, [chunk(b"tRNS", b"\x00")]),
        DECODED,
    ),
    "three bits a sample": (
        lambda: with_chunks(rgb_header(depth=3), DATA, END),
        "damaged: the PNG's header names a kind of PNG that doesn't exist",
    ),
    "colour type 5": (
        lambda: with_chunks(rgb_header(colour_type=5), DATA, END),
        "damaged: the PNG's header names a kind of PNG that doesn't exist",
    ),
    "interlace method 2": (
        lambda: with_chunks(rgb_header(interlace=2), DATA, END),
        "damaged: the PNG's header names a kind of PNG that doesn't exist",
    ),
    "a header of 12 bytes": (
        lambda: with_chunks(chunk(b"IHDR", HEADER[8:-5]), DATA, END),
        "damaged: the PNG must have one header of 13 bytes",
    ),
    "zero pixels wide": (
        lambda: with_chunks(crafted.png_header((0, 30), 8, 2), DATA, END),
        "damaged: the picture has 0 x 30 pixels",
    ),
    "no data": (lambda: with_chunks(HEADER, END), "damaged: the PNG holds no picture data"),
    "a chunk longer than the file": (
        lambda: with_chunks(HEADER, b"\xff\xff\xff\xff" + DATA[4:], END),
        CUT_OFF,
    ),
    "a chunk whose name is no name": (
        lambda: with_chunks(HEADER, chunk(b"I\xc4\x00T", b""), DATA, END),
        "damaged: the PNG's chunks are not in sequence",
    ),
    "Apple's own PNG": (
        lambda: with_chunks(chunk(b"CgBI", bytes(4)), HEADER, DATA, END),
        "damaged: the PNG needs the unknown chunk CgBI",
    ),
    "an animation that contradicts itself": (
        lambda: with_chunks(
            HEADER,
            chunk(b"acTL", b"\xff" * 8),
            chunk(b"acTL", bytes(3)),
            chunk(b"fcTL", b"\xff" * 26),
            DATA,
            chunk(b"fdAT", b""),
            END,
        ),
        DECODED,
    ),
    "rubbish behind a PNG": (lambda: PNG + JPEG + bytes(5000), DECODED),
    # JPEGs that lie
    "rubbish behind a JPEG": (lambda: JPEG + PNG + bytes(5000), DECODED),
    "rubbish between segments": (lambda: crafted.with_segments(JPEG, b"\x00rubbish"), JPEG_HEADER),
    "a segment of length 1": (
        lambda: crafted.with_segments(JPEG, b"\xff\xe5\x00\x01"),
        JPEG_HEADER,
    ),
    "an end before the scan": (lambda: crafted.with_segments(JPEG, b"\xff\xd9"), JPEG_HEADER),
    "no frame header": (
        lambda: patched(JPEG, b"\xff\xc0", b"\xff\xe5"),
        "damaged: the JPEG header must give the picture's size once",
    ),
    "no rows": (
        lambda: crafted.resized_header(JPEG, (40, 0)),
        "damaged: the picture has 40 x 0 pixels",
    ),
    "more rows than data": (
        lambda: crafted.resized_header(JPEG, (40, 3000)),
        UNSOUND_JPEG,
    ),
    "fewer rows than data": (
        lambda: crafted.resized_header(JPEG, (40, 8)),
        UNSOUND_JPEG,
    ),
    "12 bits a sample": (
        lambda: patched(JPEG, b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        unsupported("12 bits"),
    ),
    "two components": (
        lambda: jpeg_of_planes([PAGE[..., 0]] * 2, (40, 30), [(1, 1)] * 2),
        JPEG_HEADER,
    ),
    "lossless": (lambda: with_frame(0xC3), unsupported("lossless")),
    "arithmetic coding": (lambda: with_frame(0xC9), unsupported("arithmetic coding")),
    "hierarchical": (lambda: with_frame(0xC5), unsupported("hierarchical")),
    "JPEG-LS": (lambda: with_frame(0xF7), unsupported("JPEG-LS")),
    "an unknown Adobe colour transform on CMYK": (
        lambda: jpeg_of_planes(
            [PAGE[..., 0]] * 4, (40, 30), [(1, 1)] * 4, segment(0xEE, b"Adobe" + bytes(6) + b"\x07")
        ),
        UNSOUND_JPEG,
    ),
    "no quantization table": (
        lambda: JPEG.replace(b"\xff\xdb", b"\xff\xe5"),
        UNSOUND_JPEG,
    ),
    "no Huffman table": (
        lambda: JPEG.replace(b"\xff\xc4", b"\xff\xe5"),
        DECODED,  # the decoder then takes the standard's own, as motion JPEG expects
    ),
    "a scan of a component that is not there": (
        lambda: patched(JPEG, b"\xff\xda\x00\x0c\x03\x01", b"\xff\xda\x00\x0c\x03\x09"),
        UNSOUND,
    ),
    "ill-sampled chroma in broken data": (
        lambda: patched(JPEG, b"\x22\x00\x02\x11", b"\x44\x00\x02\x32"),
        UNSOUND,
    ),
}


def _zeros(n_bytes: int) -> bytes:
    """So many zero bytes, compressed."""
    compressor = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [compressor.compress(block) for _ in range(n_bytes // len(block))]
    return b"".join([*parts, compressor.flush()])


@pytest.mark.parametrize("name", CASES)
def test_a_crafted_file_has_its_defined_outcome(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    build, expected = CASES[name]
    path = tmp_path / "picture.jpg"
    path.write_bytes(build())
    found = outcome(path)
    assert found.startswith(expected) if expected in (UNSOUND, UNSOUND_JPEG) else found == expected
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_of_endless_scans_is_refused_inside_a_tiff_too() -> None:
    size_px, samples = (2000, 2000), np.empty((2000, 2000), np.uint8)
    for n_scans, expected in ((20, DECODED), (20_000, UNSOUND)):
        data = crafted.tiff(samples, {259: 7}, crafted.many_scans(size_px, n_scans))
        assert outcome(data).startswith(expected)


@pytest.mark.parametrize("data", [PNG, JPEG, PROGRESSIVE], ids=["PNG", "JPEG", "progressive"])
def test_a_file_cut_anywhere_is_refused_as_cut_off(data: bytes) -> None:
    for n_bytes in range(1, len(data)):
        assert outcome(data[:n_bytes]) == CUT_OFF, n_bytes


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.JPEG", "x.tiff", "x", "x.txt"])
@pytest.mark.parametrize("data", [PNG, JPEG], ids=["PNG", "JPEG"])
def test_the_name_says_nothing_of_the_format(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert outcome(path) == DECODED


# What is no regular file, or can't be had

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.mkdir()
    assert outcome(path) == "not a file but a folder"


@posix_only
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    assert outcome(path) == "not a file but a named pipe"


@posix_only
def test_a_pipe_put_in_a_files_place_at_the_last_moment_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    monkeypatch.setattr("ecgfeat.images.decoding._refuse_by_status", lambda status: None)
    with pytest.raises(ImageError):
        decode(path)


@posix_only
def test_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("/dev/zero", "/dev/null"):
        path = tmp_path / f"{Path(device).name}.png"
        path.symlink_to(device)
        assert outcome(path) == "not a file but a device"
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert outcome(Path("socket.png")) == "not a file but a socket"


@posix_only
def test_links_are_followed_to_files_only(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(PNG)
    for name, target in {
        "good": "page.png",
        "text": "/etc/passwd",
        "broken": "nowhere",
        "round": "round",
        "process": "/proc/self/mem",
    }.items():
        (tmp_path / name).symlink_to(target)
    assert outcome(tmp_path / "good") == DECODED
    assert outcome(tmp_path / "text") == "not a picture that can be read"
    assert outcome(tmp_path / "broken") == "no such file"
    assert outcome(tmp_path / "round") == "its symbolic links go round in a circle"


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert outcome(tmp_path / ("x" * 5000)) == "its name is too long for this system"
    assert outcome(tmp_path / "x\0.png") == "its name is not one that this system can have"
    assert outcome(tmp_path / "\ud800.png") == "its name is not one that this system can have"
    assert outcome(tmp_path / "absent.png") == "no such file"
    (tmp_path / "file").write_bytes(PNG)
    assert outcome(tmp_path / "file" / "x.png") == "no such file"


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems know no such names")
def test_a_name_that_is_not_utf_8_is_just_a_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe p\xe9ge.png"))
    path.write_bytes(PNG)
    assert outcome(path) == DECODED


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.ENOENT, "no such file"),
        (errno.EIO, "the disk reported an error while reading it"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    monkeypatch.setattr("ecgfeat.images.decoding._open_without_waiting", refuse)
    with pytest.raises(ImageError) as caught:
        decode(path)
    assert str(caught.value) == reason
    assert caught.value.passing


def test_a_file_of_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with path.open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 2**40)  # sparse: it takes no space
    assert outcome(path) == "too large: the file has 1,048,704 MiB, at most 128 are read"


# Memory

PROGRAM = """if True:
    import sys
    from pathlib import Path
    from ecgfeat.errors import ImageError
    from ecgfeat.images import decode
    from ecgfeat.runtime import peak_memory_mib

    first, *paths = map(Path, sys.argv[1:])
    decode(first)
    before = peak_memory_mib()
    for path in paths:
        try:
            decode(path)
        except ImageError:
            pass
    print(peak_memory_mib() - before)
    """


def peak_growth_mib(paths: list[Path]) -> float:
    """How much a fresh process grows by decoding `paths`, the first of which doesn't count."""
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    paths = []
    for name, (build, _) in {"sound": (lambda: PNG, DECODED), **BOMBS}.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(build())
    assert peak_growth_mib(paths) < 60


@pytest.mark.slow
def test_the_largest_page_allowed_takes_the_memory_that_the_limit_promises(
    tmp_path: Path,
) -> None:
    side = int(MAX_PIXELS**0.5)
    paths = [tmp_path / name for name in ("small.png", "white.png", "scans.jpg")]
    for path, data in zip(
        paths, (PNG, crafted.white_png((side, side)), crafted.many_scans((side, side), 100))
    ):
        path.write_bytes(data)
    assert peak_growth_mib(paths) < 1100
