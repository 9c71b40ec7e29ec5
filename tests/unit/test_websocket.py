"""The WebSocket over a pair of sockets, against wsproto as the client and against bytes made by hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from services.streamer import websocket
from services.streamer.websocket import ClosedError, NoWebSocketError, WebSocket, handshake, words_of
from tests.budgets import SOCKET_QUICK_S, SOCKET_WAIT_S

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "Host": "127.0.0.1:8080",
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-Websocket-Key": KEY,
    "Sec-Websocket-Version": "13",
}


class Peer:
    """The client's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = Connection(ConnectionType.CLIENT)
        sock.settimeout(SOCKET_WAIT_S)

    def send(self, event: Event) -> None:
        self.sock.sendall(self.protocol.send(event))

    def events(self) -> list[Event]:
        """What the server has sent by now, at least one event; empty at the end."""
        while not (found := list(self.protocol.events())):
            data = self.sock.recv(65536)
            if not data:
                return []
            self.protocol.receive_data(data)
        return found

    def close_code(self) -> int:
        """Read until the server closes."""
        while events := self.events():
            for event in events:
                if isinstance(event, CloseConnection):
                    return int(event.code)
        raise AssertionError("the server hung up without a close")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    yield server, client
    server.close()
    client.close()


@pytest.fixture
def pair(ends: tuple[socket.socket, socket.socket]) -> tuple[WebSocket, Peer]:
    shake = handshake(HEADERS)
    web = WebSocket(ends[0], shake)
    assert ends[1].recv(len(shake.answer)) == shake.answer
    return web, Peer(ends[1])


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bool = True, length: int | None = None) -> bytes:
    """A frame by hand; `length` is what it says of its length."""
    length = len(payload) if length is None else length
    head = bytes([fin << 7 | opcode])
    if length < 126:
        head += bytes([mask << 7 | length])
    elif length < 1 << 16:
        head += bytes([mask << 7 | 126]) + struct.pack(">H", length)
    else:
        head += bytes([mask << 7 | 127]) + struct.pack(">Q", length)
    return head + (b"\0\0\0\0" if mask else b"") + payload


def test_the_answer_is_that_of_the_rfc():
    answer = handshake(HEADERS).answer
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer  # RFC 6455, section 1.3
    assert b"Extensions" not in answer


def test_an_offer_to_compress_is_not_taken():
    offer = {**HEADERS, "Sec-Websocket-Extensions": "permessage-deflate; client_max_window_bits"}
    assert b"deflate" not in handshake(offer).answer


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Upgrade": None}, HTTPStatus.UPGRADE_REQUIRED),
        ({"Upgrade": "h2c"}, HTTPStatus.UPGRADE_REQUIRED),
        ({"Connection": "keep-alive"}, HTTPStatus.BAD_REQUEST),
        ({"Sec-Websocket-Key": None}, HTTPStatus.BAD_REQUEST),
        ({"Sec-Websocket-Version": "8"}, HTTPStatus.UPGRADE_REQUIRED),
        ({"Content-Length": "5"}, HTTPStatus.BAD_REQUEST),
        ({"Transfer-Encoding": "chunked"}, HTTPStatus.BAD_REQUEST),
        ({"Sec-Websocket-Key": "a\nb"}, HTTPStatus.BAD_REQUEST),
    ],
)
def test_what_is_no_request_for_a_websocket_is_refused(change: dict[str, str | None], status: HTTPStatus):
    headers = {name: value for name, value in {**HEADERS, **change}.items() if value is not None}
    with pytest.raises(NoWebSocketError) as caught:
        handshake(headers)
    assert caught.value.status == status
    assert str(caught.value).endswith(".")


def test_texts_and_bytes_go_both_ways(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    for event in (TextMessage("Grüße €"), BytesMessage(b"\x00\xff"), TextMessage(""), BytesMessage(bytes(65536))):
        peer.send(event)
        assert web.receive(SOCKET_WAIT_S) == event.data
    web.send_text("há")
    web.send_bytes(b"\1\2")
    got: list[Event] = []
    while len(got) < 2:
        got += peer.events()
    assert [event.data for event in got if isinstance(event, TextMessage | BytesMessage)] == ["há", b"\1\2"]


def test_nothing_comes_in_no_time(pair: tuple[WebSocket, Peer]):
    assert pair[0].receive(0.0) is None
    assert not pair[0].pending
    assert pair[0].receive(0.01) is None


def test_messages_that_came_together_are_given_one_by_one(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    peer.sock.sendall(b"".join(frame(1, b"%d" % n) for n in range(5)))
    assert web.receive(SOCKET_WAIT_S) == "0"
    assert web.pending
    assert [web.receive(0.0) for _ in range(5)] == ["1", "2", "3", "4", None]
    assert not web.pending


def test_fragments_with_a_ping_between_make_one_message(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    text = "ä" * 1000
    raw = text.encode()
    data = frame(1, raw[:333], fin=False) + frame(9, b"there?") + frame(0, b"", fin=False) + frame(0, raw[333:])
    for at in range(0, len(data), 97):  # wherever TCP cuts it
        peer.sock.sendall(data[at : at + 97])
        if at + 97 < len(data):
            assert web.receive(0.0) is None
    assert web.receive(SOCKET_WAIT_S) == text
    pong = peer.events()[0]
    assert isinstance(pong, Pong)
    assert pong.payload == b"there?"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(2, bytes(65537)), 1009, id="one frame"),
        pytest.param(frame(2, bytes(1000), length=1 << 40), None, id="not yet"),
        pytest.param(frame(2, bytes(40000), fin=False) + frame(0, bytes(40000)), 1009, id="fragments"),
        pytest.param(frame(1, "€".encode() * 21846), 1009, id="bytes count, not characters"),
        pytest.param(frame(1, b"\xc3\x28"), 1007, id="no UTF-8"),
        pytest.param(frame(1, b"\xe2\x82"), 1007, id="half a character"),
        pytest.param(frame(1, b"x", mask=False), 1002, id="no mask"),
        pytest.param(frame(3, b""), 1002, id="opcode"),
        pytest.param(b"\xf1" + frame(1, b"x")[1:], 1002, id="reserved bits"),
        pytest.param(frame(0, b"x"), 1002, id="nothing to continue"),
        pytest.param(frame(1, b"x", fin=False) + frame(1, b"x"), 1002, id="fragment missing"),
        pytest.param(frame(9, bytes(126)), 1002, id="long ping"),
        pytest.param(frame(9, b"", fin=False), 1002, id="ping in parts"),
        pytest.param(frame(8, b"\x03"), 1002, id="half a close code"),
        pytest.param(frame(8, b"\x03\xed"), 1002, id="1005 is never sent"),
    ],
)
def test_what_breaks_the_protocol_closes_with_its_code(
    pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch, data: bytes, code: int | None
):
    monkeypatch.setattr(websocket, "GOODBYE_S", SOCKET_QUICK_S)
    web, peer = pair
    sender = threading.Thread(target=peer.sock.sendall, args=(data,))
    sender.start()
    if code is None:
        assert web.receive(SOCKET_QUICK_S) is None
    else:
        with pytest.raises(ClosedError) as caught:
            web.receive(SOCKET_WAIT_S)
        assert caught.value.code == code
        assert peer.close_code() == code
    sender.join()
    web.shut()


def test_a_frame_that_promises_too_much_is_not_kept(pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(websocket, "GOODBYE_S", SOCKET_QUICK_S)
    web, peer = pair
    sender = threading.Thread(target=peer.sock.sendall, args=(frame(2, bytes(100_000), length=1 << 40),))
    sender.start()
    with pytest.raises(ClosedError, match="1009"):
        web.receive(SOCKET_WAIT_S)
    sender.join()


def test_a_close_of_the_other_side_is_answered(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    peer.send(CloseConnection(4321, "bye"))
    with pytest.raises(ClosedError) as caught:
        web.receive(SOCKET_WAIT_S)
    assert caught.value.code == 4321
    assert peer.close_code() == 4321
    assert peer.protocol.state is ConnectionState.CLOSED
    with pytest.raises(ClosedError, match="4321"):
        web.send_text("too late")
    web.close(1000)  # does nothing
    web.shut()
    assert peer.sock.recv(100) == b""


def test_a_close_waits_for_its_answer_and_reads_over_what_comes_before(
    pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(websocket, "GOODBYE_S", SOCKET_WAIT_S)
    web, peer = pair
    closer = threading.Thread(target=web.close, args=(1001, "x" * 200))
    for _ in range(20):
        peer.send(BytesMessage(bytes(1000)))
    closer.start()
    events = peer.events()
    assert isinstance(events[0], CloseConnection)
    assert closer.is_alive()
    peer.send(BytesMessage(b"")) if peer.protocol.state is ConnectionState.OPEN else None
    peer.send(events[0].response())
    closer.join(SOCKET_WAIT_S)
    assert not closer.is_alive()
    assert peer.protocol.state is ConnectionState.CLOSED


def test_a_close_that_is_not_answered_ends_soon(pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(websocket, "GOODBYE_S", SOCKET_QUICK_S)
    web, peer = pair
    web.close(1000)
    web.shut()
    assert peer.close_code() == 1000
    assert peer.sock.recv(1) == b""


def test_a_reader_that_takes_nothing_is_cut_off(pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(websocket, "SEND_S", SOCKET_QUICK_S)
    web, peer = pair

    def send_on() -> None:
        while True:
            web.send_bytes(bytes(100_000))

    with pytest.raises(ClosedError, match="took nothing"):
        send_on()
    with pytest.raises(ClosedError):
        web.receive(0.0)
    assert web.closed
    assert web.closed.code == 1006
    web.close(1000)  # nothing more is written behind half a message
    assert peer.protocol.state is ConnectionState.OPEN


def test_a_slow_reader_gets_everything(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    sent = [os.urandom(200_000) for _ in range(5)]

    def send() -> None:
        for data in sent:
            web.send_bytes(data)

    sender = threading.Thread(target=send)
    sender.start()
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    got = b""
    while len(got) < 1_000_000:
        got += b"".join(bytes(e.data) for e in peer.events() if isinstance(e, BytesMessage))
    sender.join()
    assert got == b"".join(sent)


class Clock:
    """A clock that the test sets forward; in place of the module's `time`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(websocket, "time", clock)
    return clock


def test_who_is_silent_is_asked_and_then_gone(clock: Clock, pair: tuple[WebSocket, Peer]):
    web, peer = pair
    asked = range(int(websocket.SILENCE_S // websocket.PING_S))
    for _ in asked:
        clock.now_s += websocket.PING_S
        assert web.receive(0.0) is None
    clock.now_s += websocket.PING_S
    with pytest.raises(ClosedError, match="nothing was heard"):
        web.receive(0.0)
    assert [type(event) for event in peer.events()] == [Ping for _ in asked]


def test_who_answers_pings_stays(clock: Clock, pair: tuple[WebSocket, Peer]):
    web, peer = pair
    for _ in range(10):
        clock.now_s += websocket.PING_S
        assert web.receive(0.0) is None
        (ping,) = peer.events()
        assert isinstance(ping, Ping)
        peer.send(ping.response())
    assert web.receive(0.0) is None
    assert web.closed is None


def test_a_wait_that_is_longer_than_the_pause_between_pings_asks_meanwhile(
    pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(websocket, "PING_S", SOCKET_QUICK_S / 8)
    web, peer = pair
    waits = []
    for _ in range(5):  # one that the host holds up asks only once
        assert web.receive(SOCKET_QUICK_S) is None
        waits.append([type(event) for event in peer.events()])
    assert max(waits, key=len)[:2] == [Ping, Ping]


def test_what_came_while_the_process_was_held_up_counts_as_heard(clock: Clock, pair: tuple[WebSocket, Peer]):
    web, peer = pair
    peer.send(Pong())
    clock.now_s += 10 * websocket.SILENCE_S
    assert web.receive(0.0) is None
    peer.send(TextMessage("still here"))
    clock.now_s += 10 * websocket.SILENCE_S
    assert web.receive(0.0) == "still here"


def test_while_nothing_is_read_silence_is_no_sign(pair: tuple[WebSocket, Peer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(websocket, "PING_S", 0.0)
    web, peer = pair
    web._heard_s -= 2 * websocket.SILENCE_S
    web.hear_nothing()
    assert isinstance(peer.events()[0], Ping)


@pytest.mark.parametrize("abrupt", [False, True])
def test_who_hangs_up_without_a_close_is_gone(abrupt: bool):
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    web = WebSocket(server, handshake(HEADERS))
    if abrupt:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sendall(frame(2, bytes(100), length=1000))
    client.close()
    with pytest.raises(ClosedError, match="1006"):
        web.receive(SOCKET_WAIT_S)
    web.close(1000)
    web.shut()
    server.close()


def test_a_signal_does_not_disturb(pair: tuple[WebSocket, Peer]):
    web, peer = pair
    hit = threading.Event()
    heard: list[bool] = []
    here = threading.get_ident()

    def disturb() -> None:
        """To this thread alone, and the next one when the last was handled: none is left when the test ends."""
        for _ in range(3):
            hit.clear()
            signal.pthread_kill(here, signal.SIGUSR1)
            heard.append(hit.wait(SOCKET_WAIT_S))
        peer.send(TextMessage("late"))

    before = signal.signal(signal.SIGUSR1, lambda *_: hit.set())
    sender = threading.Thread(target=disturb)
    try:
        sender.start()
        assert web.receive(2 * SOCKET_WAIT_S) == "late"
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert heard == [True] * 3


def test_tls_that_holds_messages_back_is_asked_for_them(ends: tuple[socket.socket, socket.socket], tmp_path: Path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1", "-keyout", str(key)]
    subprocess.run(["openssl", "req", "-x509", *options, "-out", str(cert)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(target=lambda: made.append(context.wrap_socket(ends[0], server_side=True)))
    thread.start()
    client = trusting.wrap_socket(ends[1], server_hostname="localhost")
    thread.join()
    with client, made[0] as server:
        shake = handshake(HEADERS)
        web, peer = WebSocket(server, shake), Peer(client)
        assert client.recv(len(shake.answer)) == shake.answer
        # One TLS record with more in it than one message, and messages of more than one record.
        client.sendall(frame(1, b"a") + frame(2, bytes(5000)) + frame(1, b"b"))
        assert web.receive(SOCKET_WAIT_S) == "a"
        assert web.pending
        assert web.receive(0.0) == bytes(5000)
        assert web.receive(0.0) == "b"
        sender = threading.Thread(target=web.send_bytes, args=(bytes(3_000_000),))
        sender.start()
        got = 0
        while got < 3_000_000:
            got += sum(len(event.data) for event in peer.events() if isinstance(event, BytesMessage))
        sender.join()
        assert web.receive(0.0) is None
        peer.send(CloseConnection(1000))
        with pytest.raises(ClosedError, match="1000"):
            web.receive(SOCKET_WAIT_S)
        web.shut()


@pytest.mark.parametrize("message", [b"{}", "", "{", "[]", "3", "null", "[" * 60_000])
def test_what_is_no_object_of_json_is_refused(message: Any):
    with pytest.raises(ValueError, match="JSON"):
        words_of(message)
    assert words_of(json.dumps({"type": "x"})) == {"type": "x"}
