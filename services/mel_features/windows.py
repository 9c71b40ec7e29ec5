"""Cuts the stream of mel frames into one window for each video frame."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from services.inference.engine import MelWindow
from services.mel_features.mel import MEL_BANDS, MEL_FLOOR, MEL_RATE_HZ

__all__ = ["VIDEO_RATE_HZ", "Windows", "mel_index"]

VIDEO_RATE_HZ: Final = 25

Mel = npt.NDArray[np.float32]


def mel_index(frame: int) -> int:
    """Mel frame at which a video frame begins: ``int(80 * frame / 25)``, cut off towards zero as Wav2Lip does it."""
    ticks = MEL_RATE_HZ * frame
    return ticks // VIDEO_RATE_HZ if ticks >= 0 else -(-ticks // VIDEO_RATE_HZ)


class Windows:
    """Takes mel frames in order and gives each video frame its window as soon as that is complete.

    Mel frames that were never heard (before media time 0, before the first frame pushed, in a gap) count as silence,
    `MEL_FLOOR`. Of a gap longer than a window, and before the first frame pushed, the video frames are passed over:
    those are made that begin (`mel_index`) in what was heard. So a window may hold silence, but never sound at a
    wrong place.

    Holds at most one window, and what is needed of it, between calls.

    Args:
        window: what the engine needs.
    """

    def __init__(self, window: MelWindow) -> None:
        if window.back < 0 or window.ahead < 1:
            raise ValueError(f"mel window of {window.back} back and {window.ahead} ahead: back >= 0 and ahead >= 1")
        self._window = window
        self._next = 0
        self._end = 0
        self._begun = False
        # Mel frames [_end - its width, _end); what lies before it is silence or no longer needed.
        self._held: Mel = np.zeros((MEL_BANDS, 0), np.float32)

    @property
    def next_frame(self) -> int:
        """Number of the next video frame."""
        return self._next

    @property
    def reach(self) -> int:
        """Number of the mel frame after the last one that the next video frame needs."""
        return self._start(self._next) + self._window.length

    def push(self, index: int, frames: Mel) -> list[tuple[int, Mel]]:
        """Take mel frames.

        Args:
            index: number of the first of them; a jump is a gap.
            frames: (80, n) float32.

        Returns:
            video frame and window, (80, length) float32, its own copy; in order, each video frame at most once.

        Raises:
            ValueError: a wrong shape, or mel frames that were pushed before.
        """
        if frames.ndim != 2 or frames.shape[0] != MEL_BANDS:
            raise ValueError(f"mel frames of shape {frames.shape}: must be ({MEL_BANDS}, n)")
        if frames.shape[1] == 0:
            return []
        if index < self._end:
            raise ValueError(
                f"mel frame {index} where {self._end} or later comes next; a new time line needs new Windows"
            )
        made: list[tuple[int, Mel]] = []
        if index > self._end or not self._begun:
            made += self._pass_gap(index)
        self._begun = True
        self._held = np.concatenate([self._held, frames.astype(np.float32, copy=False)], axis=1)
        self._end = index + frames.shape[1]
        while self.reach <= self._end:
            made.append((self._next, self._cut(self._start(self._next))))
            self._next += 1
        self._forget()
        return made

    def skip_to(self, frame: int) -> None:
        """Make no window of a video frame before this one; a frame that is already passed changes nothing."""
        self._next = max(self._next, frame)
        self._forget()

    def finish(self) -> list[tuple[int, Mel]]:
        """End a file as Wav2Lip's inference script does: one more window, moved back so that it fits.

        Returns:
            that one video frame and its window; a sound shorter than a window is led in by silence. Nothing if no mel
            frame was pushed.
        """
        if not self._begun:
            return []
        last = (self._next, self._cut(self._end - self._window.length))
        self._next += 1
        return [last]

    def _start(self, frame: int) -> int:
        return mel_index(frame + self._window.shift) - self._window.back

    def _cut(self, start: int) -> Mel:
        """Copy a window; silence where nothing is held."""
        cut = np.full((MEL_BANDS, self._window.length), MEL_FLOOR, np.float32)
        held_start = self._end - self._held.shape[1]
        low, high = max(start, held_start), min(start + self._window.length, self._end)
        if low < high:
            cut[:, low - start : high - start] = self._held[:, low - held_start : high - held_start]
        return cut

    def _pass_gap(self, index: int) -> list[tuple[int, Mel]]:
        """Let silence stand for the mel frames before this one."""
        gap = index - self._end
        made: list[tuple[int, Mel]] = []
        if self._begun and gap < self._window.length + mel_index(max(0, self._window.shift)) + 1:
            self._held = np.concatenate([self._held, np.full((MEL_BANDS, gap), MEL_FLOOR, np.float32)], axis=1)
            return made
        while self._begun and mel_index(self._next) < self._end:
            made.append((self._next, self._cut(self._start(self._next))))
            self._next += 1
        self._held = self._held[:, :0]
        self._next = max(self._next, -(-index * VIDEO_RATE_HZ // MEL_RATE_HZ))
        return made

    def _forget(self) -> None:
        """Keep what the next window needs, and the last window for `finish`."""
        needed = self._end - min(self._start(self._next), self._end - self._window.length)
        if self._held.shape[1] > needed:
            self._held = self._held[:, self._held.shape[1] - needed :].copy()
