"""The only file that imports zmq: publishing and receiving what shared/topics.py declares.

A `Bus` belongs to one thread. Each topic has one socket: XPUB on the sending side and SUB on the receiving side; the
side named in the table binds. A message is ``[b"name" or b"name.key", header, arrays...]``. Keyed topics end every
subscription with a NUL so that the key ``a`` does not also receive ``ab``.
"""

from __future__ import annotations

import errno
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import zmq

from shared.messages import Message, MessageError, pack, unpack
from shared.topics import ServiceName, Topic, topic

__all__ = ["Bus", "BusError", "Delivery", "Event", "Ready", "Subscribed", "Unsubscribed"]

LINGER_MS: Final = 200
"""time for what is queued at the end: with 0, libzmq 4.3.5 aborts when a peer leaves in the middle of a message"""
HEARTBEAT_MS: Final = 300
HEARTBEAT_TIMEOUT_MS: Final = 900
RECONNECT_MS: Final = 50
RECONNECT_MOST_MS: Final = 500
BIND_PATIENCE_S: Final = 3.0
MOST_PER_TURN: Final = 256
"""messages taken from one socket before the others are looked at"""


class BusError(RuntimeError):
    """The bus cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Delivery:
    """A message came."""

    topic: str
    key: str
    message: Message


@dataclass(frozen=True)
class Subscribed:
    """A receiver subscribed to a topic that we send."""

    topic: str
    key: str


@dataclass(frozen=True)
class Unsubscribed:
    """The last receiver of a topic that we send is gone."""

    topic: str
    key: str


@dataclass(frozen=True)
class Ready:
    """A watched file descriptor has something to read."""

    fd: int


Event = Delivery | Subscribed | Unsubscribed | Ready


class Bus:
    """The sockets of one service."""

    def __init__(self, service: ServiceName, host: str, base_port: int) -> None:
        """Open nothing yet.

        Args:
            service: who we are; decides which topics may be sent and received, and which are bound.
            host: address of all services.
            base_port: what the ports of the table are added to.
        """
        self._service: ServiceName = service
        self._host = host
        self._base_port = base_port
        self._context = zmq.Context()
        self._senders: dict[str, zmq.Socket[bytes]] = {}
        self._receivers: dict[str, zmq.Socket[bytes]] = {}
        self._topic_of: dict[zmq.Socket[bytes], Topic] = {}
        self._poller = zmq.Poller()
        self.counters: Counter[str] = Counter()
        self.last_problem = ""

    def publishes(self, *names: str) -> None:
        """Open the sending side of topics.

        Raises:
            BusError: the topic is not ours to send, or its port is taken.
        """
        for name in names:
            row = topic(name)
            if self._service not in row.senders:
                raise BusError(f"{self._service} does not send {name}")
            socket = self._open(row, zmq.XPUB)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription is told, so that a late joiner can be answered
            self._place(socket, row)
            self._senders[name] = socket

    def receives(self, *names: str) -> None:
        """Open the receiving side of topics; of a keyed one nothing comes before `subscribe`.

        Raises:
            BusError: the topic is not ours to receive, or its port is taken.
        """
        for name in names:
            row = topic(name)
            if self._service not in row.receivers:
                raise BusError(f"{self._service} does not receive {name}")
            socket = self._open(row, zmq.SUB)
            if not row.keyed:
                socket.subscribe(_wire(name, ""))
            self._place(socket, row)
            self._receivers[name] = socket

    def subscribe(self, name: str, key: str) -> None:
        """Receive what is sent on a keyed topic under a key."""
        self._receivers[name].subscribe(_wire(name, key))

    def unsubscribe(self, name: str, key: str) -> None:
        """Receive it no longer."""
        self._receivers[name].unsubscribe(_wire(name, key))

    def watch(self, fd: int) -> None:
        """Have `receive` wake up when a file descriptor can be read."""
        self._poller.register(fd, zmq.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop watching a file descriptor."""
        self._poller.unregister(fd)

    def send(self, name: str, message: Message, key: str = "") -> None:
        """Publish without waiting. What a receiver with a full queue misses, ZeroMQ drops for that receiver alone.

        Raises:
            MessageError: the message does not keep its own limits.
        """
        frames = pack(message)
        try:
            self._senders[name].send_multipart([_wire(name, key), *frames], flags=zmq.DONTWAIT, copy=True)
        except zmq.Again:
            self.counters[f"send_blocked.{name}"] += 1
        else:
            self.counters[f"sent.{name}"] += 1

    def receive(self, timeout_s: float) -> Iterator[Event]:
        """Wait at most `timeout_s` for something, then give all that is there.

        What is no message of its topic is counted and skipped; `last_problem` holds why.
        """
        for source, _ in self._poller.poll(math.ceil(max(0.0, timeout_s) * 1000.0)):
            if isinstance(source, int):
                yield Ready(source)
                continue
            row = self._topic_of[source]
            for _ in range(MOST_PER_TURN):
                try:
                    frames = source.recv_multipart(flags=zmq.DONTWAIT)
                except zmq.Again:
                    break
                event = self._told(row, frames) if row.name in self._senders else self._delivered(row, frames)
                if event is not None:
                    yield event

    def _told(self, row: Topic, frames: list[bytes]) -> Event | None:
        """Read a subscription that came in at a sending socket."""
        told = frames[0]
        if len(frames) != 1 or told[:1] not in (b"\x00", b"\x01"):
            self._corrupt(row, "a subscription expected")
            return None
        parts = _parts(told[1:])
        if parts is None or parts[0] != row.name:
            return None  # a plain SUB with an empty filter, such as a person's listener
        return (Subscribed if told[:1] == b"\x01" else Unsubscribed)(row.name, parts[1])

    def _delivered(self, row: Topic, frames: list[bytes]) -> Event | None:
        parts = _parts(frames[0])
        if parts is None or parts[0] != row.name:
            self._corrupt(row, "another topic's name")
            return None
        try:
            message = unpack(frames[1:], row.messages)
        except MessageError as error:
            self._corrupt(row, str(error))
            return None
        self.counters[f"received.{row.name}"] += 1
        return Delivery(row.name, parts[1], message)

    def _corrupt(self, row: Topic, why: str) -> None:
        self.counters[f"corrupt.{row.name}"] += 1
        self.last_problem = f"corrupt message on {row.name}: {why}"[:300]

    def _open(self, row: Topic, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, row.high_water_mark)
        socket.setsockopt(zmq.RCVHWM, row.high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, row.max_bytes)
        socket.setsockopt(zmq.SNDBUF, row.buffer_bytes)
        socket.setsockopt(zmq.RCVBUF, row.buffer_bytes)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
        if self._host == "::1":
            socket.setsockopt(zmq.IPV6, 1)
        self._topic_of[socket] = row
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _place(self, socket: zmq.Socket[bytes], row: Topic) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host.replace("localhost", "127.0.0.1")
        address = f"tcp://{host}:{self._base_port + row.port}"
        if row.binds != self._service:
            socket.connect(address)
            return
        deadline = time.monotonic() + BIND_PATIENCE_S
        while True:
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                if error.errno != errno.EADDRINUSE:
                    raise BusError(f"cannot bind {address} for {row.name}: {error}") from error
                if time.monotonic() > deadline:
                    raise BusError(
                        f"port {self._base_port + row.port} ({row.name}) is taken by another program, perhaps "
                        "another Mouthpiece; stop it or set MOUTHPIECE_BUS_PORT to another number"
                    ) from error
                zmq.select([], [], [], 0.1)  # the process that we replace is just leaving
            else:
                return

    def close(self) -> None:
        """Close all sockets; what is still queued is dropped after `LINGER_MS`."""
        for socket in self._topic_of:
            socket.close()
        self._topic_of.clear()
        self._context.term()


def _wire(name: str, key: str) -> bytes:
    return f"{name}.{key}\0".encode()


def _parts(wire: bytes) -> tuple[str, str] | None:
    try:
        text = wire.decode("ascii")
    except UnicodeDecodeError:
        return None
    if not text.endswith("\0") or len(text) > 200:
        return None
    name, _, key = text[:-1].partition(".")
    return name, key
