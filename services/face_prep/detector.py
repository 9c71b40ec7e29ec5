"""Face finding with the two BlazeFace networks of MediaPipe.

Source: Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019; anchors, coding and
thresholds as published with the models (face_detection_short_range, face_detection_full_range_sparse; Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.face_prep.network import Network

__all__ = ["MAX_FACES", "Detection", "FaceDetector", "iou"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

MAX_FACES: Final = 16
"""Most faces of one photo; the largest are kept."""
NMS_IOU: Final = 0.3
"""Detections that overlap more than this are one face."""
NESTED: Final = 0.7
"""A weaker one with this share of its area inside a stronger one is the same face, seen at another scale."""
MARGIN: Final = 0.4
"""Room around the whole picture in the second search, in lengths of its longer side."""
TILE: Final = 0.6
"""Side of a tile in the third search, in lengths of the picture's shorter side."""


@dataclass(frozen=True)
class Detection:
    """One face."""

    box: Floats
    """x1, y1, x2, y2, px, (4,); it may reach over the edge of the picture"""
    keypoints: Floats
    """x, y of right eye, left eye, nose tip, mouth, right ear, left ear (the person's right), px, (6, 2)"""
    score: float
    """how sure the network is, 0..1"""

    @property
    def area(self) -> float:
        """Area of the box, px^2."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    @property
    def roll_deg(self) -> float:
        """Angle of the line from the right to the left eye: 0 upright, positive clockwise, -180..180."""
        dx, dy = self.keypoints[1] - self.keypoints[0]
        return float(np.degrees(np.arctan2(dy, dx)))

    def moved(self, x: float, y: float) -> Detection:
        """Shift by x and y, px."""
        shift = np.array([x, y], np.float32)
        return Detection(self.box + np.tile(shift, 2), self.keypoints + shift, self.score)


@dataclass(frozen=True)
class _Range:
    """One network and how its outputs are to be read."""

    file: str
    input_px: int
    layers: tuple[tuple[int, int], ...]
    """stride (px of the input) and anchors per cell; all anchors have size 1, so only their centres count"""
    least_score: float

    def anchors(self) -> Floats:
        """Centres of the anchors in the order of the outputs, 0..1, (n, 2)."""
        centres = []
        for stride, per_cell in self.layers:
            cells = self.input_px // stride
            middles = (np.arange(cells, dtype=np.float32) + 0.5) / cells
            y, x = np.meshgrid(middles, middles, indexing="ij")
            centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), per_cell, axis=0))
        return np.concatenate(centres)


SHORT_RANGE: Final = _Range("face_detection_short_range.tflite", 128, ((8, 2), (16, 6)), 0.5)
FULL_RANGE: Final = _Range("face_detection_full_range_sparse.tflite", 192, ((4, 1),), 0.6)


class FaceDetector:
    """Finds upright faces, tilted by up to about 45 degrees; quarter turns are the caller's to try."""

    def __init__(self, models: Path, device: str = "CPU") -> None:
        """Load both networks.

        Args:
            models: folder that holds the two TFLite files.
            device: OpenVINO device.

        Raises:
            NetworkError: a file is missing or cannot be loaded.
        """
        self._short = _Looker(SHORT_RANGE, models, device)
        self._full = _Looker(FULL_RANGE, models, device)

    def detect(self, bgr: Pixels) -> list[Detection]:
        """Find all faces: what the first of `searches` that finds any has found.

        Args:
            bgr: (h, w, 3), uint8.

        Returns:
            largest first, at most `MAX_FACES`; empty when there is none.
        """
        return next((found for found in self.searches(bgr) if found), [])

    def searches(self, bgr: Pixels) -> Iterator[list[Detection]]:
        """Search harder each time; the caller stops when it believes what was found.

        First the whole picture, by the short-range network (faces that fill a good part of it) and by the full-range
        one (smaller faces beside them). Then the picture with a broad margin, since a face cut at the picture's edges
        is found only with room around it. Last, overlapping tiles by the full-range network, for small faces.

        Args:
            bgr: (h, w, 3), uint8.

        Yields:
            largest first, at most `MAX_FACES`; empty when this search found none.
        """
        yield _ranked(self._short.look(bgr) + self._full.look(bgr))
        border = round(MARGIN * max(bgr.shape[:2]))
        padded = np.asarray(cv2.copyMakeBorder(bgr, border, border, border, border, cv2.BORDER_CONSTANT), np.uint8)
        yield _ranked([face.moved(-border, -border) for face in self._short.look(padded) + self._full.look(padded)])
        yield _ranked([face.moved(x, y) for tile, x, y in _tiles(bgr) for face in self._full.look(tile)])


class _Looker:
    """One network with its anchors."""

    def __init__(self, kind: _Range, models: Path, device: str) -> None:
        self._kind = kind
        self._anchors = kind.anchors()
        self._network = Network(models / kind.file, device)

    def look(self, bgr: Pixels) -> list[Detection]:
        """Find faces in one picture, fitted into the square input with black bars; overlaps are not yet merged."""
        side = self._kind.input_px
        height, width = bgr.shape[:2]
        scale = side / max(height, width)
        # A whole number of pixels keeps the picture's left edge on the grid, so no half pixel is lost on the way back.
        inner_w, inner_h = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (side - inner_w) // 2, (side - inner_h) // 2
        canvas = np.zeros((side, side, 3), np.uint8)
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[top : top + inner_h, left : left + inner_w] = cv2.resize(bgr, (inner_w, inner_h), interpolation=shrink)
        values = canvas[None, :, :, ::-1].astype(np.float32) / 127.5 - 1.0

        regressors, logits = (output[0] for output in self._network.run(np.ascontiguousarray(values)))
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits[:, 0], -60.0, 60.0)))
        kept = np.flatnonzero(scores > self._kind.least_score)
        # Each row: x, y of the centre, width, height, then six points; px of the input, relative to the anchor's
        # centre.
        points = regressors[kept].reshape(-1, 8, 2) / side
        centres = points[:, 0] + self._anchors[kept]
        keypoints = points[:, 2:] + self._anchors[kept, None]
        boxes = np.concatenate([centres - points[:, 1] / 2, centres + points[:, 1] / 2], axis=1).reshape(-1, 2, 2)
        to_photo = np.array([width / inner_w, height / inner_h], np.float32)
        origin = np.array([left, top], np.float32)
        return [
            Detection(((box * side - origin) * to_photo).reshape(4), (marks * side - origin) * to_photo, float(score))
            for box, marks, score in zip(boxes, keypoints, scores[kept], strict=True)
            if (box[1] > box[0]).all()
        ]


def iou(a: Floats, b: Floats) -> float:
    """Intersection over union of two boxes (4,)."""
    shared = _shared_area(a, b)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union) if union > 0 else 0.0


def _shared_area(a: Floats, b: Floats) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return float(width * height) if width > 0 and height > 0 else 0.0


def _merge(found: Sequence[Detection]) -> list[Detection]:
    """Weighted non-maximum suppression: detections of one face become their mean, weighted by score."""
    left = sorted(found, key=lambda face: face.score, reverse=True)
    merged: list[Detection] = []
    while left:
        best = left[0]
        same = [face for face in left if face is best or iou(face.box, best.box) > NMS_IOU]
        weights = np.array([face.score for face in same], np.float32)
        weights /= weights.sum()
        merged.append(
            Detection(
                np.tensordot(weights, np.stack([face.box for face in same]), axes=1).astype(np.float32),
                np.tensordot(weights, np.stack([face.keypoints for face in same]), axes=1).astype(np.float32),
                best.score,
            ),
        )
        gone = {id(face) for face in same}
        left = [face for face in left if id(face) not in gone and not _nested(face, best)]
    return merged


def _nested(face: Detection, best: Detection) -> bool:
    return _shared_area(face.box, best.box) > NESTED * min(face.area, best.area)


def _ranked(found: Sequence[Detection]) -> list[Detection]:
    return sorted(_merge(found), key=lambda face: face.area, reverse=True)[:MAX_FACES]


def _tiles(bgr: Pixels) -> Iterator[tuple[Pixels, int, int]]:
    """Cut into squares that overlap by a third or more; each with its left and top edge."""
    height, width = bgr.shape[:2]
    side = round(TILE * min(height, width))
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield bgr[y : y + side, x : x + side], x, y


def _starts(length: int, side: int) -> list[int]:
    steps = max(1, math.ceil((length - side) / (side * 2 / 3)))
    return [round(step * (length - side) / steps) for step in range(steps + 1)]
