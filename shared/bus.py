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
from zmq.utils.monitor import parse_monitor_message

from shared.keys import HUB, Door, KeyFile, KeyFileError, Keys, load_keys, may_say
from shared.messages import Message, MessageError, pack, unpack
from shared.settings import Settings
from shared.topics import ServiceName, Topic, topic

__all__ = [
    "Bus",
    "BusError",
    "Delivery",
    "Event",
    "Ready",
    "Subscribed",
    "Unsubscribed",
    "host_of",
    "open_bus",
]

CUT_OFF: Final = 2
"""of what a frame may hold: what is too large is counted as corrupt, what is larger than this cuts the connection"""
LINGER_MS: Final = 200
"""time for what is queued at the end: with 0, libzmq 4.3.5 aborts when a peer leaves in the middle of a message"""
# Plain numbers: arithmetic with flags of Python's enum takes longer than the calls that they are for.
DONTWAIT: Final = int(zmq.DONTWAIT)
EVENTS: Final = int(zmq.EVENTS)
READABLE: Final = int(zmq.POLLIN)
WATCHED_MS: Final = 300
UNWATCHED_MS: Final = 1000
"""how often it is asked whether the other side is there, by `Topic.watched`"""
UNANSWERED: Final = 3
"""times after which it is not"""
RECONNECT_MS: Final = 20
RECONNECT_MOST_MS: Final = 500
BIND_PATIENCE_S: Final = 3.0
MOST_PER_TURN: Final = 256
"""messages taken from one socket before the others are looked at"""
REFUSED_RETRY_S: Final = 1.0
"""after which a connection that was refused is tried again: ZeroMQ itself never does"""


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
    """The sockets of one service.

    With keys all of them speak CurveZMQ: what is sent can neither be read nor changed on the way, and a side that
    binds takes only connections whose key is on its list. When a key leaves the list the bound sockets are opened
    anew: everybody connects again within a fraction of a second, but for the one whose key is gone.
    """

    def __init__(
        self, service: ServiceName, host: str, base_port: int, *, bind: str = "", keys: Keys | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            service: who we are; decides which topics may be sent and received, and which are bound.
            host: address of the other services; `{service}` in it stands for the name of each.
            base_port: what the ports of the table are added to.
            bind: address on which we bind; the loopback address when empty.
            keys: with them everything is encrypted.
        """
        self._service: ServiceName = service
        self._host = host
        self._bind = bind or ("::1" if host == "::1" else "127.0.0.1")
        self._base_port = base_port
        self._keys = keys
        self._context = zmq.Context()
        self._senders: dict[str, zmq.Socket[bytes]] = {}
        self._receivers: dict[str, zmq.Socket[bytes]] = {}
        self._topic_of: dict[zmq.Socket[bytes], Topic] = {}
        self._keys_of: dict[str, set[str]] = {}
        """topic -> keys: what others subscribed to where we send, what we subscribed to where we receive"""
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        """monitor -> the socket it tells of"""
        self._retry_s: dict[zmq.Socket[bytes], float] = {}
        self._asleep: set[zmq.Socket[bytes]] = set()
        """what comes there wakes nobody"""
        self._poller = zmq.Poller()
        self.counters: Counter[str] = Counter()
        self.last_problem = ""
        self.last_refusal = ""
        self._door = Door(self._context, keys.allowed) if keys is not None and keys.allowed is not None else None
        if self._door is not None:
            self._poller.register(self._door.socket, zmq.POLLIN)

    @property
    def prefix(self) -> str:
        """What the ids begin with under which we speak: on another box the name of our key and a dot."""
        return "" if self._keys is None or self._keys.own.is_hub else f"{self._keys.own.name}."

    def publishes(self, *names: str) -> None:
        """Open the sending side of topics.

        Raises:
            BusError: the topic is not ours to send, or its port is taken.
        """
        for name in names:
            row = topic(name)
            if self._service not in row.senders:
                raise BusError(f"{self._service} does not send {name}")
            self._keys_of[name] = set()
            self._senders[name] = self._sender(row)

    def receives(self, *names: str) -> None:
        """Open the receiving side of topics; of a keyed one nothing comes before `subscribe`.

        Raises:
            BusError: the topic is not ours to receive, or its port is taken.
        """
        for name in names:
            row = topic(name)
            if self._service not in row.receivers:
                raise BusError(f"{self._service} does not receive {name}")
            self._keys_of[name] = set() if row.keyed else {""}
            self._receivers[name] = self._receiver(row)

    def subscribe(self, name: str, key: str) -> None:
        """Receive what is sent on a keyed topic under a key."""
        self._keys_of[name].add(key)
        self._receivers[name].subscribe(_wire(name, key))

    def unsubscribe(self, name: str, key: str) -> None:
        """Receive it no longer."""
        self._keys_of[name].discard(key)
        self._receivers[name].unsubscribe(_wire(name, key))

    def wakes(self, name: str, *, wake: bool) -> None:
        """Say whether `receive` returns as soon as something comes on a topic, or gives it with the next thing."""
        socket = self._receivers[name]
        if wake and socket in self._asleep:
            self._asleep.remove(socket)
            self._poller.register(socket, zmq.POLLIN)
        elif not wake and socket not in self._asleep:
            self._asleep.add(socket)
            self._poller.unregister(socket)

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
            self._senders[name].send_multipart([_wire(name, key), *frames], flags=DONTWAIT, copy=True)
        except zmq.Again:
            self.counters[f"send_blocked.{name}"] += 1
        else:
            self.counters[f"sent.{name}"] += 1

    def receive(self, timeout_s: float) -> Iterator[Event]:
        """Wait at most `timeout_s` for something, then give all that is there.

        What is no message of its topic is counted and skipped; `last_problem` holds why.
        """
        ready = [source for source, _ in self._poller.poll(math.ceil(max(0.0, timeout_s) * 1000.0))]
        for source in [*self._asleep, *ready]:
            if isinstance(source, int):
                yield Ready(source)
                continue
            if self._door is not None and source is self._door.socket:
                self._tell(self._door.answer(), "key")
                continue
            if source in self._monitors:
                self._refused(source)
                continue
            row = self._topic_of[source]
            for _ in range(MOST_PER_TURN):
                if not source.getsockopt(EVENTS) & READABLE:
                    break
                frames = _taken(source)
                if row.name in self._senders:
                    event = self._told(row, [frame.bytes for frame in frames])
                else:
                    event = self._delivered(row, frames)
                if event is not None:
                    yield event
        if self._keys is not None:
            yield from self._look_after(time.monotonic())

    def _told(self, row: Topic, frames: list[bytes]) -> Event | None:
        """Read a subscription that came in at a sending socket."""
        told = frames[0]
        if len(frames) != 1 or told[:1] not in (b"\x00", b"\x01"):
            self._corrupt(row, "a subscription expected")
            return None
        parts = _parts(told[1:])
        if parts is None or parts[0] != row.name:
            return None  # a plain SUB with an empty filter, such as a person's listener
        if told[:1] == b"\x01":
            self._keys_of[row.name].add(parts[1])
            return Subscribed(row.name, parts[1])
        self._keys_of[row.name].discard(parts[1])
        return Unsubscribed(row.name, parts[1])

    def _delivered(self, row: Topic, frames: list[zmq.Frame]) -> Event | None:
        user = _user(frames[0]) if self._door is not None and row.binds == self._service else ""
        parts = _parts(frames[0].bytes)
        if parts is None or parts[0] != row.name:
            self._corrupt(row, "another topic's name")
            return None
        if max(map(len, frames)) > row.max_bytes:
            self._corrupt(row, f"a frame of more than {row.max_bytes} bytes")
            return None
        try:
            message = unpack([frame.buffer for frame in frames[1:]], row.messages)
        except MessageError as error:
            self._corrupt(row, str(error))
            return None
        if user and not may_say(user, message):
            self._tell(f"{user} speaks for another one on {row.name}; what it says is dropped", row.name)
            return None
        self.counters[f"received.{row.name}"] += 1
        return Delivery(row.name, parts[1], message)

    def _corrupt(self, row: Topic, why: str) -> None:
        self.counters[f"corrupt.{row.name}"] += 1
        self.last_problem = f"corrupt message on {row.name}: {why}"[:300]

    def _sender(self, row: Topic) -> zmq.Socket[bytes]:
        socket = self._open(row, zmq.XPUB)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each subscription is told, so that a late joiner can be answered
        self._place(socket, row)
        return socket

    def _receiver(self, row: Topic) -> zmq.Socket[bytes]:
        socket = self._open(row, zmq.SUB)
        for key in self._keys_of[row.name]:
            socket.subscribe(_wire(row.name, key))
        self._place(socket, row)
        return socket

    def _open(self, row: Topic, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, row.high_water_mark)
        socket.setsockopt(zmq.RCVHWM, row.high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, CUT_OFF * row.max_bytes)
        socket.setsockopt(zmq.SNDBUF, row.buffer_bytes)
        socket.setsockopt(zmq.RCVBUF, row.buffer_bytes)
        every_ms = WATCHED_MS if row.watched else UNWATCHED_MS
        socket.setsockopt(zmq.HEARTBEAT_IVL, every_ms)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, UNANSWERED * every_ms)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
        if ":" in self._host + self._bind:
            socket.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._lock(socket, row, self._keys.own)
        self._topic_of[socket] = row
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _lock(self, socket: zmq.Socket[bytes], row: Topic, own: KeyFile) -> None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        if row.binds == self._service:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.ZAP_DOMAIN, row.name.encode())
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        else:
            socket.setsockopt(zmq.CURVE_SERVERKEY, own.hub.encode())
        monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._monitors[monitor] = socket
        self._poller.register(monitor, zmq.POLLIN)

    def _address(self, row: Topic) -> str:
        host = self._bind if row.binds == self._service else host_of(self._host, row.binds)
        host = f"[{host}]" if ":" in host else "127.0.0.1" if host == "localhost" else host
        return f"tcp://{host}:{self._base_port + row.port}"

    def _place(self, socket: zmq.Socket[bytes], row: Topic) -> None:
        address = self._address(row)
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

    def _refused(self, monitor: zmq.Socket[bytes]) -> None:
        """A handshake failed: tell it; where we had called, call again after a while."""
        told = parse_monitor_message(monitor.recv_multipart(flags=DONTWAIT))
        socket = self._monitors[monitor]
        row = self._topic_of[socket]
        if row.binds == self._service:
            if told["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # of those the door has told
                self._tell("a program without the hub's key was refused", row.name)
            return
        address = self._address(row)
        if told["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:  # ZeroMQ goes on trying by itself
            self._tell(f"{address} broke off: perhaps it has another key than the hub in our key file", row.name)
            return
        self._tell(f"{address} refuses us: our key is not on the hub's list, or it has no keys", row.name)
        self._retry_s[socket] = time.monotonic() + REFUSED_RETRY_S

    def _tell(self, why: str, where: str) -> None:
        if why:
            self.counters[f"refused.{where}"] += 1
            self.last_refusal = why

    def _look_after(self, now_s: float) -> Iterator[Event]:
        """Call again where we were refused; close the door to keys that are no longer welcome."""
        for socket in [socket for socket, due_s in self._retry_s.items() if due_s <= now_s]:
            yield from self._renew(socket)
        if self._door is not None and (words := self._door.look(now_s)):
            self._tell(words, "key")
            if self._door.closing:
                self._door.closing = False
                for socket, row in list(self._topic_of.items()):
                    if row.binds == self._service:
                        yield from self._renew(socket)

    def _renew(self, socket: zmq.Socket[bytes]) -> Iterator[Event]:
        """Close a socket and open it anew; whoever is welcome connects again."""
        row = self._topic_of[socket]
        self._drop(socket)
        if row.name in self._receivers:
            self._receivers[row.name] = self._receiver(row)
            return
        gone, self._keys_of[row.name] = self._keys_of[row.name], set()
        self._senders[row.name] = self._sender(row)
        for key in gone:  # whoever hears of it may send at once
            yield Unsubscribed(row.name, key)

    def _drop(self, socket: zmq.Socket[bytes]) -> None:
        for monitor in [monitor for monitor, told_of in self._monitors.items() if told_of is socket]:
            self._poller.unregister(monitor)
            socket.disable_monitor()
            monitor.close(linger=0)
            del self._monitors[monitor]
        if socket in self._asleep:
            self._asleep.remove(socket)
        else:
            self._poller.unregister(socket)
        self._retry_s.pop(socket, None)
        del self._topic_of[socket]
        socket.close()

    def close(self) -> None:
        """Close all sockets; what is still queued is dropped after `LINGER_MS`."""
        for socket in list(self._topic_of):
            self._drop(socket)
        if self._door is not None:
            self._door.socket.close(linger=0)
        self._context.term()


def open_bus(service: ServiceName, settings: Settings) -> Bus:
    """Make the bus of a service as the settings say.

    Raises:
        BusError: a key file cannot be used; the text says which and why.
    """
    try:
        keys = load_keys(service, settings)
    except KeyFileError as error:
        raise BusError(str(error)) from error
    return Bus(service, settings.bus_calls, settings.bus_port, bind=settings.bus_bind, keys=keys)


def host_of(host: str, service: ServiceName) -> str:
    """Give the host of one service: `{service}` in the setting stands for its name, with hyphens."""
    return host.replace("{service}", service.replace("_", "-"))


def _taken(source: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Take a message that is there, without copying it."""
    frames = [source.recv(DONTWAIT, copy=False)]
    while frames[-1].more:
        frames.append(source.recv(DONTWAIT, copy=False))
    return frames


def _user(frame: zmq.Frame) -> str:
    """Whose key a message came under; empty for the hub's own."""
    name = str(frame.get("User-Id"))
    return "" if name == HUB else name


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
