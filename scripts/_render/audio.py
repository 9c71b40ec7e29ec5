"""The sound of a render: mel frames for the network, voice gains for the built-in engine."""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import soxr

from scripts._render.video import RenderError, end, probe, run_ffmpeg, said
from services.inference.engine import MelWindow
from services.mel_features.mel import MEL_BANDS, MEL_FLOOR, MEL_RATE_HZ, SAMPLE_RATE_HZ, StreamingMel
from services.mel_features.voice import VoiceGate

__all__ = ["Sound", "ffmpeg_input", "listen"]

Floats = npt.NDArray[np.float32]

PUBLISHED_WINDOW: Final = 16
"""mel frames of a window of Wav2Lip"""
BLOCK_SAMPLES: Final = 2**15
GATE_KNOWS_S: Final = 0.3
"""How far the sound must reach beyond a moment before its gain is asked for; see `VoiceGate.gain_at`."""


@dataclass(frozen=True)
class Sound:
    """A sound as the engines hear it."""

    rate_hz: Fraction
    """of the video, frames a second"""
    duration_s: float
    mel: Floats
    """(80, n), 80 frames a second"""
    gains: list[float]
    """voice gate in the middle of each video frame, 0..1; empty if it was not asked for"""

    @property
    def published_frames(self) -> int:
        """Video frames that the published script makes: until the first window that would reach over the end."""
        step = MEL_RATE_HZ / float(self.rate_hz)
        frame = 0
        while int(frame * step) + PUBLISHED_WINDOW <= self.mel.shape[1]:
            frame += 1
        return frame + 1

    @property
    def frames(self) -> int:
        """Video frames that cover the sound."""
        return max(self.published_frames, math.ceil(self.duration_s * self.rate_hz - 1e-6))

    def window(self, frame: int, window: MelWindow, ending: Literal["silence", "held"]) -> Floats:
        """Cut the mel window of a video frame.

        It begins at ``int(80 / rate * (frame + shift)) - back``, cut off towards zero as the published script does.

        Args:
            frame: number of the video frame.
            window: what the engine needs.
            ending: what comes after the sound: silence, or, as the published script does it, the last whole window.

        Returns:
            (80, length), its own copy; before the sound there is silence.
        """
        start = int((frame + window.shift) * (MEL_RATE_HZ / float(self.rate_hz))) - window.back
        total = self.mel.shape[1]
        if ending == "held":
            start = min(start, total - window.length)
        cut = np.full((MEL_BANDS, window.length), MEL_FLOOR, np.float32)
        low, high = max(0, start), min(total, start + window.length)
        if low < high:
            cut[:, low - start : high - start] = self.mel[:, low:high]
        return cut


def ffmpeg_input(path: Path) -> tuple[list[str], list[str]]:
    """Make the ffmpeg arguments that read a sound, and those that lay it on a time line from 0 without holes."""
    return ["-i", f"file:{path}"], ["-af", "aresample=async=1:first_pts=0"]


def listen(path: Path, rate_hz: Fraction, *, gated: bool = False) -> Sound:
    """Read a sound, or the sound of a video.

    Channels are mixed by their mean and the rate is changed by soxr HQ, as librosa's loader does for the published
    script.

    Args:
        path: any file that ffmpeg reads.
        rate_hz: of the video to be, frames a second.
        gated: whether the voice gate is wanted too, which takes longer than all the rest.

    Raises:
        RenderError: there is no sound in it, or it cannot be decoded.
    """
    stream = probe(path).audio
    if stream is None:
        raise RenderError(f"{path}: has no sound; give a recording or a video with sound for --audio")
    own_hz = int(stream.get("sample_rate", 0))
    if own_hz < 1:
        raise RenderError(f"{path}: ffmpeg cannot tell the sample rate of this sound")
    mel = StreamingMel()
    gate = VoiceGate() if gated else None
    pieces: list[Floats] = []
    gains: list[float] = []
    samples = heard = 0
    resampler = None if own_hz == SAMPLE_RATE_HZ else soxr.ResampleStream(own_hz, SAMPLE_RATE_HZ, 1, "float32", "HQ")

    def push(piece: Floats) -> None:
        nonlocal heard
        pieces.append(mel.push(piece))
        if gate is None:
            return
        for at in range(0, len(piece), SAMPLE_RATE_HZ):  # the gate remembers some seconds only
            second = piece[at : at + SAMPLE_RATE_HZ]
            gate.push(second)
            heard += len(second)
            _ask(gate, gains, rate_hz, heard - int(GATE_KNOWS_S * SAMPLE_RATE_HZ))

    try:
        for block in _decoded(path, own_hz, int(stream.get("channels", 1))):
            samples += len(block)
            push(block if resampler is None else resampler.resample_chunk(block))
        if resampler is not None:
            push(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if gate is not None:
            gate.push(np.zeros(int(2 * GATE_KNOWS_S * SAMPLE_RATE_HZ), np.float32))
            _ask(gate, gains, rate_hz, heard + SAMPLE_RATE_HZ // 4)
        pieces.append(mel.flush())
    except ValueError as error:
        if isinstance(error, RenderError):
            raise
        raise RenderError(f"{path}: {error}") from error
    if samples == 0:
        raise RenderError(f"{path}: the sound is empty")
    return Sound(rate_hz, samples / own_hz, np.concatenate(pieces, axis=1), gains)


def _ask(gate: VoiceGate, gains: list[float], rate_hz: Fraction, until: int) -> None:
    """Ask for the gains of all further video frames whose middle lies before this sample."""
    while (middle := int((len(gains) + Fraction(1, 2)) / rate_hz * SAMPLE_RATE_HZ)) < until:
        gains.append(gate.gain_at(middle))


def _decoded(path: Path, own_hz: int, channels: int) -> Iterator[Floats]:
    reading, filtering = ffmpeg_input(path)
    # Mixed here: ffmpeg's own way from two channels to one raises floating-point sound by 3 dB.
    form = ["-ac", str(channels), "-ar", str(own_hz), "-f", "f32le"]
    with tempfile.TemporaryFile() as errors:
        process = run_ffmpeg([*reading, "-map", "0:a:0", *filtering, *form, "pipe:1"], errors, stdout=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            while block := process.stdout.read(4 * channels * BLOCK_SAMPLES):
                whole = len(block) // (4 * channels) * 4 * channels
                yield np.frombuffer(block[:whole], "<f4").reshape(-1, channels).mean(axis=1, dtype=np.float32)
            if process.wait() != 0:
                raise RenderError(f"{path}: the sound cannot be decoded: {said(process, errors, path)}")
        finally:
            end(process)
