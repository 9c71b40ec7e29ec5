"""`/ws/player` on the real server, with the client of the package `websockets`."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast
from urllib.parse import urlsplit

import cv2
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from services.streamer.control import SessionControl, Status
from services.streamer.mjpeg import Frame, FrameHub, HubClosedError
from services.streamer.player import Line, play
from services.streamer.sound import SoundHub
from services.streamer.websocket import WebSocket, handshake
from tests.budgets import SOCKET_CROWD, SOCKET_SPARE_THREADS, SOCKET_WAIT_S
from tests.unit.test_websocket import HEADERS
from tests.web.conftest import Server, until
from tests.web.standin import Session as StandInSession

Serve = Callable[..., AbstractContextManager[Server]]

HEADER = struct.Struct("<B3xIQQ")
STALE_S = 0.5


@dataclass
class Got:
    """What a player got."""

    texts: list[dict[str, Any]] = field(default_factory=list)
    sounds: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)
    """number, epoch, media time, samples"""
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    order: list[tuple[str, int, int]] = field(default_factory=list)
    """kind, epoch, media time, as they came"""

    def take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            words = json.loads(message)
            self.texts.append(words)
            self.order.append((words["type"], words.get("epoch", -1), -1))
            return
        kind, number, epoch, media = HEADER.unpack_from(message)
        assert message[1:4] == bytes(3)
        body = message[HEADER.size :]
        if kind == 1:
            self.sounds.append((number, epoch, media, np.frombuffer(body, "<i2")))
        else:
            assert kind == 2
            self.frames.append((number, epoch, media, body))
        self.order.append(("sound" if kind == 1 else "frame", epoch, media))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [words for words in self.texts if words["type"] == kind]


@contextmanager
def player(server: Server, query: str = "", path: str = "ws/player", **options: Any) -> Iterator[ClientConnection]:
    url = server.url.replace("http", "ws", 1) + path + query
    options.setdefault("origin", server.url.rstrip("/"))
    with connect(url, max_size=None, compression=None, open_timeout=SOCKET_WAIT_S, **options) as client:
        yield client


def listen(client: ClientConnection, enough: Callable[[Got], Any], got: Got | None = None) -> Got:
    """Take what comes until it is enough."""
    got = got or Got()
    end_s = time.monotonic() + SOCKET_WAIT_S
    while not enough(got):
        got.take(client.recv(timeout=end_s - time.monotonic()))
    return got


def test_it_says_hello_and_its_state_first(serve: Serve):
    with serve("run=") as server, player(server) as client:
        got = listen(client, lambda g: len(g.frames) >= 3 and g.sounds)
    assert got.order[0][0] == "hello"
    assert got.order[1][0] == "state"
    hello = got.texts[0]
    assert hello == {
        "type": "hello",
        "version": 1,
        "session": "default",
        "sample_rate": 16000,
        "frame_samples": 640,
        "width": 480,
        "height": 480,
        "synthetic": True,
    }
    state = got.texts[1]
    assert state["running"] is True
    assert state["source"] == "demo"
    assert state["epoch"] > 0


def test_sound_and_pictures_have_one_media_time(serve: Serve):
    with serve("run=") as server, player(server) as client:
        got = listen(client, lambda g: len(g.frames) >= 50)
    numbers = [number for number, *_ in got.sounds]
    assert numbers == list(range(len(numbers)))
    ends = [(media, media + len(pcm)) for _, _, media, pcm in got.sounds]
    assert all(end == start for (_, end), (start, _) in pairwise(ends))
    assert all(len(pcm) > 0 for *_, pcm in got.sounds)
    for number, epoch, media, jpeg in got.frames:
        assert media % 640 == 0
        assert epoch == got.texts[1]["epoch"]
        assert number > 0
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) is not None
    # Each picture comes when its sound is there already.
    heard = 0
    for kind, _, media in got.order[2:]:
        if kind == "frame":
            assert media <= heard or heard == 0
        else:
            heard = max(heard, media)
    sharp = cv2.imdecode(np.frombuffer(got.frames[-1][3], np.uint8), cv2.IMREAD_COLOR)
    assert sharp is not None
    assert sharp.shape == (480, 480, 3)


@pytest.mark.parametrize("option", ["frames", "sound"])
def test_it_sends_only_what_is_wanted(serve: Serve, option: str):
    with serve("run=") as server, player(server, f"?{option}=no") as client:
        got = listen(client, lambda g: len(g.sounds) + len(g.frames) >= 10)
        assert server.told()["viewers"] == [] if option == "frames" else server.told()["viewers"]
    assert not (got.frames if option == "frames" else got.sounds)


def test_a_still_face_comes_sharp_and_then_not_again(serve: Serve):
    with serve() as server, player(server) as client:
        got = listen(client, lambda g: g.frames and len(g.frames[-1][3]) > 6700)
        deadline_s = time.monotonic() + 3.0
        while time.monotonic() < deadline_s:
            try:
                got.take(client.recv(timeout=STALE_S))
            except TimeoutError:
                break
        else:
            pytest.fail("the same picture comes again and again")
    assert {number for number, *_ in got.frames} == {got.frames[0][0]}
    assert got.texts[1]["running"] is False


def test_a_good_line_gets_the_best_pictures(serve: Serve):
    with serve("run=", "noise=") as server, player(server) as client:
        best = 82
        listen(client, lambda g: len(g.frames) % 10 == 9 and server.told()["viewers"][0]["quality"] == best)


class Still:
    """A session of which the test itself publishes."""

    name = "still"

    def __init__(self) -> None:
        self.frames = FrameHub()
        self.sound = SoundHub()
        self.epoch = 5

    def status(self) -> Status:
        return replace(StandInSession(publish=False).status(), epoch=self.epoch)


def test_what_is_older_than_the_epoch_told_is_not_sent():
    session = Still()
    image = np.zeros((64, 64, 3), np.uint8)
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(listener.getsockname()) as client, listener, listener.accept()[0] as sock:
        client.settimeout(SOCKET_WAIT_S)
        with session.frames.viewer() as viewer, session.sound.tap() as tap:
            line = Line(sock)
            web = WebSocket(sock, handshake(HEADERS))

            def serve_it() -> None:
                with suppress(HubClosedError):
                    play(web, cast("SessionControl", session), line, viewer, tap)
                web.shut()

            thread = threading.Thread(target=serve_it)
            thread.start()
            got, protocol = Got(), Frames()

            def take(enough: Callable[[], Any]) -> None:
                while not enough():
                    for message in protocol.take(client.recv(65_536)):
                        got.take(message)

            session.frames.publish(Frame(1, image, epoch=5))
            take(lambda: got.frames)
            session.frames.publish(Frame(2, image, epoch=7))  # the state still says 5
            take(lambda: got.frames[-1][0] == 2)
            session.frames.publish(Frame(3, image, epoch=6))
            session.sound.heard(6, 0, np.ones(640, np.int16))
            session.sound.heard(7, 0, np.ones(640, np.int16))
            take(lambda: got.sounds)
            session.frames.publish(Frame(4, image, epoch=7))
            take(lambda: got.frames[-1][0] == 4)
            session.frames.close()
            thread.join(SOCKET_WAIT_S)
            assert not thread.is_alive()
        session.sound.close()
    assert 3 not in [number for number, *_ in got.frames]
    assert [epoch for _, epoch, *_ in got.sounds] == [7]
    assert [words["epoch"] for words in got.of("state")] == [5, 7]


def test_a_new_epoch_is_told_before_anything_of_it_and_nothing_old_comes_after(serve: Serve):
    with serve("run=") as server, player(server) as client:
        got = listen(client, lambda g: g.frames and g.sounds)
        before = got.texts[1]["epoch"]
        server.post("requests", data={"stop": "Stop"})
        got = listen(client, lambda g: not g.texts[-1].get("running", True), got)
        server.post("requests", data={"start": "Start"})
        got = listen(client, lambda g: g.texts[-1].get("running") and g.frames[-1][1] > before, got)
        got = listen(client, lambda g: g.sounds[-1][1] == g.texts[-1]["epoch"], got)
    states = got.of("state")
    epochs = [state["epoch"] for state in states]
    assert len(epochs) >= 3
    assert epochs == sorted(epochs)
    told = 0
    for kind, epoch, _ in got.order:
        if kind == "state":
            told = epoch
        elif kind in {"sound", "frame"}:
            assert epoch == told


def test_what_the_player_reports_arrives(serve: Serve):
    with serve("run=") as server, player(server) as client:
        client.send(json.dumps({"type": "report", "epoch": 1, "sample": 5, "skew_ms": -12.5, "drawn": 25}))
        for odd in (None, "x", True, float("nan"), 1e12, [1]):
            client.send(json.dumps({"type": "report", "skew_ms": odd}))
        client.send(json.dumps({"type": "something new"}))
        client.send(json.dumps({"type": "heard", "epoch": 3, "sample": -1}))
        client.send(json.dumps({"type": "heard", "epoch": 3, "sample": 777}))
        assert until(lambda: ["heard", [3, 777]] in server.calls(), SOCKET_WAIT_S)
        assert server.told()["skews"] == [-0.0125]
        assert [call for call in server.calls() if call[0] == "heard"] == [["heard", [3, 777]]]
        listen(client, lambda g: g.frames)


@pytest.mark.parametrize(
    ("message", "code"),
    [("no json", 1003), (b"bytes", 1003), ("[]", 1003), ("[" * 60_000, 1003), ("x" * 70_000, 1009)],
)
def test_what_it_does_not_understand_ends_it(server: Server, message: str | bytes, code: int):
    with player(server) as client:
        client.send(message)
        with pytest.raises(ConnectionClosed) as caught:
            listen(client, lambda _: False)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == code
    assert server.get("healthz").ok


def test_a_deleted_session_closes_with_a_code_of_its_own(serve: Serve):
    with serve() as server:
        created = server.post("api/sessions", json={"name": "ada"})
        if created.status_code == 404:
            pytest.skip("the API of sessions is not there")
        with player(server, "?session=ada") as client:
            assert listen(client, lambda g: g.texts).texts[0]["session"] == "ada"
            requests_delete(server, "api/sessions/ada")
            assert close_code(client) == 4404


def requests_delete(server: Server, path: str) -> None:
    import requests

    assert requests.delete(server.url + path, timeout=5).ok


def close_code(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        listen(client, lambda _: False)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def test_a_server_that_stops_says_so(serve: Serve):
    with serve("run=") as server, player(server) as client:
        listen(client, lambda g: g.frames)
        server.process.terminate()
        assert close_code(client) == 1001
        assert server.process.wait(SOCKET_WAIT_S) == 0


@pytest.mark.parametrize(
    ("query", "options", "status"),
    [
        ("?session=nobody", {}, 404),
        ("", {"origin": "http://elsewhere.example"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["ws/player", "ws/audio"])
def test_it_is_refused_before_the_upgrade(server: Server, path: str, query: str, options: dict[str, Any], status: int):
    with pytest.raises(InvalidStatus) as caught, player(server, query, path, **options):
        pass
    assert caught.value.response.status_code == status


def test_it_answers_to_no_foreign_host(server: Server):
    with (
        socket.create_connection(address(server)) as sock,
        pytest.raises(InvalidStatus) as caught,
        connect("ws://elsewhere.example/ws/player", sock=sock, origin=Origin("http://elsewhere.example")),
    ):
        pass
    assert caught.value.response.status_code == 403


def test_a_token_is_asked_for_before_the_upgrade(serve: Serve):
    token = "only-for-this-test-0123"  # noqa: S105
    with serve(f"token={token}") as server:
        with pytest.raises(InvalidStatus) as caught, player(server):
            pass
        assert caught.value.response.status_code == 401
        with player(server, additional_headers={"Authorization": f"Bearer {token}"}) as client:
            assert listen(client, lambda g: g.texts).texts[0]["type"] == "hello"


@pytest.mark.parametrize("path", ["ws/player", "ws/audio"])
def test_plain_requests_are_told_what_it_is(server: Server, path: str):
    answer = server.get(path)
    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "websocket"
    assert "WebSocket" in answer.text
    assert server.post(path, headers={"Origin": server.url.rstrip("/")}).status_code == 405


def test_there_are_only_so_many_places_and_they_come_back(serve: Serve):
    with serve("viewers=2") as server:
        with player(server) as one, player(server) as two:
            listen(one, lambda g: g.texts)
            listen(two, lambda g: g.texts)
            with pytest.raises(InvalidStatus) as caught, player(server):
                pass
            assert caught.value.response.status_code == 503
            assert "2 viewers" in caught.value.response.body.decode()
        with player(server) as client:
            assert listen(client, lambda g: g.texts)


def test_a_slow_reader_gets_fewer_pictures_and_all_the_sound(serve: Serve):
    seconds, rate = 6.0, 150_000
    with serve("run=", "noise=", "size=480") as server:
        got = Got()
        end_s = time.monotonic() + seconds
        with slow_client(server) as (client, protocol):
            while time.monotonic() < end_s:
                for message in protocol.take(client.recv(4096)):
                    got.take(message)
                time.sleep(4096 / rate)  # the line's own pace
        stats = server.told()["viewers"]
    sounds = [(media, media + len(pcm)) for _, _, media, pcm in got.sounds]
    assert all(end == start for (_, end), (start, _) in pairwise(sounds)), stats
    assert sounds[-1][1] - sounds[0][0] > 16000 * (seconds - 1.5)
    assert 5 < len(got.frames) < 25 * seconds
    # What came last is fresh: the picture is not far behind its sound.
    assert got.frames[-1][2] > sounds[-1][1] - 16000


class Frames:
    """Just enough of the protocol for a client that reads by hand."""

    def __init__(self) -> None:
        self._buffer = b""
        self._open = False

    def take(self, data: bytes) -> list[str | bytes]:
        assert data, "the server hung up"
        self._buffer += data
        if not self._open:
            head, gap, rest = self._buffer.partition(b"\r\n\r\n")
            if not gap:
                return []
            assert head.startswith(b"HTTP/1.1 101"), head
            self._open, self._buffer = True, rest
        messages: list[str | bytes] = []
        while len(self._buffer) >= 2:
            length, at = self._buffer[1], 2
            if length > 125:
                size = 2 if length == 126 else 8
                if len(self._buffer) < 2 + size:
                    break
                length, at = int.from_bytes(self._buffer[2 : 2 + size], "big"), 2 + size
            if len(self._buffer) < at + length:
                break
            opcode, body = self._buffer[0] & 15, self._buffer[at : at + length]
            self._buffer = self._buffer[at + length :]
            if opcode in {1, 2}:
                messages.append(body.decode() if opcode == 1 else body)
        return messages


def request_bytes(server: Server, path: str = "ws/player") -> bytes:
    host = urlsplit(server.url).netloc
    return (
        f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def address(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


@contextmanager
def slow_client(server: Server) -> Iterator[tuple[socket.socket, Frames]]:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.settimeout(SOCKET_WAIT_S)
    with client:
        client.connect(address(server))
        client.sendall(request_bytes(server))
        yield client, Frames()


def workers(server: Server) -> psutil.Process:
    assert server.get("healthz").ok
    return psutil.Process(server.process.pid).children()[0]


HALF = bytes([0x82, 0xFE, 0x40, 0, 0, 0, 0, 0]) + bytes(100)
"""the beginning of a message of 16 KiB"""


@pytest.mark.parametrize("path", ["ws/player", "ws/audio"])
def test_two_hundred_sockets_opened_and_dropped_leave_nothing(serve: Serve, path: str):
    """Closed in order, reset, hung up in the middle of a message, silent, and gone before the answer."""
    with serve("run=") as server:
        worker = workers(server)
        drop(server, path, 20)
        assert until(lambda: server.get("healthz").ok, SOCKET_WAIT_S)
        assert until(lambda: not server.told()["viewers"], SOCKET_WAIT_S)
        files, memory = worker.num_fds(), worker.memory_info().rss
        drop(server, path, SOCKET_CROWD)
        assert until(lambda: not server.told()["viewers"], SOCKET_WAIT_S)
        assert until(lambda: worker.num_fds() <= files, SOCKET_WAIT_S), worker.open_files()
        assert worker.num_threads() <= SOCKET_SPARE_THREADS
        assert worker.memory_info().rss - memory < 20e6
        assert server.get("").ok
        with player(server) as client:
            listen(client, lambda g: g.frames and g.sounds)
        log = server.log.read_text()
    assert not re.search(r"Traceback|ERROR|Exception", log), log


def drop(server: Server, path: str, count: int) -> None:
    ways = [leave_in_order, reset, hang_up, reset_in_a_message, leave_before_the_answer]
    for number in range(count):
        ways[number % len(ways)](server, path)


def opened(server: Server, path: str) -> socket.socket:
    client = socket.create_connection(address(server), SOCKET_WAIT_S)
    client.sendall(request_bytes(server, path))
    answer = client.recv(4096)
    # Where all places are taken for a moment the answer is 503.
    assert answer.startswith((b"HTTP/1.1 101", b"HTTP/1.1 503")), answer
    return client


def leave_in_order(server: Server, path: str) -> None:
    with player(server, path=path) as client:
        if path == "ws/player":
            client.recv(timeout=SOCKET_WAIT_S)


def reset(server: Server, path: str) -> None:
    client = opened(server, path)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def hang_up(server: Server, path: str) -> None:
    client = opened(server, path)
    client.shutdown(socket.SHUT_WR)
    while client.recv(65536):
        pass
    client.close()


def reset_in_a_message(server: Server, path: str) -> None:
    client = opened(server, path)
    client.sendall(HALF)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def leave_before_the_answer(server: Server, path: str) -> None:
    client = socket.create_connection(address(server), SOCKET_WAIT_S)
    client.sendall(request_bytes(server, path))
    client.close()
