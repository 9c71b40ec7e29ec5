"""When each frame is shown: a jitter buffer over the media clock. Pure; time is handed in."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from shared.clock import FRAME_RATE_HZ, FRAME_SAMPLES, MediaClock, sample_of
from shared.messages import Patch

__all__ = ["Moving", "Playout"]


@dataclass(frozen=True)
class Moving:
    """The moving part of a frame, with the one on which it is laid."""

    patch: Patch
    under: Patch | None = None
    """None: it is laid on the photo"""


class Playout:
    """Frame i is due `delay` after its first sample is here; what is due at a tick of the screen is shown.

    The screen ticks 25 times a second, its phase drawn towards the moments at which frames fall due by at most a
    hundredth of a frame each time, so that the rate stays. The delay follows the engine: it rises to what nearly all
    of the newest frames needed plus a margin, and falls again when less would do; a change of it shows as a frame held
    or left out. A frame that comes after its moment is dropped and counted, the picture before it is held. When the
    frames of a speaking mouth stop coming (a worker died), the mouth is let go to rest after `HOLD_S`.
    """

    LEAST_S: Final = 0.02
    MOST_S: Final = 0.6
    MARGIN_S: Final = 0.010
    QUANTILE: Final = 0.97
    RISE_S: Final = 0.008
    """most that the delay rises in a frame"""
    FALL_SHARE: Final = 0.03
    """share of what it is too long by which it falls in a frame"""
    PULL_S: Final = 0.01 / FRAME_RATE_HZ
    """most by which a tick is moved"""
    HOLD_S: Final = 0.4
    WAITING: Final = 64
    """most frames that wait to be shown"""

    def __init__(self) -> None:
        self.clock = MediaClock()
        self.counters: Counter[str] = Counter()
        self.delay_s = 0.16
        self._lags: deque[float] = deque(maxlen=75)
        self._waiting: dict[int, Moving] = {}
        self._last = -1
        """number of the last frame whose moment came"""
        self._shown: Moving | None = None
        self._shown_s = float("-inf")

    def heard(self, end_sample: int, now_s: float) -> None:
        """Tell that sound up to `end_sample` is here."""
        self.clock.heard(end_sample, now_s)

    def push(self, moving: Moving, now_s: float) -> None:
        """Take a frame; too late is dropped and counted."""
        patch = moving.patch
        if self.clock.started:
            self._lags.append(now_s - self.clock.time_of(sample_of(patch.frame)))
        if patch.frame <= self._last:
            self.counters["late"] += 1
            return
        if patch.frame in self._waiting:
            self.counters["twice"] += 1
            return
        self._waiting[patch.frame] = moving
        if len(self._waiting) > self.WAITING:
            del self._waiting[min(self._waiting)]
            self.counters["overflow"] += 1

    def forget(self) -> None:
        """Drop the frames that wait, and the one that is shown: they are of another face. The clock goes on."""
        self._waiting.clear()
        self._shown = None

    def next_tick_s(self, tick_s: float) -> float:
        """When the screen ticks after a tick, monotonic seconds."""
        next_s = tick_s + 1.0 / FRAME_RATE_HZ
        if not self.clock.started:
            return next_s
        # Just behind a moment at which a frame falls due is the best place to be.
        phase = (self.clock.sample_at(next_s - self.delay_s) / FRAME_SAMPLES - 0.05) % 1.0
        early_s = (phase if phase < 0.5 else phase - 1.0) / FRAME_RATE_HZ
        return next_s - min(self.PULL_S, max(-self.PULL_S, early_s))

    def take(self, now_s: float) -> Moving | None:
        """Give the patch to show from a tick on. None: the face at rest, without a patch."""
        if self.clock.started:
            self._last = max(self._last, int(self.clock.sample_at(now_s - self.delay_s) // FRAME_SAMPLES))
            due = [number for number in self._waiting if number <= self._last]
            newest = max(due, default=-1)
            for number in due:
                moving = self._waiting.pop(number)
                if number < newest:
                    self.counters["skipped"] += 1
                else:
                    self._shown, self._shown_s = moving, now_s
                    self.counters["shown"] += 1
            if newest < self._last and self._shown is not None and not self._shown.patch.rest:
                self.counters["held"] += 1
            self._adapt()
        if self._shown is not None and not self._shown.patch.rest and now_s - self._shown_s > self.HOLD_S:
            self._shown = None
            self.counters["let_go"] += 1
        return self._shown

    def _adapt(self) -> None:
        if not self._lags:
            return
        wanted = _quantile(sorted(self._lags), self.QUANTILE) + self.MARGIN_S
        error_s = min(self.MOST_S, max(self.LEAST_S, wanted)) - self.delay_s
        self.delay_s += min(self.RISE_S, error_s) if error_s > 0 else error_s * self.FALL_SHARE


def _quantile(ordered: list[float], share: float) -> float:
    """What a share of ordered numbers stays under, between two of them in proportion. NumPy takes 0.1 ms for that."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
