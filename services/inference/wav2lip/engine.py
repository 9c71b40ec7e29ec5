"""The engine `wav2lip`: a converted Wav2Lip network under OpenVINO.

K R Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In The Wild", ACM Multimedia 2020.
The network sees 0.2 s of mel frames, the face with its lower half blackened and the whole face, and draws the face anew
at 96 x 96. Padding, resizing and rounding are those of its published inference script, so the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from services.inference.engine import Drive, MelWindow, Rendered
from services.inference.wav2lip.network import (
    FACE_SIZE,
    LOWER_ROWS,
    MEL_BANDS,
    MEL_FLOOR,
    MEL_FRAMES,
    FacePart,
    Wav2LipNetwork,
)
from shared.messages import Face

__all__ = ["PADS", "Wav2LipEngine", "Wav2LipState", "lower_face", "mouth_mask"]

PADS: Final = (0, 10, 0, 0)
"""px added above, below, left and right of the face box"""
LEAST_BOX: Final = 16
"""shortest side of a face box within the photo, px"""
FEATHER: Final = 0.08
"""width of the mask's soft edge, share of the box's shorter side"""

Float32 = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Wav2LipState:
    """What depends on the face alone."""

    part: FacePart
    """the network's share of it"""
    closed: Float32
    """the lower half that the network draws in silence, (3, 48, 96), BGR 0..1"""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 of the crop on the photo, padded and clipped, px"""
    patch: tuple[int, int, int, int]
    """x1, y1, x2, y2 of what is returned of it, px on the photo"""
    mask: Pixels
    """share of the patch in the frame, (h, w), 0..255; 0 on the border and in the upper half of the face"""


class Wav2LipEngine:
    """Renders with a converted Wav2Lip.

    Args:
        model: a folder written by ``scripts/convert_model``, or a plain network (see `Wav2LipNetwork`).
        device: OpenVINO device: CPU, GPU, NPU or AUTO.
        precision: type in which the device computes; "auto" takes the fastest of those that are near enough.
        alignment: "training": frame i sees the mel window that begins with frame i - 1, as in training; "inference":
            with frame i, as in the published script.
        threads: processor threads; 0 leaves them to OpenVINO.

    Raises:
        ValueError: no such file, no such network or no such device; the text says what to do.
    """

    name = "wav2lip"

    def __init__(
        self,
        model: Path,
        device: str = "CPU",
        precision: str = "auto",
        alignment: Literal["training", "inference"] = "training",
        threads: int = 0,
    ) -> None:
        if alignment not in ("training", "inference"):
            raise ValueError(f"alignment {alignment!r}: must be training or inference")
        self.window = MelWindow(back=0, ahead=MEL_FRAMES, shift=-1 if alignment == "training" else 0)
        self.network = Wav2LipNetwork(model, device, precision, threads)
        self.info: Mapping[str, str] = {"precision": self.network.precision, "choice": self.network.choice}
        black = self.network.prepare(np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8))
        if not np.isfinite(self.network.draw_exactly(black, _silence())).all():
            raise ValueError(
                f"{model}: the network answers with numbers that are not finite on {device}; convert it again: "
                "scripts/convert_model"
            )

    def prepare(self, face: Face) -> Wav2LipState:
        """Crop the face, build its mask and draw it in silence.

        Args:
            face: a prepared face.

        Returns:
            what `render` needs of it.

        Raises:
            ValueError: the face box or the mouth mask leaves nothing on the photo to draw.
        """
        height, width = face.photo.shape[:2]
        top, bottom, left, right = PADS
        x1, y1 = max(0, face.box[0] - left), max(0, face.box[1] - top)
        x2, y2 = min(width, face.box[2] + right), min(height, face.box[3] + bottom)
        if x2 - x1 < LEAST_BOX or y2 - y1 < LEAST_BOX:
            raise ValueError(
                f"face box {face.box} covers less than {LEAST_BOX} x {LEAST_BOX} px of the photo, {width} x {height}; "
                "give a larger box or another photo"
            )
        box = (x1, y1, x2, y2)
        mask = lower_face(y2 - y1, x2 - x1)
        mask = np.rint(mask * mouth_mask(face, box)).astype(np.uint8)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            raise ValueError(
                f"the mouth mask does not meet the lower half of the face box {face.box}; give another box"
            )
        # One row and column more all round: 0 there, and inside the crop since its own border is 0.
        py1, py2 = int(rows[0]) - 1, int(rows[-1]) + 2
        px1, px2 = int(columns[0]) - 1, int(columns[-1]) + 2
        crop = cv2.resize(np.ascontiguousarray(face.photo[y1:y2, x1:x2]), (FACE_SIZE, FACE_SIZE)).astype(np.uint8)
        (part,) = self.network.prepare(crop[None])
        return Wav2LipState(
            part=part,
            closed=self.network.draw_exactly([part], _silence())[0],
            box=box,
            patch=(x1 + px1, y1 + py1, x1 + px2, y1 + py2),
            mask=np.ascontiguousarray(mask[py1:py2, px1:px2]),
        )

    def render(self, states: Sequence[Wav2LipState], drives: Sequence[Drive]) -> list[Rendered]:
        """Render a batch.

        Args:
            states: prepared faces; they may differ.
            drives: one for each; its mel window is (80, 16). A gain of 0 gives the face of silence, between 0
                and 1 a blend of both.

        Returns:
            one patch for each, in order.

        Raises:
            ValueError: lists of different length, or a mel window of another shape.
        """
        if len(states) != len(drives):
            raise ValueError(f"{len(states)} faces for {len(drives)} mel windows: must be as many")
        for drive in drives:
            if drive.mel.shape != (MEL_BANDS, MEL_FRAMES):
                raise ValueError(f"mel window of shape {drive.mel.shape}: must be {(MEL_BANDS, MEL_FRAMES)}")
        speaking = [k for k, drive in enumerate(drives) if drive.gain > 0.0]
        drawn = [state.closed for state in states]
        if speaking:
            mels = np.stack([drives[k].mel for k in speaking]).astype(np.float32, copy=False)
            talking = self.network.draw_exactly([states[k].part for k in speaking], mels)
            for k, picture in zip(speaking, talking, strict=True):
                gain = np.float32(min(1.0, drives[k].gain))
                drawn[k] = picture if gain == 1.0 else states[k].closed + gain * (picture - states[k].closed)
        return [_lay_out(state, picture) for state, picture in zip(states, drawn, strict=True)]


def _silence() -> Float32:
    return np.full((1, MEL_BANDS, MEL_FRAMES), MEL_FLOOR, np.float32)


def _lay_out(state: Wav2LipState, drawn: Float32) -> Rendered:
    """Bring a drawn face to the size of its box; the published script cuts the fraction off, not rounds it."""
    x1, y1, x2, y2 = state.box
    px1, py1, px2, py2 = state.patch
    pixels = state.part.crop.copy()
    pixels[-LOWER_ROWS:] = np.clip(drawn.transpose(1, 2, 0) * np.float32(255.0), 0, 255).astype(np.uint8)
    image = cv2.resize(pixels, (x2 - x1, y2 - y1))[py1 - y1 : py2 - y1, px1 - x1 : px2 - x1]
    return Rendered(x=px1, y=py1, image=np.ascontiguousarray(image, dtype=np.uint8), mask=state.mask)


def lower_face(height: int, width: int) -> npt.NDArray[np.float64]:
    """The half of the face that is drawn from sound, (h, w): 1 inside, 0 above the middle and on the border."""
    soft = max(2.0, FEATHER * min(height, width))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    inside = np.minimum(np.minimum(rows - height // 2, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    ramp = np.clip(inside / soft, 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp), np.float64)


def mouth_mask(face: Face, box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """The face's own mouth mask on the crop, (h, w), 0 where it does not reach."""
    x1, y1, x2, y2 = box
    laid = np.zeros((y2 - y1, x2 - x1), np.uint8)
    height, width = face.mask.shape
    left, right = max(x1, face.mask_x), min(x2, face.mask_x + width)
    top, bottom = max(y1, face.mask_y), min(y2, face.mask_y + height)
    if left < right and top < bottom:
        laid[top - y1 : bottom - y1, left - x1 : right - x1] = face.mask[
            top - face.mask_y : bottom - face.mask_y, left - face.mask_x : right - face.mask_x
        ]
    return laid
