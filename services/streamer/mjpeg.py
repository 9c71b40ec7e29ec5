"""The picture as a multipart/x-mixed-replace stream: one newest frame, any number of viewers, one encoding for all.

The publisher hands over a frame 25 times a second (the same object again when nothing moved). Each viewer runs in its
own thread and takes the newest frame whenever its connection has room; what it did not take in time it never gets. So
a slow viewer holds up nobody, and what it sees is late by one frame's way through its own line. A viewer whose line is
too thin for the best quality gets a lower rung of the ladder, encoded once for all that need it. A new viewer begins
low and climbs within a fraction of a second, so that not even the first pictures lie for long in a thin line.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import cv2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

__all__ = [
    "BOUNDARY",
    "CONTENT_TYPE",
    "RUNGS",
    "Frame",
    "FrameHub",
    "HubClosedError",
    "Line",
    "Rung",
    "TooManyViewersError",
    "Viewer",
    "ViewerStats",
    "parts",
]

BOUNDARY: Final = b"frame"
CONTENT_TYPE: Final = "multipart/x-mixed-replace; boundary=frame"
REPEAT_S: Final = 1.0
"""a viewer gets the last frame again after this time without a new one"""
SHARPEN_FRAMES: Final = 50
"""for so many frames a still picture that could be sharper is repeated as fast as a moving one, then as one that is"""
TRANSFER_S: Final = 0.15
"""longest time that one frame may take to a viewer before it gets a lower rung"""
CLIMB_S: Final = 0.1
"""time that a frame of the better rung must stay under before a viewer climbs"""
CLIMB_FRAMES: Final = 10
"""frames in a row for which that must hold"""
FIRST_RUNG: Final = 2
"""where a viewer begins: of its line nothing is known, and a picture too large for it would lie there for a second"""
TRIAL_FRAMES: Final = 5
"""frames after which its line is known well enough to climb at once"""
TRIAL_S: Final = 0.04
"""a still picture is repeated after this time until then, and as long as it grows sharper"""
RATE_WINDOW_S: Final = 2.0
"""time over which a viewer's frame rate is counted"""


@dataclass(frozen=True)
class Rung:
    """One rung of the quality ladder."""

    quality: int
    """JPEG quality, 0..100"""
    scale: float
    """side of the picture sent, share of the original"""
    share: float
    """bytes as a share of the best rung: a guess until both were encoded once"""


RUNGS: Final = (Rung(82, 1.0, 1.0), Rung(50, 1.0, 0.55), Rung(28, 1.0, 0.38), Rung(28, 0.5, 0.13), Rung(20, 0.25, 0.04))


class HubClosedError(RuntimeError):
    """The server is stopping."""


class TooManyViewersError(RuntimeError):
    """No further viewer can be served; the text is for the person who asked."""


class Frame:
    """One picture, encoded when somebody wants it, at most once per rung."""

    __slots__ = ("_jpegs", "_lock", "epoch", "image", "media_time", "seq")

    def __init__(self, seq: int, image: npt.NDArray[np.uint8], *, media_time: int = 0, epoch: int = 0) -> None:
        self.seq = seq
        """running number"""
        self.image = image
        """BGR, (h, w, 3); must not change any more"""
        self.media_time = media_time
        """media time it belongs to, samples at 16 kHz"""
        self.epoch = epoch
        """time line of the session"""
        self._lock = threading.Lock()
        self._jpegs: dict[Rung, bytes] = {}

    def jpeg(self, rung: Rung) -> tuple[bytes, bool]:
        """The encoded picture, and whether this call encoded it. Others who ask meanwhile wait for it."""
        with self._lock:
            known = self._jpegs.get(rung)
            if known is not None:
                return known, False
            image = self.image
            if rung.scale < 1.0:
                height, width = image.shape[:2]
                size = (max(16, round(width * rung.scale)), max(16, round(height * rung.scale)))
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(image.dtype, copy=False)
            ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, rung.quality])
            if not ok:
                raise RuntimeError(f"the JPEG encoder refused a picture of {image.shape}")
            self._jpegs[rung] = jpeg = data.tobytes()
            return jpeg, True


@dataclass(frozen=True)
class Published:
    """A frame at the moment when it was the newest."""

    frame: Frame
    count: int
    """how many frames were published until then, repeats included"""
    wall_s: float
    """when, by the wall clock: a player on another machine shares no other clock with us, s since 1970"""


@dataclass(frozen=True)
class ViewerStats:
    """What one viewer got so far."""

    id: int
    """running number of the viewer"""
    sent: int
    """frames"""
    skipped: int
    """frames that it was too slow for"""
    rate_hz: float
    """frames a second over the last two seconds"""
    quality: int
    """JPEG quality of the last frame"""
    bytes_sent: int
    """of pictures"""


class Viewer:
    """One open stream. Used by one thread; its counters may be read by any."""

    def __init__(self, hub: FrameHub, number: int) -> None:
        self._hub = hub
        self.id = number
        self.sent = 0
        self.skipped = 0
        self.bytes_sent = 0
        self.rung = 0
        """index into RUNGS"""
        self.settled = False
        """whether it has found its first rung"""
        self._seen = 0
        self._last: Frame | None = None
        self._repeats = 0
        """how many times the last frame was taken again"""
        self._climb = 0
        self._times: deque[float] = deque(maxlen=64)

    def next(self, timeout_s: float = REPEAT_S) -> Published | None:
        """Wait for a frame that this viewer has not had and take the newest.

        Returns:
            the newest frame; after `timeout_s` the last one again; None when there has never been one.

        Raises:
            HubClosedError: the server stops.
        """
        published = self._hub.wait(self._seen, timeout_s)
        if published is not None:
            if self._seen:
                self.skipped += max(0, published.count - self._seen - 1)
            self._seen = published.count
            self._repeats = self._repeats + 1 if published.frame is self._last else 0
            self._last = published.frame
        return published

    @property
    def repeat_s(self) -> float:
        """Time after which it gets the last frame again when there is no new one, s."""
        sharpens = self.rung > 0 and self._repeats < SHARPEN_FRAMES
        return TRIAL_S if sharpens or self.sent <= TRIAL_FRAMES else REPEAT_S

    def choose(self, rate: float | None, *, first: bool) -> None:
        """Choose the rung for the next frame.

        Args:
            rate: what the viewer's line carries, bytes/s; None while unknown.
            first: whether it may climb at once, because nothing was known before.
        """
        if rate is None:
            return
        sizes = self._hub.sizes()
        fits = next((i for i, size in enumerate(sizes) if size <= rate * TRANSFER_S), len(RUNGS) - 1)
        if fits > self.rung:
            self.rung, self._climb = fits, 0
            self.settled = self.sent >= TRIAL_FRAMES
            return
        # Climbing needs more room than staying, and patience: a line at its edge must not swing between two qualities.
        goal = next((i for i in range(self.rung) if sizes[i] <= rate * CLIMB_S), self.rung)
        self._climb = self._climb + 1 if goal < self.rung else 0
        if first:
            self.settled = goal == self.rung
            self.rung = max(goal, self.rung - 1)
        elif self._climb >= CLIMB_FRAMES:
            self.rung, self._climb = self.rung - 1, 0

    def count(self, size: int) -> None:
        """Count a frame of `size` bytes as sent."""
        self.sent += 1
        self.bytes_sent += size
        self._times.append(time.monotonic())

    def stats(self) -> ViewerStats:
        """The counters."""
        since = time.monotonic() - RATE_WINDOW_S
        recent = sum(t > since for t in tuple(self._times))
        quality = self._hub.rungs[self.rung].quality
        return ViewerStats(self.id, self.sent, self.skipped, recent / RATE_WINDOW_S, quality, self.bytes_sent)


class FrameHub:
    """Holds the newest frame and those who watch."""

    def __init__(self, max_viewers: int = 64, quality: int = RUNGS[0].quality) -> None:
        self.max_viewers = max_viewers
        self.rungs = (Rung(quality, 1.0, 1.0), *RUNGS[1:])
        """the ladder of this hub: its best rung has the quality asked for"""
        self.encodes = 0
        """JPEGs made so far"""
        self.encode_s = 0.0
        """processor time that they took, s"""
        self.on_pass: Callable[[str, Frame, float], None] | None = None
        """told of frames that were encoded or sent (the word), and how long that took, s; None: nobody"""
        self._changed = threading.Condition()
        self._newest: Published | None = None
        self._viewers: dict[int, Viewer] = {}
        self._numbers = 0
        self._closed = False
        self._sizes: dict[Rung, int] = {}

    def publish(self, frame: Frame) -> None:
        """Make a frame the newest. The same object again is sent again without a second encoding."""
        with self._changed:
            count = self._newest.count + 1 if self._newest else 1
            self._newest = Published(frame, count, time.time())
            self._changed.notify_all()

    def latest(self) -> Frame | None:
        """The newest frame, None before the first."""
        newest = self._newest
        return newest.frame if newest else None

    def wait(self, seen: int, timeout_s: float) -> Published | None:
        """Wait until more than `seen` frames were published, at most `timeout_s`; then the newest.

        Raises:
            HubClosedError: the server stops.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._newest and self._newest.count > seen), timeout_s)
            if self._closed:
                raise HubClosedError
            return self._newest

    def jpeg(self, frame: Frame, rung: Rung) -> bytes:
        """A frame as JPEG, encoded once whoever asks."""
        began_s, asked_s = time.thread_time(), time.monotonic()
        jpeg, fresh = frame.jpeg(rung)
        if fresh:
            took_s = time.thread_time() - began_s
            with self._changed:
                self.encodes += 1
                self.encode_s += took_s
                self._sizes[rung] = len(jpeg)
            if self.on_pass is not None:
                self.on_pass("encoded", frame, time.monotonic() - asked_s)
        return jpeg

    def sizes(self) -> list[int]:
        """Bytes that a frame takes on each rung: as last encoded, or a guess from its neighbours."""
        with self._changed:
            known = dict(self._sizes)
        if not known:
            return [0] * len(self.rungs)
        whole = next(size / rung.share for rung, size in known.items())
        return [known.get(rung, round(whole * rung.share)) for rung in self.rungs]

    @contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """Be counted as a viewer.

        Raises:
            HubClosedError: the server stops.
            TooManyViewersError: there are `max_viewers` already.
        """
        with self._changed:
            if self._closed:
                raise HubClosedError
            if len(self._viewers) >= self.max_viewers:
                raise TooManyViewersError(
                    f"{self.max_viewers} viewers are watching already, which is the most this server takes. "
                    "Close one of them and try again."
                )
            self._numbers += 1
            viewer = Viewer(self, self._numbers)
            self._viewers[viewer.id] = viewer
        try:
            yield viewer
        finally:
            with self._changed:
                del self._viewers[viewer.id]

    @property
    def viewers(self) -> int:
        """How many watch."""
        return len(self._viewers)

    def stats(self) -> list[ViewerStats]:
        """The counters of all viewers."""
        with self._changed:
            viewers = list(self._viewers.values())
        return [viewer.stats() for viewer in viewers]

    def close(self) -> None:
        """End all streams at once, for good."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Line(Protocol):
    """A viewer's connection as `parts` needs it; `services.streamer.line.TcpLine` is the real one."""

    def wait(self) -> None:
        """Wait until hardly anything is under way to the viewer.

        Raises:
            ConnectionResetError: it takes nothing any more.
        """
        ...

    def sent(self, size: int, began_s: float) -> None:
        """`size` bytes were handed to the kernel, beginning at `began_s` (monotonic)."""
        ...

    @property
    def rate(self) -> float | None:
        """What the line carries, bytes/s; None while unknown."""
        ...


def parts(hub: FrameHub, viewer: Viewer, line: Line) -> Iterator[bytes]:
    r"""The body of the stream, part by part, until the viewer goes or the server stops.

    Each piece is the head of a part, its JPEG, and the boundary line of the part to come. A browser shows a part only
    when it has seen the boundary behind it; with the boundary at the head of the next part, as one would write it, each
    picture would be shown one frame late, and a still picture a second late.

    Raises:
        ConnectionResetError: the viewer takes nothing any more.
    """
    viewer.rung = FIRST_RUNG
    start = b"--" + BOUNDARY + b"\r\n"
    first = True
    last: Frame | None = None
    try:
        while True:
            # The order is the point: first wait for room, then take what is newest by then.
            line.wait()
            published = viewer.next(viewer.repeat_s)
            if published is None:
                continue
            viewer.choose(line.rate, first=viewer.sent >= TRIAL_FRAMES and not viewer.settled)
            frame = published.frame
            jpeg = hub.jpeg(frame, hub.rungs[viewer.rung])
            head = (
                "Content-Type: image/jpeg\r\n"
                f"Content-Length: {len(jpeg)}\r\n"
                "X-Synthetic: yes\r\n"
                f"X-Timestamp: {published.wall_s:.6f}\r\n"
                f"X-Frame: {frame.seq}\r\n"
                f"X-Media-Time: {frame.media_time}\r\n"
                "\r\n"
            ).encode()
            part = b"".join((start if first else b"", head, jpeg, b"\r\n--", BOUNDARY, b"\r\n"))
            first = False
            began_s = time.monotonic()
            yield part
            viewer.count(len(jpeg))
            line.sent(len(part), began_s)
            if hub.on_pass is not None and frame is not last:
                hub.on_pass("sent", frame, time.monotonic() - began_s)
            last = frame
    except HubClosedError:
        return
