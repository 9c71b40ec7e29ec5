"""The painter of the demo face: a head as a height field, lit, then painted on, all from the numbers in this file.

The picture shows nobody and copies nothing: a half-width for each row and a few dozen bumps make the head, two lamps
light it, a ramp turns light into skin, and splines are the eyes, the lips and every strand of hair. Positions are in
pixels of the finished picture; ``x`` is counted from the middle of the face, to the right. Painting is done at twice
the size and scaled down, so that every edge is smooth. The same NumPy and OpenCV give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["SIZE", "paint"]

SIZE: Final = 832
"""Width and height of the finished picture, px."""
SCALE: Final = 2
MIDDLE: Final = SIZE / 2
ORIGIN: Final = np.array([MIDDLE, 0.0])
SEED: Final = 7
MOUTH_CORNER: Final = (57.5, 484.5)
"""x (to either side) and y of a corner of the mouth, px."""
EYE_CORNER: Final = (104.4, 360.8)
"""x (to either side) and y of an outer corner of the eyes, px."""

Plane = npt.NDArray[np.floating]
"""One number for each pixel, (SIZE * SCALE, SIZE * SCALE)."""
Picture = npt.NDArray[np.float32]
"""RGB 0..255, (SIZE * SCALE, SIZE * SCALE, 3)."""
Path = Sequence[tuple[float, float]] | npt.NDArray[np.float64]
Colour = tuple[float, float, float]

_axis = (np.arange(SIZE * SCALE, dtype=np.float32) + 0.5) / SCALE
Y, X = (np.ascontiguousarray(plane) for plane in np.meshgrid(_axis, _axis - MIDDLE, indexing="ij"))

# tone 0..1 to colour
SKIN: Final[Sequence[tuple[float, Colour]]] = (
    (0.00, (84, 40, 40)),
    (0.22, (146, 80, 68)),
    (0.42, (198, 126, 100)),
    (0.60, (228, 166, 134)),
    (0.78, (244, 198, 166)),
    (0.92, (253, 222, 195)),
    (1.05, (255, 240, 222)),
)
HAIR: Final[Sequence[tuple[float, Colour]]] = (
    (0.00, (28, 15, 16)),
    (0.30, (58, 32, 28)),
    (0.55, (98, 56, 42)),
    (0.78, (150, 92, 62)),
    (1.00, (214, 154, 108)),
)

WOOL: Final[Sequence[tuple[float, Colour]]] = (
    (0.00, (74, 40, 26)),
    (0.35, (150, 84, 36)),
    (0.60, (206, 134, 56)),
    (0.85, (236, 178, 92)),
    (1.00, (250, 210, 140)),
)
WHITE: Final[Sequence[tuple[float, Colour]]] = ((0.3, (170, 138, 130)), (0.7, (226, 214, 206)), (0.95, (246, 241, 236)))
UPPER_LIP: Final[Sequence[tuple[float, Colour]]] = ((0.1, (146, 52, 54)), (0.4, (186, 78, 74)), (0.7, (206, 104, 94)))
LOWER_LIP: Final[Sequence[tuple[float, Colour]]] = (
    (0.00, (164, 66, 64)),
    (0.35, (202, 92, 84)),
    (0.62, (222, 118, 106)),
    (0.80, (236, 148, 132)),
)

# half the width of the face for each row, from the crown to the chin
FACE: Final[Path] = (
    (0, 150), (70, 163), (112, 196), (136, 246), (146, 298), (148, 340), (146, 386), (139, 426), (127, 464),
    (112, 499), (91, 531), (66, 559), (40, 576), (17, 582.5), (0, 583),
)  # fmt: skip


def spline(points: Path, *, closed: bool = False, steps: int = 24) -> npt.NDArray[np.float64]:
    """Uniform Catmull-Rom curve through ``points``, (n, 2) px."""
    knots = np.asarray(points, np.float64)
    ends = (knots[-1], knots[:2]) if closed else (2 * knots[0] - knots[1], 2 * knots[-1] - knots[-2])
    p = np.vstack([ends[0][None], knots, np.atleast_2d(ends[1])])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.vstack(pieces if closed else [*pieces, knots[-1:]])


def blur(plane: Plane, sigma: float) -> Plane:
    """Gaussian blur, ``sigma`` in px of the finished picture."""
    wide = sigma * SCALE
    height, width = plane.shape
    if wide < 10 or min(height, width) < 64:
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), wide), np.float32)
    # what is blurred this far is as well blurred small
    small = cv2.resize(plane, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), wide / 4), (width, height)), np.float32)


def pixels(points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Points of the picture in OpenCV's fixed-point coordinates of the big canvas (4 bits of fraction)."""
    return np.asarray(np.round(((points + ORIGIN) * SCALE - 0.5) * 16), np.int32)


def fill(points: Path, soft: float = 0.0, *, smooth: bool = True) -> Plane:
    """Cover, 0..1, of the closed shape through ``points``, its edge ``soft`` px wide."""
    outline = spline(points, closed=True) if smooth else np.asarray(points, np.float64)
    canvas = np.zeros(X.shape, np.uint8)
    cv2.fillPoly(canvas, [pixels(outline)], 255, cv2.LINE_AA, 4)
    cover = canvas.astype(np.float32) / 255
    if soft > 0:
        margin = 4 * soft + 2
        corners = (np.stack([outline.min(0) - margin, outline.max(0) + margin]) + ORIGIN) * SCALE
        (left, top), (right, bottom) = np.clip(corners, 0, SIZE * SCALE).astype(int)
        cover[top:bottom, left:right] = blur(cover[top:bottom, left:right], soft)
    return cover


def line(points: Path, widths: Sequence[float], soft: float = 0.0) -> Plane:
    """Cover, 0..1, of a brush stroke along a curve; ``widths`` (px) are spread evenly over its length."""
    curve = spline(points)
    width = np.interp(np.linspace(0, 1, len(curve)), np.linspace(0, 1, len(widths)), widths)
    along = np.gradient(curve, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.linalg.norm(along, axis=1), 1e-9)[:, None]
    side = normal * width[:, None] / 2
    return fill(np.vstack([curve + side, (curve - side)[::-1]]), soft, smooth=False)


def bump(x: float, y: float, sx: float, sy: float) -> Plane:
    """Gaussian hill of height 1, radii in px."""
    return np.exp(-(((Y[:, :1] - y) / sy) ** 2) / 2) * np.exp(-(((X[:1] - x) / sx) ** 2) / 2)


def pair(x: float, y: float, sx: float, sy: float) -> Plane:
    """A hill on each side of the face."""
    return bump(-x, y, sx, sy) + bump(x, y, sx, sy)


def grown(points: Path, scale: float, x: float, y: float) -> list[tuple[float, float]]:
    """The points, scaled about (x, y)."""
    return [(x + (px - x) * scale, y + (py - y) * scale) for px, py in points]


def flip(points: Path, side: int) -> list[tuple[float, float]]:
    """The points as they lie on the right (1) or on the left (-1)."""
    return [(side * x, y) for x, y in points]


def window(cover: Plane) -> tuple[slice, slice]:
    """Smallest window that holds all that is covered."""
    rows, columns = (np.flatnonzero((cover > 0.002).any(axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def lay(picture: Picture, colour: Colour | Picture, cover: Plane) -> None:
    """Lay a colour over the picture, in place."""
    part = window(cover)
    paint_ = colour[part] if isinstance(colour, np.ndarray) else np.asarray(colour, np.float32)
    picture[part] += (paint_ - picture[part]) * np.clip(cover[part], 0, 1)[..., None]


def lighten(picture: Picture, colour: Colour, cover: Plane) -> None:
    """Screen a colour over the picture, in place: light, not paint."""
    part = window(cover)
    share = np.asarray(colour, np.float32) / 255 * np.clip(cover[part], 0, 1)[..., None]
    picture[part] += (255 - picture[part]) * share


def darken(picture: Picture, colour: Colour, cover: Plane) -> None:
    """Multiply a colour into the picture, in place: shadow, not paint."""
    part = window(cover)
    picture[part] *= 1 - (1 - np.asarray(colour, np.float32) / 255) * np.clip(cover[part], 0, 1)[..., None]


def ramp(tone: npt.NDArray[np.floating], stops: Sequence[tuple[float, Colour]]) -> npt.NDArray[np.float32]:
    """Colour of each tone, (..., 3)."""
    at = [stop for stop, _ in stops]
    return np.stack([np.interp(tone, at, [c[k] for _, c in stops]) for k in range(3)], -1).astype(np.float32)


def lit(height: Plane, soft: float) -> Plane:
    """Tone of a surface under a warm key from the upper left and a weak fill from the right, 0..1."""
    surface = blur(height, soft)
    slope_y, slope_x = (g * SCALE for g in np.gradient(surface))
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)

    def lamp(x: float, y: float, z: float) -> Plane:
        size = float(np.sqrt(x * x + y * y + z * z))
        return np.asarray((-slope_x * x - slope_y * y + z) / (length * size), np.float32)

    key = np.clip((lamp(-0.50, -0.55, 0.85) + 0.30) / 1.30, 0, 1)
    fill_light = np.clip(lamp(0.9, 0.05, 0.5), 0, 1)
    return np.asarray(0.10 + 0.76 * key**1.25 + 0.13 * fill_light, np.float32)


def half_width() -> Plane:
    """Half the width of the face for each row, 0 above and below it, px."""
    curve = spline(FACE, steps=60)
    return np.interp(Y[:, 0], curve[:, 1], curve[:, 0], left=0, right=0).astype(np.float32)[:, None]


def relief() -> Plane:
    """Height of the face towards the viewer, px."""
    width = np.maximum(half_width(), 1)
    across = np.clip(1 - np.abs(X / width) ** 2.3, 0, 1) ** (1 / 2.3)
    rows = ((150, 60), (200, 112), (250, 138), (310, 150), (400, 152), (500, 152), (545, 149), (567, 142), (583, 118))
    curve = spline([(z, y) for y, z in rows], steps=40)
    down = np.interp(Y[:, 0], curve[:, 1], curve[:, 0]).astype(np.float32)[:, None]
    z = down * across
    z += 4 * pair(58, 318, 46, 13)
    z -= 12 * pair(64, 350, 34, 20) + 8 * pair(27, 354, 12, 16)
    z += 9 * pair(67, 361, 27, 17)
    # the nose: a ridge that widens and rises downwards, a tip, two wings
    rise = np.interp(Y[:, 0], (318, 345, 400, 436, 447, 462), (0, 6, 17, 28, 20, 0)).astype(np.float32)[:, None]
    girth = np.interp(Y[:, 0], (318, 360, 436, 470), (14, 12, 16, 19)).astype(np.float32)[:, None]
    z += blur(np.asarray(rise * np.exp(-((X / girth) ** 2) / 2), np.float32), 3)
    z += 9 * bump(0, 436, 15, 13) + 10 * pair(23, 443, 8.5, 8.5)
    z += 10 * pair(86, 412, 38, 32) + 9 * bump(0, 486, 50, 32)
    z += 4 * bump(0, 483, 34, 5) + 7 * bump(0, 505, 27, 8) - 7 * bump(0, 525, 30, 7)
    z += 8 * bump(0, 556, 27, 17) - 4 * pair(57, 490, 9, 9) - 2.5 * bump(0, 467, 4.5, 9)
    return np.asarray(z, np.float32)


def background() -> Picture:
    """A calm wall with a soft pool of light behind the head."""
    wall = (0.62 * bump(-90, 300, 300, 320) + 0.12 * (1 - Y / SIZE)).astype(np.float32)
    rng = np.random.default_rng(SEED)
    patches = cv2.resize(rng.normal(0, 1, (7, 7)).astype(np.float32), X.shape[::-1], interpolation=cv2.INTER_CUBIC)
    wall = np.clip(wall + 0.025 * patches, 0, 1)
    return ramp(wall, ((0, (52, 82, 96)), (0.4, (98, 138, 148)), (0.8, (176, 202, 200)), (1, (204, 220, 214))))


def strands(
    picture: Picture, guides: Sequence[Path], count: int, width: float, shine: Sequence[float], jitter: float, seed: int
) -> None:
    """Comb hair: strands between neighbouring guide curves (all drawn from the root), in place.

    Args:
        picture: what to paint on.
        guides: curves side by side, each from root to tip.
        count: number of strands.
        width: of a strand, px.
        shine: tones along a strand, from root to tip.
        jitter: how much the tone of strands differs.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    curves = np.stack([resample(spline(guide), 40) for guide in guides])
    canvas = np.clip(picture, 0, 255).astype(np.uint8)
    along = np.linspace(0, 1, 40)
    light = np.interp(along, np.linspace(0, 1, len(shine)), shine)
    outward = np.sign(curves[:, -1, 0].mean())
    for _ in range(count):
        place = rng.uniform(0, len(guides) - 1)
        k = min(int(place), len(guides) - 2)
        share = place - k
        curve = (1 - share) * curves[k] + share * curves[k + 1]
        curve = curve + rng.normal(0, 1.6, 2) + np.sin(along * rng.uniform(2, 6) + rng.uniform(0, 6))[:, None] * 1.4
        first = int(rng.uniform(0, 5)) if rng.random() < 0.6 else int(rng.uniform(4, 22))
        last = int(rng.uniform(28, 40))
        # locks: smooth bands across the strands that drift along them; slopes that face up catch the light
        lock = 0.20 * np.sin(place * 7.0 + 1.5 * along) + 0.13 * np.sin(place * 17.0 - 2.0 * along + 1)
        steep = np.gradient(curve[:, 0]) / np.maximum(np.hypot(*np.gradient(curve, axis=0).T), 1e-6) * outward
        facing = 0.9 * np.clip(steep, -0.5, 0.5) * np.clip((along - 0.3) / 0.2, 0, 1)
        tones = np.clip(light * (1 + lock + facing + rng.normal(0, jitter)), 0, 1)
        colours = ramp(tones, HAIR)
        path = pixels(curve)
        taper = np.minimum(1, np.minimum((along * 39 - first + 2) / 6, (last - along * 39) / 8))
        thick = np.maximum(1, np.round(width * SCALE * taper)).astype(int).tolist()
        inks = colours.tolist()
        for n in range(first, last - 1):
            cv2.polylines(canvas, [path[n : n + 2]], False, inks[n], thick[n], cv2.LINE_AA, 4)
    picture[...] = canvas


def resample(curve: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """``count`` points at even distances along a curve, (count, 2) px."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    at = np.linspace(0, length[-1], count)
    return np.stack([np.interp(at, length, curve[:, k]) for k in range(2)], 1)


BACK_HAIR: Final[Path] = (
    (0, 110), (80, 118), (140, 160), (174, 240), (186, 340), (196, 430), (214, 520), (214, 600), (200, 690),
    (150, 740), (0, 750), (-150, 740), (-200, 690), (-214, 600), (-212, 520), (-194, 430), (-187, 340),
    (-174, 240), (-140, 160), (-80, 118),
)  # fmt: skip


def back_hair(picture: Picture) -> None:
    """The hair behind the head, in place."""
    shape = fill(BACK_HAIR, 1)
    depth = np.clip(1 - np.abs(X) / 215, 0, 1)
    lay(picture, ramp(0.24 - 0.16 * depth, HAIR), shape)
    for side, seed in ((-1, 11), (1, 12)):
        guides = [
            flip(((30, 300), (50, 420), (56, 540), (60, 640), (60, 740)), side),
            flip(((60, 300), (92, 420), (96, 540), (92, 640), (86, 740)), side),
            flip(((100, 260), (140, 400), (146, 520), (150, 620), (140, 740)), side),
            flip(((120, 200), (168, 330), (178, 450), (192, 560), (190, 700)), side),
            flip(((100, 140), (176, 240), (190, 380), (205, 540), (208, 690)), side),
        ]
        key = 0.27 if side < 0 else 0.22
        strands(picture, guides, 240, 4.5, (0.2, 0.75 * key, key, 0.9 * key, 0.5 * key), 0.22, seed)
        strands(picture, guides, 260, 1.6, (0.2, 0.9 * key, 1.25 * key, key, 0.6 * key), 0.30, seed + 10)


def neck(picture: Picture) -> None:
    """Neck and collar bones with the shadow of the chin, in place."""
    shape = fill(
        [(-86, 440), (-84, 540), (-88, 610), (-120, 652), (-200, 690), (-200, 800), (200, 800), (200, 690),
         (120, 652), (88, 610), (84, 540), (86, 440)],
        0.8,
    )  # fmt: skip
    width = np.interp(Y[:, 0], (440, 600, 640, 700), (86, 87, 118, 220)).astype(np.float32)[:, None]
    z = 80 * np.clip(1 - np.abs(X / width) ** 2.2, 0, 1) ** (1 / 2.2)
    for side in (-1, 1):
        z += 4.5 * line(flip([(70, 520), (62, 570), (42, 622), (14, 674)], side), (1, 14, 22, 14), 9)
    tone = lit(np.asarray(z, np.float32), 4) - 0.10
    jaw = [(x, y + 0.0) for x, y in FACE if y > 400]
    jaw = [*jaw, *[(-x, y) for x, y in reversed(jaw[:-1])]]
    cast = fill([(x + 8, 480 + (y - 480) * 1.40) for x, y in jaw], 11)
    tone -= 0.22 * cast + 0.27 * fill([(x + 4, y + 30) for x, y in jaw], 8)
    tone -= 0.16 * fill([(x - 2, y + 9) for x, y in jaw], 5) + 0.12 * pair(96, 520, 24, 70)
    tone -= 0.05 * bump(0, 672, 12, 16)
    tone = 0.15 + 0.85 * 0.5 * (tone + np.sqrt(tone**2 + 0.02))
    lay(picture, ramp(tone, SKIN), shape)
    darken(picture, (206, 120, 104), 0.25 * cast * shape)


def clothes(picture: Picture) -> None:
    """A knitted jumper with a round collar, in place."""
    body = fill(
        [(-118, 650), (-196, 684), (-272, 714), (-324, 762), (-352, 860), (0, 900), (352, 860), (324, 762),
         (272, 714), (196, 684), (118, 650), (88, 690), (0, 724), (-88, 690)],
        0.8,
    )  # fmt: skip
    z = np.zeros(X.shape, np.float32)
    z += 110 * np.clip(1 - (np.abs(X) / 400) ** 2.4, 0, 1) ** 0.5 - 0.0009 * (np.abs(X) * 0.6) ** 2
    z -= 26 * np.exp(-np.maximum(Y - 640 - 0.18 * np.abs(X), 0) / 40)
    folds = (
        ([(-210, 700), (-190, 760), (-210, 840)], 9), ([(-120, 740), (-150, 790), (-160, 850)], 7),
        ([(150, 730), (175, 790), (170, 850)], 8), ([(250, 720), (232, 780), (250, 850)], 9),
        ([(40, 760), (60, 800), (50, 850)], 6),
    )  # fmt: skip
    for path, high in folds:
        z += high * blur(line(path, (4, 22, 26)), 9)
    tone = lit(z, 6)
    knit = 0.012 * np.sin(X * 1.15) * (0.6 + 0.4 * np.sin(Y * 0.9))
    lay(picture, ramp(tone + knit, WOOL), body)
    collar_path = [(-122, 646), (-96, 690), (-52, 718), (0, 727), (52, 718), (96, 690), (122, 646)]
    darken(picture, (120, 70, 50), 0.55 * line([(x, y + 16) for x, y in collar_path], (22, 26, 22), 5) * body)
    collar = line(collar_path, (22, 28, 22), 0.7)
    angle = np.arctan2(Y - 560, X)
    ribs = 0.05 * np.sin(angle * 150)
    across = blur(line([(x, y - 5) for x, y in collar_path], (8, 10, 8)), 3)
    shade = 0.56 + 0.18 * across - 0.12 * np.clip(X / 120, -1, 1)
    lay(picture, ramp(shade + ribs, WOOL), collar)
    darken(picture, (70, 40, 40), 0.5 * line([(x, y - 15) for x, y in collar_path], (3, 6, 3), 2.5))


def face(picture: Picture, front: Plane) -> Plane:
    """The skin of the face with its soft colours, in place; ``front`` is the cover of the hair before it.

    Returns:
        the cover of the face.
    """
    right = [(x, y) for x, y in FACE]
    shape = fill([*right, *[(-x, y) for x, y in reversed(right[1:-1])]], 0.7)
    tone = lit(relief(), 3.2)
    tone += 0.05 * bump(-38, 262, 55, 40) + 0.03 * pair(70, 408, 34, 20)
    tone -= 0.10 * blur(front, 6) + 0.20 * np.roll(blur(front, 13), (14 * SCALE, 6 * SCALE), (0, 1))
    for side in (-1, 1):
        tone -= 0.055 * line(flip([(140, 418), (112, 448), (84, 478)], side), (30, 24, 10), 11)
    tone -= 0.06 * pair(30, 352, 9, 14) + 0.05 * bump(24, 405, 8, 34)
    tone -= 0.16 * bump(2, 461, 20, 6) + 0.05 * bump(9, 468, 18, 10)
    # light that the collar throws back under the chin parts it from the shadow on the neck
    tone += 0.14 * bump(-2, 573, 46, 9)
    tone -= 0.13 * bump(0, 521, 25, 5) + 0.07 * pair(64, 486, 5, 8)
    for side, weight in ((-1, 0.05), (1, 0.075)):
        tone -= weight * line(flip([(33, 440), (46, 458), (58, 478)], side), (5, 8, 4), 4)
        tone -= 1.6 * weight * line(flip([(27, 431), (33, 440), (30, 450), (24, 454)], side), (1, 3, 3, 1), 1.6)
    skin = ramp(tone, SKIN)
    rosy: Colour = (232, 120, 104)
    blush = 0.42 * pair(88, 426, 44, 36) + 0.50 * bump(0, 438, 22, 18) + 0.3 * bump(0, 556, 34, 20)
    darken(skin, (255, 196, 186), blush)
    freckles(skin)
    lay(skin, rosy, 0.06 * pair(92, 422, 34, 22))
    lighten(skin, (255, 232, 205), 0.36 * bump(-5, 430, 6.5, 5.5) + 0.14 * bump(-4, 388, 4.5, 28))
    cheeks = 0.13 * bump(-94, 396, 26, 13) + 0.07 * bump(88, 398, 22, 12)
    lighten(skin, (255, 232, 205), cheeks + 0.10 * bump(-6, 553, 15, 9))
    lighten(skin, (255, 226, 196), 0.10 * bump(-34, 262, 48, 26))
    # light from the wall on the shadow side
    edge = np.clip(1 - (half_width() - X) / 15, 0, 1) * np.clip((X - 20) / 60, 0, 1) * np.clip((Y - 380) / 90, 0, 1)
    lighten(skin, (150, 150, 160), 0.16 * blur(edge.astype(np.float32), 3))
    lay(picture, skin, shape)
    for side in (-1, 1):
        nostril = fill(flip([(7, 452), (13, 448.5), (20, 450.5), (19, 454), (12, 455)], side), 1.2)
        lay(picture, (84, 34, 32), 0.80 * nostril)
    return shape


def freckles(skin: Picture) -> None:
    """A few faint freckles over nose and cheeks, and the unevenness of real skin, in place."""
    rng = np.random.default_rng(SEED + 1)
    coarse = rng.normal(0, 1, (26, 26, 3)).astype(np.float32)
    skin += 0.9 * cv2.resize(coarse, X.shape[::-1], interpolation=cv2.INTER_CUBIC)
    dots = np.zeros(X.shape, np.uint8)
    for _ in range(70):
        side = -1 if rng.random() < 0.5 else 1
        spot = np.array([side * abs(rng.normal(52, 26)), rng.normal(412, 12)])
        radius = int(rng.uniform(0.5, 1.25) * SCALE * 16)
        cv2.circle(dots, pixels(spot[None])[0].tolist(), radius, rng.uniform(60, 200), -1, cv2.LINE_AA, 4)
    darken(skin, (196, 120, 92), 0.34 * blur(dots.astype(np.float32) / 255, 0.7))


def eye(picture: Picture, side: int) -> None:
    """One eye with its lids and lashes, in place."""
    upper: Path = [(35.0, 366), (43, 355), (56, 346.5), (69, 344.5), (83, 348.5), (93, 355), (99.5, 360.8)]
    lower: Path = [(99.5, 360.8), (92, 369), (80, 374.5), (66, 376), (52, 373.5), (42, 370), (35, 366)]
    upper, lower = (grown(lid, 1.15, 67, 361) for lid in (upper, lower))
    outline = np.vstack([spline(flip(upper, side)), spline(flip(lower, side))[1:]])
    opening = fill(outline, 0.5, smooth=False)
    # socket: crease and the plane of the lid
    crease = [(29, 355), (41, 340.5), (57, 331), (73, 329), (92, 334.5), (109, 347)]
    darken(picture, (178, 104, 88), 0.50 * fill(flip([*crease, (102, 357), (69, 341), (38, 356)], side), 4))
    darken(picture, (150, 76, 64), 0.62 * line(flip(crease, side), (1, 2.6, 3, 3, 2.6, 1), 1.1))
    lighten(picture, (255, 224, 196), 0.22 * line(flip([(48, 344), (68, 336.5), (90, 342)], side), (2, 5, 2), 1.6))
    lighten(picture, (255, 224, 196), 0.18 * line(flip([(58, 328), (84, 325), (106, 333)], side), (3, 8, 4), 4))
    darken(picture, (196, 120, 104), 0.30 * line(flip([(40, 381), (60, 387.5), (86, 385)], side), (1, 4, 1), 3))
    # the ball
    lay(picture, ramp(0.93 - 0.30 * np.abs(X - side * 67) / 34, WHITE), opening)
    corners = 0.85 * bump(side * 32, 366.5, 4.2, 3.6) + 0.25 * bump(side * 104, 361, 5, 4)
    lay(picture, (226, 142, 128), opening * corners)
    cx, cy, radius = side * 67.5 - 0.5, 359.0, 18.4
    r = np.hypot(X - cx, Y - cy)
    angle = np.arctan2(Y - cy, X - cx)
    iris_cover = np.clip((radius - r) / 1.6 + 0.5, 0, 1)
    fibre = 0.05 * np.sin(angle * 37 + 2 * np.sin(angle * 5)) + 0.04 * np.sin(angle * 61 + side)
    glow = 0.44 * np.exp(-(((X - cx - 2) / 10) ** 2 + ((Y - cy - 8) / 7) ** 2) / 2)
    tone = np.clip(
        0.50 - 0.40 * np.clip((r - 11.5) / 7.2, 0, 1) ** 1.6 + glow + fibre * np.clip((r - 5) / 6, 0, 1), 0, 1
    )
    stops = ((0, (30, 17, 13)), (0.3, (74, 42, 24)), (0.6, (126, 78, 40)), (0.85, (176, 120, 62)), (1, (214, 164, 96)))
    lay(picture, ramp(tone, stops), iris_cover * opening)
    lay(picture, (14, 8, 9), np.clip((7.9 - r) / 1.8 + 0.5, 0, 1) * opening)
    lid_shadow = opening * blur(line(flip([(x, y + 2.0) for x, y in upper], side), (4, 10, 12, 10, 5)), 2.2)
    darken(picture, (92, 62, 66), 0.80 * lid_shadow)
    lighten(picture, (255, 255, 255), 0.98 * np.clip((4.3 - np.hypot(X - cx + 5.6, Y - cy + 6.2)) / 1.2 + 0.5, 0, 1))
    lighten(picture, (220, 235, 245), 0.50 * bump(cx + 6, cy + 6.5, 2.2, 2.0))
    # wet edge of the lower lid, then the lashes
    lay(picture, (238, 186, 170), 0.70 * line(flip([(x, y + 0.6) for x, y in lower], side), (0.5, 1.8, 2.2, 2, 1), 0.5))
    rim = line(flip([(x, y + 2.2) for x, y in lower], side), (2.4, 1.8, 1.2, 0.8, 0.3), 0.7)
    darken(picture, (120, 64, 58), 0.55 * rim)
    tail: Path = [*[(x, y - 0.4) for x, y in upper[1:-1]], (upper[-1][0] + 5, upper[-1][1] - 4)]
    lay(picture, (34, 18, 18), 0.95 * line(flip(tail, side), (0.8, 2.6, 3.6, 4.4, 5.2, 4.6, 0.4), 0.5))
    curve = resample(spline(flip(upper, side)), 60)
    lashes = np.zeros(X.shape, np.float32)
    for n in range(26, 54, 3):
        x, y = curve[n]
        share = n / 59
        reach = 1 + 8.5 * share**1.5
        lean = 0.25 + (share - 0.4) * 1.5
        tip = (x + side * reach * np.sin(lean), y - reach * np.cos(lean))
        mid = ((x + tip[0]) / 2 + side * 1.0, (y + tip[1]) / 2 + 0.8)
        lashes = np.maximum(lashes, line([(x, y), mid, tip], (2.6, 1.6, 0.3), 0.6))
    lay(picture, (34, 18, 18), 0.75 * lashes)


def brow(picture: Picture, side: int) -> None:
    """One eyebrow, hair by hair, in place."""
    lift = 1.0 if side < 0 else 0.0
    arch = [(34, 320 - lift), (56, 311.5 - lift), (82, 306 - lift), (104, 311 - lift), (122, 324)]
    spine = resample(spline(flip(arch, side)), 60)
    body = line(spine[::6], (4, 9, 11, 10, 7.5, 4.5, 1), 3.2)
    darken(picture, (104, 62, 52), 0.70 * body)
    rng = np.random.default_rng(SEED + 30 + side)
    hairs = np.zeros(X.shape, np.uint8)
    for _ in range(190):
        at = rng.uniform(0, 0.97)
        x, y = spine[int(at * 59)]
        y += rng.uniform(-0.5, 0.5) * np.interp(at, (0, 0.15, 0.5, 1), (6, 9, 8.5, 2.5))
        lean = np.interp(at, (0, 0.15, 0.5, 1), (0.35, 0.95, 1.35, 1.9)) + rng.normal(0, 0.12)
        reach = np.interp(at, (0, 0.3, 1), (7, 9.5, 7)) * rng.uniform(0.7, 1.1)
        tip = (x + side * reach * np.sin(lean), y - reach * np.cos(lean))
        path = pixels(np.array([(x, y), tip]))
        ink = rng.uniform(110, 225) * np.interp(at, (0, 0.2, 1), (0.45, 1, 1))
        cv2.polylines(hairs, [path], False, float(ink), 2, cv2.LINE_AA, 4)
    lay(picture, (56, 31, 27), 0.66 * blur(hairs.astype(np.float32) / 255, 0.75))


def mouth(picture: Picture) -> None:
    """Closed lips with a hint of a smile, in place."""
    right = [(0, 494.4), (11, 492.4), (25, 493.4), (42, 490), MOUTH_CORNER]
    parting = [*flip(right[:0:-1], -1), *right]
    right = [(0, 478.4), (10, 475.2), (20, 477), (38, 480.8), MOUTH_CORNER]
    top = [*flip(right[:0:-1], -1), *right]
    right = [(0, 516.4), (15, 515), (31, 509), (46, 497.5), MOUTH_CORNER]
    bottom = [*right[::-1], *flip(right[1:], -1)]
    upper = fill(np.vstack([spline(top), spline(parting)[::-1]]), 0.9, smooth=False)
    lower = fill(np.vstack([spline(parting), spline(bottom)]), 1.1, smooth=False)
    lay(picture, ramp(0.55 - (Y - 475) / 60 - X / 500, UPPER_LIP), 0.88 * upper)
    body = 0.62 - (Y - 503) ** 2 / 700 - X / 420 - (X / 85) ** 2 + 0.1 * bump(-12, 502, 16, 6)
    lay(picture, ramp(body, LOWER_LIP), 0.90 * lower)
    creases = np.clip(np.sin(X * 1.05 + 0.012 * X * np.abs(Y - 494)) * np.sin(X * 0.37 + 1), 0, 1)
    darken(picture, (206, 140, 136), 0.16 * creases * (lower + 0.7 * upper))
    wet = fill([(-26, 503), (-14, 500.2), (-3, 501.6), (5, 500.4), (14, 502), (2, 504.6), (-12, 505)], 2.2)
    lighten(picture, (255, 224, 214), 0.40 * wet * lower)
    bow = line([(-20, 475), (-10.5, 473), (0, 476.3), (9, 473.5)], (1.5, 2.4, 2.2, 1), 1.0)
    lighten(picture, (255, 224, 210), 0.26 * bow)
    shadow = line([(x, y + 1.6) for x, y in parting], (2, 5, 6, 6, 5, 2), 1.8)
    darken(picture, (120, 50, 50), 0.45 * shadow * (upper + lower))
    lay(picture, (92, 32, 36), 0.92 * line(parting, (1.6, 2.2, 2.0, 2.6, 3.0, 2.6, 2.0, 2.2, 1.6), 0.6))
    for side in (-1, 1):
        darken(picture, (120, 56, 50), 0.45 * bump(side * 58.5, 484.2, 3.2, 2.6))


def front_guides(side: int) -> list[Path]:
    """Guide curves of the hair before the head, from the parting down one side of the face in long waves."""
    if side < 0:
        return [
            [(47, 184), (16, 184), (-46, 206), (-104, 246), (-137, 306), (-151, 372), (-156, 440), (-172, 506),
             (-166, 574), (-150, 640), (-160, 710), (-140, 790)],
            [(46, 158), (0, 160), (-66, 188), (-126, 236), (-154, 306), (-166, 376), (-174, 444), (-192, 510),
             (-188, 580), (-172, 648), (-182, 716), (-160, 794)],
            [(45, 132), (-14, 132), (-88, 166), (-146, 224), (-174, 302), (-184, 378), (-196, 448), (-214, 516),
             (-212, 588), (-196, 656), (-204, 722), (-182, 792)],
            [(46, 103), (-24, 100), (-100, 130), (-158, 196), (-188, 284), (-200, 370), (-216, 446), (-236, 520),
             (-236, 596), (-220, 666), (-226, 728), (-206, 788)],
        ]  # fmt: skip
    return [
        [(48, 184), (74, 188), (106, 214), (132, 256), (147, 316), (152, 380), (164, 444), (176, 508), (168, 574),
         (152, 636), (160, 700), (142, 784)],
        [(48, 158), (82, 162), (122, 194), (150, 246), (164, 312), (168, 382), (182, 448), (196, 514), (190, 582),
         (174, 646), (184, 710), (164, 786)],
        [(47, 132), (88, 136), (138, 174), (168, 236), (180, 308), (186, 384), (202, 452), (218, 520), (214, 590),
         (198, 656), (206, 716), (186, 784)],
        [(46, 103), (90, 107), (148, 150), (182, 226), (196, 306), (202, 384), (220, 456), (238, 528), (236, 600),
         (222, 664), (228, 722), (208, 782)],
    ]  # fmt: skip


def front_cover() -> Plane:
    """Cover, 0..1, of the hair before the face."""
    cover = np.zeros(X.shape, np.float32)
    for side in (-1, 1):
        guides = front_guides(side)
        outline = np.vstack([spline(guides[0]), spline(guides[-1])[::-1]])
        cover = np.maximum(cover, fill(outline, 0.8, smooth=False))
    return cover


def front_hair(picture: Picture, cover: Plane) -> None:
    """The hair before the head, in place."""
    darken(picture, (70, 40, 40), 0.6 * np.clip(blur(cover, 9) - cover, 0, 1) * (Y > 420))
    lay(picture, ramp(0.3 + 0 * X, HAIR), 0.42 * blur(cover, 3.5) * (Y < 430))
    crown = fill([(-14, 101), (46, 99.5), (76, 104.5), (84, 130), (46, 140), (-14, 130)], 0.8)
    lay(picture, ramp(0.26 - X / 1600, HAIR), np.maximum(cover, crown))
    for side, seed in ((-1, 41), (1, 42)):
        guides = front_guides(side)
        key = 1.0 if side < 0 else 0.80
        tones = [key * t for t in (0.26, 0.50, 0.70, 0.54, 0.36, 0.34, 0.40, 0.42, 0.38, 0.36, 0.30, 0.24)]
        strands(picture, guides, 420, 7.0, [0.9 * t for t in tones], 0.06, seed)
        strands(picture, guides, 520, 3.0, tones, 0.11, seed + 10)
        strands(picture, guides, 380, 1.2, [1.1 * t for t in tones], 0.20, seed + 20)
        # single hairs that stand off the rest, thin enough to let the wall through
        before = picture.copy()
        outer = guides[-1]
        stray = [
            [(x - side * 3, y) for x, y in outer],
            [(x + side * (5 + 7 * np.sin(y / 60)), y - 3) for x, y in outer],
            [(x + side * (9 + 9 * np.sin(y / 45 + 2)), y - 5) for x, y in outer],
        ]
        strands(picture, stray, 30, 0.5, [1.25 * t for t in tones], 0.15, seed + 30)
        picture += 0.55 * (before - picture)
        # volume: the lock turns away towards the face and, on the far side, from the light
        inner = line(guides[0][3:], (6, 16, 18, 20, 22, 24), 7)
        darken(picture, (86, 52, 50), 0.55 * inner * cover)
    darken(picture, (96, 66, 70), 0.45 * np.clip((X - 150) / 70, 0, 1) * cover)
    rim = np.clip(cover - blur(np.roll(cover, (3 * SCALE, 4 * SCALE), (0, 1)), 3), 0, 1) * (X < 20)
    lighten(picture, (236, 208, 176), 0.22 * blur(rim.astype(np.float32), 1.2) * cover * (bump(-120, 250, 110, 200)))
    darken(picture, (60, 34, 34), 0.55 * line([(46, 112), (48, 146), (47, 182)], (14, 6, 2), 4))
    lighten(picture, (255, 214, 170), 0.10 * bump(-92, 190, 34, 30) * cover + 0.06 * bump(118, 196, 24, 30) * cover)


def paint() -> npt.NDArray[np.uint8]:
    """Paint the demo face.

    Returns:
        BGR picture, (SIZE, SIZE, 3).
    """
    picture = background()
    back_hair(picture)
    neck(picture)
    cover = front_cover()
    face(picture, cover)
    for side in (-1, 1):
        eye(picture, side)
        brow(picture, side)
    mouth(picture)
    front_hair(picture, cover)
    clothes(picture)
    small = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.round(np.clip(small, 0, 255)).astype(np.uint8)[..., ::-1].copy()
