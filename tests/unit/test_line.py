"""What is believed of the line to a viewer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import services.streamer.line
from services.streamer.line import FAST, FRAME_S, TcpLine, _Look
from services.streamer.player import Line
from tests.budgets import (
    LINE_FRAME_BYTES,
    LINE_FRAMES,
    LINE_SHRUNK,
    LINE_STALL_S,
    LINE_STALLED_FRAMES,
    LINE_TINY_BYTES,
    LINE_WATCHED_S,
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
    """A near viewer as the kernel tells of it."""

    window: int = LINE_WINDOW_BYTES
    acked: int = 0

    def look(self) -> _Look:
        return _Look(queued=0, acked=self.acked, in_flight=0, window=self.window)

    def get(self, line: TcpLine, took_s: float = 0.0, unread: int = 0, size: int = LINE_FRAME_BYTES) -> None:
        """A frame has come, of which so much is not read."""
        line.sent(size, time.monotonic() - took_s)
        self.acked += size
        self.window -= unread


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    made = Peer()
    monkeypatch.setattr(TcpLine, "_look", lambda _line: made.look())
    return made


def test_a_small_frame_that_took_a_moment_says_nothing_against_a_line(sock: socket.socket, peer: Peer) -> None:
    line = TcpLine(sock)
    for _ in range(4):
        peer.get(line)
        line.wait()
    before = line.rate
    assert before is not None
    peer.get(line, took_s=0.6 * FRAME_S)
    line.wait()
    assert line.rate is not None
    assert line.rate >= before


def frames_taken(line: Line, peer: Peer, unread: int, size: int = LINE_FRAME_BYTES) -> int:
    """How many frames go out within a while, and so much of each is not read."""
    frames, until_s = 0, time.monotonic() + LINE_WATCHED_S
    while time.monotonic() < until_s:
        if line.has_room():
            peer.get(line, unread=unread, size=size)
            frames += 1
        time.sleep(0.002)
    return frames


def test_a_viewer_whose_buffer_is_no_longer_as_wide_as_it_was_is_not_taken_for_stalled(
    sock: socket.socket, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux may make a window smaller for good, by how well the segments that come fill their memory."""
    monkeypatch.setattr(services.streamer.line, "STALL_S", LINE_STALL_S)
    line = Line(sock)
    peer.get(line)
    assert line.has_room()
    peer.window = round(LINE_SHRUNK * LINE_WINDOW_BYTES)
    peer.get(line)
    assert frames_taken(line, peer, unread=0) > LINE_STALLED_FRAMES


def test_a_viewer_that_reads_nothing_gets_no_more(
    sock: socket.socket, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.streamer.line, "STALL_S", LINE_STALL_S)
    line = Line(sock)
    peer.get(line)
    assert line.has_room()
    peer.window = round(LINE_SHRUNK * LINE_WINDOW_BYTES)
    peer.get(line, unread=LINE_FRAME_BYTES)
    assert frames_taken(line, peer, unread=LINE_FRAME_BYTES) <= LINE_STALLED_FRAMES
    assert not line.has_room()


def test_tiny_parts_do_not_show_that_a_viewer_reads(
    sock: socket.socket, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is told in steps: those of sound may leave it as it was though nobody reads."""
    monkeypatch.setattr(services.streamer.line, "STALL_S", LINE_STALL_S)
    line = Line(sock)
    peer.get(line)
    assert line.has_room()
    peer.window = round(LINE_SHRUNK * LINE_WINDOW_BYTES)
    peer.get(line, size=LINE_TINY_BYTES)
    assert frames_taken(line, peer, unread=0, size=LINE_TINY_BYTES) <= LINE_STALLED_FRAMES
