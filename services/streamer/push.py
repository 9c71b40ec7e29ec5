"""Sound that one connection pushes into a session: kept until it was heard, told of when it was.

The streamer itself holds what was pushed and passes on only a little more than is being heard. So nothing is lost when
audio_capture begins anew, an interrupt has little to take back, and the sender learns exactly how far it was heard.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.streamer.control import InputClosedError, InputEvent
from shared.clock import SAMPLE_RATE_HZ

__all__ = ["Piece", "Push"]

Pcm16 = npt.NDArray[np.int16]

BOUND: Final = 600 * SAMPLE_RATE_HZ
"""most samples that wait"""
AHEAD: Final = 3 * SAMPLE_RATE_HZ
"""samples that are passed on before they are played"""
MOST_PIECE: Final = SAMPLE_RATE_HZ
"""samples of one message"""
LEAST_PIECE: Final = SAMPLE_RATE_HZ // 10
"""shorter pieces that wait are put together, so that their number is bounded too"""
END_SAMPLES: Final = SAMPLE_RATE_HZ // 100
"""what the end of an utterance counts among what waits, so that the number of ends is bounded too"""
ROOM_AGAIN: Final = SAMPLE_RATE_HZ
"""samples of room from which a sender that waits is told"""
MOST_EVENTS: Final = 1000
MARKS: Final = 4096
"""pieces of 20 or 40 ms whose place in what was pushed is remembered, 80 s at least"""


@dataclass(frozen=True, eq=False)
class Piece:
    """Sound to pass on, or the end of an utterance."""

    first_sample: int
    """place in what was pushed in this epoch"""
    pcm: Pcm16 | None
    """None: an utterance ends here"""
    arrived_ns: int = 0


class Push:
    """A `PushInput` (see control.py). `put` and the like belong to the connection's thread, the rest to the loop."""

    bound: int = BOUND

    def __init__(self, wake: Callable[[], None], interrupt: Callable[[Push], None], *, live: bool) -> None:
        """Begin.

        Args:
            wake: has the loop look for what was put.
            interrupt: has the loop interrupt the session, if it still listens to this one.
            live: a microphone.
        """
        self.live: Final = live
        self._wake = wake
        self._ask_interrupt = interrupt
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: deque[InputEvent] = deque(maxlen=MOST_EVENTS)
        self._kept: deque[tuple[int, Pcm16, int]] = deque()
        """place, sound, arrival; of what was not heard yet"""
        self._unsent: deque[tuple[int, Pcm16, int]] = deque()
        """the same of what was not passed on yet"""
        self._end = 0
        """samples pushed by this connection so far; all places count from its beginning"""
        self._sent = 0
        """up to where it was passed on"""
        self._captured = 0
        """up to where audio_capture has played it"""
        self._heard = 0
        """up to where the listener heard it"""
        self._base = 0
        """where the epoch began"""
        self._marks: deque[tuple[int, int, int]] = deque(maxlen=MARKS)
        """of pieces that came back: media time, place in what was pushed, most samples of it"""
        self._flushes: deque[int] = deque()
        """ends of utterances that are not passed on yet"""
        self._ends: deque[int] = deque()
        """ends of utterances that were not heard yet"""
        self._utterance = 0
        """the one that is heard, or is next"""
        self._began = 0
        """where it begins"""
        self._started = False
        self._cut_utterance = 0
        """the one that was interrupted last"""
        self._starving = False
        """whether the sender was told that there is no room"""
        self._closed = ""
        self.finished = False
        """whether no more will be pushed"""

    # ---- the connection's side

    @property
    def room(self) -> int:
        """Samples that may be pushed now."""
        with self._lock:
            room = self._room()
            self._starving = self._starving or room < ROOM_AGAIN
            return room

    def put(self, pcm: Pcm16, arrived_ns: int) -> None:
        """Push sound.

        Raises:
            InputClosedError: the session takes no more from here.
            ValueError: it is not int16 of one axis, or more than there is room for.
        """
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"pushed sound must be int16 of shape (n,), not {pcm.dtype} of shape {pcm.shape}")
        with self._lock:
            if self._closed:
                raise InputClosedError(self._closed)
            if len(pcm) > self._room():
                raise ValueError(f"{len(pcm)} samples are more than there is room for")
            for at in range(0, len(pcm), MOST_PIECE):
                self._keep(pcm[at : at + MOST_PIECE], arrived_ns)
        self._wake()

    def _room(self) -> int:
        return BOUND - (self._end - self._heard) - END_SAMPLES * len(self._ends)

    def _keep(self, pcm: Pcm16, arrived_ns: int) -> None:
        item = (self._end, pcm, arrived_ns)
        joins = self._unsent and not self.live and not (self._flushes and self._flushes[-1] == self._end)
        if joins and len(self._unsent[-1][1]) < min(LEAST_PIECE, MOST_PIECE + 1 - len(pcm)):
            place, before, _ = self._unsent.pop()
            self._kept.pop()
            item = (place, np.concatenate([before, pcm]), arrived_ns)
        self._unsent.append(item)
        if not self.live:
            self._kept.append(item)
        self._end += len(pcm)

    def flush(self) -> int:
        """End an utterance here. A microphone has none."""
        if self.live:
            return 0
        with self._lock:
            last = self._ends[-1] if self._ends else self._began
            number = self._utterance + len(self._ends)
            if self._end > last:
                self._ends.append(self._end)
                self._flushes.append(self._end)
            else:
                number -= 1  # nothing came since the last flush
        self._wake()
        return max(0, number)

    def interrupt(self) -> None:
        """Forget what was pushed and not heard."""
        self._ask_interrupt(self)

    def events(self) -> list[InputEvent]:
        """What happened since the last call."""
        with self._lock:
            if self._fd >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._fd)
            events = list(self._events)
            self._events.clear()
        return events

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._fd

    def close(self) -> None:
        """No more will be pushed; what was is said to its end."""
        self.flush()
        with self._lock:
            self.finished = True
            self._closed = self._closed or "This connection has ended its input."
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        self._wake()

    # ---- the loop's side

    def replace(self, why: str) -> None:
        """Take no more from here; the text is for whoever pushes."""
        with self._lock:
            if not self._closed:
                self._closed = why
                self._tell(InputEvent("closed", self._utterance, self._heard, text=why))
            self._forget()

    def to_send(self) -> list[Piece]:
        """What is to be passed on now."""
        pieces: list[Piece] = []
        with self._lock:
            while self._unsent and (self.live or self._sent - self._captured < AHEAD):
                place, pcm, arrived_ns = self._unsent.popleft()
                pieces += self._flushed(place)
                pieces.append(Piece(place - self._base, pcm, arrived_ns))
                self._sent = place + len(pcm)
            pieces += self._flushed(self._sent)
            if self.live:  # nothing comes back of it: it is heard as it comes
                self._captured = self._heard = self._sent
        return pieces

    def _flushed(self, place: int) -> list[Piece]:
        pieces = []
        while self._flushes and self._flushes[0] <= place:
            pieces.append(Piece(self._flushes.popleft() - self._base, None))
        return pieces

    def came_back(self, first_sample: int, pushed: int, samples: int) -> None:
        """Sound is being played.

        Args:
            first_sample: its media time.
            pushed: how many samples of what was pushed in this epoch lie before it.
            samples: its length, with the silence that fills it up.
        """
        with self._lock:
            self._marks.append((first_sample, self._base + pushed, samples))
            self._captured = max(self._captured, min(self._sent, self._base + pushed + samples))

    def place_of(self, media: float) -> int:
        """How much of what was pushed lies before a media time of this epoch."""
        with self._lock:
            return self._place_of(media)

    def _place_of(self, media: float) -> int:
        return _place_of(media, self._marks, self._ends, self._sent, self._heard)

    def heard(self, media: float) -> None:
        """The listener has heard everything before a media time of this epoch."""
        with self._lock:
            if not self._marks:
                return
            self._heard = max(self._heard, self._place_of(media))
            while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= self._heard:
                self._kept.popleft()
            self._tell_progress()

    def _tell_progress(self) -> None:
        """Tell of utterances that began or ended, and of room."""
        while True:
            if not self._started and self._heard > self._began:
                self._started = True
                self._tell(InputEvent("started", self._utterance, self._began, self._end - self._began))
            if not self._ends or self._heard < self._ends[0]:
                break
            end = self._ends.popleft()
            self._tell(InputEvent("ended", self._utterance, end, self._end - end))
            self._utterance += 1
            self._began = end
            self._started = False
        waiting = self._end - self._heard
        if self._starving and self._room() >= ROOM_AGAIN:
            self._starving = False
            self._tell(InputEvent("room", self._utterance, self._heard, waiting))

    @property
    def drained(self) -> bool:
        """Whether no more comes and all was heard."""
        with self._lock:
            return self.finished and (self.live or self._heard >= self._end)

    @property
    def owed(self) -> bool:
        """Whether something that was passed on has not come back yet."""
        with self._lock:
            return self._captured < self._sent

    @property
    def waiting(self) -> int:
        """Samples pushed and not yet heard."""
        with self._lock:
            return 0 if self.live else self._end - self._heard

    def restart(self) -> None:
        """A new epoch begins, and what was not heard in the old one is to be said in it."""
        with self._lock:
            if self.live:
                self._forget()
                return
            self._base = self._sent = self._captured = self._heard
            self._kept = deque((max(p, self._heard), pcm[max(0, self._heard - p) :], ns) for p, pcm, ns in self._kept)
            self._unsent = self._kept.copy()
            self._flushes = deque(end for end in self._ends if end > self._base)
            self._marks.clear()

    def snapshot(self) -> Callable[[float], int]:
        """What `place_of` says now, to be asked later, when this has gone on."""
        with self._lock:
            marks, ends, sent, heard = tuple(self._marks), tuple(self._ends), self._sent, self._heard
        return lambda media: _place_of(media, marks, ends, sent, heard)

    def forget(self) -> None:
        """Forget what was pushed and not heard."""
        with self._lock:
            last = self._ends[-1] if self._ends else self._began
            self._cut_utterance = self._utterance
            self._utterance += len(self._ends) + (self._end > last)
            self._forget()
            self._began, self._started = self._end, False

    def tell_cut(self, heard: int) -> None:
        """Tell the sender that it was interrupted, and how far it was heard."""
        with self._lock:
            self._tell(InputEvent("interrupted", self._cut_utterance, heard))

    def _forget(self) -> None:
        self._kept.clear()
        self._unsent.clear()
        self._flushes.clear()
        self._ends.clear()
        self._marks.clear()
        self._base = self._sent = self._captured = self._heard = self._end

    def _tell(self, event: InputEvent) -> None:
        self._events.append(event)
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)


def _place_of(media: float, marks: Sequence[tuple[int, int, int]], ends: Iterable[int], sent: int, heard: int) -> int:
    """Place in what was pushed that is heard at a media time; see `Push` for the rest."""
    after: int | None = None
    for first, place, most in reversed(marks):
        if first <= media:
            if after is None:  # the newest piece may end with silence that fills it up, where an utterance ends
                after = next((end for end in ends if end > place), sent)
            return min(after, place + min(most, int(media - first)))
        after = place
    return heard
