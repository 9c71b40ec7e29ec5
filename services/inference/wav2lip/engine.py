"""The engine `wav2lip`: a converted Wav2Lip network under OpenVINO.

K R Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In The Wild", ACM Multimedia 2020.
The network sees 0.2 s of mel frames, the face with its lower half blackened and the whole face, and draws the face anew
at 96 x 96. Padding, resizing and rounding are those of its published inference script, so the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov

from services.inference.engine import Drive, MelWindow, Rendered
from shared.messages import Face

__all__ = ["Wav2LipEngine", "Wav2LipState"]

FACE_SIZE: Final = 96
MEL_BANDS: Final = 80
MEL_FRAMES: Final = 16
MEL_FLOOR: Final = -4.0
PADS: Final = (0, 10, 0, 0)
"""px added above, below, left and right of the face box"""
LEAST_BOX: Final = 16
"""shortest side of a face box within the photo, px"""
FEATHER: Final = 0.08
"""width of the mask's soft edge, share of the box's shorter side"""

AUDIO: Final = "audio_sequences"
FACES: Final = "face_sequences"
AUDIO_SHAPE: Final = (1, MEL_BANDS, MEL_FRAMES)
FACE_SHAPE: Final = (6, FACE_SIZE, FACE_SIZE)
OUTPUT_SHAPE: Final = (3, FACE_SIZE, FACE_SIZE)
REMEDY: Final = (
    "convert the official checkpoint with scripts/convert_model, or set MOUTHPIECE_MODEL to a converted Wav2Lip"
)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wav2LipState:
    """What depends on the face alone."""

    face: Float32
    """input of the network, (6, 96, 96), BGR 0..1: lower half black, then whole"""
    closed: Float32
    """the network's face in silence, (3, 96, 96), BGR 0..1"""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 of the crop on the photo, padded and clipped, px"""
    patch: tuple[int, int, int, int]
    """x1, y1, x2, y2 of what is returned of it, px on the photo"""
    mask: npt.NDArray[np.uint8]
    """share of the patch in the frame, (h, w), 0..255; 0 on the border and in the upper half of the face"""


class Wav2LipEngine:
    """Renders with a converted Wav2Lip.

    Args:
        model: OpenVINO IR (``.xml`` with its ``.bin``) or ``.onnx`` with the inputs ``audio_sequences`` (N, 1, 80, 16)
            and ``face_sequences`` (N, 6, 96, 96) and one output (N, 3, 96, 96).
        device: OpenVINO device: CPU, GPU, NPU or AUTO.
        precision: type in which the device computes; "auto" leaves the choice to it.
        alignment: "training": frame i sees the mel window that begins with frame i - 1, as in training; "inference":
            with frame i, as in the published script.

    Raises:
        ValueError: no such file, no such network or no such device; the text says what to do.
    """

    name = "wav2lip"

    def __init__(
        self,
        model: Path,
        device: str = "CPU",
        precision: Literal["auto", "f32", "bf16", "f16"] = "auto",
        alignment: Literal["training", "inference"] = "training",
    ) -> None:
        if alignment not in ("training", "inference"):
            raise ValueError(f"alignment {alignment!r}: must be training or inference")
        if precision not in ("auto", "f32", "bf16", "f16"):
            raise ValueError(f"precision {precision!r}: must be auto, f32, bf16 or f16")
        self.window = MelWindow(back=0, ahead=MEL_FRAMES, shift=-1 if alignment == "training" else 0)
        core = ov.Core()
        network = _read(core, model)
        self._batch = _check(network, model)
        hints = {} if precision == "auto" else {"INFERENCE_PRECISION_HINT": precision}
        try:
            self._compiled = core.compile_model(_in_float32(network), device, {"PERFORMANCE_HINT": "LATENCY", **hints})
        except RuntimeError as error:
            raise ValueError(
                f"{model}: the device {device!r} does not take this network with precision {precision}; "
                f"devices of this machine: {', '.join(core.available_devices)}. OpenVINO says: {_first_line(error)}"
            ) from error
        self._request = self._compiled.create_infer_request()
        drawn = self._run(np.zeros((1, *FACE_SHAPE), np.float32), np.full((1, *AUDIO_SHAPE), MEL_FLOOR, np.float32))
        if not np.isfinite(drawn).all():
            raise ValueError(f"{model}: the network answers with numbers that are not finite on {device}; {REMEDY}")

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
        mask = _lower_face(y2 - y1, x2 - x1)
        mask = np.rint(mask * _mouth_mask(face, box)).astype(np.uint8)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            raise ValueError(
                f"the mouth mask does not meet the lower half of the face box {face.box}; give another box"
            )
        # One row and column more all round: 0 there, and inside the crop since its own border is 0.
        py1, py2 = int(rows[0]) - 1, int(rows[-1]) + 2
        px1, px2 = int(columns[0]) - 1, int(columns[-1]) + 2
        crop = cv2.resize(np.ascontiguousarray(face.photo[y1:y2, x1:x2]), (FACE_SIZE, FACE_SIZE))
        whole = crop.astype(np.float32).transpose(2, 0, 1) / np.float32(255.0)
        masked = whole.copy()
        masked[:, FACE_SIZE // 2 :] = 0.0
        stacked = np.concatenate([masked, whole])
        silence = np.full((1, *AUDIO_SHAPE), MEL_FLOOR, np.float32)
        return Wav2LipState(
            face=stacked,
            closed=self._run(stacked[None], silence)[0],
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
            if drive.mel.shape != AUDIO_SHAPE[1:]:
                raise ValueError(f"mel window of shape {drive.mel.shape}: must be {AUDIO_SHAPE[1:]}")
        speaking = [k for k, drive in enumerate(drives) if drive.gain > 0.0]
        drawn = [state.closed for state in states]
        if speaking:
            faces = np.stack([states[k].face for k in speaking])
            mels = np.stack([drives[k].mel for k in speaking]).astype(np.float32, copy=False)[:, None]
            for k, talking in zip(speaking, self._run(faces, mels), strict=True):
                gain = np.float32(min(1.0, drives[k].gain))
                drawn[k] = talking if gain == 1.0 else states[k].closed + gain * (talking - states[k].closed)
        return [_lay_out(state, picture) for state, picture in zip(states, drawn, strict=True)]

    def _run(self, faces: Float32, mels: Float32) -> Float32:
        """Infer (n, 6, 96, 96) and (n, 1, 80, 16), in pieces of the network's own batch if that is fixed."""
        size = self._batch or len(faces)
        drawn = []
        for at in range(0, len(faces), size):
            piece = slice(at, at + size)
            count = len(faces[piece])
            inputs = {AUDIO: _fill(mels[piece], size), FACES: _fill(faces[piece], size)}
            output = self._request.infer(inputs)[0]
            if output.shape != (size, *OUTPUT_SHAPE):
                raise ValueError(f"the network's output is {output.shape}: must be {(size, *OUTPUT_SHAPE)}; {REMEDY}")
            drawn.append(output[:count].copy())
        return np.concatenate(drawn)


def _fill(rows: Float32, size: int) -> Float32:
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)]) if len(rows) < size else rows


def _lay_out(state: Wav2LipState, drawn: Float32) -> Rendered:
    """Bring a drawn face to the size of its box; the published script cuts the fraction off, not rounds it."""
    x1, y1, x2, y2 = state.box
    px1, py1, px2, py2 = state.patch
    pixels = np.clip(drawn.transpose(1, 2, 0) * np.float32(255.0), 0, 255).astype(np.uint8)
    image = cv2.resize(pixels, (x2 - x1, y2 - y1))[py1 - y1 : py2 - y1, px1 - x1 : px2 - x1]
    return Rendered(x=px1, y=py1, image=np.ascontiguousarray(image, dtype=np.uint8), mask=state.mask)


def _lower_face(height: int, width: int) -> npt.NDArray[np.float64]:
    """The half of the face that the network draws from sound: 1 inside, 0 above the middle and on the border."""
    soft = max(2.0, FEATHER * min(height, width))
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    inside = np.minimum(np.minimum(rows - height // 2, height - 1 - rows), np.minimum(columns, width - 1 - columns))
    ramp = np.clip(inside / soft, 0.0, 1.0)
    return np.asarray(ramp * ramp * (3.0 - 2.0 * ramp), np.float64)


def _mouth_mask(face: Face, box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
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


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _read(core: Any, model: Path) -> Any:
    if model.suffix not in (".xml", ".onnx"):
        raise ValueError(f"{model}: expected an OpenVINO IR (.xml beside its .bin) or .onnx; {REMEDY}")
    for part in (model, model.with_suffix(".bin")) if model.suffix == ".xml" else (model,):
        if not part.is_file():
            raise ValueError(f"{part}: no such file; {REMEDY}")
    try:
        return core.read_model(model)
    except RuntimeError as error:
        raise ValueError(
            f"{model}: cannot be read as a network, the file is damaged, cut short or of another kind; "
            f"fetch or convert it again: {REMEDY}. OpenVINO says: {_first_line(error)}"
        ) from error


def _check(network: Any, model: Path) -> int:
    """Check inputs and output; returns the fixed batch of the network, 0 if any batch may come."""
    wanted = {AUDIO: AUDIO_SHAPE, FACES: FACE_SHAPE}
    found = [f"{'/'.join(sorted(port.get_names())) or 'unnamed'} {port.get_partial_shape()}" for port in network.inputs]
    expected = ", ".join(f"{name} (N, {', '.join(map(str, shape))})" for name, shape in wanted.items())
    if {name for port in network.inputs for name in port.get_names() if name in wanted} != wanted.keys():
        raise ValueError(f"{model}: expected the inputs {expected}; found {'; '.join(found) or 'none'}; {REMEDY}")
    if len(network.inputs) != len(wanted):
        raise ValueError(f"{model}: expected only the inputs {expected}; found {'; '.join(found)}; {REMEDY}")
    if not all(_fits(network.input(name), shape) for name, shape in wanted.items()):
        raise ValueError(f"{model}: expected the inputs {expected}; found {'; '.join(found)}; {REMEDY}")
    if len(network.outputs) != 1 or not _fits(network.output(0), OUTPUT_SHAPE):
        found = [str(port.get_partial_shape()) for port in network.outputs]
        raise ValueError(f"{model}: expected one output (N, 3, 96, 96); found {', '.join(found)}; {REMEDY}")
    batches = [port.get_partial_shape()[0] for port in network.inputs]
    fixed = {int(batch.get_length()) for batch in batches if batch.is_static}
    if len(fixed) > 1:
        raise ValueError(f"{model}: expected the same batch N in both inputs; found {'; '.join(found)}; {REMEDY}")
    return fixed.pop() if fixed else 0


def _fits(port: Any, shape: tuple[int, ...]) -> bool:
    found = port.get_partial_shape()
    return bool(found.compatible(ov.PartialShape([-1, *shape])))


def _in_float32(network: Any) -> Any:
    """Let inputs and output be float32, whatever the file declares."""
    steps = ov.preprocess.PrePostProcessor(network)
    for k in range(len(network.inputs)):
        steps.input(k).tensor().set_element_type(ov.Type.f32)
    steps.output(0).tensor().set_element_type(ov.Type.f32)
    return steps.build()
