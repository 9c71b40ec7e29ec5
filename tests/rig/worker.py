"""A worker with an engine whose speed is told: `python -m tests.rig.worker --ms 20`. It waits instead of drawing."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from services.inference.engine import Drive, MelWindow, Rendered
from services.inference.service import Inference
from shared.bus import Bus
from shared.messages import Face
from shared.service import Tally, main
from shared.settings import Settings

SIDE = 24


class SteadyEngine:
    """Takes a fixed time for each frame, and draws a grey square that differs from frame to frame."""

    name = "steady"
    window = MelWindow(back=0, ahead=8, in_silence=True)

    def __init__(self, frame_s: float, hang: Path | None) -> None:
        self.info: Mapping[str, str] = {"frame_ms": str(frame_s * 1000.0)}
        self._frame_s = frame_s
        self._hang = hang
        self._never = threading.Event()

    def prepare(self, face: Face) -> tuple[int, int]:
        """Where the square is."""
        return face.mask_x, face.mask_y

    def render(self, states: Sequence[tuple[int, int]], drives: Sequence[Drive]) -> list[Rendered]:
        """Wait; with the file of `--hang` there, for ever."""
        if self._hang is not None and self._hang.exists():
            self._never.wait()
        self._never.wait(self._frame_s * len(drives))
        mask = np.full((SIDE, SIDE), 255, np.uint8)
        return [
            Rendered(x, y, np.full((SIDE, SIDE, 3), int(drive.frame) % 200, np.uint8), mask)
            for (x, y), drive in zip(states, drives, strict=True)
        ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ms", type=float, default=5.0)
    parser.add_argument("--hang", type=Path)
    return parser.parse_args()


def build(_settings: Settings, bus: Bus, tally: Tally) -> Inference:
    """Make the worker."""
    told = arguments()
    engine = SteadyEngine(told.ms / 1000.0, told.hang)
    return Inference(engine, bus, tally, {"model": "", **engine.info})


if __name__ == "__main__":
    sys.exit(main("inference", build))
