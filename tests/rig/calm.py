"""Whether the machine itself stood still while something was measured on it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType

__all__ = ["Calm"]

TICK_S = 0.02
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Calm:
    """Ticks in a thread of its own, and reads how much processor time the host took away (steal, proc(5)).

    On a shared machine a processor, or the whole of it, may stand still for a second now and then. What was measured
    over such a moment says nothing about the project, whichever way it came out.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        """longest delay of a tick, or most processor time taken away within a second, whichever is more"""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="calm")

    def _tick(self) -> None:
        last_s = time.monotonic()
        stolen: deque[float] = deque([_stolen_s()], maxlen=int(1.0 / TICK_S))
        while not self._stop.wait(TICK_S):
            now_s = time.monotonic()
            stolen.append(_stolen_s())
            self.longest_s = max(self.longest_s, now_s - last_s - TICK_S, stolen[-1] - stolen[0])
            last_s = now_s

    def __enter__(self) -> Calm:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)


def _stolen_s() -> float:
    """Processor time that the host took away since it started, all processors; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return float(fields[8]) / TICKS_A_SECOND if len(fields) > 8 else 0.0
