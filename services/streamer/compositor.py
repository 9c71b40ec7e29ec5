"""Laying the moving part of a frame on the photo."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Layer", "compose", "marked"]

_CORNERS = {"top-left": (0, 0), "top-right": (1, 0), "bottom-left": (0, 1), "bottom-right": (1, 1)}


class Layer(Protocol):
    """What is laid on a photo: a patch on the bus, or what an engine rendered."""

    @property
    def x(self) -> int:
        """Left edge on the photo, px."""
        ...

    @property
    def y(self) -> int:
        """Top edge, px."""
        ...

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """BGR, (h, w, 3)."""
        ...

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """Share of the image in the picture, (h, w), 0..255; empty: all of it is taken."""
        ...


def compose(photo: npt.NDArray[np.uint8], patch: Layer | None) -> npt.NDArray[np.uint8]:
    """Lay a patch on a photo, or on the picture of another frame, by its mask.

    Args:
        photo: (H, W, 3) BGR; it is not changed.
        patch: the moving part; None for the photo as it is.

    Returns:
        a new picture, or the photo itself without a patch. Where the mask is 0 the photo's values stay exactly.
    """
    if patch is None:
        return photo
    height, width = photo.shape[:2]
    top, left = max(0, patch.y), max(0, patch.x)
    bottom, right = min(height, patch.y + patch.image.shape[0]), min(width, patch.x + patch.image.shape[1])
    if top >= bottom or left >= right:
        return photo
    rows, columns = slice(top - patch.y, bottom - patch.y), slice(left - patch.x, right - patch.x)
    over = patch.image[rows, columns]
    out = photo.copy()
    under = out[top:bottom, left:right]
    if not patch.mask.size:
        under[:] = over
        return out
    mask = patch.mask[rows, columns]
    cv2.copyTo(over, mask, under)  # all of it where the mask is not 0
    soft = cv2.boundingRect(cv2.inRange(mask, 1, 254))  # the edge, where both are seen
    if soft[2]:
        x, y, width, height = soft
        part = (slice(y, y + height), slice(x, x + width))
        share = mask[part] / np.float32(255)
        photo_part = np.ascontiguousarray(photo[top:bottom, left:right][part])
        under[part] = cv2.blendLinear(np.ascontiguousarray(over[part]), photo_part, share, 1 - share)
    return out


def marked(photo: npt.NDArray[np.uint8], text: str, corner: str) -> npt.NDArray[np.uint8]:
    """Burn a mark into a corner of a photo.

    Args:
        photo: (H, W, 3) BGR; it is not changed.
        text: what is written; empty gives the photo itself.
        corner: top-left, top-right, bottom-left or bottom-right.

    Returns:
        the marked copy.
    """
    if not text:
        return photo
    height, width = photo.shape[:2]
    scale = max(0.4, min(height, width) / 900.0)
    thickness = max(1, round(scale * 1.6))
    (long, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    scale = min(scale, scale * 0.9 * width / max(1, long))
    (long, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    edge = max(4, min(height, width) // 40)
    right, low = _CORNERS[corner]
    place = (width - edge - long if right else edge, height - edge - base if low else edge + high)
    out = photo.copy()
    for colour, weight in (((0, 0, 0), thickness * 3), ((255, 255, 255), thickness)):
        cv2.putText(out, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, weight, cv2.LINE_AA)
    return out
