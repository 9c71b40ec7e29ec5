"""Media time: a count of 16 kHz samples since the epoch of a session began. Frame i belongs to sample 640 i."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = [
    "CHUNK_SAMPLES",
    "FRAME_RATE_HZ",
    "FRAME_SAMPLES",
    "SAMPLE_RATE_HZ",
    "MediaClock",
    "frame_of",
    "sample_of",
    "seconds_of",
]

SAMPLE_RATE_HZ: Final = 16_000
FRAME_RATE_HZ: Final = 25
FRAME_SAMPLES: Final = SAMPLE_RATE_HZ // FRAME_RATE_HZ
CHUNK_SAMPLES: Final = SAMPLE_RATE_HZ // 50


def sample_of(frame: int) -> int:
    """First sample of a video frame."""
    return frame * FRAME_SAMPLES


def frame_of(sample: int) -> int:
    """Video frame that a sample belongs to."""
    return sample // FRAME_SAMPLES


def seconds_of(samples: int) -> float:
    """Length of a number of samples, seconds."""
    return samples / SAMPLE_RATE_HZ


class MediaClock:
    """Where media time stands on the monotonic clock, learned from sound as it arrives.

    Sound never arrives early and now and then late, so the least delay seen within the last seconds is the truth. In
    its first second the clock takes each smaller delay at once; later it follows a drifting sound card by at most
    `SLEW` seconds a second, so that pictures neither jump nor stall. A source that paused and went on (five arrivals
    that agree with each other and lie more than `JUMP_S` from the clock) moves it at once.
    """

    WINDOW: Final = 50
    """arrivals that are looked at (2 s of pieces of 40 ms)"""
    SETTLE_S: Final = 1.0
    """how long a smaller delay is taken at once"""
    SLEW: Final = 0.005
    """seconds a second"""
    JUMP_S: Final = 0.25

    def __init__(self) -> None:
        self._delays: deque[float] = deque(maxlen=self.WINDOW)
        self._origin: float | None = None
        self._began = 0.0
        self._at = 0.0

    def heard(self, end_sample: int, now_s: float) -> None:
        """Tell that the sound up to `end_sample` (exclusive) is here at the monotonic time `now_s`."""
        delay = now_s - seconds_of(end_sample)
        self._delays.append(delay)
        if self._origin is None:
            self._origin, self._began = delay, now_s
        elif abs(delay - self._origin) > self.JUMP_S and self._settled():
            self._origin, self._began = delay, now_s
            self._delays.clear()
        elif now_s - self._began < self.SETTLE_S:
            self._origin = min(self._origin, delay)
        else:
            step = self.SLEW * max(0.0, now_s - self._at)
            self._origin += min(step, max(-step, min(self._delays) - self._origin))
        self._at = now_s

    def _settled(self) -> bool:
        """Whether the newest arrivals agree with each other, so that a jump is one and not a late piece."""
        newest = list(self._delays)[-5:]
        return len(newest) == 5 and max(newest) - min(newest) < self.JUMP_S / 2

    @property
    def started(self) -> bool:
        """Whether any sound was heard."""
        return self._origin is not None

    def sample_at(self, now_s: float) -> float:
        """Media time at a monotonic time, samples.

        Raises:
            RuntimeError: no sound was heard yet.
        """
        if self._origin is None:
            raise RuntimeError("the media clock has not started")
        return (now_s - self._origin) * SAMPLE_RATE_HZ

    def time_of(self, sample: float) -> float:
        """Monotonic time at which a sample is (or will be) here, seconds.

        Raises:
            RuntimeError: no sound was heard yet.
        """
        if self._origin is None:
            raise RuntimeError("the media clock has not started")
        return self._origin + sample / SAMPLE_RATE_HZ
