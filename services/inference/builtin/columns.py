"""The network that hears, cut in two: what it finds in each column of sound for itself, and what it makes of them.

Its first layers go along the mel window column by column, and from one frame to the next the window moves on by 3 or 4
of its 95 columns: all others were heard before. They are kept for each session and used where the window goes on just
as it was, so the result is that of the whole network, up to rounding, whoever made the frame before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset8 as ops

__all__ = ["ColumnNetwork"]

Floats = npt.NDArray[np.float32]

STEPS: Final = (3, 4)
"""columns by which a window goes on in the time of a frame: 3.2"""
MOST_KEPT: Final = 64
"""sessions whose columns are kept, as many as a server takes"""


@dataclass(frozen=True)
class _Kept:
    """What was heard of a session last."""

    window: Floats
    """(80, n)"""
    found: tuple[Floats, ...]
    """for each branch, (1, channels, columns); the late part reads them where they are"""
    tensors: tuple[ov.Tensor, ...]
    """the same memory"""


class ColumnNetwork:
    """Runs the network for one window at a time; calls must not overlap."""

    def __init__(self, core: ov.Core, model: ov.Model, config: dict[str, Any]) -> None:
        """Compile it.

        Args:
            core: of OpenVINO.
            model: mel (n, 80, t) to (n, m), built of branches that each begin with layers along the columns, followed
                by a convolution that leaves out every second one. One that is not built so is run whole.
            config: how it is compiled.

        Raises:
            RuntimeError: OpenVINO refuses it.
        """
        bands, columns = (length.get_length() for length in list(model.input(0).partial_shape)[1:])
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        early = model.clone()
        cuts = _cuts(early)
        self._whole: _Request | None = None
        if not cuts:
            # For one window OpenVINO takes two thirds of the time that it takes where it may be any number.
            model.reshape([1, bands, columns])
            self._whole = _Request(core, model, config)
            return
        early = ov.Model([ops.result(cut) for cut in cuts], early.get_parameters())
        _count_from_the_end(early, columns)
        early.reshape([1, bands, columns])
        self._shapes = [tuple(output.shape) for output in early.outputs]
        self._early = _Request(core, early, config)
        lost = columns - max(shape[2] for shape in self._shapes)
        early.reshape([1, bands, max(STEPS) + lost])
        self._few = _Request(core, early, config)
        self._late = core.compile_model(_late(model, self._shapes), "CPU", config).create_infer_request()
        self._said = self._late.get_output_tensor(0).data

    def hear(self, window: Floats, session: str) -> Floats:
        """What the network says of a window, (80, t) to (1, m).

        Args:
            window: mel on one loudness.
            session: whose; the window before it may have been any other.
        """
        if self._whole is not None:
            return np.array(self._whole.run(window)[0])
        # Taken out until it is whole again: should anything fail, the next window is heard whole.
        kept = self._kept.pop(session, None)
        step = next((step for step in STEPS if kept is not None and _goes_on(kept.window, window, step)), 0)
        if kept is None:
            kept = self._begun(window)
        if step:
            made = self._few.run(window[:, -self._few.columns :])
            for found, new in zip(kept.found, made, strict=True):
                found[:, :, :-step] = found[:, :, step:].copy()
                found[:, :, -new.shape[2] :] = new
        else:
            for found, new in zip(kept.found, self._early.run(window), strict=True):
                found[:] = new
        for k, tensor in enumerate(kept.tensors):
            self._late.set_input_tensor(k, tensor)
        self._late.infer()
        kept.window[:] = window
        self._kept[session] = kept
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return np.array(self._said)

    def _begun(self, window: Floats) -> _Kept:
        """Room for what is heard of a session."""
        found = tuple(np.empty(shape, np.float32) for shape in self._shapes)
        tensors = tuple(ov.Tensor(each, shared_memory=True) for each in found)
        return _Kept(np.empty_like(window), found, tensors)


class _Request:
    """A compiled model with an input and outputs that stay where they are."""

    def __init__(self, core: ov.Core, model: ov.Model, config: dict[str, Any]) -> None:
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self._given = np.zeros(tuple(model.input(0).shape), np.float32)
        self._request.set_input_tensor(ov.Tensor(self._given, shared_memory=True))
        self._made = [self._request.get_output_tensor(k).data for k in range(len(model.outputs))]
        self.columns = self._given.shape[2]

    def run(self, window: Floats) -> list[Floats]:
        """Run it; the results hold until the next time."""
        self._given[0] = window
        self._request.infer()
        return self._made


def _goes_on(before: Floats, window: Floats, step: int) -> bool:
    return bool((before[:, step] == window[:, 0]).all() and (before[:, step:] == window[:, :-step]).all())


def _cuts(model: ov.Model) -> list[ov.Output]:
    """In each branch what the first convolution that leaves out every second column is given."""
    found = []
    begun: set[str] = set()
    """of what lies behind one"""
    for node in model.get_ordered_ops():
        behind = any(value.get_node().get_friendly_name() in begun for value in node.input_values())
        halves = node.get_type_name() == "Convolution" and list(node.get_attributes()["strides"]) == [2]
        if halves and not behind:
            found.append(node.input_value(0))
        if halves or behind:
            begun.add(node.get_friendly_name())
    return found


def _count_from_the_end(model: ov.Model, columns: int) -> None:
    """Let slices of the input keep as many of its last columns, however many there are."""
    for node in model.get_ops():
        if node.get_type_name() == "Slice" and node.input_value(0).get_node().get_type_name() == "Parameter":
            start = node.input_value(1).get_node().get_data()
            node.input(1).replace_source_output(ops.constant(start - columns).output(0))


def _late(model: ov.Model, shapes: list[tuple[int, ...]]) -> ov.Model:
    """What is left, with an input for each branch."""
    inputs = [ops.parameter(shape, np.float32) for shape in shapes]
    for cut, given in zip(_cuts(model), inputs, strict=True):
        for target in cut.get_target_inputs():
            target.replace_source_output(given.output(0))
    return ov.Model(model.get_results(), inputs)
