"""The 468 FaceMesh points of one face.

Source: Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", 2019, and the crops
as published with the model (face_landmark, Apache-2.0): a square around the face, 1.5 times its box, turned so that
the eyes lie level.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.face_prep.detector import Detection
from services.face_prep.network import Network

__all__ = ["FaceMesh", "Landmarks"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

FILE: Final = "face_landmark.tflite"
INPUT_PX: Final = 192
ROOM: Final = 1.5
"""Side of the crop over the longer side of the face box."""
SPREAD: Final = ((1.0, 0.0, 0.0), (0.93, 0.02, 0.0), (1.07, -0.02, 0.0), (0.97, 0.0, 0.02), (1.03, 0.0, -0.02))
"""Crops of the steady pass: size, shift right and shift down, in lengths of the crop's side."""
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263


@dataclass(frozen=True)
class Landmarks:
    """The points of one face."""

    points: Floats
    """x, y and depth (smaller is nearer, 0 near the ears' plane), px of the photo, (468, 3)"""
    score: float
    """how sure the network is that its crop held a face, 0..1"""


@dataclass(frozen=True)
class _Crop:
    """A turned square of the photo."""

    x: float
    """centre, px"""
    y: float
    """centre, px"""
    side: float
    """length of a side, px"""
    angle: float
    """clockwise turn, radians"""

    def to_photo(self) -> npt.NDArray[np.float64]:
        """Affine matrix from pixels of the network's input to pixels of the photo, (2, 3)."""
        scale = self.side / INPUT_PX
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        middle = INPUT_PX / 2
        return np.array(
            [[cos, -sin, self.x - middle * (cos - sin)], [sin, cos, self.y - middle * (sin + cos)]],
        )


class FaceMesh:
    """The landmark network."""

    def __init__(self, models: Path, device: str = "CPU") -> None:
        """Load the network.

        Args:
            models: folder that holds the TFLite file.
            device: OpenVINO device.

        Raises:
            NetworkError: the file is missing or cannot be loaded.
        """
        self._network = Network(models / FILE, device)

    def rough(self, bgr: Pixels, face: Detection) -> Landmarks:
        """Find the points once, from the detector's box and eyes.

        Args:
            bgr: the photo, (h, w, 3), uint8.
            face: where it is.
        """
        return self._run(bgr, _crop_of_box(face.box, np.radians(face.roll_deg)))

    def refined(self, bgr: Pixels, landmarks: Landmarks) -> Landmarks:
        """Find the points anew in the crop that earlier ones give: the crop that the network was trained on.

        Args:
            bgr: the photo, (h, w, 3), uint8.
            landmarks: from `rough` or from here.
        """
        return self._run(bgr, _crop_of_points(landmarks.points))

    def steady(self, bgr: Pixels, landmarks: Landmarks) -> Landmarks:
        """Find the points in several crops around the right one and take the mean.

        Scatter of the points when 22 photos were scaled by 0.8 to 1.1, turned by up to 6 degrees and shifted (standard
        deviation, median photo, % of the distance between the outer corners of the eyes): `rough` 0.59, `refined` once
        0.28, twice 0.17, `refined` once and then this 0.11; on the lips alone 0.63, 0.31, 0.19, 0.12.

        Args:
            bgr: the photo, (h, w, 3), uint8.
            landmarks: from `refined`.

        Returns:
            mean points and mean score.
        """
        middle = _crop_of_points(landmarks.points)
        found = []
        for grow, right, down in SPREAD:
            x, y = middle.x + right * middle.side, middle.y + down * middle.side
            found.append(self._run(bgr, _Crop(x, y, grow * middle.side, middle.angle)))
        points = np.stack([each.points for each in found]).mean(axis=0, dtype=np.float64).astype(np.float32)
        return Landmarks(points, float(np.mean([each.score for each in found])))

    def _run(self, bgr: Pixels, crop: _Crop) -> Landmarks:
        matrix = crop.to_photo()
        # The photo is sampled bilinearly, which skips pixels when it shrinks by more than 2: take more samples and
        # average.
        fine = min(8, max(1, int(np.ceil(crop.side / INPUT_PX / 1.5))))
        sampling = matrix.copy()
        sampling[:, :2] /= fine
        sampling[:, 2] += matrix[:, :2].sum(axis=1) * (0.5 / fine - 0.5)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        picture = cv2.warpAffine(
            bgr, sampling, (INPUT_PX * fine, INPUT_PX * fine), flags=flags, borderMode=cv2.BORDER_CONSTANT
        )
        if fine > 1:
            picture = cv2.resize(picture, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_AREA)
        values = np.ascontiguousarray(picture[None, :, :, ::-1], np.float32) / np.float32(255)
        points, score = self._network.run(values)
        points = points.reshape(468, 3)
        on_photo = np.empty((468, 3), np.float32)
        on_photo[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        on_photo[:, 2] = points[:, 2] * (crop.side / INPUT_PX)
        logit = float(np.clip(score.ravel()[0], -60.0, 60.0))
        return Landmarks(on_photo, float(1.0 / (1.0 + np.exp(-logit))))


def _crop_of_box(box: Floats, angle: float) -> _Crop:
    side = ROOM * float(max(box[2] - box[0], box[3] - box[1]))
    return _Crop(float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2, side, angle)


def _crop_of_points(points: Floats) -> _Crop:
    eyes = points[LEFT_EYE_OUTER, :2] - points[RIGHT_EYE_OUTER, :2]
    angle = float(np.arctan2(eyes[1], eyes[0]))
    upright = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    level = points[:, :2] @ upright
    low, high = level.min(axis=0), level.max(axis=0)
    x, y = upright @ ((low + high) / 2)
    return _Crop(float(x), float(y), ROOM * float((high - low).max()), angle)
