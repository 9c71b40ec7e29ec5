"""Rows of teeth for a photo that shows none, painted where an average dental arch lies behind the lips.

Each pixel is traced back to its place on the arch, and its colour follows from there: the round front of each tooth,
the dark line between two, the thin edge that light passes, the neck and the gum. So nothing is ever stretched, and the
far side of a turned head is foreshortened as it should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from services.inference.builtin.basis import Pose
from services.inference.builtin.pictures import Floats, floats

__all__ = ["LOWER", "UPPER", "Arch", "Edge", "Row", "edge_of", "painted"]

# Lengths in eye distances (about 63 mm).
ARCH_RADIUS: Final = 0.38
SET_BACK: Final = 0.06
"""How far the front teeth stand behind the lips."""
LINE: Final = 0.0085
"""Half the width of the dark line between two teeth."""
FINE_UNIT: Final = 220.0
"""Pixels to an eye distance up to which more than one is painted for one of the photo."""
MOST_FINE: Final = 4
BIN: Final = 0.03
"""Radians of the arch that are looked at together."""
BINS: Final = 50
EDGES: Final = (-0.03, 0.16)
"""How far below the line of the lips upper teeth can reach."""


@dataclass(frozen=True)
class Row:
    """The shape of one row of teeth, from its middle to either side."""

    sign: float
    """1 where the edges point down, -1 where they point up"""
    widths: Floats
    """(2, teeth): the person's right side and the left, which are never quite the same"""
    rises: Floats
    """of the edges towards the gum, against the front ones, (2, teeth)"""
    corners: Floats
    """how far the edge of a tooth is rounded off at its sides, (teeth,)"""
    tones: Floats
    """how bright each tooth is, (2, teeth), about 1"""
    crown: float
    """height of a front tooth"""
    edge: float
    """how far below the line where the lips meet the front edges lie"""


UPPER: Final = Row(
    sign=1.0,
    widths=floats([[0.133, 0.101, 0.117, 0.104, 0.104, 0.150], [0.131, 0.105, 0.113, 0.106, 0.102, 0.150]]),
    rises=floats([[0.0, 0.0085, 0.003, 0.012, 0.019, 0.026], [0.0015, 0.0065, 0.002, 0.011, 0.018, 0.026]]),
    corners=floats([0.010, 0.014, 0.020, 0.016, 0.014, 0.014]),
    tones=floats([[1.0, 0.975, 0.93, 0.95, 0.93, 0.9], [0.99, 0.985, 0.94, 0.94, 0.93, 0.9]]),
    crown=0.158,
    edge=0.034,
)
LOWER: Final = Row(
    sign=-1.0,
    widths=floats([[0.081, 0.088, 0.101, 0.104, 0.108, 0.150], [0.083, 0.086, 0.103, 0.102, 0.108, 0.150]]),
    rises=floats([[0.002, 0.0, -0.003, 0.010, 0.016, 0.020], [0.0, 0.004, -0.002, 0.008, 0.016, 0.020]]),
    corners=floats([0.006, 0.007, 0.016, 0.014, 0.012, 0.012]),
    tones=floats([[0.98, 1.0, 0.95, 0.94, 0.92, 0.9], [1.0, 0.97, 0.94, 0.94, 0.92, 0.9]]),
    crown=0.13,
    edge=0.075,
)


@dataclass(frozen=True)
class Arch:
    """Where the pixels of a box lie on the arch, on a grid that may be finer than that of the photo."""

    angle: Floats
    """from the middle of the arch, radians, (h * fine, w * fine)"""
    below: Floats
    """how far below the line where the lips meet, eye distances, (h * fine, w * fine)"""
    seen: Floats
    """0 where the arch has turned away, (h * fine, w * fine), 0..1"""
    fine: int
    """painted pixels for one of the photo along each side"""
    pixel: float
    """side of a painted pixel, eye distances"""

    @classmethod
    def behind(cls, pose: Pose, middle: Floats, box: tuple[int, int, int, int]) -> Arch:
        """Trace the pixels of a box back.

        Args:
            pose: of the face, with pixels counted in the patch.
            middle: middle of the line where the lips meet, px of the patch, (2,).
            box: left, top, right, bottom, px of the patch.
        """
        left, top, right, bottom = box
        fine = int(np.clip(np.ceil(FINE_UNIT / pose.scale), 1, MOST_FINE))
        x = (np.arange((right - left) * fine, dtype=np.float32) + 0.5) / fine - 0.5 + left - middle[0]
        y = (np.arange((bottom - top) * fine, dtype=np.float32) + 0.5) / fine - 0.5 + top - middle[1]
        a, b, c = pose.rotation[:2, 0], pose.rotation[:2, 1], pose.rotation[:2, 2]
        # The middle of the lips is where the line was measured: of the way back to the teeth only half is turned.
        px, py = x / pose.scale - 0.5 * SET_BACK * c[0], y / pose.scale - 0.5 * SET_BACK * c[1]
        table = np.linspace(-1.5, 1.5, 301)
        out, back = float(a[0] * b[1] - a[1] * b[0]), float(c[0] * b[1] - c[1] * b[0])
        hidden = np.cos(table) * out + np.sin(table) * back < 0.04
        centre = len(table) // 2
        first = int(np.flatnonzero(hidden[:centre])[-1]) + 1 if hidden[:centre].any() else 0
        last = centre + int(np.flatnonzero(hidden[centre:])[0]) if hidden[centre:].any() else len(table)
        table = table[first : max(last, first + 2)]
        cast = ARCH_RADIUS * (np.sin(table) * out + (1 - np.cos(table)) * back)
        sideways = (px * b[1])[None] - (py * b[0])[:, None]
        angle = np.interp(sideways, cast, table)
        gone = ARCH_RADIUS * (np.sin(angle) * float(a @ b) + (1 - np.cos(angle)) * float(c @ b))
        below = ((px * b[0])[None] + (py * b[1])[:, None] - gone) / max(float(b @ b), 0.05)
        soft = 1 / (pose.scale * fine)
        seen = np.clip((cast[-1] - sideways) / soft, 0, 1) * np.clip((sideways - cast[0]) / soft, 0, 1)
        return cls(floats(angle), floats(below), floats(seen), fine, soft)


@dataclass(frozen=True)
class Edge:
    """Where the teeth of a photo end."""

    level: float
    """how far below the line of the lips the front teeth reach, eye distances"""
    beside: Floats
    """0 below a tooth of the photo, 1 where another can be painted, (h, w)"""


def edge_of(share: Floats, arch: Arch) -> Edge:
    """Find out how far down the teeth of a photo reach.

    Args:
        share: how much of each pixel they cover, (h, w), 0..1.
        arch: of the same pixels.
    """
    size = share.shape[::-1]
    angle, below = (floats(cv2.resize(each, size, interpolation=cv2.INTER_AREA)) for each in (arch.angle, arch.below))
    bins = np.clip(np.round(angle / BIN).astype(np.intp) + BINS, 0, 2 * BINS)
    lowest = np.full(2 * BINS + 1, -np.inf, np.float32)
    there = share > 0.5
    np.maximum.at(lowest, bins[there], below[there])
    found = np.flatnonzero(np.isfinite(lowest))
    if not found.size:
        return Edge(UPPER.edge, np.ones(share.shape, np.float32))
    far = np.abs(np.arange(-BINS, BINS + 1)) * BIN * ARCH_RADIUS
    rises = np.interp(far, np.cumsum(UPPER.widths[0]), UPPER.rises[0])
    level = float(np.median((lowest + rises)[found]))
    # At the side of the last tooth that is seen its share ends higher up: that is no edge.
    found = found[(lowest + rises)[found] > level - 0.02]
    everywhere = np.arange(2 * BINS + 1)
    limit = np.interp(everywhere, found, lowest[found])
    limit[(everywhere < found[0]) | (everywhere > found[-1])] = 1.0
    free = np.interp(angle / BIN + BINS, everywhere, limit)
    return Edge(float(np.clip(level, *EDGES)), floats(np.clip((free - below) / 0.01 - 0.5, 0, 1)))


def painted(row: Row, tooth: Floats, gum: Floats, arch: Arch, coloured: float) -> tuple[Floats, Floats]:
    """Paint a row of teeth, and say how much of it covers what is behind.

    Args:
        row: which.
        tooth: colour of a tooth in full light, BGR 0..255, (3,).
        gum: colour of the gum in full light, BGR 0..255, (3,).
        arch: of the pixels that are painted.
        coloured: 0 for a picture in the shades of one colour, 1 for one in colours.

    Returns:
        BGR, (h, w, 3), and 0..1, (h, w).
    """
    angle, below, pixel, fine = arch.angle, arch.below, arch.pixel, arch.fine
    along = angle * ARCH_RADIUS
    side = (along > 0).astype(np.intp)
    far = np.abs(along)
    bounds = np.cumsum(row.widths, axis=1)
    which = np.zeros(along.shape, np.intp)
    for k in range(bounds.shape[1] - 1):
        which += far > bounds[side, k]
    wide = row.widths[side, which]
    across = 1 - 2 * (bounds[side, which] - far) / wide  # -1 at the side to the middle, 1 at the outer one
    beside = (1 - np.abs(across)) * wide / 2
    round_off = row.corners[which] * np.clip((np.abs(across) - 0.45) / 0.55, 0, 1) ** 2
    # The outer corner of a front tooth is rounder than the inner one.
    round_off = round_off * (1 + 0.35 * np.sign(across)) + 0.003 * across**2
    edge = row.edge - row.sign * (row.rises[side, which] + round_off)
    height = row.sign * (edge - below)  # over the edge, towards the gum
    neck = row.crown * (1 - 0.10 * (which == 1) - 0.05 * (which > 2)) - 0.020 * across**2
    share = np.clip(height / pixel + 0.5, 0, 1) * arch.seen

    # A tooth is round both ways; towards the back of the mouth less and less light comes in.
    v = np.clip(height / row.crown, 0, 1)
    roundness = 1 - 0.10 * np.abs(across) ** 2.5 - 0.05 * np.clip((0.16 - v) / 0.16, 0, 1) - 0.10 * v**2
    depth = np.clip(np.cos(np.minimum(1.12 * np.abs(angle), 1.5)), 0, 1) ** 0.8
    tone = row.tones[side, which] * roundness * (0.30 + 0.70 * depth)
    line = np.exp(-((beside / LINE) ** 2)) * (0.13 + 0.15 * np.clip(1 - v / 0.2, 0, 1) + 0.06 * v)
    shine = 0.06 * np.exp(-(((across + 0.15) / 0.4) ** 2) - ((v - 0.42) / 0.2) ** 2) * depth
    colour = tooth * (tone * (1 - line) + shine)[..., None]
    # Dentine shows towards the neck; the edge lets through a little of the dark behind it.
    yellow = coloured * (0.10 * v**1.5 + 0.05 * (which == 2))
    colour *= np.stack([1 - yellow, 1 - 0.2 * yellow, np.ones_like(yellow)], axis=-1)
    colour *= (1 - 0.10 * np.clip(1 - height / 0.014, 0, 1))[..., None]
    red = np.clip((height - neck) / max(0.006, pixel) + 0.5, 0, 1)[..., None]
    colour = colour * (1 - red) + gum * (0.35 + 0.65 * depth)[..., None] * red
    if fine == 1:
        return floats(colour), floats(share)
    size = (colour.shape[1] // fine, colour.shape[0] // fine)
    # Weighted by what it covers, so that the edge takes no colour from beyond it.
    small = cv2.resize(floats(share), size, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(floats(colour * (share + 1e-3)[..., None]), size, interpolation=cv2.INTER_AREA)
    return floats(colour / (floats(small) + 1e-3)[..., None]), floats(small)
