"""Whether the machine itself stood still while something was measured on it."""

from __future__ import annotations

import threading
import time
from types import TracebackType

__all__ = ["Calm"]

TICK_S = 0.02


class Calm:
    """Ticks in a thread of its own; the longest delay of a tick tells how long nothing ran here.

    On a shared machine the whole of it may stand still for a second now and then. What was measured over such a moment
    says nothing about the project, whichever way it came out.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="calm")

    def _tick(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(TICK_S):
            now_s = time.monotonic()
            self.longest_s = max(self.longest_s, now_s - last_s - TICK_S)
            last_s = now_s

    def __enter__(self) -> Calm:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)
