"""Every form of JPEG and PNG has one defined page."""

from __future__ import annotations

import io
import itertools
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ecgfeat import images
from ecgfeat.errors import ImageError
from ecgfeat.images import decode, image_digest
from ecgfeat.images.decoding import decode_picture, read_header
from ecgfeat.images.formats import ANIMATION, SEVERAL_PAGES

from . import crafted
from .crafted import Page, chunk, encoded, page_of, png

Decoded = Callable[[bytes], Page]

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


@pytest.fixture
def decoded(tmp_path: Path) -> Decoded:
    """Decode the bytes as a file, whose name says nothing."""

    def decode_bytes(data: bytes) -> Page:
        path = tmp_path / "picture"
        path.write_bytes(data)
        return decode(path)

    return decode_bytes


def pillows(data: bytes) -> Page:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def over_white(colour: NDArray[np.integer], alpha: NDArray[np.integer]) -> Page:
    colour, alpha = colour.astype(np.int64), alpha.astype(np.int64)[..., None]
    return np.rint((colour * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)


def test_a_page_has_the_shape_height_width_3(decoded: Decoded) -> None:
    page = decoded(encoded(page_of((40, 30)), "PNG"))
    assert page.shape == (30, 40, 3)
    assert page.dtype == np.uint8
    assert page.flags.writeable  # torch warns of arrays that aren't
    assert np.array_equal(page, page_of((40, 30)))


# PNG


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_any_depth_is_scaled_to_8_bits_in_all_channels(
    decoded: Decoded, depth: int
) -> None:
    levels = np.arange(2**depth).reshape(2, -1)
    page = decoded(png(levels, depth, GREY))
    assert np.array_equal(page, np.repeat(levels[..., None] * 255 // (2**depth - 1), 3, axis=2))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour_type", [GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA])
def test_sixteen_bits_keep_their_high_byte_whatever_the_colour_type(
    decoded: Decoded, colour_type: int, interlaced: bool
) -> None:
    grey = np.random.default_rng(0).integers(0, 2**16, (13, 11))
    opaque = np.full_like(grey, 2**16 - 1)
    channels = {
        GREY: [grey],
        COLOUR: [grey, grey, grey],
        GREY_ALPHA: [grey, opaque],
        COLOUR_ALPHA: [grey, grey, grey, opaque],
    }
    samples = np.stack(channels[colour_type], axis=2)
    page = decoded(png(samples, 16, colour_type, interlaced=interlaced))
    assert np.array_equal(page, np.repeat(grey[..., None] // 256, 3, axis=2))


def test_sixteen_bit_white_and_black_stay_white_and_black(decoded: Decoded) -> None:
    page = decoded(png(np.array([[0, 65535, 128 * 257]]), 16, GREY))
    assert page[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_palette_gives_its_colours(decoded: Decoded, depth: int, interlaced: bool) -> None:
    rng = np.random.default_rng(depth)
    colours = rng.integers(0, 256, (2**depth, 3), dtype=np.uint8)
    indices = rng.integers(0, 2**depth, (19, 23))
    palette = chunk(b"PLTE", colours.tobytes())
    page = decoded(png(indices, depth, PALETTE, [palette], interlaced=interlaced))
    assert np.array_equal(page, colours[indices])


@pytest.mark.parametrize("alphas", [[255, 0], [0, 128, 255, 7], [255]])
def test_a_palette_with_transparency_lies_on_white(decoded: Decoded, alphas: list[int]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 3), dtype=np.uint8)
    indices = np.arange(4).reshape(2, 2)
    extra = [chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", bytes(alphas))]
    alpha = np.array(alphas + [255] * (4 - len(alphas)))
    page = decoded(png(indices, 2, PALETTE, extra))
    assert np.array_equal(page, over_white(colours[indices], alpha[indices]))


@pytest.mark.parametrize("interlaced", [False, True])
def test_alpha_lies_on_white_rounded_to_nearest(decoded: Decoded, interlaced: bool) -> None:
    levels, alphas = np.meshgrid(np.arange(256), np.arange(256))
    samples = np.stack([levels, 255 - levels, levels, alphas], axis=2)
    page = decoded(png(samples, 8, COLOUR_ALPHA, interlaced=interlaced))
    assert np.array_equal(page, over_white(samples[..., :3], alphas))


def test_grey_with_alpha_lies_on_white_too(decoded: Decoded) -> None:
    levels, alphas = np.meshgrid(np.arange(0, 256, 5), np.arange(0, 256, 5))
    page = decoded(png(np.stack([levels, alphas], axis=2), 8, GREY_ALPHA))
    assert np.array_equal(page, over_white(np.repeat(levels[..., None], 3, axis=2), alphas))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_becomes_white(decoded: Decoded, depth: int) -> None:
    key = {1: 0, 2: 1, 4: 6, 8: 77, 16: 0x4D99}[depth]
    other = 2**depth - 1 - key
    samples = np.array([[key, other, key]])
    page = decoded(png(samples, depth, GREY, [chunk(b"tRNS", key.to_bytes(2, "big"))]))
    opaque = other * 255 // (2**depth - 1) if depth < 16 else other // 256
    assert page[0, :, 0].tolist() == [255, opaque, 255]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_becomes_white(decoded: Decoded, depth: int) -> None:
    samples = np.array([[[10, 20, 30], [10, 20, 31], [255, 255, 255]]])
    if depth == 16:
        samples = samples * 256 + 99
    key = samples[0, 0].astype(">u2").tobytes()
    page = decoded(png(samples, depth, COLOUR, [chunk(b"tRNS", key)]))
    assert page.tolist() == [[[255, 255, 255], [10, 20, 31], [255, 255, 255]]]


def test_gamma_profile_and_text_of_a_png_change_nothing(decoded: Decoded) -> None:
    page = page_of((20, 10))
    extra = [
        chunk(b"gAMA", (220000).to_bytes(4, "big")),
        chunk(b"iCCP", b"profile\x00\x00" + zlib.compress(b"not a profile")),
        chunk(b"tEXt", b"transparency\x00\x00"),
        chunk(b"pHYs", bytes(9)),
    ]
    assert np.array_equal(decoded(png(page, 8, COLOUR, extra)), page)


@pytest.mark.parametrize("default_image", [False, True])
def test_an_animated_png_gives_its_default_image(decoded: Decoded, default_image: bool) -> None:
    frames = [Image.fromarray(page_of((20, 10), seed)) for seed in range(3)]
    data = encoded(
        frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image
    )
    assert b"acTL" in data
    assert np.array_equal(decoded(data), page_of((20, 10), 0))


# JPEG

JPEG_SIZES = [(1, 1), (7, 33), (64, 48), (301, 203)]


@pytest.mark.parametrize("size_px", JPEG_SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_equals_pillows_full_decode(
    decoded: Decoded, mode: str, size_px: tuple[int, int]
) -> None:
    page = Image.fromarray(page_of(size_px)).convert(mode)
    choices = itertools.product([0, 1, 2], [False, True], [20, 75, 100], [0, 3])
    for subsampling, progressive, quality, restart in choices:
        data = encoded(
            page,
            "JPEG",
            subsampling=subsampling,
            progressive=progressive,
            quality=quality,
            restart_marker_blocks=restart,
        )
        assert np.array_equal(decoded(data), pillows(data))


@pytest.mark.parametrize(
    "factors",
    [
        [(1, 1), (1, 1), (1, 1)],
        [(2, 1), (1, 1), (1, 1)],
        [(1, 2), (1, 1), (1, 1)],
        [(2, 2), (1, 1), (1, 1)],
        [(4, 1), (1, 1), (1, 1)],
        [(1, 4), (1, 1), (1, 1)],
        [(2, 2), (2, 1), (2, 1)],
        [(2, 2), (1, 2), (1, 2)],
        [(2, 1), (2, 1), (2, 1)],
        [(4, 2), (1, 1), (1, 1)],
        [(2, 2), (2, 1), (1, 2)],
        [(1, 1), (2, 2), (2, 2)],
    ],
    ids=str,
)
def test_every_chroma_subsampling_equals_pillows(
    decoded: Decoded, factors: list[tuple[int, int]]
) -> None:
    for size_px in JPEG_SIZES:
        planes = crafted.sampled_planes(page_of(size_px), factors)
        data = crafted.jpeg_of_planes(planes, size_px, factors)
        assert np.array_equal(decoded(data), pillows(data))


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 1)], ids=str)
def test_a_grey_jpeg_may_name_any_sampling(decoded: Decoded, factor: tuple[int, int]) -> None:
    grey = page_of((33, 21))[..., 0]
    data = crafted.jpeg_of_planes([grey], (33, 21), [factor])
    page = decoded(data)
    assert np.array_equal(page, pillows(data))
    assert np.array_equal(page[..., 0], page[..., 2])


def test_cmyk_is_stored_inverted_and_multiplied_by_black(decoded: Decoded) -> None:
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255,) * 3}
    for ink, colour in inks.items():
        data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert np.abs(decoded(data).astype(int) - colour).max() <= 1


@pytest.mark.parametrize("adobe", [None, 0, 2])
@pytest.mark.parametrize("chroma", [1, 2])
def test_cmyk_and_ycck_equal_pillows(decoded: Decoded, adobe: int | None, chroma: int) -> None:
    size_px = (61, 43)
    factors = [(chroma, chroma), (1, 1), (1, 1), (chroma, chroma)]
    planes = [
        page_of((-(-61 // (chroma // h)), -(-43 // (chroma // h))), h)[..., 0] for h, _ in factors
    ]
    marker = crafted.ADOBE[adobe] if adobe is not None else b""
    data = crafted.jpeg_of_planes(planes, size_px, factors, marker)
    assert np.array_equal(decoded(data), pillows(data))


def test_a_jpeg_in_rgb_equals_pillows(decoded: Decoded) -> None:
    data = encoded(page_of((31, 17)), "JPEG", keep_rgb=True)
    assert np.array_equal(decoded(data), pillows(data))
    assert np.abs(decoded(data).astype(int) - page_of((31, 17))).mean() < 8


def test_profiles_comments_thumbnails_and_odd_revisions_change_nothing(decoded: Decoded) -> None:
    plain = encoded(page_of((40, 30)), "JPEG")
    thumbnail = encoded(page_of((8, 8), 3), "JPEG")
    extra = b"".join(
        [
            crafted.segment(0xE0, b"JFIF\x00\x07\x01" + bytes(7)),
            crafted.segment(0xE1, b"Exif\x00\x00" + thumbnail),
            crafted.segment(0xE2, b"ICC_PROFILE\x00\x09\x02" + bytes(30)),
            crafted.segment(0xE2, b"MPF\x00" + bytes(30)),
            crafted.segment(0xFE, b"\xff\xd9 a comment with an end marker"),
        ]
    )
    assert np.array_equal(decoded(crafted.with_segments(plain, extra)), pillows(plain))


def test_of_several_pictures_in_a_jpeg_the_first_counts(decoded: Decoded) -> None:
    first, second = (encoded(page_of((40, 30), seed), "JPEG") for seed in (1, 2))
    assert np.array_equal(decoded(first + second), pillows(first))
    frames = [Image.fromarray(page_of((40, 30), seed)) for seed in (1, 2)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(decoded(data), pillows(data))


def test_fill_bytes_between_segments_are_allowed(decoded: Decoded) -> None:
    plain = encoded(page_of((40, 30)), "JPEG")
    assert np.array_equal(decoded(plain[:2] + b"\xff" * 50 + plain[2:]), pillows(plain))


# Orientation


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_all_eight_exif_orientations_are_turned_upright(
    decoded: Decoded, image_format: str, orientation: int, order: str
) -> None:
    tiff = crafted.exif_tiff(orientation, order)
    data = encoded(page_of((40, 30)), image_format, exif=b"Exif\x00\x00" + tiff)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    page = decoded(data)
    assert page.shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3))
    assert np.array_equal(page, np.asarray(reference))


TIFF = crafted.exif_tiff(6)


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"MM",
        TIFF[:20],
        TIFF[:-14],
        b"XX" + TIFF[2:],
        TIFF[:4] + b"\xff\xff\xff\xff" + TIFF[8:],
        crafted.exif_tiff(0),
        crafted.exif_tiff(9),
        crafted.exif_tiff(65535),
        TIFF.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x02"),
    ],
    ids=repr,
)
def test_an_orientation_that_cannot_be_read_counts_as_upright(
    decoded: Decoded, tiff: bytes
) -> None:
    plain = encoded(page_of((40, 30)), "JPEG")
    data = crafted.with_segments(plain, crafted.exif_segment(tiff))
    assert np.array_equal(decoded(data), pillows(plain))


# Real pages, identity


def real_images(shared_data: Path, every: int) -> list[Path]:
    return sorted(shared_data.glob("*/images/*"))[::every]


def test_real_pages_equal_pillows(shared_data: Path) -> None:
    paths = real_images(shared_data, every=13)
    assert {path.suffix for path in paths} >= {".png", ".jpg"}
    for path in paths:
        assert np.array_equal(decode(path), pillows(path.read_bytes())), path


@pytest.mark.slow
def test_all_real_pages_equal_pillows(shared_data: Path, decoded: Decoded) -> None:
    for path in real_images(shared_data, every=1):
        assert np.array_equal(decode(path), pillows(path.read_bytes())), path
    with tarfile.open(shared_data / "mitbih-beats.tar.gz") as archive:
        members = [member for member in archive if member.isfile()][::50]
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            assert np.array_equal(decoded(data), pillows(data)), member.name


def test_simplejpeg_is_what_decodes_ordinary_jpegs(
    decoded: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfeat.images.formats.load", None)
    assert decoded(encoded(page_of((40, 30)), "JPEG", progressive=True)).shape == (30, 40, 3)
    assert decoded(encoded(Image.new("CMYK", (9, 9)), "JPEG")).shape == (9, 9, 3)


def test_the_decoder_names_both_libraries_and_its_own_rules() -> None:
    both = f"rgb 4, pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"
    assert images.decoder_of(["a.png", "b.JPG"]) == images.DECODER == both
    pytest.importorskip("pypdfium2")
    # An extra that none of the images needs is no part of what decided their pixels.
    assert re.fullmatch(
        rf"{re.escape(both)}, pypdfium2 [\d.]+", images.decoder_of(["a.PDF", "b.png"])
    )


def test_the_digest_is_of_the_bytes_and_needs_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"abc")
    # b2sum -l 128
    assert image_digest(path).hex() == "cf4ab791c62b8d2b2109c90275287816"


# TIFF, BMP, WebP and GIF


def remarked(data: bytes) -> tuple[Page, str]:
    """The page, and what is remarked of it."""
    picture = read_header(data)
    page = np.asarray(decode_picture(picture))
    return page, picture.remark


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_formats_without_loss_give_the_very_pixels(
    decoded: Decoded, image_format: str, options: dict[str, object], mode: str
) -> None:
    image = Image.fromarray(page_of((40, 30))).convert(mode)
    found = decoded(encoded(image, image_format, **options))
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


def test_a_jpeg_inside_a_tiff_and_a_gif_are_near_what_they_were_made_of(decoded: Decoded) -> None:
    image = Image.fromarray(page_of((40, 30)))
    for data in (
        encoded(image, "TIFF", compression="jpeg", quality=95),
        encoded(image, "GIF"),
        encoded(image, "WEBP", quality=95),
    ):
        difference = np.abs(decoded(data).astype(int) - np.asarray(image).astype(int))
        assert difference.mean() < 6


def test_one_bit_pages_are_black_on_white_whichever_is_zero(decoded: Decoded) -> None:
    bits = np.asarray(Image.fromarray(page_of((40, 30))).convert("1"))
    for compression in ("group4", "raw"):
        found = decoded(encoded(Image.fromarray(bits), "TIFF", compression=compression))
        assert np.array_equal(found[..., 0], bits * np.uint8(255))


def test_transparent_pages_of_other_formats_lie_on_white(decoded: Decoded) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for image_format in ("TIFF", "WEBP", "GIF"):
        assert (decoded(encoded(clear, image_format)) == 255).all()


@pytest.mark.parametrize("image_format", ["TIFF", "GIF", "WEBP"])
def test_of_several_pages_the_first_is_taken_and_said(image_format: str) -> None:
    first, second = (Image.fromarray(page_of((40, 30), seed)).convert("L") for seed in (1, 2))
    exact = {"lossless": True} if image_format == "WEBP" else {}
    alone, remark = remarked(encoded(first, image_format, **exact))
    assert remark == ""
    more = {"save_all": True, "append_images": [second]}
    page, remark = remarked(encoded(first, image_format, **exact, **more))
    assert np.array_equal(page, alone)
    assert remark == (SEVERAL_PAGES if image_format == "TIFF" else ANIMATION)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_and_a_webp_are_turned_upright(decoded: Decoded, orientation: int) -> None:
    image = Image.fromarray(page_of((40, 30)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = ImageOps.exif_transpose(_with_exif(image, exif))
    for image_format, options in (("TIFF", {}), ("WEBP", {"lossless": True})):
        found = decoded(encoded(image, image_format, exif=exif, **options))
        assert np.array_equal(found, np.asarray(upright))


def _with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))


# 16 bits of which not all are in use


@pytest.mark.parametrize("n_bits", [8, 10, 12, 14])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_fewer_bits_at_the_foot_of_16_are_scaled_to_white(n_bits: int, image_format: str) -> None:
    grey = np.asarray(Image.fromarray(page_of((40, 30))).convert("L")).astype(np.uint16)
    grey[0, 0] = 255
    data = encoded(Image.fromarray(grey << (n_bits - 8)), image_format)
    page, remark = remarked(data)
    assert np.array_equal(page[..., 0], grey)
    assert remark == f"16 bits per sample that hold {n_bits}: scaled to white"


@pytest.mark.parametrize(
    ("order", "photometric", "expected"),
    [("<", 0, [255, 0xED, 0]), ("<", 1, [0, 0x12, 255]), (">", 1, [0, 0x12, 255])],
)
def test_a_tiff_of_16_bits_is_read_by_what_zero_means_in_it(
    order: str, photometric: int, expected: list[int]
) -> None:
    grey = np.array([[0, 0x1234, 0xFFFF]], f"{order}u2")
    page, remark = remarked(crafted.tiff(grey, {262: photometric}))
    assert page[0, :, 0].tolist() == expected
    assert remark == ""


def test_a_tiff_of_12_bits_in_16_may_count_from_white() -> None:
    page, remark = remarked(crafted.tiff(np.array([[0, 4095]], "<u2"), {262: 0}))
    assert page[0, :, 0].tolist() == [255, 0]
    assert remark == "16 bits per sample that hold 12: scaled to white"


def test_a_tiff_of_16_bits_in_colour_keeps_the_high_bytes(decoded: Decoded) -> None:
    colour = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3)).astype("<u2")
    assert np.array_equal(decoded(crafted.tiff(colour, {262: 2})), colour >> 8)


def test_a_tiff_in_cmyk_is_inks_on_white(decoded: Decoded) -> None:
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0), (0, 0, 0, 0): (255,) * 3}
    for ink, colour in inks.items():
        assert (decoded(encoded(Image.new("CMYK", (4, 4), ink), "TIFF")) == colour).all()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("n_bits", [8, 10, 12, 14])
def test_colour_of_fewer_bits_at_the_foot_of_16_is_scaled_to_white(
    n_bits: int, interlaced: bool
) -> None:
    colour = page_of((40, 30)).astype(np.uint16)
    colour[0, 0] = 255
    samples = (colour << (n_bits - 8)) + (2 ** (n_bits - 8) - 1)  # the lowest bits are noise
    opaque = np.full_like(samples[..., :1], 2**n_bits - 1)
    said = f"16 bits per sample that hold {n_bits}: scaled to white"
    for colour_type, channels in ((COLOUR, samples), (COLOUR_ALPHA, np.dstack([samples, opaque]))):
        page, remark = remarked(png(channels, 16, colour_type, interlaced=interlaced))
        assert np.array_equal(page, colour)
        assert remark == said
    grey = np.dstack([samples[..., :1], opaque])
    page, remark = remarked(png(grey, 16, GREY_ALPHA, interlaced=interlaced))
    assert np.array_equal(page, np.repeat(colour[..., :1], 3, axis=2))
    assert remark == said
    for order in "<>":
        page, remark = remarked(crafted.tiff(samples.astype(f"{order}u2"), {262: 2}))
        assert np.array_equal(page, colour)
        assert remark == said


def test_colour_of_12_bits_in_a_compressed_tiff_is_scaled_too() -> None:
    colour = page_of((40, 30)).astype("<u2")
    colour[0, 0] = 255
    samples = colour << 4
    deflated = crafted.tiff(samples, {262: 2, 259: 8}, zlib.compress(samples.tobytes()))
    page, remark = remarked(deflated)
    assert np.array_equal(page, colour)
    assert remark == "16 bits per sample that hold 12: scaled to white"


def in_planes(colour: NDArray[np.integer], order: str, *, is_deflated: bool) -> bytes:
    """A TIFF of 16 bits with a strip for each of three colours."""
    height, width = colour.shape[:2]
    planes = [plane.astype(f"{order}u2").tobytes() for plane in colour.transpose(2, 0, 1)]
    planes = [zlib.compress(plane) if is_deflated else plane for plane in planes]
    lists = 8 + 2 + 12 * 10 + 4  # where values lie that don't fit into their entries
    at = [lists + 30 + sum(map(len, planes[:number])) for number in range(3)]
    entries = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, lists)),
        *((259, 3, 1, 8 if is_deflated else 1), (262, 3, 1, 2), (273, 4, 3, lists + 6)),
        *((277, 3, 1, 3), (278, 3, 1, height), (279, 4, 3, lists + 18), (284, 3, 1, 2)),
    ]
    directory = b"".join(
        struct.pack(f"{order}HHIHH", tag, kind, n, value, 0)
        if (kind, n) == (3, 1)
        else struct.pack(f"{order}HHII", tag, kind, n, value)
        for tag, kind, n, value in entries
    )
    values = struct.pack(f"{order}3H6I", 16, 16, 16, *at, *map(len, planes))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, 10)
    return head + directory + bytes(4) + values + b"".join(planes)


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_16_bits_are_read_as_such(order: str) -> None:
    colour = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3))
    for is_deflated in (False, True):
        page, remark = remarked(in_planes(colour, order, is_deflated=is_deflated))
        assert np.array_equal(page, colour >> 8)
        assert remark == ""
    page, remark = remarked(in_planes(colour >> 4, order, is_deflated=False))
    assert np.array_equal(page, colour >> 8)
    assert remark.startswith("16 bits per sample that hold 12")


def test_one_light_sample_of_16_bits_leaves_colour_as_it_is() -> None:
    samples = np.full((4, 4, 3), 4095, np.uint16)
    samples[3, 3, 2] = 2**14
    for data in (png(samples, 16, COLOUR), crafted.tiff(samples.astype("<u2"), {262: 2})):
        page, remark = remarked(data)
        assert np.array_equal(page, samples >> 8)
        assert remark == ""


def test_black_ink_on_nothing_is_not_taken_for_dark() -> None:
    ink = np.zeros((4, 4, 4), np.uint16)
    ink[0, 0] = 0x0303, 0x0303, 0x0303, 0xFFFF
    page, remark = remarked(png(ink, 16, COLOUR_ALPHA))
    assert page[0, 0].tolist() == [3, 3, 3]
    assert (page[1:] == 255).all()
    assert remark == ""


def test_colour_goes_by_what_the_file_says_of_its_bits() -> None:
    dark = np.full((4, 4, 3), 200, np.uint16)
    page, remark = remarked(png(dark, 16, COLOUR, [chunk(b"sBIT", b"\x0c\x0c\x0c")]))
    assert (page == 200 >> 4).all()
    assert remark.startswith("16 bits per sample that hold 12")


@pytest.mark.parametrize("colour_type", [GREY, COLOUR])
def test_a_transparent_colour_is_found_where_12_bits_are_scaled(colour_type: int) -> None:
    samples = np.full((4, 4, 1 if colour_type == GREY else 3), 4095 - 800, np.uint16)
    samples[0, 0] = 1600
    key = struct.pack(">H", 1600) * samples.shape[2]
    page, _ = remarked(png(samples, 16, colour_type, [chunk(b"tRNS", key)]))
    assert page[0, 0].tolist() == [255] * 3
    assert page[1, 1].tolist() == [(4095 - 800) >> 4] * 3
    nowhere = struct.pack(">H", 60_000) * samples.shape[2]
    page, _ = remarked(png(samples, 16, colour_type, [chunk(b"tRNS", nowhere)]))
    assert page[0, 0].tolist() == [100] * 3


def test_what_the_file_says_of_its_bits_comes_first() -> None:
    dark = np.full((4, 4), 200, np.uint16)
    page, remark = remarked(png(dark, 16, GREY, [chunk(b"sBIT", b"\x0c")]))
    assert (page == 200 >> 4).all()
    assert remark.startswith("16 bits per sample that hold 12")
    # By the specification the 12 bits stand at the top.
    light = np.full((4, 4), 0xFFF0, np.uint16)
    page, remark = remarked(png(light, 16, GREY, [chunk(b"sBIT", b"\x0c")]))
    assert (page == 255).all()
    assert remark == ""


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_a_fax_of_more_than_one_bit_is_refused_before_libtiff_complains(capfd, compression):
    page = Image.fromarray(np.eye(24, dtype=np.uint8) * 255).convert("1")
    file = io.BytesIO()
    page.save(file, "TIFF", compression=compression)
    sound = file.getvalue()
    assert decode_picture(read_header(sound)).size == (24, 24)
    bits_per_sample = struct.pack("<HHIH", 258, 3, 1, 1)
    assert bits_per_sample in sound
    broken = sound.replace(bits_per_sample, struct.pack("<HHIH", 258, 3, 1, 8))
    with pytest.raises(ImageError, match="a fax has one bit"):
        read_header(broken)
    assert capfd.readouterr() == ("", "")
