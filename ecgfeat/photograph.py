"""A flat page as a phone would photograph it: on a table, tilted, curled, creased, in bad light.

The page becomes a surface in space and a pinhole camera looks at it, so that what bends the page
also bends its light. What a reader could read stays readable and lies wholly within the picture;
the page is never mirrored. How far each fault goes is an `Amounts`, of which three have names:
1 is a careful picture, 2 a careless one, 3 a bad one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps

__all__ = ["AMOUNTS", "Amounts", "photograph", "through_jpeg"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How far each fault may go; each is drawn from nothing to its bound, unless said otherwise.

    Attributes
    ----------
    tilt_deg : float
        Of the camera against the page, about either axis and either way.
    rotation_deg : float
        Of the page within the picture, either way.
    margin : float
        Table beside the page at each side, as a share of the picture.
    curl : float
        Height of the curled page over the table, in widths of the page.
    wrinkle : float
        Steepest slope of the paper's waves.
    crease : float
        Slope of the paper beside a fold; each page has been folded up to three times.
    shadow : float
        Share of the light that a hand or the phone takes away; half the pictures have a shadow.
    unevenness : float
        Share of the light lost from the brightest place to the darkest.
    cast : float
        Share by which the lamp's blue falls short of its red, or its red of its blue.
    haze : float
        Share of white in the black of the ink.
    overexposure : float
        Share by which the paper is lighter than white.
    moire : float
        Share of light that the bands take; a third of the pictures have bands.
    defocus, motion : float
        Standard deviation of the blur in all directions, and of what a moving hand adds in one,
        in widths of the picture.
    noise : float
        Standard deviation in grey levels of 256.
    jpeg_quality : int
        The lowest; the highest is `BEST_QUALITY`.
    """

    tilt_deg: float
    rotation_deg: float
    margin: float
    curl: float
    wrinkle: float
    crease: float
    shadow: float
    unevenness: float
    cast: float
    haze: float
    overexposure: float
    moire: float
    defocus: float
    motion: float
    noise: float
    jpeg_quality: int


AMOUNTS = {
    "1": Amounts(
        tilt_deg=5,
        rotation_deg=2,
        margin=0.04,
        curl=0.01,
        wrinkle=0.03,
        crease=0.03,
        shadow=0.15,
        unevenness=0.2,
        cast=0.1,
        haze=0.05,
        overexposure=0.03,
        moire=0.0,
        defocus=0.0003,
        motion=0.0,
        noise=2,
        jpeg_quality=80,
    ),
    "2": Amounts(
        tilt_deg=14,
        rotation_deg=5,
        margin=0.1,
        curl=0.04,
        wrinkle=0.07,
        crease=0.09,
        shadow=0.4,
        unevenness=0.4,
        cast=0.2,
        haze=0.12,
        overexposure=0.08,
        moire=0.04,
        defocus=0.0006,
        motion=0.0005,
        noise=5,
        jpeg_quality=60,
    ),
    "3": Amounts(
        tilt_deg=24,
        rotation_deg=10,
        margin=0.16,
        curl=0.08,
        wrinkle=0.12,
        crease=0.16,
        shadow=0.6,
        unevenness=0.6,
        cast=0.3,
        haze=0.2,
        overexposure=0.12,
        moire=0.1,
        defocus=0.001,
        motion=0.001,
        noise=9,
        jpeg_quality=35,
    ),
}
"""By the names that ``--photo`` knows; ``none`` has no amounts."""

BEST_QUALITY = 92
"""Of JPEG, as phones save."""
LEAST_MARGIN = 0.005
"""Of the picture at each side, so that the page's edge is in it."""
DISTANCE = 1.5
"""From camera to page, in widths of the page: where a phone sees just all of it."""
REACH = 0.1
"""How far beside a fold the paper rises, in widths of the page."""
ROUNDING = 0.006
"""Half the width of a fold's own round edge, likewise."""
LIGHT_PX = 160
"""Width of the light's map: light has no finer detail than a fold, and is then enlarged. On small
pictures it is a quarter of theirs."""
CELL_PX = 40
"""The page is bent in squares of the picture, straight within each."""
N_NUMBERS, N_WAVES, N_FOLDS = 96, 5, 3
TILE_PX = 128
"""Sensor noise is drawn once for a square and laid over the picture like tiles."""
GRAIN_PX = 160
TABLES = (
    ((150, 105, 70), (4, 110), 0.14),  # oak
    ((205, 170, 130), (4, 90), 0.08),  # beech
    ((82, 56, 42), (5, 120), 0.2),  # walnut
    ((70, 74, 80), (120, 160), 0.1),  # a stone top
    ((45, 60, 95), (120, 160), 0.12),  # cloth
    ((222, 222, 218), (9, 12), 0.01),  # a white desk
)
"""Colour, how many grains across and down, and how much they differ."""


def photograph(page: Image.Image, amounts: Amounts, rng: np.random.Generator) -> Image.Image:
    """Photograph a page.

    Parameters
    ----------
    page : PIL.Image.Image
        RGB.
    amounts : Amounts
    rng : Generator
        The same numbers are drawn whatever the page and the amounts.

    Returns
    -------
    PIL.Image.Image
        RGB, of the page's size.
    """
    numbers = iter(rng.uniform(size=N_NUMBERS).tolist())
    grain = rng.standard_normal((GRAIN_PX, GRAIN_PX), np.float32)
    noise = rng.standard_normal((TILE_PX, TILE_PX, 4), np.float32)
    # In the order in which it befalls a page: on the table, under the lamp, in the camera.
    sheet = _Sheet.draw(amounts, numbers, page.height / page.width)
    camera = _Camera.draw(amounts, numbers, sheet)
    places = _places(page.size, camera)
    picture = _table(numbers, grain, places).resize(page.size, Image.Resampling.BILINEAR)
    bent = _bent(page, camera)
    picture.paste(bent, mask=bent)
    light = _light(amounts, numbers, places).resize(page.size, Image.Resampling.BILINEAR)
    return _taken(ImageChops.multiply(picture, light), amounts, numbers, noise)


# The page in space


class _Fold(NamedTuple):
    """A straight fold: the unit vector across it, where it lies along that, and its slope."""

    across: tuple[float, float]
    at: float
    slope: float


class _Wave(NamedTuple):
    """A wave of the paper: radians a width along u and v, its phase, and its height."""

    across: float
    down: float
    phase: float
    height: float


@dataclass(frozen=True)
class _Sheet:
    """The paper as a surface over the table.

    Lengths are in widths of the page, from its middle; u goes right, v down.
    """

    aspect: float
    curl: float
    curl_across: tuple[float, float]
    curl_middle: float
    folds: tuple[_Fold, ...]
    waves: tuple[_Wave, ...]

    @classmethod
    def draw(cls, amounts: Amounts, numbers: Iterator[float], aspect: float) -> _Sheet:
        # Paper curls about one axis, mostly a nearly upright or a nearly level one.
        angle = _upright_or_level(numbers, 0.3)
        return cls(
            aspect=aspect,
            curl=amounts.curl * next(numbers),
            curl_across=(math.cos(angle), math.sin(angle)),
            curl_middle=0.15 * _either_way(numbers),
            folds=tuple(_fold(index, amounts.crease, numbers, aspect) for index in range(N_FOLDS)),
            waves=tuple(_wave(amounts.wrinkle, numbers) for _ in range(N_WAVES)),
        )

    def height(self, u: Floats, v: Floats) -> Floats:
        """Height over the table, of the shape of `u` and `v`; beside the page that of its edge."""
        u, v = np.clip(u, -0.5, 0.5), np.clip(v, -self.aspect / 2, self.aspect / 2)
        z = 4 * self.curl * self._along_curl(u, v) ** 2
        for fold in self.folds:
            z += fold.slope * REACH / 2 * _beside(fold, u, v)[0] ** 2
        for wave in self.waves:
            z += wave.height * np.sin(wave.across * u + wave.down * v + wave.phase)
        return z

    def slopes(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """How fast the height grows along u and along v."""
        u, v = np.clip(u, -0.5, 0.5), np.clip(v, -self.aspect / 2, self.aspect / 2)
        steepness = [(8 * self.curl * self._along_curl(u, v), *self.curl_across)]
        for fold in self.folds:
            share, side = _beside(fold, u, v)
            steepness.append((-fold.slope * side * share, *fold.across))
        for wave in self.waves:
            course = np.cos(wave.across * u + wave.down * v + wave.phase)
            steepness.append((wave.height * course, wave.across, wave.down))
        right, down = np.zeros_like(u), np.zeros_like(u)
        for steep, across, below in steepness:
            right += across * steep
            down += below * steep
        return right, down

    def _along_curl(self, u: Floats, v: Floats) -> Floats:
        return self.curl_across[0] * u + self.curl_across[1] * v - self.curl_middle


def _beside(fold: _Fold, u: Floats, v: Floats) -> tuple[Floats, Floats]:
    """How near the fold points are, from 1 on it to 0 at `REACH` and beyond, and on which side."""
    distance = fold.across[0] * u + fold.across[1] * v - fold.at
    return np.clip(1 - np.abs(distance) / REACH, 0, 1), np.clip(distance / ROUNDING, -1, 1)


def _fold(index: int, crease: float, numbers: Iterator[float], aspect: float) -> _Fold:
    """In half first, then in quarters; of four pages one has no fold and one has three."""
    angle = _upright_or_level(numbers, 0.03)
    size = aspect if angle > math.pi / 4 else 1.0
    at = ((0.0, -0.25, 0.25)[index] + 0.02 * _either_way(numbers)) * size
    slope = crease * _either_way(numbers)
    is_folded = next(numbers) > (index + 1) / (N_FOLDS + 1)
    return _Fold((math.cos(angle), math.sin(angle)), at, slope * is_folded)


def _wave(wrinkle: float, numbers: Iterator[float]) -> _Wave:
    """One to four waves a width, in any direction."""
    direction, phase = math.pi * next(numbers), 2 * math.pi * next(numbers)
    frequency = 2 * math.pi * (1 + 3 * next(numbers))
    height = wrinkle / math.sqrt(N_WAVES) / frequency
    return _Wave(frequency * math.cos(direction), frequency * math.sin(direction), phase, height)


def _upright_or_level(numbers: Iterator[float], within: float) -> float:
    angle = math.pi / 2 if next(numbers) < 0.5 else 0.0
    return angle + within * _either_way(numbers)


def _either_way(numbers: Iterator[float]) -> float:
    return 2 * next(numbers) - 1


# The camera


@dataclass(frozen=True)
class _Camera:
    """Sees the sheet: rotation, then projection, then the picture's frame."""

    sheet: _Sheet
    rotation: Floats
    scale: float = 1.0
    middle: tuple[float, float] = (0.0, 0.0)
    """Widths of the picture to one of the projection, and where its middle lies there."""

    @classmethod
    def draw(cls, amounts: Amounts, numbers: Iterator[float], sheet: _Sheet) -> _Camera:
        roll = math.radians(amounts.rotation_deg) * _either_way(numbers)
        pitch = math.radians(amounts.tilt_deg) * _either_way(numbers)
        yaw = math.radians(amounts.tilt_deg) * _either_way(numbers)
        rotation = (_turn(0, 1, roll) @ _turn(1, 2, pitch) @ _turn(0, 2, yaw)).astype(np.float32)
        left, right, top, bottom = (LEAST_MARGIN + amounts.margin * next(numbers) for _ in range(4))
        # The bent page comes to lie between the margins.
        across = np.linspace(-0.5, 0.5, 33, dtype=np.float32)
        x, y = cls(sheet, rotation).project(*np.meshgrid(across, sheet.aspect * across))
        wide, high = float(np.ptp(x)), float(np.ptp(y))
        scale = min((1 - left - right) / wide, sheet.aspect * (1 - top - bottom) / high)
        spare_x, spare_y = 1 / scale - wide, sheet.aspect / scale - high
        middle = (
            float(x.min()) - spare_x * left / (left + right) + 0.5 / scale,
            float(y.min()) - spare_y * top / (top + bottom) + 0.5 * sheet.aspect / scale,
        )
        return cls(sheet, rotation, scale, middle)

    def project(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Where in the picture points of the page are, in its widths from its middle."""
        x, y, z = _applied(self.rotation, (u, v, self.sheet.height(u, v)))
        x, y = x / (DISTANCE - z), y / (DISTANCE - z)
        return (x - self.middle[0]) * self.scale, (y - self.middle[1]) * self.scale

    def find(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Which points of the page, or of the plane beside it, are seen there.

        Of a flat page a homography tells. Bending moves points a little further, so looking where
        it would have moved one to, and correcting that, soon settles.
        """
        flat = np.array(self.rotation)
        flat[:, 2] = (0, 0, DISTANCE)
        flat[2, :2] *= -1  # what lies nearer to the camera is seen larger
        back = np.linalg.inv(flat)
        at_x, at_y = x, y
        for _ in range(4):
            seen = (at_x / self.scale + self.middle[0], at_y / self.scale + self.middle[1])
            u, v, depth = _applied(back, (*seen, np.ones_like(x)))
            u, v = u / depth, v / depth
            too_x, too_y = self.project(u, v)
            at_x, at_y = at_x + x - too_x, at_y + y - too_y
        return u, v


def _applied(matrix: Floats, points: tuple[Floats, ...]) -> Floats:
    # Not through BLAS, whose own threads would fight with ours and may change the last bit.
    applied: Floats = np.einsum("ij,j...->i...", matrix, np.stack(points))
    return applied


def _turn(first: int, second: int, angle: float) -> NDArray[np.float64]:
    """Rotation from one axis towards another."""
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def _beside_page(u: Floats, v: Floats, aspect: float) -> Floats:
    """How far a point lies beside the page; below 0 on it."""
    distance: Floats = np.maximum(np.abs(u) - 0.5, np.abs(v) - aspect / 2)
    return distance


def _bent(page: Image.Image, camera: _Camera) -> Image.Image:
    """The page as it is seen, RGBA, with nothing beside it."""
    width, height = page.size
    lefts = np.arange(0, width + CELL_PX, CELL_PX).clip(max=width)
    tops = np.arange(0, height + CELL_PX, CELL_PX).clip(max=height)
    x, y = np.meshgrid(lefts / width - 0.5, (tops - height / 2) / width)
    u, v = camera.find(x, y)
    # A border of one pixel with nothing in it softens the page's edge.
    corners = np.stack(((u + 0.5) * width + 1, v * width + height / 2 + 1), axis=-1)
    quads = np.concatenate(  # from upper left, counterclockwise
        (corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]), axis=-1
    ).tolist()
    boxes = [
        [(left, top, right, bottom) for left, right in pairwise(lefts.tolist())]
        for top, bottom in pairwise(tops.tolist())
    ]
    mesh = [pair for row in zip(boxes, quads) for pair in zip(*row)]
    sheet = ImageOps.expand(page, 1).convert("RGBA")
    sheet.putalpha(ImageOps.expand(Image.new("L", page.size, 255), 1))
    return sheet.transform(page.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


class _Places(NamedTuple):
    """A coarse grid over the picture, for what is enlarged to its size.

    Where the places are in the picture, in its widths from its middle, and where on the page.
    """

    x: Floats
    y: Floats
    u: Floats
    v: Floats
    sheet: _Sheet


def _places(size_px: tuple[int, int], camera: _Camera) -> _Places:
    width, height = size_px
    n_across = max(2, min(LIGHT_PX, width // 4))
    n_down = max(2, round(n_across * height / width))
    across, down = (((np.arange(n) + 0.5) / n - 0.5).astype(np.float32) for n in (n_across, n_down))
    x, y = np.meshgrid(across, down * (height / width))
    return _Places(x, y, *camera.find(x, y), camera.sheet)


def _table(numbers: Iterator[float], grain: Floats, places: _Places) -> Image.Image:
    """The table with the page's own shadow on it, RGB."""
    colour, (across, down), contrast = TABLES[int(next(numbers) * len(TABLES))]
    if next(numbers) < 0.5:
        across, down = down, across
    beside = np.maximum(_beside_page(places.u, places.v, places.sheet.aspect), 0)
    shade = 1 - 0.5 * np.exp(-beside / (0.004 + places.sheet.curl / 2))
    size_px = (shade.shape[1], shade.shape[0])
    veins = Image.fromarray(grain[:down, :across]).resize(size_px, Image.Resampling.BILINEAR)
    shades = np.multiply.outer(shade * (1 + contrast * np.asarray(veins)), colour)
    return Image.fromarray(np.clip(shades, 0, 255).astype(np.uint8))


# The light


def _light(amounts: Amounts, numbers: Iterator[float], places: _Places) -> Image.Image:
    """The share of light that comes from each place, RGB."""
    x, y = places.x, places.y
    light = _lamp(amounts, numbers, x, y)
    light *= 1 - _shadow(amounts, numbers, x, y)
    light *= _shading(numbers, places.sheet, places.u, places.v)
    blue = amounts.cast * _either_way(numbers)
    colours = (min(1, 1 + blue), 1 - abs(blue) / 2.5, min(1, 1 - blue))
    coloured = (
        light[..., None] * np.array(colours, np.float32) * (1 - _bands(amounts, numbers, x, y))
    )
    return Image.fromarray(np.clip(255 * coloured + 0.5, 0, 255).astype(np.uint8))


def _lamp(amounts: Amounts, numbers: Iterator[float], x: Floats, y: Floats) -> Floats:
    """Lighter on one side, and darker towards the picture's corners."""
    angle, share, corners = 2 * math.pi * next(numbers), next(numbers), next(numbers)
    slope = amounts.unevenness * (0.3 + 0.7 * share) * (math.cos(angle) * x + math.sin(angle) * y)
    return (1 - amounts.unevenness * share / 2 - slope) * (
        1 - amounts.unevenness * corners / 2 * (x**2 + y**2)
    )


def _shadow(amounts: Amounts, numbers: Iterator[float], x: Floats, y: Floats) -> Floats:
    """Of a phone above the page, or of an arm that reaches in from the picture's lower half."""
    there, arm, turn, where, far, soft, depth = (next(numbers) for _ in range(7))
    angle = math.pi * (turn - 0.5) * (0.9 if arm < 0.5 else 0.4)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = x - 0.8 * (where - 0.5), y - 0.5 * (far - 0.3)
    along, beside = cos * y - sin * x, np.abs(cos * x + sin * y)
    if arm < 0.5:
        # A fist and the arm below it, a little narrower.
        distance = np.where(
            along < 0, np.hypot(along, beside), beside + 0.02 * np.minimum(along, 1)
        )
        distance = distance - 0.13
    else:
        distance = np.hypot(np.maximum(np.abs(along) - 0.26, 0), np.maximum(beside - 0.1, 0)) - 0.03
    share = amounts.shadow * (0.5 + 0.5 * depth) * (there < 0.5)
    return share / (1 + np.exp(np.clip(distance / (0.008 + 0.03 * soft), -30, 30)))


def _shading(numbers: Iterator[float], sheet: _Sheet, u: Floats, v: Floats) -> Floats:
    """Paper that faces the lamp is lighter; the table counts as flat."""
    angle = 2 * math.pi * next(numbers)
    right, down = sheet.slopes(u, v)
    facing = 1 - 0.8 * (math.cos(angle) * right + math.sin(angle) * down)
    # Lost softly beside the page, whose edge is finer than this map.
    lost = np.clip(10 * _beside_page(u, v, sheet.aspect), 0, 1)
    return np.clip(facing, 0.3, 1.3) / 1.05 * (1 - lost) + lost


def _bands(amounts: Amounts, numbers: Iterator[float], x: Floats, y: Floats) -> Floats:
    """Moiré: bands of changing width, a little apart in each colour, shape (height, width, 3)."""
    there, turn, period, bend, phase = (next(numbers) for _ in range(5))
    if there >= 1 / 3:
        return np.zeros((1, 1, 3), np.float32)
    angle = math.pi * turn
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    course = 2 * math.pi * ((15 + 25 * period) * along + 6 * bend * across**2 + phase)
    colours = np.stack([np.sin(course + shift) for shift in (0, 1, 2)], axis=-1)
    return amounts.moire / 2 * (1 + colours)


# In the camera


def _taken(
    picture: Image.Image, amounts: Amounts, numbers: Iterator[float], noise: Floats
) -> Image.Image:
    """Blurred, noisy, with other tones, and compressed."""
    defocus, motion, upright, grains, haze, over, compression = (next(numbers) for _ in range(7))
    # A lens out of focus spreads a point evenly over a disc, and so does motion along its way;
    # 3**0.5 standard deviations are half the width of an even spread.
    blur, more = (
        math.sqrt(3) * picture.width * bound * share
        for bound, share in ((amounts.defocus, defocus), (amounts.motion, motion))
    )
    along = math.hypot(blur, more)
    radii = (blur, along) if upright < 0.5 else (along, blur)
    picture = picture.filter(ImageFilter.BoxBlur(radii))
    # Grey noise more than coloured: phones remove colour first.
    sigma = amounts.noise * (0.3 + 0.7 * grains)
    tile = 128.5 + sigma * (0.8 * noise[..., :1] + 0.6 * noise[..., 1:])
    tile = np.clip(tile, 0, 255).astype(np.uint8)
    times = (-(-picture.height // TILE_PX), -(-picture.width // TILE_PX), 1)
    tiled = Image.fromarray(np.tile(tile, times)[: picture.height, : picture.width])
    picture = ImageChops.add(picture, tiled, 1, -128)
    black = 255 * amounts.haze * haze
    white = 255 * (1 + amounts.overexposure * over)
    tones = np.clip(np.linspace(black, white, 256) + 0.5, 0, 255).astype(np.uint8).tolist()
    quality = round(BEST_QUALITY - compression * (BEST_QUALITY - amounts.jpeg_quality))
    return Image.fromarray(through_jpeg(np.asarray(picture.point(tones * 3)), quality))


def through_jpeg(page: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What is left of a page, of shape (height, width, 3), once it was saved as JPEG.

    With half the colours' resolution in either direction, as JPEG files mostly have.
    """
    data = simplejpeg.encode_jpeg(page, quality, colorspace="RGB", colorsubsampling="420")
    left: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return left
