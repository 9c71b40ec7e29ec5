"""Mixed 8 bits for the generator half of a split Wav2Lip: static quantisation behind a gate.

First the channels of each tensor are made about equally large, by factors that cancel between one convolution and the
next (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019): one scale
for a whole tensor then suits them all. NNCF (`nncf.quantize`, OpenVINO's post-training quantisation) measures the
activations on real mel windows and faces and rounds each convolution's weights (symmetric, a scale for each output
channel) and what it reads (a scale for each tensor). Then the picture is held against the one of 32 bits. If the worst
window is too far off, the layers whose rounding shows most for the work they cost are given back their 32 bits: as few
as it takes, found by halving.

The face half runs once a face and stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from scripts._wav2lip.calibration import CROP_SIDE, Samples
from services.inference.wav2lip.network import hints_for_bytes
from services.inference.wav2lip.split import AUDIO, FACES, OUTPUT, SKIPS

os.environ.setdefault("NNCF_CI", "1")  # otherwise NNCF tells its makers that it was used, over the network
import nncf
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
)
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

__all__ = ["LAYERS", "QuantiseError", "Quantised", "psnr_db", "quantise"]

LAYERS: Final = (
    *(f"audio_encoder.{k}" for k in range(13)),
    "face_decoder_blocks.0.0",
    *(f"face_decoder_blocks.{k}.{j}" for k in range(1, 7) for j in range(2 if k == 1 else 3)),
    "output_block.0",
    "output_block.1",
)
"""the generator's convolutions in order, by their names in the published checkpoints"""
WEIGHTED: Final = ("Convolution", "ConvolutionBackpropData")

BATCH: Final = 4
"""windows drawn at once while measuring"""
RANKED_ON: Final = 8
"""of the worst windows, on which the harm of each layer is measured"""
EQUALISED: Final = 0.7
"""How far channels are drawn together: at 1 their largest activations become equal, at the weights' cost. Measured on a
network trained for 20 minutes, everything in 8 bits: 29.1 dB in the worst window at 0, 33.0 at 0.5, 34.0 at 0.7."""
LEAST_PEAK: Final = 1e-3
"""share of a tensor's largest activation below which a channel is not enlarged further"""
CALLING_MACS: Final = 10e6
"""what it costs to leave 8 bits and come back, in multiplications of the same duration"""
MOST_KEPT: Final = 0.5
"""share of the multiplications that may stay in 32 bits; with more of them 8 bits are not worth having"""

Float32 = npt.NDArray[np.float32]
Noise = npt.NDArray[np.float64]
"""mean square difference of each window's picture, (n,), 1 is full scale"""


class QuantiseError(ValueError):
    """The network cannot be quantised well enough, or is not the generator of a split Wav2Lip; the text says which."""


@dataclass(frozen=True)
class Quantised:
    """A generator in 8 bits, and how far its pictures are from those in 32."""

    model: ov.Model
    """the generator with `FakeQuantize` operations and 8-bit weights; inputs and output as before"""
    worst_psnr_db: float
    """of the lower half, in the worst of the held-out windows"""
    median_psnr_db: float
    kept: tuple[str, ...]
    """`LAYERS` that stay in 32 bits"""


@dataclass(frozen=True)
class _Windows:
    """Inputs of the generator, made when they are needed: all of them would fill the memory."""

    face: ov.CompiledModel
    samples: Samples

    def inputs(self, rows: Sequence[int]) -> dict[str, Float32]:
        """Read some windows: the mel windows, and what the face half makes of the faces."""
        whole = self.samples.crops[rows].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
        masked = whole.copy()
        masked[:, :, CROP_SIDE // 2 :] = 0.0
        shares = self.face({FACES: np.concatenate([masked, whole], axis=1)})
        return {AUDIO: self.samples.mels[rows][:, None], **{name: shares[name] for name in SKIPS}}

    def batches(self, rows: Sequence[int] | None = None) -> list[Sequence[int]]:
        """Cut the numbers of the windows, or some of them, into batches."""
        rows = range(len(self.samples.mels)) if rows is None else rows
        return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def quantise(
    face: ov.Model, generator: ov.Model, calibration: Samples, held_out: Samples, gate_db: float = 38.0
) -> Quantised:
    """Quantise the generator, keeping in 32 bits what has to stay there.

    Both models are left as they are. The same models and samples give the same result on the same machine.

    Args:
        face: face half of a split Wav2Lip, ``face_sequences`` -> ``skip_0`` ... ``skip_6``.
        generator: the other half, ``audio_sequences``, ``skip_0`` ... ``skip_6`` -> ``output`` (n, 3, 48, 96), best
            with its residuals added, not folded into the weights: that would cost 2 dB.
        calibration: on which the ranges of the activations are measured; 300 pairs are usual.
        held_out: on which the result is judged, other pairs than those.
        gate_db: least PSNR of the lower half against 32 bits that every held-out window must reach.

    Returns:
        the quantised generator.

    Raises:
        QuantiseError: the gate cannot be held with at least half of the work in 8 bits, or the generator is of
            another form.
    """
    named, macs = _named(generator)
    compiled_face = _compile(face)
    seen, held = _Windows(compiled_face, calibration), _Windows(compiled_face, held_out)
    reference = _draw(named, held, held.batches())
    exact = _equalised(named, seen)
    quantised = _tidied(_by_nncf(exact, seen))
    limit = 10.0 ** (-gate_db / 10.0)

    noise = _noise(quantised, held, reference)
    if noise.max() <= limit:
        return _judged(quantised, noise, ())
    worst = np.argsort(noise, kind="stable")[::-1][:RANKED_ON]
    gains = _gains(quantised, exact, held, reference, worst.tolist())
    order = sorted(LAYERS, key=lambda layer: float(gains[layer].mean()) / (macs[layer] + CALLING_MACS), reverse=True)

    def tried(count: int) -> tuple[Quantised, bool]:
        kept = tuple(layer for layer in LAYERS if layer in order[:count])
        mixed = _mixed(quantised, exact, kept)
        noise = _noise(mixed, held, reference)
        return _judged(mixed, noise, kept), bool(noise.max() <= limit)

    too_few, enough = 0, _most(order, macs)
    best, holds = tried(enough)
    if not holds:
        raise QuantiseError(
            f"8 bits change the picture too much: even with half of the network in 32 bits the worst of {noise.size} "
            f"windows reaches {best.worst_psnr_db:.1f} dB, {gate_db:g} dB are wanted; use bf16 or f32"
        )
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        made, holds = tried(count)
        if holds:
            best, enough = made, count
        else:
            too_few = count
    return best


def psnr_db(noise: float) -> float:
    """Peak signal-to-noise ratio of a mean square difference, where 1 is full scale."""
    return float(-10.0 * np.log10(max(noise, 1e-12)))


def _judged(model: ov.Model, noise: Noise, kept: tuple[str, ...]) -> Quantised:
    return Quantised(model, psnr_db(float(noise.max())), psnr_db(float(np.median(noise))), kept)


# ---- the graph


def _named(generator: ov.Model) -> tuple[ov.Model, dict[str, float]]:
    """Copy with known names, weights in float32 and a bias at each convolution; and what each layer costs.

    The first layer of a level has its bias in the face half. It gets one of zeros, which costs nothing, so that NNCF
    can correct what rounding shifts.
    """
    model = generator.clone()
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in WEIGHTED]
    if len(nodes) != len(LAYERS) or {value.get_any_name() for value in model.inputs} != {AUDIO, *SKIPS}:
        raise QuantiseError(
            f"not the generator of a split Wav2Lip: {len(nodes)} convolutions in place of {len(LAYERS)}"
        )
    macs = {}
    for name, node in zip(LAYERS, nodes, strict=True):
        weights = _weights(node)
        _set_constant(node, weights)
        node.set_friendly_name(name)
        deconvolution = node.get_type_name() == "ConvolutionBackpropData"
        where = node.input_value(0) if deconvolution else node.output(0)
        _, _, height, width = where.get_partial_shape()
        macs[name] = float(weights.size * height.get_length() * width.get_length())
        bias = _bias(node)
        if bias is None:
            readers = node.output(0).get_target_inputs()
            zeros = np.zeros((1, weights.shape[1 if deconvolution else 0], 1, 1), np.float32)
            bias = ops.add(node, ops.constant(zeros))
            for reader in readers:
                reader.replace_source_output(bias.output(0))
        bias.set_friendly_name(_bias_name(name))
    model.validate_nodes_and_infer_types()
    return model, macs


def _bias_name(layer: str) -> str:
    return f"{layer}.bias"


def _bias(node: ov.Node) -> ov.Node | None:
    """The addition of a constant behind a convolution."""
    add = _reader(node)
    if add.get_type_name() != "Add" or all(_constant(value) is None for value in add.input_values()):
        return None
    return add


def _reader(node: ov.Node) -> ov.Node:
    """The one operation that reads what another gives."""
    (reader,) = node.output(0).get_target_inputs()
    return reader.get_node()


def _weights(node: ov.Node) -> Float32:
    """A copy of the constant that an operation reads at its second input."""
    weights = _constant(node.input_value(1))
    if weights is None:
        raise QuantiseError(f"the weights of {node.get_friendly_name()} are not constant")
    return weights.copy()


def _set_constant(node: ov.Node, values: npt.NDArray[Any]) -> None:
    node.input(1).replace_source_output(ops.constant(values.astype(np.float32)).output(0))


def _constant(value: ov.Output) -> Float32 | None:
    """The value of a constant, kept in 16 bits or not, as float32; None if it is not constant."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data(), np.float32) if node.get_type_name() == "Constant" else None


def _equalised(model: ov.Model, windows: _Windows) -> ov.Model:
    """Copy that draws the same, in which the channels of each tensor between convolutions are about equally large.

    A ReLU lets a positive factor through. What a convolution gives is divided by it and the weights that read it are
    multiplied; the tensors that residuals tie together have their factors in common.
    """
    equal = model.clone()
    nodes = {node.get_friendly_name(): node for node in equal.get_ops()}
    groups: list[list[str]] = []
    for layer in LAYERS[:-1]:
        if _residual(nodes[_bias_name(layer)]):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    peaks = _peaks(model, windows)
    factors = {
        layer: np.maximum(np.max([peaks[tied] for tied in group], axis=0), LEAST_PEAK) ** EQUALISED
        for group in groups
        for layer in group
    }
    read: Noise = np.ones(1)
    for layer in LAYERS:
        given = factors.get(layer, np.ones(1))
        node, bias = nodes[layer], nodes[_bias_name(layer)]
        weights = _weights(node)
        swapped = weights if node.get_type_name() == "Convolution" else weights.swapaxes(0, 1)  # a view: output first
        swapped *= read.reshape(1, -1, 1, 1) / given.reshape(-1, 1, 1, 1)
        per_channel = given.reshape(1, -1, 1, 1)
        _set_constant(node, weights)
        _set_constant(bias, _weights(bias) / per_channel)
        joint = _reader(bias)
        for port in range(joint.get_input_size()):
            if joint.input_value(port).get_node().get_type_name() == "Parameter":
                share = ops.multiply(joint.input_value(port), ops.constant((1.0 / per_channel).astype(np.float32)))
                joint.input(port).replace_source_output(share.output(0))
        read = given
    equal.validate_nodes_and_infer_types()
    return equal


def _residual(bias: ov.Node) -> bool:
    """Whether what a layer reads is added behind its bias."""
    joint = _reader(bias)
    values = [value.get_node().get_type_name() for value in joint.input_values()]
    return joint.get_type_name() == "Add" and "Parameter" not in values


def _peaks(model: ov.Model, windows: _Windows) -> dict[str, Noise]:
    """Largest activation of each channel behind each layer but the last, as a share of the tensor's largest, (c,)."""
    watched = model.clone()
    activations = [node for node in watched.get_ordered_ops() if node.get_type_name() == "Relu"]
    if len(activations) != len(LAYERS) - 1:
        raise QuantiseError(f"not the generator of a split Wav2Lip: {len(activations)} ReLUs, not {len(LAYERS) - 1}")
    watched.add_outputs([node.output(0) for node in activations])
    compiled = _compile(watched)
    peaks = [np.zeros(1)] * len(activations)
    for rows in windows.batches():
        drawn = compiled(windows.inputs(rows))
        peaks = [np.maximum(peak, drawn[k + 1].max(axis=(0, 2, 3))) for k, peak in enumerate(peaks)]
    return {layer: peak / max(float(peak.max()), 1e-12) for layer, peak in zip(LAYERS, peaks, strict=False)}


def _by_nncf(exact: ov.Model, windows: _Windows) -> ov.Model:
    """Quantise every convolution, and nothing else."""
    sums = [node.get_friendly_name() for node in exact.get_ordered_ops() if node.get_type_name() == "Add"]
    sums = [name for name in sums if name.removesuffix(".bias") not in LAYERS]
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own set_log_level changes the handlers of others too
    count = len(windows.samples.mels)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        quantised: ov.Model = nncf.quantize(
            exact,
            nncf.Dataset(range(count), lambda row: windows.inputs([row])),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=count,
            fast_bias_correction=True,
            # The joints read what the face half made, in 32 bits; the residuals are seen to below.
            ignored_scope=nncf.IgnoredScope(names=sums),
            advanced_parameters=AdvancedQuantizationParameters(
                # Half the range for weights helps processors without VNNI only, which draw in 32 bits anyway.
                overflow_fix=OverflowFix.DISABLE,
                # The largest activation of all windows, not the usual mean of each one's: the worst window counts.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
        )
    return quantised


def _tidied(quantised: ov.Model) -> ov.Model:
    """Let each tensor be rounded once, where it is made.

    A residual adds the rounded tensor that its convolution reads, and rows are left out of it after rounding: so it is
    never written in 32 bits.
    """
    for quantiser in [node for node in quantised.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]:
        source = quantiser.input_value(0)
        cut = source.get_node()
        if cut.get_type_name() == "Slice":
            for reader in quantiser.output(0).get_target_inputs():
                reader.replace_source_output(cut.output(0))
            source = cut.input_value(0)
            quantiser.input(0).replace_source_output(source)
        for reader in source.get_target_inputs():
            if reader.get_node().get_friendly_name() != quantiser.get_friendly_name():
                reader.replace_source_output(quantiser.output(0))
    quantised.validate_nodes_and_infer_types()
    return quantised


def _mixed(quantised: ov.Model, exact: ov.Model, kept: Sequence[str]) -> ov.Model:
    """Copy in which some layers compute in 32 bits, on the weights and biases that they had."""
    mixed = quantised.clone()
    nodes = {node.get_friendly_name(): node for node in mixed.get_ops()}
    before = {node.get_friendly_name(): node for node in exact.get_ops()}
    for layer in kept:
        quantiser = nodes[layer].input_value(0).get_node()
        if quantiser.get_type_name() == "Slice":
            quantiser = quantiser.input_value(0).get_node()
        for reader in quantiser.output(0).get_target_inputs():
            reader.replace_source_output(quantiser.input_value(0))
        for name in (layer, _bias_name(layer)):
            _set_constant(nodes[name], _weights(before[name]))
    mixed.validate_nodes_and_infer_types()
    return mixed


# ---- measuring


def _compile(model: ov.Model) -> ov.CompiledModel:
    # What is not in 8 bits is in 32, whatever the processor would choose.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **hints_for_bytes()}
    return ov.Core().compile_model(model, "CPU", hints)


def _draw(model: ov.Model, windows: _Windows, batches: Sequence[Sequence[int]]) -> Float32:
    """Draw windows: (n, 3, 48, 96), 0..1."""
    compiled = _compile(model)
    return np.concatenate([np.array(compiled(windows.inputs(rows))[OUTPUT]) for rows in batches])


def _noise(model: ov.Model, windows: _Windows, reference: Float32, rows: Sequence[int] | None = None) -> Noise:
    drawn = _draw(model, windows, windows.batches(rows))
    wanted = reference if rows is None else reference[rows]
    return np.asarray(np.mean((drawn.astype(np.float64) - wanted) ** 2, axis=(1, 2, 3)))


def _gains(
    quantised: ov.Model, exact: ov.Model, windows: _Windows, reference: Float32, rows: Sequence[int]
) -> Mapping[str, Noise]:
    """How much less noise some windows have when one layer alone is given back its 32 bits, (len(rows),) each."""
    noise = _noise(quantised, windows, reference, rows)
    return {layer: noise - _noise(_mixed(quantised, exact, [layer]), windows, reference, rows) for layer in LAYERS}


def _most(order: Sequence[str], macs: Mapping[str, float]) -> int:
    """How many layers of `order` may be kept at most."""
    shares = np.cumsum([macs[layer] for layer in order]) / sum(macs.values())
    return int(np.count_nonzero(shares <= MOST_KEPT))
