"""The generator's 3x3 convolutions with half of their multiplications, written as an OpenVINO graph.

Of m neighbouring rows of the output each is a sum of three rows of the input, times a row of the kernel: 3 m products
of rows. Minimal filtering (S. Winograd, "Arithmetic Complexity of Computations", 1980; for networks A. Lavin and S.
Gray, "Fast Algorithms for Convolutional Neural Networks", 2016) needs m + 2, of sums of rows: F(m, 3). It is done along
the height alone, so the sums are of whole rows, which cost little beside what is left: convolutions with kernels of one
row. Layers that follow each other hand on the rows apart, by their number modulo m.

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
from openvino import opset12 as ops

from services.inference.wav2lip.graph import PICTURES, only_reader, take_the_place, whole

__all__ = ["with_fewer_products"]

POINTS: Final = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where polynomials are evaluated, with infinity; the first m + 1 of them for m rows. With a half in place of 2 less is
rounded away (B. Barabasz and others, "Error Analysis and Improving the Accuracy of Winograd Convolution", 2020)."""
TOGETHER: Final = (3, 4)
"""rows of the output that are computed together: of more, rounding would be coarse"""
LEAST_CHANNELS: Final = 64
"""Fewer gain nothing."""
LEAST_ROWS: Final = 8
"""Lower layers have so many weights for their pixels that it takes longer to fetch twice as many."""

Float64 = npt.NDArray[np.float64]

_END: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Layer:
    """A convolution, what is added to it, and its activation."""

    source: Any
    """ov.Output that it reads"""
    weights: Float64
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

    def rows(self, of: int) -> int:
        """How many rows it makes of so many."""
        return of - 1 if self.drops else of


@dataclass(frozen=True)
class _Filtering:
    """F(m, 3): ``output @ ((kernel @ rows of the kernel) * (input @ rows of the input))``."""

    kernel: Float64
    """(m + 2, 3)"""
    input: Float64
    """(m + 2, m + 2)"""
    output: Float64
    """(m, m + 2)"""

    @property
    def together(self) -> int:
        """Rows of the output, m."""
        return len(self.output)


def with_fewer_products(generator: ov.Model, least_channels: int = LEAST_CHANNELS) -> ov.Model | None:
    """Rewrite the convolutions that are worth it.

    Args:
        generator: from `split.split`, residuals folded; it is left as it is.
        least_channels: of what a layer reads. The more a processor multiplies at once, the more channels it takes
            until products that are saved outweigh the sums.

    Returns:
        a copy with the same inputs and outputs; None if there is nothing to rewrite.
    """
    made = generator.clone()
    chains = _chains(made, least_channels)
    for chain in chains:
        _rewrite(chain)
    if not chains:
        return None
    made.validate_nodes_and_infer_types()
    return made


def _chains(model: ov.Model, least_channels: int) -> list[list[_Layer]]:
    """Layers that follow each other and may be rewritten together."""
    chains: list[list[_Layer]] = []
    for node in model.get_ordered_ops():
        layer = _layer(node, least_channels)
        if layer is None:
            continue
        last = chains[-1] if chains else None
        if last and layer.source.get_node() == last[-1].end and len(layer.source.get_target_inputs()) == 1:
            last.append(layer)
        elif not layer.pointwise:
            chains.append([layer])
    return [chain for chain in chains if _fits(chain)]


def _fits(chain: Sequence[_Layer]) -> bool:
    """Whether a chain is worth it."""
    return int(chain[0].source.get_partial_shape()[2].get_length()) >= LEAST_ROWS


def _filtering(together: int) -> _Filtering:
    """F(m, 3) by Toom and Cook: polynomials are multiplied by their values at some points; transposed, they filter."""
    size = together + 2
    points = POINTS[: size - 1]

    def values(terms: int) -> Float64:
        """Of polynomials of so many terms at the points and at infinity."""
        finite = np.vander(points, terms, increasing=True)
        return np.vstack([finite, np.eye(terms)[-1:]]).astype(np.float64)

    # Halves of whole numbers are left for the input when what they are divided by goes to the kernel.
    by = np.array([*(np.prod([p - q for q in points if q != p]) for p in points), 1.0])[:, None]
    return _Filtering(values(3) / by, np.round(np.linalg.inv(values(size)).T * by * 2) / 2, values(together).T)


def _products(chain: Sequence[_Layer], rows: int, together: int) -> int:
    """Products of rows that a chain needs, in a channel."""
    total = 0
    for layer in chain:
        rows = layer.rows(rows)
        total += 0 if layer.pointwise else -(-rows // together) * (together + 2)
    return total


def _layer(node: Any, least_channels: int) -> _Layer | None:
    """The layer that begins with a node, if it is one that may be rewritten."""
    if node.get_type_name() != "Convolution":
        return None
    found = node.get_attributes()
    shape, read = node.input_value(1).get_partial_shape(), node.input_value(0).get_partial_shape()
    if shape.is_dynamic or len(shape) != PICTURES or read[2].is_dynamic or read[3].is_dynamic:
        return None
    out, into, height, width = shape.to_shape()
    begin, end = tuple(found["pads_begin"]), tuple(found["pads_end"])
    three = (height, width) == (3, 3) and begin in ((0, 1), (1, 1)) and end == (1, 1) and out >= least_channels // 2
    one = (height, width) == (1, 1) and begin == end == (0, 0)
    if not (three or one) or not tuple(found["strides"]) == tuple(found["dilations"]) == (1, 1):
        return None
    weights, add = node.input_value(1).get_node(), only_reader(node, "Add")
    last = None if add is None else only_reader(add, "Relu", "Sigmoid")
    if weights.get_type_name() != "Constant" or last is None or (three and into < least_channels):
        return None
    for value in add.input_values():
        if value.get_node().get_type_name() in ("Constant", "Parameter"):
            data = np.asarray(weights.get_data(), np.float64)
            return _Layer(node.input_value(0), data, value, three and begin[0] == 0, last)
    return None


def _rewrite(chain: Sequence[_Layer]) -> None:
    first, last = chain[0], chain[-1]
    shape = first.source.get_partial_shape()
    rows, width = int(shape[2].get_length()), int(shape[3].get_length())
    filtering = _filtering(min(TOGETHER, key=lambda together: _products(chain, rows, together)))
    together = filtering.together
    parts = [_sliced(first.source, k, _END, together) for k in range(together)]
    for layer in chain:
        made = _multiplied(layer, parts, rows, filtering)
        rows = layer.rows(rows)
        if layer.added.get_node().get_type_name() == "Constant":
            added = [layer.added] * together
        else:
            padded = _padded(layer.added, 0, -rows % together)
            added = [_sliced(padded, k, _END, together) for k in range(together)]
        sums = [ops.add(row, more) for row, more in zip(made, added, strict=True)]
        parts = [ops.relu(row) if layer.end.get_type_name() == "Relu" else ops.sigmoid(row) for row in sums]
    # Beside each other and read anew as under each other, the rows are in their order again; with the channels last
    # that moves nothing in the memory.
    tiles = -(-rows // together)
    beside = ops.transpose(ops.concat(parts, 3), whole(0, 2, 3, 1))
    under = ops.reshape(beside, whole(0, tiles * together, width, len(last.weights)), special_zero=True)
    result = ops.transpose(under, whole(0, 3, 1, 2))
    if rows % together:
        result = _sliced(result, 0, rows, 1)
    take_the_place(last.end, result)


def _multiplied(layer: _Layer, parts: Sequence[Any], rows: int, filtering: _Filtering) -> list[Any]:
    """The convolution of rows, which are apart, without what is added to it.

    Args:
        layer: which.
        parts: `rows` rows by their number modulo m; what follows them there means nothing.
        rows: how many there are.
        filtering: F(m, 3).

    Returns:
        the rows that it makes, apart too; each part has the same number of them.
    """
    if layer.pointwise:
        weights = ops.constant(layer.weights.astype(np.float32))
        return [ops.convolution(part, weights, (1, 1), (0, 0), (0, 0), (1, 1)) for part in parts]
    together = filtering.together
    tiles = -(-layer.rows(rows) // together)
    above = 0 if layer.drops else 1
    read = [_rows(parts, k - above, tiles, rows) for k in range(together + 2)]
    products = []
    for factors, kernel in zip(filtering.input, filtering.kernel, strict=True):
        made = np.einsum("t,oitw->oiw", kernel, layer.weights)[:, :, None, :]
        weights = ops.constant(made.astype(np.float32))
        products.append(ops.convolution(_sum(factors, read), weights, (1, 1), (0, 1), (0, 1), (1, 1)))
    return [_sum(factors, products) for factors in filtering.output]


def _rows(parts: Sequence[Any], first: int, count: int, rows: int) -> Any:
    """Every m-th of the rows, `count` of them from `first` on; the row above all and the one below all are zeros."""
    together = len(parts)
    skipped, of = divmod(first, together)
    part = parts[of]
    there = int(part.output(0).get_partial_shape()[2].get_length())
    if rows % together == of and rows // together < there:
        part, there = _sliced(part, 0, rows // together, 1), rows // together
    return _padded(part, -skipped, skipped + count - there)


def _sum(factors: Sequence[float], values: Sequence[Any]) -> Any:
    """Each is written on its own: OpenVINO goes over the memory once for operations whose results have one reader."""
    total: Any = None
    for factor, value in zip(factors, values, strict=True):
        if not factor:
            continue
        term = value if abs(factor) == 1 else ops.multiply(value, ops.constant(np.float32(abs(factor))))
        if total is None:
            total = term if factor > 0 else ops.negative(term)
        else:
            total = ops.add(total, term) if factor > 0 else ops.subtract(total, term)
    return total


def _padded(values: Any, above: int, below: int) -> Any:
    """With rows of zeros, or fewer rows where a number is negative."""
    if not above and not below:
        return values
    begin, end = (whole(0, 0, count, 0) for count in (above, below))
    return ops.pad(values, begin, end, "constant", ops.constant(np.float32(0)))


def _sliced(values: Any, first: int, end: int, step: int) -> Any:
    return ops.slice(values, whole(first), whole(end), whole(step), whole(2))
