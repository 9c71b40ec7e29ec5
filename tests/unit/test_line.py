"""What is believed of the line to a viewer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from services.streamer.line import FAST, TcpLine, _Look
from tests.budgets import LINE_FRAME_BYTES, LINE_FRAMES, LINE_WINDOW_BYTES

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
