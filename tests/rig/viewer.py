"""Reading /video_feed: when each frame came, and its pictures."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["Shot", "frames", "picture", "record"]


@dataclass(frozen=True)
class Shot:
    """One frame as a viewer got it."""

    at_s: float
    """when its last byte was here, monotonic s"""
    sent_s: float
    """when the streamer made it the newest, wall clock s"""
    media_time: int
    """samples"""
    jpeg: bytes


def frames(url: str, timeout_s: float = 5.0, session: str = "default") -> Iterator[Shot]:
    """Frames of a session as they come, until the stream ends or nothing comes for `timeout_s`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"/video_feed?session={session}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        line = answer.readline()
        while line:
            headers: dict[str, str] = {}
            line = answer.readline().strip()
            while line:
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
                line = answer.readline().strip()
            if "content-length" not in headers:
                return
            jpeg = answer.read(int(headers["content-length"]))
            at_s = time.monotonic()
            yield Shot(at_s, float(headers["x-timestamp"]), int(headers["x-media-time"]), jpeg)
            answer.readline()
            line = answer.readline()
    finally:
        connection.close()


def record(url: str, seconds: float) -> list[Shot]:
    """All frames of a time."""
    shots: list[Shot] = []
    for shot in frames(url):
        shots.append(shot)
        if shot.at_s - shots[0].at_s >= seconds:
            break
    return shots


def picture(shot: Shot) -> npt.NDArray[np.uint8]:
    """Decode; BGR (h, w, 3)."""
    image = cv2.imdecode(np.frombuffer(shot.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.uint8)
