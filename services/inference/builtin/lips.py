"""Where the lips of a photo are: their inner edges, the line between them, the teeth they show."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin.mouth import LUMA
from services.inference.builtin.pictures import Floats, Pixels, blurred, bytes_of, floats, mixed, nearest, sampled_field

__all__ = ["edges", "filled", "seam", "shown_teeth", "spline", "without_gap"]

# Lengths in eye distances.
REACH: Final = 0.045
"""How far beside the landmarks the edge of a lip is looked for."""
LIP_MARGIN: Final = 0.014
"""Landmarks are unsure by this much: so far around an open mouth the lips are painted over."""
SEAM_MARGIN: Final = 0.024
"""Half the width of the dark line between closed lips."""
STRIP: Final = (25, 61)
"""Samples of a strip across and along a lip."""
FINE: Final = 4
"""Pixels drawn for one of the photo along each side, to smooth an edge."""


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


def shown_teeth(patch: Pixels, upper_line: Floats, lower_line: Floats, down: Floats, unit: float) -> Pixels | None:
    """Where the photo shows teeth between open lips, softly, 0..255; None if it shows none."""
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
    tooth = np.clip((luma - 0.5 * bright) / (0.2 * bright), 0, 1) * np.clip((lip_red * 0.9 + 4 - red) / 12, 0, 1)
    share = floats(blurred(floats(tooth), max(0.5, 0.006 * unit)) * (inside / np.float32(255)))
    if float(share.sum()) < 0.2 * float((inside > 128).sum()):
        return None
    # The gaps between teeth belong to them, and so does what the upper lip has covered.
    share = floats(cv2.morphologyEx(share, cv2.MORPH_CLOSE, _disc(0.03 * unit)))
    top = np.maximum.accumulate(share[::-1], axis=0)[::-1]
    hidden = filled(
        np.concatenate([upper_line + 0.02 * unit * down, upper_line[::-1] - 0.08 * unit * down]), patch.shape[:2]
    )
    share = floats(np.maximum(share, np.minimum(top, hidden)))
    return bytes_of(255 * blurred(share, max(0.5, 0.005 * unit)))


def _disc(radius: float) -> Pixels:
    side = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def without_gap(
    patch: Pixels,
    upper_line: Floats,
    lower_line: Floats,
    down: Floats,
    unit: float,
    margin: float,
) -> tuple[Pixels, Pixels]:
    """Continue each lip over its edge, so that no tooth or line of contact of the photo clings to it.

    Args:
        patch: BGR, (h, w, 3).
        upper_line: inner edge of the upper lip, px.
        lower_line: inner edge of the lower lip, px.
        down: unit vector down the face.
        unit: eye distance, px.
        margin: how far into the lip its edge is unsure, px.
    """
    height, width = patch.shape[:2]
    far = float(height + width)
    hole = filled(np.concatenate([upper_line, lower_line[::-1]]), (height, width)) > 0.02
    opened = np.asarray(cv2.dilate(hole.astype(np.uint8), _disc(margin))) > 0
    sources = []
    for line, side in ((upper_line, 1.0), (lower_line, -1.0)):
        edge = line - side * margin * down
        gone = np.concatenate([edge, [edge[-1] + side * down * far, edge[0] + side * down * far]])
        other = filled(floats(gone), (height, width)) > 0.02
        lost = other & opened
        picture = np.where(lost[..., None], nearest(patch, ~(other | opened)), patch)
        soft = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.6, 0.012 * unit)), np.uint8)
        sources.append(mixed(soft, picture, blurred(floats(lost), max(0.6, 0.006 * unit))))
    return sources[0], sources[1]


def spline(points: int, fine: int) -> Floats:
    """Matrix that makes a smooth curve of a line through its points (Catmull-Rom), (fine, points)."""
    matrix = np.zeros((fine, points))
    for row, t in enumerate(np.linspace(0, points - 1, fine)):
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
    drawn = np.zeros((shape[0] * FINE, shape[1] * FINE), np.uint8)
    # A pixel's middle has whole coordinates: the outline in fine pixels is (x + 1/2) * FINE - 1/2.
    cv2.fillPoly(drawn, [np.round(((outline + 0.5) * FINE - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    small = cv2.resize(drawn, shape[::-1], interpolation=cv2.INTER_AREA)
    return np.multiply(small, np.float32(1 / 255), dtype=np.float32)
