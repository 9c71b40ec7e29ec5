"""When each frame is shown: a jitter buffer over the media clock. Pure; time is handed in."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

import numpy as np

from shared.clock import FRAME_RATE_HZ, MediaClock, sample_of
from shared.messages import Patch

__all__ = ["Playout"]


class Playout:
    """Frame i is due `delay` after its first sample is here; at that moment it is shown or skipped.

    The delay follows the engine: it rises to what nearly all of the newest frames needed plus a margin, at most
    `RISE_S` a frame, and falls by a share of what it is too long, at most `FALL_S` a frame: a fifth faster than life. A frame that comes after its moment is dropped and counted, the picture
    before it is held. When the frames of a speaking mouth stop coming (a worker died), the mouth is let go to rest
    after `HOLD_S`.
    """

    LEAST_S: Final = 0.02
    MOST_S: Final = 0.6
    MARGIN_S: Final = 0.010
    QUANTILE: Final = 0.97
    RISE_S: Final = 0.008
    FALL_S: Final = 0.008
    FALL_SHARE: Final = 0.03
    HOLD_S: Final = 0.4
    WAITING: Final = 64
    """most frames that wait to be shown"""

    def __init__(self) -> None:
        self.clock = MediaClock()
        self.counters: Counter[str] = Counter()
        self.delay_s = 0.16
        self._lags: deque[float] = deque(maxlen=75)
        self._waiting: dict[int, Patch] = {}
        self._next: int | None = None
        self._shown: Patch | None = None
        self._shown_s = float("-inf")

    def heard(self, end_sample: int, now_s: float) -> None:
        """Tell that sound up to `end_sample` is here."""
        self.clock.heard(end_sample, now_s)

    def push(self, patch: Patch, now_s: float) -> None:
        """Take a frame; too late is dropped and counted."""
        if self.clock.started:
            self._lags.append(now_s - self.clock.time_of(sample_of(patch.frame)))
        if self._next is not None and patch.frame < self._next:
            self.counters["late"] += 1
            return
        if patch.frame in self._waiting:
            self.counters["twice"] += 1
            return
        self._waiting[patch.frame] = patch
        if len(self._waiting) > self.WAITING:
            del self._waiting[min(self._waiting)]
            self.counters["overflow"] += 1

    def due_s(self, now_s: float) -> float:
        """When the next frame is due, monotonic seconds; without sound, a frame's time from now."""
        if not self.clock.started:
            return now_s + 1.0 / FRAME_RATE_HZ
        return self.clock.time_of(sample_of(self._following(now_s))) + self.delay_s

    def _following(self, now_s: float) -> int:
        """Number of the next frame to show: never one that lies behind, and after a jump the present one."""
        present = int(np.floor((self.clock.sample_at(now_s - self.delay_s)) / sample_of(1)))
        if self._next is None or abs(self._next - present) > 5:
            self._next = max(0, present) if self._next is None else max(self._next, present)
        return self._next

    def take(self, now_s: float) -> Patch | None:
        """Give the patch to show now; to be called at each `due_s`. None: the face at rest, without a patch."""
        if self.clock.started:
            frame = self._following(now_s)
            self._next = frame + 1
            for stale in [number for number in self._waiting if number < frame]:
                del self._waiting[stale]
                self.counters["skipped"] += 1
            patch = self._waiting.pop(frame, None)
            if patch is not None:
                self._shown, self._shown_s = patch, now_s
                self.counters["shown"] += 1
            elif self._shown is not None and not self._shown.rest:
                self.counters["held"] += 1
            self._adapt()
        if self._shown is not None and not self._shown.rest and now_s - self._shown_s > self.HOLD_S:
            self._shown = None
            self.counters["let_go"] += 1
        return self._shown

    def _adapt(self) -> None:
        if not self._lags:
            return
        wanted = float(np.quantile(self._lags, self.QUANTILE)) + self.MARGIN_S
        wanted = min(self.MOST_S, max(self.LEAST_S, wanted))
        error_s = wanted - self.delay_s
        self.delay_s += min(self.RISE_S, error_s) if error_s > 0 else max(-self.FALL_S, error_s * self.FALL_SHARE)
