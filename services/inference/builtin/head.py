"""A breath of head motion: the head, hair and the upper neck moved by parts of a pixel, fading out around them.

The photo is kept at twice its size, in which linear sampling loses nothing that is seen: at the photo's own size a
picture moved by half a pixel is blurred, and skin that goes in and out of focus is the first thing that one sees. A
mouth that speaks is drawn where the head has carried it, from such a photo too; the lids, which are drawn seldom, are
sampled by cubics instead.
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
    sampled_field,
    sampled_fine,
    smoothstep,
)
from services.inference.engine import ALL_OF_IT, Rendered
from shared.messages import Face

__all__ = ["NO_MOMENT", "Carried", "Drawn", "Head", "Moment", "carried", "moved", "prepare"]

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


@dataclass(frozen=True)
class Drawn:
    """Something that is other than in the photo."""

    x: int
    """left edge on the photo, px"""
    y: int
    """top edge, px"""
    picture: Pixels
    """BGR, whose border is that of the photo, (h, w, 3); enlarged with an empty channel; or drawn where the head has
    carried it. The same array again is taken for the same picture."""
    scale: int = 1
    """pixels of an enlarged picture for one of the photo, along each side; 0: it is where the head has carried it"""
    shares: tuple[Floats, Floats] | None = None
    """of a picture that was carried: what is taken of it, and of the photo, (h, w), 0..1"""


Box = tuple[int, int, int, int]
Moment = tuple[str, float]
"""session and frame"""
NO_MOMENT: Final[Moment] = ("", -1.0)


@dataclass(frozen=True)
class Carried:
    """A head that was moved, with nothing drawn on it."""

    where: tuple[float, float, float]
    """its way to the right, down the face, and its turn"""
    places: Floats
    """where each pixel came from in `fine`, (h, w, 2)"""
    picture: Pixels
    """BGR, (h, w, 3)"""
    way: Floats
    """how far each of `Head.asked` has gone, (..., 2) px"""


@dataclass
class _Held:
    """The head as it was moved last. It mostly stays there for the next frame."""

    carried: Carried | None = None
    whole: Carried | None = None
    """where it was when a frame was given whole"""
    moment: Moment = NO_MOMENT
    """that frame"""
    drawn: Sequence[Drawn] = ()
    """what was drawn on that frame"""


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
    asked: Floats
    """places of the coarse grid of which one wants to know how far they go, in its cells, (n, m, 2)"""
    held: _Held = field(default_factory=_Held)


def prepare(face: Face, unit: float, across: Floats, down: Floats, asked: Floats) -> Head:
    """Make a head ready to move.

    Args:
        face: from face_prep.
        unit: eye distance, px.
        across: unit vector along the eyes, (2,).
        down: unit vector down the face, (2,).
        asked: places on the photo of which `carried` tells how far they go, (n, m, 2) px.
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
        asked=floats((asked - np.array([x1, y1], np.float32) + 0.5) / cell - 0.5),
    )


def moved(head: Head, life: Life, drawn: Sequence[Drawn], moment: Moment = NO_MOMENT, known: float = -1.0) -> Rendered:
    """Move the head.

    Args:
        head: from `prepare`.
        life: where it goes.
        drawn: what is other than in the photo. A later one is laid on an earlier.
        moment: session and frame.
        known: a frame of the session that was given whole, and is kept where this one goes.

    Returns:
        the patch of the whole head, which takes all of its rectangle: where nothing moves it is as in the photo. Where
        the head has not moved since `known`, what was drawn otherwise then, to be laid on that.
    """
    held, here = head.held, carried(head, life)
    stays = known >= 0 and held.whole is here and held.moment == (moment[0], known)
    height, width = here.picture.shape[:2]
    if stays:
        new, old = {id(each.picture) for each in drawn}, {id(each.picture) for each in held.drawn}
        other = [_box(head, each) for each in drawn if id(each.picture) not in old]
        other += [_box(head, each) for each in held.drawn if id(each.picture) not in new]
        view = _around([box for box in other if box is not None])
    else:
        view = (0, 0, width, height)
        held.whole, held.moment, held.drawn = here, moment, drawn
    picture = here.picture[view[1] : view[3], view[0] : view[2]].copy()
    for each in drawn:
        box = _box(head, each)
        if box is not None:
            _lay(picture, view, head, here, each, box)
    return Rendered(head.x + view[0], head.y + view[1], picture, ALL_OF_IT, on_known=stays)


def _lay(picture: Pixels, view: Box, head: Head, here: Carried, drawn: Drawn, box: Box) -> None:
    """Lay what was drawn in a box of the head's patch on the part of it that is in view."""
    x1, y1 = max(box[0], view[0]), max(box[1], view[1])
    x2, y2 = min(box[2], view[2]), min(box[3], view[3])
    if x1 >= x2 or y1 >= y2:
        return
    under = picture[y1 - view[1] : y2 - view[1], x1 - view[0] : x2 - view[0]]
    if drawn.shares is not None:
        left, top = head.x - drawn.x, head.y - drawn.y
        part = (slice(y1 + top, y2 + top), slice(x1 + left, x2 + left))
        under[:] = cv2.blendLinear(drawn.picture[part], under, drawn.shares[0][part], drawn.shares[1][part])
        return
    # NumPy takes nine times as long for two numbers a pixel.
    size = drawn.scale / head.scale
    to_own = np.array(
        [[size, 0, drawn.scale * (head.x - drawn.x)], [0, size, drawn.scale * (head.y - drawn.y)]],
    )
    own = floats(cv2.transform(here.places[y1:y2, x1:x2], to_own))
    if drawn.picture.shape[2] == 4:
        under[:] = sampled_fine(drawn.picture, own)
    else:
        under[:] = cv2.remap(drawn.picture, own, NO_MAP, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _box(head: Head, drawn: Drawn) -> Box | None:
    """Left, top, right and bottom, on the head's patch, of what is seen of something drawn; None: nothing."""
    height, width = head.places.shape[:2]
    margin = 0 if drawn.shares is not None else 1 + int(np.ceil(MOST * head.unit))
    x, y, size = drawn.x - head.x, drawn.y - head.y, max(1, drawn.scale)
    x1, y1 = max(0, x + margin), max(0, y + margin)
    x2 = min(width, x + drawn.picture.shape[1] // size - margin)
    y2 = min(height, y + drawn.picture.shape[0] // size - margin)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _around(boxes: list[Box]) -> Box:
    """The box that holds all of these; a single pixel where there are none."""
    if not boxes:
        return 0, 0, 1, 1
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def carried(head: Head, life: Life) -> Carried:
    """Move the head with nothing drawn on it; the one that was moved last where it stays."""
    where = (life.right, life.down, life.roll)
    known = head.held.carried
    if known is not None and known.where == where:
        return known
    height, width = head.places.shape[:2]
    step = head.unit * (life.right * head.across + life.down * head.down)
    way = floats(head.share * floats(step) + np.float32(life.roll) * head.turned)
    gone = cv2.resize(way, (way.shape[1] * head.cell, way.shape[0] * head.cell), interpolation=cv2.INTER_LINEAR)
    # A point at p came from p - way(p): the way changes so little from pixel to pixel that this is its inverse too.
    places = floats(cv2.scaleAdd(gone[:height, :width], -float(head.scale), head.places))
    head.held.carried = new = Carried(where, places, sampled_fine(head.fine, places), sampled_field(way, head.asked))
    return new


def _outline(points: Floats, unit: float, across: Floats, down: Floats) -> tuple[Floats, Floats]:
    """Middle, px, and half the width and height of the ellipse that holds head and hair."""
    origin = points[FOREHEAD]
    sides, heights = (points[list(SIDES)] - origin) @ across, (points[[FOREHEAD, CHIN]] - origin) @ down
    left, right = sides.min() - BEHIND * unit, sides.max() + BEHIND * unit
    top, bottom = heights[0] - HAIR * unit, heights[1]
    middle = origin + (left + right) / 2 * across + (top + bottom) / 2 * down
    return floats(middle), floats([(right - left) / 2, (bottom - top) / 2])
