"""A WebSocket (RFC 6455) on the socket of a request, for one thread that both reads and writes.

The library wsproto knows the protocol; here is only the socket. What is not read here is not taken from the kernel, so
a sender that is too fast is held back by TCP itself; what the other side does not take in time ends the connection.
There is no compression: pictures and sound would only lose time in it.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NoReturn

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

__all__ = [
    "BAD_DATA",
    "GOING_AWAY",
    "INTERNAL",
    "MAX_MESSAGE_BYTES",
    "NORMAL",
    "NOT_ALLOWED",
    "TOO_BIG",
    "UNSUPPORTED",
    "ClosedError",
    "NoWebSocketError",
    "WebSocket",
    "handshake",
    "words_of",
]

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""longest message that is taken, all its fragments together"""
READ_BYTES: Final = 64 * 1024
SEND_S: Final = 6.0
"""what does not get through to the other side within this time ends the connection"""
PING_S: Final = 5.0
"""pause between two questions whether the other side is there"""
SILENCE_S: Final = 15.0
"""a side that says nothing for this long, not even pong, is gone"""
GOODBYE_S: Final = 1.0
"""time in which the other side is to answer a close"""
GOODBYE_BYTES: Final = 4 * 1024 * 1024
"""what is read of it until then, to be thrown away"""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
UNSUPPORTED: Final = 1003
BAD_DATA: Final = 1007
NOT_ALLOWED: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
LOST: Final = 1006
"""never sent: the connection broke"""

HEADERS: Final = ("Connection", "Upgrade")


class ClosedError(Exception):
    """The connection is over; nothing can be sent or received any more."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".strip())
        self.code = code
        """of RFC 6455, section 7.4; 1006: it broke"""


class NoWebSocketError(Exception):
    """A request does not ask for a WebSocket as it should; the text says what is missing."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Handshake:
    """An answer that makes a WebSocket of a connection."""

    answer: bytes
    """to be sent first"""
    protocol: WSConnection


def handshake(headers: Mapping[str, str]) -> Handshake:
    """Look whether a request asks for a WebSocket.

    Args:
        headers: of the request; names in any case.

    Raises:
        NoWebSocketError: it does not, or not of the version 13.
    """
    if headers.get("Upgrade", "").lower() != "websocket":
        raise NoWebSocketError(
            HTTPStatus.UPGRADE_REQUIRED, "This address is for WebSockets: open it with a WebSocket client (ws://...)."
        )
    if headers.get("Content-Length", "0") != "0" or headers.get("Transfer-Encoding"):
        raise NoWebSocketError(HTTPStatus.BAD_REQUEST, "A request for a WebSocket has no body.")
    # The host has been looked at by the guard; the library only wants one.
    wanted = [(b"Host", b"localhost")] + [
        (name.encode(), value.encode("latin-1"))
        for name, value in headers.items()
        if name.title() in HEADERS or name.title().startswith("Sec-Websocket-")
    ]
    protocol = WSConnection(ConnectionType.SERVER)
    try:
        protocol.initiate_upgrade_connection(wanted, "/")
        answer = protocol.send(AcceptConnection())
    except (RemoteProtocolError, h11.LocalProtocolError) as error:
        hint = getattr(error, "event_hint", None)
        status = HTTPStatus(hint.status_code) if isinstance(hint, RejectConnection) else HTTPStatus.BAD_REQUEST
        raise NoWebSocketError(status, f"This request asks for a WebSocket in a wrong way: {error}.") from error
    # The request itself is the first event; nobody needs it any more.
    list(protocol.events())
    return Handshake(answer, protocol)


def words_of(message: str | bytes) -> dict[str, Any]:
    """Read a text message that is a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        words = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError) as error:
        raise ValueError("this text is not JSON") from error
    if not isinstance(words, dict):
        raise ValueError("this message is not a JSON object")  # noqa: TRY004  # it is a value of the other side
    return words


class WebSocket:
    """The server's end of an open WebSocket.

    All methods belong to one thread, and all but `fileno`, `shut` and `close` raise ClosedError when the connection has
    ended. Pings are answered, and sent, by `receive`: call it at least each few seconds.
    """

    def __init__(self, sock: socket.socket, shake: Handshake, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """Send the answer.

        Args:
            sock: connected, plain or TLS; it is set to non-blocking, and never closed here.
            shake: of the request.
            max_message_bytes: a longer message ends the connection with code 1009.
        """
        self._sock = sock
        self._protocol = shake.protocol
        self._max_bytes = max_message_bytes
        self._parts: list[str | bytes] = []
        self._part_bytes = 0
        self._broken = False
        """whether what comes in can no longer be understood"""
        self._unread = False
        """whether the library may hold more messages"""
        self.closed: ClosedError | None = None
        """how it ended; None while it is open"""
        sock.setblocking(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What the kernel on the other side does not acknowledge: that machine is gone.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round((SEND_S + 2) * 1000))
        now_s = time.monotonic()
        self._heard_s = now_s
        """when the other side was last heard of"""
        self._pinged_s = now_s
        self._write(shake.answer)

    def fileno(self) -> int:
        """For a selector; readable data may wait inside nevertheless (`pending`)."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether something was taken from the socket that `receive` has not given yet, or TLS holds something."""
        return self._unread or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    def receive(self, timeout_s: float) -> str | bytes | None:
        """Wait for a message.

        Args:
            timeout_s: how long at most; 0: only take what is there.

        Returns:
            the text or the bytes of a whole message; None when none has come in time.

        Raises:
            ClosedError: the other side has closed the connection, broke the protocol, or is gone.
        """
        end_s = time.monotonic() + timeout_s
        if self.closed:
            raise self.closed
        message = self._next()
        while message is None:
            left_s = end_s - time.monotonic()
            # Read before anyone is called silent: the kernel has kept what came while this process was held up.
            if self._read(min(left_s, PING_S / 2)):
                message = self._next()
            self._ask()
            if left_s <= 0:
                break
        return message

    def send_text(self, text: str) -> None:
        """Send a text message."""
        self._send(TextMessage(text))

    def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        self._send(BytesMessage(data))

    def hear_nothing(self) -> None:
        """Tell that for now nothing is read: silence is no sign that the other side is gone; its kernel still is."""
        self._heard_s = time.monotonic()
        if self.closed:
            raise self.closed
        self._ask()

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """End the connection in good order: the other side is told why and has `GOODBYE_S` to answer."""
        if self.closed:
            return
        self.closed = ClosedError(code, reason)
        try:
            self._write(self._protocol.send(CloseConnection(code, reason)))
            if self._state is not ConnectionState.CLOSED:
                self._wait_for_goodbye()
        except (ClosedError, LocalProtocolError):
            return  # it was over before

    def shut(self) -> None:
        """End the connection for good; the socket stays with its owner. What was sent before still gets through."""
        self.closed = self.closed or ClosedError(LOST, "")
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended by itself

    @property
    def _state(self) -> ConnectionState:
        return self._protocol.state

    def _next(self) -> str | bytes | None:
        """A whole message out of what was read so far."""
        self._unread = True
        for event in self._protocol.events():
            message = self._take(event)
            if message is not None:
                return message
        self._unread = False
        return None

    def _take(self, event: Event) -> str | bytes | None:
        if isinstance(event, TextMessage | BytesMessage):
            return self._join(event)
        if isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._closed_by(event)
        return None

    def _join(self, event: TextMessage | BytesMessage) -> str | bytes | None:
        data = event.data
        if data:
            self._part_bytes += len(data.encode()) if isinstance(data, str) else len(data)
            self._parts.append(data if isinstance(data, str) else bytes(data))
        if self._part_bytes > self._max_bytes:
            self._broken = True
            self._fail(TOO_BIG, f"a message may have {self._max_bytes} bytes")
        if not event.message_finished:
            return None
        parts, self._parts, self._part_bytes = self._parts, [], 0
        if isinstance(event, TextMessage):
            return "".join(part for part in parts if isinstance(part, str))
        return b"".join(part for part in parts if isinstance(part, bytes))

    def _closed_by(self, event: CloseConnection) -> None:
        """The other side closes the connection, or has broken the protocol: the library tells both in one way."""
        if self._state is ConnectionState.OPEN:
            self._broken = True
            self._fail(int(event.code), event.reason or "")
        with suppress(ClosedError, LocalProtocolError):  # it need not hear the answer
            self._write(self._protocol.send(event.response()))
        self.closed = ClosedError(int(event.code), event.reason or "")
        raise self.closed

    def _fail(self, code: int, reason: str) -> NoReturn:
        self.close(code, reason)
        raise ClosedError(code, reason)

    def _ask(self) -> None:
        """Ping now and then; end a connection whose other side is silent."""
        now_s = time.monotonic()
        if now_s - self._heard_s > SILENCE_S:
            self.lose(f"nothing was heard for {SILENCE_S:.0f} s")
        if now_s - self._pinged_s >= PING_S:
            self._pinged_s = now_s
            self._send(Ping())

    def _send(self, event: TextMessage | BytesMessage | Ping | Pong) -> None:
        if self.closed:
            raise self.closed
        self._write(self._protocol.send(event))

    def _write(self, data: bytes) -> None:
        """Hand all of it to the kernel.

        Raises:
            ClosedError: the connection broke, or took nothing more for too long.
        """
        view = memoryview(data)
        end_s = time.monotonic() + SEND_S
        while view:
            try:
                view = view[self._sock.send(view) :]
                continue
            except (BlockingIOError, ssl.SSLWantWriteError):
                wanted = select.POLLOUT
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except OSError as error:
                self.lose(error.strerror or str(error))
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                self.lose(f"the other side took nothing for {SEND_S:.0f} s")
            self._poll(wanted, left_s)

    def _read(self, timeout_s: float) -> bool:
        """Read what there is, waiting for it; whether there was something."""
        data = self._recv()
        if data is None and timeout_s > 0:
            self._poll(select.POLLIN, timeout_s)
            data = self._recv()
        if data is None:
            return False
        if not data:
            self.lose("the other side has hung up")
        self._heard_s = time.monotonic()
        self._protocol.receive_data(data)
        return True

    def _recv(self) -> bytes | None:
        """What has come; empty at the end, None when there is nothing."""
        try:
            return self._sock.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            self.lose(error.strerror or str(error))

    def _poll(self, wanted: int, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._sock, wanted)
        poll.poll(max(1.0, 1000 * timeout_s))

    def _wait_for_goodbye(self) -> None:
        """Read until the other side has answered the close, so that the close is not lost in a reset."""
        end_s = time.monotonic() + GOODBYE_S
        left_bytes = GOODBYE_BYTES
        while left_bytes > 0 and (left_s := end_s - time.monotonic()) > 0:
            data = self._recv()
            if data is None:
                self._poll(select.POLLIN, left_s)
                continue
            if not data:
                return
            left_bytes -= len(data)
            if not self._broken:
                self._protocol.receive_data(data)
                if any(isinstance(event, CloseConnection) for event in self._protocol.events()):
                    return

    def lose(self, reason: str) -> NoReturn:
        """Give the connection up: the other side is gone.

        Raises:
            ClosedError: always.
        """
        self.closed = self.closed or ClosedError(LOST, reason)
        raise ClosedError(LOST, reason)
