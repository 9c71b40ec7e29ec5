"""Connections before and after their requests: gunicorn's threaded worker, mended so that no thread waits for a peer.

Gunicorn gives a thread to a connection with its first byte and reads the head of the request, and does the handshake of
TLS, in that thread without a limit of time; a handful of peers that send half a head each would take all threads, for
ever. It also waits in its main loop, up to two seconds, for each peer to close what was answered. Here both happen in
the main loop without waiting: a thread is taken when the head is there. What never becomes one is closed after
`HEAD_S`, a body that is not there after `BODY_S` is cut off; of too many, the peer that holds the most loses its
oldest. When all threads are taken, requests wait for `QUEUE_S` and then get a 503; meanwhile the peer that holds the
most threads with slow bodies and slow downloads loses the oldest of those.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import time
from collections import Counter, deque
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http import get_parser
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import TConn, ThreadWorker

from services.streamer.rates import peer_of

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["MOST_KEPT", "MOST_LINGERING", "MOST_QUEUED", "MOST_WAITING", "Connection", "PatientWorker"]

HEAD_S: Final = 10.0
"""time for the handshake and the head of a request; also how long a connection may stay without a byte"""
MOST_HEAD_BYTES: Final = 32 * 1024
MOST_WAITING: Final = 200
"""connections whose head is not there yet"""
MOST_KEPT: Final = 100
"""connections kept open between two requests"""
MOST_QUEUED: Final = 100
"""requests that wait for a thread"""
QUEUE_S: Final = 2.0
"""for how long"""
HURRY_S: Final = 1.0
"""while requests wait, one that took longer than this, and is none of the streams, may lose its thread"""
BODY_S: Final = 120.0
"""time for the body of a request: a photo of 10 MB over a line of 1 Mbit/s"""
MOST_LINGERING: Final = 100
"""connections that were answered and are not closed by their peer yet"""
LINGER_S: Final = 2.0
"""for how long"""
MOST_LINGER_BYTES: Final = 64 * 1024
"""read from such a connection before it is closed"""
TLS_HANDSHAKE: Final = 0x16
"""first byte of a TLS connection (RFC 8446, 5.1)"""

BUSY: Final = "All places here are taken. Close a stream, or try again in a few seconds."
SPEAKS_TLS: Final = "This address speaks HTTPS: open it with https:// in front."
HEAD_TOO_LARGE: Final = "The head of this request is too large."
NOT_UNDERSTOOD: Final = "This request is not understood: it is not HTTP as it should be."
STATUSES: Final = {
    LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
}
"""of what is not understood; of all other kinds 400"""

log = logging.getLogger(__name__)


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """One connection, and how far its next request has come."""

    sock: Any
    parser: Any

    def __init__(self, worker: PatientWorker, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(worker.cfg, sock, client, server)
        self._worker = worker
        self._handshaken = worker.tls is None
        self.peer = peer_of(client[0])
        self.head = bytearray()
        self.since_s = time.monotonic()
        """when it began to wait for what it waits for"""
        self.drained = 0
        """bytes read after the last answer"""

    def init(self) -> None:
        """Called in the thread, where a complete head is parsed; should it want more after all, not for ever."""
        self.sock.settimeout(HEAD_S)

    def begin(self) -> None:
        """A further request begins, perhaps with what came behind the last one."""
        self.since_s = time.monotonic()
        self.sock.setblocking(False)
        if self.parser is not None and self.parser.unreader.buf.getvalue():
            self.head += self.parser.unreader.read()

    def advance(self) -> int:
        """Read on as far as it goes without waiting.

        Returns:
            the event to wait for; 0 when the head is complete.

        Raises:
            OSError: the peer has gone, or does not speak TLS properly.
            _RefusedError: it is answered with a few words and closed.
        """
        try:
            if not self._handshaken:
                self._shake_hands()
            while b"\r\n\r\n" not in self.head:
                if len(self.head) > MOST_HEAD_BYTES:
                    raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HEAD_TOO_LARGE)
                data = self.sock.recv(MOST_HEAD_BYTES)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the peer has gone")
                self.head += data
        except (BlockingIOError, ssl.SSLWantReadError):
            return EVENT_READ
        except ssl.SSLWantWriteError:
            return EVENT_WRITE
        if self.parser is None:
            self.parser = get_parser(self.cfg, self.sock, self.client)
            self.initialized = True
        self.parser.unreader.unread(bytes(self.head))
        self.head.clear()
        return 0

    def _shake_hands(self) -> None:
        tls = self._worker.tls
        if tls is not None and not isinstance(self.sock, ssl.SSLSocket):
            first = self.sock.recv(1, socket.MSG_PEEK)
            if not first:
                raise ConnectionResetError(errno.ECONNRESET, "the peer has gone")
            if first[0] != TLS_HANDSHAKE:
                raise _RefusedError(HTTPStatus.BAD_REQUEST, SPEAKS_TLS)
            self.sock = tls.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock.do_handshake()
        self._handshaken = True

    @property
    def lasts(self) -> bool:
        """Whether its present request is for a stream, whose number is bounded elsewhere."""
        message = self.parser and self.parser.mesg
        return getattr(message, "path", None) in self._worker.streams

    @property
    def sends_body(self) -> bool:
        """Whether the body of its present request is not there yet."""
        message = self.parser and self.parser.mesg
        reader = message and message.body.reader
        return getattr(reader, "length", 0) > 0 or getattr(reader, "parser", None) is not None

    def cut(self) -> None:
        """End it from outside its thread, which then reads an end and finds nobody to answer."""
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the session away from under that thread.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self, graceful: bool = False) -> None:
        """Close it; gracefully: after the answer was read, and without waiting for that."""
        if graceful:
            self._worker.linger(self)
        else:
            super().close()


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        body = f"{text}\n".encode()
        later = "Retry-After: 5\r\n" if status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        self.answer = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\nCache-Control: no-store\r\n{later}\r\n"
        ).encode() + body


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """The worker. All but `handle` runs in its main thread."""

    tls: ssl.SSLContext | None = None
    """set by the server before it forks"""
    streams: frozenset[str] = frozenset()
    """paths whose answers last; the same"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.max_keepalived = MOST_KEPT
        self._waiting: dict[Connection, None] = {}
        self._queued: deque[Connection] = deque()
        self._lingering: dict[Connection, None] = {}
        self._running: dict[Connection, None] = {}

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; it waits for the head of its request."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                log.warning("no file is left for a further connection")
                self._make_room()
            elif error.errno not in {errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK}:
                raise
            return
        self.nr_conns += 1
        self.enqueue_req(Connection(self, sock, client, listener.getsockname()))

    def enqueue_req(self, conn: Connection) -> None:
        """Wait for the next head on a connection, new or kept open, then give it a thread."""
        if len(self._waiting) >= MOST_WAITING:
            self._make_room()
        self._waiting[conn] = None
        try:
            conn.begin()
        except OSError:
            self._drop(conn)
            return
        self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        try:
            event = conn.advance()
        except _RefusedError as refusal:
            self._refuse(conn, refusal)
        except (OSError, ValueError):  # ValueError: what ssl says of a connection that broke while it was wrapped
            self._drop(conn)
        else:
            if event:
                self.poller.register(conn.sock, event, partial(self._on_event, conn))
            else:
                del self._waiting[conn]
                self._queue(conn)

    def _on_event(self, conn: Connection, sock: socket.socket) -> None:
        self.poller.unregister(sock)
        self._go_on(conn)

    def _queue(self, conn: Connection) -> None:
        if len(self._running) < self.cfg.threads:
            self._run(conn)
        elif len(self._queued) < MOST_QUEUED:
            conn.since_s = time.monotonic()
            self._queued.append(conn)
            self._hurry(conn.since_s, 1)
        else:
            self._refuse(conn, _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, BUSY))

    def _run(self, conn: Connection) -> None:
        conn.since_s = time.monotonic()
        self._running[conn] = None
        super().enqueue_req(conn)

    def finish_request(self, conn: Connection, done: Future[Any]) -> None:
        """A thread is free again."""
        self._running.pop(conn, None)
        super().finish_request(conn, done)
        while self._queued and len(self._running) < self.cfg.threads:
            self._run(self._queued.popleft())

    def handle_error(self, _request: Any, sock: socket.socket, _address: Any, error: BaseException) -> None:
        """Answer and log what could not be read as a request, or failed: without the address of who sent it, and
        without its words, in which a token may stand."""
        ours = isinstance(error, InvalidResponseHeader | InvalidResponseHeaderName)
        if ours or not isinstance(error, ParseException):
            super().handle_error(None, sock, None, error)
            return
        log.warning("a request was not understood (%s)", type(error).__name__)
        status = STATUSES.get(type(error), HTTPStatus.BAD_REQUEST)
        with contextlib.suppress(OSError):
            sock.sendall(_RefusedError(status, NOT_UNDERSTOOD).answer)

    def murder_keepalived(self, force: bool = False) -> None:
        """Called at each turn, at least once a second: end whatever waits for too long."""
        super().murder_keepalived(force)
        now_s = time.monotonic()
        for conn in _older(self._waiting, now_s - HEAD_S):
            self._drop(conn)
        for conn in _older(self._lingering, now_s - LINGER_S):
            self._end(conn)
        for conn in _older(self._running, now_s - BODY_S):
            if conn.sends_body:
                conn.cut()
        self._hurry(now_s, len(self._queued))
        while self._queued and now_s - self._queued[0].since_s > QUEUE_S:
            self._refuse(self._queued.popleft(), _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, BUSY))

    def _hurry(self, now_s: float, wanted: int) -> None:
        """Free threads for those who wait: of the peers that are slow, the one with the most loses its oldest."""
        slow = [conn for conn in _older(self._running, now_s - HURRY_S) if not conn.lasts] if wanted else []
        for _ in range(min(wanted, len(slow))):
            ((greedy, _),) = Counter(conn.peer for conn in slow).most_common(1)
            oldest = next(conn for conn in slow if conn.peer == greedy)
            slow.remove(oldest)
            oldest.cut()

    def _make_room(self) -> None:
        """Of the peers that wait, the one with the most connections loses its oldest."""
        if self._waiting:
            ((greedy, _),) = Counter(conn.peer for conn in self._waiting).most_common(1)
            self._drop(next(conn for conn in self._waiting if conn.peer == greedy))

    def _drop(self, conn: Connection) -> None:
        self._waiting.pop(conn, None)
        self._forget(conn)
        self.nr_conns -= 1
        conn.close()

    def _refuse(self, conn: Connection, refusal: _RefusedError) -> None:
        self._waiting.pop(conn, None)
        self.nr_conns -= 1
        try:
            conn.sock.setblocking(False)
            conn.sock.send(refusal.answer)
        except OSError:
            conn.close()
        else:
            conn.close(graceful=True)

    def _forget(self, conn: Connection) -> None:
        # By the object, not by its number: a socket that broke while it was wrapped for TLS has none any more.
        with contextlib.suppress(KeyError, ValueError):  # it was not registered
            self.poller.unregister(conn.sock)

    def linger(self, conn: Connection) -> None:
        """Close a connection when its peer has: an answer not yet read would be lost otherwise (RFC 9112, 9.6)."""
        if len(self._lingering) >= MOST_LINGERING:
            self._end(next(iter(self._lingering)))
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        except OSError:
            conn.close()
            return
        conn.since_s, conn.drained = time.monotonic(), 0
        self._lingering[conn] = None
        self.poller.register(conn.sock, EVENT_READ, partial(self._on_lingering, conn))

    def _on_lingering(self, conn: Connection, sock: socket.socket) -> None:
        try:
            size = len(sock.recv(16 * 1024))
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            size = 0
        conn.drained += size
        if not size or conn.drained > MOST_LINGER_BYTES:
            self._end(conn)

    def _end(self, conn: Connection) -> None:
        del self._lingering[conn]
        self._forget(conn)
        conn.close()


def _older(connections: dict[Connection, None], than_s: float) -> list[Connection]:
    """Those that wait since before a moment; they stand in the order in which they began."""
    found = []
    for conn in connections:
        if conn.since_s > than_s:
            break
        found.append(conn)
    return found
