"""The page's player in a real browser: sound and picture in step, after a stall, a nap, a cut, without sound."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from tests.budgets import (
    CUT_S,
    CUT_SAMPLE,
    PLAYER_AGAIN_MS,
    PLAYER_FLASHES,
    PLAYER_OWN_DELAY_MS,
    PLAYER_SKEW_MS,
    PLAYER_STALL_S,
    PLAYER_WAIT_S,
)
from tests.rig.chromium import chromium
from tests.web.conftest import until
from tests.web.standin import PERIOD_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

STATS = "JSON.stringify(window.mouthpiecePlayer ? mouthpiecePlayer.stats() : {})"
# Looks at the canvas at each turn of the screen, and at the sound that the player gives out on the audio thread; both
# in the clock of the page. The policy of the page forbids this; the tests' browser is told to let it be.
OBSERVER = """async () => {
  const { context, output, context2d } = mouthpiecePlayer;
  const seen = (window.seen = { beeps: [], flashes: [], loud: [] });
  const source = `registerProcessor("observer", class extends AudioWorkletProcessor {
    constructor() { super(); this.calm = sampleRate; }
    process([[sound]]) {
      let peak = 0;
      (sound || []).forEach((value, n) => {
        peak = Math.max(peak, Math.abs(value));
        if (Math.abs(value) < 0.2) this.calm += 1;
        else {
          if (this.calm > 0.3 * sampleRate) this.port.postMessage({ at: currentTime + n / sampleRate });
          this.calm = 0;
        }
      });
      if (peak > LIMIT) this.port.postMessage({ loud: currentTime });
      return true;
    }
  })`;
  await context.audioWorklet.addModule(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const node = new AudioWorkletNode(context, "observer", { numberOfOutputs: 0 });
  node.port.onmessage = ({ data }) => {
    if (data.loud) { seen.loud = [data.loud]; return; }
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    seen.beeps.push(performanceTime + (data.at - contextTime) * 1000);
  };
  output.connect(node);
  let was = false;
  const look = () => {
    const { data } = context2d.getImageData(2, 2, 1, 1);
    const white = data[0] > 240 && data[1] > 240 && data[2] > 240;
    if (white && !was) seen.flashes.push(performance.now());
    was = white;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}""".replace("LIMIT", str(CUT_SAMPLE))


class Player:
    """The bare page of the session `default`, and what its player says of itself."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(server.url + "view/default", wait_until="domcontentloaded")

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = json.loads(self.page.evaluate(STATS))
        return stats

    def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until what the player says fits."""
        last: dict[str, Any] = {}

        def fits() -> bool:
            nonlocal last
            last = self.stats()
            return bool(last) and what(last)

        assert until(fits, PLAYER_WAIT_S), last
        return last

    def plays(self) -> dict[str, Any]:
        return self.until(lambda s: s["sounding"] and s["sample"] is not None and s["drawn"] > 0)

    def skews_ms(self, count: int) -> list[float]:
        """Picture after sound, as seen and heard from outside the player, of so many flashes."""
        self.page.evaluate(OBSERVER)
        assert until(
            lambda: self.page.evaluate("Math.min(seen.beeps.length, seen.flashes.length)") >= count, 4 * PLAYER_WAIT_S
        )
        seen = self.page.evaluate("seen")
        beeps = np.array(seen["beeps"])
        off = [flash - beeps[np.argmin(np.abs(beeps - flash))] for flash in seen["flashes"]]
        return [float(ms) for ms in off if abs(ms) < 1000]  # at the edges one of the two may be missing


@pytest.fixture(scope="module")
def loud_browser() -> Iterator[Any]:
    """A browser that plays sound unasked, as that inside OBS does."""
    with chromium("--autoplay-policy=no-user-gesture-required") as running:
        yield running


@pytest.fixture
def open_player(loud_browser: Any) -> Iterator[Callable[[Server], Player]]:
    context = loud_browser.new_context(viewport={"width": 480, "height": 480}, bypass_csp=True)
    yield lambda server: Player(context.new_page(), server)
    context.close()


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Have the server, which is two processes, stand still."""
    parent = psutil.Process(server.process.pid)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def test_lips_follow_the_sound_heard(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    with serve("run=1", "clap=1") as server:
        player = open_player(server)
        player.plays()
        skews = player.skews_ms(PLAYER_FLASHES)
        least, most = PLAYER_SKEW_MS
        assert len(skews) >= PLAYER_FLASHES - 1
        assert all(least < ms < most for ms in skews), skews
        stats = player.until(lambda s: s["pictureWaitMs"] is not None and s["pictureWaitMs"] < PLAYER_OWN_DELAY_MS)
        assert stats["underruns"] == 0
        assert until(lambda: server.told()["skews"], PLAYER_WAIT_S)  # and it tells the server
        assert all(abs(seconds) * 1000 < most for seconds in server.told()["skews"][1:])
        assert player.complaints == []


def test_goes_on_after_the_server_stood_still(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    with serve("run=1", "clap=1") as server:
        player = open_player(server)
        before = player.plays()
        with stopped(server):
            player.page.wait_for_timeout(PLAYER_STALL_S * 1000)
            still = player.stats()
        assert still["sample"] is None  # silent, and not stuck in a loop
        after = player.until(lambda s: s["sample"] is not None and s["sample"] > before["sample"] + 16_000)
        assert after["epoch"] == before["epoch"]
        player.until(lambda s: s["sample"] is not None and s["bufferedMs"] < PLAYER_AGAIN_MS)
        assert player.stats()["underruns"] == 1
        skews = player.skews_ms(2)
        assert all(PLAYER_SKEW_MS[0] < ms < PLAYER_SKEW_MS[1] for ms in skews), skews


def test_a_tab_that_slept_is_at_the_newest_moment_again(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    with serve("run=1", "clap=1") as server:
        player = open_player(server)
        player.plays()
        # The main thread does nothing at all, as in a tab that the browser froze.
        player.page.evaluate("() => { const end = performance.now() + 3000; while (performance.now() < end); }")
        player.until(lambda s: s["sample"] is not None and s["bufferedMs"] < PLAYER_AGAIN_MS and s["jumps"] > 0)
        skews = player.skews_ms(2)
        assert all(PLAYER_SKEW_MS[0] < ms < PLAYER_SKEW_MS[1] for ms in skews), skews


def test_a_timer_that_rests_closes_no_line_that_is_well(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    # Browsers run the timers of a hidden tab once a minute; its messages come all the same.
    rests = """([hidden, silentS]) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        mouthpiecePlayer.lastControlS -= 60;
        mouthpiecePlayer.lastMessageS = performance.now() / 1000 - silentS;
        mouthpiecePlayer.control();
        return mouthpiecePlayer.stats().reconnects;
    }"""
    with serve("run=1") as server:
        player = open_player(server)
        player.plays()
        assert player.page.evaluate(rests, [True, 0]) == 0
        assert player.page.evaluate(rests, [True, 10.5]) == 0
        assert player.page.evaluate(rests, [False, 0]) == 0
        assert player.page.evaluate(rests, [False, 10.5]) == 1  # the machine slept
        player.until(lambda s: s["connected"])


def test_a_cut_is_silent_at_once_and_tells_what_was_heard(
    serve: Serve, open_player: Callable[[Server], Player]
) -> None:
    with serve("run=1") as server:
        player = open_player(server)
        before = player.plays()
        player.page.evaluate(OBSERVER)
        assert until(lambda: player.page.evaluate("seen.loud.length"), PLAYER_WAIT_S)
        player.page.evaluate(
            """epoch => mouthpiecePlayer.addEventListener("state", () => {
                if (mouthpiecePlayer.epoch > epoch) seen.cut ??= mouthpiecePlayer.context.currentTime;
            })""",
            before["epoch"],
        )
        assert server.post("requests", data={"stop": "Stop"}).ok
        after = player.until(lambda s: s["epoch"] > before["epoch"])
        assert after["sample"] is None
        assert after["bufferedMs"] == 0
        player.until(lambda s: s["drawnEpoch"] == s["epoch"])  # the closed mouth is seen
        player.page.wait_for_timeout(20 * PERIOD_S * 1000)
        assert player.page.evaluate("seen.loud[0] - seen.cut") < CUT_S
        assert ["heard", before["epoch"]] in [[name, what[0]] for name, what in server.calls() if name == "heard"]


def test_without_sound_frames_are_drawn_as_they_come(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    with serve("run=1") as server:
        player = open_player(server)
        player.plays()
        player.page.evaluate("mouthpiecePlayer.setSound(false)")
        first = player.until(lambda s: not s["sounding"])
        player.until(lambda s: s["drawn"] > first["drawn"] + 40 and s["sample"] is None)
        player.until(lambda s: s["pictureWaitMs"] is not None and s["pictureWaitMs"] < 1000 * PERIOD_S)
        player.page.evaluate("mouthpiecePlayer.setSound(true)")
        again = player.plays()
        assert again["drawnSample"] > first["drawnSample"]


def test_plays_where_there_is_no_audio_thread(serve: Serve, loud_browser: Any) -> None:
    """As on a page that came over plain HTTP from another machine."""
    context = loud_browser.new_context(viewport={"width": 480, "height": 480})
    context.add_init_script(
        "Object.defineProperty(BaseAudioContext.prototype, 'audioWorklet', { get: () => undefined })"
    )
    with serve("run=1") as server:
        player = Player(context.new_page(), server)
        before = player.plays()
        least, most = PLAYER_SKEW_MS
        player.until(lambda s: s["skewMs"] is not None and least < s["skewMs"] < most)
        player.until(lambda s: s["sample"] is not None and s["sample"] > before["sample"] + 48_000)
        assert player.complaints == []
    context.close()


def test_comes_back_after_the_server_was_gone(serve: Serve, open_player: Callable[[Server], Player]) -> None:
    with serve("run=1") as server:
        player = open_player(server)
        before = player.plays()
        port = int(server.url.rstrip("/").rsplit(":", 1)[1])
        assert server.stop() == 0
        player.until(lambda s: not s["connected"])
    with serve("run=1", port=port) as server:
        player.until(lambda s: s["connected"] and s["epoch"] != before["epoch"] and s["sample"] is not None)
