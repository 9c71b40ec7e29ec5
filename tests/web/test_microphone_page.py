"""The microphone of the one who looks at the page: a real Chromium with a false one that plays a file."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.budgets import MIC_PIECES, MIC_RATE_SHARE, PLAYER_WAIT_S
from tests.rig.chromium import chromium
from tests.web.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

# Remembers what the page got from the browser, so that a test can see whether it is let go.
SPY = """
  window.streams = [];
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    window.wanted = wanted;
    const stream = await ask(wanted);
    window.streams.push(stream);
    return stream;
  };
"""
OPEN = "streams.flatMap((stream) => stream.getTracks()).filter((track) => track.readyState === 'live').length"


@pytest.fixture(scope="module")
def talking_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser whose microphone plays a tone that swells, over and over, and which allows the page to hear it."""
    path: Path = tmp_path_factory.mktemp("voice") / "voice.wav"
    at = np.arange(48_000 * 4) / 48_000
    tone = 9000 * np.sin(2 * np.pi * 300 * at) * np.abs(np.sin(2 * np.pi * at))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes(tone.astype("<i2").tobytes())
    with chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    ) as running:
        yield running


@pytest.fixture
def talking_page(talking_browser: Any) -> Iterator[Any]:
    context = talking_browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.add_init_script(SPY)
    yield page
    context.close()


def pieces(server: Server) -> list[list[int]]:
    """Samples, loudest sample and time of arrival of all that was pushed."""
    return [what for name, what in server.calls() if name == "put"]


def talk(page: Any, server: Server, path: str = "") -> None:
    page.goto(server.url + path, wait_until="domcontentloaded")
    page.get_by_role("radio", name="My microphone").check()
    page.get_by_role("button", name="Start").click()
    page.get_by_text("You are heard.").wait_for()


def test_what_is_said_reaches_the_server(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        assert ["push", True] in server.calls()
        assert until(lambda: len(pieces(server)) > MIC_PIECES, PLAYER_WAIT_S)
        told = pieces(server)[10:]
        took_s = (told[-1][2] - told[0][2]) / 1e9
        assert sum(piece[0] for piece in told[1:]) / took_s == pytest.approx(16_000, rel=MIC_RATE_SHARE)
        assert max(piece[1] for piece in told) > 1000
        wanted = talking_page.evaluate("wanted.audio")
        assert wanted["autoGainControl"]
        assert not wanted["noiseSuppression"]
        # Nobody wants to hear themselves late; who does can switch it on.
        assert not talking_page.evaluate("mouthpiecePlayer.sounding")
        talking_page.get_by_role("button", name="Sound on").wait_for()
        meter = talking_page.get_by_role("meter", name="Level")
        assert until(lambda: int(meter.get_attribute("aria-valuenow")) > -40, PLAYER_WAIT_S)


def test_stop_lets_the_microphone_go(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        assert talking_page.evaluate(OPEN) == 1
        talking_page.get_by_role("button", name="Stop").click()
        assert until(lambda: talking_page.evaluate(OPEN) == 0, PLAYER_WAIT_S)
        assert until(lambda: ["stop", None] in server.calls(), PLAYER_WAIT_S)
        talk(talking_page, server)  # and it is there again for the next time
        talking_page.get_by_role("radio", name="Demo speech").check()
        assert until(lambda: talking_page.evaluate(OPEN) == 0, PLAYER_WAIT_S)


def test_a_lost_line_is_made_again(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        assert server.stop() == 0
        talking_page.get_by_text("The line to the server was lost").wait_for()
    with serve(port=port) as server:
        talking_page.get_by_text("You are heard.").wait_for(timeout=PLAYER_WAIT_S * 1000)
        assert until(lambda: pieces(server), PLAYER_WAIT_S)
        assert talking_page.evaluate("streams.length") == 1  # the person is not asked twice


def test_where_the_session_is_gone_the_microphone_is_let_go(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        assert server.post("api/sessions", json={"name": "ada"}).ok
        talk(talking_page, server, "?session=ada")
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        assert server.stop() == 0
        talking_page.get_by_text("The line to the server was lost").wait_for()
    with serve(port=port) as server:  # which knows nothing of the session
        talking_page.locator("#mic-text", has_text="There is no session “ada” here.").wait_for()
        talking_page.locator("#veil", has_text="There is no session “ada” here.").wait_for()
        assert talking_page.evaluate(OPEN) == 0
        assert server.post("api/sessions", json={"name": "ada"}).ok
        talking_page.locator("#pill", has_text="Paused").wait_for()
        assert talking_page.locator("#veil").is_hidden()


def test_a_line_that_nobody_hears_is_made_again(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        assert server.post("requests", data={"stop": "Stop"}).ok  # the stand-in tells nobody that it listens no more
        assert until(lambda: server.calls().count(["push", True]) == 2, PLAYER_WAIT_S)
        talking_page.get_by_text("You are heard.").wait_for()
        so_far = len(pieces(server))
        assert until(lambda: len(pieces(server)) > so_far, PLAYER_WAIT_S)
        assert talking_page.evaluate("streams.length") == 1  # the person is not asked twice


def test_a_microphone_that_gives_nothing_at_all_is_said(serve: Serve, talking_page: Any) -> None:
    talking_page.add_init_script(
        """window.AudioContext = class extends AudioContext {
          constructor(options) { super(options); window.heard = this; }
        };"""
    )
    complaints: list[str] = []
    talking_page.on("pageerror", lambda error: complaints.append(str(error)))
    with serve() as server:
        talk(talking_page, server)
        # As on a phone while a call comes in.
        talking_page.evaluate(
            """async () => {
              Object.defineProperty(heard, "state", { configurable: true, get: () => "interrupted" });
              heard.resume = async () => { throw new DOMException("", "InvalidStateError"); };
              await heard.suspend();
            }"""
        )
        talking_page.get_by_text("The microphone gives no sound.").wait_for()
        talking_page.evaluate("() => { delete heard.state; delete heard.resume; return heard.resume(); }")
        talking_page.get_by_text("You are heard.").wait_for()
        assert complaints == []


def test_unplugged_is_said(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        talking_page.evaluate("streams[0].getTracks()[0].dispatchEvent(new Event('ended'))")
        talking_page.get_by_text("The microphone is gone").wait_for()
        assert talking_page.evaluate(OPEN) == 0


def test_whoever_talks_next_takes_over(serve: Serve, talking_page: Any) -> None:
    with serve() as server:
        talk(talking_page, server)
        other = talking_page.context.new_page()
        other.add_init_script(SPY)
        other.goto(server.url, wait_until="domcontentloaded")
        other.get_by_text("Somebody talks from another page.").wait_for()
        other.get_by_role("button", name="Talk from here").click()
        other.get_by_text("You are heard.").wait_for()
        talking_page.get_by_text("Another connection speaks for this session now.").wait_for()
        assert until(lambda: talking_page.evaluate(OPEN) == 0, PLAYER_WAIT_S)
        other.get_by_role("button", name="Stop").click()
        talking_page.get_by_text("Press Start and talk.").wait_for()  # nobody speaks for it any more


def test_arrow_keys_pass_over_a_voice_without_using_it(serve: Serve, talking_page: Any) -> None:
    with serve("run=1") as server:
        talking_page.goto(server.url, wait_until="domcontentloaded")
        talking_page.locator("#pill", has_text="Live").wait_for()
        talking_page.focus("input[value=demo]")
        for key in ("ArrowUp", "ArrowUp", "ArrowDown", "ArrowUp"):
            talking_page.keyboard.press(key)
        assert talking_page.evaluate("document.activeElement.value") == "browser"
        talking_page.get_by_role("button", name="Talk from here").wait_for()
        assert talking_page.evaluate("streams.length") == 0
        talking_page.keyboard.press("ArrowDown")
        talking_page.keyboard.press("ArrowDown")
        assert until(lambda: ["source", "demo"] in server.calls(), PLAYER_WAIT_S)  # where the keys stay
        assert ["source", "mic"] not in server.calls()
        talking_page.get_by_role("radio", name="My microphone").check()  # by a click it talks at once
        talking_page.get_by_text("You are heard.").wait_for()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NotAllowedError", "Allow it"),
        ("NotFoundError", "No microphone was found"),
        ("NotReadableError", "another program"),
    ],
)
def test_no_microphone_is_said_plainly(serve: Serve, talking_page: Any, error: str, words: str) -> None:
    talking_page.add_init_script(
        f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}'); }};"
    )
    with serve() as server:
        talking_page.goto(server.url, wait_until="domcontentloaded")
        talking_page.get_by_role("radio", name="My microphone").check()
        talking_page.get_by_role("button", name="Start").click()
        talking_page.get_by_text(words).wait_for()
        talking_page.get_by_role("button", name="Start").wait_for()
        assert pieces(server) == []


def test_a_microphone_refused_while_another_voice_talks_is_no_dead_end(serve: Serve, talking_page: Any) -> None:
    talking_page.add_init_script(
        """const ask = navigator.mediaDevices.getUserMedia;
        navigator.mediaDevices.getUserMedia = async (wanted) => {
          if (!window.allowed) throw new DOMException("", "NotAllowedError");
          return ask(wanted);
        };"""
    )
    with serve("run=1") as server:
        talking_page.goto(server.url, wait_until="domcontentloaded")
        talking_page.get_by_role("radio", name="My microphone").check()
        talking_page.get_by_text("then try again").wait_for()
        # The demo talks on, and is heard.
        assert until(lambda: talking_page.evaluate("mouthpiecePlayer.sounding"), PLAYER_WAIT_S)
        talking_page.evaluate("window.allowed = true")
        talking_page.get_by_role("button", name="Talk from here").click()
        talking_page.get_by_text("You are heard.").wait_for()
        assert until(lambda: not talking_page.evaluate("mouthpiecePlayer.sounding"), PLAYER_WAIT_S)


def test_the_next_try_does_without_a_microphone_that_is_gone(serve: Serve, talking_page: Any) -> None:
    talking_page.add_init_script(
        """const ask = navigator.mediaDevices.getUserMedia;
        navigator.mediaDevices.getUserMedia = async (wanted) => {
          const { exact } = wanted.audio.deviceId ?? {};
          if (exact && exact === window.gone) throw new DOMException("", "OverconstrainedError");
          return ask(wanted);
        };"""
    )
    with serve() as server:
        talk(talking_page, server)
        talking_page.get_by_role("button", name="Stop").click()
        choose = talking_page.get_by_label("Microphone", exact=True)
        first, *_, last = choose.evaluate("select => [...select.options].map((option) => option.value)")
        talking_page.evaluate("id => { window.gone = id; }", last)
        choose.select_option(last)
        talking_page.get_by_role("button", name="Start").click()
        talking_page.get_by_text("That microphone is gone.").wait_for()
        assert until(lambda: choose.input_value() == first, PLAYER_WAIT_S)
        talking_page.get_by_role("button", name="Start").click()
        talking_page.get_by_text("You are heard.").wait_for()
        assert talking_page.evaluate("wanted.audio.deviceId") is None


def test_over_plain_http_from_elsewhere_the_page_says_what_to_do(serve: Serve, talking_page: Any) -> None:
    talking_page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    with serve() as server:
        talking_page.goto(server.url, wait_until="domcontentloaded")
        why = talking_page.get_by_text("MOUTHPIECE_TLS_CERT")
        why.wait_for()
        assert "HTTPS" in why.inner_text()
        assert talking_page.get_by_role("radio", name="My microphone").is_disabled()
