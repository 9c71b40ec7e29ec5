"""The generator arranged so that the weights of its smallest layers are read once for a batch.

Half of its weights belong to layers of a few pixels, which take less time to multiply than to fetch: the weights of one
fill a processor's second cache several times over, and OpenVINO's convolutions fetch them anew for every picture of a
batch. So what turns one pixel into a few or a few into one becomes a product of matrices, and the pictures of a batch
lie beside each other in the other small layers, as one wide picture with a column of zeros after each.

That is for 32 and 16 bits. Weights that are quantised are no constants of a convolution, and are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset12 as ops

from services.inference.wav2lip.graph import PICTURES, only_reader, take_the_place, whole

__all__ = ["as_matrices", "beside_each_other"]

WIDEST: Final = 6
LEAST_WEIGHTS: Final = 1 << 20
"""Layers that are wider, or have fewer weights, are left as they are."""


def as_matrices(network: ov.Model) -> ov.Model:
    """Write convolutions from or to a single pixel as products of matrices.

    Args:
        network: heights and widths fixed, any batch; it is left as it is.

    Returns:
        a copy with the same inputs and outputs.
    """
    made = network.clone()
    for node in made.get_ordered_ops():
        weights = _matrix(node)
        if weights is None:
            continue
        to = [0, *(int(size.get_length()) for size in list(node.output(0).get_partial_shape())[1:])]
        flat = ops.reshape(node.input_value(0), whole(0, -1), special_zero=True)
        product = ops.matmul(flat, ops.constant(weights), transpose_a=False, transpose_b=True)
        take_the_place(node, ops.reshape(product, whole(*to), special_zero=True))
    made.validate_nodes_and_infer_types()
    return made


def beside_each_other(network: ov.Model) -> ov.Model:
    """Lay the pictures of a batch beside each other where they are small and the weights many.

    Args:
        network: the batch of what is drawn is fixed; it is left as it is.

    Returns:
        a copy with the same inputs and outputs.
    """
    made = network.clone()
    for chain in _chains(made):
        _lay(chain)
    made.validate_nodes_and_infer_types()
    return made


def _matrix(node: Any) -> Any:
    """Weights as a matrix, (out, in), of a convolution that may be written so; None of others."""
    kind = node.get_type_name()
    if kind not in ("Convolution", "ConvolutionBackpropData"):
        return None
    weights = node.input_value(1).get_node()
    found = node.get_attributes()
    read, made = node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()
    one, many = (read, made) if kind == "ConvolutionBackpropData" else (made, read)
    kernel = list(node.input_value(1).get_partial_shape())[2:]
    if weights.get_type_name() != "Constant" or list(one)[2:] != [1, 1] or list(many)[2:] != kernel:
        return None
    if any((*found["pads_begin"], *found["pads_end"], *(found.get("output_padding") or ()))):
        return None
    data = np.asarray(weights.get_data(), np.float32)
    apart = data.reshape(len(data), -1)
    return np.ascontiguousarray(apart.T if kind == "ConvolutionBackpropData" else apart)


@dataclass(frozen=True)
class _Layer:
    """A convolution of a few wide pixels, what is added to it, and its Relu."""

    node: Any
    added: Any
    """ov.Output: a constant for each channel, or another for each pixel"""
    end: Any
    """ov.Node"""

    @property
    def source(self) -> Any:
        """What it reads, ov.Output."""
        return self.node.input_value(0)

    @property
    def stride(self) -> int:
        """Pixels that it makes of one, in a row."""
        return int(self.node.get_attributes()["strides"][1])


def _chains(network: ov.Model) -> list[list[_Layer]]:
    """Layers that follow each other."""
    chains: list[list[_Layer]] = []
    for node in network.get_ordered_ops():
        layer = _layer(node)
        if layer is None:
            continue
        last = chains[-1][-1].end if chains else None
        if last is not None and layer.source.get_node() == last and len(layer.source.get_target_inputs()) == 1:
            chains[-1].append(layer)
        else:
            chains.append([layer])
    return chains


def _layer(node: Any) -> _Layer | None:
    kind = node.get_type_name()
    if kind not in ("Convolution", "ConvolutionBackpropData"):
        return None
    read, weights, found = node.input_value(0).get_partial_shape(), node.input_value(1), node.get_attributes()
    if read.is_dynamic or weights.get_partial_shape().is_dynamic or weights.get_node().get_type_name() != "Constant":
        return None
    shape = weights.get_partial_shape().to_shape()
    if len(shape) != PICTURES:
        return None
    batch, _, _, width = read.to_shape()
    if batch == 1 or not 1 < width <= WIDEST or int(np.prod(shape)) < LEAST_WEIGHTS:
        return None
    # Each picture makes as many columns as it has, or twice as many, of which the last is its own.
    stride, rest = int(found["strides"][1]), (found.get("output_padding") or (0, 0))[1]
    wide = shape[3] == 3 and found["pads_begin"][1] == found["pads_end"][1] == 1 and tuple(found["dilations"]) == (1, 1)
    if not wide or (stride, rest) != ((1, 0) if kind == "Convolution" else (2, 1)):
        return None
    add = only_reader(node, "Add")
    end = None if add is None else only_reader(add, "Relu")
    if end is None:
        return None
    added = next(value for value in add.input_values() if value.get_node() != node)
    return _Layer(node, added, end)


def _lay(chain: Sequence[_Layer]) -> None:
    batch, _, _, width = chain[0].source.get_partial_shape().to_shape()
    values = _beside(chain[0].source, batch)
    for layer in chain:
        made = _convolved(layer, values)
        # Of each picture, with its column of zeros, so many columns came.
        pitch, width = layer.stride * (width + 1), layer.stride * width
        if layer is chain[-1]:
            apart = ops.concat([_columns(made, k * pitch, k * pitch + width) for k in range(batch)], 0)
            take_the_place(layer.end, ops.relu(ops.add(apart, layer.added)))
            return
        if pitch != width + 1:
            made = ops.concat([_columns(made, k * pitch, k * pitch + width + 1) for k in range(batch)], 3)
        constant = layer.added.get_node().get_type_name() == "Constant"
        added = layer.added if constant else _beside(layer.added, batch)
        picture = np.tile(np.append(np.ones(width), 0), batch).reshape(1, 1, 1, -1)
        values = ops.multiply(ops.relu(ops.add(made, added)), ops.constant(picture.astype(np.float32)))


def _convolved(layer: _Layer, values: Any) -> Any:
    found, weights = layer.node.get_attributes(), layer.node.input_value(1)
    begin, end = list(found["pads_begin"]), list(found["pads_end"])
    if layer.node.get_type_name() == "Convolution":
        return ops.convolution(values, weights, found["strides"], begin, end, found["dilations"])
    return ops.convolution_backprop_data(
        values,
        weights,
        list(found["strides"]),
        pads_begin=begin,
        pads_end=end,
        output_padding=list(found["output_padding"]),
    )


def _beside(values: Any, batch: int) -> Any:
    """(n, c, h, w) -> (1, c, h, batch * (w + 1)); one picture alone is repeated."""
    edge = [whole(0, 0, 0, count) for count in (0, 1)]
    padded = ops.pad(values, *edge, "constant", ops.constant(np.float32(0)))
    alone = int(values.get_partial_shape()[0].get_length()) == 1
    return ops.concat([padded] * batch if alone else ops.split(padded, _whole_number(0), batch).outputs(), 3)


def _columns(values: Any, first: int, end: int) -> Any:
    return ops.slice(values, whole(first), whole(end), whole(1), whole(3))


def _whole_number(number: int) -> Any:
    return ops.constant(np.int64(number))
