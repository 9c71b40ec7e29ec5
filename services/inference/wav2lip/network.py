"""A converted Wav2Lip under OpenVINO: the face once, then the lower half of the picture for each mel window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import openvino as ov

from services.inference.wav2lip.arrange import as_matrices, beside_each_other
from services.inference.wav2lip.files import (
    FACE,
    GENERATOR,
    GENERATOR_INT8,
    PLAIN,
    read_manifest,
)
from services.inference.wav2lip.split import AUDIO, FACES, FIRST_ROW, SKIPS, SplitError, split
from services.inference.wav2lip.winograd import with_fewer_products

__all__ = [
    "BATCHES",
    "FACE_SIZE",
    "GATE_DB",
    "LOWER_ROWS",
    "MEL_BANDS",
    "MEL_FLOOR",
    "MEL_FRAMES",
    "FacePart",
    "Precision",
    "Wav2LipNetwork",
    "hints_for_bytes",
    "masked",
    "multiplies_bytes",
    "precisions_of",
]

Precision = Literal["f32", "bf16", "f16", "int8"]
_Way = TypeVar("_Way")

FACE_SIZE: Final = 96
LOWER_ROWS: Final = FACE_SIZE - FIRST_ROW
MEL_BANDS: Final = 80
MEL_FRAMES: Final = 16
MEL_FLOOR: Final = -4.0
GATE_DB: Final = 38.0
"""a precision whose worst window comes less near to the original is not chosen by itself"""
WARM_UP: Final = 2
"""draws before a way to compute is timed"""
TIMED: Final = 7
"""draws that are timed; their median counts"""
BATCHES: Final = (1, 2, 4)
"""windows that are drawn at once where nobody waits"""
FEWER_PRODUCTS_FROM: Final = (64, 128)
"""channels, see `winograd.with_fewer_products`: what gains by it depends on the processor, so both are timed"""
LEAST_LEFT: Final = 0.6
"""share of the time of a frame in 32 bits that fewer products leave at best"""
WORTH: Final = 0.92
"""a more exact precision is taken if the fastest one that is less exact needs at least this share of its time"""

AUDIO_SHAPE: Final = (1, MEL_BANDS, MEL_FRAMES)
FACE_SHAPE: Final = (6, FACE_SIZE, FACE_SIZE)
OUTPUT_SHAPE: Final = (3, FACE_SIZE, FACE_SIZE)
REMEDY: Final = (
    "convert the official checkpoint with scripts/convert_model, or set MOUTHPIECE_MODEL to a converted Wav2Lip"
)
CAPABILITY: Final[dict[Precision, str]] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "int8": "INT8"}
"""OpenVINO's word for what a device can"""
ROUNDED_IN_FLOAT32: Final = {"LP_TRANSFORMS_MODE": "NO"}
"""With it OpenVINO's CPU plugin rounds to 8 bits as an 8-bit network says and multiplies in 32. Slow, but these are the
pictures of a processor that adds in 32 bits: one with AVX2 alone adds pairs of products in 16, which overflow."""

Float32 = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FacePart:
    """What depends on the face alone."""

    crop: Pixels
    """the face, BGR, (96, 96, 3)"""
    skips: tuple[Float32, ...]
    """the face's share of each level of the decoder, (1, h, w, c); empty for a network that could not be split"""


class _FixedBatches:
    """A generator compiled for each batch that is drawn at once.

    OpenVINO joins additions and roundings into one pass over the memory only where the batch is fixed.
    """

    def __init__(self, generator: Any, batches: Sequence[int], compile_: Callable[[Any], Any]) -> None:
        self._generator: Any = generator
        self._compile = compile_
        self._batches = sorted(batches, reverse=True)
        self._requests: dict[tuple[int, int], Any] = {}
        self._request(self._batches[0], 1)

    def infer(self, inputs: dict[str, Float32], *, share_inputs: bool) -> list[Float32]:
        """Draw; as `ov.InferRequest.infer`."""
        mels = inputs[AUDIO]
        shared = len(inputs[SKIPS[0]]) == 1
        drawn = []
        at = 0
        while at < len(mels):
            size = next(size for size in self._batches if size <= len(mels) - at)
            piece = {AUDIO: mels[at : at + size]}
            piece.update({name: inputs[name] if shared else inputs[name][at : at + size] for name in SKIPS})
            request = self._request(size, 1 if shared else size)
            drawn.append(request.infer(piece, share_inputs=share_inputs)[0].copy())
            at += size
        return [np.concatenate(drawn)]

    def _request(self, size: int, faces: int) -> Any:
        if (size, faces) not in self._requests:
            network = self._generator.clone()
            shapes = {port: port.get_partial_shape() for port in network.inputs}
            for port, shape in shapes.items():
                shape[0] = size if AUDIO in port.get_names() else faces
            network.reshape(shapes)
            if size > 1:
                network = beside_each_other(network)
            self._requests[size, faces] = self._compile(network).create_infer_request()
            if self._batches == [1]:
                self._generator = None  # its weights are no longer needed
        return self._requests[size, faces]


class Wav2LipNetwork:
    """Draws with a converted Wav2Lip. Used by one thread.

    Args:
        model: a folder written by ``scripts/convert_model``; or a plain network, OpenVINO IR (``.xml`` beside its
            ``.bin``) or ``.onnx`` with the inputs ``audio_sequences`` (n, 1, 80, 16) and ``face_sequences``
            (n, 6, 96, 96) and one output (n, 3, 96, 96), which is split here.
        device: OpenVINO device: CPU, GPU, NPU or AUTO.
        precision: type in which the device computes. "auto" times those that the device has, of the ones that are near
            enough to the original, and takes the fastest.
        threads: processor threads; 0 leaves them to OpenVINO.
        batches: how many windows are drawn at once on the processor, 1 among them: the network is compiled for each,
            for windows of one face and for windows of a face each. Each needs memory and, the first time, a second.

    Raises:
        ValueError: no such file, network, device or precision; the text says what to do.
    """

    def __init__(
        self,
        model: Path,
        device: str = "CPU",
        precision: str = "auto",
        threads: int = 0,
        batches: Sequence[int] = (1,),
    ) -> None:
        if precision not in ("auto", *get_args(Precision)):
            raise ValueError(f"precision {precision!r}: must be auto, {', '.join(get_args(Precision))}")
        self._core = ov.Core()
        self._device = device
        self._threads = threads
        self._batches = batches
        self.fewer_products_from = 0
        """channels of the layers that it computes with fewer products, in 32 bits; 0: it does so with none"""
        self._folder = _folder_of(model)
        self._plain_path = model if self._folder is None else self._folder / PLAIN
        self.manifest = read_manifest(self._folder) if self._folder else None
        """what is said of the converted model; None for a plain network"""
        self._plain: Any = None
        self._batch = 0
        """fixed batch of a plain network, 0: any"""
        self._face, generator = self._parts()
        self.split = generator is not None
        """whether the network could be split"""
        self.precision: Precision
        """in which it computes"""
        self.choice: str
        """why, for the log"""
        self._request, self.precision, self.choice = self._choose(generator, precision)

    def prepare(self, crops: Pixels) -> list[FacePart]:
        """Compute what depends on the faces alone.

        Args:
            crops: faces, BGR, (n, 96, 96, 3); their lower halves are blacked out here.

        Returns:
            one part for each.

        Raises:
            ValueError: another shape or type.
        """
        _check_crops(crops)
        if self._face is None:
            return [FacePart(crop, ()) for crop in crops]
        parts = []
        for crop in crops:
            found = self._face.infer({FACES: masked(crop[None])}, share_inputs=True)
            parts.append(FacePart(crop, tuple(found[name].copy() for name in SKIPS)))
        return parts

    def draw(self, parts: Sequence[FacePart], mels: Float32) -> Pixels:
        """Draw lower halves.

        Args:
            parts: n faces, as `prepare` gave them; the same one may stand several times.
            mels: mel windows, -4..4, (n, 80, 16).

        Returns:
            rows 48 to 95 of the faces, BGR, (n, 48, 96, 3); fractions are cut off, as in the published script.

        Raises:
            ValueError: lists of different length, or a mel window of another shape.
        """
        return _to_pixels(self.draw_exactly(parts, mels))

    def draw_exactly(self, parts: Sequence[FacePart], mels: Float32) -> Float32:
        """The same as `draw`, in 0..1, (n, 3, 48, 96)."""
        _check_mels(mels, len(parts))
        if self._face is None:
            crops = np.stack([part.crop for part in parts])
            return np.ascontiguousarray(self._whole(self._request, crops, mels)[:, :, FIRST_ROW:])
        inputs: dict[str, Float32] = {AUDIO: np.ascontiguousarray(mels[:, None], np.float32)}
        one = all(part is parts[0] for part in parts)
        for k, name in enumerate(SKIPS):
            inputs[name] = parts[0].skips[k] if one else np.concatenate([part.skips[k] for part in parts])
        return np.asarray(self._request.infer(inputs, share_inputs=True)[0], np.float32).copy()

    def draw_whole(self, crops: Pixels, mels: Float32) -> Pixels:
        """Draw whole faces with the plain network in 32 bits, as the published script does.

        Args:
            crops: faces, BGR, (n, 96, 96, 3).
            mels: mel windows, (n, 80, 16).

        Returns:
            BGR, (n, 96, 96, 3).

        Raises:
            ValueError: another shape, or the folder holds no plain network.
        """
        _check_crops(crops)
        _check_mels(mels, len(crops))
        if self._plain is None:
            network = _in_float32(self._read_plain())
            self._plain = self._compile(network, "f32").create_infer_request()
        return _to_pixels(self._whole(self._plain, crops, mels))

    def _parts(self) -> tuple[Any, Any]:
        """The face part, ready to run, and the generator; both None if there is only the plain network."""
        if self._folder is not None and (self._folder / GENERATOR).is_file():
            face, generator = _read(self._core, self._folder / FACE), _read(self._core, self._folder / GENERATOR)
            _check_parts(face, generator, self._folder)
        else:
            try:
                both = split(self._read_plain())
            except SplitError as error:
                self._why_whole = str(error)
                return None, None
            face, generator = both.face, both.generator
        face = _channels_last(face, SKIPS)
        face.reshape([1, *FACE_SHAPE])
        return self._compile(face, "f32").create_infer_request(), generator

    def _choose(self, generator: Any, wanted: str) -> tuple[Any, Precision, str]:
        """Compile what draws each frame, in the precision that is wanted or the fastest one that is good enough."""
        able = self._able()
        if generator is None:
            plain = _in_float32(self._read_plain())
            precision: Precision = "f32" if wanted in ("auto", "int8") else wanted  # type: ignore[assignment]
            if wanted == "int8":
                raise ValueError(f"{self._plain_path}: precision int8 needs a converted folder; {REMEDY}")
            request = self._compile(plain, precision).create_infer_request()
            return request, precision, f"whole network in {precision}, it could not be split: {self._why_whole}"
        if wanted != "auto":
            request = self._in(generator, wanted)  # type: ignore[arg-type]
            emulated = wanted == "int8" and hints_for_bytes(self._device)
            slow = ", slowly: this processor works 8 bits out in 32" if emulated else ""
            return request, wanted, f"as set{self._told_products()}{slow}"  # type: ignore[return-value]
        times: dict[Precision, float] = {}
        best: tuple[Any, Precision] | None = None
        candidates = self._candidates(able)
        for precision in reversed(candidates):
            enough_ms = min(times.values(), default=math.inf) / WORTH
            request = self._in(generator, precision, enough_ms)
            times[precision] = self._time_ms(request)
            if times[precision] <= enough_ms:
                best = (request, precision)
            del request
        if best is None:
            raise ValueError(f"{self._plain_path}: the device {self._device} computes in none of {', '.join(able)}")
        told = ", ".join(f"{name} {times[name]:.1f} ms" for name in candidates)
        told_products = self._told_products() if best[1] == "f32" else ""
        return *best, f"fastest of {told} a frame on {self._device}{told_products}"

    def _candidates(self, able: list[Precision]) -> list[Precision]:
        """Precisions worth timing, the most exact first."""
        reports = self.manifest.precisions if self.manifest is not None else {}
        good = [name for name in able if name not in reports or reports[name].worst_psnr_db >= GATE_DB]
        if self._folder is None or "int8" not in reports or not (self._folder / GENERATOR_INT8).is_file():
            good = [name for name in good if name != "int8"]
        return good

    def _able(self) -> list[Precision]:
        """What the device has, by its own word."""
        try:
            words = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        except RuntimeError as error:
            if not self._device.startswith(("AUTO", "MULTI", "HETERO")):
                raise ValueError(
                    f"there is no OpenVINO device {self._device!r}; this machine has "
                    f"{', '.join(self._core.available_devices)}: set MOUTHPIECE_DEVICE to one of them"
                ) from error
            words = ["FP32"]
        return precisions_of(self._device, words)

    def _in(self, generator: Any, precision: Precision, enough_ms: float = math.inf) -> Any:
        """The generator in a precision, ready to run. What cannot draw a frame in so much time is not made faster."""
        if precision == "f32":
            return self._in_float32(generator, enough_ms)
        if precision != "int8":
            return self._drawer(generator, precision)
        path = self._folder / GENERATOR_INT8 if self._folder is not None else None
        if path is None or not path.is_file():
            raise ValueError(f"{self._plain_path}: there is no 8-bit model beside it; {REMEDY}")
        network, hints = _read(self._core, path), hints_for_bytes(self._device)
        # What lies between the products takes less memory in bf16, but OpenVINO turns it around more often.
        rests: list[Precision] = [name for name in ("f32", "bf16") if name in self._able()] or ["f32"]
        return self._fastest({rest: partial(self._drawer, network, rest, hints) for rest in rests})[1]

    def _in_float32(self, generator: Any, enough_ms: float) -> Any:
        """The generator as it is, or with fewer products in some of its layers, whichever is fastest here."""
        directly = self._drawer(generator, "f32")
        if self._device != "CPU" or (enough_ms < math.inf and LEAST_LEFT * self._time_ms(directly) > enough_ms):
            return directly

        def drawer(least_channels: int) -> Any:
            way = with_fewer_products(generator, least_channels)
            return None if way is None else self._drawer(way, "f32")

        ways: dict[int, Callable[[], Any]] = {0: lambda: directly}
        ways.update((least, partial(drawer, least)) for least in FEWER_PRODUCTS_FROM)
        self.fewer_products_from, fastest = self._fastest(ways)
        return fastest

    def _fastest(self, ways: Mapping[_Way, Callable[[], Any]]) -> tuple[_Way, Any]:
        """Make each, and keep what draws in the least time, with its name. Ways but the first may give None."""
        (best, make), *others = ways.items()
        drawer = make()
        best_ms = self._time_ms(drawer) if others else 0.0
        for name, make in others:
            other = make()
            other_ms = math.inf if other is None else self._time_ms(other)
            if other_ms < best_ms:
                best, drawer, best_ms = name, other, other_ms
        return best, drawer

    def _drawer(self, generator: Any, precision: Precision, hints: Mapping[str, str] | None = None) -> Any:
        """A generator, ready to run; on the processor for each batch on its own."""
        generator = _channels_last(as_matrices(generator), SKIPS)
        if self._device != "CPU":
            return self._compile(generator, precision, hints).create_infer_request()
        return _FixedBatches(generator, self._batches, lambda network: self._compile(network, precision, hints))

    def _told_products(self) -> str:
        least = self.fewer_products_from
        return f", 3x3 convolutions of {least} channels and more with half of the products" if least else ""

    def _time_ms(self, request: Any) -> float:
        """Median time of a frame, of as many as are drawn at once."""
        batch = max(self._batches)
        rng = np.random.default_rng(0)
        (part,) = self.prepare(rng.integers(0, 256, (1, FACE_SIZE, FACE_SIZE, 3), dtype=np.uint8))
        inputs = {AUDIO: rng.uniform(-4, 4, (batch, *AUDIO_SHAPE)).astype(np.float32)}
        inputs.update(zip(SKIPS, part.skips, strict=True))
        times = []
        for _ in range(WARM_UP + TIMED):
            began_s = time.perf_counter()
            drawn = request.infer(inputs, share_inputs=True)[0]
            times.append(time.perf_counter() - began_s)
        if not np.isfinite(drawn).all():
            raise ValueError(f"{self._plain_path}: the network answers with numbers that are not finite; {REMEDY}")
        return float(np.median(times[WARM_UP:])) * 1000.0 / batch

    def _compile(self, network: Any, precision: Precision, more: Mapping[str, str] | None = None) -> Any:
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, **(more or {})}
        if self._threads and self._device == "CPU":
            hints["INFERENCE_NUM_THREADS"] = self._threads
        try:
            return self._core.compile_model(network, self._device, hints)
        except RuntimeError as error:
            raise ValueError(
                f"{self._plain_path}: the device {self._device!r} does not take this network with precision "
                f"{precision}; devices of this machine: {', '.join(self._core.available_devices)}. "
                f"OpenVINO says: {_last_line(error)}"
            ) from error

    def _read_plain(self) -> Any:
        network = _read(self._core, self._plain_path)
        self._batch = _check_plain(network, self._plain_path)
        return network

    def _whole(self, request: Any, crops: Pixels, mels: Float32) -> Float32:
        """Run the plain network, in pieces of its own batch if that is fixed; (n, 3, 96, 96)."""
        faces = masked(crops)
        sounds = np.ascontiguousarray(mels[:, None], np.float32)
        size = self._batch or len(faces)
        drawn = []
        for at in range(0, len(faces), size):
            piece = slice(at, at + size)
            count = len(faces[piece])
            output = request.infer({AUDIO: _fill(sounds[piece], size), FACES: _fill(faces[piece], size)})[0]
            if output.shape != (size, *OUTPUT_SHAPE):
                raise ValueError(f"the network's output is {output.shape}: must be {(size, *OUTPUT_SHAPE)}; {REMEDY}")
            drawn.append(output[:count].copy())
        return np.concatenate(drawn)


def precisions_of(device: str, words: Sequence[str]) -> list[Precision]:
    """In what a device computes well, the most exact first.

    Args:
        device: OpenVINO device.
        words: its OPTIMIZATION_CAPABILITIES.
    """
    able: list[Precision] = [name for name in get_args(Precision) if CAPABILITY[name] in words]
    return [name for name in able if name != "int8"] if hints_for_bytes(device) else able


def hints_for_bytes(device: str = "CPU") -> dict[str, str]:
    """What OpenVINO is told beside the type, so that an 8-bit network draws what it should.

    Args:
        device: OpenVINO device; of AUTO and the like any part may be done by the processor.
    """
    processor = device.startswith(("CPU", "AUTO", "MULTI", "HETERO"))
    return dict(ROUNDED_IN_FLOAT32) if processor and not multiplies_bytes() else {}


def multiplies_bytes() -> bool:
    """Whether the processor adds products of 8 bits in 32; those that add them in 16 may overflow."""
    return _processor_has("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")


def _processor_has(*flags: str) -> bool:
    """Whether it has any of them."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(flag in told for flag in flags)


def _folder_of(model: Path) -> Path | None:
    """The converted folder that is meant; None for a network on its own."""
    if model.is_dir():
        return model
    return model.parent if model.name == PLAIN and (model.parent / GENERATOR).is_file() else None


def masked(crops: Pixels) -> Float32:
    """Input of the network, (n, 6, 96, 96), 0..1: the faces with black lower halves, then whole."""
    whole = crops.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
    black = whole.copy()
    black[:, :, FIRST_ROW:] = 0.0
    return np.ascontiguousarray(np.concatenate([black, whole], axis=1))


def _to_pixels(drawn: Float32) -> Pixels:
    """(n, 3, h, w), 0..1 -> (n, h, w, 3), 0..255; fractions are cut off."""
    return np.asarray(np.clip(drawn.transpose(0, 2, 3, 1) * np.float32(255.0), 0, 255), np.uint8)


def _fill(rows: Float32, size: int) -> Float32:
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)]) if len(rows) < size else rows


def _check_crops(crops: Pixels) -> None:
    if crops.ndim != 4 or crops.shape[1:] != (FACE_SIZE, FACE_SIZE, 3) or crops.dtype != np.uint8:
        raise ValueError(f"faces of shape {crops.shape} and type {crops.dtype}: must be (n, 96, 96, 3), uint8")


def _check_mels(mels: Float32, count: int) -> None:
    if mels.shape != (count, MEL_BANDS, MEL_FRAMES):
        raise ValueError(f"mel windows of shape {mels.shape}: must be {(count, MEL_BANDS, MEL_FRAMES)}")


def _check_parts(face: Any, generator: Any, folder: Path) -> None:
    """The two parts must fit each other."""
    gives = {name: port.get_partial_shape() for port in face.outputs for name in port.get_names() if name in SKIPS}
    takes = {name: port.get_partial_shape() for port in generator.inputs for name in port.get_names()}
    drawn = generator.output(0).get_partial_shape()
    fits = set(gives) == set(SKIPS) and set(takes) == {AUDIO, *SKIPS}
    if not (fits and all(gives[name].compatible(takes[name]) for name in SKIPS)) or not drawn.compatible(
        ov.PartialShape([-1, 3, LOWER_ROWS, FACE_SIZE])
    ):
        raise ValueError(f"{folder}: {FACE} and {GENERATOR} do not belong together; {REMEDY}")


def _last_line(error: Exception) -> str:
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
            f"fetch or convert it again: {REMEDY}. OpenVINO says: {_last_line(error)}"
        ) from error


def _check_plain(network: Any, model: Path) -> int:
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


def _channels_last(network: Any, names: Sequence[str]) -> Any:
    """A copy that takes or gives what is named with the channels last, as OpenVINO computes: it need not turn them."""
    made = network.clone()
    steps = ov.preprocess.PrePostProcessor(made)
    for ports, step in ((made.inputs, steps.input), (made.outputs, steps.output)):
        for name in (name for port in ports for name in port.get_names() if name in names):
            step(name).tensor().set_layout(ov.Layout("NHWC"))
            step(name).model().set_layout(ov.Layout("NCHW"))
    return steps.build()


def _in_float32(network: Any) -> Any:
    """Let inputs and output be float32, whatever the file declares."""
    steps = ov.preprocess.PrePostProcessor(network)
    for k in range(len(network.inputs)):
        steps.input(k).tensor().set_element_type(ov.Type.f32)
    steps.output(0).tensor().set_element_type(ov.Type.f32)
    return steps.build()
