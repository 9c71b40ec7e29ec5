"""Where the lips of a photo are: their inner edges, the line between them, the teeth they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin.pictures import (
    LUMA,
    Floats,
    Pixels,
    blurred,
    bytes_of,
    floats,
    mixed,
    nearest,
    sampled_field,
)

__all__ = ["Shown", "edges", "filled", "length_of", "seam", "shown_teeth", "spline", "spline_at", "without_gap"]

# Lengths in eye distances.
REACH: Final = 0.045
"""How far beside the landmarks the edge of a lip is looked for."""
LIP_MARGIN: Final = 0.014
"""Landmarks are unsure by this much: so far around an open mouth the lips are painted over."""
TEETH_MARGIN: Final = 0.020
"""The same around teeth, whose light spreads."""
SEAM_MARGIN: Final = 0.024
"""Half the width of the dark line between closed lips."""
LOWER_LIP: Final = (0.02, 0.07)
"""Where the lower lip is looked at, below its inner edge."""
LESS_RED: Final = -2.5
"""Teeth have less a* (CIELAB, 8 bits) than the lip by this much, or they are lighter than it by"""
LIGHTER: Final = (18.0, 70.0)
"""so many steps of L*; more is a light."""
IN_SHADE: Final = -46.0
"""So much darker than the lip teeth cannot be told from the dark behind them."""
PALE: Final = 150.0
"""a* that no tooth exceeds beside lips that are as red."""
LIP_BETWEEN: Final = 0.3
"""Share of red above what looks like teeth from which it is none."""
HIDDEN: Final = 0.14
"""How much of its teeth the upper lip hides."""
STRIP: Final = (25, 61)
"""Samples of a strip across and along a lip."""
FINE: Final = (4, 8)
"""Pixels drawn for one of the photo along each side, to smooth an edge: of a large picture and of a small one."""
SMALL_AREA: Final = 12_000
"""Pixels up to which a picture is small."""


def seam(patch: Pixels, line: Floats, down: Floats, unit: float) -> Floats:
    """Move the line between closed lips onto the darkest line near it; where none is clear it stays."""
    reach = REACH * unit
    grey = blurred(floats(cv2.cvtColor(patch, cv2.COLOR_BGR2GRAY)), max(0.5, 0.008 * unit))
    strip, offsets = _strip(grey, line, down, reach)
    spread = max(float(strip.std()), 3.0)
    cost = (strip - strip.mean(axis=0)) / spread + 0.8 * (offsets[:, None] / reach) ** 2
    return _moved(line, _path(cost), offsets, down)


def edges(patch: Pixels, upper_line: Floats, lower_line: Floats, down: Floats, unit: float) -> tuple[Floats, Floats]:
    """Move the inner edges of parted lips to where the red of the lips begins; where that is unclear they stay."""
    reach = REACH * unit
    red = blurred(floats(cv2.cvtColor(patch, cv2.COLOR_BGR2LAB)[..., 1]), max(0.5, 0.010 * unit))
    moved = []
    for line, outward in ((upper_line, -down), (lower_line, down)):
        strip, offsets = _strip(red, line + 0.6 * reach * outward, outward, reach)
        offsets = offsets + 0.6 * reach
        rise = np.gradient(strip, axis=0)
        cost = -rise / max(float(np.abs(rise).max()), 1.0) + 0.35 * (offsets[:, None] / reach) ** 2
        moved.append(_moved(line, _path(cost), offsets, outward))
    return moved[0], moved[1]


def _strip(picture: Floats, line: Floats, across: Floats, reach: float) -> tuple[Floats, Floats]:
    """Sample a picture beside a line; returns the strip and how far from the line each of its rows lies, px."""
    smooth = spline(len(line), STRIP[1]) @ line
    offsets = np.linspace(-reach, reach, STRIP[0], dtype=np.float32)
    return sampled_field(picture, floats(smooth[None] + offsets[:, None, None] * across)), offsets


def _path(cost: Floats) -> npt.NDArray[np.intp]:
    """Cheapest row of each column that bends little, by dynamic programming."""
    rows = np.arange(cost.shape[0])
    bend = 0.25 * (rows[:, None] - rows[None]) ** 2
    total = cost[:, 0]
    choices = []
    for column in range(1, cost.shape[1]):
        ways = total[None] + bend
        choices.append(ways.argmin(axis=1))
        total = cost[:, column] + ways.min(axis=1)
    path = [int(total.argmin())]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array(path[::-1])


def _moved(line: Floats, path: npt.NDArray[np.intp], offsets: Floats, across: Floats) -> Floats:
    """Move a line by a path through its strip, smoothly, its ends not at all."""
    columns = len(path)
    shift = np.convolve(np.pad(offsets[path], 3, "edge"), np.ones(7) / 7, "valid")
    shift *= np.clip(np.minimum(np.arange(columns), np.arange(columns)[::-1]) / 6, 0, 1)
    at = np.linspace(0, columns - 1, len(line))
    return np.asarray(line + np.interp(at, np.arange(columns), shift)[:, None] * across, np.float32)


@dataclass(frozen=True)
class Shown:
    """Upper teeth that a photo shows."""

    share: Floats
    """how much they cover, what the upper lip hides of them with them, (h, w), 0..1"""
    known: npt.NDArray[np.bool_]
    """where the photo itself shows them, or what lies between them and the upper lip, (h, w)"""


def shown_teeth(patch: Pixels, upper_line: Floats, lower_line: Floats, down: Floats, unit: float) -> Shown | None:
    """Find the teeth that the photo shows between open lips; None if it shows none.

    Where they lie in the dark none of them is known: the mouth is open, but its teeth are of no use.
    """
    inside = bytes_of(255 * filled(np.concatenate([upper_line, lower_line[::-1]]), patch.shape[:2]))
    inside = np.asarray(cv2.erode(inside, _disc(0.6 * LIP_MARGIN * unit)), np.uint8)
    pixels = patch[inside > 128].astype(np.float32)
    if len(pixels) < 20:
        return None
    luma = patch.astype(np.float32) @ LUMA
    red = patch[..., 2].astype(np.float32) - patch[..., 1]
    bright = np.quantile(pixels @ LUMA, 0.9)
    around = cv2.dilate(inside, np.ones((3, 3), np.uint8), iterations=max(2, round(0.05 * unit)))
    ring = patch[(around > 0) & (inside == 0)].astype(np.float32)
    lip_red = float(np.median(ring[:, 2] - ring[:, 1])) if len(ring) else 30.0
    lip_luma = float(np.median(ring @ LUMA)) if len(ring) else 80.0
    if bright < 0.9 * lip_luma:
        return None
    # The brighter, the more likely a tooth, even in red light.
    clear = 0.4 * float(np.clip((bright / max(lip_luma, 1.0) - 1.1) / 0.2, 0, 1))
    most_red = lip_red * (0.9 + clear * np.clip((luma / bright - 0.6) / 0.3, 0, 1)) + 4
    # Where lips are not red, brightness alone must tell.
    telling = float(np.clip(lip_red / 15, 0, 1))
    pale = 1 - telling * (1 - np.clip((most_red - red) / 12, 0, 1))
    tooth = np.clip((luma - 0.45 * bright) / (0.2 * bright), 0, 1) * pale
    share = floats(blurred(floats(tooth), max(0.5, 0.006 * unit)) * (inside / np.float32(255)))
    if float(share.sum()) < 0.2 * float((inside > 128).sum()):
        return None
    # The gaps between teeth belong to them, and so does what lies above: gum, or what the upper lip has covered.
    share = floats(cv2.morphologyEx(share, cv2.MORPH_CLOSE, _disc(0.03 * unit)))
    share = np.clip((share - 0.2) / 0.4, 0, 1)
    top = np.maximum.accumulate(share[::-1], axis=0)[::-1]
    above = filled(np.concatenate([lower_line, upper_line[::-1] - HIDDEN * unit * down]), patch.shape[:2])
    whole = floats(blurred(np.maximum(share, np.minimum(top, above)), max(0.5, 0.005 * unit)))
    known = (whole > 0.9) & (inside > 128)
    # Between teeth and upper lip there is no more lip: what looked like teeth is a light on the lower one.
    between = known & (share < 0.3)
    if between.sum() > LIP_BETWEEN * known.sum() and np.median(red[between]) > 0.8 * lip_red:
        return None
    lighter, redder, red_level = _against_lip(patch, known, upper_line, lower_line, down, unit)
    if redder < LESS_RED:
        if lighter > IN_SHADE:
            return Shown(whole, known)
        return Shown(np.zeros_like(whole), np.zeros_like(known))
    # Without colours a narrow and very bright gap is a light on the lip.
    wide = float(np.median((lower_line - upper_line)[2:9] @ down)) > 0.055 * unit
    clearly = red_level < PALE and lighter > LIGHTER[0] and (wide or lighter < LIGHTER[1])
    return Shown(whole, known) if clearly else None


def _against_lip(
    patch: Pixels, known: npt.NDArray[np.bool_], upper_line: Floats, lower_line: Floats, down: Floats, unit: float
) -> tuple[float, float, float]:
    """How much lighter, and how much redder, what may be teeth is than the lower lip, and how red: L* and a* of CIELAB,
    8 bits."""
    lab = floats(cv2.cvtColor(patch, cv2.COLOR_BGR2LAB))
    upper, lower = upper_line[2:9], lower_line[2:9]
    near, far = (lower + reach * unit * down for reach in LOWER_LIP)
    lip = filled(np.concatenate([near, far[::-1]]), patch.shape[:2]) > 0.5
    teeth = known & (filled(np.concatenate([upper, lower[::-1]]), patch.shape[:2]) > 0.5)
    if not (lip.any() and teeth.any()):
        return 0.0, 2 * LESS_RED, 0.0
    own, other = np.median(lab[teeth], axis=0), np.median(lab[lip], axis=0)
    return float(own[0] - other[0]), float(own[1] - other[1]), float(own[1])


def length_of(shown: Shown, upper_line: Floats, down: Floats, unit: float) -> float:
    """How far the teeth that a photo shows reach below the middle of the upper lip, px.

    Args:
        shown: the teeth.
        upper_line: inner edge of the upper lip, (n, 2), px of the same box.
        down: unit vector down the face.
        unit: eye distance, px.
    """
    middle = upper_line[len(upper_line) // 2 - 1 : len(upper_line) // 2 + 2]
    offsets = np.linspace(0, 0.4 * unit, 81, dtype=np.float32)
    strip = sampled_field(shown.share, floats(middle[None] + offsets[:, None, None] * down))
    return float(np.median(np.where(strip > 0.5, offsets[:, None], 0).max(axis=0)))


def _disc(radius: float) -> Pixels:
    side = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def without_gap(
    patch: Pixels,
    upper_line: Floats,
    lower_line: Floats,
    down: Floats,
    unit: float,
    margins: tuple[float, float],
    fade: float,
) -> tuple[Pixels, Pixels]:
    """Continue each lip over its edge, so that no tooth or line of contact of the photo clings to it.

    Args:
        patch: BGR, (h, w, 3).
        upper_line: inner edge of the upper lip, px.
        lower_line: inner edge of the lower lip, px.
        down: unit vector down the face.
        unit: eye distance, px.
        margins: how far into the upper and the lower lip the edge is unsure, px.
        fade: how far from its corners a mouth keeps its own dark, px.
    """
    height, width = patch.shape[:2]
    far = float(height + width)
    hole = filled(np.concatenate([upper_line, lower_line[::-1]]), (height, width)) > 0.02
    outside = np.asarray(cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
    across = np.array([down[1], -down[0]], np.float32)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    along = columns * across[0] + rows * across[1]
    ends = upper_line[[0, -1]] @ across
    inside = np.clip(np.minimum(along - ends[0], ends[1] - along) / fade, 0, 1)
    sources = []
    for line, side, margin in ((upper_line, 1.0, margins[0]), (lower_line, -1.0, margins[1])):
        opened = outside <= margin
        edge = line - side * margin * down
        gone = np.concatenate([edge, [edge[-1] + side * down * far, edge[0] + side * down * far]])
        other = filled(floats(gone), (height, width)) > 0.02
        lost = other & opened
        picture = np.where(lost[..., None], nearest(patch, ~(other | opened)), patch)
        # The further from the edge, the less is known: there the lip goes on without its lines.
        soft = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.6, 0.012 * unit)), np.uint8)
        softer = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.8, 0.040 * unit)), np.uint8)
        away = np.asarray(cv2.distanceTransform(lost.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3))
        soft = mixed(softer, soft, floats(np.clip(away / (0.035 * unit), 0, 1)))
        share = blurred(floats(lost), max(0.6, 0.006 * unit)) * floats(inside * inside * (3 - 2 * inside))
        sources.append(mixed(soft, patch, share))
    return sources[0], sources[1]


def spline(points: int, fine: int) -> Floats:
    """Matrix that makes a smooth curve of a line through its points (Catmull-Rom), (fine, points)."""
    return spline_at(points, np.linspace(0, points - 1, fine))


def spline_at(points: int, places: npt.NDArray[np.float64]) -> Floats:
    """The same for given places along the line, counted in points, (places, points)."""
    matrix = np.zeros((len(places), points))
    for row, t in enumerate(places):
        k = min(int(t), points - 2)
        u = t - k
        shares = (
            (-u + 2 * u**2 - u**3) / 2,
            (2 - 5 * u**2 + 3 * u**3) / 2,
            (u + 4 * u**2 - 3 * u**3) / 2,
            (u**3 - u**2) / 2,
        )
        for offset, share in zip((-1, 0, 1, 2), shares, strict=True):
            matrix[row, min(max(k + offset, 0), points - 1)] += share
    return matrix.astype(np.float32)


def filled(outline: Floats, shape: tuple[int, int]) -> Floats:
    """Share of each pixel inside an outline, (h, w), 0..1."""
    # The smaller the picture, the more a pixel counts, and the finer it can be drawn in the same time.
    fine = FINE[shape[0] * shape[1] <= SMALL_AREA]
    drawn = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    # A pixel's middle has whole coordinates: the outline in fine pixels is (x + 1/2) * fine - 1/2.
    cv2.fillPoly(drawn, [np.round(((outline + 0.5) * fine - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    small = np.asarray(drawn)
    while fine > 1:  # OpenCV halves a picture much faster than it takes an eighth of it
        fine //= 2
        small = np.asarray(cv2.resize(small, (shape[1] * fine, shape[0] * fine), interpolation=cv2.INTER_AREA))
    return np.multiply(small, np.float32(1 / 255), dtype=np.float32)
