"""A real Firefox for the tests of the page, driven by WebDriver BiDi (https://w3c.github.io/webdriver-bidi/)."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.rig.stack import free_ports, until

__all__ = ["FirefoxPage", "firefox", "which_firefox"]

START_S: Final = 60.0
ANSWER_S: Final = 30.0
READY: Final = "location.href.startsWith({}) && document.readyState !== 'loading'"
SETTINGS: Final = {
    "media.navigator.permission.disabled": True,  # the microphone is given without a question
    "browser.shell.checkDefaultBrowser": False,
    "browser.aboutwelcome.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.disabledForTesting": True,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "remote.active-protocols": 1,
}


class FirefoxPage:
    """One page."""

    def __init__(self, line: ClientConnection) -> None:
        self._line = line
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        """errors of the page's scripts and policy"""
        self._ask("session.new", capabilities={})
        self._ask("session.subscribe", events=["log.entryAdded"])
        self._context = self._ask("browsingContext.getTree")["contexts"][0]["context"]

    def before(self, script: str) -> None:
        """Run a script, a function, in every page before its own."""
        self._ask("script.addPreloadScript", functionDeclaration=script)

    def goto(self, url: str) -> None:
        """Open an address and wait until its document is there."""
        self._ask("browsingContext.navigate", context=self._context, url=url, wait="none")
        until(lambda: self.evaluate(READY.format(json.dumps(url))), ANSWER_S, f"{url} is read")

    def size(self, width: int, height: int) -> None:
        """Give the page a size, CSS pixels."""
        viewport = {"width": width, "height": height}
        self._ask("browsingContext.setViewport", context=self._context, viewport=viewport)

    def evaluate(self, expression: str) -> Any:
        """What an expression, which may be a promise, comes to; anything that JSON knows."""
        answer = self._ask(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))  # what is undefined has none

    def click(self, selector: str) -> None:
        """Click in the middle of what a selector finds, as a person would."""
        x, y = self.evaluate(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            " it.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = it.getBoundingClientRect();"
            " return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)]; })()"
        )
        steps = [
            {"type": "pointerMove", "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        self._ask("input.performActions", context=self._context, actions=[mouse])

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._line.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._line.recv(timeout=ANSWER_S))
            if told.get("method") == "log.entryAdded" and told["params"]["level"] == "error":
                self.complaints.append(told["params"]["text"])
            if told.get("id") == number:
                assert told["type"] == "success", f"{method}: {told.get('error')}: {told.get('message')}"
                result: dict[str, Any] = told["result"]
                return result


def which_firefox() -> str | None:
    """Where it is; None if there is none."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


@contextmanager
def firefox(environment: Mapping[str, str]) -> Iterator[FirefoxPage]:
    """A page of a running Firefox with a new profile; without one the test is skipped.

    Args:
        environment: more of it, such as where its sound goes.
    """
    found = which_firefox()
    if found is None:
        pytest.skip("Firefox is missing; install it to test the page in it too: apt-get install firefox-esr")
    port = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        profile.mkdir()
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in SETTINGS.items()]
        (profile / "user.js").write_text("\n".join(lines), "utf-8")
        running = subprocess.Popen(
            [found, "--headless", "--no-remote", f"--remote-debugging-port={port}", "--profile", str(profile)],
            env=dict(os.environ) | {"MOZ_CRASHREPORTER_DISABLE": "1"} | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with until(lambda: _connected(port), START_S, "Firefox answers") as line:
                yield FirefoxPage(line)
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(5)


def _connected(port: int) -> ClientConnection | None:
    try:
        return connect(f"ws://127.0.0.1:{port}/session", max_size=None)
    except OSError:
        return None
