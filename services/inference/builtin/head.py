"""A breath of head motion: the head, hair and the upper neck moved by parts of a pixel, fading out around them.

The photo is kept at twice its size, in which linear sampling loses nothing that is seen: at the photo's own size a
picture moved by half a pixel is blurred, and skin that goes in and out of focus is the first thing that one sees. What
was drawn for this frame alone, the mouth and the eyes, is small and sampled by cubics instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np

from services.inference.builtin.life import Life
from services.inference.builtin.pictures import (
    NO_MAP,
    Floats,
    Pixels,
    enlarged,
    fine_scale,
    floats,
    sampled_fine,
    smoothstep,
)
from services.inference.engine import Rendered
from shared.messages import Face

__all__ = ["Head", "moved", "prepare"]

FOREHEAD, CHIN = 10, 152
SIDES: Final = (234, 454)

# Lengths in eye distances.
CELL: Final = 1 / 12
"""Side of a cell of the coarse grid."""
HAIR: Final = 0.45
"""How far the head reaches over the top of the forehead."""
BEHIND: Final = 0.22
"""How far it reaches beyond the cheeks to each side, hair and ears."""
FADE: Final = 1.5
"""Where the motion has faded out: so many times the radius of the head."""
NECK: Final = 2.0
"""How far the neck, about which the head leans, lies below the eyes."""
BORDER: Final = 0.35
"""How far inside the photo's border the motion reaches its full size."""
MOST: Final = 0.04
"""More than anything on the head ever moves."""


@dataclass
class _Held:
    """The head as it was moved last. It mostly stays there for the next frame."""

    where: tuple[float, float, float] | None = None
    """its way to the right, down the face, and its turn"""
    places: Floats = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))
    """where each pixel came from in `fine`, (h, w, 2)"""
    picture: Pixels = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    """BGR, (h, w, 3)"""


@dataclass(frozen=True)
class Head:
    """What is made once for a face."""

    x: int
    """left edge of the patch on the photo, px"""
    y: int
    """top edge, px"""
    unit: float
    """eye distance, px"""
    scale: int
    """pixels of `fine` for one of the photo, along each side"""
    fine: Pixels
    """the patch of the photo, enlarged so that pixel p lies at scale * p, BGR and an empty channel, (sh, sw, 4)"""
    cell: int
    """side of a cell of the coarse grid, px"""
    share: Floats
    """share of the motion that each node takes part in, (gh, gw, 2), the same twice"""
    turned: Floats
    """where each node goes for a turn by 1 radian, (gh, gw, 2) px"""
    across: Floats
    """unit vector along the eyes, (2,)"""
    down: Floats
    """unit vector down the face, (2,)"""
    places: Floats
    """place of each pixel in `fine`, (h, w, 2)"""
    mask: Pixels
    """255 where something moves, (h, w), 0 on the border"""
    held: _Held = field(default_factory=_Held)


def prepare(face: Face, unit: float, across: Floats, down: Floats) -> Head:
    """Make a head ready to move.

    Args:
        face: from face_prep.
        unit: eye distance, px.
        across: unit vector along the eyes, (2,).
        down: unit vector down the face, (2,).
    """
    points = face.landmarks[:, :2]
    height, width = face.photo.shape[:2]
    middle, radii = _outline(points, unit, across, down)
    reach = FADE * np.hypot(radii[0] * across, radii[1] * down)
    x1, y1 = (int(edge) for edge in np.clip(np.floor(middle - reach), 0, (width - 3, height - 3)))
    x2, y2 = (int(edge) for edge in np.clip(np.ceil(middle + reach) + 1, (x1 + 3, y1 + 3), (width, height)))
    photo = np.ascontiguousarray(face.photo[y1:y2, x1:x2])
    shape = photo.shape[:2]

    cell = max(2, round(CELL * unit))
    grid = (-(-shape[0] // cell), -(-shape[1] // cell))
    columns = (np.arange(grid[1], dtype=np.float32) + 0.5) * cell - 0.5 + x1
    rows = (np.arange(grid[0], dtype=np.float32) + 0.5) * cell - 0.5 + y1
    nodes = np.stack(np.meshgrid(columns, rows), axis=-1)
    away = nodes - middle
    radius = np.hypot(away @ across / radii[0], away @ down / radii[1])
    inside = np.minimum.reduce([nodes[..., 0], nodes[..., 1], width - 1 - nodes[..., 0], height - 1 - nodes[..., 1]])
    share = smoothstep((FADE - radius) / (FADE - 1)) * smoothstep((inside - cell) / max(BORDER * unit, 1.0))
    neck = points[[33, 133, 263, 362]].mean(axis=0) + NECK * unit * down
    turn = (nodes - neck)[..., ::-1] * np.array([-1, 1], np.float32)

    scale = fine_scale(shape)
    pixels = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1)
    mask = np.where(cv2.resize(share, (shape[1], shape[0])) > 0, 255, 0).astype(np.uint8)
    mask[[0, -1]] = 0
    mask[:, [0, -1]] = 0
    return Head(
        x=x1,
        y=y1,
        unit=unit,
        scale=scale,
        fine=enlarged(photo, scale),
        cell=cell,
        share=floats(np.stack([share, share], axis=-1)),
        turned=floats(share[..., None] * turn),
        across=floats(across),
        down=floats(down),
        places=floats(scale * pixels),
        mask=mask,
    )


def moved(head: Head, life: Life, drawn: Sequence[tuple[int, int, Pixels]]) -> Rendered:
    """Move the head.

    Args:
        head: from `prepare`.
        life: where it goes.
        drawn: what is other than in the photo: left and top edge on the photo, and BGR, (h, w, 3), whose border is
            that of the photo. A later one is laid on an earlier.

    Returns:
        the patch of the whole head.
    """
    height, width = head.mask.shape
    places, picture = _carried(head, life)
    margin = 1 + int(np.ceil(MOST * head.unit))
    for left, top, pixels in drawn:
        x, y = left - head.x, top - head.y
        x1, y1 = max(0, x + margin), max(0, y + margin)
        x2, y2 = min(width, x + pixels.shape[1] - margin), min(height, y + pixels.shape[0] - margin)
        if x1 >= x2 or y1 >= y2:
            continue
        # NumPy takes nine times as long for two numbers a pixel.
        own = cv2.transform(places[y1:y2, x1:x2], np.array([[1 / head.scale, 0, -x], [0, 1 / head.scale, -y]]))
        picture[y1:y2, x1:x2] = cv2.remap(pixels, own, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return Rendered(head.x, head.y, picture, head.mask)


def _carried(head: Head, life: Life) -> tuple[Floats, Pixels]:
    """Where each pixel of the moved head comes from, and its picture, to be drawn on."""
    held, where = head.held, (life.right, life.down, life.roll)
    if held.where != where:
        height, width = head.mask.shape
        step = head.unit * (life.right * head.across + life.down * head.down)
        way = head.share * floats(step) + np.float32(life.roll) * head.turned
        gone = cv2.resize(way, (way.shape[1] * head.cell, way.shape[0] * head.cell), interpolation=cv2.INTER_LINEAR)
        # A point at p came from p - way(p): the way changes so little from pixel to pixel that this is its inverse too.
        held.places = floats(cv2.scaleAdd(gone[:height, :width], -float(head.scale), head.places))
        held.picture = sampled_fine(head.fine, held.places)
        held.where = where
    return held.places, held.picture.copy()


def _outline(points: Floats, unit: float, across: Floats, down: Floats) -> tuple[Floats, Floats]:
    """Middle, px, and half the width and height of the ellipse that holds head and hair."""
    origin = points[FOREHEAD]
    sides, heights = (points[list(SIDES)] - origin) @ across, (points[[FOREHEAD, CHIN]] - origin) @ down
    left, right = sides.min() - BEHIND * unit, sides.max() + BEHIND * unit
    top, bottom = heights[0] - HAIR * unit, heights[1]
    middle = origin + (left + right) / 2 * across + (top + bottom) / 2 * down
    return floats(middle), floats([(right - left) / 2, (bottom - top) / 2])
