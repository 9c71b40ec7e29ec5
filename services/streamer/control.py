"""What the web part may see and do: a thread-safe facade, written by the bus side, used by the routes.

Each method returns soon (a lock and a queue, never a wait for another service). Texts are for a person who looks at
the page: one or two plain sentences that say what is wrong and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from services.streamer.mjpeg import FrameHub

__all__ = ["Control", "FaceStatus", "Service", "SourceChoice", "Status", "UploadError"]


class UploadError(ValueError):
    """A photo was refused; the text is for the person who sent it."""

    def __init__(self, text: str, status: HTTPStatus = HTTPStatus.UNPROCESSABLE_ENTITY) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status of the answer, 4xx"""


@dataclass(frozen=True)
class Service:
    """Health of one service as its last beat told it."""

    name: str
    """name of the service, `audio_capture`"""
    alive: bool
    """whether its beats come in time"""
    expected_hz: float
    """rate at which it should send what it sends, Hz; 0 where there is none"""
    rate_hz: float
    """rate at which it does, Hz"""
    info: Mapping[str, str] = field(default_factory=dict)
    """words for the status page"""
    last_error: str = ""
    """last error, empty when there was none"""
    age_s: float = 0.0
    """time since its last beat, s"""
    given_up: str = ""
    """why it is not started again; empty as long as it is"""


@dataclass(frozen=True)
class SourceChoice:
    """A source of sound that the page offers."""

    id: Literal["mic", "demo", "network", "file"]
    """`network` is what the page sends itself: the person's own sound file"""
    label: str
    """words on the button"""
    available: bool
    """whether it can be chosen now"""
    why: str = ""
    """why it cannot, and what to do"""


@dataclass(frozen=True)
class FaceStatus:
    """The face that talks, or why there is none."""

    id: str
    """content hash"""
    state: Literal["ready", "preparing", "problem"]
    """whether it can talk"""
    text: str = ""
    """what is going on, for a person"""
    faces: int = 1
    """how many faces the photo has"""
    index: int = 0
    """which one of them was taken, largest first"""
    is_demo: bool = False
    """whether it is the project's own drawn face"""


@dataclass(frozen=True)
class Status:
    """Everything that the page shows."""

    running: bool
    """whether sound is heard and frames are made"""
    source: str
    """id of the chosen source"""
    epoch: int
    """number of the session's time line"""
    face: FaceStatus
    level_db: float | None
    """loudness of the last 100 ms, dB of full scale (0 is the loudest); None when nothing is heard"""
    sources: tuple[SourceChoice, ...]
    source_text: str = ""
    """name of the device or file, or what is wrong with it"""
    services: tuple[Service, ...] = ()
    notices: tuple[str, ...] = ()
    """what is missing and what to do, most urgent first"""
    fps: float = 0.0
    """frames published in the last second"""
    latency_ms: float | None = None
    """sound to picture, ms; None before the first frame"""
    viewers: int = 0
    """open streams"""
    width: int = 0
    """of the picture, px"""
    height: int = 0
    """of the picture, px"""


class Control(Protocol):
    """The streamer as its routes see it. Safe to call from any thread."""

    frames: FrameHub

    def status(self) -> Status:
        """The present state."""
        ...

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        """Take a photo.

        Args:
            data: the bytes of a JPEG, PNG or WebP file.
            index: which face to take, largest first.
            box: x1, y1, x2, y2 of the face given by hand, px; None to search.

        Returns:
            the id of the face that will be made of it.

        Raises:
            UploadError: the photo is refused.
        """
        ...

    def start(self, source: str | None) -> None:
        """Start talking, from another source if one is named.

        Raises:
            ValueError: there is no such source or it is not available.
        """
        ...

    def stop(self) -> None:
        """Stop talking; the face comes to rest."""
        ...

    def clear(self) -> None:
        """Stop and go back to the demo face."""
        ...

    def choose_source(self, source: str) -> None:
        """Take the sound from another source.

        Raises:
            ValueError: there is no such source or it is not available.
        """
        ...

    def choose_face(self, index: int) -> None:
        """Take another face of the same photo.

        Raises:
            ValueError: the photo has no such face.
        """
        ...

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        """Say a piece of sound: it becomes the source `network`, and talking starts.

        Args:
            pcm: 16 kHz mono, full scale 32768, (samples,).

        Raises:
            ValueError: it cannot be taken now.
        """
        ...

    def metrics(self) -> bytes:
        """Everything that is counted, in the Prometheus text format 0.0.4."""
        ...

    def close(self) -> None:
        """End the streams and the bus within 0.5 s; later calls do nothing."""
        ...
