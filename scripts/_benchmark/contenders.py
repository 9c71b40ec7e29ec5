"""Who is measured: the same network in PyTorch, ONNX Runtime, OpenVINO plain and split; and the engine builtin."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino as ov
import soundfile
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from scripts._benchmark.clock import FAILURES
from scripts._benchmark.peak import macs
from scripts._benchmark.subject import Subject
from scripts._wav2lip.accuracy import stacked
from scripts._wav2lip.calibration import DEMO_FACE, DEMO_SPEECH, FACE_MODELS
from scripts._wav2lip.network import Wav2Lip
from services.face_prep.face import FaceMaker
from services.inference.builtin.engine import BuiltinEngine
from services.inference.engine import Drive
from services.inference.wav2lip.files import FACE, GENERATOR, GENERATOR_INT8, PLAIN
from services.inference.wav2lip.network import (
    BATCHES,
    FacePart,
    Precision,
    Wav2LipNetwork,
    precisions_of,
)
from services.inference.wav2lip.split import AUDIO, FACES, FIRST_ROW
from services.inference.wav2lip.winograd import with_fewer_products
from services.mel_features.mel import whole_file
from services.mel_features.windows import Windows

__all__ = ["PLAIN_NAME", "PYTORCH", "TITLES", "Contender", "Entrant", "able", "field", "missing_for", "set_threads"]

PYTORCH: Final = "pytorch"
PLAIN_NAME: Final = "openvino"
ORT_ERRORS: Final = (
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
"""what ONNX Runtime raises; each of them is an Exception, no nearer kinship"""

TITLES: Final = {
    PYTORCH: "PyTorch f32",
    "pytorch_channels_last": "PyTorch f32, channels last",
    "onnxruntime": "ONNX Runtime f32",
    PLAIN_NAME: "plain OpenVINO f32",
    "split_f32": "split f32",
    "split_bf16": "split bf16",
    "split_f16": "split f16",
    "split_int8": "split, mixed int8",
    "face": "face part f32, once a face",
    "video_f32": "split f32, a new face each frame",
    "video_bf16": "split bf16, a new face each frame",
    "video_f16": "split f16, a new face each frame",
    "video_int8": "split, mixed int8, a new face each frame",
    "builtin": "engine builtin",
}
"""all that there are, in the order of the tables"""

Float32 = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Call = Callable[[], object]


class Contender(Protocol):
    """One way to make frames."""

    def call(self, crops: Pixels, mels: Float32) -> Call:
        """Make ready to draw n frames of faces (n, 96, 96, 3) and mel windows (n, 80, 16): what is timed."""
        ...

    def lower(self, crops: Pixels, mels: Float32) -> Float32 | None:
        """Draw the lower halves, (n, 3, 48, 96), 0..1; None if it draws something else."""
        ...


@dataclass(frozen=True)
class Entrant:
    """A contender, or why there is none."""

    name: str
    """of `TITLES`"""
    precision: str
    """f32, bf16, f16, int8 or mixed; "" for what is no network"""
    macs: int | None
    """multiplications a frame"""
    contender: Contender | None
    reason: str = ""
    """why it is left out"""


def able() -> list[Precision]:
    """In what the processor computes, as OpenVINO tells; f32 first."""
    return precisions_of("CPU", ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def missing_for(precision: str, subject: Subject) -> str:
    """Why nothing is measured in a precision; empty where it is."""
    if precision not in able():
        return f"the processor does not compute in {precision}"
    return subject.no_int8 if precision == "int8" else ""


def set_threads(threads: int) -> None:
    """Set the threads of the libraries that have one number for all."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def field(subject: Subject, threads: int) -> list[Entrant]:
    """Load everybody.

    Args:
        subject: what is measured.
        threads: processor threads for each of them.

    Returns:
        an entrant for each of `TITLES`; who cannot be loaded has a reason in place of a contender.
    """
    core = ov.Core()
    plain, face, generator = (macs(core.read_model(subject.folder / name)) for name in (PLAIN, FACE, GENERATOR))
    networks: dict[str, Wav2LipNetwork] = {}

    def network(precision: str) -> Wav2LipNetwork:
        if missing := missing_for(precision, subject):
            raise ValueError(missing)
        if precision not in networks:
            networks[precision] = Wav2LipNetwork(subject.folder, "CPU", precision, threads, BATCHES)
        return networks[precision]

    eight = macs(core.read_model(subject.folder / GENERATOR_INT8)) if not subject.no_int8 else generator
    fewer = None
    with contextlib.suppress(*FAILURES):  # told where it is timed
        if least := network("f32").fewer_products_from:
            fewer = with_fewer_products(core.read_model(subject.folder / GENERATOR), least)
    frames = {"f32": generator if fewer is None else macs(fewer), "bf16": generator, "f16": generator, "int8": eight}
    entrants = [
        _entrant(PYTORCH, "f32", plain, lambda: _PyTorch(subject.module, channels_last=False)),
        _entrant("pytorch_channels_last", "f32", plain, lambda: _PyTorch(subject.module, channels_last=True)),
        _entrant("onnxruntime", "f32", plain, lambda: _OnnxRuntime(subject.onnx, threads)),
        _entrant(PLAIN_NAME, "f32", plain, lambda: _PlainOpenVino(subject.folder, threads)),
        _entrant("face", "f32", face, lambda: _FaceOnly(network("f32"))),
        _entrant("builtin", "", None, _Builtin),
    ]
    for precision, cost in frames.items():
        for name, kind, work in (("split", _Split, cost), ("video", _Video, face + cost)):
            # A low generator beside a face part in 32 bits has no peak of its own.
            told = "mixed" if name == "video" and precision != "f32" else precision
            make = partial(_on_network, kind, network, precision)
            entrants.append(_entrant(f"{name}_{precision}", told, work, make))
    return sorted(entrants, key=lambda entrant: list(TITLES).index(entrant.name))


def _on_network(kind: type[_Split], network: Callable[[str], Wav2LipNetwork], precision: str) -> Contender:
    return kind(network(precision))


def _entrant(name: str, precision: str, cost: int | None, make: Callable[[], Contender]) -> Entrant:
    try:
        return Entrant(name, precision, cost, make())
    except FAILURES as error:
        return Entrant(name, precision, cost, None, str(error).strip().splitlines()[0])


class _PyTorch:
    """The published way: eval mode, no gradients."""

    def __init__(self, module: Wav2Lip, *, channels_last: bool) -> None:
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            copied = Wav2Lip()
            copied.load_state_dict(module.state_dict())
            module = copied.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module = module

    def _inputs(self, crops: Pixels, mels: Float32) -> tuple[torch.Tensor, torch.Tensor]:
        faces = torch.from_numpy(stacked(crops)).to(memory_format=self._layout)
        return torch.from_numpy(np.ascontiguousarray(mels[:, None])), faces

    def call(self, crops: Pixels, mels: Float32) -> Call:
        inputs = self._inputs(crops, mels)

        def draw() -> object:
            with torch.inference_mode():
                return self._module(*inputs)

        return draw

    def lower(self, crops: Pixels, mels: Float32) -> Float32:
        with torch.inference_mode():
            drawn = self._module(*self._inputs(crops, mels))
        return np.ascontiguousarray(drawn[:, :, FIRST_ROW:].numpy())


class _OnnxRuntime:
    def __init__(self, onnx: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Its threads must not go on spinning while the next contender is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise RuntimeError(str(error)) from error

    def _run(self, inputs: dict[str, Float32]) -> Float32:
        try:
            return np.asarray(self._session.run(None, inputs)[0])
        except ORT_ERRORS as error:
            raise RuntimeError(str(error)) from error

    def call(self, crops: Pixels, mels: Float32) -> Call:
        inputs = _plain_inputs(crops, mels)
        return lambda: self._run(inputs)

    def lower(self, crops: Pixels, mels: Float32) -> Float32:
        return self._run(_plain_inputs(crops, mels))[:, :, FIRST_ROW:]


class _PlainOpenVino:
    """The network as published, in 32 bits, made for a low delay."""

    def __init__(self, folder: Path, threads: int) -> None:
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        core = ov.Core()
        self._request = core.compile_model(core.read_model(folder / PLAIN), "CPU", hints).create_infer_request()

    def call(self, crops: Pixels, mels: Float32) -> Call:
        inputs = _plain_inputs(crops, mels)
        return lambda: self._request.infer(inputs, share_inputs=True, share_outputs=True)

    def lower(self, crops: Pixels, mels: Float32) -> Float32:
        drawn: Any = self._request.infer(_plain_inputs(crops, mels), share_inputs=True)[0]
        return np.asarray(drawn[:, :, FIRST_ROW:]).copy()


class _Split:
    """The generator alone; the face is the same in all frames, as in a photo that talks."""

    def __init__(self, network: Wav2LipNetwork) -> None:
        if not network.split:
            raise ValueError(f"the network could not be split: {network.choice}")
        self._network = network

    def call(self, crops: Pixels, mels: Float32) -> Call:
        (part,) = self._network.prepare(crops[:1])
        parts: list[FacePart] = [part] * len(mels)
        return lambda: self._network.draw_exactly(parts, mels)

    def lower(self, crops: Pixels, mels: Float32) -> Float32 | None:
        return self._network.draw_exactly(self._network.prepare(crops), mels)


class _FaceOnly(_Split):
    def call(self, crops: Pixels, mels: Float32) -> Call:  # noqa: ARG002  # as the others
        return lambda: self._network.prepare(crops)

    def lower(self, crops: Pixels, mels: Float32) -> Float32 | None:  # noqa: ARG002
        return None


class _Video(_Split):
    """Both parts for each frame, as for a video whose face moves."""

    def call(self, crops: Pixels, mels: Float32) -> Call:
        return lambda: self._network.draw_exactly(self._network.prepare(crops), mels)

    def lower(self, crops: Pixels, mels: Float32) -> Float32 | None:  # noqa: ARG002  # that of the split network
        return None


class _Builtin:
    """The patch of the demo face at its own resolution, moved by the demo speech; the mouth at rest costs nothing."""

    def __init__(self) -> None:
        self._engine = BuiltinEngine()
        self._state = self._engine.prepare(FaceMaker(FACE_MODELS).make("demo", DEMO_FACE.read_bytes()))
        sound, _ = soundfile.read(DEMO_SPEECH, dtype="float32")
        windows = Windows(self._engine.window).push(0, whole_file(sound))
        drives = [Drive(mel=mel, gain=1.0) for _, mel in windows]
        motions = self._engine.motions(drives)
        moving = [each for each, motion in zip(drives, motions, strict=True) if np.any(motion.coefficients)]
        self._drives = itertools.cycle(moving)

    def call(self, crops: Pixels, mels: Float32) -> Call:  # noqa: ARG002  # it has a face and a voice of its own
        states = [self._state] * len(mels)
        return lambda: self._engine.render(states, list(itertools.islice(self._drives, len(states))))

    def lower(self, crops: Pixels, mels: Float32) -> Float32 | None:  # noqa: ARG002
        return None


def _plain_inputs(crops: Pixels, mels: Float32) -> dict[str, Float32]:
    return {AUDIO: np.ascontiguousarray(mels[:, None]), FACES: stacked(crops)}
