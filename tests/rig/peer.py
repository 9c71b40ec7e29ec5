"""All the others, as one service under test sees them: raw sockets on the far end of each of its topics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import zmq

from shared.messages import Beat, Message, pack, unpack
from shared.topics import BY_NAME as TOPIC_OF
from shared.topics import TOPICS, ServiceName, Topic
from tests.rig.stack import ROOT, free_ports

__all__ = ["Peer", "Process"]


class Process:
    """One service, started as its own process."""

    def __init__(
        self,
        service: str,
        folder: Path,
        settings: Mapping[str, str],
        *,
        name: str = "",
        command: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            service: its module is `services.<service>`, unless a command is given.
            folder: of its log.
            settings: environment beside that of the test.
            name: of its log; the service's when empty.
            command: what Python runs instead of the service.
            before: what the command line begins with, such as `taskset -c 0`.
        """
        self.log = folder / f"{name or service}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MOUTHPIECE_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*before, sys.executable, *(command or ("-m", f"services.{service}"))],
                cwd=ROOT,
                env=clean | {"MOUTHPIECE_STATE_DIR": str(folder / "state"), **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """Exit code."""
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float) -> int:
        """End it by SIGTERM; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """End it whatever state it is in."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(5)

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")


class Peer:
    """The far end of every topic of one service."""

    def __init__(self, service: ServiceName) -> None:
        self.base_port = free_ports(9)
        self._context = zmq.Context()
        self._out: dict[str, zmq.Socket[bytes]] = {}
        self._in: dict[str, zmq.Socket[bytes]] = {}
        for topic in TOPICS:
            if service in topic.receivers:
                self._out[topic.name] = self._place(topic, service, zmq.XPUB)
                self._out[topic.name].setsockopt(
                    zmq.XPUB_NODROP, 1
                )  # a test's message is lost by nobody but the service
            if service in topic.senders:
                socket = self._place(topic, service, zmq.SUB)
                socket.subscribe(b"")
                self._in[topic.name] = socket

    def _place(self, topic: Topic, service: str, kind: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        address = f"tcp://127.0.0.1:{self.base_port + topic.port}"
        if topic.binds == service:
            socket.connect(address)
        else:
            socket.bind(address)
        return socket

    def subscriptions(self, topic: str, timeout_s: float) -> set[str]:
        """Keys that the service subscribed to on a topic that we send: waits for the first."""
        socket = self._out[topic]
        keys: set[str] = set()
        if not socket.poll(int(timeout_s * 1000)):
            raise TimeoutError(f"no subscription to {topic} within {timeout_s} s")
        while socket.poll(50):
            frames = socket.recv_multipart()
            if frames[0][:1] == b"\x01":
                keys.add(frames[0][1:].decode().rstrip("\0").partition(".")[2])
        return keys

    def send(self, topic: str, message: Message, key: str = "") -> None:
        """Send a message as its sender would."""
        self.send_raw(topic, [bytes(frame) for frame in pack(message)], key)

    def send_raw(self, topic: str, frames: list[bytes], key: str = "") -> None:
        """Send anything at all under a topic's name."""
        self._out[topic].send_multipart([f"{topic}.{key}\0".encode(), *frames])

    def receive(self, topic: str, kind: type[Message], timeout_s: float) -> Message:
        """The next message of a kind on a topic; others are passed over."""
        deadline = time.monotonic() + timeout_s
        while self._in[topic].poll(max(0, int((deadline - time.monotonic()) * 1000))):
            message = unpack(self._in[topic].recv_multipart()[1:], TOPIC_OF[topic].messages)
            if isinstance(message, kind):
                return message
        raise TimeoutError(f"no {kind.KIND} on {topic} within {timeout_s} s")

    def drain(self, topic: str) -> None:
        """Forget what has come."""
        while self._in[topic].poll(0):
            self._in[topic].recv_multipart()

    def beat_where(self, counter: str, least: float, timeout_s: float) -> Beat:
        """Wait for a beat whose counter reached a number."""
        return self.beat_of(lambda beat: beat.counters.get(counter, 0.0) >= least, timeout_s)

    def gauge_where(self, gauge: str, least: float, timeout_s: float) -> Beat:
        """Wait for a beat whose gauge reached a number."""
        return self.beat_of(lambda beat: beat.gauges.get(gauge, 0.0) >= least, timeout_s)

    def beat_of(self, condition: Callable[[Beat], bool], timeout_s: float) -> Beat:
        """Wait for a beat that fulfils a condition."""
        deadline = time.monotonic() + timeout_s
        while True:
            beat = self.receive("beat", Beat, max(0.0, deadline - time.monotonic()))
            assert isinstance(beat, Beat)
            if condition(beat):
                return beat

    def close(self) -> None:
        """Close all."""
        self._context.destroy(linger=0)
