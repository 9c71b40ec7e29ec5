"""What the web part may see and do: a thread-safe facade, written by the bus side, used by the routes.

Each method returns soon (a lock and a queue, never a wait for another service). Texts are for a person who looks at
the page: one or two plain sentences that say what is wrong and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from services.streamer.mjpeg import FrameHub
    from services.streamer.recordings import Recordings
    from services.streamer.sound import SoundHub

__all__ = [
    "DEFAULT",
    "Control",
    "FaceStatus",
    "InputClosedError",
    "InputEvent",
    "LimitError",
    "PushInput",
    "Service",
    "SessionControl",
    "SourceChoice",
    "Status",
    "TakenError",
    "UnknownSessionError",
]

DEFAULT: Final = "default"
"""the session that is always there; the routes of the prototype act on it"""


class UnknownSessionError(KeyError):
    """There is no such session."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.text = f"There is no session “{name}” here."


class TakenError(ValueError):
    """The name of a session is taken, or its input is; the text says so."""


class LimitError(RuntimeError):
    """There are as many as there may be; the text says how many and what to do."""


class InputClosedError(RuntimeError):
    """The session takes no more from this connection; the text says why."""


@dataclass(frozen=True)
class InputEvent:
    """What happened to sound that was pushed."""

    kind: Literal["started", "ended", "interrupted", "room", "closed"]
    """started, ended: the listener began, or finished, to hear an utterance; interrupted: it was cut off; room: there
    is room again; closed: the session takes no more from here"""
    utterance: int = 0
    """number of the utterance, from 0; `flush` ends one"""
    sample: int = 0
    """how much of everything pushed by this connection was heard by then, samples at 16 kHz"""
    waiting: int = 0
    """pushed and not yet heard, samples at 16 kHz"""
    text: str = ""
    """why, for a person; of closed"""


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

    id: Literal["mic", "browser", "demo", "network", "file"]
    """mic: of the machine that serves; browser: of the one that looks at the page; network: sound that is pushed, such
    as a person's own file or the speech of a voice agent"""
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
    session: str = DEFAULT
    """its name"""
    recording: str = ""
    """id of the recording that is being made; empty when there is none"""
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


class PushInput(Protocol):
    """One connection that pushes sound into a session. Safe to call from the thread that holds it.

    Sound is 16 kHz mono int16. As the source `network` it may come faster than it is heard and waits, up to `bound`
    samples; as the source `browser` it is heard as it comes and never waits.
    """

    bound: int
    """most samples that may wait"""

    @property
    def room(self) -> int:
        """Samples that may be pushed now; whoever pushes waits until there is room (event `room`)."""
        ...

    def put(self, pcm: npt.NDArray[np.int16], arrived_ns: int) -> None:
        """Push sound, at most 1 s and at most `room` samples of it.

        Args:
            pcm: (samples,).
            arrived_ns: when it came here, monotonic ns.

        Raises:
            InputClosedError: the session takes no more from here (it was stopped, deleted, or another one pushes now).
            ValueError: more than there is room for.
        """
        ...

    def flush(self) -> int:
        """End an utterance here: what was pushed is said to its end at once. Gives the number of the utterance."""
        ...

    def interrupt(self) -> None:
        """Forget what was pushed and not heard: the mouth closes, the sound stops. An event tells what was heard."""
        ...

    def events(self) -> list[InputEvent]:
        """What happened since the last call."""
        ...

    def fileno(self) -> int:
        """Readable when there are events."""
        ...

    def close(self) -> None:
        """No more will be pushed. What was pushed is said to its end. May be called twice."""
        ...


class SessionControl(Protocol):
    """One session as the routes see it. Safe to call from any thread."""

    name: str
    frames: FrameHub
    sound: SoundHub
    recordings: Recordings

    def status(self) -> Status:
        """The present state."""
        ...

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        """Take a photo. Whether there is a face in it is told later, by the status.

        Args:
            data: the bytes of a JPEG, PNG or WebP file.
            index: which face to take, largest first.
            box: x1, y1, x2, y2 of the face given by hand, px; None to search.

        Returns:
            the id of the face that will be made of it.
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
        """Stop and go back to the demo face; the photos of this session are forgotten."""
        ...

    def interrupt(self) -> None:
        """Fall silent at once: what was not heard yet of the present time line is dropped in every stage."""
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

    def push(self, *, live: bool) -> PushInput:
        """Begin to push sound, and to talk. Whoever pushed before is closed.

        Args:
            live: a microphone (source `browser`); otherwise sound that may come faster than it is heard (`network`).
        """
        ...

    def note_heard(self, epoch: int, sample: int) -> None:
        """A player tells which sample of an epoch was audible last when the epoch was cut off."""
        ...

    def note_skew(self, seconds: float) -> None:
        """A player tells how far the picture that it drew was from the sound that it played; positive: picture late."""
        ...


class Control(Protocol):
    """The streamer as its routes see it. Safe to call from any thread."""

    def session(self, name: str = DEFAULT) -> SessionControl:
        """Give a session.

        Raises:
            UnknownSessionError: there is none of that name.
        """
        ...

    def sessions(self) -> list[str]:
        """The names of all sessions, oldest first."""
        ...

    def create(self, name: str | None = None) -> SessionControl:
        """Begin a session.

        Args:
            name: letters, digits, - and _, at most 32; None to have one made.

        Raises:
            TakenError: there is one of that name.
            LimitError: there are as many as there may be.
        """
        ...

    def delete(self, name: str) -> None:
        """End a session for good: its streams end, its photos, faces, sound and recordings are deleted.

        Raises:
            UnknownSessionError: there is none of that name.
            ValueError: it is the session `default`, which stays.
        """
        ...

    def metrics(self) -> bytes:
        """Everything that is counted, in the Prometheus text format 0.0.4."""
        ...

    def close(self) -> None:
        """End the streams and the bus within 0.5 s; later calls do nothing."""
        ...
