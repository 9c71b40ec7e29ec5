"""What is believed of the line to a viewer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import services.streamer.line
from services.streamer.line import FAST, FRAME_S, POLL_S, STALL_S, TcpLine, _Look
from services.streamer.player import Line
from tests.budgets import (
    LINE_FIRST_FRAMES,
    LINE_FRAME_BYTES,
    LINE_FRAMES,
    LINE_MOMENT,
    LINE_SHRUNK,
    LINE_TINY_BYTES,
    LINE_WINDOW_BYTES,
)

RATE_ENOUGH = 25 * LINE_FRAME_BYTES * 4
"""bytes/s at which pictures four times as large are carried"""


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        yield near


def test_a_near_viewer_whose_kernel_never_tells_that_it_has_read_gets_sharp_pictures(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver acknowledges before its program reads, and tells of the room it has only when that has doubled."""
    acked, window = 0, LINE_WINDOW_BYTES

    def look(_self: TcpLine) -> _Look:
        return _Look(queued=0, acked=acked, in_flight=0, window=window)

    monkeypatch.setattr(TcpLine, "_look", look)
    line = TcpLine(sock)
    for _ in range(LINE_FRAMES):
        line.sent(LINE_FRAME_BYTES, time.monotonic())
        acked += LINE_FRAME_BYTES
        window = LINE_WINDOW_BYTES - LINE_FRAME_BYTES
        line.wait()
    assert line.rate is not None
    assert RATE_ENOUGH < line.rate < 100 * FAST


@dataclass
class Peer:
    """A near viewer as the kernel tells of it, and the time that passes while the line waits for it."""

    window: int = LINE_WINDOW_BYTES
    acked: int = 0
    now_s: float = 100.0

    def look(self) -> _Look:
        return _Look(queued=0, acked=self.acked, in_flight=0, window=self.window)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def get(self, line: TcpLine, *, size: int = LINE_FRAME_BYTES, took_s: float = POLL_S, unread: int = 0) -> None:
        """A frame has come, of which so much is not read."""
        line.sent(size, self.now_s)
        self.now_s += took_s
        self.acked += size
        self.window -= unread


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    made = Peer()
    monkeypatch.setattr(TcpLine, "_look", lambda _line: made.look())
    monkeypatch.setattr(services.streamer.line, "time", made)
    return made


def test_a_small_frame_that_took_a_moment_says_nothing_against_a_line(sock: socket.socket, peer: Peer) -> None:
    line = TcpLine(sock)
    for _ in range(LINE_FIRST_FRAMES):
        peer.get(line)
        line.wait()
    before = line.rate
    assert before is not None
    peer.get(line, took_s=LINE_MOMENT * FRAME_S)
    line.wait()
    assert line.rate is not None
    assert line.rate >= before


@pytest.mark.parametrize(
    ("size", "unread", "gets_on"),
    [
        pytest.param(LINE_FRAME_BYTES, 0, True, id="one that reads, whose buffer the system made smaller for good"),
        pytest.param(LINE_FRAME_BYTES, LINE_FRAME_BYTES, False, id="one that reads nothing"),
        pytest.param(LINE_TINY_BYTES, 0, False, id="tiny parts: a window, told in steps, may stay though nobody reads"),
    ],
)
def test_who_has_less_room_than_at_first_gets_on_only_if_it_is_seen_to_read(
    sock: socket.socket, peer: Peer, size: int, unread: int, gets_on: bool
) -> None:
    line = Line(sock)
    peer.get(line)
    assert line.has_room()
    peer.window = round(LINE_SHRUNK * LINE_WINDOW_BYTES)
    peer.get(line, size=size, unread=unread)
    at_s = []
    while peer.now_s < 100.0 + 10 * STALL_S:
        if line.has_room():
            at_s.append(peer.now_s)
            peer.get(line, size=size, unread=unread)
        peer.sleep(POLL_S)
    assert (at_s[-1] > peer.now_s - STALL_S) == gets_on
