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
from services.inference.engine import ALL_OF_IT, Rendered
from shared.messages import Face

__all__ = ["NO_MOMENT", "Head", "Moment", "moved", "prepare"]

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


Drawn = Sequence[tuple[int, int, Pixels]]
Box = tuple[int, int, int, int]
Moment = tuple[str, float]
"""session and frame"""
NO_MOMENT: Final[Moment] = ("", -1.0)


@dataclass
class _Held:
    """The head as it was moved last. It mostly stays there for the next frame."""

    where: tuple[float, float, float] | None = None
    """its way to the right, down the face, and its turn"""
    moment: Moment | None = None
    """the frame that was given whole there"""
    drawn: Drawn = ()
    """what was drawn on that frame"""
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
    )


def moved(head: Head, life: Life, drawn: Drawn, moment: Moment = NO_MOMENT, known: float = -1.0) -> Rendered:
    """Move the head.

    Args:
        head: from `prepare`.
        life: where it goes.
        drawn: what is other than in the photo: left and top edge on the photo, and BGR, (h, w, 3), whose border is
            that of the photo. A later one is laid on an earlier. The same array again is taken for the same picture.
        moment: session and frame.
        known: a frame of the session that was given whole, and is kept where this one goes.

    Returns:
        the patch of the whole head, which takes all of its rectangle: where nothing moves it is as in the photo. Where
        the head has not moved since `known`, what was drawn otherwise then, to be laid on that.
    """
    held = head.held
    stays = held.where == (life.right, life.down, life.roll) and known >= 0 and held.moment == (moment[0], known)
    places, clean = _carried(head, life)
    height, width = clean.shape[:2]
    if stays:
        new, old = {id(each[2]) for each in drawn}, {id(each[2]) for each in held.drawn}
        other = [_box(head, each) for each in drawn if id(each[2]) not in old]
        other += [_box(head, each) for each in held.drawn if id(each[2]) not in new]
        left, top, right, bottom = _around([box for box in other if box is not None])
    else:
        left, top, right, bottom = 0, 0, width, height
        held.moment, held.drawn = moment, drawn
    picture = clean[top:bottom, left:right].copy()
    for each in drawn:
        box = _box(head, each)
        if box is None:
            continue
        x1, y1 = max(box[0], left), max(box[1], top)
        x2, y2 = min(box[2], right), min(box[3], bottom)
        if x1 >= x2 or y1 >= y2:
            continue
        # NumPy takes nine times as long for two numbers a pixel.
        to_own = np.array([[1 / head.scale, 0, head.x - each[0]], [0, 1 / head.scale, head.y - each[1]]])
        own = cv2.transform(places[y1:y2, x1:x2], to_own)
        picture[y1 - top : y2 - top, x1 - left : x2 - left] = cv2.remap(
            each[2], own, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
    return Rendered(head.x + left, head.y + top, picture, ALL_OF_IT, on_known=stays)


def _box(head: Head, drawn: tuple[int, int, Pixels]) -> Box | None:
    """Left, top, right and bottom, on the head's patch, of what is seen of something drawn; None: nothing."""
    height, width = head.places.shape[:2]
    margin = 1 + int(np.ceil(MOST * head.unit))
    x, y = drawn[0] - head.x, drawn[1] - head.y
    x1, y1 = max(0, x + margin), max(0, y + margin)
    x2, y2 = min(width, x + drawn[2].shape[1] - margin), min(height, y + drawn[2].shape[0] - margin)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _around(boxes: list[Box]) -> Box:
    """The box that holds all of these; a single pixel where there are none."""
    if not boxes:
        return 0, 0, 1, 1
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _carried(head: Head, life: Life) -> tuple[Floats, Pixels]:
    """Where each pixel of the moved head comes from, and its picture, not to be drawn on."""
    held, where = head.held, (life.right, life.down, life.roll)
    if held.where != where:
        height, width = head.places.shape[:2]
        step = head.unit * (life.right * head.across + life.down * head.down)
        way = head.share * floats(step) + np.float32(life.roll) * head.turned
        gone = cv2.resize(way, (way.shape[1] * head.cell, way.shape[0] * head.cell), interpolation=cv2.INTER_LINEAR)
        # A point at p came from p - way(p): the way changes so little from pixel to pixel that this is its inverse too.
        held.places = floats(cv2.scaleAdd(gone[:height, :width], -float(head.scale), head.places))
        held.picture = sampled_fine(head.fine, held.places)
        held.where = where
    return held.places, held.picture


def _outline(points: Floats, unit: float, across: Floats, down: Floats) -> tuple[Floats, Floats]:
    """Middle, px, and half the width and height of the ellipse that holds head and hair."""
    origin = points[FOREHEAD]
    sides, heights = (points[list(SIDES)] - origin) @ across, (points[[FOREHEAD, CHIN]] - origin) @ down
    left, right = sides.min() - BEHIND * unit, sides.max() + BEHIND * unit
    top, bottom = heights[0] - HAIR * unit, heights[1]
    middle = origin + (left + right) / 2 * across + (top + bottom) / 2 * down
    return floats(middle), floats([(right - left) / 2, (bottom - top) / 2])
