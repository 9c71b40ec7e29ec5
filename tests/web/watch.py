"""A viewer of the stream that notes when each frame was whole, and may read as slowly as one likes."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


opened: list[socket.socket] = []
"""for the fixture that closes what a failing test left open"""


@dataclass
class Seen:
    """What one viewer saw."""

    frames: list[int] = field(default_factory=list)
    """running numbers, in the order in which they came"""
    lags_s: list[float] = field(default_factory=list)
    """age of each frame when its last byte was read, s"""
    at_s: list[float] = field(default_factory=list)
    """when that was, monotonic s"""
    sizes: list[int] = field(default_factory=list)
    """bytes"""

    def rate_hz(self) -> float:
        """Frames a second between the first and the last."""
        return (len(self.at_s) - 1) / (self.at_s[-1] - self.at_s[0]) if len(self.at_s) > 1 else 0.0


def connect(url: str, path: str = "/video_feed", timeout_s: float = 5.0, receive_buffer: int = 0) -> socket.socket:
    """Ask for the stream."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.append(sock)
    sock.settimeout(timeout_s)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect((parts.hostname, parts.port))
    # HTTP/1.0: no chunks, so what follows the head is the stream itself.
    sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
    return sock


def pieces(sock: socket.socket, rate: float | None) -> Iterator[bytes]:
    """What comes, read at `rate` bytes/s at most."""
    due_s = time.monotonic()
    step = 64 * 1024 if rate is None else max(256, int(rate / 100))
    while True:
        piece = sock.recv(step)
        if not piece:
            return
        yield piece
        if rate is not None:
            due_s = max(due_s + len(piece) / rate, time.monotonic() - 0.02)
            time.sleep(max(0.0, due_s - time.monotonic()))


def watch(sock: socket.socket, seconds: float, rate: float | None = None) -> Seen:
    """Watch for a time and at least one frame, or until the server ends the stream."""
    seen = Seen()
    data = bytearray()
    until_s = time.monotonic() + seconds
    in_body = False
    head: dict[str, str] = {}
    with contextlib.suppress(TimeoutError):
        for piece in pieces(sock, rate):
            data += piece
            while True:
                if not in_body:
                    end = data.find(b"\r\n\r\n")
                    if end < 0:
                        break
                    lines = bytes(data[:end]).decode().split("\r\n")
                    del data[: end + 4]
                    head = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
                    in_body = "content-length" in head
                    continue
                size = int(head["content-length"])
                if len(data) < size + 2:
                    break
                assert data[:2] == b"\xff\xd8"
                assert data[size - 2 : size] == b"\xff\xd9"
                seen.frames.append(int(head["x-frame"]))
                seen.lags_s.append(time.time() - float(head["x-timestamp"]))
                seen.at_s.append(time.monotonic())
                seen.sizes.append(size)
                del data[: size + 2]
                in_body = False
            if seen.frames and time.monotonic() > until_s:
                break
    return seen
