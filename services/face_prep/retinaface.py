"""Face finding with RetinaFace on a quarter-width MobileNetV1, for those who have its weights.

Source: Deng et al., "RetinaFace: Single-Shot Multi-Level Face Localisation in the Wild", CVPR 2020; anchors and coding
as published with the weights mobilenet0.25_Final.pth, which ``scripts/convert_detector`` makes into the network read
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.face_prep.detector import MARGIN, MAX_FACES, Detection
from services.face_prep.network import Network, NetworkError

__all__ = ["FILE", "RetinaFace", "anchors", "decode"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

FILE: Final = "retinaface_mobilenet.xml"
SIDE_PX: Final = 640
"""Side of the square that the network looks at; larger pictures are scaled down to it."""
MEAN_BGR: Final = (104, 117, 123)
LAYERS: Final = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
"""Stride and sides of the square anchors in each cell, px of the input."""
CENTRE_STEP, SIZE_STEP = 0.1, 0.2
"""What the offsets count in: lengths of the anchor, and their natural logarithm."""
LEAST_PROBABILITY: Final = 0.6
TEMPERATURE: Final = 3.0
"""What the logit of a face is divided by before it becomes the score. RetinaFace gives faces that lie on their side or
stand on their head 0.9 to 0.998 too, where upright ones have 0.99 to 1; softened (Guo et al., "On Calibration of
Modern Neural Networks", 2017) they are told apart by the limits that `services.face_prep.face` has for BlazeFace: of 68
photos with a face, laid on one side, on their head and on the other, it set 67, 66 and 64 upright; 66, 67 and 67 with
BlazeFace."""
NMS_IOU: Final = 0.4
"""Of detections that overlap more than this the surest is kept."""
MOST_LEAN_DEG: Final = 45.0
"""A face that leans further is left to the caller's quarter turns, as BlazeFace leaves it."""


class RetinaFace:
    """Finds upright faces, tilted by up to 45 degrees, in the place of `FaceDetector`.

    Quarter turns are the caller's to try. The boxes are those of S3FD's kind, from the hairline to the chin.
    """

    def __init__(self, models: Path, device: str = "CPU") -> None:
        """Load the network.

        Args:
            models: folder that holds ``retinaface_mobilenet.xml`` and ``.bin``.
            device: OpenVINO device.

        Raises:
            NetworkError: the files are missing or cannot be loaded, or hold another network.
        """
        path = models / FILE
        remedy = "Convert the published weights: scripts/convert_detector mobilenet.pth"
        for each in (path, path.with_suffix(".bin")):
            if not each.is_file():
                raise NetworkError(f"{each} is missing. {remedy}; or set MOUTHPIECE_DETECTOR=blazeface.")
        self._anchors = anchors(SIDE_PX)
        try:
            self._network = Network(path, device, input_shape=(1, 3, SIDE_PX, SIDE_PX))
            shapes = [output.shape[1:] for output in self._network.run(np.zeros((1, 3, SIDE_PX, SIDE_PX), np.float32))]
        except RuntimeError as error:
            reason = str(error).rpartition("OpenVINO says: ")[2]
            raise NetworkError(
                f"{path} cannot be loaded on {device}. {remedy}, or choose another device; OpenVINO says: {reason}"
            ) from error
        if shapes != [(len(self._anchors), values) for values in (4, 2, 10)]:
            raise NetworkError(f"{path} holds another network than RetinaFace. {remedy}")

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

        First the whole picture; then with a broad margin, for a face that fills it or is cut at its edges; last, of a
        picture larger than the network's input, overlapping tiles in its own resolution, for small faces.

        Args:
            bgr: (h, w, 3), uint8.

        Yields:
            largest first, at most `MAX_FACES`; empty when this search found none.
        """
        yield _ranked(self._look(bgr))
        border = round(MARGIN * max(bgr.shape[:2]))
        padded = np.asarray(cv2.copyMakeBorder(bgr, border, border, border, border, cv2.BORDER_CONSTANT), np.uint8)
        yield _ranked([face.moved(-border, -border) for face in self._look(padded)])
        yield _ranked([face.moved(x, y) for tile, x, y in _tiles(bgr) for face in self._look(tile)])

    def _look(self, bgr: Pixels) -> list[Detection]:
        """Find faces in one picture, laid in the corner of the square input; overlaps are not yet merged."""
        height, width = bgr.shape[:2]
        scale = min(1.0, SIDE_PX / max(height, width))
        inner_w, inner_h = max(1, round(width * scale)), max(1, round(height * scale))
        values = np.zeros((1, 3, SIDE_PX, SIDE_PX), np.float32)
        small = cv2.resize(bgr, (inner_w, inner_h), interpolation=cv2.INTER_AREA).astype(np.float32)
        values[0, :, :inner_h, :inner_w] = (small - np.array(MEAN_BGR, np.float32)).transpose(2, 0, 1)
        offsets, classes, marks = (output[0] for output in self._network.run(values))
        kept = np.flatnonzero(classes[:, 1] > LEAST_PROBABILITY)
        # The probability of background is small but not rounded to 0, as 1 less that of the face would be.
        scores = 1.0 / (1.0 + (np.maximum(classes[kept, 0], 1e-30) / classes[kept, 1]) ** (1.0 / TEMPERATURE))
        boxes, points = decode(offsets[kept], marks[kept], self._anchors[kept])
        to_photo = np.array([width / inner_w, height / inner_h], np.float32)
        return [
            Detection((box.reshape(2, 2) * to_photo).reshape(4), _keypoints(five, box) * to_photo, float(score))
            for box, five, score in zip(boxes, points, scores, strict=True)
        ]


def anchors(side_px: int) -> Floats:
    """Lay the anchors over a square input.

    Args:
        side_px: side of the input, a multiple of 32.

    Returns:
        x and y of the centre and length of a side, px, in the order of the network's outputs, (n, 3).
    """
    rows = []
    for stride, sizes in LAYERS:
        middles = (np.arange(side_px // stride, dtype=np.float32) + 0.5) * stride
        y, x, size = np.meshgrid(middles, middles, np.array(sizes, np.float32), indexing="ij")
        rows.append(np.stack([x.ravel(), y.ravel(), size.ravel()], axis=1))
    return np.concatenate(rows)


def decode(offsets: Floats, marks: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Turn offsets from anchors into pixels.

    Args:
        offsets: x and y of the centre, width and height, (n, 4).
        marks: x and y of five points, (n, 10).
        at: the anchors, as `anchors` gives them, (n, 3).

    Returns:
        boxes x1, y1, x2, y2 (n, 4) and points (n, 5, 2), px of the input.
    """
    centre, size = at[:, :2], at[:, 2:]
    middle = centre + CENTRE_STEP * size * offsets[:, :2]
    half = size * np.exp(SIZE_STEP * offsets[:, 2:]) / 2
    points = centre[:, None] + CENTRE_STEP * size[:, None] * marks.reshape(-1, 5, 2)
    return np.concatenate([middle - half, middle + half], axis=1), points


def _keypoints(five: Floats, box: Floats) -> Floats:
    """Make the six points of a `Detection` of eyes, nose and corners of the mouth.

    The mouth is the middle of its corners. RetinaFace knows no ears: they are put at the sides of the box, level with
    the eyes, and are good for no more than a rough guess.
    """
    eyes, mouth = five[:2].mean(axis=0), five[3:].mean(axis=0)
    down = (mouth - eyes) / max(float(np.hypot(*(mouth - eyes))), 1e-6)
    middle = (box[:2] + box[2:]) / 2
    level = middle + down * float((eyes - middle) @ down)
    right = np.array([-down[1], down[0]], np.float32) * (box[2] - box[0]) / 2
    return np.stack([five[0], five[1], five[2], mouth, level + right, level - right]).astype(np.float32)


def _lean_deg(face: Detection) -> float:
    """Angle from eyes to mouth against the vertical, -180..180, clockwise; that of the eyes fails in a profile."""
    down = face.keypoints[3] - face.keypoints[:2].mean(axis=0)
    return float(np.degrees(np.arctan2(-down[0], down[1])))


def _ranked(found: list[Detection]) -> list[Detection]:
    """Take each face once and leave out those that are not upright, largest first."""
    boxes = [(*face.box[:2].tolist(), *(face.box[2:] - face.box[:2]).tolist()) for face in found]
    kept = [found[k] for k in cv2.dnn.NMSBoxes(boxes, [face.score for face in found], 0.0, NMS_IOU)]
    upright = [face for face in kept if abs(_lean_deg(face)) <= MOST_LEAN_DEG]
    return sorted(upright, key=lambda face: face.area, reverse=True)[:MAX_FACES]


def _tiles(bgr: Pixels) -> Iterator[tuple[Pixels, int, int]]:
    """Cut a picture larger than the input into tiles of that size; each with its left and top edge."""
    height, width = bgr.shape[:2]
    if max(height, width) > SIDE_PX:
        for y in _starts(height):
            for x in _starts(width):
                yield np.ascontiguousarray(bgr[y : y + SIDE_PX, x : x + SIDE_PX]), x, y


def _starts(length: int) -> list[int]:
    """Where tiles begin that overlap by a quarter or more."""
    steps = max(0, math.ceil((length - SIDE_PX) / (SIDE_PX * 3 / 4)))
    return [round(step * (length - SIDE_PX) / max(steps, 1)) for step in range(steps + 1)]
