"""A real browser, seen and heard from outside: how far its lips are from its sound, and from the microphone.

Chromium or Firefox plays into a virtual sound card and hears a virtual microphone, both of a PulseAudio of our own,
whose clock may run fast or slow. What leaves the card is recorded and found again in the session's sound, which a
client of `/ws/player` took down with its media time; what stands on the canvas is found again among that client's
pictures. So the media time that was heard and the one that was seen are known at each moment, without a word of the
page's player.
"""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from playwright.sync_api import sync_playwright
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.pulse import Pulse
from tests.rig.api import player
from tests.rig.ear import Ear
from tests.rig.firefox import firefox, which_firefox
from tests.rig.stack import ROOT, Stack, until
from tests.rig.voices import RATE_HZ, paused_speech

__all__ = ["Recorder", "Taken", "distances", "line_of", "origin_of", "places", "seen_and_heard", "take"]

SIDE: Final = 48
CROP: Final = (0.3, 0.55, 0.4, 0.35)
"""left, top, width, height of what is looked at of the picture, shares: the mouth and the chin"""
WINDOW_S: Final = 0.4
STEP_S: Final = 0.2
SEARCH_S: Final = 0.9
"""how far from where it should be a window is looked for: less than the speech takes to say the same again"""
BEHIND_S: Final = 0.1
"""how far pictures are behind their sound, about"""
LOUD: Final = 300.0
"""RMS, of 32768, from which a window is looked for"""
ALIKE: Final = 0.8
"""least correlation of a window that was found"""
NEAR_S: Final = 0.3
"""a picture counts if the sound was found so near to it"""
AGREE_S: Final = 2.0
"""shots of so long have one lag, about"""
AGREED: Final = 0.8
"""how far the best lag has to be below the usual one, as a share of what shots and frames differ by"""
AROUND_S: Final = 0.13
"""how far from that lag a shot's own frame is looked for"""
CLEARLY: Final = 0.9
"""how much nearer its frame has to be than the next best"""
HEAD: Final = struct.Struct("<B3xIQQ")
SETTLE_S: Final = 10.0

LOOK: Final = """(() => {
  const side = SIDE, [left, top, width, height] = CROP;
  const small = new OffscreenCanvas(side, side);
  const context = small.getContext("2d", { willReadFrequently: true });
  let last = "";
  window.seenShots = [];
  const look = () => {
    const canvas = document.getElementById("canvas");
    if (canvas && canvas.width && !canvas.hidden) {
      context.drawImage(canvas, left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height,
        0, 0, side, side);
      const { data } = context.getImageData(0, 0, side, side);
      let grey = "";
      for (let at = 0; at < data.length; at += 4) {
        grey += String.fromCharCode((data[at] * 77 + data[at + 1] * 151 + data[at + 2] * 28) >> 8);
      }
      if (grey !== last) {
        last = grey;
        window.seenShots.push([performance.timeOrigin + performance.now(), btoa(grey)]);
      }
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()""".replace("SIDE", str(SIDE)).replace("CROP", str(list(CROP)))


class Page(Protocol):
    """A page of a browser."""

    def evaluate(self, expression: str) -> Any:
        """What an expression comes to."""
        ...

    def click(self, selector: str) -> None:
        """Click on what a selector finds."""
        ...


class Recorder(Protocol):
    """What has recorded sound, and knows when."""

    def timed(self) -> list[tuple[float, int, npt.NDArray[np.int16]]]:
        """All pieces: when each was here, monotonic s; number of its first sample; samples."""
        ...

    def time_of(self, sample: int) -> float:
        """When a sample was here, monotonic s."""
        ...


@dataclass
class Taken:
    """What a client of the session took down."""

    sound: dict[int, list[tuple[int, npt.NDArray[np.int16]]]] = field(default_factory=dict)
    """epoch -> first sample, PCM"""
    frames: list[tuple[float, int, int, npt.NDArray[np.float32]]] = field(default_factory=list)
    """wall time of arrival, epoch, media time, the part that is looked at, (SIDE * SIDE,)"""


def seen_and_heard(
    seconds: float, drift_ppm: int, browser: Literal["Chromium", "Firefox"] = "Chromium"
) -> Iterator[tuple[str, str]]:
    """Talk into the browser's microphone with its sound on, and look and listen.

    Args:
        seconds: for how long.
        drift_ppm: by how much the sound card runs fast.
        browser: which one.
    """
    what = f"{browser}'s player over {seconds / 60:.0f} min, sound card {drift_ppm:+d} ppm"
    if browser == "Firefox" and which_firefox() is None:
        yield what, "Firefox is missing (apt-get install firefox-esr)"
        return
    shots, taken, heard, spoken = _record(seconds, drift_ppm, PAGES[browser])
    epoch = max(taken.sound, key=lambda e: len(taken.sound[e]))
    line = line_of(taken.sound[epoch])
    frames = [frame for frame in taken.frames if frame[1] == epoch]
    seen = _match(shots, frames)
    origin_s = origin_of(frames)
    out = places(heard, line, origin_s)
    mouth = places(spoken, line, origin_s)
    skews = distances(seen, out)
    lags = distances(seen, mouth)
    if len(skews) < 50 or len(lags) < 50:
        yield what, f"too little was found again: {len(skews)} pictures with sound, {len(lags)} with the microphone"
        return
    low, middle, high = 1000.0 * np.percentile(skews, [2.5, 50, 97.5])
    yield (
        f"{what}: picture against the sound heard",
        f"median {middle:+.0f} ms, 95 % in {low:+.0f}..{high:+.0f} ms (positive: picture late), {len(skews)} pictures",
    )
    yield (
        f"{what}: microphone to screen",
        f"median {1000 * np.median(lags):.0f} ms, p95 {1000 * np.percentile(lags, 95):.0f} ms",
    )


def _record(
    seconds: float, drift_ppm: int, page_of: Callable[[Stack, Pulse], AbstractContextManager[Page]]
) -> tuple[list[tuple[float, npt.NDArray[np.float32]]], Taken, Ear, Ear]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pulse = stack.enter_context(_sound_card(folder, drift_ppm))
        settings = {"MOUTHPIECE_AUTOSTART": "no", "MOUTHPIECE_MAX_SIDE": "512"}
        product = stack.enter_context(Stack(folder / "var", settings))
        page = stack.enter_context(page_of(product, pulse))
        page.evaluate(LOOK)
        page.click("#sources label:has(input[value=browser])")
        page.click("#start")
        until(lambda: product.status()["level_db"] is not None, 30.0, "the microphone is heard")
        if page.evaluate("document.getElementById('sound-button').dataset.state") == "off":
            page.click("#sound-button")
        some = np.tile(paused_speech(), 1 + int((seconds + SETTLE_S) * RATE_HZ / len(paused_speech())))
        some = some[: int((seconds + SETTLE_S) * RATE_HZ)]
        voice = pulse.play(some.tobytes(), RATE_HZ)
        time.sleep(SETTLE_S)
        page.evaluate("void (window.seenShots = [])")
        taken = Taken()
        environment = dict(os.environ) | pulse.environment
        with (
            Ear(environment, "card.monitor") as heard,
            Ear(environment, "vmic.monitor") as spoken,
            player(product, "default") as line,
        ):
            taker = threading.Thread(target=take, args=(line, taken))
            taker.start()
            shots: list[tuple[float, npt.NDArray[np.float32]]] = []
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                time.sleep(1.0)
                for at_ms, grey in page.evaluate("window.seenShots.splice(0)"):
                    shots.append((at_ms / 1000.0, np.frombuffer(base64.b64decode(grey), np.uint8).astype(np.float32)))
            line.close()
            taker.join()
        voice.terminate()
        voice.wait()
    return shots, taken, heard, spoken


@contextmanager
def _sound_card(folder: Path, drift_ppm: int) -> Iterator[Pulse]:
    """A PulseAudio with a microphone and a card, whose clock runs fast by so much."""
    preload = folder / "drift.so"
    source = ROOT / "tests" / "rig" / "drift.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", preload, source], check=True)
    pulse = Pulse(folder)
    pulse.server_environment = {"LD_PRELOAD": str(preload), "DRIFT_PPM": str(drift_ppm)}
    try:
        pulse.start()
        pulse.add_card("card")
        pulse.offer()
        yield pulse
    finally:
        pulse.kill()


@contextmanager
def _chromium_page(product: Stack, pulse: Pulse) -> Iterator[Page]:
    """The page in Chromium, which hears and plays through a PulseAudio."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required"],
            ignore_default_args=["--mute-audio"],
            env={**os.environ, **pulse.environment},
        )
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(product.url, wait_until="domcontentloaded")
            page.wait_for_timeout(2000)
            yield page
        finally:
            browser.close()


@contextmanager
def _firefox_page(product: Stack, pulse: Pulse) -> Iterator[Page]:
    """The same in Firefox."""
    with firefox(pulse.environment) as page:
        page.size(1280, 900)
        page.goto(product.url)
        time.sleep(2.0)
        yield page


PAGES: Final[dict[str, Callable[[Stack, Pulse], AbstractContextManager[Page]]]] = {
    "Chromium": _chromium_page,
    "Firefox": _firefox_page,
}


def take(line: ClientConnection, taken: Taken) -> None:
    """Take down what a player gets."""
    try:
        for message in line:
            now_s = time.time()
            if isinstance(message, str):
                continue
            kind, _, epoch, media = HEAD.unpack_from(message)
            body = message[HEAD.size :]
            if kind == 1:
                taken.sound.setdefault(epoch, []).append((media, np.frombuffer(body, "<i2")))
                continue
            grey = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_GRAYSCALE)
            taken.frames.append((now_s, epoch, media, _part(np.asarray(grey))))
    except ConnectionClosed:
        return


def _part(grey: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The part of a picture that is looked at, (SIDE * SIDE,)."""
    height, width = grey.shape
    left, top, wide, high = CROP
    part = grey[round(top * height) : round((top + high) * height), round(left * width) : round((left + wide) * width)]
    small: npt.NDArray[np.float32] = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return small.ravel()


def line_of(pieces: list[tuple[int, npt.NDArray[np.int16]]]) -> npt.NDArray[np.float32]:
    """A session's sound by media time."""
    whole = np.zeros(max(first + len(pcm) for first, pcm in pieces), np.float32)
    for first, pcm in pieces:
        whole[first : first + len(pcm)] = pcm
    return whole


def origin_of(frames: list[tuple[float, int, int, npt.NDArray[np.float32]]]) -> float:
    """Wall time of media time 0 by the first pictures that came of each moment, less what they are behind, about."""
    return float(np.median([came - media / RATE_HZ for came, _, media, _ in frames])) - BEHIND_S


def _match(
    shots: list[tuple[float, npt.NDArray[np.float32]]],
    frames: list[tuple[float, int, int, npt.NDArray[np.float32]]],
) -> list[tuple[float, float]]:
    """Wall time and media time, s, of each picture seen that is clearly one of the session's.

    First the lag that all shots of some seconds agree on is found, then each shot's own frame near to it.
    """
    media = np.array([frame[2] for frame in frames]) / RATE_HZ
    order = np.argsort(media)
    media = media[order]
    parts = np.stack([frames[k][3] for k in order])
    # The browser scales otherwise than we: what all pictures differ by on the mean says nothing.
    parts -= parts.mean(axis=0)
    at = np.array([wall for wall, _ in shots])
    seen = np.stack([part for _, part in shots])
    seen -= seen.mean(axis=0)
    came = np.array([frames[k][0] for k in order])
    first = float(np.min(came - media))
    lags = first + np.arange(-0.2, 1.0, 0.01)
    found = []
    for begin in np.arange(at[0], at[-1], AGREE_S):
        group = np.flatnonzero((at >= begin - AGREE_S / 2) & (at < begin + 1.5 * AGREE_S))
        costs = [_away(at[group] - lag, seen[group], media, parts) for lag in lags]
        if not np.isfinite(costs).all() or min(costs) > AGREED * float(np.median(costs)):
            continue  # nothing moved, so every lag is as good
        lag = lags[int(np.argmin(costs))]
        for k in group[(at[group] >= begin) & (at[group] < begin + AGREE_S)]:
            near = np.flatnonzero(np.abs(media - (at[k] - lag)) < AROUND_S)
            away = np.abs(parts[near] - seen[k]).mean(axis=1)
            best = np.argsort(away)[:2]
            if len(best) == 2 and away[best[0]] < CLEARLY * away[best[1]]:
                found.append((float(at[k]), float(media[near[best[0]]])))
    return found


def _away(
    wanted: npt.NDArray[np.float64],
    seen: npt.NDArray[np.float32],
    media: npt.NDArray[np.float64],
    parts: npt.NDArray[np.float32],
) -> float:
    """How far shots are from the frames of these media times, on the mean."""
    place = np.searchsorted(media, wanted, side="right") - 1
    if place.min() < 0 or len(place) < 5:
        return float("inf")
    return float(np.abs(parts[place] - seen).mean())


def places(ear: Recorder, line: npt.NDArray[np.float32], origin_s: float) -> list[tuple[float, float]]:
    """Wall time and media time, s, of windows of what was recorded that were found in the session's sound.

    Args:
        ear: what was recorded.
        line: the sound by media time.
        origin_s: wall time of media time 0, about; the speech may repeat itself, so nothing is looked for far away.
    """
    offset_s = time.time() - time.monotonic()
    pieces = ear.timed()
    whole = np.concatenate([pcm for _, _, pcm in pieces]).astype(np.float32)
    window, search = int(WINDOW_S * RATE_HZ), int(SEARCH_S * RATE_HZ)
    found: list[tuple[float, float]] = []
    guess = -origin_s
    for at in range(0, len(whole) - window, int(STEP_S * RATE_HZ)):
        part = whole[at : at + window]
        if np.sqrt(np.mean(part**2)) < LOUD:
            continue
        wall_s = ear.time_of(at + window // 2) + offset_s
        low = max(0, int((wall_s + guess) * RATE_HZ) - window // 2 - search)
        place = _find(part, line[low : low + window + 2 * search])
        if place is None:
            continue
        media_s = (low + place + window // 2) / RATE_HZ
        found.append((wall_s, media_s))
    return found


def _find(part: npt.NDArray[np.float32], line: npt.NDArray[np.float32]) -> int | None:
    """Where a piece of sound lies in a longer one; None if it is not clearly there."""
    if len(line) < len(part):
        return None
    size = 1 << int(np.ceil(np.log2(len(line) + len(part))))
    product = np.fft.irfft(np.fft.rfft(line, size) * np.conj(np.fft.rfft(part, size)), size)
    score = product[: len(line) - len(part) + 1]
    energy = np.cumsum(np.concatenate([[0.0], np.square(line, dtype=np.float64)]))
    norm = np.sqrt(np.maximum(1.0, energy[len(part) :] - energy[: -len(part)]) * np.sum(np.square(part)))
    alike = score / norm
    best = int(alike.argmax())
    return best if alike[best] >= ALIKE else None


def distances(seen: list[tuple[float, float]], places: list[tuple[float, float]]) -> list[float]:
    """How long before each picture was seen its sound was where it was found, s: 0 when both are at once."""
    if not places:
        return []
    at = np.array([wall for wall, _ in places])
    origin = np.array([wall - media for wall, media in places])
    found = []
    for wall_s, media_s in seen:
        sound_s = float(np.interp(wall_s, at, origin)) + media_s
        if np.abs(at - sound_s).min() < NEAR_S:
            found.append(wall_s - sound_s)
    return found
