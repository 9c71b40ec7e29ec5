"""Small pieces of OpenVINO graphs that are rewritten."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from openvino import opset12 as ops

__all__ = ["PICTURES", "only_reader", "take_the_place", "whole"]

PICTURES: Final = 4
"""axes of a batch of pictures: (n, c, h, w)"""


def only_reader(node: Any, *kinds: str) -> Any:
    """The node that reads what a node gives, if it is the only one and of one of these types; else None."""
    readers = list(node.output(0).get_target_inputs())
    only = readers[0].get_node() if len(readers) == 1 else None
    return only if only is not None and only.get_type_name() in kinds else None


def take_the_place(node: Any, other: Any) -> None:
    """Let all who read what `node` gives read what `other` gives."""
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(other.output(0))


def whole(*numbers: int) -> Any:
    """A constant of whole numbers, (n,)."""
    return ops.constant(np.array(numbers, np.int64))
