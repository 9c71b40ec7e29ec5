"""The shape of an eye on a photo: where its lids' edges run, what skin surrounds it, and whether it is an open eye.

FaceMesh says roughly where an eye is. Its lids are looked for on a strip of the photo laid level along the eye: where
pixels like the skin above and below it give way to pixels that are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from services.inference.builtin.pictures import NO_MAP, Floats, Pixels, blurred, floats

__all__ = ["BELOW", "EYES", "EyeShape", "Side", "shape_of", "width_of"]


@dataclass(frozen=True)
class Side:
    """FaceMesh numbers of an eye, each list from left to right in the picture."""

    upper: tuple[int, ...]
    """edge of the upper lid, corners included"""
    lower: tuple[int, ...]
    """edge of the lower lid, corners included"""
    brow: tuple[int, ...]
    """lower edge of the brow"""


EYES: Final = (
    Side(
        upper=(33, 246, 161, 160, 159, 158, 157, 173, 133),
        lower=(33, 7, 163, 144, 145, 153, 154, 155, 133),
        brow=(46, 53, 52, 65, 55),
    ),
    Side(
        upper=(362, 398, 384, 385, 386, 387, 388, 466, 263),
        lower=(362, 382, 381, 380, 374, 373, 390, 249, 263),
        brow=(285, 295, 282, 283, 276),
    ),
)
CHEEKS: Final = (50, 280, 205, 425, 118, 347)

# What is left open, found by looking at 70 photos, paintings and drawings.
LEAST_WIDTH_PX: Final = 12.0
"""An eye that is smaller: its blink would be a flicker of single pixels."""
LEAST_HEIGHT: Final = 0.11
"""Least distance of the lids, eye distances; below it an eye is closed or nearly so."""
LEAST_PIXELS: Final = 8
DARK_AROUND: Final = 0.30
"""Skin around an eye that has less light than this share of the cheeks' is no skin: dark glasses, hair, a patch."""
ROUGH: Final = 0.43
"""Most spread of light in that skin, as a share of it: beyond are drawn lines, thick rims, hair, hard shadows."""
PAPER: Final = 245.0
PAPER_SHARE: Final = 0.03
"""Share of pixels there as white as this from which it is the paper of a drawing."""
CONTRAST: Final = 0.34
"""Least spread of light between the lids, as a share of the cheeks' light: a closed eye shows but its lashes."""
FILLED: Final = (0.25, 0.62)
"""Distance from the skin's colour that at least so many of the pixels between the lids have; likewise."""
UNLIKE: Final = 0.35
STRAY: Final = 0.45
"""Most pixels just below the eye that are further than `UNLIKE` from the skin's colour: there the eye goes on."""

# Lengths in eye distances.
SEARCH: Final = (0.055, 0.085)
"""How far from the landmarks the edges of the upper and of the lower lid are looked for."""
CORNER: Final = 0.08
"""How far the corners of the eye may lie beyond the landmarks."""
UNDER: Final = 0.14
"""Where beside the eye and below its axis no eye reaches any more, but the rim of glasses does."""
RIM_WIDTH: Final = 0.09
"""Most width of a rim."""
RIM_ROOM: Final = 0.03
"""How far what is drawn stays away from the rim of glasses beside the eye."""
BESIDE: Final = 0.20
"""How far the strip reaches beyond the corners."""
FOLD: Final = 0.19
"""Most skin over the edge of the upper lid that moves with it."""
LID: Final = 0.06
"""Least."""
ROOM: Final = 0.035
"""How far that skin stays below the brow."""
BELOW: Final = 0.13
"""Skin below the eye that moves with the lower lid."""
ABOVE_LID: Final = 0.09
"""Most that the skin of the upper lid is looked at above its edge."""
BELOW_LID: Final = 0.085
"""How far below the eye its skin is looked at."""

EYEBALL: Final = 0.40
"""Distance from the skin's colour, a share of its light, at which a pixel is surely no skin."""
RIM: Final = (0.55, 1.5)
"""Less or more light than these shares of the lid's is the rim of glasses, a strand of hair or the brow."""
LIFT: Final = 0.75
"""Least light of a closed lid's skin, as a share of that below the eye: the fold of an open one lies in the shadow of
the brow, out of which it comes."""


@dataclass(frozen=True)
class EyeShape:
    """An open eye. Heights are px below its axis, one for each place along it, 1 px apart: (n,)."""

    corner: Floats
    """its left corner by the landmarks, px of the photo, (2,)"""
    along: Floats
    """unit vector from its left to its right corner, (2,)"""
    down: Floats
    """unit vector down the eye, (2,)"""
    before: int
    """places that lie before the left corner"""
    ends: tuple[float, float]
    """its corners as they were found, px along the eye from `corner`"""
    free: tuple[float, float]
    """up to where may be drawn to both sides: the rims of glasses, or hair"""
    fold: Floats
    """above this nothing moves when it closes"""
    upper: Floats
    """edge of the upper lid"""
    lower: Floats
    """edge of the lower lid"""
    lid: Floats
    """colour of the skin of the upper lid, BGR 0..255, (n, 3)"""
    cheek: Floats
    """colour of the skin below, BGR 0..255, (n, 3)"""
    lashes: Floats
    """colour of the darkest along the edge of the upper lid, BGR 0..255, (3,)"""


@dataclass(frozen=True)
class _Strip:
    """The photo around an eye, laid level. Columns run along the eye, rows below its axis; both in px of the photo."""

    pixels: Floats
    """(rows, n, channels)"""
    first: float
    """height of the first row"""
    before: int
    """columns before the left corner, and after the right one"""

    @property
    def heights(self) -> Floats:
        """Of the rows, (rows, 1)."""
        return floats(np.arange(self.pixels.shape[0])[:, None] + self.first)

    @property
    def within(self) -> slice:
        """Columns between the corners."""
        return slice(self.before, self.pixels.shape[1] - self.before)

    def band(self, first: Floats, last: Floats) -> Floats:
        """Pixels between two heights, (n,) each, and between the corners, (m, channels)."""
        inside = (self.heights >= first) & (self.heights <= last)
        return floats(self.pixels[:, self.within][inside[:, self.within]])


def width_of(points: Floats, side: Side) -> float:
    """Width of an eye by its landmarks, px.

    Args:
        points: FaceMesh points, px, (468, 2).
        side: which eye.
    """
    return float(np.linalg.norm(points[side.upper[-1]] - points[side.upper[0]]))


def shape_of(photo: Pixels, points: Floats, side: Side, unit: float, face_down: Floats) -> EyeShape | None:
    """Find the shape of an eye.

    Args:
        photo: BGR, (h, w, 3).
        points: FaceMesh points, px, (468, 2).
        side: which eye.
        unit: eye distance, px.
        face_down: unit vector down the face, (2,).

    Returns:
        the shape; None where there is no open eye whose closing would look right.
    """
    width = width_of(points, side)
    if width < LEAST_WIDTH_PX:
        return None
    corner = points[side.upper[0]]
    along = floats((points[side.upper[-1]] - corner) / width)
    down = floats([-along[1], along[0]])
    if down @ face_down < np.sqrt(0.5):
        return None
    before = int(np.ceil(BESIDE * unit))
    columns = floats(np.arange(-before, int(width) + before + 1))
    upper, lower, brow = (
        floats(np.interp(columns, (points[list(line)] - corner) @ along, (points[list(line)] - corner) @ down))
        for line in (side.upper, side.lower, side.brow)
    )
    first = np.floor(min(upper.min() - FOLD * unit, brow.min()) - 0.08 * unit)
    last = np.ceil(lower.max() + (BELOW + SEARCH[1] + 0.04) * unit)
    rows = floats(np.arange(first, last + 1))
    places = floats(corner + columns[None, :, None] * along + rows[:, None, None] * down)
    pixels = cv2.remap(photo, places, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    strip = _Strip(floats(pixels), float(first), before)

    unlike = _unlike_skin(strip, (brow, upper, lower), unit)
    eyeball = floats(np.clip(unlike / EYEBALL, 0, 1))
    ends, free = _ends(strip, eyeball, floats((upper + lower) / 2), width, unit)
    share = floats((columns - ends[0]) / (ends[1] - ends[0]))
    upper = _edge(strip, eyeball, upper, share, -SEARCH[0] * unit, unit)
    lower = floats(np.maximum(_edge(strip, eyeball, lower, share, SEARCH[1] * unit, unit), upper))
    if float((lower - upper).max()) < LEAST_HEIGHT * unit:
        return None
    if not _is_open_eye(strip, unlike, (brow, upper, lower), _light(photo, points, unit), unit):
        return None
    fold = _fold(strip, brow, upper, lower, unit)
    lid, cheek = _skins(strip, unlike, (fold, upper, lower), unit)
    lashes = _lashes(strip, upper, unit)
    return EyeShape(corner, along, down, before, ends, free, fold, upper, lower, lid, cheek, lashes)


def _skin_bands(
    brow: Floats, upper: Floats, lower: Floats, unit: float
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Between which heights the skin above and below an eye is looked at."""
    first = np.clip(brow + ROOM * unit, upper - 0.11 * unit, upper - 0.065 * unit)
    return (floats(first), floats(upper - 0.045 * unit)), (floats(lower + 0.06 * unit), floats(lower + 0.14 * unit))


def _unlike_skin(strip: _Strip, lines: tuple[Floats, Floats, Floats], unit: float) -> Floats:
    """How far each pixel's colour is from that of the skin above and below the eye, shares of its light, (rows, n). The
    lines are the brow and the edges of both lids."""
    _, upper, lower = lines
    lid, cheek = (np.median(strip.band(*band), axis=0) for band in _skin_bands(*lines, unit))
    share = np.clip((strip.heights - upper) / np.maximum(lower - upper, 1), 0, 1)[..., None]
    skin = lid * (1 - share) + cheek * share
    distance = np.abs(strip.pixels - skin).max(axis=2) / np.maximum(skin.mean(axis=2), 24)
    return blurred(floats(distance), max(0.6, 0.008 * unit))


def _ends(
    strip: _Strip, eyeball: Floats, middle: Floats, width: float, unit: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the eye ends to both sides, px from its left corner: it may be longer than the landmarks say. And how far
    what may be drawn beside it reaches: up to the rim of glasses, or hair."""
    belt = np.abs(strip.heights - middle) < 0.015 * unit + 0.5
    filled = (eyeball * belt).sum(axis=0) / belt.sum(axis=0)
    belt = np.abs(strip.heights - middle - UNDER * unit) < 0.02 * unit + 0.5
    crossed = (eyeball * belt).sum(axis=0) / belt.sum(axis=0)
    ends, free = [], []
    for order in (slice(strip.before - 1, None, -1), slice(len(filled) - strip.before, None)):
        skin = np.flatnonzero(filled[order] < 0.6)
        free.append(_rim(crossed[order], unit) - RIM_ROOM * unit)
        ends.append(max(0.0, min(float(skin[0]) if skin.size else np.inf, CORNER * unit, free[-1])))
    return (-ends[0], width + ends[1]), (-free[0], width + free[1])


def _rim(crossed: Floats, unit: float) -> float:
    """Where a rim or hair begins in a row of pixels that are skin or are not; the row's end if there is none. What is
    wide and begins right beside the eye is shade."""
    dark = np.concatenate([[False], crossed > 0.75, [False]]).astype(np.int8)
    begins, ends = np.flatnonzero(np.diff(dark) > 0), np.flatnonzero(np.diff(dark) < 0)
    lines = (ends - begins < RIM_WIDTH * unit) & (ends < len(crossed)) | (begins > RIM_ROOM * unit)
    return float(begins[lines][0]) if lines.any() else float(len(crossed))


def _edge(strip: _Strip, eyeball: Floats, line: Floats, share: Floats, reach: float, unit: float) -> Floats:
    """Move the edge of a lid, a bow, to where eyeball and skin differ most.

    Args:
        strip: the eye.
        eyeball: how surely each pixel is none of the skin, 0..1, (rows, n).
        line: the edge by the landmarks, (n,).
        share: place along the eye, 0 and 1 in its corners, (n,).
        reach: how far it may move, px; positive for the lower lid, negative for the upper.
        unit: eye distance, px.
    """
    bow = np.sqrt(np.clip(4 * share * (1 - share), 0, 1))
    depth, lean = (each.reshape(-1, 1) for each in np.meshgrid(np.linspace(-1, 1, 25), np.linspace(-0.5, 0.5, 5)))
    edges = floats(line + reach * bow * (depth + lean * (2 * share - 1)))
    sums = floats(np.cumsum(np.concatenate([np.zeros_like(eyeball[:1]), eyeball]), axis=0))
    columns = np.broadcast_to(np.arange(len(line)), edges.shape)
    band = max(1.0, 0.03 * unit)

    def until(heights: Floats) -> Floats:
        """Sum of the eyeball above some heights."""
        at = floats(np.stack([columns, heights - strip.first + 0.5], axis=-1))
        return floats(cv2.remap(sums, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    change = np.sign(reach) * (2 * until(edges) - until(floats(edges - band)) - until(floats(edges + band))) / band
    score = (change * bow).sum(axis=1) / bow.sum() - 0.12 * depth.ravel() ** 2 - 0.2 * lean.ravel() ** 2
    return floats(edges[int(score.argmax())])


def _is_open_eye(
    strip: _Strip, unlike: Floats, lines: tuple[Floats, Floats, Floats], light: float, unit: float
) -> bool:
    """Whether what was found looks like an open eye in skin. The lines are the brow and the edges of both lids; `light`
    is that of the cheeks, 0..255."""
    _, upper, lower = lines
    around = np.concatenate([strip.band(*band) for band in _skin_bands(*lines, unit)])
    within = strip.band(floats(upper + 0.02 * unit), floats(lower - 0.01 * unit)).mean(axis=1)
    if within.size < LEAST_PIXELS or float((around.min(axis=1) > PAPER).mean()) > PAPER_SHARE:
        return False
    around = around.mean(axis=1)
    if float(np.median(around)) < DARK_AROUND * light or float(around.std()) > ROUGH * float(around.mean()):
        return False
    if float(np.percentile(within, 92) - np.percentile(within, 8)) < CONTRAST * light:
        return False
    other = _Strip(unlike[..., None], strip.first, strip.before)
    filled = other.band(floats(upper + 0.015 * unit), floats(lower - 0.01 * unit)) > FILLED[0]
    stray = other.band(floats(lower + 0.03 * unit), floats(lower + 0.08 * unit)) > UNLIKE
    return float(filled.mean()) > FILLED[1] and float(stray.mean()) < STRAY


def _fold(strip: _Strip, brow: Floats, upper: Floats, lower: Floats, unit: float) -> Floats:
    """Height above which nothing moves: below the brow, and below the rim of glasses or a strand of hair."""
    light = strip.pixels.mean(axis=2, keepdims=True)
    lid, _ = _skin_bands(brow, upper, lower, unit)
    # The brighter part of the lid is skin even where a rim crosses it.
    usual = float(np.percentile(_Strip(light, strip.first, strip.before).band(*lid), 75))
    strange = (light[..., 0] < RIM[0] * usual) | (light[..., 0] > RIM[1] * usual)
    strange &= (strip.heights < upper - LID * unit) & (strip.heights > upper - (FOLD + 0.02) * unit)
    # Towards the corners long lashes cross the skin.
    end = strip.before + (len(upper) - 2 * strip.before) // 5
    strange[:, :end] = strange[:, len(upper) - end :] = False
    lowest = np.where(strange, strip.heights + 0.015 * unit, -np.inf).max(axis=0)
    lowest[:end], lowest[len(upper) - end :] = lowest[end], lowest[len(upper) - end - 1]
    fold = np.maximum(np.maximum(upper - FOLD * unit, brow + ROOM * unit), lowest)
    wide = cv2.dilate(floats(fold[None]), np.ones((1, 2 * max(1, round(0.03 * unit)) + 1), np.uint8))
    return floats(np.minimum(blurred(floats(wide), 0.03 * unit)[0], upper - LID * unit))


def _skins(strip: _Strip, unlike: Floats, lines: tuple[Floats, Floats, Floats], unit: float) -> tuple[Floats, Floats]:
    """Colour of the skin of the lid and below the eye at each place along it, (n, 3) each; lashes and the like left
    out. The lines are the fold and the edges of both lids."""
    fold, upper, lower = lines
    colours = []
    for middle in (
        np.clip((fold + upper) / 2, upper - ABOVE_LID * unit, upper - 0.04 * unit),
        lower + BELOW_LID * unit,
    ):
        weight = np.exp(-(((strip.heights - middle) / (0.03 * unit)) ** 2) - (unlike / 0.25) ** 2) + 1e-9
        sums = np.concatenate([(weight[..., None] * strip.pixels).sum(axis=0), weight.sum(axis=0)[:, None]], axis=1)
        sums = np.stack([blurred(floats(column[None]), 0.09 * unit)[0] for column in sums.T], axis=1)
        colours.append(sums[:, :3] / sums[:, 3:])
    lid, cheek = colours
    lift = np.maximum(1, LIFT * cheek.mean(axis=1) / np.maximum(lid.mean(axis=1), 1))
    return floats(lid * lift[:, None]), floats(cheek)


def _lashes(strip: _Strip, upper: Floats, unit: float) -> Floats:
    """Colour of the darkest along the edge of the upper lid, BGR."""
    near = (strip.heights > upper - 0.01 * unit - 1) & (strip.heights < upper + 0.03 * unit + 1)
    light = np.where(near, strip.pixels.mean(axis=2), np.inf)[:, strip.within]
    darkest = strip.pixels[:, strip.within][light.argmin(axis=0), np.arange(light.shape[1])]
    return floats(np.median(darkest, axis=0))


def _light(photo: Pixels, points: Floats, unit: float) -> float:
    """Median light of the cheeks, 0..255."""
    radius = max(1, round(0.06 * unit))
    cheeks = []
    for x, y in np.clip(np.round(points[list(CHEEKS)]).astype(int), 0, (photo.shape[1] - 1, photo.shape[0] - 1)):
        part = photo[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        cheeks.append(part.reshape(-1, 3).mean(axis=1))
    return float(np.median(np.concatenate(cheeks)))
