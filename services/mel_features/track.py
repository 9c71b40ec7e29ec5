"""One time line of one session: sound in, mel windows with their voice gain out. No sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.inference.engine import MelWindow
from services.mel_features.mel import HOP, MEL_BANDS, N_FFT, StreamingMel
from services.mel_features.voice import VoiceGate
from services.mel_features.windows import Windows
from shared.clock import FRAME_SAMPLES, SAMPLE_RATE_HZ

__all__ = ["Due", "Track"]

HISTORY: Final = 256
"""mel frames kept, so that an engine that comes late finds what lies behind"""
REST_EVERY: Final = 25
"""in silence one frame in so many is made, so that a worker or player that came late learns of the rest; all of them
for an engine whose faces live in silence"""


@dataclass(frozen=True)
class Due:
    """A frame that can be made."""

    frame: int
    mel: npt.NDArray[np.float32]
    gain: float
    captured_ns: int
    """when the first sample of the frame was heard, monotonic ns"""


class Track:
    """Follows the sound of one epoch.

    The engine's window may be unknown at first or change (another kind of worker); the newest mel frames are kept and
    windows are cut for what is still to come. Sound that completes no window waits for the next piece, so that half the
    pieces cost nothing.
    """

    def __init__(self, epoch: int, stream: str) -> None:
        self.epoch = epoch
        self.stream = stream
        self.lost_samples = 0
        self.silent_frames = 0
        self._mel: StreamingMel | None = None
        self._gate = VoiceGate()
        self._window: MelWindow | None = None
        self._windows: Windows | None = None
        self._unread: list[npt.NDArray[np.int16]] = []
        """sound that follows on what the mel frames were made of"""
        self._history: deque[tuple[int, npt.NDArray[np.float32]]] = deque()
        self._kept = 0
        """mel frames in it"""
        self._heard_ns = 0
        self._silent = 0

    def set_window(self, window: MelWindow | None) -> None:
        """Cut windows for another engine from here on; None while there is no worker."""
        if window == self._window:
            return
        next_frame = self._windows.next_frame if self._windows is not None else self._present_frame()
        self._window = window
        self._windows = None if window is None else Windows(window)
        self._silent = 0
        if self._windows is None:
            return
        self._windows.skip_to(next_frame)
        history = list(self._history)
        if history:
            self._windows.push(history[0][0], np.concatenate([frames for _, frames in history], axis=1))

    def _present_frame(self) -> int:
        """The frame whose sound is just being heard."""
        return self.position // FRAME_SAMPLES

    def push(self, first_sample: int, pcm: npt.NDArray[np.int16], captured_ns: int) -> list[Due]:
        """Take a piece of sound; a jump in the sample count is a gap. What was heard before is passed over.

        Args:
            first_sample: media time of its first sample.
            pcm: (n,) int16, 16 kHz.
            captured_ns: when its last sample was heard.

        Returns:
            the frames that can be made now, in order.
        """
        due: list[Due] = []
        if self._mel is None:
            self._mel = StreamingMel(first_sample)
            self._gate = VoiceGate(first_sample)
        position = self.position
        if first_sample < position:
            return []
        if first_sample > position:
            due = self.gap(first_sample - position)
        self._heard_ns = captured_ns
        self._unread.append(pcm)
        return due + self._read() if self._completes() else due

    def gap(self, samples: int) -> list[Due]:
        """Pass over missing sound as silence."""
        if self._mel is None:
            return []
        self.lost_samples += samples
        due = self._read()
        first = self._mel.frames_out
        frames = self._mel.skip(samples)
        self._gate.skip(samples)
        due += self._cut(first, frames)
        if self._mel.frames_out > first + frames.shape[1]:
            self._forget()
        return due

    @property
    def position(self) -> int:
        """Media time up to which sound came, samples."""
        return 0 if self._mel is None else self._mel.samples_in + self._waiting_samples

    @property
    def _waiting_samples(self) -> int:
        return sum(len(pcm) for pcm in self._unread)

    def _completes(self) -> bool:
        """Whether the sound so far completes a window, or enough of it waits."""
        if self._windows is None or self._waiting_samples >= FRAME_SAMPLES:
            return True
        return self.position >= (self._windows.reach - 1) * HOP + N_FFT // 2

    def _read(self) -> list[Due]:
        """Make mel frames of the sound that waits."""
        if self._mel is None or not self._unread:
            return []
        pcm = np.concatenate(self._unread)
        self._unread = []
        first = self._mel.frames_out
        frames = self._mel.push(pcm)
        self._gate.push(pcm)
        return self._cut(first, frames)

    def _forget(self) -> None:
        """Keep nothing of what was heard."""
        self._history.clear()
        self._kept = 0

    def tell_rest(self) -> None:
        """Make the next frame of silence whatever was made before: whoever should know of it could not take it."""
        self._silent = 0

    def _cut(self, first: int, frames: npt.NDArray[np.float32]) -> list[Due]:
        if frames.shape[1] == 0:
            return []
        if self._history and self._history[-1][0] + self._history[-1][1].shape[1] != first:
            self._forget()
        self._history.append((first, frames))
        self._kept += frames.shape[1]
        while self._kept > HISTORY:
            self._kept -= self._history.popleft()[1].shape[1]
        if self._windows is None:
            return []
        return list(self._voiced(self._windows.push(first, frames)))

    def _voiced(self, cut: Iterable[tuple[int, npt.NDArray[np.float32]]]) -> Iterable[Due]:
        """Leave out the frames of silence but the first and, from time to time, one more; unless all are wanted."""
        lives = self._window is not None and self._window.in_silence
        for frame, mel in cut:
            gain = self._gate.gain_at(frame * FRAME_SAMPLES + FRAME_SAMPLES // 2)
            if gain == 0.0:
                self._silent += 1
                if self._silent % REST_EVERY != 1 and not lives:
                    self.silent_frames += 1
                    continue
            else:
                self._silent = 0
            age = self.position - frame * FRAME_SAMPLES
            captured_ns = self._heard_ns - age * 1_000_000_000 // SAMPLE_RATE_HZ
            yield Due(frame, mel.reshape(MEL_BANDS, -1), gain, max(0, captured_ns))
