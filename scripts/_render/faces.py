"""Where the face is in each frame of a video: found, followed, padded, smoothed, and kept for the next run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from scripts._render.video import RenderError
from services.face_prep.detector import FaceDetector, iou
from services.face_prep.face import BELIEVED, MIN_FACE_PX, SAME_IOU, box_of_landmarks
from services.face_prep.landmarks import FaceMesh, Landmarks

__all__ = ["Box", "BoxStore", "Choice", "Follower", "checked_box", "choose", "padded", "smoothed"]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
"""x1, y1, x2, y2, px"""

WINDOW: Final = 5
"""frames over whose boxes the mean is taken, as published"""
LOOK_EVERY: Final = 10
"""A face that is followed is looked for anew after so many frames, to be sure of it."""
LOST_AFTER: Final = 12
"""After so many frames without the face another one may be taken."""
SEARCH_EVERY: Final = 12
"""While there is no face, only one frame in so many is searched for small and cut ones too."""
CUT_LEVELS: Final = 28.0
"""Mean difference of two neighbouring frames, grey levels, from which they are two scenes."""
THUMB: Final = 32
LEAST_SIDE: Final = 16
"""Shortest side of a box that can be drawn on, px."""
STORED_FORMAT: Final = 1
MOST_STORED: Final = 100


@dataclass(frozen=True)
class Choice:
    """Which face, when there are several."""

    index: int = 0
    """largest first"""
    at: tuple[float, float] | None = None
    """x, y, px: the one nearest to it; ``index`` is then not looked at"""


def choose(boxes: Sequence[npt.NDArray[np.floating] | Box], choice: Choice) -> int | None:
    """Choose one of the faces of a picture.

    Args:
        boxes: largest first, each (4,).
        choice: which.

    Returns:
        its number; None when there are not that many.
    """
    if choice.at is None:
        return choice.index if choice.index < len(boxes) else None
    x, y = choice.at
    away = [float(np.hypot((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)) for box in boxes]
    return int(np.argmin(away)) if away else None


class Follower:
    """Finds the face in one frame after the other, always the same one.

    FaceMesh follows it from frame to frame; now and then, at a cut and whenever FaceMesh is in doubt, the detector
    looks at the whole frame. Every box is that of the frame's own landmarks, in the convention of S3FD.

    Args:
        models: folder of the face networks.
        device: OpenVINO device.
        choice: which face to begin with, and to take after a cut.

    Raises:
        NetworkError: a network is missing or cannot be loaded.
    """

    def __init__(self, models: Path, device: str, choice: Choice) -> None:
        self._detector = FaceDetector(models, device)
        self._mesh = FaceMesh(models, device)
        self._choice = choice
        self._face: Landmarks | None = None
        self._box: Floats | None = None
        self._thumb: Floats | None = None
        self._missed = 0
        self._since_look = 0

    def find(self, frame: Pixels) -> Box | None:
        """Find the face in the next frame.

        Args:
            frame: BGR, (h, w, 3).

        Returns:
            its box, cut to the frame; None when it is not there.
        """
        if self._is_cut(frame):
            self._face = self._box = None
            self._missed = 0
        found = self._follow(frame)
        if found is None:
            found = self._look(frame)
        self._face = found
        if found is None:
            self._missed += 1
            if self._missed >= LOST_AFTER:
                self._box = None
            return None
        self._missed = 0
        self._box = box_of_landmarks(found.points)
        return _whole(self._box, frame)

    def _is_cut(self, frame: Pixels) -> bool:
        small = cv2.resize(frame, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
        thumb = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.float32)
        before, self._thumb = self._thumb, thumb
        return before is not None and float(np.abs(thumb - before).mean()) > CUT_LEVELS

    def _follow(self, frame: Pixels) -> Landmarks | None:
        """Find the points where they were a frame ago; None when in doubt or when it is time to look again."""
        self._since_look += 1
        if self._face is None or self._box is None or self._since_look >= LOOK_EVERY:
            return None
        found = self._mesh.refined(frame, self._face)
        sure = found.score >= BELIEVED and iou(box_of_landmarks(found.points), self._box) > SAME_IOU
        return found if sure else None

    def _look(self, frame: Pixels) -> Landmarks | None:
        """Search the whole frame for the face that is followed, or for the one that was chosen."""
        self._since_look = 0
        deep = self._box is not None or self._missed % SEARCH_EVERY == 0
        for detections in self._detector.searches(frame):
            faces: list[tuple[Floats, Landmarks]] = []
            for detection in detections:
                rough = self._mesh.rough(frame, detection)
                landmarks = self._mesh.refined(frame, rough) if rough.score >= BELIEVED else rough
                box = box_of_landmarks(landmarks.points)
                if landmarks.score >= BELIEVED and not any(iou(box, other) > SAME_IOU for other, _ in faces):
                    faces.append((box, landmarks))
            faces.sort(key=lambda face: float(np.prod(face[0][2:] - face[0][:2])), reverse=True)
            taken = self._pick([box for box, _ in faces])
            if taken is not None:
                return faces[taken][1]
            if faces or not deep:
                break
        return None

    def _pick(self, boxes: list[Floats]) -> int | None:
        """Take the face that is followed: one as large as it, no further than its own size from where it was."""
        if self._box is None:
            return choose(boxes, self._choice)
        middle, size = (self._box[:2] + self._box[2:]) / 2, self._box[2:] - self._box[:2]
        near = []
        for number, box in enumerate(boxes):
            away = np.abs((box[:2] + box[2:]) / 2 - middle) / size
            ratio = (box[2:] - box[:2]) / size
            if away.max() < 1.0 and ratio.min() > 0.5 and ratio.max() < 2.0:
                near.append((float(away.max()), number))
        return min(near)[1] if near else None


def _whole(box: Floats, frame: Pixels) -> Box | None:
    height, width = frame.shape[:2]
    x1, y1, x2, y2 = (round(float(edge)) for edge in np.clip(box, 0, np.array([width, height, width, height])))
    return (x1, y1, x2, y2) if min(x2 - x1, y2 - y1) >= MIN_FACE_PX else None


def padded(box: Box, pads: tuple[int, int, int, int], size: tuple[int, int]) -> Box:
    """Pad a box, within its picture, as the published script does.

    Args:
        box: of the face.
        pads: px above, below, left and right; negative ones take away.
        size: width and height of the picture, px.

    Raises:
        RenderError: nothing that could be drawn on is left.
    """
    top, bottom, left, right = pads
    x1, y1 = max(0, box[0] - left), max(0, box[1] - top)
    x2, y2 = min(size[0], box[2] + right), min(size[1], box[3] + bottom)
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        raise RenderError(
            f"--pads {' '.join(map(str, pads))} (top bottom left right) leaves less than {LEAST_SIDE} x {LEAST_SIDE} "
            f"pixels of a face of {box[2] - box[0]} x {box[3] - box[1]}; give larger ones"
        )
    return x1, y1, x2, y2


def checked_box(edges: tuple[int, int, int, int], size: tuple[int, int]) -> Box:
    """Check a box given by hand and bring its edges into our order.

    Args:
        edges: top, bottom, left, right, as in the published script, px.
        size: width and height of the picture, px.

    Raises:
        RenderError: it is empty or reaches out of the picture.
    """
    top, bottom, left, right = edges
    width, height = size
    if not (0 <= top <= bottom - LEAST_SIDE <= height - LEAST_SIDE) or not (
        0 <= left <= right - LEAST_SIDE <= width - LEAST_SIDE
    ):
        raise RenderError(
            f"--box {' '.join(map(str, edges))} (top bottom left right) must lie in the picture, {width} x {height}, "
            f"and hold at least {LEAST_SIDE} x {LEAST_SIDE} pixels"
        )
    return left, top, right, bottom


def smoothed(boxes: Sequence[Box | None]) -> list[Box | None]:
    """Smooth boxes over time as published: each becomes the mean of itself and the next four, in order and in place.

    Near the end the window stays the last five, of which the first are smoothed already. The mean is cut off to whole
    pixels. A frame without a face, and a jump to where the box shares nothing with the one before (a cut), ends a
    sequence: those before and after it are smoothed each for itself. In the published script such frames cannot be.

    Args:
        boxes: one for each frame.

    Returns:
        as many.
    """
    out: list[Box | None] = list(boxes)
    first = 0
    for at in range(len(out) + 1):
        if at < len(out) and at > first and _continues(boxes[at - 1], boxes[at]):
            continue
        run = np.array([box for box in boxes[first:at] if box is not None], np.int64)
        for k in range(len(run)):
            window = run[max(0, len(run) - WINDOW) :] if k + WINDOW > len(run) else run[k : k + WINDOW]
            run[k] = np.mean(window, axis=0)
            x1, y1, x2, y2 = (int(edge) for edge in run[k])
            out[first + k] = (x1, y1, x2, y2)
        first = at
    return out


def _continues(before: Box | None, after: Box | None) -> bool:
    if before is None or after is None:
        return False
    return iou(np.array(before, np.float32), np.array(after, np.float32)) > 0


class BoxStore:
    """Boxes that were found, on disk, a file for each video and way of looking at it; the oldest leave.

    Args:
        folder: made when missing.
        video: the file that was looked at.
        options: what the boxes depend on besides it.
    """

    def __init__(self, folder: Path, video: Path, options: str) -> None:
        with video.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(options.encode())
        self.path: Final = folder / f"{digest.hexdigest()}.boxes.json"

    def load(self, count: int) -> list[Box | None] | None:
        """Read the boxes of the first frames.

        Args:
            count: how many frames are wanted.

        Returns:
            boxes of at most so many frames, fewer if the video has no more; None when they are not known.
        """
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            boxes = [None if box is None else _four(box) for box in stored["boxes"]]
            complete = bool(stored["complete"]) if stored["format"] == STORED_FORMAT else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # damaged, or of another version: it is made anew
        if complete is None:
            return None
        return boxes[:count] if complete or len(boxes) >= count else None

    def save(self, boxes: Sequence[Box | None], *, complete: bool) -> None:
        """Keep boxes.

        Args:
            boxes: of the first frames.
            complete: whether the video has no more frames.

        Raises:
            OSError: the disk is full or cannot be written; nothing half-written stays.
        """
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            with draft.open("w", encoding="utf-8") as file:
                json.dump({"format": STORED_FORMAT, "complete": complete, "boxes": list(boxes)}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
        kept = sorted(folder.glob("*.boxes.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[MOST_STORED:]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()


def _four(numbers: list[int]) -> Box:
    x1, y1, x2, y2 = numbers
    return int(x1), int(y1), int(x2), int(y2)
