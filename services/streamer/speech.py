"""What comes in over `/ws/audio`: PCM16 or Opus, live or faster than it is heard, to 16 kHz for a session to say.

A sender counts in samples of its own rate, and is answered so. What it sends beyond what may wait is not read: TCP
holds it back. A little more than that is read nevertheless and kept here, so that an `interrupt` of a sender that stops
when it is told `full` is not stuck behind its own sound.
"""

from __future__ import annotations

import json
import select
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal

import av
import av.error
import numpy as np
import numpy.typing as npt

from services.streamer.control import InputClosedError, InputEvent, LimitError, PushInput, SessionControl
from services.streamer.websocket import (
    BAD_DATA,
    MAX_MESSAGE_BYTES,
    NORMAL,
    NOT_ALLOWED,
    UNSUPPORTED,
    WebSocket,
    words_of,
)
from shared.clock import SAMPLE_RATE_HZ
from shared.resample import StreamResampler

__all__ = ["Converter", "Ledger", "Start", "listen", "start_of"]

Pcm16 = npt.NDArray[np.int16]
Mono = npt.NDArray[np.float32]

VERSION: Final = 1
SLOWEST_HZ: Final = 8_000
FASTEST_HZ: Final = 48_000
OPUS_HZ: Final = 48_000
OPUS_RATES_HZ: Final = (8_000, 12_000, 16_000, 24_000, 48_000)
"""rates of which Opus knows"""
START_S: Final = 10.0
"""time in which a sender must say what it sends"""
MOST_PUT: Final = SAMPLE_RATE_HZ
"""samples pushed at once"""
BACKLOG: Final = 20 * SAMPLE_RATE_HZ
"""samples that are read though there is no room for them yet, at 16 kHz"""
MOST_AT_ONCE: Final = 100
"""messages read before anything else is looked at"""
LOOK_S: Final = 0.1
"""pause between two looks whether there is room again"""
CUT_S: Final = 1.0
"""longest time for which new sound waits until an interrupt is done"""
END_SAMPLES: Final = SAMPLE_RATE_HZ // 100
"""what the end of an utterance counts among what waits"""
TAKEN_OVER: Final = 4409
"""close code"""


class SpeechError(Exception):
    """The sender did something wrong; the text says what to do."""

    def __init__(self, close: int, code: str, text: str) -> None:
        super().__init__(text)
        self.close = close
        """close code of RFC 6455"""
        self.code = code
        """for programs"""


@dataclass(frozen=True)
class Start:
    """What a sender sends."""

    live: bool
    encoding: Literal["pcm16", "opus"]
    sample_rate: int
    """in whose samples the sender counts, Hz; of PCM16 its rate"""
    channels: int


def start_of(message: str | bytes | None) -> Start:
    """Read the first message; None: none came.

    Raises:
        SpeechError: it is not what it should be.
    """
    wanted = 'Send first {"type":"start","live":false,"encoding":"pcm16","sample_rate":16000,"channels":1}.'
    if message is None:
        raise SpeechError(NOT_ALLOWED, "no_start", wanted)
    try:
        words = words_of(message)
    except ValueError as error:
        raise SpeechError(UNSUPPORTED, "bad_start", f"{error}. {wanted}".capitalize()) from error
    if words.get("type") != "start":
        raise SpeechError(NOT_ALLOWED, "bad_start", wanted)
    live, encoding = words.get("live", False), words.get("encoding", "pcm16")
    rate, channels = words.get("sample_rate", OPUS_HZ if encoding == "opus" else None), words.get("channels", 1)
    if not isinstance(live, bool):
        raise SpeechError(NOT_ALLOWED, "bad_start", "live must be true (a microphone) or false.")
    if encoding not in ("pcm16", "opus"):
        raise SpeechError(NOT_ALLOWED, "bad_encoding", "encoding must be pcm16 (16-bit little-endian) or opus.")
    if isinstance(rate, bool) or not isinstance(rate, int) or not SLOWEST_HZ <= rate <= FASTEST_HZ:
        raise SpeechError(
            NOT_ALLOWED, "bad_rate", f"sample_rate must be a whole number from {SLOWEST_HZ} to {FASTEST_HZ}."
        )
    if encoding == "opus" and rate not in OPUS_RATES_HZ:
        rates = ", ".join(str(hz) for hz in OPUS_RATES_HZ)
        raise SpeechError(NOT_ALLOWED, "bad_rate", f"sample_rate of Opus must be one of {rates}.")
    if isinstance(channels, bool) or not isinstance(channels, int) or channels not in (1, 2):
        raise SpeechError(NOT_ALLOWED, "bad_channels", "channels must be 1 or 2.")
    return Start(live, encoding, rate, channels)


class Converter:
    """What a sender sends, to 16 kHz mono. An utterance becomes as long as it was, to the sample."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._rest = b""
        """half a sample: messages may be cut anywhere"""
        self._rate = OPUS_HZ if start.encoding == "opus" else start.sample_rate
        self._opus: av.AudioCodecContext | None = None
        self._stream: StreamResampler | None = None
        self.taken = 0
        """samples that came, at the sender's rate"""

    def feed(self, data: bytes) -> Pcm16:
        """Take a message.

        Returns:
            the sound that is ready, 16 kHz mono, (n,); n may be 0.

        Raises:
            SpeechError: it is not what the sender said it would be.
        """
        if self._start.encoding == "opus":
            samples = self._decode(data)
            self.taken += len(samples) * self._start.sample_rate // OPUS_HZ
        else:
            samples = self._unpack(data)
            self.taken += len(samples)
        if self._rate == SAMPLE_RATE_HZ:
            return _pcm(samples)
        if self._stream is None:
            self._stream = StreamResampler(self._rate)
        return _pcm(self._stream.process(samples))

    def end(self) -> Pcm16:
        """An utterance ends here: give what is left of it.

        Raises:
            SpeechError: it ends within a sample.
        """
        if self._rest:
            raise SpeechError(
                BAD_DATA, "half_sample", f"{len(self._rest)} bytes are left that make no sample: send whole samples."
            )
        stream, self._stream = self._stream, None
        return np.zeros(0, np.int16) if stream is None else _pcm(stream.flush())

    def forget(self) -> None:
        """What was not given yet is not wanted any more."""
        self._rest, self._stream, self._opus = b"", None, None

    def _unpack(self, data: bytes) -> Mono:
        data = self._rest + data
        size = 2 * self._start.channels
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], "<i2").astype(np.float32)
        return samples if self._start.channels == 1 else samples.reshape(-1, 2).mean(axis=1)

    def _decode(self, packet: bytes) -> Mono:
        if not packet:
            return np.zeros(0, np.float32)
        if self._opus is None:
            self._opus = av.AudioCodecContext.create("opus", "r")
            self._opus.sample_rate = OPUS_HZ
            self._opus.layout = "mono" if self._start.channels == 1 else "stereo"
        try:
            frames = self._opus.decode(av.Packet(packet))
        except av.error.FFmpegError as error:
            raise SpeechError(
                BAD_DATA, "bad_opus", "This is not an Opus packet. Send each packet in a message of its own, no Ogg."
            ) from error
        parts = [frame.to_ndarray().mean(axis=0) * 32768 for frame in frames]
        return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def _pcm(samples: Mono) -> Pcm16:
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


@dataclass
class _Stretch:
    """A part of what came that was pushed as a whole."""

    pushed: int
    """where it begins in what was pushed, 16 kHz"""
    taken: int
    """where it begins in what came, at the sender's rate"""
    pushed_end: int | None = None
    taken_end: int | None = None
    """where it ends; None: not yet"""


class Ledger:
    """Which sample of the sender a sample at 16 kHz is. Ends of utterances are exact."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._stretches = deque([_Stretch(0, 0)])

    def end(self, pushed: int, taken: int) -> None:
        """An utterance ends at these places, and the next one begins there."""
        last = self._stretches[-1]
        if pushed > last.pushed or taken > last.taken:
            last.pushed_end, last.taken_end = pushed, taken
            self._stretches.append(_Stretch(pushed, taken))

    def cut(self, pushed: int, taken: int) -> None:
        """What came and was not pushed is left out: what is pushed next comes from `taken` on."""
        self._stretches[-1].pushed_end = pushed
        self._stretches.append(_Stretch(pushed, taken))

    def place(self, pushed: int, *, begins: bool = False) -> int:
        """The sender's sample that belongs to a place in what was pushed; places only go up.

        Args:
            pushed: place at 16 kHz.
            begins: whether, at the border of two stretches, the beginning of the second is meant.
        """
        while len(self._stretches) > 1 and self._is_over(self._stretches[0], pushed, begins):
            self._stretches.popleft()
        stretch = self._stretches[0]
        if stretch.pushed_end == pushed and stretch.taken_end is not None:
            return stretch.taken_end
        place = stretch.taken + round((pushed - stretch.pushed) * self._rate / SAMPLE_RATE_HZ)
        return place if stretch.taken_end is None else min(place, stretch.taken_end)

    @staticmethod
    def _is_over(stretch: _Stretch, pushed: int, begins: bool) -> bool:
        end = stretch.pushed_end
        return end is not None and (end < pushed or (begins and end == pushed))


def listen(web: WebSocket, session: SessionControl) -> None:
    """Serve a sender until it goes or all that it sent was heard.

    Raises:
        ClosedError: the connection has ended.
        HubClosedError: the session was deleted, or the server stops.
    """
    push: PushInput | None = None
    try:
        start = start_of(web.receive(START_S))
        try:
            push = session.push(live=start.live)
        except (InputClosedError, LimitError, ValueError) as error:
            raise SpeechError(NOT_ALLOWED, "refused", str(error)) from error
        _Listener(web, session, push, start).run()
    except SpeechError as error:
        web.send_text(json.dumps({"type": "error", "code": error.code, "text": str(error)}))
        web.close(error.close, str(error))
    except InputClosedError as error:
        session.frames.wait(0, 0.0)  # raises HubClosedError
        web.send_text(json.dumps({"type": "closed", "text": str(error)}))
        web.close(TAKEN_OVER, str(error))
    finally:
        if push is not None:
            push.close()


@dataclass(frozen=True, eq=False)
class _Sound:
    pcm: Pcm16
    arrived_ns: int


@dataclass(frozen=True)
class _End:
    """An utterance ends."""

    taken: int
    """where, in samples of the sender"""


class _Listener:
    def __init__(self, web: WebSocket, session: SessionControl, push: PushInput, start: Start) -> None:
        self._web = web
        self._session = session
        self._push = push
        self._start = start
        self._converter = Converter(start)
        self._ledger = Ledger(start.sample_rate)
        self._waiting: deque[_Sound | _End] = deque()
        """read and not pushed yet"""
        self._waiting_samples = 0
        self._pushed = 0
        """so far, samples at 16 kHz"""
        self._done = 0
        """up to where it was heard or cut off, as far as told, the same"""
        self._began = 0
        """the sender's sample at which the utterance that is heard began"""
        self._full = False
        """whether the sender was told that there is no room"""
        self._cuts = 0
        """interrupts that were asked for and are not done yet; new sound waits for them, or it would be cut off too"""
        self._cut_s = 0.0
        """until when at the latest"""
        self._ending = False
        """whether the sender has said that no more comes"""

    def run(self) -> None:
        """Serve until the sender goes, or until all was heard."""
        self._greet()
        while True:
            self._session.frames.wait(0, 0.0)  # raises HubClosedError
            self._read()
            self._pass_on()
            self._tell_events()
            if self._ending and not self._waiting and (self._start.live or self._done >= self._pushed):
                self._web.close(NORMAL, "all was heard")
                return
            self._rest()

    def _greet(self) -> None:
        start = self._start
        self._tell(
            "ready",
            version=VERSION,
            session=self._session.name,
            live=start.live,
            encoding=start.encoding,
            sample_rate=start.sample_rate,
            channels=start.channels,
            bound_samples=self._own(self._push.bound),
            room_samples=self._own(self._push.room),
            max_message_bytes=MAX_MESSAGE_BYTES,
            engine_sample_rate=SAMPLE_RATE_HZ,
        )

    def _tell(self, kind: str, **words: Any) -> None:
        self._web.send_text(json.dumps({"type": kind, **words}))

    def _own(self, samples: int) -> int:
        """A number of samples at 16 kHz, at the sender's rate."""
        return max(0, samples) * self._start.sample_rate // SAMPLE_RATE_HZ

    # ---- what comes in

    def _read(self) -> None:
        for _ in range(MOST_AT_ONCE):
            if self._waiting_samples >= BACKLOG:
                self._web.hear_nothing()
                return
            message = self._web.receive(0.0)
            if message is None:
                return
            if isinstance(message, bytes):
                if self._ending:
                    raise SpeechError(NOT_ALLOWED, "after_end", "Sound came after end. Open a new connection for it.")
                self._keep(self._converter.feed(message), time.monotonic_ns())
            else:
                self._obey(message)

    def _keep(self, pcm: Pcm16, arrived_ns: int) -> None:
        for at in range(0, len(pcm), MOST_PUT):
            self._waiting.append(_Sound(pcm[at : at + MOST_PUT], arrived_ns))
        self._waiting_samples += len(pcm)

    def _obey(self, message: str) -> None:
        try:
            kind = words_of(message).get("type")
        except ValueError as error:
            raise SpeechError(UNSUPPORTED, "bad_text", f"Send texts that are JSON objects: {error}.") from error
        if kind in ("flush", "end") and not self._ending:  # it may be anything, even what has no hash
            self._end_utterance()
            self._ending = kind == "end"
        elif kind == "interrupt":
            self._converter.forget()
            self._forget()
            self._push.interrupt()
            self._cuts += 1
            self._cut_s = time.monotonic() + CUT_S

    def _end_utterance(self) -> None:
        if not self._start.live:  # what a microphone hears does not end
            self._keep(self._converter.end(), time.monotonic_ns())
        self._waiting.append(_End(self._converter.taken))
        self._waiting_samples += END_SAMPLES

    def _forget(self) -> None:
        """What was not pushed yet is not wanted any more."""
        self._waiting.clear()
        self._waiting_samples = 0
        self._ledger.cut(self._pushed, self._converter.taken)

    # ---- what is passed on

    def _pass_on(self) -> None:
        """Push what waits, as far as there is room."""
        if self._cuts and self._cut_s > time.monotonic():
            return
        self._cuts = 0
        while self._waiting:
            item = self._waiting[0]
            if isinstance(item, _End):
                self._take(END_SAMPLES)
                self._flush(item)
            elif self._has_room(len(item.pcm)):
                self._take(len(item.pcm))
                self._push.put(item.pcm, item.arrived_ns)
                self._pushed += len(item.pcm)
            else:
                return
        if self._full and self._has_room(0):
            self._full = False
            self._tell("room", room_samples=self._own(self._push.room))

    def _take(self, samples: int) -> None:
        self._waiting.popleft()
        self._waiting_samples -= samples

    def _flush(self, item: _End) -> None:
        utterance = self._push.flush()
        if not self._start.live:
            self._ledger.end(self._pushed, item.taken)
        self._tell("flushed", utterance=utterance, sample=item.taken)

    def _has_room(self, samples: int) -> bool:
        """Whether so much can be pushed. If not the sender is told, and there must be a good deal before it goes on."""
        room, bound = self._push.room, self._push.bound
        if self._start.live or room >= (min(MOST_PUT, bound // 2) if self._full else samples):
            return room >= samples
        if not self._full:
            self._full = True
            self._tell("full", waiting_samples=self._own(bound - room + self._waiting_samples))
        return False

    # ---- what happened

    def _tell_events(self) -> None:
        for event in self._push.events():
            if event.kind == "closed":
                raise InputClosedError(event.text)
            if event.kind != "room":
                self._tell_event(event)

    def _tell_event(self, event: InputEvent) -> None:
        sample = min(self._ledger.place(event.sample, begins=event.kind == "started"), self._converter.taken)
        if event.kind == "started":
            self._began = sample
        heard = max(0, sample - self._began)
        if event.kind == "ended":
            self._done, self._began = event.sample, sample
        elif event.kind == "interrupted":
            if not self._cuts:  # somebody else did it: what waits here came before it
                self._forget()
            self._cuts = max(0, self._cuts - 1)
            self._done, self._began = self._pushed, self._ledger.place(self._pushed, begins=True)
        self._tell(
            event.kind,
            utterance=event.utterance,
            sample=sample,
            utterance_samples=heard,
            media_ms=round(1000 * sample / self._start.sample_rate, 3),
            waiting_samples=self._own(event.waiting + self._waiting_samples),
        )

    def _rest(self) -> None:
        """Wait for a word of the sender, for an event, or for room."""
        full = self._waiting_samples >= BACKLOG
        if self._web.pending and not full:
            return
        poll = select.poll()
        poll.register(self._web, select.POLLRDHUP if full else select.POLLIN)
        poll.register(self._push, select.POLLIN)
        for descriptor, _ in poll.poll(1000 * LOOK_S):
            if full and descriptor == self._web.fileno():
                self._web.lose("the sender has gone")
