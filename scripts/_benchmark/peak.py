"""What the processor can do at most, measured; and what a network asks of it, counted.

The peak of a precision is the fastest of several dense products on this machine in this run: matrices in PyTorch (MKL
or oneDNN), matrices and a 3x3 convolution in OpenVINO. It is less than a data sheet's figure, which holds for registers
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops

__all__ = ["Way", "macs", "ways"]

SIDE: Final = 1024
"""of the square matrices"""
CHANNELS: Final = 512
HEIGHT: Final = 32
"""and width of the picture that is convolved"""
SEED: Final = 0


@dataclass(frozen=True)
class Way:
    """One way to keep the processor busy."""

    name: str
    precision: str
    """f32, bf16, f16 or int8"""
    operations: float
    """of one call; a multiplication with its addition counts as two"""
    kernel: str
    """by which it was computed, as the library tells"""
    call: Callable[[], object]


def macs(network: ov.Model) -> int:
    """Count the multiplications of all convolutions for one frame.

    A convolution multiplies each weight once for every position of its output, a transposed one for every position of
    its input. Products with padding are counted, and those whose place lies outside the output, as is usual.

    Args:
        network: heights and widths fixed, any batch.

    Raises:
        ValueError: a height or width is not fixed.
    """
    total = 0
    for node in network.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "ConvolutionBackpropData"):
            continue
        place = node.output(0) if kind == "Convolution" else node.input_value(0)
        dimensions = [*list(place.get_partial_shape())[2:], *node.input_value(1).get_partial_shape()]
        if any(dimension.is_dynamic for dimension in dimensions):
            raise ValueError(f"the size of {node.get_friendly_name()} is not fixed")
        total += prod(int(dimension.get_length()) for dimension in dimensions)
    return total


def ways(precisions: Sequence[str], threads: int) -> list[Way]:
    """Make ready to measure the peak.

    Args:
        precisions: that the processor has.
        threads: for OpenVINO; those of PyTorch are set already.

    Returns:
        some for each precision.
    """
    random = np.random.default_rng(SEED)
    matrix = random.uniform(-1.0, 1.0, (SIDE, SIDE)).astype(np.float32)
    kernels = random.uniform(-1.0, 1.0, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    picture = random.uniform(0.0, 1.0, (1, CHANNELS, HEIGHT, HEIGHT)).astype(np.float32)
    matrix_operations = 2.0 * SIDE**3
    picture_operations = 2.0 * kernels.size * HEIGHT**2
    found = []
    for precision in precisions:
        if precision in ("f32", "bf16"):
            found.append(_torch_way(matrix, precision, matrix_operations))
        product = ops.parameter(matrix.shape, np.float32)
        graph = ops.matmul(_read(product, precision), _weights(matrix, precision), transpose_a=False, transpose_b=True)
        found.append(_openvino_way("matrices", graph, product, abs(matrix), precision, threads, matrix_operations))
        shown = ops.parameter(picture.shape, np.float32)
        graph = ops.convolution(_read(shown, precision), _weights(kernels, precision), [1, 1], [1, 1], [1, 1], [1, 1])
        found.append(_openvino_way("convolution", graph, shown, picture, precision, threads, picture_operations))
    return found


def _torch_way(matrix: np.ndarray, precision: str, operations: float) -> Way:
    left = torch.from_numpy(matrix).to(torch.float32 if precision == "f32" else torch.bfloat16)

    def call() -> object:
        with torch.inference_mode():
            return torch.mm(left, left)

    return Way(f"PyTorch, matrices of {SIDE} x {SIDE}", precision, operations, "torch.mm", call)


def _openvino_way(
    what: str, graph: Any, parameter: Any, values: np.ndarray, precision: str, threads: int, operations: float
) -> Way:
    size = f"matrices of {SIDE} x {SIDE}"
    if what == "convolution":
        size = f"3x3 convolution, {CHANNELS} channels, {HEIGHT} x {HEIGHT}"
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = ov.Core().compile_model(ov.Model([ops.result(graph)], [parameter], what), "CPU", hints)
    request = compiled.create_infer_request()
    inputs = [values]

    def call() -> object:
        return request.infer(inputs, share_inputs=True, share_outputs=True)

    return Way(f"OpenVINO, {size}", precision, operations, _kernel(compiled), call)


def _read(parameter: Any, precision: str) -> Any:
    """What is multiplied: as it is, or in unsigned 8 bits."""
    return _rounded(parameter, 0.0, 256) if precision == "int8" else parameter


def _weights(values: np.ndarray, precision: str) -> Any:
    constant = ops.constant(values)
    return _rounded(constant, -1.0, 255) if precision == "int8" else constant


def _rounded(values: Any, least: float, levels: int) -> Any:
    low, high = np.float32(least), np.float32(1.0)
    return ops.fake_quantize(values, low, high, low, high, levels)


def _kernel(compiled: Any) -> str:
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: value.value for key, value in node.get_rt_info().items()}
        if told.get("layerType") in ("Convolution", "FullyConnected", "MatMul"):
            return str(told.get("primitiveType", ""))
    return ""
