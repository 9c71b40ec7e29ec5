"""Laying what was drawn on a frame."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from scripts._render.faces import Box
from services.inference.wav2lip.engine import lower_face, mouth_mask
from shared.messages import Face

__all__ = ["FACE_SIZE", "cut", "mask_of", "paste_hard", "paste_soft"]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FACE_SIZE: Final = 96
Paste = Literal["soft", "hard"]


def cut(frame: Pixels, box: Box) -> Pixels:
    """Cut a face out of a frame and bring it to the network's size, (96, 96, 3)."""
    x1, y1, x2, y2 = box
    return np.asarray(cv2.resize(np.ascontiguousarray(frame[y1:y2, x1:x2]), (FACE_SIZE, FACE_SIZE)), np.uint8)


def paste_hard(frame: Pixels, box: Box, face: Pixels) -> None:
    """Put a whole drawn face (96, 96, 3) into its box, edges and all, as the published script does; in place."""
    x1, y1, x2, y2 = box
    frame[y1:y2, x1:x2] = cv2.resize(face, (x2 - x1, y2 - y1))


def paste_soft(frame: Pixels, box: Box, crop: Pixels, lower: Pixels, mask: Floats | None = None) -> None:
    """Blend the drawn lower half of a face into its box; in place.

    Args:
        frame: BGR, (h, w, 3).
        box: of the face.
        crop: the face as the network saw it, (96, 96, 3): what lies above the half's edge when it is enlarged.
        lower: what was drawn, (48, 96, 3).
        mask: share of it in the frame, on the box, 0..1; None: the lower half with a soft edge.
    """
    x1, y1, x2, y2 = box
    whole = crop.copy()
    whole[-len(lower) :] = lower
    if mask is None:
        mask = _mask(y2 - y1, x2 - x1)
    first = int(np.flatnonzero(mask.any(axis=1))[0])
    image = np.asarray(cv2.resize(whole, (x2 - x1, y2 - y1)), np.uint8)[first:]
    _blend(frame[y1 + first : y2, x1:x2], image, mask[first:])


def mask_of(face: Face, box: Box) -> Floats:
    """Make the mask that the live engine would use: the lower half, where it may move with the mouth.

    Args:
        face: a prepared face.
        box: of it, padded.

    Returns:
        share of what is drawn, on the box, 0..1.
    """
    x1, y1, x2, y2 = box
    return _mask(y2 - y1, x2 - x1) * (mouth_mask(face, box).astype(np.float32) / np.float32(255))


@lru_cache(maxsize=64)
def _mask(height: int, width: int) -> Floats:
    mask = lower_face(height, width).astype(np.float32)
    mask.setflags(write=False)
    return mask


def _blend(under: Pixels, over: Pixels, share: Floats) -> None:
    under[:] = cv2.blendLinear(over, np.ascontiguousarray(under), share, 1 - share)
