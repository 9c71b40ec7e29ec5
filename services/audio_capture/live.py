"""A microphone far away: sound of a browser that comes over the network as it is heard."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from services.audio_capture.chunks import SAMPLE_RATE_HZ, Chunk, Hole, Pcm16, SourceStatus
from services.audio_capture.timeline import Block, CaptureLine, Patience

__all__ = ["NETWORK", "Bend", "LiveSource"]

NETWORK: Final = Patience(
    late_ns=120_000_000,  # a busy radio link is 50 to 100 ms later for a while; that is no loss
    settle_ns=100_000_000,
    better_ns=5_000_000,  # a radio link jitters by that much: the wait is not to begin anew each time
    held_least=3,  # a browser's blocks may be 40 ms
    held_max_ns=30_000_000_000,
    early_ns=-20_000_000,
    left_out="lost",
    away="lost",
)
"""TCP loses nothing: what is late is a stall, and what comes after it catches up in a burst; only sound that stays
late was preceded by a pause"""

Mono = npt.NDArray[np.float32]


def _kernel(taps: int, phases: int) -> npt.NDArray[np.float32]:
    """Windowed-sinc interpolation: row p gives the value p / phases of a sample after tap ``taps / 2 - 1``."""
    shift = np.arange(phases + 1)[:, None] / phases
    away = np.arange(taps)[None, :] - (taps // 2 - 1) - shift
    window = np.i0(8.0 * np.sqrt(np.maximum(0.0, 1.0 - (away / (taps / 2)) ** 2))) / np.i0(8.0)
    rows: npt.NDArray[np.float32] = (np.sinc(away) * window).astype(np.float32)
    return rows


class Bend:
    """Sound at 16 kHz whose rate is bent a little, sample for sample on the time line of its input.

    Band-limited interpolation (J. O. Smith, "Digital Audio Resampling"): 32 taps, a Kaiser window, 512 phases and a
    straight line between them. It is 1 ms late, where soxr's variable engine is 13 to 19 ms, because it need not
    filter: nothing lies above the band when 16 kHz stay 16 kHz. Before the first `steer` nothing is changed.
    """

    TAPS: Final = 32
    PHASES: Final = 512
    KERNEL: Final = _kernel(TAPS, PHASES)

    def __init__(self, rate_hz: float = SAMPLE_RATE_HZ) -> None:
        """Raises ValueError for any rate but 16 kHz."""
        if rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(f"only sound at {SAMPLE_RATE_HZ} Hz can be bent, not at {rate_hz:g} Hz")
        self.rate_hz: Final = float(rate_hz)
        self.expected = 0.0
        """where the input fed so far ends, output samples"""
        self._share = 0.0
        self._inside: Mono = np.zeros(self.TAPS // 2 - 1, np.float32)
        self._at = 0.0
        """place of the next output sample after the first `TAPS` / 2 - 1 samples inside, input samples"""

    def steer(self, share: float) -> None:
        """Make ``1 + share`` times as many samples from now on."""
        self._share = share

    def process(self, samples: Mono) -> Mono:
        """Feed a block, float32, (n,); give the sound that is ready, float32, (m,)."""
        self.expected += len(samples) * (1 + self._share)
        inside = np.concatenate((self._inside, samples))
        step = 1 / (1 + self._share)
        room = len(inside) - self.TAPS - self._at
        count = int(room / step) + 1 if room >= 0 else 0
        places = self._at + step * np.arange(count)
        first = places.astype(np.int64)
        phase = (places - first) * self.PHASES
        row = np.minimum(phase.astype(np.int64), self.PHASES - 1)
        between = (phase - row).astype(np.float32)[:, None]
        kernel = self.KERNEL[row] * (1 - between) + self.KERNEL[row + 1] * between
        out: Mono = np.einsum("nt,nt->n", inside[first[:, None] + np.arange(self.TAPS)], kernel)
        end = self._at + step * count
        used = min(int(end), len(inside))
        self._inside, self._at = inside[used:], end - used
        return out


class LiveSource:
    """Sound of a browser's microphone, pushed as it comes over the network.

    Sample n of the line belongs to ``origin + n / 16000 s`` of the monotonic clock. The sender's sound card drifts
    against it and is bent back; the jitter of the network is not followed. After a stall of the network everything
    comes in a burst and is given at its old place; after a pause of the sender a `Hole` ("lost") stands for it. Sound
    is 1 ms late, and up to 20 ms to fill a chunk; the first sound, and that after a pause, is held for 100 ms until
    it is certain that no burst is under way.
    """

    QUIET_NS: Final = 500_000_000
    """without sound for so long the source is waiting"""
    JUMP_MOST: Final = 600 * SAMPLE_RATE_HZ
    """a longer jump ahead is a sender that began anew, samples"""

    def __init__(self) -> None:
        self._line = CaptureLine(NETWORK, Bend)
        self._line.begin(SAMPLE_RATE_HZ)
        self._given: deque[Chunk | Hole] = deque()
        self._expected: int | None = None
        self._frame = 0
        """samples pushed, and left out, since the line began"""
        self._heard_ns = 0
        self._closed = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._status = SourceStatus(
            "waiting", "The browser's microphone is not open yet. Press its button on the page and allow it."
        )

    @property
    def status(self) -> SourceStatus:
        """How it is."""
        return self._status

    def start(self) -> None:
        """Nothing to do: `push` begins it."""

    def push(self, first_sample: int, pcm: Pcm16, arrived_ns: int) -> None:
        """Add sound as it comes.

        Args:
            first_sample: its place in what is pushed, samples. A jump ahead is sound that was lost on the way; a jump
                back is a new connection or epoch; it goes on where the clock says, after a `Hole` if there was a pause.
            pcm: 16 kHz mono, int16, (n,).
            arrived_ns: when it came, monotonic ns.

        Raises:
            ValueError: the array has another shape or type, or the source is closed.
        """
        if self._closed:
            raise ValueError("the live source is closed")
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"pushed sound must be int16 of shape (n,), not {pcm.dtype} of shape {pcm.shape}")
        if not len(pcm):
            return
        jump = 0 if self._expected is None else first_sample - self._expected
        self._expected = first_sample + len(pcm)
        if 0 <= jump <= self.JUMP_MOST:
            self._frame += jump
        samples = pcm.astype(np.float32) / np.float32(32768)
        self._given.extend(self._line.feed(Block(self._frame, arrived_ns, overflow=False, samples=samples)))
        self._frame += len(pcm)
        self._heard_ns = arrived_ns
        self._status = SourceStatus("running", "Listening to the browser's microphone.")
        os.eventfd_write(self._wake_fd, 1)

    def fileno(self) -> int:
        """A descriptor that is readable after a push.

        Raises:
            ValueError: the source is closed.
        """
        if self._closed:
            raise ValueError("the live source is closed")
        return self._wake_fd

    def next_due(self) -> float | None:
        """When the source counts as waiting, s of `time.monotonic`."""
        return (self._heard_ns + self.QUIET_NS) / 1e9 if self._status.state == "running" else None

    def read(self) -> list[Chunk | Hole]:
        """Give what has come. Never blocks."""
        if self._closed:
            return []
        with contextlib.suppress(BlockingIOError):  # nothing new is no error
            os.eventfd_read(self._wake_fd)
        items = list(self._given)
        self._given.clear()
        if self._status.state == "running" and time.monotonic_ns() - self._heard_ns >= self.QUIET_NS:
            self._status = SourceStatus(
                "waiting",
                "No sound comes from the browser's microphone. Open the page again, and see that it is not muted.",
            )
        return items

    def close(self) -> None:
        """Forget everything. May be called twice."""
        if self._closed:
            return
        self._closed = True
        os.close(self._wake_fd)
        self._given.clear()
        self._status = SourceStatus("ended", "The browser's microphone is closed.")
