"""The page in a real Firefox with a microphone and a loudspeaker: a second engine for the player and the microphone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.budgets import (
    BROWSER_SKEW_MS,
    FIREFOX_HEARD_DB,
    FIREFOX_LEAST_FPS,
    FIREFOX_LISTEN_S,
    FIREFOX_WEBRTC_FRAMES,
    MOUTH_CHANGE,
    PAGE_WAIT_S,
    RECOVERY_S,
    WHEP_WAIT_S,
)
from tests.pulse import Pulse, pulse
from tests.rig.firefox import FirefoxPage, firefox
from tests.rig.stack import Stack, until
from tests.rig.voices import RATE_HZ, paused_speech
from tests.web.test_microphone_page import OPEN, SPY
from tests.web.test_whep import PLAY, TOLD

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pulse"]

# What may stop Firefox for good must not be asked.
ASKED = """
  for (const name of ["outputLatency", "getOutputTimestamp"]) {
    Object.defineProperty(AudioContext.prototype, name, { get() { window.asked = name; } });
  }
"""

LOWER_FACE = """(() => {
  const { width, height } = mouthpiecePlayer.canvas;
  const { data } = mouthpiecePlayer.context2d.getImageData(0.4 * width, 0.55 * height, 0.2 * width, 0.15 * height);
  return [...data].filter((_, n) => n % 16 === 1);
})()"""


@pytest.fixture
def page(pulse: Pulse) -> Iterator[FirefoxPage]:
    """A page that hears the virtual microphone, and plays into a virtual card."""
    pulse.add_card("card")
    pulse.offer()
    with firefox(pulse.environment) as running:
        running.size(1280, 860)
        running.before(f"() => {{ if (navigator.mediaDevices) {{ {SPY} {ASKED} }} }}")
        yield running


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services, not talking; the face does nothing of its own accord."""
    settings = {"MOUTHPIECE_AUTOSTART": "no", "MOUTHPIECE_LIFE": "no"}
    with Stack(tmp_path_factory.mktemp("quiet") / "var", settings) as running:
        yield running


def stats(page: FirefoxPage) -> dict[str, Any]:
    """What the player counts."""
    counted: dict[str, Any] = page.evaluate("mouthpiecePlayer.stats()")
    return counted


def other(page: FirefoxPage, before: list[int]) -> float:
    """How far the lower face is from what it was, mean of the levels."""
    now: list[int] = page.evaluate(LOWER_FACE)
    return sum(abs(a - b) for a, b in zip(now, before, strict=True)) / len(now)


def test_in_firefox_a_person_talks_and_sees_and_hears_the_face(quiet: Stack, page: FirefoxPage, pulse: Pulse) -> None:
    page.goto(quiet.url)
    until(lambda: page.evaluate("window.mouthpiecePlayer?.hasPicture"), PAGE_WAIT_S, "the picture")
    width = quiet.status()["width"]
    until(lambda: page.evaluate("mouthpiecePlayer.canvas.width") == width, PAGE_WAIT_S, "the sharp picture")
    rest = page.evaluate(LOWER_FACE)
    page.click("#sources label:has(input[value=browser])")
    page.click("#start")
    voice = pulse.play(paused_speech().tobytes(), RATE_HZ)
    try:
        until(lambda: (quiet.status()["level_db"] or -100) > FIREFOX_HEARD_DB, PAGE_WAIT_S, "the microphone is heard")
        assert page.evaluate("document.getElementById('mic-text').textContent") == "You are heard."
        until(lambda: other(page, rest) > MOUTH_CHANGE, RECOVERY_S, "the mouth moves")
        page.click("#sound-button")
        until(lambda: stats(page)["skewMs"] is not None, RECOVERY_S, "it is heard")
        began_s, before = time.monotonic(), stats(page)["drawn"]
        until(lambda: time.monotonic() - began_s > FIREFOX_LISTEN_S, 2 * FIREFOX_LISTEN_S, "it plays for a while")
        seen = stats(page)
        assert (seen["drawn"] - before) / (time.monotonic() - began_s) > FIREFOX_LEAST_FPS
        assert BROWSER_SKEW_MS[0] < seen["skewMs"] < BROWSER_SKEW_MS[1]
        assert page.evaluate("window.asked") is None
        assert page.evaluate(OPEN) == 1
        page.click("#stop")
        until(lambda: not quiet.status()["running"], RECOVERY_S, "it stops")
        until(lambda: page.evaluate(OPEN) == 0, RECOVERY_S, "the microphone is let go")
    finally:
        voice.terminate()
        voice.wait()
    assert page.complaints == []


def test_firefox_plays_webrtc(stack: Stack, page: FirefoxPage) -> None:
    page.goto(stack.url)
    page.click("h1")  # a browser lets nothing be heard before a person has done something
    assert page.evaluate(f"({PLAY})()") == 201
    page.evaluate("void (video.muted = false)")

    def plays() -> bool:
        told = page.evaluate(f"({TOLD})()")
        seen, heard = told.get("video", {}), told.get("audio", {})
        return bool(
            seen.get("framesDecoded", 0) > FIREFOX_WEBRTC_FRAMES
            and told["width"]
            and heard.get("packetsReceived", 0) > FIREFOX_WEBRTC_FRAMES
        )

    until(plays, WHEP_WAIT_S, "picture and sound")
    page.evaluate("fetch(place, { method: 'DELETE' }).then(() => pc.close())")
    assert page.complaints == []
