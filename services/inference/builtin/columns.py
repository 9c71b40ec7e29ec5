"""The network that hears, run over a stream: of a window that goes on as the last one, only the new columns are heard.

Each of its layers over time reads three columns of the one below, some way apart, and from one frame to the next the
window moves on by 3 or 4 of its 95 columns. What a layer has to read again, the last columns of the one below, is kept
for each session, so that each column is worked out once (Paine et al., "Fast Wavenet generation algorithm", 2016). The
network as it is read leaves out the columns that its one answer does not need; here all are wanted, for later answers,
so its strides become distances between what is read. The result is that of the whole network, up to rounding, whoever
made the frame before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset8 as ops
from openvino.utils.node_factory import NodeFactory

__all__ = ["ColumnNetwork"]

Floats = npt.NDArray[np.float32]

STEPS: Final = (3, 4)
"""columns by which a window goes on in the time of a frame: 3.2"""
NEW: Final = max(STEPS)
"""columns that are heard where it goes on; by the smaller step some of them were heard before"""
MORE: Final = NEW - min(STEPS)
"""columns that are kept beyond those that a layer reads again, for that"""
MOST_KEPT: Final = 64
"""sessions whose columns are kept, as many as a server takes"""


@dataclass(frozen=True)
class _Kept:
    """What was heard of a session last."""

    window: Floats
    """(80, n)"""
    columns: tuple[Floats, ...]
    """for each number of channels what the layers have to read again, one behind the other, (1, columns, channels)"""
    tensors: tuple[ov.Tensor, ...]
    """the same memory"""


class _UnfitError(ValueError):
    """The columns of a network cannot be kept; the text says why."""


class ColumnNetwork:
    """Runs the network for one window at a time; calls must not overlap."""

    def __init__(self, core: ov.Core, model: ov.Model, config: dict[str, Any]) -> None:
        """Compile it.

        Args:
            core: of OpenVINO.
            model: mel (n, 80, t) to (n, m), built of branches of layers along the columns that do not go over the ends
                of the window. One that is not built so is run whole.
            config: how it is compiled.

        Raises:
            RuntimeError: OpenVINO refuses it.
        """
        bands, columns = (length.get_length() for length in list(model.input(0).partial_shape)[1:])
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._new: _Request | None = None
        try:
            whole = _Streamed(model, columns)
            new = _Streamed(model, NEW, whole)
        except _UnfitError:
            # For one window OpenVINO takes two thirds of the time that it takes where it may be any number.
            model.reshape([1, bands, columns])
            self._whole = _Request(core, model, config)
            return
        self._shapes = [tuple(output.get_shape()) for output in whole.kept]
        self._again = {step: [_rows(lengths, step) for lengths in whole.lengths] for step in STEPS}
        """of what is kept, the columns that are read again when a window goes on so far"""
        self._whole = _Request(core, whole.model(), config)
        self._new = _Request(core, new.model(), config)

    def hear(self, window: Floats, session: str) -> Floats:
        """What the network says of a window, (80, t) to (1, m).

        Args:
            window: mel on one loudness.
            session: whose; the window before it may have been any other.
        """
        if self._new is None:
            return self._whole.run(window)
        # Taken out until it is whole again: should anything fail, the next window is heard whole.
        kept = self._kept.pop(session, None)
        step = next((step for step in STEPS if kept is not None and _goes_on(kept.window, window, step)), 0)
        if kept is None:
            kept = self._begun(window)
        if step:
            for known, columns, rows in zip(self._new.known, kept.columns, self._again[step], strict=True):
                known[0] = columns[0, rows]
            said = self._new.run(window[:, -self._new.columns :], kept.tensors)
        else:
            said = self._whole.run(window, kept.tensors)
        kept.window[:] = window
        self._kept[session] = kept
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return said

    def _begun(self, window: Floats) -> _Kept:
        """Room for what is heard of a session."""
        columns = tuple(np.zeros(shape, np.float32) for shape in self._shapes)
        tensors = tuple(ov.Tensor(each, shared_memory=True) for each in columns)
        return _Kept(np.empty_like(window), columns, tensors)


class _Request:
    """A compiled model with inputs, and a first output, that stay where they are."""

    def __init__(self, core: ov.Core, model: ov.Model, config: dict[str, Any]) -> None:
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        inputs = [np.zeros(tuple(given.shape), np.float32) for given in model.inputs]
        for k, each in enumerate(inputs):
            self._request.set_input_tensor(k, ov.Tensor(each, shared_memory=True))
        self._window, *self.known = inputs
        self._said = self._request.get_output_tensor(0).data
        self.columns = self._window.shape[2]

    def run(self, window: Floats, kept: tuple[ov.Tensor, ...] = ()) -> Floats:
        """Run it on a window, (80, `columns`), and on what is in `known`; what is to be kept is put where that is
        kept."""
        self._window[0] = window
        for k, tensor in enumerate(kept):
            self._request.set_output_tensor(1 + k, tensor)
        self._request.infer()
        return np.array(self._said, np.float32)


def _goes_on(before: Floats, window: Floats, step: int) -> bool:
    return bool((before[:, step] == window[:, 0]).all() and (before[:, step:] == window[:, :-step]).all())


def _rows(lengths: list[int], step: int) -> npt.NDArray[np.intp]:
    """Of columns kept for several layers, `MORE` for each beyond those that it reads again, the latter."""
    rows: list[int] = []
    at = 0
    for length in lengths:
        first = at + step - min(STEPS)
        rows += range(first, first + length)
        at += length + MORE
    return np.array(rows, np.intp)


class _Streamed:
    """The network written anew, node by node, so that it works out every column that it can.

    What the layers over time read lies as (1, columns, channels), and they become products of matrices, which OpenVINO
    works out in half the time that it takes for convolutions of so few columns.

    Args:
        model: the network.
        columns: of a whole window; or those that are new.
        whole: the same for a whole window; None: this is that one.

    Raises:
        _UnfitError: it is not built so that its columns can be kept.
    """

    def __init__(self, model: ov.Model, columns: int, whole: _Streamed | None = None) -> None:
        self._goes_on = whole is not None
        self._columns = columns
        self.lost: int = 0 if whole is None else whole.lost
        """columns by which there are fewer of what the first layer over time reads"""
        bands = list(model.input(0).partial_shape)[1].get_length()
        self._mel = ops.parameter([1, bands, columns + self.lost], np.float32)
        self._new: dict[tuple[str, int], ov.Output] = {}
        """what stands for each value of the network"""
        self._fixed: set[tuple[str, int]] = set()
        """values that are the same whatever is heard"""
        self._in_rows: set[tuple[str, int]] = set()
        """values that lie as (1, columns, channels)"""
        self._apart: dict[tuple[str, int], int] = {}
        """of how many columns the network keeps one, unless it is all"""
        self._layers: list[tuple[int, ov.Output, ov.Node | None]] = []
        """of each layer over time how many columns it reads again, what it reads, and what of that is known"""
        self._said: list[ov.Output] = []
        for node in model.get_ordered_ops():
            self._write(node)
        if not self._layers:
            raise _UnfitError("it has no layers over time")
        if whole is None:
            self.lost = columns - max(read.get_shape()[1] for _, read, _ in self._layers)
        self._groups: dict[int, list[int]] = {}
        for k, (_, read, _) in enumerate(self._layers):
            self._groups.setdefault(read.get_shape()[2], []).append(k)
        self.lengths: list[list[int]] = [[self._layers[k][0] for k in members] for members in self._groups.values()]
        """for each number of channels, how many columns each layer reads again"""
        self.kept: list[ov.Output] = [
            ops.concat([_last(self._layers[k][1], self._layers[k][0] + MORE) for k in members], 1).output(0)
            for members in self._groups.values()
        ]
        """for each number of channels what is to be kept"""

    def model(self) -> ov.Model:
        """Mel, and where it goes on what is known, to what is said and what is to be kept."""
        given = [self._mel]
        if self._goes_on:
            for (channels, members), lengths in zip(self._groups.items(), self.lengths, strict=True):
                given.append(ops.parameter([1, sum(lengths), channels], np.float32))
                parts = ops.variadic_split(given[-1], ops.constant(1), ops.constant(lengths))
                for part, k in enumerate(members):
                    known = self._layers[k][2]
                    for target in [] if known is None else list(known.output(0).get_target_inputs()):
                        target.replace_source_output(parts.output(part))
        return ov.Model([ops.result(each) for each in (*self._said, *self.kept)], given)

    def _write(self, node: ov.Node) -> None:
        kind, name = node.get_type_name(), node.get_friendly_name()
        read = [(value.get_node().get_friendly_name(), value.get_index()) for value in node.input_values()]
        inputs = [self._new[each] for each in read]
        apart = max((self._apart.get(each, 1) for each in read), default=1)
        sequence = bool(inputs) and len(node.input_value(0).get_partial_shape()) == len(("n", "channels", "columns"))
        in_rows = not self._in_rows.isdisjoint(read)
        if kind == "Result":
            self._said = inputs
            return
        if kind == "Parameter":
            made = [self._mel.output(0)]
        elif kind == "Constant":
            made = [node.output(0)]
        elif kind == "Slice" and sequence and (self._goes_on or inputs[0].get_node() != self._mel):
            made = [inputs[0]]  # the columns that the network needs; here all are wanted
        elif kind == "Convolution" and sequence:
            inputs[0] = inputs[0] if in_rows else _turned(inputs[0])
            made, in_rows = [self._layer(node, inputs[0], apart)], True
            apart *= node.get_attributes()["strides"][0]
        elif in_rows and kind in {"Add", "Relu"}:
            made = self._by_column(kind, read, inputs)
        elif in_rows and kind == "Gather" and _number(node.input_value(2)) == 2:
            made, in_rows = [ops.gather(inputs[0], inputs[1], ops.constant(1)).output(0)], False
        elif in_rows:
            raise _UnfitError(f"{kind} of columns")
        else:
            made = NodeFactory("opset8").create(kind, inputs, node.get_attributes()).outputs()
        values = [(name, k) for k in range(len(made))]
        self._new.update(zip(values, made, strict=True))
        self._apart.update(dict.fromkeys(values, apart))
        if in_rows:
            self._in_rows.update(values)
        if kind == "Constant" or (read and self._fixed.issuperset(read)):
            self._fixed.update(values)

    def _by_column(self, kind: str, read: list[tuple[str, int]], inputs: list[ov.Output]) -> list[ov.Output]:
        """What is done with each value alone, or with those of two layers."""
        inputs = [value if name in self._in_rows else _turned(value) for value, name in zip(inputs, read, strict=True)]
        heard = [value for value, name in zip(inputs, read, strict=True) if name not in self._fixed]
        fewest = min(value.get_shape()[1] for value in heard)
        inputs = [_last(value, fewest) if value in heard else value for value in inputs]
        made: list[ov.Output] = NodeFactory("opset8").create(kind, inputs, {}).outputs()
        return made

    def _layer(self, node: ov.Node, values: ov.Output, apart: int) -> ov.Output:
        """A layer over time: what it reads for each column side by side, times its weights."""
        how = node.get_attributes()
        weights = _numbers(node.input_value(1))
        if how["pads_begin"] != [0] or how["pads_end"] != [0] or weights is None:
            raise _UnfitError("it goes over the ends of the window")
        made, channels, taps = weights.shape
        read = list(node.input_value(0).get_partial_shape())[2].get_length()
        if (read - 1 - (taps - 1) * how["dilations"][0]) % how["strides"][0]:
            raise _UnfitError("it leaves out the newest column")
        apart *= how["dilations"][0]
        again = (taps - 1) * apart
        if again:
            known = None
            if self._goes_on:
                if values.get_shape()[1] != self._columns:
                    raise _UnfitError("its branches do not begin alike")
                known = ops.parameter([1, again, channels], np.float32)
                values = ops.concat([known, values], 1).output(0)
            self._layers.append((again, values, known))
            columns = values.get_shape()[1] - again
            places = np.arange(columns, dtype=np.int32)[:, None] + apart * np.arange(taps, dtype=np.int32)
            beside = ops.gather(values, ops.constant(places), ops.constant(1))
            values = ops.reshape(beside, ops.constant([1, columns, taps * channels]), False).output(0)
        matrix = np.ascontiguousarray(weights.transpose(0, 2, 1).reshape(made, taps * channels), np.float32)
        return ops.matmul(values, ops.constant(matrix), False, True).output(0)


def _numbers(value: ov.Output) -> npt.NDArray[Any] | None:
    """The numbers of a constant, whatever they are stored as; None: it is none."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    numbers: npt.NDArray[Any] = node.get_data()
    return numbers


def _number(value: ov.Output) -> int | None:
    numbers = _numbers(value)
    return None if numbers is None or numbers.size != 1 else int(numbers.item())


def _turned(values: ov.Output) -> ov.Output:
    """(n, c, t) to (n, t, c)."""
    return ops.transpose(values, ops.constant([0, 2, 1])).output(0)


def _last(values: ov.Output, columns: int) -> ov.Output:
    """The last columns, (1, t, c) to (1, `columns`, c)."""
    if values.get_shape()[1] == columns:
        return values
    first, end, step, axis = (ops.constant(np.array([number])) for number in (-columns, 2**31 - 1, 1, 1))
    return ops.slice(values, first, end, step, axis).output(0)
