"""Wav2Lip cut in two: what depends on the face alone, and what is left to do for each frame.

For a still face the face encoder gives the same features each time, and the decoder meets them only where they are
joined to what came from the sound: a convolution over joined channels is the sum of two convolutions, and the one over
the face's channels is done once. Of the picture only the lower half is wanted (the upper half was shown to the network
unmasked), so each layer of the decoder begins at the first row from which the lower half can be reached. What a layer
adds of its own input becomes a 1 in the middle of its weights. The result is the plain network's, up to rounding.
(Where residuals are added, a level keeps its first row throughout: its topmost rows come out wrong, one more after each
layer, but none of them reaches the lower half.)

Works on the OpenVINO graph, so it takes any plain Wav2Lip: converted by this project or by others, its weights in 32 or
16 bits, its batch normalisations folded or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset8 as ops

__all__ = ["AUDIO", "FACES", "FIRST_ROW", "OUTPUT", "SKIPS", "Split", "SplitError", "split"]

AUDIO: Final = "audio_sequences"
FACES: Final = "face_sequences"
OUTPUT: Final = "output"
FIRST_ROW: Final = 48
"""first row of the picture that the generator draws"""
SKIPS: Final = tuple(f"skip_{k}" for k in range(7))
"""what the face part hands to the generator, from the coarsest level on"""

Residuals = Literal["folded", "added"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class SplitError(ValueError):
    """The network is not built like Wav2Lip; the text says where."""


@dataclass(frozen=True)
class Split:
    """Both parts."""

    face: ov.Model
    """``face_sequences`` (n, 6, 96, 96) -> ``skip_0`` ... ``skip_6``"""
    generator: ov.Model
    """``audio_sequences`` (n, 1, 80, 16), ``skip_0`` ... ``skip_6`` (n or 1, c, h, w) -> ``output`` (n, 3, 48, 96): the
    rows from `FIRST_ROW` on"""


@dataclass(frozen=True)
class _Layer:
    """A convolution with everything linear around it."""

    kind: Literal["Convolution", "ConvolutionBackpropData"]
    weights: Float32
    bias: Float32
    strides: tuple[int, int]
    pads_begin: tuple[int, int]
    pads_end: tuple[int, int]
    output_padding: tuple[int, int]
    source: Any
    """ov.Output that it reads"""
    height: int
    """rows of its output in the plain network"""
    residual: bool = False
    """whether what it reads is added to what it gives"""

    def folded(self) -> _Layer:
        """The same with what it adds from its own input as a part of the weights."""
        if not self.residual:
            return self
        weights = self.weights.copy()
        channels = np.arange(len(weights))
        weights[channels, channels, self.pads_begin[0], self.pads_begin[1]] += 1.0
        return replace(self, weights=weights, residual=False)

    @property
    def in_axis(self) -> int:
        """Axis of `weights` that counts the channels read."""
        return 1 if self.kind == "Convolution" else 0

    def reading(self, channels: slice) -> _Layer:
        """The share of some of the channels, without the bias."""
        index = [slice(None)] * 4
        index[self.in_axis] = channels
        return replace(self, weights=np.ascontiguousarray(self.weights[tuple(index)]), bias=np.zeros_like(self.bias))

    def on(self, values: Any, first: int, read_first: int) -> Any:
        """Put it on `values`, which begin at row `read_first`, so that what comes out begins at row `first`."""
        weights = ops.constant(self.weights)
        if self.kind == "Convolution":
            drop = first - read_first  # rows that are not to come out
            pads = (self.pads_begin[0] - drop, self.pads_begin[1])
            return ops.convolution(values, weights, self.strides, pads, self.pads_end, (1, 1))
        pads = (self.pads_begin[0] + first - self.strides[0] * read_first, self.pads_begin[1])
        return ops.convolution_backprop_data(
            values,
            weights,
            list(self.strides),
            pads_begin=list(pads),
            pads_end=list(self.pads_end),
            dilations=[1, 1],
            output_padding=list(self.output_padding),
        )

    def needs(self, first: int) -> int:
        """First row that it must read so that its output is right from row `first` on."""
        kernel, stride, pad = int(self.weights.shape[2]), self.strides[0], self.pads_begin[0]
        if self.kind == "Convolution":
            return max(0, first * stride - pad)
        return max(0, math.ceil((first + pad - (kernel - 1)) / stride))


@dataclass(frozen=True)
class _Level:
    """The layers from one joint to the next."""

    layers: tuple[_Layer, ...]
    skip: Any
    """ov.Output: the face's side of the joint"""
    sound_first: bool
    """whether the channels that came from the sound stand first in the joint"""
    sound_channels: int

    def sides(self) -> tuple[_Layer, _Layer]:
        """The first layer's share of the sound, and of the face (with the bias)."""
        layer = self.layers[0]
        total, ours = layer.weights.shape[layer.in_axis], self.sound_channels
        sound = slice(0, ours) if self.sound_first else slice(total - ours, total)
        face = slice(ours, total) if self.sound_first else slice(0, total - ours)
        return layer.reading(sound), replace(layer.reading(face), bias=layer.bias)


@dataclass(frozen=True)
class _Network:
    """The plain network, read."""

    faces: Any
    """ov Parameter"""
    audio: Any
    """ov Parameter"""
    embedding: Any
    """ov.Output: what came from the sound alone, at the first joint"""
    levels: tuple[_Level, ...]
    """coarsest first; the last one draws"""


def split(plain: ov.Model, residuals: Residuals = "folded") -> Split:
    """Split a plain Wav2Lip.

    Args:
        plain: inputs ``audio_sequences`` and ``face_sequences``, one output; it is left as it is.
        residuals: what a layer adds of its own input: "folded" into its weights, which is fastest, or "added" after it,
            for weights that are to be quantised: a 1 among them would leave the others few steps.

    Returns:
        both parts; together they give what the plain network gives, up to rounding.

    Raises:
        SplitError: it is not built like Wav2Lip.
    """
    try:
        return Split(face=_face_part(_read(plain.clone())), generator=_generator(_read(plain.clone()), residuals))
    except RuntimeError as error:
        raise SplitError(f"OpenVINO refused the parts: {str(error).strip().splitlines()[-1]}") from error


def _plan(levels: tuple[_Level, ...]) -> list[tuple[int, list[int]]]:
    """For each level the first row that it reads and the first one of each of its layers: no more than is wanted."""
    plan = []
    row = FIRST_ROW
    for level in reversed(levels):
        rows = []
        for layer in reversed(level.layers):
            rows.append(row)
            row = layer.needs(row)
        plan.append((row, rows[::-1]))
    return plan[::-1]


def _face_part(network: _Network) -> ov.Model:
    results = []
    for name, level, (_, rows) in zip(SKIPS, network.levels, _plan(network.levels), strict=True):
        _, face = level.sides()
        share = ops.add(face.on(level.skip, 0, 0), ops.constant(face.bias.reshape(1, -1, 1, 1)))
        result = ops.result(_without(share, rows[0]), name=name)
        result.output(0).get_tensor().set_names({name})
        results.append(result)
    return ov.Model(results, [network.faces], "wav2lip_face")


def _generator(network: _Network, residuals: Residuals) -> ov.Model:
    values: Any = network.embedding
    skips = []
    began = 0
    for name, level, (reads, rows) in zip(SKIPS, network.levels, _plan(network.levels), strict=True):
        sound, face = level.sides()
        skip = ops.parameter(ov.PartialShape([-1, *_share_shape(face, level, rows[0])]), np.float32, name=name)
        skip.output(0).get_tensor().set_names({name})
        skips.append(skip)
        values = ops.relu(ops.add(sound.on(_without(values, reads - began), rows[0], reads), skip))
        began = rows[0]
        for layer, row in zip(level.layers[1:], rows[1:], strict=True):
            before, first = values, row if residuals == "folded" else began
            values = (layer.folded() if residuals == "folded" else layer).on(before, first, began)
            values = ops.add(values, ops.constant(layer.bias.reshape(1, -1, 1, 1)))
            if layer.residual and residuals == "added":
                values = ops.add(values, before)
            values = ops.sigmoid(values) if layer is network.levels[-1].layers[-1] else ops.relu(values)
            began = first
    result = ops.result(values, name=OUTPUT)
    result.output(0).get_tensor().set_names({OUTPUT})
    return ov.Model([result], [network.audio, *skips], "wav2lip_generator")


def _share_shape(face: _Layer, level: _Level, first: int) -> tuple[int, int, int]:
    width = int(level.skip.get_partial_shape()[3].get_length())
    kernel, stride = face.weights.shape[3], face.strides[1]
    if face.kind == "Convolution":
        width = (width + face.pads_begin[1] + face.pads_end[1] - kernel) // stride + 1
    else:
        width = stride * (width - 1) + kernel - face.pads_begin[1] - face.pads_end[1] + face.output_padding[1]
    return face.bias.size, face.height - first, width


def _without(values: Any, count: int) -> Any:
    """Leave out the topmost rows."""
    if not count:
        return values
    from_, to, step, axis = (ops.constant(np.array([v], np.int64)) for v in (count, np.iinfo(np.int64).max, 1, 2))
    return ops.slice(values, from_, to, step, axis)


# ---- reading the plain network


def _read(plain: ov.Model) -> _Network:
    parameters = {name: node for node in plain.get_parameters() for name in node.output(0).get_names()}
    if AUDIO not in parameters or FACES not in parameters or len(plain.get_results()) != 1:
        raise SplitError(
            f"expected the inputs {AUDIO} and {FACES} and one output; found {', '.join(parameters) or 'none'}"
        )
    from_face, from_sound = _reached(plain, parameters[FACES]), _reached(plain, parameters[AUDIO])
    end = plain.get_results()[0].input_value(0).get_node()
    if end.get_type_name() != "Sigmoid":
        raise SplitError(f"expected a Sigmoid at the end; found {end.get_type_name()}")
    layers = [_linear(end.input_value(0))]
    levels: list[_Level] = []
    while True:
        at = layers[-1].source
        node = at.get_node()
        if node.get_type_name() == "Relu":
            layers.append(_layer(node.input_value(0)))
            continue
        if (
            node.get_type_name() != "Concat"
            or node.get_input_size() != 2
            or node.get_attributes()["axis"] not in (1, -3)
        ):
            raise SplitError(f"expected features of the face to be joined; found {node.get_type_name()} {_name(node)}")
        sides = [node.input_value(0), node.input_value(1)]
        ours = [side.get_node().get_friendly_name() in from_sound for side in sides]
        if sum(ours) != 1:
            raise SplitError(f"expected sound and face to be joined at {_name(node)}")
        sound, skip = sides[ours.index(True)], sides[ours.index(False)]
        if layers[-1].residual:
            raise SplitError(f"the layer after the joint {_name(node)} adds what it reads")
        channels = int(sound.get_partial_shape()[1].get_length())
        levels.append(_Level(tuple(reversed(layers)), skip, ours[0], channels))
        if sound.get_node().get_friendly_name() not in from_face:
            break
        if sound.get_node().get_type_name() != "Relu":
            raise SplitError(f"expected a Relu before the joint {_name(node)}")
        layers = [_layer(sound.get_node().input_value(0))]
    if len(levels) != len(SKIPS):
        raise SplitError(f"expected {len(SKIPS)} joints of sound and face; found {len(levels)}")
    return _Network(parameters[FACES], parameters[AUDIO], sound, tuple(reversed(levels)))


def _reached(plain: ov.Model, start: Any) -> set[str]:
    """Names of all nodes that depend on one."""
    reached = {start.get_friendly_name()}
    for node in plain.get_ordered_ops():
        if any(value.get_node().get_friendly_name() in reached for value in node.input_values()):
            reached.add(node.get_friendly_name())
    return reached


def _layer(value: Any) -> _Layer:
    """The layer that gives `value`, which goes into a Relu."""
    node = value.get_node()
    if (
        node.get_type_name() == "Add"
        and _constant(node.input_value(0)) is None
        and _constant(node.input_value(1)) is None
    ):
        for mine, other in ((0, 1), (1, 0)):
            if node.input_value(mine).get_node().get_type_name() in _LINEAR:
                layer = _linear(node.input_value(mine))
                if layer.source == node.input_value(other):
                    return replace(layer, residual=True)
        raise SplitError(f"what is added at {_name(node)} is not what the layer reads")
    return _linear(value)


_LINEAR: Final = frozenset(
    {"Convolution", "ConvolutionBackpropData", "Add", "Multiply", "Subtract", "Divide", "BatchNormInference"}
)


def _linear(value: Any) -> _Layer:
    """A convolution and the linear operations behind it, as one."""
    height = value.get_partial_shape()[2]
    if height.is_dynamic:
        raise SplitError(f"the height of {_name(value.get_node())} is not fixed")
    scale, shift = np.ones(1), np.zeros(1)
    while True:
        node = value.get_node()
        kind = node.get_type_name()
        if kind in ("Convolution", "ConvolutionBackpropData"):
            return _convolution(node, scale, shift, int(height.get_length()))
        if kind == "BatchNormInference":
            gain, offset = _normalisation(node)
            scale, shift, value = scale * gain, shift + scale * offset, node.input_value(0)
            continue
        if kind not in _LINEAR:
            raise SplitError(f"expected a convolution; found {kind} {_name(node)}")
        left, right = _constant(node.input_value(0)), _constant(node.input_value(1))
        constant = right if right is not None else left
        if constant is None or (left is not None and kind in ("Subtract", "Divide")):
            raise SplitError(f"expected a constant at {_name(node)}")
        value = node.input_value(0 if right is not None else 1)
        if kind == "Add":
            shift = shift + scale * constant
        elif kind == "Subtract":
            shift = shift - scale * constant
        else:
            scale = scale * constant if kind == "Multiply" else scale / constant


def _convolution(node: Any, scale: Float64, shift: Float64, height: int) -> _Layer:
    found = node.get_attributes()
    weights = _array(node.input_value(1))
    if weights is None or weights.ndim != 4 or node.get_input_size() != 2:
        raise SplitError(f"the weights of {_name(node)} are not constant")
    if str(found["auto_pad"]).lower() not in ("explicit", "notset") or tuple(found["dilations"]) != (1, 1):
        raise SplitError(
            f"padding {found['auto_pad']} or dilations {found['dilations']} of {_name(node)} are not Wav2Lip's"
        )
    deconvolution = node.get_type_name() == "ConvolutionBackpropData"
    out_axis = 1 if deconvolution else 0
    channels = weights.shape[out_axis]
    shape = [1, 1, 1, 1]
    shape[out_axis] = -1
    try:
        scaled = weights * np.broadcast_to(scale, channels).reshape(shape)
        bias = np.broadcast_to(shift, channels)
    except ValueError as error:
        raise SplitError(f"scale or bias of {_name(node)} does not belong to its {channels} channels") from error
    y, x = found.get("output_padding", (0, 0)) or (0, 0)
    return _Layer(
        kind="ConvolutionBackpropData" if deconvolution else "Convolution",
        weights=scaled.astype(np.float32),
        bias=bias.astype(np.float32),
        strides=(int(found["strides"][0]), int(found["strides"][1])),
        pads_begin=(int(found["pads_begin"][0]), int(found["pads_begin"][1])),
        pads_end=(int(found["pads_end"][0]), int(found["pads_end"][1])),
        output_padding=(int(y), int(x)),
        source=node.input_value(0),
        height=height,
    )


def _normalisation(node: Any) -> tuple[Float64, Float64]:
    """Gain and offset of a batch normalisation."""
    values = [_constant(node.input_value(k)) for k in range(1, 5)]
    if any(value is None for value in values):
        raise SplitError(f"the statistics of {_name(node)} are not constant")
    gamma, beta, mean, variance = (np.asarray(value) for value in values)
    gain = gamma / np.sqrt(variance + float(node.get_attributes()["epsilon"]))
    return gain, beta - gain * mean


def _constant(value: Any) -> Float64 | None:
    """A constant for each channel, (c,) or (1,); None if it is not constant."""
    array = _array(value)
    if array is None:
        return None
    if array.size != max(array.shape, default=1):
        raise SplitError(f"the constant {_name(value.get_node())} is more than a number for each channel")
    return array.reshape(-1)


def _array(value: Any) -> Float64 | None:
    """The value of a constant, kept in 16 bits or not; None if it is not constant."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Reshape") and node.get_type_name() != "Constant":
        if node.get_type_name() == "Reshape":
            inner = _array(node.input_value(0))
            return None if inner is None else inner.reshape(list(node.get_output_shape(0)))
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data(), np.float64) if node.get_type_name() == "Constant" else None


def _name(node: Any) -> str:
    return str(node.get_friendly_name())
