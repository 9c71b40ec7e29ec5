"""Log-mel frames as Wav2Lip was trained on them, made while the sound comes in.

The spectrogram: pre-emphasis 0.97; STFT of 800 points every 200 samples with a periodic Hann window, centred, reflected
at both ends; magnitude; 80 Slaney mel bands, 55 to 7600 Hz; 20 log10 with a floor of 1e-5 and a reference of 20 dB;
-100..0 dB laid on -4..4 and clipped. These are the constants of the published Wav2Lip (``hparams.py``, ``audio.py``).

Mel frame k is centred on sample 200 k, so it is known once sample 200 k + 400 has come. However the sound is cut into
pieces, the frames are those of the whole file.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shared.clock import SAMPLE_RATE_HZ

__all__ = [
    "HOP",
    "LONG_GAP_SAMPLES",
    "MEL_BANDS",
    "MEL_FLOOR",
    "MEL_RATE_HZ",
    "N_FFT",
    "SAMPLE_RATE_HZ",
    "StreamingMel",
    "mel_filterbank",
    "pcm_to_float",
    "whole_file",
]

N_FFT: Final = 800
HOP: Final = 200
MEL_RATE_HZ: Final = SAMPLE_RATE_HZ // HOP
MEL_BANDS: Final = 80
MEL_LOW_HZ: Final = 55.0
MEL_HIGH_HZ: Final = 7600.0
PRE_EMPHASIS: Final = 0.97
MIN_MAGNITUDE: Final = 1e-5
REFERENCE_DB: Final = 20.0
MIN_DB: Final = -100.0
MEL_LIMIT: Final = 4.0
MEL_FLOOR: Final = -MEL_LIMIT
"""What silence is in a mel frame."""

LONG_GAP_SAMPLES: Final = SAMPLE_RATE_HZ
"""From this length on, the silence of a gap is not computed frame by frame."""

HALF: Final = N_FFT // 2
BLOCK_SAMPLES: Final = 10 * SAMPLE_RATE_HZ
"""Longest piece computed at once; bounds the memory for a file of any length."""

Float64 = npt.NDArray[np.float64]
Mel = npt.NDArray[np.float32]


def pcm_to_float(pcm: npt.NDArray[Any]) -> Float64:
    """Scale a piece of sound to -1..1.

    Args:
        pcm: (n,), int16 of full scale 32768, or float of full scale 1.

    Returns:
        (n,) float64.

    Raises:
        ValueError: another dtype, more than one channel, or numbers that are not finite.
    """
    if pcm.ndim != 1:
        raise ValueError(f"sound of shape {pcm.shape}: must be mono, shape (n,); mix the channels down first")
    if pcm.dtype == np.int16:
        return pcm.astype(np.float64) / 32768.0
    if pcm.dtype not in (np.float32, np.float64):
        raise ValueError(f"sound of dtype {pcm.dtype}: must be int16, or float32 or float64 within -1..1")
    if not np.isfinite(pcm).all():
        raise ValueError("sound that is not finite: NaN or infinity among the samples")
    return pcm.astype(np.float64)


@cache
def mel_filterbank() -> Float64:
    """Triangles of Slaney's Auditory Toolbox (linear to 1 kHz, then logarithmic), each of unit area.

    Returns:
        (80, 401) float64, read-only, mel band by FFT bin; the values of ``librosa.filters.mel``.
    """
    band_edges_hz = _mel_to_hz(np.linspace(_hz_to_mel(MEL_LOW_HZ), _hz_to_mel(MEL_HIGH_HZ), MEL_BANDS + 2))
    bins_hz = np.linspace(0.0, SAMPLE_RATE_HZ / 2, N_FFT // 2 + 1)
    widths = np.diff(band_edges_hz)
    ramps = band_edges_hz[:, None] - bins_hz[None, :]
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    bank = np.maximum(0.0, np.minimum(rising, falling))
    bank *= (2.0 / (band_edges_hz[2:] - band_edges_hz[:-2]))[:, None]
    bank.setflags(write=False)
    return bank


LINEAR_HZ_PER_MEL: Final = 200.0 / 3.0
LOG_START_HZ: Final = 1000.0
LOG_START_MEL: Final = LOG_START_HZ / LINEAR_HZ_PER_MEL
LOG_STEP: Final = float(np.log(6.4)) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < LOG_START_HZ:
        return hz / LINEAR_HZ_PER_MEL
    return LOG_START_MEL + float(np.log(hz / LOG_START_HZ)) / LOG_STEP


def _mel_to_hz(mel: Float64) -> Float64:
    logarithmic = LOG_START_HZ * np.exp(LOG_STEP * (mel - LOG_START_MEL))
    return np.where(mel < LOG_START_MEL, LINEAR_HZ_PER_MEL * mel, logarithmic)


@cache
def _window() -> Float64:
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)
    window.setflags(write=False)
    return window


def _log_mel(emphasised: Float64, frames: int) -> Mel:
    """Frames of a signal whose first sample is the first sample of the first frame; (80, frames)."""
    pieces = emphasised[np.arange(0, frames * HOP, HOP)[:, None] + np.arange(N_FFT)]
    magnitude = np.abs(np.fft.rfft(pieces * _window(), axis=1))
    decibels = 20.0 * np.log10(np.maximum(MIN_MAGNITUDE, mel_filterbank() @ magnitude.T)) - REFERENCE_DB
    normal = 2.0 * MEL_LIMIT * ((decibels - MIN_DB) / -MIN_DB) - MEL_LIMIT
    return np.clip(normal, -MEL_LIMIT, MEL_LIMIT).astype(np.float32)


class StreamingMel:
    """Makes mel frames from pieces of sound of any length.

    A piece returns the frames that it completes; the first of them has the number that `frames_out` had before the
    call::

        first = mel.frames_out
        frames = mel.push(pcm)  # numbers first .. first + frames.shape[1]

    Args:
        first_sample: media time at which the sound begins, samples.
    """

    def __init__(self, first_sample: int = 0) -> None:
        self.start_at(first_sample)

    def start_at(self, sample: int) -> None:
        """Forget everything and begin at this sample; the first frame is the first one centred at or after it.

        The sound before the beginning is taken as the mirror of what follows, as at the start of a file.

        Args:
            sample: media time of the next sample pushed.

        Raises:
            ValueError: a negative sample.
        """
        if sample < 0:
            raise ValueError(f"media time {sample}: must be 0 or more samples")
        self._end = sample
        self._next_frame = -(-sample // HOP)
        # Emphasised sound from sample `_end - len(_sound)` on. Until the mirror is laid before it, it begins at the
        # first sample of the stream; then at the first sample of the next frame.
        self._sound: Float64 = np.zeros(0)
        self._mirrored = False
        self._ended = False
        # The sample before the first one: nothing before a file; in the middle of a sound most likely the same again,
        # since a jump from 0 would be a click that fills every band.
        self._previous: float | None = 0.0 if sample == 0 else None

    @property
    def frames_out(self) -> int:
        """Number of the next frame; frames before it have been returned, or were skipped by `skip` or `start_at`."""
        return self._next_frame

    @property
    def samples_in(self) -> int:
        """Media time of the next sample, samples."""
        return self._end

    def push(self, pcm: npt.NDArray[Any]) -> Mel:
        """Take the next piece of sound.

        Args:
            pcm: (n,), 16 kHz, int16 or float within -1..1.

        Returns:
            (80, m) float32 within -4..4: the frames that are now complete, from `frames_out` (before the call) on.

        Raises:
            ValueError: sound of a wrong shape or dtype, or not finite.
            RuntimeError: the sound was ended by `flush`.
        """
        self._refuse_after_end()
        sound = pcm_to_float(pcm)
        if sound.size == 0:
            return np.zeros((MEL_BANDS, 0), np.float32)
        before = np.empty_like(sound)
        before[0] = sound[0] if self._previous is None else self._previous
        before[1:] = sound[:-1]
        self._previous = float(sound[-1])
        return self._append(sound - PRE_EMPHASIS * before)

    def skip(self, samples: int) -> Mel:
        """Pass over sound that is missing, as if it were silence.

        The frames of a short gap are returned as those of any sound. Of a gap of `LONG_GAP_SAMPLES` or more only the
        frames are returned that still hold sound from before it; then `frames_out` jumps to the first frame
        centred after the gap. What lies between is `MEL_FLOOR`.

        Args:
            samples: how many are missing.

        Returns:
            (80, m) float32, as `push` does.

        Raises:
            ValueError: a negative count.
            RuntimeError: the sound was ended by `flush`.
        """
        self._refuse_after_end()
        if samples < 0:
            raise ValueError(f"a gap of {samples} samples: must be 0 or more")
        if samples == 0:
            return np.zeros((MEL_BANDS, 0), np.float32)
        self._previous = None
        if samples < LONG_GAP_SAMPLES:
            return self._append(np.zeros(samples))
        end = self._end + samples
        frames = self._append(np.zeros(N_FFT))
        self._end = end
        self._next_frame = -(-end // HOP)
        self._sound = np.zeros(end - (self._next_frame * HOP - HALF))
        return frames

    def flush(self) -> Mel:
        """End the sound: the last frames, with the end reflected.

        Returns:
            (80, m) float32. In all, a sound of n samples from media time 0 has 1 + n // 200 frames; one of no samples
            has none. After it only `start_at` is allowed.

        Raises:
            RuntimeError: the sound was ended before.
        """
        self._refuse_after_end()
        self._ended = True
        if self._sound.size == 0:
            return np.zeros((MEL_BANDS, 0), np.float32)
        if self._mirrored:
            padded = np.concatenate([self._sound, self._sound[-2 : -2 - HALF : -1]])
        else:
            before = self._next_frame * HOP - HALF - (self._end - self._sound.size)
            padded = np.pad(self._sound, HALF, mode="reflect")[HALF + before :]
        frames = self._end // HOP + 1 - self._next_frame
        if frames < 1:
            return np.zeros((MEL_BANDS, 0), np.float32)
        self._next_frame += frames
        return _log_mel(padded, frames)

    def _refuse_after_end(self) -> None:
        if self._ended:
            raise RuntimeError("the sound was ended by flush(); begin another with start_at()")

    def _append(self, emphasised: Float64) -> Mel:
        made = [
            self._append_block(emphasised[at : at + BLOCK_SAMPLES]) for at in range(0, emphasised.size, BLOCK_SAMPLES)
        ]
        return made[0] if len(made) == 1 else np.concatenate(made, axis=1)

    def _append_block(self, emphasised: Float64) -> Mel:
        self._sound = np.concatenate([self._sound, emphasised])
        self._end += emphasised.size
        frames = (self._end - HALF) // HOP + 1 - self._next_frame
        if frames < 1:
            return np.zeros((MEL_BANDS, 0), np.float32)
        if not self._mirrored:
            # The outermost sample of the mirror would be one more than there is; the window is 0 there.
            mirror = np.concatenate([[0.0], self._sound[HALF - 1 : 0 : -1]])
            start = self._end - self._sound.size
            self._sound = np.concatenate([mirror, self._sound])[self._next_frame * HOP - start :]
            self._mirrored = True
        made = _log_mel(self._sound, frames)
        self._sound = self._sound[frames * HOP :].copy()
        self._next_frame += frames
        return made


def whole_file(pcm: npt.NDArray[Any]) -> Mel:
    """All mel frames of a sound, by the same code.

    Args:
        pcm: (n,), 16 kHz, int16 or float within -1..1.

    Returns:
        (80, 1 + n // 200) float32 within -4..4; (80, 0) for no sound.

    Raises:
        ValueError: sound of a wrong shape or dtype, or not finite.
    """
    mel = StreamingMel()
    return np.concatenate([mel.push(pcm), mel.flush()], axis=1)
