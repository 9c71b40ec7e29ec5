"""Eyelids that close over the eyes of a photo.

The upper lid is a layer of its own. It slides down over the eyeball, which stays as it is; the skin between the brow
and the edge of the lid unfolds, and the lower lid rises a little to meet it. An eye that cannot be closed so that it
looks right is left open, and then so is the other one, unless it is turned away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from services.inference.builtin.eye_shape import BELOW, EYES, EyeShape, shape_of, width_of
from services.inference.builtin.pictures import NO_MAP, Floats, Pixels, bytes_of, floats, mixed, sampled, smoothstep
from shared.messages import Face

__all__ = ["Eyelid", "Eyelids", "closed", "prepare"]

HIDDEN: Final = 0.5
"""An eye narrower than this share of the other one is turned away."""
MEET: Final = 0.88
"""Where the lids meet, from the upper to the lower one: in a blink the upper lid does nearly all of the way (Evinger,
Manning and Sibony 1991, see `life`)."""
EVEN: Final = (0.70, 1.15)
"""Least and most light of unfolded skin, shares of what is expected there."""
EXPECTED: Final = 0.3
"""Share of the expected colour in unfolded skin; the rest is what was stretched."""
SHADE: Final = 0.45
"""Light that the lid takes from the eyeball just below its edge."""
LINE: Final = 0.7
"""Share of the lashes' colour in the line in which the lids meet."""
AT_ONCE: Final = 1 / 3
"""From this part of its way on a lid has all of its own look; before, it goes over from that of the photo."""

# Lengths in eye distances.
RIGID: Final = 0.030
"""Strip over the edge of the lid that moves without being stretched."""
TUCK: Final = 0.02
"""Strip along the edge of the lower lid that vanishes under the upper one, and with it what is left of the eyeball."""
SMOOTH: Final = 0.04
"""How far lashes and creases of unfolded skin are smoothed out."""
LASHES: Final = 0.012
"""Half the thickness of the line in which the lids meet."""
SHADOW: Final = 0.045
"""How far below its edge the shadow of a lid has faded."""
BESIDE: Final = 0.10
"""How far beyond the corners lashes are smoothed out of the skin."""
SKIN: Final = 0.09
"""How far above and below the lids the skin has the colours that were measured."""


@dataclass(frozen=True)
class Eyelid:
    """What is made once for an eye. Heights are px below the eye's axis; lines are given at each pixel, (h, w)."""

    x: int
    """left edge of its part of the photo, px"""
    y: int
    """top edge, px"""
    unit: float
    """eye distance, px"""
    photo: Pixels
    """that part, BGR, (h, w, 3)"""
    down: Floats
    """unit vector down the eye, (2,)"""
    places: Floats
    """place of each pixel, (h, w, 2)"""
    height: Floats
    """of each pixel, (h, w)"""
    fold: Floats
    """line above which nothing moves"""
    upper: Floats
    """edge of the upper lid"""
    lower: Floats
    """edge of the lower lid"""
    skin: Pixels
    """colour that the lid is expected to have, BGR, (h, w, 3)"""
    darkest: Pixels
    """least that it may have, likewise"""
    brightest: Pixels
    """most that it may have, likewise"""
    unfolded: Floats
    """1 where the closed lid shows skin that was folded, 0 well away from it, (h, w)"""
    within: Floats
    """1 between the corners of the eye, 0 beyond, (h, w)"""
    lashes: Pixels
    """the colour of the lashes all over, BGR, (h, w, 3)"""


Eyelids = tuple[Eyelid, ...]


def prepare(face: Face, unit: float, down: Floats) -> Eyelids:
    """Make the eyes of a face ready to close.

    Args:
        face: from face_prep.
        unit: eye distance, px.
        down: unit vector down the face, (2,).

    Returns:
        the eyes that can be closed; none if one of those that are seen cannot.
    """
    points = floats(face.landmarks[:, :2])
    widths = [width_of(points, side) for side in EYES]
    shapes = [
        shape_of(face.photo, points, side, unit, down)
        for side, width in zip(EYES, widths, strict=True)
        if width >= HIDDEN * max(widths)
    ]
    found = [shape for shape in shapes if shape is not None]
    return tuple(_eyelid(face.photo, shape, unit) for shape in found) if len(found) == len(shapes) else ()


def closed(eye: Eyelid, share: float) -> Pixels:
    """Draw an eye with its lids closed by a share, 0..1.

    Returns:
        BGR, (h, w, 3); its border is that of the photo.
    """
    unit, height = eye.unit, eye.height
    opening = eye.lower - eye.upper
    edge = floats(eye.upper + share * MEET * opening)
    lower = floats(eye.lower - share * (1 - MEET) * opening)
    own = min(1.0, share / AT_ONCE)
    ground = _ground(eye, edge, lower, own)
    picture = mixed(_lid(eye, edge, own), ground, floats(np.clip(edge - height + 0.5, 0, 1)))
    line = LINE * own * np.exp(-(((height - edge) / max(LASHES * unit, 0.8)) ** 2)) * eye.within
    return mixed(eye.lashes, picture, floats(line))


def _lid(eye: Eyelid, edge: Floats, own: float) -> Pixels:
    """The upper lid with its edge further down; below the edge it means nothing."""
    part = np.clip((eye.height - eye.fold) / np.maximum(edge - RIGID * eye.unit - eye.fold, 1), 0, 1)
    lid = _slid(eye, floats((eye.upper - edge) * part * part * (2 - part)))
    # Unfolded skin is nearly even: what is much darker or brighter are lashes, make-up and creases drawn out long.
    even = cv2.max(cv2.GaussianBlur(lid, (0, 0), SMOOTH * eye.unit), eye.darkest)
    even = cv2.addWeighted(eye.skin, EXPECTED, cv2.min(even, eye.brightest), 1 - EXPECTED, 0)
    return mixed(np.asarray(even, np.uint8), lid, floats(own * eye.unfolded))


def _ground(eye: Eyelid, edge: Floats, lower: Floats, own: float) -> Pixels:
    """The eyeball in the shadow of the upper lid, and the lower lid risen."""
    part = np.clip(1 - (eye.height - lower) / (BELOW * eye.unit), 0, 1)
    most = eye.lower - lower + TUCK * eye.unit * own * eye.within
    rise = np.where(eye.height < lower, 0, most * part * part * (3 - 2 * part))
    ground = _slid(eye, floats(rise))
    fading = np.exp(-np.maximum(eye.height - edge, 0) / (SHADOW * eye.unit))
    lit = floats(1 - SHADE * own * fading * np.clip(lower - eye.height + 0.5, 0, 1) * eye.within)
    return np.asarray(cv2.multiply(ground, cv2.merge([lit, lit, lit]), dtype=cv2.CV_8U), np.uint8)


def _slid(eye: Eyelid, way: Floats) -> Pixels:
    """The photo, each pixel read some px further down the eye, (h, w)."""
    return sampled(eye.photo, floats(eye.places + way[..., None] * eye.down))


def _eyelid(photo: Pixels, shape: EyeShape, unit: float) -> Eyelid:
    """Lay the shape of an eye on its part of the photo."""
    ends = (shape.ends[0] - BESIDE * unit, shape.ends[1] + BESIDE * unit)
    heights = (float(shape.fold.min()), float(shape.lower.max()) + BELOW * unit)
    corners = np.array([shape.corner + s * shape.along + h * shape.down for s in ends for h in heights])
    margin = 3 + int(np.ceil(0.05 * unit))  # more than the head may carry it away, see `head.moved`
    x1, y1 = (int(edge) for edge in np.maximum(np.floor(corners.min(axis=0)) - margin, 0))
    x2, y2 = (int(edge) for edge in np.minimum(np.ceil(corners.max(axis=0)) + margin, photo.shape[1::-1]))
    part = np.ascontiguousarray(photo[y1:y2, x1:x2])
    places = floats(np.stack(np.meshgrid(np.arange(x2 - x1), np.arange(y2 - y1)), axis=-1))
    offset = places + np.array([x1, y1], np.float32) - shape.corner
    place, height = offset @ shape.along, floats(offset @ shape.down)
    at = floats(np.stack([place + shape.before, np.zeros_like(place)], axis=-1))

    def spread(values: Floats) -> Floats:
        """What is known along the eye, (n, channels), at each pixel."""
        lines = np.ascontiguousarray(values[None])
        return floats(cv2.remap(lines, at, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    fold, upper, lower = (spread(line[:, None]) for line in (shape.fold, shape.upper, shape.lower))
    share = np.clip((height - upper + SKIN * unit) / (lower - upper + 2 * SKIN * unit), 0, 1)[..., None]
    skin = spread(shape.lid) * (1 - share) + spread(shape.cheek) * share
    inwards = np.minimum(place - shape.ends[0], shape.ends[1] - place)
    free = np.minimum(place - shape.free[0], shape.free[1] - place)
    beside = smoothstep(np.minimum((inwards / unit + BESIDE) / 0.12, free / (0.04 * unit)))
    return Eyelid(
        x=x1,
        y=y1,
        unit=unit,
        photo=part,
        down=shape.down,
        places=places,
        height=height,
        fold=fold,
        upper=upper,
        lower=lower,
        skin=bytes_of(skin),
        darkest=bytes_of(EVEN[0] * skin),
        brightest=bytes_of(EVEN[1] * skin),
        unfolded=smoothstep((height - upper) / (0.06 * unit) + 1.2) * beside,
        within=floats(np.clip(inwards / (0.05 * unit), 0, 1)),
        lashes=np.broadcast_to(bytes_of(shape.lashes), part.shape).copy(),
    )
