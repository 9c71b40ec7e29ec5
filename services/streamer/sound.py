"""The sound of one session as it is heard: kept by media time, given out in step with the picture.

The loop tells two things: sound as it comes (`SoundHub.heard`), a little before its picture is shown, and at each tick
of the screen which moment of it the picture shows (`SoundHub.at`). Between two ticks that moment moves on with the
monotonic clock. Who schedules by itself (a player with a clock for both) takes a `SoundTap`: all pieces, undelayed.
Who has no clock (a plain stream, a recorder) takes a `SoundReader`: so many samples at a time, those of the picture.

A reader follows the picture by bending its rate, as a listener can neither hear nor see: by up to `GENTLE` while it is
near, by up to `STRONG` when it is far off. Only from `JUMP_S` on, and in silence, where nobody hears it, does it jump.
What is cut or begins anew fades within `FADE` samples.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import numpy.typing as npt

from services.streamer.mjpeg import HubClosedError, TooManyViewersError
from shared.clock import SAMPLE_RATE_HZ
from shared.resample import REACH, interpolate
from shared.service import BUCKETS_S

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SoundHub", "SoundPiece", "SoundReader", "SoundStats", "SoundTap"]

Pcm16 = npt.NDArray[np.int16]
Mono = npt.NDArray[np.float32]
Places = npt.NDArray[np.float64]

MOST_LISTENERS: Final = 64
KEPT_SAMPLES: Final = 30 * SAMPLE_RATE_HZ
"""how much sound a hub keeps"""
TAP_SAMPLES: Final = 10 * SAMPLE_RATE_HZ
"""how much sound waits for a player at most"""
TAP_PIECES: Final = 1000
"""and in how many pieces"""
FADE: Final = 64
"""samples in which sound that is cut off ends and sound that begins rises: 4 ms"""
PULL_S: Final = 4.0
"""a reader that is off by a little is back after about this time"""
GENTLE: Final = 0.005
"""share by which the rate is bent at most while the reader is less than `NEAR_S` from its place"""
NEAR_S: Final = 0.02
STRONG: Final = 0.02
"""share by which it is bent when it is `FAR_S` from it, or further"""
FAR_S: Final = 0.06
BEND_S: Final = 0.1
"""time in which a bend comes and goes, so that it is no change of tone that one hears"""
JUMP_S: Final = 0.15
"""from here on the way back would take too long: the reader jumps"""
QUIET_JUMP_S: Final = 0.01
"""what is further off than this is mended by a jump wherever the sound is quiet"""
QUIET: Final = 60
"""loudest sample of what counts as quiet, of 32768: -55 dB"""


NOTHING: Final[Mono] = np.zeros(0, np.float32)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SoundPiece:
    """Sound as it came."""

    epoch: int
    """time line of the session"""
    first_sample: int
    """media time of its first sample"""
    pcm: Pcm16
    """16 kHz mono, (n,)"""


class SoundTap:
    """What one player gets: every piece at once, undelayed; it schedules by itself.

    Used by one thread. `fileno` is readable while something waits, so that a selector can wait for it beside a socket.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[SoundPiece] = deque()
        self._waiting = 0
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.dropped_samples = 0
        """sound that was too old by the time it would have been taken, samples"""

    def take(self) -> list[SoundPiece]:
        """All that came since the last call; what is older than the bound is dropped and counted. Never blocks."""
        with self._lock:
            pieces = list(self._pieces)
            self._pieces.clear()
            self._waiting = 0
            if self._fd >= 0:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._fd)
            return pieces

    def fileno(self) -> int:
        """Readable while there is something to take; -1 when the tap has ended."""
        return self._fd

    def put(self, piece: SoundPiece) -> int:
        """Put a piece behind the others; how many samples had to go for it. Called by the hub."""
        with self._lock:
            if self._fd < 0:
                return 0
            self._pieces.append(piece)
            self._waiting += len(piece.pcm)
            dropped = 0
            while len(self._pieces) > 1 and (self._waiting > TAP_SAMPLES or len(self._pieces) > TAP_PIECES):
                oldest = len(self._pieces.popleft().pcm)
                self._waiting -= oldest
                dropped += oldest
            self.dropped_samples += dropped
            os.eventfd_write(self._fd, 1)
            return dropped

    def forget(self) -> None:
        """Drop what waits: an older epoch ended. Called by the hub."""
        with self._lock:
            self._pieces.clear()
            self._waiting = 0

    def end(self) -> None:
        """Give nothing any more. Called by the hub; may be called twice."""
        with self._lock:
            fd, self._fd = self._fd, -1
            self._pieces.clear()
            if fd >= 0:
                os.close(fd)


@dataclass(frozen=True)
class SoundStats:
    """The present state of a hub."""

    epoch: int
    """time line of the session; -1 before the first"""
    taps: int
    """players that schedule by themselves"""
    readers: int
    """listeners without a clock"""
    kept_s: float
    """sound kept, s"""
    skew_s: float | None
    """of the reader that is furthest from its place, s; positive: the picture is late. None: nobody hears anything"""


@dataclass(frozen=True)
class Cut:
    """Some sound out of the hub."""

    pcm: Pcm16
    """(n,); 0 where there is none"""
    spans: list[tuple[int, int]]
    """where there is some: first sample and the one behind the last, media time"""


class SoundReader:
    """What one listener without a clock of its own hears: sound in step with the picture, in real time.

    Used by one thread; `skew_s` may be read by any.
    """

    def __init__(self, hub: SoundHub, delay_s: float = 0.0) -> None:
        self._hub = hub
        self._delay = delay_s * SAMPLE_RATE_HZ
        self._epoch = -1
        self._place: float | None = None
        """media time of the next sample; None while nothing runs"""
        self._share = 0.0
        """by how much faster than real time it reads"""
        self._gain = 0.0
        """of the last sample"""
        self._tail: Mono = NOTHING
        """how the sound would go on, for a cut that fades"""
        self.skew_s: float | None = None
        """how far the sound given last was from its place, s; positive: the picture is late. None: nothing runs"""
        self.jumps = 0
        """how often it jumped, while running"""

    @property
    def closed(self) -> bool:
        """Whether the hub has ended: nothing but silence will come."""
        return self._hub.closed

    def read(self, samples: int, due_s: float | None = None) -> Pcm16:
        """The next samples; silence where there is none. Never blocks: the caller paces.

        Args:
            samples: how many, at least `FADE` unless a cut may be heard as a click.
            due_s: when the first of them is heard, monotonic s; None: now. Who calls by a schedule hands it in, so that
                a call that comes late is not taken for a picture that is early.

        Returns:
            16 kHz mono, (samples,)
        """
        epoch, target = self._hub.place(time.monotonic() if due_s is None else due_s)
        tail = self._tail
        if target is None:
            self._place, self.skew_s, self._tail = None, None, NOTHING
            return _pcm(_faded(np.zeros(samples, np.float32), tail))
        target -= self._delay
        place, begins = self._place, epoch != self._epoch
        if place is None or begins or self._must_jump(place, target, samples):
            self.jumps += place is not None and not begins
            self._epoch, place, self._share, self._gain = epoch, target, 0.0, 0.0
        else:
            tail = NOTHING
        error_s = (target - place) / SAMPLE_RATE_HZ
        out = self._render(place, samples, _bend(error_s))
        self.skew_s = -error_s
        if self._gain > 0.0:
            self._hub.note_skew(-error_s)
        return _pcm(_faded(out, tail))

    def _must_jump(self, place: float, target: float, samples: int) -> bool:
        off_s = abs(target - place) / SAMPLE_RATE_HZ
        if off_s > JUMP_S or off_s < QUIET_JUMP_S:
            return off_s > JUMP_S
        # Quiet all the way, or else something that nobody has heard would be left out, or heard twice.
        first = int(min(place, target)) - FADE
        last = int(max(place, target)) + samples + FADE
        sound = self._hub.cut(self._epoch, first, last - first).pcm
        return bool(np.abs(sound.astype(np.int32)).max() <= QUIET)

    def _render(self, place: float, samples: int, share: float) -> Mono:
        """Read from a place on, the rate going over towards `1 + share`, and keep the tail for a cut that may come."""
        count = np.arange(samples + FADE, dtype=np.float64)
        # The rate goes over in a straight line, so the place runs on a parabola: neither of them ever jumps.
        change = (share - self._share) * min(1.0, samples / (BEND_S * SAMPLE_RATE_HZ))
        places: Places = place + count * (1 + self._share) + change * count * count / (2 * samples)
        # One sample more than it takes: a place a hair below a whole number may be rounded up to it.
        first = floor(places[0]) - REACH
        cut = self._hub.cut(self._epoch, first, floor(places[-1]) + REACH + 2 - first)
        gain = np.minimum(_gain(places, cut.spans), self._gain + (count + 1) / FADE).astype(np.float32)
        sound = interpolate(cut.pcm.astype(np.float32), places - first) * gain
        self._hub.note_missing(int(np.count_nonzero(gain[:samples] == 0.0)))
        self._gain = float(gain[samples - 1])
        self._tail = sound[samples:]
        self._place = float(places[samples])
        self._share += change
        return sound[:samples]


class SoundHub:
    """Keeps the last seconds of a session's sound and where its picture is. Safe to call from any thread."""

    def __init__(self, max_listeners: int = MOST_LISTENERS) -> None:
        self.max_listeners = max_listeners
        """of taps, and of readers"""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._epoch = -1
        self._ring: Pcm16 = np.zeros(KEPT_SAMPLES, np.int16)
        self._spans: deque[list[int]] = deque()
        """what the ring holds: first sample and the one behind the last, in order"""
        self._due: tuple[float, float] | None = None
        """a moment, and the media time that is due then"""
        self._taps: set[SoundTap] = set()
        self._readers: set[SoundReader] = set()
        self._counted: Counter[str] = Counter()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    @property
    def listeners(self) -> int:
        """How many listen, by themselves or through a reader."""
        return len(self._taps) + len(self._readers)

    def heard(self, epoch: int, first_sample: int, pcm: Pcm16) -> None:
        """Take sound as it comes. What is older than the newest epoch, or was there before, is left out.

        Args:
            epoch: time line of the session; a higher one than before ends all that was.
            first_sample: media time of the first sample.
            pcm: 16 kHz mono, (n,); must not change any more.
        """
        with self._lock:
            if not self._enter(epoch):
                return
            if self._spans and first_sample < self._spans[-1][1]:
                pcm = pcm[self._spans[-1][1] - first_sample :]
                first_sample = self._spans[-1][1]
            if not len(pcm):
                return
            self._keep(first_sample, pcm)
            piece = SoundPiece(epoch, first_sample, pcm)
            for tap in self._taps:
                self._counted["sound.tap_dropped_samples"] += tap.put(piece)

    def at(self, now_s: float, epoch: int, sample: float | None) -> None:
        """Tell which moment of the sound is due, at each tick of the screen.

        Args:
            now_s: the moment of the tick, monotonic s.
            epoch: time line of the session; a higher one than before ends all that was.
            sample: media time of what the picture shows then; None: nothing runs.
        """
        with self._lock:
            if self._enter(epoch):
                self._due = None if sample is None else (now_s, sample)

    def _enter(self, epoch: int) -> bool:
        """Whether an epoch is the present one; a newer one becomes it, and nothing of what was is left."""
        if epoch > self._epoch:
            self._epoch, self._due = epoch, None
            self._spans.clear()
            for tap in self._taps:
                tap.forget()
        return epoch == self._epoch

    def _keep(self, first_sample: int, pcm: Pcm16) -> None:
        kept = pcm[-KEPT_SAMPLES:]
        end = first_sample + len(pcm)
        at = (end - len(kept)) % KEPT_SAMPLES
        room = KEPT_SAMPLES - at
        self._ring[at : at + len(kept)] = kept[:room]
        self._ring[: len(kept[room:])] = kept[room:]
        if self._spans and self._spans[-1][1] == first_sample:
            self._spans[-1][1] = end
        else:
            self._spans.append([first_sample, end])
        oldest = end - KEPT_SAMPLES
        while self._spans[0][1] <= oldest:
            self._spans.popleft()
        self._spans[0][0] = max(self._spans[0][0], oldest)

    def place(self, when_s: float) -> tuple[int, float | None]:
        """The epoch, and the media time that is due at a moment (monotonic s); None: nothing runs."""
        with self._lock:
            if self._due is None:
                return self._epoch, None
            at_s, sample = self._due
            return self._epoch, sample + (when_s - at_s) * SAMPLE_RATE_HZ

    def cut(self, epoch: int, first_sample: int, samples: int) -> Cut:
        """Some of the sound of an epoch; silence where there is none, and none at all of an epoch that has ended."""
        out = np.zeros(samples, np.int16)
        spans = []
        with self._lock:
            for start, end in self._spans if epoch == self._epoch else ():
                a, b = max(start, first_sample), min(end, first_sample + samples)
                if a < b:
                    out[a - first_sample : b - first_sample] = self._ring[np.arange(a, b) % KEPT_SAMPLES]
                    spans.append((start, end))
        return Cut(out, spans)

    @contextmanager
    def tap(self) -> Iterator[SoundTap]:
        """Be counted as a listener that schedules by itself. It begins with the sound of the present picture.

        Raises:
            HubClosedError: the server stops.
            TooManyViewersError: there are `max_listeners` already.
        """
        tap = SoundTap()
        try:
            with self._listed(self._taps, tap):
                yield tap
        finally:
            tap.end()

    @contextmanager
    def reader(self, delay_s: float = 0.0) -> Iterator[SoundReader]:
        """Be counted as a listener.

        Args:
            delay_s: how much later than the picture it is to hear the sound, s; less than 0 is earlier, as far as the
                sound is there by then.

        Raises:
            HubClosedError: the server stops.
            TooManyViewersError: there are `max_listeners` already.
        """
        reader = SoundReader(self, delay_s)
        with self._listed(self._readers, reader):
            yield reader

    @contextmanager
    def _listed(self, listeners: set[T], listener: T) -> Iterator[None]:
        with self._lock:
            if self.closed:
                raise HubClosedError
            if len(listeners) >= self.max_listeners:
                raise TooManyViewersError(
                    f"{self.max_listeners} listeners hear this session already, which is the most it takes. "
                    "Close one of them and try again."
                )
            if isinstance(listener, SoundTap):
                self._begin(listener)
            listeners.add(listener)
        try:
            yield
        finally:
            with self._lock:
                listeners.discard(listener)

    def _begin(self, tap: SoundTap) -> None:
        """Give a new player what the picture is about to show; the lock is held."""
        if self._due is None:
            return
        at_s, sample = self._due
        now = int(sample + (time.monotonic() - at_s) * SAMPLE_RATE_HZ)
        for start, end in self._spans:
            if end > now:
                first = max(start, now)
                tap.put(SoundPiece(self._epoch, first, self._ring[np.arange(first, end) % KEPT_SAMPLES]))

    def note_skew(self, seconds: float) -> None:
        """A listener tells how far the sound that it hears is from the picture shown; positive: picture late."""
        with self._lock:
            self._counted[f"hist.sound_skew.{bisect_left(BUCKETS_S, abs(seconds))}"] += 1
            self._counted["hist.sound_skew.sum"] += abs(seconds)  # type: ignore[assignment]

    def note_missing(self, samples: int) -> None:
        """A listener tells how much silence it had to hear in place of sound that was due."""
        if samples:
            with self._lock:
                self._counted["sound.missing_samples"] += samples

    def drain(self) -> dict[str, float]:
        """What was counted since the last call, by the names that a `Tally` gives: for /metrics."""
        with self._lock:
            counted, self._counted = dict(self._counted), Counter()
            return dict(counted)

    def stats(self) -> SoundStats:
        """The present state."""
        with self._lock:
            skews = [r.skew_s for r in self._readers if r.skew_s is not None]
            kept = sum(end - start for start, end in self._spans)
            worst = max(skews, key=abs, default=None)
            return SoundStats(self._epoch, len(self._taps), len(self._readers), kept / SAMPLE_RATE_HZ, worst)

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait for the end, at most so long; whether it has come."""
        return self._ended.wait(max(0.0, timeout_s))

    def close(self) -> None:
        """End all, for good: taps and readers give nothing and silence, and nobody new is let in."""
        with self._lock:
            self._ended.set()
            self._spans.clear()
            self._due = None
            for tap in self._taps:
                tap.end()


def _bend(error_s: float) -> float:
    """By how much faster than real time to read when the place is `error_s` further on."""
    off = abs(error_s)
    share = min(off / PULL_S, GENTLE)
    if off > NEAR_S:
        share += (STRONG - GENTLE) * min(1.0, (off - NEAR_S) / (FAR_S - NEAR_S))
    return share if error_s > 0 else -share


def _gain(places: Places, spans: list[tuple[int, int]]) -> Places:
    """1 inside the spans, 0 outside, and a ramp inside their edges."""
    gain = np.zeros(len(places))
    for start, end in spans:
        np.maximum(gain, np.clip((np.minimum(places - start, end - 1 - places) + 1) / FADE, 0.0, 1.0), out=gain)
    return gain


def _faded(sound: Mono, tail: Mono) -> Mono:
    """Let what was heard until now fade out over the beginning of what comes."""
    length = min(len(tail), len(sound))
    if length:
        sound[:length] += tail[:length] * (1 - (np.arange(length, dtype=np.float32) + 1) / length)
    return sound


def _pcm(sound: Mono) -> Pcm16:
    return np.clip(np.rint(sound), -32768, 32767).astype(np.int16)
