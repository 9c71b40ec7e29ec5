"""The real server over a stand-in, started for one test and gone after it."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.budgets import WEB_START_S, WEB_STOP_S
from tests.rig import stack
from tests.web.watch import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """A running stand-in."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=5, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        options.setdefault("headers", {}).setdefault("Accept", "application/json")
        return requests.post(self.url + path, timeout=10, allow_redirects=False, **options)

    def told(self) -> dict[str, Any]:
        """What the stand-in remembers: calls, encodes, viewers."""
        answer: dict[str, Any] = self.get("metrics").json()
        return answer

    def calls(self) -> list[list[Any]]:
        calls: list[list[Any]] = self.told()["calls"]
        return calls

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(WEB_STOP_S + 5)


def until(what: Callable[[], Any], limit_s: float) -> Any:
    """Ask until the answer is true or the time is up; the answer, or False."""
    try:
        return stack.until(what, limit_s, "what the page's test waits for")
    except TimeoutError:
        return False


@contextmanager
def serving(log: Path, *options: str, port: int = 0) -> Iterator[Server]:
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.web.standin", str(port), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert process.stdout
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(WEB_START_S), log.read_text()
        word, _, url = process.stdout.readline().strip().partition(" ")
        assert word == "ready", log.read_text()
        server = Server(url, process, log)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(WEB_STOP_S + 5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
                raise
        process.stdout.close()


@pytest.fixture(autouse=True)
def _close_streams() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., AbstractContextManager[Server]]:
    """Start a server with options of its own."""
    return lambda *options, port=0: serving(tmp_path / "server.log", *options, port=port)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module that leave it as it was."""
    with serving(tmp_path_factory.mktemp("web") / "server.log") as running:
        yield running
