"""What lies between the lips: darkness, tongue, teeth. A layer of its own, so that teeth are never stretched.

The upper teeth stay with the skull, the lower teeth and the tongue go with the jaw, and the lips' inner line cuts all
of it out. Teeth that show in the photo are used where they are; others are painted, in the light of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin.basis import Pose
from services.inference.builtin.pictures import Floats, Pixels, blurred, bytes_of, floats, mixed, nearest, shifted

__all__ = ["Interior", "Light", "light_of", "paint"]

RIGHT_EYE: Final = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE: Final = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LIPS: Final = (11, 12, 72, 302, 15, 16, 85, 315, 86, 316)
"""points on the red of both lips"""
SKIN: Final = (50, 280, 205, 425, 187, 411, 206, 426, 207, 427)
"""points on both cheeks and beside the mouth"""

# An adult's dental arch, eye distances (about 63 mm).
ARCH_RADIUS: Final = 0.40
WIDTHS: Final = (0.132, 0.100, 0.114, 0.105, 0.105, 0.150)
"""of the teeth from the middle on"""
RISES: Final = (0.0, 0.007, 0.002, 0.010, 0.016, 0.022)
"""of their edges over that of the front ones"""
CROWN: Final = 0.155
SHOWING: Final = 0.034
"""How far the upper front teeth reach below the line where the lips meet."""
LOWER_SHOWING: Final = 0.10
"""How far the lower front teeth stay below that line of the lower lip."""
SET_BACK: Final = 0.06
"""How far the teeth stand behind the lips."""

FINE: Final = 3
"""Pixels painted for one of the photo, along each side."""


@dataclass(frozen=True)
class Light:
    """How bright and of what colour the light on the mouth is."""

    skin: Floats
    """median colour of the cheeks, BGR 0..255"""
    teeth: Floats
    """colour of a tooth in full light, BGR 0..255"""
    cavity: Floats
    """colour of the mouth's depth, BGR 0..255"""
    inner_lip: Floats
    """colour of the lips' wet inside, in their own shadow, BGR 0..255"""
    tongue: Floats
    """colour of the tongue, BGR 0..255"""


@dataclass(frozen=True)
class Interior:
    """The layers between the lips, in a box around the mouth."""

    x: int
    """left edge of the box within the patch, px"""
    y: int
    """top edge of the box within the patch, px"""
    cavity: Pixels
    """depth of the mouth, BGR, (h, w, 3)"""
    skull: Pixels
    """upper teeth, BGR, (h, w, 3)"""
    skull_share: Floats
    """how much of them covers what is behind, (h, w), 0..1"""
    jaw: Pixels
    """tongue and lower teeth with the mouth closed, BGR, (h, w, 3)"""
    jaw_share: Floats
    """how much of them covers the depth, (h, w), 0..1"""
    inner_lip: Floats
    """colour of the lips' inside, BGR 0..255"""

    def shown(self, jaw_shift: Floats, rim: Floats, part: tuple[int, int, int, int]) -> Pixels:
        """Lay the layers over each other.

        Args:
            jaw_shift: how far the jaw has moved, px, (2,).
            rim: how much of each pixel is the wet inside of a lip, (height, width), 0..1.
            part: left, top, width, height of what is wanted of the box.

        Returns:
            BGR, (height, width, 3), before the shadow of the lips.
        """
        left, top, width, height = part
        moved, size = (float(jaw_shift[0]) - left, float(jaw_shift[1]) - top), (width, height)
        jaw = shifted(self.jaw, *moved, size, extend=True)
        share = floats(shifted(self.jaw_share, *moved, size, extend=True))
        view = (slice(top, top + height), slice(left, left + width))
        behind = mixed(jaw, self.cavity[view], share)
        lips = np.empty_like(behind)
        lips[:] = np.clip(self.inner_lip, 0, 255)
        behind = mixed(lips, behind, rim)
        return mixed(self.skull[view], behind, self.skull_share[view])


def _polygon_median(photo: Pixels, outline: Floats, quantile: float) -> Floats | None:
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 1, (photo.shape[1], photo.shape[0]))
    if (high - low < 2).any():
        return None
    part = photo[low[1] : high[1], low[0] : high[0]]
    inside = np.zeros(part.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.round((outline - low) * 16).astype(np.int32)], 255, shift=4)
    pixels = part[inside > 0].astype(np.float32)
    if len(pixels) < 6:
        return None
    luma = pixels @ LUMA
    bright = pixels[luma >= np.quantile(luma, quantile)]
    return np.asarray(np.median(bright, axis=0), np.float32)


LUMA: Final = np.array([0.114, 0.587, 0.299], np.float32)


def light_of(photo: Pixels, landmarks: Floats, unit: float) -> Light:
    """Measure the light on a face from its cheeks and the whites of its eyes.

    Args:
        photo: BGR, (h, w, 3).
        landmarks: (468, 3) px.
        unit: eye distance, px.
    """
    height, width = photo.shape[:2]
    reach = max(1, int(0.05 * unit))

    def colour(numbers: tuple[int, ...], reach: int) -> Floats | None:
        patches = []
        for x, y in np.round(landmarks[list(numbers), :2]).astype(int):
            if 0 <= x < width and 0 <= y < height:
                part = photo[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                patches.append(np.median(part.reshape(-1, 3), axis=0))
        return np.median(patches, axis=0).astype(np.float32) if patches else None

    found = colour(SKIN, reach)
    skin = np.array([120, 140, 180], np.float32) if found is None else found
    found = colour(LIPS, max(1, reach // 4))
    lip = skin * np.array([0.75, 0.7, 0.9], np.float32) if found is None else found
    skin_luma = max(float(skin @ LUMA), 12.0)
    whites = [
        white
        for eye in (RIGHT_EYE, LEFT_EYE)
        if (white := _polygon_median(photo, landmarks[list(eye), :2], 0.75)) is not None
    ]
    white = np.mean(whites, axis=0) if whites else skin
    white_luma = max(float(white @ LUMA), 8.0)
    luma = float(np.clip(0.95 * white_luma, 1.02 * skin_luma, 1.35 * skin_luma + 12))
    luma = min(luma, 215.0)
    # Ivory under the light that makes this skin so red and so yellow: fair skin in white light has R/G 1.35, B/G 0.80.
    red = float(np.clip((float(skin[2] / max(skin[1], 1)) / 1.35) ** 0.45, 0.93, 1.12))
    blue = float(np.clip((float(skin[0] / max(skin[1], 1)) / 0.80) ** 0.45, 0.70, 1.25))
    tooth = np.array([0.86 * blue, 1.0, 1.07 * red], np.float32)
    tooth *= luma / max(float(tooth @ LUMA), 1e-3)
    warm = np.clip(skin / skin_luma, 0.4, 1.7)
    cavity = np.array([0.62, 0.52, 1.5], np.float32) * warm**0.3 * (0.22 * skin_luma)
    inner_lip = lip * np.array([0.42, 0.38, 0.58], np.float32)
    tongue = np.array([0.66, 0.60, 1.05], np.float32) * (0.52 * skin_luma)
    # A picture without colours has none in the mouth either.
    coloured = float(np.clip((skin.max() - skin.min()) / skin_luma / 0.15, 0, 1))

    def kept(colour: Floats, least: float, most: float) -> Floats:
        grey = float(colour @ LUMA)
        return floats(np.clip(grey + coloured * (colour - grey), least, most))

    return Light(skin, kept(tooth, 0, 245), kept(cavity, 4, 90), kept(inner_lip, 0, 255), kept(tongue, 0, 255))


def paint(
    crop: Pixels,
    light: Light,
    pose: Pose,
    line: Floats,
    shown: Pixels | None,
    box: tuple[int, int, int, int],
) -> Interior:
    """Make the layers for one face.

    Args:
        crop: the mouth's box of the photo, BGR, (h, w, 3).
        light: on the mouth.
        pose: of the face, with pixels counted in the patch.
        line: where the lips meet at rest, from corner to corner, px of the patch, (n, 2).
        shown: where the box shows teeth, 0..255, (h, w); None where it shows none.
        box: left, top, right, bottom of the mouth's box in the patch, px.
    """
    left, top, right, bottom = box
    unit = pose.scale
    middle = line[len(line) // 2]
    across, down = pose.rotation[:2, 0], pose.rotation[:2, 1]
    along = float(np.hypot(*across)) or 1.0

    columns, rows = np.meshgrid(np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32))
    offset = np.stack([columns - middle[0], rows - middle[1]], axis=-1) / unit
    sideways = offset @ (across / along**2)
    deep = offset @ (down / max(float(down @ down), 0.2))

    # Depth: darkest in the middle and at the back, a little red light towards the cheeks and the floor.
    glow = np.clip(0.55 + 1.1 * np.clip(deep, 0, 0.6) - 0.7 * sideways**2, 0.35, 1.2)
    cavity = light.cavity * glow[..., None]

    if shown is not None:
        share = floats(floats(shown) / 255)
        skull = _spread(crop, share, max(0.6, 0.03 * unit))
    else:
        skull, share = _teeth(light, pose, middle, box, upper=True)

    lower, lower_share = _teeth(light, pose, middle, box, upper=False)
    hump = -0.11 + 0.5 * sideways**2
    tongue_share = np.clip((deep - hump) / 0.07, 0, 1) * np.clip((0.36 - np.abs(sideways)) / 0.10, 0, 1)
    tongue = (
        light.tongue
        * (0.60 + 1.8 * np.clip(deep - hump, 0, 0.25) - 0.10 * np.exp(-((sideways / 0.02) ** 2)))[..., None]
    )
    tongue_share = tongue_share * 0.8
    jaw = np.where(
        lower_share[..., None] > 0.001, lower * lower_share[..., None] + tongue * (1 - lower_share[..., None]), tongue
    )
    jaw_share = 1 - (1 - tongue_share) * (1 - lower_share)
    return Interior(
        left,
        top,
        bytes_of(cavity),
        bytes_of(skull),
        np.ascontiguousarray(share, np.float32),
        bytes_of(jaw),
        np.ascontiguousarray(jaw_share, np.float32),
        light.inner_lip,
    )


def _spread(picture: Pixels, share: Floats, blur: float) -> Floats:
    """Continue what is shown beyond its edge, so that a soft edge mixes in nothing of the lips."""
    sure = share > 0.95
    if not sure.any():
        return floats(picture)
    spread = floats(nearest(picture, sure))
    soft = blurred(spread, blur)
    keep = (blurred(floats(sure), max(0.5, 0.3 * blur)) * sure)[..., None]
    return floats(soft + (spread - soft) * keep)


def _teeth(
    light: Light,
    pose: Pose,
    middle: Floats,
    box: tuple[int, int, int, int],
    *,
    upper: bool,
) -> tuple[Floats, Floats]:
    """Paint a row of teeth, and say how much of it covers what is behind."""
    left, top, right, bottom = box
    width, height = (right - left) * FINE, (bottom - top) * FINE
    rotation, unit = pose.rotation, pose.scale
    rng = np.random.default_rng(11 if upper else 12)
    colour = np.zeros((height, width, 3), np.float32)
    colour[:] = light.teeth * 0.5
    covered = np.zeros((height, width), np.float32)
    scale = 1.0 if upper else 0.66
    crown = CROWN if upper else 0.11

    def place(s: Floats, y: Floats) -> npt.NDArray[np.int32]:
        """Points on the arch, `s` along it and `y` below the line of the lips, to sixteenths of a painted pixel."""
        angle = s / ARCH_RADIUS
        points = np.stack([ARCH_RADIUS * np.sin(angle), y, SET_BACK + ARCH_RADIUS * (1 - np.cos(angle))], axis=-1)
        flat = unit * (points @ rotation.T)[..., :2]
        # The middle of the lips is where the line was measured: only what goes beyond it is turned.
        flat = flat - unit * SET_BACK * rotation[:2, 2] * 0.5 + middle - (left, top) + 0.5
        return np.asarray(np.round(flat * (16 * FINE)), np.int32)

    order: list[tuple[int, int]] = [(side, k) for k in reversed(range(len(WIDTHS))) for side in (-1, 1)]
    for side, k in order:
        start = float(sum(WIDTHS[:k])) * scale
        wide = WIDTHS[k] * scale
        jitter = rng.uniform(-1, 1, 4)
        edge = (
            (SHOWING - RISES[k] + 0.0015 * jitter[0]) if upper else (LOWER_SHOWING + 0.4 * RISES[k] + 0.004 * jitter[0])
        )
        far = edge - crown if upper else edge + crown
        corner = (0.16 if k < 2 else 0.26) * wide
        bow = 0.006
        # From the far end down one side, round the edge, and back.
        t = np.linspace(0, 1, 9, dtype=np.float32)
        round_s = start + 0.0008 + np.concatenate([[0], corner * (1 - np.cos(t * np.pi / 2)), [wide / 2]])
        sign = 1 if upper else -1
        round_y = edge - sign * np.concatenate(
            [[crown], (bow + 0.012) * (1 - np.sin(t * np.pi / 2)) + bow * 0.5, [0.0]]
        )
        other = 2 * start + wide - round_s[::-1]
        s = side * np.concatenate([round_s, other]).astype(np.float32)
        y = np.concatenate([round_y, round_y[::-1]]).astype(np.float32)
        y[0] = y[-1] = far
        outline = place(s, y)
        room = 16 * FINE * max(2, round(0.06 * unit))
        low = np.clip((outline.min(axis=0) - room) // 16, 0, (width, height))
        high = np.clip((outline.max(axis=0) + room) // 16 + 1, 0, (width, height))
        if (high <= low).any():
            continue
        part = (slice(low[1], high[1]), slice(low[0], high[0]))
        shape = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(shape, [(outline - 16 * low).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = floats(floats(shape) / 255)
        # Round front: the flanks of a tooth turn away from the light, the row turns into the dark.
        turned = np.cos(min(1.35, (start + wide / 2) / ARCH_RADIUS))
        body = np.clip(blurred(alpha, max(0.6, 0.020 * unit * FINE)), 0, 1)
        lit = (0.80 + 0.20 * body) * (0.45 + 0.55 * turned) * (1 + 0.03 * jitter[1])
        tint = np.array([1 + 0.02 * jitter[2] - 0.03 * (k == 2), 1.0, 1.0 + 0.012 * jitter[3]], np.float32)
        colour[part] = colour[part] * (1 - alpha[..., None]) + (light.teeth * tint) * (lit * alpha)[..., None]
        covered[part] = covered[part] * (1 - alpha) + alpha
    if not upper:
        colour *= 0.5
    small = (right - left, bottom - top)
    painted = cv2.resize(colour, small, interpolation=cv2.INTER_AREA)
    share = cv2.resize(covered, small, interpolation=cv2.INTER_AREA)
    return np.asarray(painted, np.float32), np.asarray(share, np.float32)
