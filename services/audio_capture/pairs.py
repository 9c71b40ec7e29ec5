"""Two chunks of sound in one message, where nobody has to wait for the second one.

Each message wakes processes that find their caches cold, which costs more than what they do with it. A picture needs
the sound up to a certain sample, and one is made each 40 ms: the chunk that ends there goes out at once, with the one
before it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.audio_capture.chunks import CHUNK_SAMPLES, NS_PER_SAMPLE, Chunk
from shared.clock import FRAME_SAMPLES

__all__ = ["ENDS", "PATIENCE_S", "Pairs"]

ENDS: Final = CHUNK_SAMPLES
"""sample, from the beginning of each video frame, at which a message ends: the chunk that ends there completes a mel
window, whichever the engine"""
PATIENCE_S: Final = 0.03
"""after its last sample a chunk goes alone: the next one is late, or never comes"""


class Pairs:
    """Joins the chunks of one source."""

    def __init__(self) -> None:
        self._held: Chunk | None = None
        self.due_s = float("inf")
        """when what is held has to go, s of `time.monotonic`; inf while nothing is held"""

    def may_wait(self, place: int) -> bool:
        """Whether a whole chunk that begins at a place of the time line, samples, would be held."""
        return self._held is None and not _completes(place, CHUNK_SAMPLES)

    def add(self, chunk: Chunk, place: int, now_s: float) -> list[Chunk]:
        """Take the next chunk, which begins at a place of the time line, samples; give what goes out now."""
        before = self.flush()
        whole = [_joined(before[0], chunk)] if before and _follows(before[0], chunk) else [*before, chunk]
        if _completes(place, len(chunk.pcm)) or len(whole[-1].pcm) > CHUNK_SAMPLES:
            return whole
        self._held = whole.pop()
        self.due_s = min(now_s, self._held.captured_ns / 1e9) + PATIENCE_S
        return whole

    def flush(self) -> list[Chunk]:
        """Give what is held."""
        held, self._held, self.due_s = self._held, None, float("inf")
        return [] if held is None else [held]


def _completes(place: int, samples: int) -> bool:
    return (place + samples - ENDS) // FRAME_SAMPLES > (place - ENDS) // FRAME_SAMPLES


def _joined(first: Chunk, second: Chunk) -> Chunk:
    """Make one chunk of two that follow each other."""
    return Chunk(first.first_sample, second.captured_ns, np.concatenate((first.pcm, second.pcm)), first.pushed)


def _follows(first: Chunk, second: Chunk) -> bool:
    """Whether one chunk goes on where another ends: on the time line, on the clock, and in what was pushed."""
    samples = len(first.pcm)
    pushed = first.pushed + samples if first.pushed >= 0 else -1
    on_time = second.captured_ns - first.captured_ns == len(second.pcm) * NS_PER_SAMPLE
    return second.first_sample == first.first_sample + samples and second.pushed == pushed and on_time
