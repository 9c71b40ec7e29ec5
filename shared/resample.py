"""Streaming resampling to 16 kHz, sound at places between samples, and the line that ties a device to the clock."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

from shared.clock import SAMPLE_RATE_HZ

__all__ = ["MAX_STEER", "REACH", "ClockLine", "StreamResampler", "interpolate"]

MAX_STEER: Final = 0.001
"""most that the rate is bent, as a share; sound cards stay well within 0.0005 of their nominal rate"""

REACH: Final = 24
"""samples on either side of a place that its value is made of"""
PHASES: Final = 4096
"""places between two samples that are told apart; a tone of 1 kHz keeps 90 dB of signal to noise"""

Mono = npt.NDArray[np.float32]
Places = npt.NDArray[np.float64]


class StreamResampler:
    """Resample a stream of mono sound to 16 kHz, sample for sample on the time line of its input.

    soxr's variable-rate engine is used, not its fixed one: the fixed engine works in transform blocks and gives its
    output in lumps, up to 40 ms (MQ, HQ) or 80 ms (VHQ) late. The variable one is 13 ms late at 44.1 and 48 kHz and
    at most 19 ms at 16 to 192 kHz (30 ms at 8 kHz), evenly, with more than 110 dB of signal to noise, and its rate
    can be bent while it runs. Output sample k lies at input time k / 16000 s: soxr takes its own delay out, to within
    3 output samples.
    """

    def __init__(self, rate_hz: float) -> None:
        """Raises ValueError for a rate outside 4 to 400 kHz."""
        if not 4_000 <= rate_hz <= 400_000:
            raise ValueError(f"cannot resample from {rate_hz:g} Hz; 4000 to 400000 Hz are possible")
        self.rate_hz: Final = float(rate_hz)
        self._share = 0.0
        self.expected = 0.0
        """where the input fed so far ends, output samples"""
        self.produced = 0
        """output samples given so far"""
        self._stream = soxr.ResampleStream(
            rate_hz * (1 + 2 * MAX_STEER), SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ", vr=True
        )
        self._stream.set_io_ratio(self.rate_hz, SAMPLE_RATE_HZ, 0)

    def steer(self, share: float) -> None:
        """Make ``1 + share`` times as many samples from now on, within +-`MAX_STEER`; no click, 0 at the start."""
        self._share = max(-MAX_STEER, min(MAX_STEER, share))
        self._stream.set_io_ratio(self.rate_hz / (1 + self._share), SAMPLE_RATE_HZ, 0)

    def process(self, samples: Mono) -> Mono:
        """Feed a block.

        Args:
            samples: mono sound at `rate_hz`, float32, (n,), n >= 0.

        Returns:
            the 16 kHz sound that is ready, float32, (m,); m may be 0.
        """
        if not len(samples):
            return np.zeros(0, np.float32)
        out: Mono = self._stream.resample_chunk(np.ascontiguousarray(samples))
        self.expected += len(samples) * SAMPLE_RATE_HZ * (1 + self._share) / self.rate_hz
        self.produced += len(out)
        return out

    def flush(self) -> Mono:
        """Give what is still inside, so that all output together is as long as all input; then feed no more."""
        missing = max(0, round(self.expected) - self.produced)
        silence = np.zeros(int(self.rate_hz * 0.05), np.float32)
        out: Mono = np.concatenate([self._stream.resample_chunk(silence) for _ in range(2)])[:missing]
        self.produced += len(out)
        return out


def _kernel() -> Mono:
    """A sinc under a Kaiser window (beta 9), for each phase, its sum made 1; (PHASES + 1, 2 * REACH)."""
    taps = np.arange(1 - REACH, REACH + 1)
    away = taps[None, :] - np.arange(PHASES + 1)[:, None] / PHASES
    window = np.i0(9.0 * np.sqrt(np.clip(1 - (away / REACH) ** 2, 0.0, 1.0))) / np.i0(9.0)
    kernel = np.sinc(away) * window
    rows: Mono = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


_KERNEL: Final = _kernel()


def interpolate(sound: Mono, places: Places) -> Mono:
    """Give a sound's values between its samples, by band-limited interpolation (J. O. Smith, P. Gossett, 1984).

    Flat to 0.45 of the sample rate. Unlike a `StreamResampler` it holds nothing: a reader may go on from anywhere.

    Args:
        sound: float32, (n,).
        places: where, in samples from the first one, each from `REACH` - 1 up to but less than n - `REACH`, (m,).

    Returns:
        float32, (m,)
    """
    whole = np.floor(places).astype(np.intp)
    phase = np.rint((places - whole) * PHASES).astype(np.intp)
    around = np.lib.stride_tricks.sliding_window_view(sound, 2 * REACH)[whole - (REACH - 1)]
    out: Mono = np.einsum("ij,ij->i", around, _KERNEL[phase])
    return out


class ClockLine:
    """Follow how late blocks of sound come, against a line of constant rate, and say how to bend the rate.

    A block is never heard before its last sample was made, so the least lateness within a second is the true one and
    the rest is scheduling. A device whose clock runs slow by a share d shows a lateness that grows by d seconds a
    second. A proportional-integral loop bends the rate against it; its times (30 s, 120 s) give critical damping.
    """

    WINDOW_NS: Final = 1_000_000_000
    PULL_NS: Final = 30_000_000_000
    LEARN_S: Final = 120.0

    def __init__(self) -> None:
        self._least: int | None = None
        self._window_end_ns = 0
        self._drift = 0.0
        self.late_ns = 0
        """least lateness of the last full window, ns"""

    def observe(self, heard_ns: int, late_ns: int) -> float | None:
        """Take one block; once a second return the share by which to bend the rate.

        Args:
            heard_ns: when the block came, monotonic ns.
            late_ns: that, less the time at which the line has the end of the block, ns.
        """
        if self._least is None:
            self._least = late_ns
            self._window_end_ns = heard_ns + self.WINDOW_NS
            return None
        self._least = min(self._least, late_ns)
        if heard_ns < self._window_end_ns:
            return None
        self.late_ns = self._least
        self._least = None
        pull = max(-MAX_STEER, min(MAX_STEER, self.late_ns / self.PULL_NS))
        self._drift = max(-MAX_STEER, min(MAX_STEER, self._drift + pull / self.LEARN_S))
        return max(-MAX_STEER, min(MAX_STEER, pull + self._drift))
