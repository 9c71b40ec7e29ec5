"""What lies between the lips: darkness, tongue, teeth. A layer of its own, so that teeth are never stretched.

The upper teeth stay with the skull, the lower teeth and the tongue go with the jaw, and the lips' inner line cuts all
of it out. Teeth that show in the photo are used where they are; others are painted, in the light of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.builtin import teeth
from services.inference.builtin.basis import Pose
from services.inference.builtin.lips import Shown
from services.inference.builtin.pictures import (
    LUMA,
    Floats,
    Pixels,
    blurred,
    floats,
    nearest,
    planes_of,
    shifted,
)

__all__ = ["LEAST_BLUR", "NOWHERE", "Interior", "Light", "light_of", "paint"]

RIGHT_EYE: Final = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE: Final = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LIPS: Final = (11, 12, 72, 302, 15, 16, 85, 315, 86, 316)
"""points on the red of both lips"""
SKIN: Final = (50, 280, 205, 425, 187, 411, 206, 426, 207, 427)
"""points on both cheeks and beside the mouth"""

EYE_EDGES: Final = 0.95
"""Quantile of the gradient around the eyes from which a pixel counts as an edge."""
GAIN: Final = (1.08, 1.40)
"""How much brighter teeth that the photo shows are without the shadow of its lips."""
LEAST_KNOWN: Final = 6
"""Pixels of teeth that are worth to be used."""
HALF_MOUTH: Final = 0.39
"""Half the width of the mouth in front of an average arch, eye distances."""
ARCH_SIZES: Final = (0.88, 1.25)
"""Least and most that an arch is larger than the average."""
DARKEST: Final = 0.7
"""How bright the depth of the mouth is at least, as a share of the darkest of the face."""
LEAST_BLUR: Final = 0.3
"""Blur that is not worth the work, px."""
SHARP_PX: Final = 0.75
"""Blur of the edges of a sharp photo."""


NOWHERE: Final[Floats] = np.zeros(2, np.float32)


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
    gum: Floats
    """colour of the gum in full light, BGR 0..255"""
    slope: float
    """how much brighter it gets per eye distance across the face"""
    blur: float
    """how blurred the photo is beyond a sharp one, px"""
    coloured: float
    """0 for a picture in shades of grey or of one colour, 1 for one in colours"""


@dataclass(frozen=True)
class Interior:
    """The layers between the lips, in a box around the mouth."""

    x: int
    """left edge of the box within the patch, px"""
    y: int
    """top edge of the box within the patch, px"""
    cavity: Floats
    """depth of the mouth, blue, green and red, (3, h, w)"""
    skull: Floats
    """upper teeth, BGR times how much of them covers what is behind, and that, (h, w, 4)"""
    jaw: Floats
    """tongue and lower teeth with the mouth closed, BGR times how much of them covers the depth, and that, (h, w, 4)"""
    sideways: Floats
    """how far to the person's left of the middle of the lips each pixel lies, eye distances, (h, w)"""
    middle: Floats
    """middle of the lips at rest, px of the patch, (2,)"""
    along: Floats
    """what a pixel to the right and one down are worth of `sideways`, (2,)"""
    inner_lip: Floats
    """colour of the lips' inside, BGR 0..255"""

    def side_of(self, points: Floats) -> Floats:
        """How far to the person's left of the middle of the lips points of the patch lie, eye distances, (n,)."""
        return floats((points - self.middle) @ self.along)

    def shown(
        self,
        jaw_shift: Floats,
        rim: Floats,
        part: tuple[int, int, int, int],
        teeth: float = 1.0,
        head_shift: Floats = NOWHERE,
    ) -> Floats:
        """Lay the layers over each other.

        Args:
            jaw_shift: how far the jaw has moved, px, (2,).
            rim: how much of each pixel is the wet inside of a lip, (height, width), 0..1.
            part: left, top, width, height of what is wanted of the box.
            teeth: how much of the upper teeth is seen, 0..1; less where the lips are pushed forward.
            head_shift: how far the head has carried it all, px, (2,).

        Returns:
            blue, green and red, (3, height, width), before the shadow of the lips.
        """
        left, top, width, height = part
        size = (width, height)
        (x, y), (jaw_x, jaw_y) = (
            (float(shift[0]) - left, float(shift[1]) - top) for shift in (head_shift, head_shift + jaw_shift)
        )
        *colours, share = cv2.split(shifted(self.jaw, jaw_x, jaw_y, size, extend=True))
        shown = np.stack(colours) + self.cavity[:, top : top + height, left : left + width] * (1 - share)
        shown += (self.inner_lip[:, None, None] - shown) * rim
        *colours, share = cv2.split(shifted(self.skull, x, y, size, extend=True, sharp=True))
        shown += np.float32(teeth) * (np.stack(colours) - shown * share)
        return floats(np.maximum(shown, 0))


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
    luma = float(np.clip(1.0 * white_luma, 1.10 * skin_luma, 1.42 * skin_luma + 14))
    luma = min(luma, 228.0)
    # Ivory under the light of the photo, which shows in the skin (fair skin in white light has R/G 1.35, B/G 0.80) and
    # in the whites of the eyes.
    skin_cast = np.array([(skin[0] / max(skin[1], 1)) / 0.80, 1.0, (skin[2] / max(skin[1], 1)) / 1.35])
    white_cast = np.array([white[0] / max(white[1], 1) / 0.93, 1.0, white[2] / max(white[1], 1) / 1.07])
    cast = np.clip(skin_cast, 0.4, 1.8) ** 0.35 * np.clip(white_cast, 0.5, 1.5) ** 0.45
    # No tooth is green, whatever has yellowed.
    tooth = np.clip(np.array([0.87, 1.0, 1.06]) * cast, (0.56, 1.0, 1.035), (0.99, 1.0, 1.20))
    tooth *= luma / max(float(tooth @ LUMA), 1e-3)
    inside = np.clip(cast, (0.55, 1, 0.95), (0.95, 1, 1.2))
    cavity = np.array([0.50, 0.47, 1.35]) * inside
    cavity *= max(0.14 * skin_luma, DARKEST * _black_of(photo, landmarks)) / float(cavity @ LUMA)
    inner_lip = lip * np.array([0.42, 0.38, 0.58], np.float32)
    tongue = np.array([0.64, 0.62, 1.10]) * inside * (0.58 * skin_luma)
    gum = 0.5 * lip + 0.5 * skin * np.array([0.72, 0.62, 0.92], np.float32)
    # A picture in the shades of one colour has no other in the mouth either.
    tint = skin / skin_luma
    spread = max(float(np.abs(each / max(float(each @ LUMA), 8.0) - tint).max()) for each in (lip, white))
    spread = max(spread, _spread_of_colour(photo, landmarks, tint))
    coloured = float(np.clip((spread - 0.03) / 0.04, 0, 1))

    def kept(colour: Floats, least: float, most: float) -> Floats:
        luma = float(colour @ LUMA)
        return floats(np.clip(coloured * colour + (1 - coloured) * luma * tint, least, most))

    sides = [colour(numbers, reach) for numbers in (SKIN[0::2], SKIN[1::2])]
    slope = 0.0
    if sides[0] is not None and sides[1] is not None:
        right, left = float(sides[0] @ LUMA), float(sides[1] @ LUMA)
        slope = float(np.clip((left - right) / max(left + right, 8.0), -0.35, 0.35))
    return Light(
        skin=skin,
        teeth=kept(tooth, 0, 248),
        cavity=kept(cavity, 4, 90),
        inner_lip=kept(inner_lip, 0, 255),
        tongue=kept(tongue, 0, 255),
        gum=kept(gum, 0, 255),
        slope=slope,
        blur=_blur_of(photo, landmarks, unit),
        coloured=coloured,
    )


def _face_pixels(photo: Pixels, landmarks: Floats) -> Floats:
    """Evenly spaced pixels of the face, BGR, (n, 3)."""
    low = np.maximum(np.floor(landmarks[:, :2].min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(landmarks[:, :2].max(axis=0)).astype(int), (photo.shape[1], photo.shape[0]))
    step = max(1, int((high - low).max()) // 96)
    return floats(photo[low[1] : high[1] : step, low[0] : high[0] : step].reshape(-1, 3))


def _black_of(photo: Pixels, landmarks: Floats) -> float:
    """How dark the darkest of a face is, grey levels: a faded picture has no black."""
    pixels = _face_pixels(photo, landmarks)
    return float(np.quantile(pixels @ LUMA, 0.01)) if len(pixels) else 0.0


def _spread_of_colour(photo: Pixels, landmarks: Floats, tint: Floats) -> float:
    """How far the colours of a face, each as shares of its brightness, lie from that of its skin."""
    pixels = _face_pixels(photo, landmarks)
    luma = pixels @ LUMA
    pixels, luma = pixels[luma > 30], luma[luma > 30]
    return float(np.quantile(np.abs(pixels / luma[:, None] - tint).max(axis=1), 0.85)) if len(luma) else 0.0


def _blur_of(photo: Pixels, landmarks: Floats, unit: float) -> float:
    """How blurred a photo is around the eyes beyond a sharp one, px.

    At an edge of blur s the gradient is sqrt(1 + 1 / s^2) times that of the same edge blurred once more by one pixel
    (Zhuo and Sim, "Defocus map estimation from a single image", 2011).
    """
    eyes = landmarks[[*RIGHT_EYE, *LEFT_EYE], :2]
    low = np.maximum(np.floor(eyes.min(axis=0) - 0.1 * unit).astype(int), 0)
    high = np.minimum(np.ceil(eyes.max(axis=0) + 0.1 * unit).astype(int), (photo.shape[1], photo.shape[0]))
    if (high - low < 5).any():
        return 0.0
    grey = floats(cv2.cvtColor(photo[low[1] : high[1], low[0] : high[0]], cv2.COLOR_BGR2GRAY))
    steep, soft = (
        np.hypot(floats(cv2.Sobel(each, cv2.CV_32F, 1, 0)), floats(cv2.Sobel(each, cv2.CV_32F, 0, 1)))
        for each in (grey, blurred(grey, 1.0))
    )
    edges = steep >= max(float(np.quantile(steep, EYE_EDGES)), 16.0)
    if not edges.any():
        return 0.0
    ratio = max(float(np.median(steep[edges] / np.maximum(soft[edges], 1e-3))), 1.02)
    sigma = 1 / np.sqrt(ratio**2 - 1)
    return float(np.sqrt(max(sigma**2 - SHARP_PX**2, 0)))


def paint(
    crop: Pixels,
    light: Light,
    pose: Pose,
    line: Floats,
    shown: Shown | None,
    box: tuple[int, int, int, int],
) -> Interior:
    """Make the layers for one face.

    Args:
        crop: the mouth's box of the photo, BGR, (h, w, 3).
        light: on the mouth.
        pose: of the face, with pixels counted in the patch.
        line: where the lips meet at rest, from corner to corner, px of the patch, (n, 2).
        shown: the teeth that the box shows, if any.
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

    side = np.clip(1 + light.slope * sideways / 0.35, 0.6, 1.4)[..., None]
    # A wide mouth has a wide arch behind it.
    half = float(np.ptp(line[[0, -1]] @ (across / along**2))) / (2 * unit)
    arch = teeth.Arch.behind(replace(pose, scale=unit * float(np.clip(half / HALF_MOUTH, *ARCH_SIZES))), middle, box)
    if shown is None or shown.known.sum() < LEAST_KNOWN:
        skull, share = teeth.painted(teeth.UPPER, light.teeth, light.gum, arch, light.coloured)
        skull *= side
        if light.blur > LEAST_BLUR:
            skull, share = blurred(skull, light.blur), blurred(share, light.blur)
    else:
        skull, share = _completed(crop, shown, light, arch, unit)

    lower, lower_share = teeth.painted(teeth.LOWER, 0.72 * light.teeth, 0.6 * light.gum, arch, light.coloured)
    hump = -0.13 + 0.5 * sideways**2
    over = np.clip(deep - hump, 0, 0.30)
    tongue_share = np.clip(over / 0.10, 0, 1) * np.clip((0.36 - np.abs(sideways)) / 0.14, 0, 1)
    groove = 0.09 * np.exp(-((sideways / 0.035) ** 2)) * np.clip(over / 0.1, 0, 1)
    tongue = (
        light.tongue * (0.62 + 3.0 * over - 1.6 * np.clip(over - 0.15, 0, 1) - 1.2 * sideways**2 - groove)[..., None]
    )
    tongue_share = 0.85 * tongue_share**1.3
    jaw = floats(lower * lower_share[..., None] + tongue * (1 - lower_share[..., None]))
    jaw_share = floats(1 - (1 - tongue_share) * (1 - lower_share))
    if light.blur > LEAST_BLUR:
        jaw, jaw_share = blurred(jaw, light.blur), blurred(jaw_share, light.blur)
    skull, share = floats(np.clip(skull, 0, 255)), floats(share)
    return Interior(
        x=left,
        y=top,
        cavity=planes_of(np.clip(cavity * side, 0, 255)),
        skull=floats(cv2.merge([*(skull.transpose(2, 0, 1) * share), share])),
        jaw=floats(cv2.merge([*(np.clip(jaw * side, 0, 255).transpose(2, 0, 1) * jaw_share), jaw_share])),
        sideways=np.ascontiguousarray(sideways, np.float32),
        middle=middle,
        along=floats(across / (along**2 * unit)),
        inner_lip=floats(np.clip(light.inner_lip, 0, 255)),
    )


def _completed(crop: Pixels, shown: Shown, light: Light, arch: teeth.Arch, unit: float) -> tuple[Floats, Floats]:
    """Teeth that the photo shows, with painted ones of their colour and length where the lips hide the others."""
    own = shown.share
    pixels = crop[shown.known].astype(np.float32)
    luma = pixels @ LUMA
    colour = np.asarray(np.median(pixels[luma >= np.median(luma)], axis=0), np.float32)
    # The lips of the photo have thrown their shadow on them already.
    gain = float(np.clip(0.95 * (light.teeth @ LUMA) / max(float(colour @ LUMA), 1.0), *GAIN))
    colour = floats(np.clip(gain * colour, 0, 250))
    edge = teeth.edge_of(own, arch)
    row = replace(teeth.UPPER, edge=edge.level)
    others, others_share = teeth.painted(row, colour, light.gum, arch, light.coloured)
    if light.blur > LEAST_BLUR:
        others, others_share = blurred(others, light.blur), blurred(others_share, light.blur)
    others_share = others_share * edge.beside
    keep = own[..., None]
    skull = gain * _spread(crop, shown.known, max(0.6, 0.03 * unit)) * keep + others * (1 - keep)
    return floats(skull), floats(own + (1 - own) * others_share)


def _spread(picture: Pixels, sure: npt.NDArray[np.bool_], blur: float) -> Floats:
    """Continue what is shown beyond its edge, so that a soft edge mixes in nothing of the lips."""
    spread = floats(nearest(picture, sure))
    soft = blurred(spread, blur)
    keep = (blurred(floats(sure), max(0.5, 0.3 * blur)) * sure)[..., None]
    return floats(soft + (spread - soft) * keep)
