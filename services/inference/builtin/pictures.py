"""The few OpenCV calls that the engine is made of, with types that hold."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "LUMA",
    "NO_MAP",
    "Floats",
    "Pixels",
    "blurred",
    "bytes_of",
    "clamped",
    "enlarged",
    "fine_scale",
    "floats",
    "grey_of",
    "mixed",
    "nearest",
    "picture_of",
    "planes_of",
    "sampled",
    "sampled_field",
    "sampled_fine",
    "shifted",
    "smoothstep",
]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

LUMA: Final = np.array([0.114, 0.587, 0.299], np.float32)
"""share of blue, green and red in the brightness of a pixel (ITU-R BT.601)"""
CUBIC_MOST: Final = 3 * 400 * 400
"""Values of a picture up to which it is sampled by cubic interpolation."""
FINE: Final = 2
"""Pixels of an enlarged picture for one of the picture, along each side: linear sampling then loses nothing that is
seen, and takes a quarter of the time of cubic sampling."""
FINE_PIXELS: Final = 4_000_000
"""A picture that would have more of them is not enlarged."""
NO_MAP: Final[Any] = None
"""OpenCV's type stubs know no call of remap with a single map, which it documents and takes."""


def floats(values: Any) -> Floats:
    """As float32, without a copy where it is that already."""
    return np.asarray(values, np.float32)


def smoothstep(share: Any) -> Floats:
    """From 0 to 1 without a kink, where the argument goes from 0 to 1; flat beyond."""
    share = np.clip(share, 0, 1)
    return floats(share * share * (3 - 2 * share))


def clamped(value: float, low: float, high: float) -> float:
    """The number, or the end of low..high that it lies beyond."""
    return min(max(float(value), low), high)


def bytes_of(values: Any) -> Pixels:
    """As uint8, rounded and clipped to 0..255."""
    return np.clip(np.asarray(values) + 0.5, 0, 255).astype(np.uint8)


def grey_of(picture: Pixels) -> Pixels:
    """The picture without its colours, (h, w, 3)."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)


def mixed(over: Pixels, under: Pixels, share: Floats) -> Pixels:
    """Lay one picture over another, (h, w, 3), by its share of each pixel, (h, w), 0..1."""
    return np.asarray(cv2.blendLinear(over, under, share, 1 - share), np.uint8)


def planes_of(picture: npt.NDArray[Any]) -> Floats:
    """A picture's colours as planes, (h, w, k) to (k, h, w): NumPy computes with them much faster."""
    return np.stack(cv2.split(np.ascontiguousarray(picture)), dtype=np.float32)  # a part of a picture is split slowly


def picture_of(planes: Floats) -> Pixels:
    """The picture of three planes, 0 or more, (3, h, w) to (h, w, 3)."""
    return np.asarray(cv2.convertScaleAbs(cv2.merge(list(planes))), np.uint8)


def sampled(picture: Pixels, places: Floats) -> Pixels:
    """Read a picture at places, (h, w, 2) px; its edge goes on for ever.

    By cubic interpolation, which keeps it sharp, unless it is so large that nobody will see the difference.
    """
    how = cv2.INTER_CUBIC if picture.size <= CUBIC_MOST else cv2.INTER_LINEAR
    return np.asarray(cv2.remap(picture, places, NO_MAP, how, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def fine_scale(shape: tuple[int, ...]) -> int:
    """How many times larger the sides of a picture of some height and width are when it is kept enlarged."""
    return FINE if FINE**2 * shape[0] * shape[1] <= FINE_PIXELS else 1


def enlarged(picture: Pixels, scale: int) -> Pixels:
    """A larger copy in which the picture's pixel p stands as it was at scale * p, BGR and an empty channel: OpenCV
    samples four channels faster than three."""
    wide = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    if scale == 1:
        return np.asarray(wide, np.uint8)
    size = (picture.shape[1] * scale, picture.shape[0] * scale)
    matrix = np.array([[scale, 0, 0], [0, scale, 0]], np.float32)
    large = cv2.warpAffine(wide, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(large, np.uint8)


def sampled_fine(fine: Pixels, places: Floats) -> Pixels:
    """Read an enlarged picture at places of its own, (h, w, 2) px, BGR, (h, w, 3); its edge goes on for ever."""
    wide = cv2.remap(fine, places, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.cvtColor(wide, cv2.COLOR_BGRA2BGR), np.uint8)


def sampled_field(field: Floats, places: Floats) -> Floats:
    """Read a field at places, (h, w, 2) in its own elements; its edge goes on for ever."""
    return floats(cv2.remap(field, places, NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def blurred(values: Floats, sigma: float) -> Floats:
    """Gaussian blur, px."""
    return floats(cv2.GaussianBlur(values, (0, 0), sigma))


def shifted(
    values: npt.NDArray[Any], x: float, y: float, size: tuple[int, int], *, extend: bool, sharp: bool = False
) -> npt.NDArray[Any]:
    """Move a picture by parts of a pixel into one of another size (width, height).

    Args:
        values: (h, w) or (h, w, k), k at most 4.
        x: px to the right.
        y: px down.
        size: width and height of the result.
        extend: whether its edge goes on for ever; else there is 0.
        sharp: by cubics, which keep it sharp and take longer.
    """
    border = cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT
    how = cv2.INTER_CUBIC if sharp else cv2.INTER_LINEAR
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return np.asarray(cv2.warpAffine(values, matrix, size, flags=how, borderMode=border))


def nearest(picture: Pixels, known: npt.NDArray[np.bool_]) -> Pixels:
    """Give each pixel the colour of the nearest known one; the picture itself where none is known."""
    if not known.any():
        return picture
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    labels = np.asarray(labels)
    colours = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colours[labels[known]] = picture[known]
    return np.asarray(colours[labels], np.uint8)
