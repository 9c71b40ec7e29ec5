"""A stack's sessions by REST and web socket, as a program on the same machine uses them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import requests
from websockets.sync.client import ClientConnection, connect

from tests.rig.stack import Stack

__all__ = ["PIECE_BYTES", "Api", "next_of", "player", "speaker", "total"]

PIECE_BYTES: Final = 6400
"""0.2 s of 16 kHz PCM16, as a voice synthesiser sends it"""


class Api:
    """The sessions of a stack."""

    def __init__(self, stack: Stack) -> None:
        self.url = f"{stack.url}/api/sessions"

    def create(self, name: str, **options: Any) -> None:
        """Begin a session."""
        requests.post(self.url, json={"name": name, **options}, timeout=5).raise_for_status()

    def post(self, path: str, **options: Any) -> dict[str, Any]:
        """Ask for something below `/api/sessions/`."""
        answer = requests.post(f"{self.url}/{path}", timeout=5, **options)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told

    def names(self) -> list[str]:
        """Of all sessions."""
        return [session["name"] for session in requests.get(self.url, timeout=5).json()["sessions"]]

    def delete(self, name: str) -> None:
        """End it."""
        requests.delete(f"{self.url}/{name}", timeout=5).raise_for_status()

    def status(self, name: str) -> dict[str, Any]:
        """Its state."""
        told: dict[str, Any] = requests.get(f"{self.url}/{name}", timeout=5).json()
        return told


@contextmanager
def speaker(stack: Stack, session: str) -> Iterator[ClientConnection]:
    """A connection that pushes 16 kHz PCM16."""
    url = f"{stack.url.replace('http', 'ws')}/ws/audio?session={session}"
    with connect(url, additional_headers={"Origin": stack.url}, max_size=None) as line:
        start = {"type": "start", "live": False, "encoding": "pcm16", "sample_rate": 16_000, "channels": 1}
        line.send(json.dumps(start))
        next_of(line, "ready", 5.0)
        yield line


@contextmanager
def player(stack: Stack, session: str) -> Iterator[ClientConnection]:
    """A connection that gets pictures and sound."""
    url = f"{stack.url.replace('http', 'ws')}/ws/player?session={session}"
    with connect(url, additional_headers={"Origin": stack.url}, max_size=None) as line:
        yield line


def next_of(line: ClientConnection, kind: str, timeout_s: float) -> dict[str, Any]:
    """The next event of a kind.

    Raises:
        TimeoutError: none came in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        event: dict[str, Any] = json.loads(line.recv(timeout=max(0.0, deadline - time.monotonic())))
        if event["type"] == kind:
            return event


def total(stack: Stack, name: str, labels: str = "") -> float:
    """What the values of a metric add up to.

    Args:
        stack: whose.
        name: of the metric.
        labels: a regular expression that the labels have to hold.
    """
    text = stack.get("/metrics").decode()
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for told, value in found if re.search(labels, told))
