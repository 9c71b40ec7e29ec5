"""A small client of Mouthpiece's `/ws/audio`: push speech, be told what the listener heard, interrupt.

One file to copy (Apache-2.0); it needs only `websockets` 14 or newer. Any thread may call any method::

    with Speaker("http://127.0.0.1:8080") as speaker:
        speaker.start(sample_rate=24_000)
        speaker.push(pcm)                 # bytes, 16-bit little-endian; as fast as you have them
        speaker.flush()                   # the utterance ends here
        for event in speaker.events():    # started, ended, interrupted: with the exact sample
            print(event)
"""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

__all__ = ["Event", "Speaker", "SpeakerError"]

PIECE_BYTES, FLIGHT_BYTES, TIMEOUT_S = 32_768, 262_144, 10.0


class SpeakerError(RuntimeError):
    """The server refused, or the connection broke; the text says why."""


@dataclass(frozen=True)
class Event:
    """What the server tells."""

    type: str
    """ready, flushed, started, ended, interrupted, full, room, closed or error; gone: the connection has ended"""
    utterance: int = -1
    """number of the utterance, from 0; of flushed, started, ended, interrupted"""
    sample: int = -1
    """how much of all that was pushed was heard, samples as they were pushed; of started, ended, interrupted"""
    fields: dict[str, Any] = field(default_factory=dict)
    """the whole message"""


class Speaker(contextlib.AbstractContextManager["Speaker"]):
    """One connection that speaks for a session of the server at `url`.

    Args:
        token, tls: for a server that asks for a token, or has a certificate of its own making.
        on_event: called with each event, from a thread of its own, instead of `events`; it must not block.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        session: str = "default",
        token: str = "",
        *,
        on_event: Callable[[Event], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        secure = "s" if parts.scheme in ("https", "wss") else ""
        self._address = f"ws{secure}://{parts.netloc}/ws/audio?{urlencode({'session': session})}"
        self._how: dict[str, Any] = {"ssl": tls, "compression": None, "open_timeout": TIMEOUT_S}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._how |= {"origin": f"http{secure}://{parts.netloc}", "additional_headers": headers}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._give = on_event or self._events.put
        self._stack = contextlib.ExitStack()
        self._socket: ClientConnection | None = None
        self._reader = threading.Thread(target=self._read, name="mouthpiece-events", daemon=True)
        self._pushing, self._sending = threading.Lock(), threading.Lock()
        self._change = threading.Condition()
        self._ready: Event | None = None
        self._full, self._cuts, self._over = False, 0, ""
        self._frame_bytes, self._flight = 2, 0
        self.pushed_samples = 0
        """all samples that were sent, as events count them"""

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, sample_rate: int = 16_000, channels: int = 1, *, live: bool = False) -> Event:
        """Connect and say what will come: 8000 to 48000 Hz, 1 or 2 channels; live: heard as it comes, never kept.
        Returns the answer `ready`, whose fields say how much may wait. Raises SpeakerError when it is refused."""
        try:
            self._socket = self._stack.enter_context(connect(self._address, **self._how))
        except InvalidStatus as error:
            raise SpeakerError(f"{error}: {(error.response.body or b'').decode(errors='replace')}") from error
        except (OSError, WebSocketException) as error:
            raise SpeakerError(f"{self._address} cannot be reached: {error}") from error
        self._frame_bytes = 2 * channels
        self._reader.start()
        self._tell("start", live=live, encoding="pcm16", sample_rate=sample_rate, channels=channels)
        with self._change:
            self._change.wait_for(lambda: self._ready or self._over, TIMEOUT_S)
            if self._ready is None:
                raise SpeakerError(self._over or "The server did not answer.")
            return self._ready

    def push(self, pcm: bytes | bytearray | memoryview) -> int:
        """Send whole samples; waits while the server has no room. Returns how many were sent: fewer than given only if
        `interrupt` came between. Raises SpeakerError when the connection has ended."""
        view, sent = memoryview(pcm).cast("B"), 0
        with self._pushing:
            cuts = self._cuts
            for at in range(0, len(view), PIECE_BYTES):
                with self._change:
                    self._change.wait_for(lambda: not self._full or self._over or self._cuts != cuts)
                piece = bytes(view[at : at + PIECE_BYTES])
                with self._sending:  # so that no piece slips behind an interrupt
                    if self._cuts != cuts:
                        break
                    self._send(piece)
                    sent += len(piece) // self._frame_bytes
                    self.pushed_samples += len(piece) // self._frame_bytes
                self._flight += len(piece)
                if self._flight >= FLIGHT_BYTES:  # no more is to be on its way: an interrupt would wait behind it
                    self._flight, arrived = 0, self._send(None)
                    while not (arrived.wait(0.02) or self._over or self._cuts != cuts):
                        continue
        return sent

    def flush(self) -> None:
        """The utterance ends here; `ended` will tell when it was heard."""
        self._tell("flush")

    def interrupt(self) -> None:
        """Fall silent now: what was pushed and not heard is forgotten. `interrupted` tells what was heard."""
        with self._sending:
            self._cuts += 1
            self._send('{"type":"interrupt"}')
        with self._change:
            self._change.notify_all()

    def end(self) -> None:
        """No more will come; when all was heard the server closes, and `events` ends."""
        self._tell("end")

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """What the server tells, until the connection ends. Raises SpeakerError when it broke, or TimeoutError."""
        while True:
            try:
                event = self._events.get(timeout=timeout_s)
            except queue.Empty:
                raise TimeoutError(f"The server told nothing for {timeout_s} s.") from None
            if event.type == "gone":
                break
            yield event
        if event.fields["text"]:
            raise SpeakerError(event.fields["text"])

    def close(self) -> None:
        """Close the connection; what was pushed is said to its end. May be called twice."""
        self._stack.close()
        if self._socket is not None and self._reader is not threading.current_thread():
            self._reader.join(TIMEOUT_S)

    def _tell(self, kind: str, **words: object) -> None:
        with self._sending:
            self._send(json.dumps({"type": kind, **words}))

    def _send(self, message: str | bytes | None) -> threading.Event:
        """Send a message, or (None) a ping; set when that came back."""
        if self._socket is None:
            raise SpeakerError("Call start first.")
        try:
            if message is None:
                return self._socket.ping()
            self._socket.send(message)
            return threading.Event()
        except ConnectionClosed as error:
            raise SpeakerError(self._over or str(error)) from error

    def _read(self) -> None:
        problem = ""
        try:
            for message in self._socket or ():
                words = json.loads(message)
                event = Event(words["type"], words.get("utterance", -1), words.get("sample", -1), words)
                with self._change:
                    self._ready = event if event.type == "ready" else self._ready
                    self._full = event.type == "full" or (self._full and event.type != "room")
                    self._change.notify_all()
                problem = str(words.get("text")) if event.type in ("closed", "error") else problem
                self._give(event)
        except (WebSocketException, ValueError, KeyError) as error:
            problem = problem or f"The connection broke: {error}"
        with self._change:
            self._over = problem or "The connection has ended."
            self._change.notify_all()
        self._give(Event("gone", fields={"text": problem}))
