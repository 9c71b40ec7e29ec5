"""What every engine is: a way to make the moving part of a frame from a face and a mel window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from shared.messages import Face

__all__ = ["ALL_OF_IT", "Drive", "Engine", "MelWindow", "Rendered"]

State = TypeVar("State")


@dataclass(frozen=True)
class MelWindow:
    """The mel frames (80 a second) that an engine needs for video frame i, which begins at mel index
    ``start = int(80 * (i + shift) / 25)``: ``[start - back, start + ahead)``."""

    back: int
    """mel frames before the start"""
    ahead: int
    """mel frames from the start on"""
    shift: int = 0
    """video frames"""
    in_silence: bool = False
    """whether frames are wanted in silence too, where the mouth rests and the face lives"""

    @property
    def length(self) -> int:
        """Mel frames in a window."""
        return self.back + self.ahead


@dataclass(frozen=True)
class Drive:
    """What moves one frame."""

    mel: npt.NDArray[np.float32]
    """log-mel window, (80, length), -4..4"""
    gain: float
    """voice gate: 1 in speech, 0 in silence (the mouth at rest)"""
    session: str = ""
    """whose face; an engine whose faces live of themselves takes their chance from it"""
    frame: float = 0.0
    """place on the session's time line, 25 a second; at 0 a face is as in the photo"""
    known: float = -1.0
    """a frame of the session that was rendered whole, and is kept where this one goes: an engine may give what has
    changed since then alone; -1: there is none"""


ALL_OF_IT: Final = np.zeros((0, 0), np.uint8)
"""a mask for all of an image"""


@dataclass(frozen=True)
class Rendered:
    """The moving part of one frame, laid on the photo by its mask, or on a frame that was rendered before."""

    x: int
    """left edge on the photo, px"""
    y: int
    """top edge on the photo, px"""
    image: npt.NDArray[np.uint8]
    """BGR, (h, w, 3)"""
    mask: npt.NDArray[np.uint8]
    """share of the image in the frame, (h, w), 0..255; 0 on the border; `ALL_OF_IT`: all of it is taken"""
    on_known: bool = False
    """laid on the picture of `Drive.known`, in place of the photo"""


class Engine(Protocol[State]):
    """An engine. It knows no socket and keeps nothing between calls but what `prepare` returned."""

    name: str
    window: MelWindow
    info: Mapping[str, str]
    """what it says of itself for the log and the status page"""

    def prepare(self, face: Face) -> State:
        """Do once for a face what depends on the face alone."""
        ...

    def render(self, states: Sequence[State], drives: Sequence[Drive]) -> list[Rendered]:
        """Render a batch; ``states[k]`` is moved by ``drives[k]``. They may belong to different faces."""
        ...
