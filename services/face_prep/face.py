"""From the bytes of a photo to a prepared face: found, measured and masked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from services.face_prep.detector import Detection, FaceDetector, iou
from services.face_prep.image import decode, read_header
from services.face_prep.landmarks import FaceMesh, Landmarks
from services.face_prep.retinaface import RetinaFace
from shared.messages import Face

__all__ = ["MIN_FACE_PX", "FaceError", "FaceMaker", "box_of_landmarks", "mouth_mask"]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

MIN_FACE_PX: Final = 24
"""Least width and height of a face that can be moved, px of the scaled photo."""
BELIEVED: Final = 0.9
"""Least FaceMesh score of a face, in the detector's crop and in its own. Faces of people have 0.99 or more; a space
helmet, a coffee cup and a cat, which the detector took for faces, 0.77, 0.70 and 0.12 in the first."""
BELIEVED_IN_HAND_BOX: Final = 0.3
"""The same inside a box that a person drew: the person has said that it is a face."""
SAME_IOU: Final = 0.5
"""Boxes that overlap more than this show one face."""
TILTED_DEG: Final = 50.0
"""A face that leans further than this may lie on its side."""
UPRIGHT_SCORE: Final = 0.9
"""Below this detector score a face may stand on its head. Of 37 photos upright faces had 0.84 to 0.97, the same ones
upside down at most 0.84 and always less by 0.06 or more, on their side at most 0.90."""
UPRIGHT_MARGIN: Final = 0.03
"""The detector must be surer by this in a turned photo."""

BOX_SIDE: Final = 0.006
BOX_TOP: Final = -0.116
BOX_BOTTOM: Final = 0.015
"""Shares of the width and height of the points' extent; see `box_of_landmarks`."""

# FaceMesh numbers. The names are the person's own sides.
FOREHEAD, CHIN = 10, 152
JAW: Final = (93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323)
"""from beside the right ear under the chin to beside the left ear"""
UNDER_NOSE_AND_CHEEKS: Final = (323, 411, 425, 426, 327, 2, 98, 206, 205, 187, 93)
"""back over the cheeks and under the nose"""
LIPS: Final = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409)
"""outer contour of the lips"""
EYES: Final = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
"""outlines of the right and the left eye"""


class FaceError(ValueError):
    """No face can be made of the photo; the text tells a person what is wrong and what to try."""

    def __init__(self, code: Literal["no_face", "bad_box"], text: str) -> None:
        super().__init__(text)
        self.code: Final = code


@dataclass(frozen=True)
class _Found:
    """A face that FaceMesh has confirmed."""

    landmarks: Landmarks
    box: Floats
    """as the engines want it, cut to the photo, (4,), px"""
    score: float
    """how sure the detector was, 0..1"""


class FaceMaker:
    """Makes faces of photos. Holds the networks; one call at a time."""

    def __init__(self, models: Path, device: str = "CPU", detector: str = "blazeface") -> None:
        """Load the networks.

        Args:
            models: folder of the TFLite files, and of the converted RetinaFace if that is wanted.
            device: OpenVINO device.
            detector: what finds the faces, "blazeface" or "retinaface".

        Raises:
            NetworkError: a file is missing or cannot be loaded.
        """
        self._detector: FaceDetector | RetinaFace = (
            RetinaFace(models, device) if detector == "retinaface" else FaceDetector(models, device)
        )
        self._mesh = FaceMesh(models, device)

    def make(
        self, face_id: str, data: bytes, *, index: int = 0, box: Box | None = None, max_side_px: int = 1280
    ) -> Face:
        """Prepare a face.

        A photo whose faces lie on their side or stand on their head is turned by quarter turns until the chosen one is
        upright; all that is returned is in pixels of that turned photo.

        Args:
            face_id: name under which it will be known.
            data: the bytes of a JPEG, PNG or WebP file.
            index: which face, largest first.
            box: x1, y1, x2, y2 of the face drawn by hand, px of the photo after EXIF orientation and before
                scaling; the search is left out and ``index`` is not looked at.
            max_side_px: the photo is scaled down until its longer side has this length.

        Raises:
            ImageError: the bytes are no photo that can be used.
            FaceError: no face was found, or not that many; or the box makes no sense.
        """
        photo = decode(data, max_side_px)
        if box is not None:
            width, _ = read_header(data).turned_size
            edges = _checked(box, read_header(data).turned_size) * np.float32(photo.shape[1] / width)
            return self._finish(face_id, photo, [_Found(self._inside(photo, edges), edges, 1.0)], 0)
        photo, found = self._find(photo, index)
        return self._finish(face_id, photo, found, index)

    def _find(self, photo: Pixels, index: int) -> tuple[Pixels, list[_Found]]:
        found: list[_Found] = []
        for detections in self._detector.searches(photo):
            found = self._confirm(photo, detections)
            if found:
                break
        chosen = found[min(index, len(found) - 1)] if found else None
        if chosen is None or chosen.score < UPRIGHT_SCORE or abs(_lean_deg(chosen.landmarks)) > TILTED_DEG:
            for quarter in self._better_quarters(photo, chosen):
                turned = np.ascontiguousarray(np.rot90(photo, quarter))
                upright = self._confirm(turned, next(self._detector.searches(turned)))
                if len(upright) > min(index, max(len(found) - 1, 0)):
                    return turned, upright
        if not found:
            raise FaceError(
                "no_face",
                "No face was found in this photo. Try one in which a face looks towards the camera, well lit and "
                "uncovered; or draw a box around the face by hand.",
            )
        return photo, found

    def _better_quarters(self, photo: Pixels, chosen: _Found | None) -> list[int]:
        """Quarter turns (as `numpy.rot90`) in which the detector sees the chosen face, or any, more surely; best first.

        FaceMesh cannot tell: it lays a face over one that stands on its head too, mouth on forehead, and is sure of it.
        """
        better: list[tuple[float, int]] = []
        # FaceMesh is right about a face that lies on its side, so one that it sees upright is upright or upside down.
        quarters = (1, 2, 3) if chosen is None or abs(_lean_deg(chosen.landmarks)) > TILTED_DEG else (2,)
        for quarter in quarters:
            seen = next(self._detector.searches(np.ascontiguousarray(np.rot90(photo, quarter))))
            if chosen is not None:
                x, y = _turned_middle(chosen.box, photo, quarter)
                seen = [face for face in seen if face.box[0] < x < face.box[2] and face.box[1] < y < face.box[3]]
            score = max((face.score for face in seen), default=0.0)
            if score > (0.0 if chosen is None else chosen.score + UPRIGHT_MARGIN):
                better.append((score, quarter))
        return [quarter for _, quarter in sorted(better, reverse=True)]

    def _confirm(self, photo: Pixels, detections: list[Detection]) -> list[_Found]:
        """Keep the detections in which FaceMesh sees a face too, each once, largest first."""
        found: list[_Found] = []
        for detection in detections:
            rough = self._mesh.rough(photo, detection)
            if rough.score < BELIEVED:
                continue
            landmarks = self._mesh.refined(photo, rough)
            box = _clipped(box_of_landmarks(landmarks.points), photo)
            if landmarks.score >= BELIEVED and not any(iou(box, other.box) > SAME_IOU for other in found):
                found.append(_Found(landmarks, box, detection.score))
        found.sort(key=lambda face: float(np.prod(face.box[2:] - face.box[:2])), reverse=True)
        return found

    def _inside(self, photo: Pixels, box: Floats) -> Landmarks:
        """Find landmarks in a box drawn by hand."""
        width, height = box[2:] - box[:2]
        # What the detector sees in and around the box gives the tilt; where it sees nothing three tilts are tried.
        left, top = np.maximum(box[:2] - 0.5 * np.array([width, height]), 0).astype(int)
        right, bottom = (box[2:] + 0.5 * np.array([width, height])).astype(int)
        seen = [
            face.moved(left, top) for face in self._detector.detect(np.ascontiguousarray(photo[top:bottom, left:right]))
        ]
        starts = [face for face in seen if iou(face.box, box) > 0.3]
        starts += [_guess(box, roll) for roll in (0.0, -25.0, 25.0)]
        best: Landmarks | None = None
        for start in starts:
            landmarks = self._mesh.refined(photo, self._mesh.rough(photo, start))
            if _sits_in(landmarks.points, box) and (best is None or landmarks.score > best.score):
                best = landmarks
        if best is None or best.score < BELIEVED_IN_HAND_BOX:
            raise FaceError(
                "no_face",
                "Eyes and mouth cannot be made out inside this box. Draw it from the eyebrows to the chin and from "
                "cheek to cheek, or try a photo in which the face is clearer.",
            )
        return best

    def _finish(self, face_id: str, photo: Pixels, found: list[_Found], index: int) -> Face:
        if not 0 <= index < len(found):
            faces = "only one face was" if len(found) == 1 else f"only {len(found)} faces were"
            raise FaceError("no_face", f"Face number {index + 1} was asked for, but {faces} found in this photo.")
        chosen = found[index]
        width, height = chosen.box[2:] - chosen.box[:2]
        if min(width, height) < MIN_FACE_PX:
            raise FaceError(
                "no_face",
                f"The face is only {round(float(width))} x {round(float(height))} pixels large. Please cut the photo "
                f"around it, or take one in which the face has at least {MIN_FACE_PX}.",
            )
        landmarks = self._mesh.steady(photo, chosen.landmarks)
        mask, mask_x, mask_y = mouth_mask(landmarks.points, photo.shape[1], photo.shape[0])
        x1, y1, x2, y2 = (round(float(edge)) for edge in chosen.box)
        return Face(
            face=face_id,
            index=index,
            box=(x1, y1, x2, y2),
            mask_x=mask_x,
            mask_y=mask_y,
            photo=photo,
            landmarks=landmarks.points,
            mask=mask,
            boxes=np.stack([face.box for face in found]).astype(np.float32),
        )


def box_of_landmarks(points: Floats) -> Floats:
    """Face box in the convention of the S3FD boxes that Wav2Lip was trained on, from FaceMesh points.

    The extent of the points, its top raised to the hairline or nearly so. S3FD was trained on WIDER FACE, as were
    YuNet and SCRFD, so the mean of their boxes stands for the truth here. The three shares were fitted on 30 photos
    (41 faces) and measured on 29 others (36 faces): IoU mean 0.923, median 0.930, worst 0.770, where YuNet and SCRFD
    reach 0.889 between themselves; mean distance of an edge, in % of the box: left 1.9, top 2.9, right 1.8, bottom 1.8.
    ``scripts/measure_face_box PHOTO_DIR WEIGHTS_DIR`` measures it again.

    Args:
        points: px, (468, 3).

    Returns:
        x1, y1, x2, y2, px, (4,); it may reach over the edge of the photo.
    """
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    width, height = high - low
    return np.array(
        [
            low[0] + BOX_SIDE * width,
            low[1] + BOX_TOP * height,
            high[0] - BOX_SIDE * width,
            high[1] + BOX_BOTTOM * height,
        ],
        np.float32,
    )


def mouth_mask(points: Floats, width: int, height: int) -> tuple[Pixels, int, int]:
    """Draw the part of the photo that may move when the face speaks.

    It reaches from under the nose over the cheeks to a little below the chin, where an opening jaw goes, is 255 on the
    lips and falls smoothly to 0 at its edge. Both eyes are 0.

    Args:
        points: FaceMesh points, px, (468, 3).
        width: of the photo, px.
        height: of the photo, px.

    Returns:
        mask (h, w) of its bounding rectangle within the photo, and the left and top edge of that, px.

    Raises:
        FaceError: the mouth lies outside the photo.
    """
    xy = points[:, :2].astype(np.float64)
    lips = xy[list(LIPS)]
    if (lips < 0).any() or (lips[:, 0] > width - 1).any() or (lips[:, 1] > height - 1).any():
        raise FaceError(
            "no_face", "The mouth reaches over the edge of the photo. Please take one that shows the whole face."
        )
    down = xy[CHIN] - xy[FOREHEAD]
    length = float(np.hypot(*down))
    down /= length
    feather = 0.07 * length

    # The jaw line grows outwards by the soft edge, and at the chin by as much again as the jaw may drop.
    jaw = xy[list(JAW)]
    outward = jaw - xy[list(UNDER_NOSE_AND_CHEEKS)].mean(axis=0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    drop = np.clip(outward @ down, 0.0, 1.0)[:, None] ** 2
    jaw = jaw + outward * (0.4 * feather) + down * (drop * 0.09 * length)
    outline = np.concatenate([jaw, xy[list(UNDER_NOSE_AND_CHEEKS[1:-1])]])

    # In a profile the outline passes behind the lips: their own surroundings belong to the mask in any case.
    reach = 1.0 + 1.1 * feather
    low = np.floor(np.minimum(outline.min(axis=0), lips.min(axis=0) - reach)).astype(int) - 1
    high = np.ceil(np.maximum(outline.max(axis=0), lips.max(axis=0) + reach)).astype(int) + 2
    drawn = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)

    def fixed(at: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        return np.asarray(np.round((at - low) * 16), np.int32)

    cv2.fillPoly(drawn, [fixed(outline)], 255, shift=4)
    hull = cv2.convexHull(fixed(lips))
    cv2.fillPoly(drawn, [hull], 255, shift=4)
    cv2.polylines(drawn, [hull], isClosed=True, color=255, thickness=2 * math.ceil(reach), shift=4)
    for eye in EYES:
        cv2.fillConvexPoly(drawn, cv2.convexHull(fixed(xy[list(eye)])), 0, shift=4)
    inside = cv2.distanceTransform(drawn, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.clip(np.asarray(inside) / feather, 0.0, 1.0)
    soft = share * share * (3.0 - 2.0 * share)
    # Cut to the photo only now, so that its edge is no edge of the mask.
    x1, y1 = (int(edge) for edge in np.maximum(low, 0))
    x2, y2 = (int(edge) for edge in np.minimum(high, (width, height)))
    cut = soft[y1 - low[1] : y2 - low[1], x1 - low[0] : x2 - low[0]]
    return np.round(255.0 * cut).astype(np.uint8), x1, y1


def _lean_deg(landmarks: Landmarks) -> float:
    """Angle from forehead to chin against the vertical, -180..180, clockwise."""
    down = landmarks.points[CHIN, :2] - landmarks.points[FOREHEAD, :2]
    return float(np.degrees(np.arctan2(-down[0], down[1])))


def _turned_middle(box: Floats, photo: Pixels, quarter: int) -> tuple[float, float]:
    """Where the middle of a box goes when the photo is turned by `numpy.rot90`."""
    height, width = photo.shape[:2]
    x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    return ((x, y), (y, width - x), (width - x, height - y), (height - y, x))[quarter]


def _checked(box: Box, size: tuple[int, int]) -> Floats:
    """Check a box drawn by hand against the size of the photo and cut it to that."""
    width, height = size
    x1, y1, x2, y2 = box
    cut = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    if cut[2] - cut[0] < MIN_FACE_PX or cut[3] - cut[1] < MIN_FACE_PX:
        raise FaceError(
            "bad_box",
            f"The box {x1}, {y1}, {x2}, {y2} (left, top, right, bottom) does not hold at least {MIN_FACE_PX} x "
            f"{MIN_FACE_PX} pixels of the photo, which has {width} x {height}. Please draw it around the face.",
        )
    return np.array(cut, np.float32)


def _clipped(box: Floats, photo: Pixels) -> Floats:
    height, width = photo.shape[:2]
    return np.clip(box, 0, np.array([width, height, width, height])).astype(np.float32)


def _guess(box: Floats, roll_deg: float) -> Detection:
    """Make a detection of a box alone, with the eyes at a given tilt."""
    middle, width = (box[:2] + box[2:]) / 2, float(box[2] - box[0])
    roll = np.radians(roll_deg)
    half = 0.2 * width * np.array([np.cos(roll), np.sin(roll)], np.float32)
    keypoints = np.stack([middle - half, middle + half, middle, middle, middle, middle]).astype(np.float32)
    return Detection(box, keypoints, 1.0)


def _sits_in(points: Floats, box: Floats) -> bool:
    """Whether landmarks are about as large as the box that they were looked for in, and in its middle."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    middle, size = (low + high) / 2, high - low
    ratio = size / (box[2:] - box[:2])
    within = (middle > box[:2]).all() and (middle < box[2:]).all()
    return bool(within and (ratio > 0.4).all() and (ratio < 2.5).all())
