"""A contact sheet: frames of the real speaker above, the drawn ones of the same moment below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Strip", "moments", "real_frames", "sheet", "tile"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

COLUMNS: Final = 8
TILE_PX: Final = 160
SIDE: Final = 2.6
"""side of a tile, eye distances"""
BELOW: Final = 0.55
"""how far its middle lies below the eyes, eye distances"""
LINE_PX: Final = 22
EYES: Final = ((33, 133), (263, 362))


@dataclass(frozen=True)
class Strip:
    """One clip."""

    title: str
    real: Sequence[Pixels]
    """tiles"""
    drawn: Sequence[Pixels]


def moments(opening: Floats, seen: npt.NDArray[np.bool_]) -> list[int]:
    """Choose frames of a clip: from each of `COLUMNS` stretches in turn the one that is widest open or most closed."""
    known = np.flatnonzero(seen)
    chosen = []
    for index, part in enumerate(np.array_split(known, COLUMNS)):
        if part.size:
            values = opening[part]
            chosen.append(int(part[values.argmax() if index % 2 == 0 else values.argmin()]))
    return chosen


def real_frames(path: Path, frames: Sequence[int], rate_fps: float) -> Mapping[int, Pixels]:
    """Read pictures of a clip at the middle of frames of another rate; those that cannot be read are missing."""
    capture = cv2.VideoCapture(str(path))
    try:
        own_fps = capture.get(cv2.CAP_PROP_FPS) or rate_fps
        wanted = {int((frame + 0.5) / rate_fps * own_fps): frame for frame in frames}
        found: dict[int, Pixels] = {}
        index = 0
        while len(found) < len(wanted):
            ok, picture = capture.read()
            if not ok:
                break
            if index in wanted:
                found[wanted[index]] = picture.astype(np.uint8, copy=False)
            index += 1
        return found
    finally:
        capture.release()


def tile(picture: Pixels, points: Floats) -> Pixels:
    """Cut the lower face out, upright and always of the same size."""
    right, left = (points[list(eye), :2].mean(axis=0) for eye in EYES)
    along = left - right
    unit = float(np.hypot(*along))
    x, y = along / max(unit, 1e-6)
    middle = (right + left) / 2 + BELOW * unit * np.array([-y, x])
    scale = TILE_PX / (SIDE * max(unit, 1e-6))
    turn = scale * np.array([[x, y], [-y, x]])
    matrix = np.concatenate([turn, (TILE_PX / 2 - turn @ middle)[:, None]], axis=1)
    return np.asarray(cv2.warpAffine(picture, matrix, (TILE_PX, TILE_PX), flags=cv2.INTER_LINEAR), np.uint8)


def sheet(strips: Sequence[Strip]) -> Pixels:
    """Lay strips below each other."""
    rows = []
    for strip in strips:
        title = np.full((LINE_PX, COLUMNS * TILE_PX, 3), 255, np.uint8)
        cv2.putText(title, strip.title, (4, LINE_PX - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [title, _row(strip.real), _row(strip.drawn)]
    return np.vstack(rows) if rows else np.full((LINE_PX, TILE_PX, 3), 255, np.uint8)


def _row(tiles: Sequence[Pixels]) -> Pixels:
    row = np.full((TILE_PX, COLUMNS * TILE_PX, 3), 255, np.uint8)
    for index, each in enumerate(tiles[:COLUMNS]):
        row[:, index * TILE_PX : (index + 1) * TILE_PX] = each
    return row
