"""The whole pipeline as a viewer sees it: with engine wav2lip, and what a session with the built-in engine costs."""

from __future__ import annotations

import itertools
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import psutil

from shared.clock import SAMPLE_RATE_HZ
from shared.topics import SERVICES
from tests.rig.stack import ROOT, Stack, until
from tests.rig.viewer import Shot, record

__all__ = ["Live", "LiveFigures", "Session", "attend", "watch"]

DEMO_FACE: Final = ROOT / "services" / "face_prep" / "assets" / "demo_face.png"

READY_S: Final = 60.0
SETTLE_S: Final = 5.0
"""after the first pictures: the delay finds its level"""
ASK_S: Final = 0.5
"""between two questions for the delay: the page asks as often"""
PLAYOUT: Final = ("late", "skipped", "held")


@dataclass(frozen=True)
class LiveFigures:
    """What a viewer saw in one run."""

    seconds: float
    frames: int
    """that came"""
    frame_rate_hz: float
    """at which they came"""
    new_rate_hz: float
    """pictures a second that were not the one before; in pauses of the voice there are none"""
    late: float
    """frames that were made too late to be shown"""
    skipped: float
    """left out, as a newer one was due as well"""
    held: float
    """ticks at which the picture before was shown again, as the next one was not there"""
    delay_median_ms: float
    """sound to picture by the streamer's own count, a running mean over some 20 pictures, asked twice a second"""
    delay_p95_ms: float
    picture_p95_ms: float
    """of single pictures: that mean, and how far each picture's own delay was from it"""
    processor: dict[str, float]
    """by service, cores"""
    encoder: float
    """what the JPEG encoder has of the streamer's, cores"""
    memory_mib: dict[str, float]
    """by service, PSS"""
    idle_share: float
    """of all processors, the viewer's and the benchmark's own work counted as work"""

    @property
    def without_encoder(self) -> float:
        """All services together, cores."""
        return sum(self.processor.values()) - self.encoder


@dataclass(frozen=True)
class Live:
    """One precision."""

    precision: str
    figures: LiveFigures | None
    reason: str = ""
    """why there are none"""


@dataclass(frozen=True)
class Session:
    """What a session with the built-in engine and one viewer costs."""

    side_px: int
    """of the picture, which is square"""
    looks: tuple[LiveFigures, ...]
    """one after the other, of the same session"""


def attend(sound: Path, side_px: int, seconds: float, times: int, say: Callable[[str], None]) -> Session:
    """Start the services, let the demo face speak a sound file again and again with the built-in engine, and look.

    Args:
        sound: what it speaks.
        side_px: of the picture.
        seconds: for how long.
        times: how often.
        say: told what is being done.

    Returns:
        the figures.

    Raises:
        AssertionError: the services did not start.
        OSError: the demo face cannot be read, or a service did not answer.
        RuntimeError: the stream gave no pictures.
    """
    settings = {
        "MOUTHPIECE_ENGINE": "builtin",
        "MOUTHPIECE_SOURCE": f"file:{sound.resolve()}",
        "MOUTHPIECE_LOOP": "yes",
    }
    with tempfile.TemporaryDirectory() as folder:
        face = Path(folder) / "face.png"
        face.write_bytes(_demo_face(side_px))
        with Stack(Path(folder) / "var", {**settings, "MOUTHPIECE_FACE": str(face)}) as stack:
            until(lambda: _talks(stack, side_px), READY_S, "the face speaks")
            threading.Event().wait(SETTLE_S)
            looks = []
            for number in range(times):
                say(f"a session at {side_px}x{side_px}, {seconds:.0f} s, {number + 1} of {times}")
                looks.append(_look(stack, seconds))
    return Session(side_px, tuple(looks))


def _demo_face(side_px: int) -> bytes:
    """The demo face in another size, PNG."""
    picture = cv2.imread(str(DEMO_FACE))
    if picture is None:
        raise OSError(f"{DEMO_FACE} cannot be read")
    smaller = side_px < picture.shape[0]
    resized = cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return cv2.imencode(".png", resized)[1].tobytes()


def _talks(stack: Stack, side_px: int) -> bool:
    status = stack.status()
    return status["latency_ms"] is not None and (status["width"], status["height"]) == (side_px, side_px)


def watch(model: Path, precision: str, sound: Path, seconds: float, say: Callable[[str], None]) -> Live:
    """Start the services, let the demo face speak a sound file again and again, and look.

    Args:
        model: a converted folder.
        precision: f32, bf16, f16 or int8.
        sound: what it speaks.
        seconds: for how long.
        say: told what is being done.

    Returns:
        the figures, or the reason why there are none.
    """
    say(f"live, {precision}, {seconds:.0f} s")
    settings = {
        "MOUTHPIECE_ENGINE": "wav2lip",
        "MOUTHPIECE_MODEL": str(model.resolve()),
        "MOUTHPIECE_PRECISION": precision,
        "MOUTHPIECE_SOURCE": f"file:{sound.resolve()}",
        "MOUTHPIECE_LOOP": "yes",
    }
    try:
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "var", settings) as stack:
            until(lambda: stack.status()["latency_ms"] is not None, READY_S, "the face speaks")
            threading.Event().wait(SETTLE_S)
            return Live(precision, _look(stack, seconds))
    except (AssertionError, OSError, RuntimeError, psutil.Error) as error:
        return Live(precision, None, str(error).splitlines()[0])


def _look(stack: Stack, seconds: float) -> LiveFigures:
    shots: list[Shot] = []
    looking = threading.Thread(target=lambda: shots.extend(record(stack.url, seconds)), name="viewer")
    groups = {name: stack.processes(name) for name in SERVICES}
    counted = _playout(stack)
    encoder = _told(stack, "jpeg_seconds_total")
    used = {name: _used(group) for name, group in groups.items()}
    began, began_s = psutil.cpu_times(), time.monotonic()
    looking.start()
    delays_ms = []
    while looking.is_alive():
        told = stack.status()["latency_ms"]
        if told is not None:
            delays_ms.append(float(told))
        looking.join(ASK_S)
    ended, took_s = psutil.cpu_times(), time.monotonic() - began_s
    if len(shots) < 2 or not delays_ms:
        raise RuntimeError("the stream gave no pictures")
    memory_mib = {
        str(name): sum(process.memory_full_info().pss for process in group) / 2**20 for name, group in groups.items()
    }
    processor = {str(name): (_used(group) - used[name]) / took_s for name, group in groups.items()}
    encoder = (_told(stack, "jpeg_seconds_total") - encoder) / took_s
    spent = {name: after - before for name, after, before in zip(ended._fields, ended, began, strict=True)}
    total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)  # user has these in it
    after = _playout(stack)
    lags_ms = _lags_ms(shots)
    times = np.array([shot.at_s for shot in shots])
    new = sum(shot.media_time != before.media_time for before, shot in itertools.pairwise(shots))
    return LiveFigures(
        seconds=took_s,
        frames=len(shots),
        frame_rate_hz=float(np.polyfit(times, np.arange(len(times)), 1)[0]),
        new_rate_hz=new / float(times[-1] - times[0]),
        **{name: after[name] - counted[name] for name in PLAYOUT},
        delay_median_ms=float(np.median(delays_ms)),
        delay_p95_ms=float(np.percentile(delays_ms, 95)),
        picture_p95_ms=float(np.mean(delays_ms) + np.percentile(lags_ms, 95) - np.mean(lags_ms)),
        processor=processor,
        encoder=encoder,
        memory_mib=memory_mib,
        idle_share=(spent["idle"] + spent.get("iowait", 0.0)) / total,
    )


def _lags_ms(shots: list[Shot]) -> np.ndarray:
    """Delay of each new picture, up to a constant: when it was shown, less its media time.

    Where the media time goes back, a new count begins, with a constant of its own.
    """
    found: list[np.ndarray] = []
    own: list[float] = []
    for before, shot in itertools.pairwise(shots):
        if shot.media_time < before.media_time and own:
            found.append(np.array(own) - np.mean(own))
            own = []
        if shot.media_time > before.media_time:
            own.append(1000.0 * (shot.sent_s - shot.media_time / SAMPLE_RATE_HZ))
    if own:
        found.append(np.array(own) - np.mean(own))
    return np.concatenate(found) if found else np.zeros(1)


def _used(group: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in group)


def _playout(stack: Stack) -> dict[str, float]:
    """The streamer's counts of frames that did not go as they should."""
    return {name: _told(stack, f"now_playout_{name}") for name in PLAYOUT}


def _told(stack: Stack, name: str) -> float:
    """A figure of the streamer's; 0 while it tells none."""
    value = re.search(rf"^mouthpiece_{name}(?:{{[^}}]*}})? (\S+)$", stack.get("/metrics").decode(), re.MULTILINE)
    return float(value.group(1)) if value else 0.0
