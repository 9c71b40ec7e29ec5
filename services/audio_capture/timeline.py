"""From the blocks of a sound card to chunks and holes on one time line that keeps to the monotonic clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from services.audio_capture.chunks import CHUNK_SAMPLES, NS_PER_SAMPLE, Chunk, Hole, Pcm16, to_pcm16
from shared.resample import ClockLine, StreamResampler

__all__ = ["SOUND_CARD", "Block", "CaptureLine", "Chunker", "Patience", "Resampler"]


@dataclass(frozen=True, eq=False)
class Block:
    """A block of sound as the device gave it."""

    first_frame: int
    """number of its first frame since the device was opened, counting what was thrown away on the way"""
    heard_ns: int
    """when it came, monotonic ns"""
    overflow: bool
    """whether PortAudio says that sound before it was lost"""
    samples: npt.NDArray[np.float32]
    """mono, full scale 1, at the device's rate, (n,), n >= 1"""


class Chunker:
    """Cut sound into chunks of 20 ms and keep the count."""

    def __init__(self) -> None:
        self.next_sample = 0
        """place of the first sample that is in no chunk yet"""
        self._rest: Pcm16 = np.zeros(0, np.int16)

    @property
    def rest(self) -> int:
        """Samples that wait for more."""
        return len(self._rest)

    def add(self, pcm: Pcm16, origin_ns: int) -> list[Chunk]:
        """Add sound; sample n of the line belongs to ``origin_ns + n * NS_PER_SAMPLE``."""
        sound = np.concatenate((self._rest, pcm))
        chunks: list[Chunk] = []
        for start in range(0, len(sound) - CHUNK_SAMPLES + 1, CHUNK_SAMPLES):
            end = self.next_sample + CHUNK_SAMPLES
            piece = sound[start : start + CHUNK_SAMPLES].copy()
            chunks.append(Chunk(self.next_sample, origin_ns + end * NS_PER_SAMPLE, piece))
            self.next_sample = end
        self._rest = sound[len(chunks) * CHUNK_SAMPLES :]
        return chunks

    def pad(self, origin_ns: int) -> list[Chunk]:
        """Fill the last, unfinished chunk with zeros, if there is one."""
        return self.add(np.zeros(-self.rest % CHUNK_SAMPLES, np.int16), origin_ns)

    def skip_to(self, place: int) -> int:
        """Go on at `place` and return how many samples are missing up to there; an unfinished chunk is given up."""
        missing = max(0, place - self.next_sample)
        self.next_sample += missing
        self._rest = self._rest[:0]
        return missing


class Resampler(Protocol):
    """What brings sound to 16 kHz and bends its rate; see `shared.resample.StreamResampler`."""

    expected: float
    """where the input fed so far ends, output samples"""

    @property
    def rate_hz(self) -> float:
        """Rate of the input, Hz."""
        ...

    def steer(self, share: float) -> None:
        """Make ``1 + share`` times as many samples from now on."""
        ...

    def process(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Feed a block, float32, (n,); give what is ready, float32, (m,)."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long a line waits before it believes that sound was lost, and what it calls that."""

    late_ns: int
    """blocks that stay later than this mean that sound before them is lost, though nobody said so; less is bent away"""
    settle_ns: int
    """the least lateness must stand so long"""
    better_ns: int
    """how much less is less"""
    held_least: int
    """fewer late blocks are scheduling, not loss"""
    held_max_ns: int
    """most sound held back"""
    early_ns: int
    """(negative) blocks cannot come before they were made: the line was begun too late and is moved"""
    left_out: Literal["overflow", "lost"]
    """what sound that the numbers of the blocks leave out is called"""
    away: Literal["unplugged", "lost"]
    """what the time before a new `begin` is called"""


SOUND_CARD: Final = Patience(
    late_ns=50_000_000,  # PulseAudio changes its latency by 15 to 35 ms when another program begins to play
    settle_ns=100_000_000,
    better_ns=1_000_000,
    held_least=5,
    held_max_ns=5_000_000_000,
    early_ns=-20_000_000,
    left_out="overflow",
    away="unplugged",
)


class CaptureLine:
    """The time line of a microphone.

    Sample n belongs to ``origin + n / 16000 s`` of the monotonic clock for as long as the source lives. Within a
    stretch of unbroken sound the device's own clock counts, and its slow drift is taken out by bending the rate.
    Frames that the queue had no room for are counted, and the place after them is exact. After any other break
    (PortAudio's overflow flag, the device opened anew, or blocks that come late and never catch up) it is found again
    from the clock: blocks are held back until their least lateness has stood for a while (`Patience`), because the
    first ones after a break come in a burst, and one `Hole` covers all that is missing.
    """

    def __init__(
        self, patience: Patience = SOUND_CARD, resampler: Callable[[float], Resampler] = StreamResampler
    ) -> None:
        self._patience: Final = patience
        self._make: Final = resampler
        self._chunker = Chunker()
        self._origin_ns: int | None = None
        self._resampler = resampler(16_000)
        self._clock = ClockLine()
        self._base = 0
        self._next_frame = 0
        self._held: list[Block] = []
        self._held_frames = 0
        self._broken = True
        self._reason: Literal["overflow", "unplugged", "lost"] = patience.left_out
        self._start_ns = 0
        self._stood_since_ns = 0

    def begin(self, rate_hz: float) -> None:
        """The device was opened, for the first time or again, at this rate.

        Raises:
            ValueError: the rate is impossible.
        """
        self._resampler = self._make(rate_hz)
        self._next_frame = 0
        self._hold(broken=True)
        self._reason = self._patience.away

    def feed(self, block: Block) -> list[Chunk | Hole]:
        """Take the next block; give what has become certain, in order."""
        left_out = block.first_frame - self._next_frame
        jumped = left_out != 0
        self._next_frame = block.first_frame + len(block.samples)
        certain = not (self._broken or self._held or block.overflow)
        if left_out > 0 and certain and self._lateness(block, left_out) >= self._patience.early_ns:
            return [*self._leave_out(left_out), *self._accept(block)]
        if jumped or (block.overflow and not self._broken):
            self._hold(broken=True)  # what was held until now lies before this break
        if not self._broken and self._lateness(block) <= self._patience.late_ns:
            held, self._held = self._held, []
            return [item for each in (*held, block) for item in self._accept(each)]
        return self._wait(block)

    def _hold(self, *, broken: bool) -> None:
        self._held = []
        self._held_frames = 0
        self._broken = broken

    def _lateness(self, block: Block, left_out: int = 0) -> int:
        """How late a block is against the line, counting the blocks held and the frames left out before it, ns."""
        frames = sum(len(each.samples) for each in self._held) + left_out + len(block.samples)
        end = self._base + self._resampler.expected + frames * 16_000 / self._resampler.rate_hz
        return block.heard_ns - (self._origin_ns or 0) - round(end * NS_PER_SAMPLE)

    def _wait(self, block: Block) -> list[Chunk | Hole]:
        if not self._held:
            self._held_frames = 0
        self._held.append(block)
        self._held_frames += len(block.samples)
        start_ns = block.heard_ns - round(self._held_frames * 1e9 / self._resampler.rate_hz)
        if len(self._held) == 1 or start_ns < self._start_ns - self._patience.better_ns:
            self._stood_since_ns = block.heard_ns
        self._start_ns = start_ns if len(self._held) == 1 else min(start_ns, self._start_ns)
        stood = block.heard_ns - self._stood_since_ns >= self._patience.settle_ns
        held_ns = self._held_frames * 1e9 / self._resampler.rate_hz
        if (stood and len(self._held) >= self._patience.held_least) or held_ns >= self._patience.held_max_ns:
            return self._resume()
        return []

    def _leave_out(self, frames: int) -> list[Hole]:
        end = self._base + self._resampler.expected + frames * 16_000 / self._resampler.rate_hz
        first = self._chunker.next_sample
        missing = self._chunker.skip_to(round(end))
        self._base = self._chunker.next_sample
        self._resampler = self._make(self._resampler.rate_hz)
        return [Hole(first, missing, self._patience.left_out)] if missing else []

    def _resume(self) -> list[Chunk | Hole]:
        items: list[Chunk | Hole] = []
        if self._origin_ns is None:
            self._origin_ns = self._start_ns
        first = self._chunker.next_sample
        missing = self._chunker.skip_to(round((self._start_ns - self._origin_ns) / NS_PER_SAMPLE))
        if missing:
            items.append(Hole(first, missing, self._reason))
        self._base = self._chunker.next_sample
        self._resampler = self._make(self._resampler.rate_hz)
        self._clock = ClockLine()
        held = self._held
        self._hold(broken=False)
        self._reason = self._patience.left_out
        items += [item for each in held for item in self._accept(each)]
        return items

    def _accept(self, block: Block) -> list[Chunk]:
        pcm = to_pcm16(self._resampler.process(block.samples))
        origin_ns = self._origin_ns or 0
        end_ns = origin_ns + round((self._base + self._resampler.expected) * NS_PER_SAMPLE)
        share = self._clock.observe(block.heard_ns, block.heard_ns - end_ns)
        if share is not None:
            self._resampler.steer(share)
            if self._clock.late_ns < self._patience.early_ns:
                self._origin_ns = origin_ns + self._clock.late_ns
        return list(self._chunker.add(pcm, origin_ns))
