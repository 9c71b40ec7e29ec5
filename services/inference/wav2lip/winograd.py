"""The generator's 3x3 convolutions with half of their multiplications, written as an OpenVINO graph.

Of four neighbouring rows of the output each is a sum of three rows of the input, times a row of the kernel: twelve
products of rows. Minimal filtering (S. Winograd, "Arithmetic Complexity of Computations", 1980; for networks A. Lavin
and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016) needs six, of sums of rows: F(4, 3). It is done
along the height alone, so the sums are of whole rows, which cost little beside what is left: six convolutions with
kernels of one row. Layers that follow each other hand on the rows apart, by their number modulo four.

OpenVINO's plugin for processors multiplies directly, so this is faster where it computes in 32 bits, and the result is
the same up to rounding. It is not meant for fewer bits, which the sums would need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset8 as ops

__all__ = ["with_fewer_products"]

ROWS: Final = 4
"""of the output that are computed together"""
LEAST_CHANNELS: Final = 64
LEAST_ROWS: Final = 8
"""Smaller layers gain nothing."""

KERNEL: Final = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""sums of kernel rows, for the points 0, 1, -1, 2, -2 and infinity"""

_END: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Layer:
    """A convolution, what is added to it, and its activation."""

    source: Any
    """ov.Output that it reads"""
    weights: npt.NDArray[np.float64]
    """(out, in, 3, 3) or (out, in, 1, 1)"""
    added: Any
    """ov.Output: a constant for each channel, or an input of the network with as many rows as come out"""
    drops: bool
    """whether the first row is left out, which would need the row above it"""
    end: Any
    """ov.Node: the activation"""

    @property
    def pointwise(self) -> bool:
        """Whether each row depends on itself alone."""
        return int(self.weights.shape[2]) == 1


def with_fewer_products(generator: ov.Model) -> ov.Model | None:
    """Rewrite the convolutions that are worth it.

    Args:
        generator: from `split.split`, residuals folded; it is left as it is.

    Returns:
        a copy with the same inputs and outputs; None if there is nothing to rewrite.
    """
    made = generator.clone()
    chains = _chains(made)
    for chain in chains:
        _rewrite(chain)
    if not chains:
        return None
    made.validate_nodes_and_infer_types()
    return made


def _chains(model: ov.Model) -> list[list[_Layer]]:
    """Layers that follow each other and may be rewritten together."""
    chains: list[list[_Layer]] = []
    for node in model.get_ordered_ops():
        layer = _layer(node)
        if layer is None:
            continue
        last = chains[-1] if chains else None
        if last and layer.source.get_node() == last[-1].end and len(layer.source.get_target_inputs()) == 1:
            last.append(layer)
        elif not layer.pointwise:
            chains.append([layer])
    return [chain for chain in chains if _fits(chain)]


def _fits(chain: Sequence[_Layer]) -> bool:
    """Whether a chain is worth it, and rows that are added above it, so that their number is a multiple of `ROWS`,
    reach nothing that is wanted: the first layer meets zeros there, as it should, but later ones meet what it made."""
    rows = int(chain[0].source.get_partial_shape()[2].get_length())
    return rows >= LEAST_ROWS and (rows % ROWS == 0 or all(layer.drops or layer.pointwise for layer in chain[1:]))


def _layer(node: Any) -> _Layer | None:
    """The layer that begins with a node, if it is one that may be rewritten."""
    if node.get_type_name() != "Convolution":
        return None
    found = node.get_attributes()
    shape, read = node.input_value(1).get_partial_shape(), node.input_value(0).get_partial_shape()
    if shape.is_dynamic or read[2].is_dynamic or read[3].is_dynamic:
        return None
    out, into, height, width = shape.to_shape()
    begin, end = tuple(found["pads_begin"]), tuple(found["pads_end"])
    three = (height, width) == (3, 3) and begin in ((0, 1), (1, 1)) and end == (1, 1) and out >= LEAST_CHANNELS // 2
    one = (height, width) == (1, 1) and begin == end == (0, 0)
    if not (three or one) or not tuple(found["strides"]) == tuple(found["dilations"]) == (1, 1):
        return None
    weights, add = node.input_value(1).get_node(), _only_reader(node, "Add")
    last = None if add is None else _only_reader(add, "Relu", "Sigmoid")
    if weights.get_type_name() != "Constant" or last is None or (three and into < LEAST_CHANNELS):
        return None
    for value in add.input_values():
        if value.get_node().get_type_name() in ("Constant", "Parameter"):
            data = np.asarray(weights.get_data(), np.float64)
            return _Layer(node.input_value(0), data, value, three and begin[0] == 0, last)
    return None


def _only_reader(node: Any, *kinds: str) -> Any:
    readers = list(node.output(0).get_target_inputs())
    only = readers[0].get_node() if len(readers) == 1 else None
    return only if only is not None and only.get_type_name() in kinds else None


def _rewrite(chain: Sequence[_Layer]) -> None:
    first, last = chain[0], chain[-1]
    shape = first.source.get_partial_shape()
    rows, width = int(shape[2].get_length()), int(shape[3].get_length())
    above = -rows % ROWS
    readers = list(last.end.output(0).get_target_inputs())
    parts = _apart(first.source, rows + above)
    for layer in chain:
        constant = layer.added.get_node().get_type_name() == "Constant"
        added = [layer.added] * ROWS if constant else _apart(layer.added, rows + above)
        made = [ops.add(row, more) for row, more in zip(_multiplied(layer, parts), added, strict=True)]
        parts = [ops.relu(row) if layer.end.get_type_name() == "Relu" else ops.sigmoid(row) for row in made]
    # Beside each other and read anew as under each other, the rows are in their order again.
    together = np.array([0, len(last.weights), rows + above, width], np.int64)
    whole = ops.reshape(ops.concat(parts, 3), ops.constant(together), special_zero=True)
    dropped = above + sum(layer.drops for layer in chain)
    result = _sliced(whole, dropped, _END, 1) if dropped else whole
    for reader in readers:
        reader.replace_source_output(result.output(0))


def _apart(values: Any, rows: int) -> list[Any]:
    """Rows by their number modulo `ROWS`; rows of zeros come in above, so that there are `rows` in all."""
    above = rows - int(values.get_partial_shape()[2].get_length())
    values = _padded(values, above, 0) if above else values
    return [_sliced(values, k, _END, ROWS) for k in range(ROWS)]


def _multiplied(layer: _Layer, parts: Sequence[Any]) -> list[Any]:
    """The convolution of rows, which are apart, without what is added to it."""
    if layer.pointwise:
        weights = ops.constant(layer.weights.astype(np.float32))
        return [ops.convolution(part, weights, (1, 1), (0, 0), (0, 0), (1, 1)) for part in parts]
    products = []
    for rows, kernel in zip(_sums_of_input(parts), KERNEL, strict=True):
        made = np.einsum("t,oitw->oiw", np.array(kernel), layer.weights)[:, :, None, :]
        weights = ops.constant(made.astype(np.float32))
        products.append(ops.convolution(rows, weights, (1, 1), (0, 1), (0, 1), (1, 1)))
    return _sums_of_products(products)


def _sums_of_input(parts: Sequence[Any]) -> list[Any]:
    """(4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0) and
    (0, 4, 0, -5, 0, 1) times the rows from the one above on."""
    d0, d1, d2, d3, d4, d5 = _moved(parts[-1], 1), *parts, _moved(parts[0], -1)
    even, odd = ops.subtract(d4, d2), ops.subtract(d3, d1)
    a, b = _plus(d2, -4, d4), _plus(d1, -4, d3)
    return [
        _plus(ops.subtract(d0, d2), 4, even),
        ops.add(a, b),
        ops.subtract(a, b),
        _plus(odd, 2, even),
        _plus(odd, -2, even),
        _plus(odd, -4, ops.subtract(d5, d3)),
    ]


def _sums_of_products(products: Sequence[Any]) -> list[Any]:
    """(1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0) and (0, 1, -1, 8, -8, 1) times the products."""
    m0, m1, m2, m3, m4, m5 = products
    near, far = ops.add(m1, m2), ops.add(m3, m4)
    step, leap = ops.subtract(m1, m2), ops.subtract(m3, m4)
    return [
        ops.add(ops.add(m0, near), far),
        _plus(leap, 2, step),
        _plus(far, 4, near),
        ops.add(_plus(leap, 8, step), m5),
    ]


def _plus(values: Any, factor: float, other: Any) -> Any:
    return ops.add(ops.multiply(values, ops.constant(np.float32(factor))), other)


def _moved(values: Any, by: int) -> Any:
    """Each row `by` further down, 1 or -1; a row of zeros comes in."""
    return _sliced(_padded(values, 1, 0), 0, -1, 1) if by > 0 else _sliced(_padded(values, 0, 1), 1, _END, 1)


def _padded(values: Any, above: int, below: int) -> Any:
    begin, end = (ops.constant(np.array([0, 0, count, 0], np.int64)) for count in (above, below))
    return ops.pad(values, begin, end, "constant", ops.constant(np.float32(0)))


def _sliced(values: Any, first: int, end: int, step: int) -> Any:
    from_, to, by, axis = (ops.constant(np.array([number], np.int64)) for number in (first, end, step, 2))
    return ops.slice(values, from_, to, by, axis)
