"""What a source of sound gives: pieces of 16 kHz mono sound on one time line, and the holes in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from shared.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ

__all__ = [
    "CHUNK_SAMPLES",
    "NS_PER_SAMPLE",
    "SAMPLE_RATE_HZ",
    "Chunk",
    "Hole",
    "Pcm16",
    "Reason",
    "Source",
    "SourceStatus",
    "to_pcm16",
]

NS_PER_SAMPLE: Final = 62_500
"""one sample at 16 kHz, ns"""

Pcm16 = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Chunk:
    """20 ms of sound; 40 ms where two are joined."""

    first_sample: int
    """place of the first sample, samples at 16 kHz since the source began"""
    captured_ns: int
    """when the last sample was heard (or, of a file, is due), ns of `time.monotonic_ns`"""
    pcm: Pcm16
    """16 kHz mono, int16, (320,) or (640,)"""
    pushed: int = -1
    """how many samples of what was pushed lie before the first one; -1 where nothing is pushed"""


Reason = Literal["overflow", "unplugged", "lost", "late", "pause"]
"""Why there is no sound. overflow: the machine was too slow; unplugged: the device was away; lost: it never came; late:
it came after its time, and is played then; pause: an utterance was over, and nothing is missing."""


@dataclass(frozen=True)
class Hole:
    """Sound that is missing; the next chunk begins at ``first_sample + samples``."""

    first_sample: int
    """place of the first missing sample, samples at 16 kHz since the source began"""
    samples: int
    """how many are missing, at least 1"""
    reason: Reason
    """why"""


@dataclass(frozen=True)
class SourceStatus:
    """How a source is."""

    state: Literal["starting", "running", "waiting", "ended", "failed"]
    """waiting: goes on by itself when what is missing comes back; ended and failed are final until a new start"""
    text: str
    """the same for a person, with what to do about it"""


class Source(Protocol):
    """A source of sound, driven by one thread. Nothing here blocks.

    The owner polls `fileno` for reading and calls `read` when it is readable or when `next_due` has come.
    """

    @property
    def status(self) -> SourceStatus:
        """How it is."""
        ...

    def start(self) -> None:
        """Begin; what goes wrong shows in `status`. Called once."""
        ...

    def fileno(self) -> int:
        """A file descriptor that is readable when something waits. It may change after `read`: ask each time."""
        ...

    def next_due(self) -> float | None:
        """When to call `read` even if `fileno` stays silent, s of `time.monotonic`; None: only by `fileno`."""
        ...

    def read(self) -> list[Chunk | Hole]:
        """Give what is there, in the order of the time line; contiguous, but for the holes."""
        ...

    def close(self) -> None:
        """End within 0.5 s, freeing every process and descriptor. May be called twice."""
        ...


def to_pcm16(samples: npt.NDArray[np.float32]) -> Pcm16:
    """Turn float sound, full scale 1, into int16, full scale 32768, rounded and clipped."""
    pcm: Pcm16 = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    return pcm
