"""`/video_feed` and `/audio_feed` as a player reads them: how far the picture is from the sound when both arrive."""

from __future__ import annotations

import http.client
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from scripts._measure.browser import Taken, distances, line_of, origin_of, places, take
from tests.rig.api import player
from tests.rig.stack import Stack, until
from tests.rig.viewer import frames

__all__ = ["feeds"]

WAV_HEAD_BYTES = 44
RATE_HZ = 16_000


class Listener:
    """Reads `/audio_feed`, noting when each piece came; to `places` it is an ear."""

    def __init__(self, stack: Stack) -> None:
        parts = urlsplit(stack.url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        self._connection.request("GET", "/audio_feed")
        self._answer = self._connection.getresponse()
        self._answer.read(WAV_HEAD_BYTES)
        self._pieces: list[tuple[float, npt.NDArray[np.int16]]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        rest = b""
        while not self._ending.is_set():
            data = rest + self._answer.read1(4096)
            even = len(data) & ~1
            rest = data[even:]
            self._pieces.append((time.monotonic(), np.frombuffer(data[:even], "<i2")))

    def close(self) -> None:
        """Read no more."""
        self._ending.set()
        self._thread.join()
        self._connection.close()

    def timed(self) -> list[tuple[float, int, npt.NDArray[np.int16]]]:
        """All pieces: when each was here, monotonic s; number of its first sample; samples."""
        ends = np.cumsum([0, *(len(pcm) for _, pcm in self._pieces)])
        return [(at_s, int(first), pcm) for (at_s, pcm), first in zip(self._pieces, ends[:-1], strict=True)]

    def time_of(self, sample: int) -> float:
        """When a sample was here, monotonic s; it is heard as it comes."""
        ends = np.cumsum([len(pcm) for _, pcm in self._pieces])
        at = np.array([at_s for at_s, _ in self._pieces])
        delays = at - ends / RATE_HZ
        near = np.abs(ends - sample) < RATE_HZ
        return float(sample / RATE_HZ + delays[near].min())


def feeds(seconds: float) -> Iterator[tuple[str, str]]:
    """Read both feeds of the demo speech side by side."""
    taken = Taken()
    seen: list[tuple[float, float]] = []
    offset_s = time.time() - time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "var") as stack:
        until(lambda: stack.status()["latency_ms"] is not None, 60.0, "the face speaks")
        time.sleep(10.0)
        with player(stack, "default") as line:
            taker = threading.Thread(target=take, args=(line, taken))
            taker.start()
            listener = Listener(stack)
            began_s = time.monotonic()
            old = -1
            for shot in frames(stack.url):
                if shot.media_time != old:
                    old = shot.media_time
                    seen.append((shot.at_s + offset_s, shot.media_time / RATE_HZ))
                if shot.at_s - began_s > seconds:
                    break
            listener.close()
            line.close()
            taker.join()
    epoch = max(taken.sound, key=lambda e: len(taken.sound[e]))
    skews = distances(seen, places(listener, line_of(taken.sound[epoch]), origin_of(taken.frames)))
    low, middle, high = 1000.0 * np.percentile(skews, [2.5, 50, 97.5])
    yield (
        f"`/video_feed` against `/audio_feed`, {seconds / 60:.0f} min of demo speech",
        f"median {middle:+.0f} ms, 95 % in {low:+.0f}..{high:+.0f} ms (positive: picture late), {len(skews)} pictures",
    )
