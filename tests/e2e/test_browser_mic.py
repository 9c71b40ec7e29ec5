"""A person talks at the page: real Chromium with a false microphone that plays real speech, real services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.budgets import (
    BROWSER_LAG_MS,
    BROWSER_LISTEN_S,
    BROWSER_MIC_CORRELATION,
    BROWSER_SKEW_MS,
    PAGE_WAIT_S,
    RECOVERY_S,
)
from tests.e2e.test_page import mouth_of
from tests.rig.chromium import chromium
from tests.rig.stack import Stack, until
from tests.rig.voices import paused_speech, write_wav
from tests.web.test_microphone_page import SPY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEP_MS = 5.0
LONGEST_MS = 800.0
"""lags that are looked at"""
# Keeps what the mouth looks like at rest.
REST = """([x, y, width, height]) => {
  window.rest = mouthpiecePlayer.context2d.getImageData(x, y, width, height).data;
}"""
# Notes when the microphone is how loud, and at each new picture on the canvas how far the mouth is from rest.
OBSERVER = """async ([x, y, width, height]) => {
  const seen = (window.seen = { voice: [], mouth: [] });
  const context = new AudioContext();
  const source = `registerProcessor("observer", class extends AudioWorkletProcessor {
    process([[sound]]) {
      this.port.postMessage(Math.sqrt((sound || []).reduce((sum, value) => sum + value * value, 0) / 128));
      return true;
    }
  })`;
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const node = new AudioWorkletNode(context, "observer", { numberOfOutputs: 0 });
  node.port.onmessage = ({ data }) => seen.voice.push([performance.now(), data]);
  context.createMediaStreamSource(streams[0]).connect(node);
  const player = mouthpiecePlayer;
  let order = -1;
  const look = () => {
    if (player.drawnOrder !== order) {
      order = player.drawnOrder;
      const { data } = player.context2d.getImageData(x, y, width, height);
      let sum = 0;
      for (let n = 1; n < data.length; n += 4) sum += Math.abs(data[n] - rest[n]);
      seen.mouth.push([performance.now(), sum / (width * height)]);
    }
    requestAnimationFrame(look);
  };
  look();
}"""


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services, not talking; the face does nothing of its own accord."""
    settings = {"MOUTHPIECE_AUTOSTART": "no", "MOUTHPIECE_LIFE": "no"}
    with Stack(tmp_path_factory.mktemp("quiet") / "var", settings) as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    wav = write_wav(tmp_path / "voice.wav", paused_speech())
    with chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    ) as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 860}, bypass_csp=True)
        page = context.new_page()
        page.add_init_script(SPY)
        yield page
        context.close()


def follow(voice: npt.NDArray[np.float64], mouth: npt.NDArray[np.float64]) -> tuple[float, float]:
    """How well the mouth follows the voice, and how late.

    Args:
        voice: when, ms, and how loud, (n, 2).
        mouth: when drawn, ms, and how far from rest, (m, 2).

    Returns:
        the largest correlation with the logarithm of the loudness, and its lag, ms.
    """
    at = np.arange(voice[0, 0] + LONGEST_MS, min(voice[-1, 0], mouth[-1, 0]) - LONGEST_MS, STEP_MS)
    smooth = np.convolve(voice[:, 1], np.ones(8) / 8, "same")
    loud = np.log10(np.interp(at, voice[:, 0], smooth) + 1e-3)
    lags = range(int(LONGEST_MS / STEP_MS))
    shown = [mouth[np.searchsorted(mouth[:, 0], at + lag * STEP_MS, "right") - 1, 1] for lag in lags]
    fits = [float(np.corrcoef(loud, opening)[0, 1]) for opening in shown]
    best = int(np.argmax(fits))
    return fits[best], best * STEP_MS


def test_the_lips_follow_the_browsers_microphone(
    quiet: Stack, page: Any, record_property: Callable[[str, object], None]
) -> None:
    page.goto(quiet.url, wait_until="domcontentloaded")
    until(lambda: page.evaluate("mouthpiecePlayer.hasPicture"), PAGE_WAIT_S, "the picture")
    picture = cv2.imdecode(np.frombuffer(quiet.get("/snapshot.jpg"), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    rows, columns = mouth_of(picture.astype(np.uint8))
    part = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
    # What comes first may be small and blurred: the whole picture comes within a second.
    until(lambda: page.evaluate("mouthpiecePlayer.canvas.width") == picture.shape[1], PAGE_WAIT_S, "the sharp picture")
    page.evaluate(REST, part)
    page.get_by_role("radio", name="My microphone").check()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("You are heard.").wait_for()
    until(lambda: quiet.status()["latency_ms"] is not None, RECOVERY_S, "the lips move")
    page.evaluate(OBSERVER, part)
    page.wait_for_timeout(1000 * BROWSER_LISTEN_S)
    seen = page.evaluate("seen")
    fit, lag_ms = follow(np.array(seen["voice"]), np.array(seen["mouth"]))
    record_property("browser_mic_r", round(fit, 2))
    record_property("browser_mic_to_screen_ms", lag_ms)
    record_property("of_that_streamer_ms", quiet.status()["latency_ms"])
    assert fit > BROWSER_MIC_CORRELATION
    assert lag_ms < BROWSER_LAG_MS

    page.get_by_role("button", name="Sound on").click()
    until(lambda: page.evaluate("mouthpiecePlayer.stats().skewMs") is not None, RECOVERY_S, "it is heard")
    page.wait_for_timeout(3000)
    stats = page.evaluate("mouthpiecePlayer.stats()")
    assert BROWSER_SKEW_MS[0] < stats["skewMs"] < BROWSER_SKEW_MS[1], stats

    page.get_by_role("button", name="Stop", exact=True).click()
    until(lambda: not quiet.status()["running"], RECOVERY_S, "it stops")
    assert page.evaluate("streams.every((stream) => stream.getTracks().every((track) => track.readyState === 'ended'))")
