"""A streamer without a bus: the real server and page over a `Control` that draws its own face.

The tests start it as a program: ``python -m tests.web.standin PORT [NAME=VALUE ...]``. It prints ``ready URL``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from services.streamer.control import (
    DEFAULT,
    FaceStatus,
    InputClosedError,
    InputEvent,
    LimitError,
    Service,
    SourceChoice,
    Status,
    TakenError,
    UnknownSessionError,
)
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.recordings import Recordings
from services.streamer.server import PortTakenError, serve
from services.streamer.sound import SoundHub

if TYPE_CHECKING:
    import numpy.typing as npt

DEMO_FACE = FaceStatus("demo", "ready", "The demo face. Put in your own photo.", is_demo=True)
SERVICES = ("audio_capture", "mel_features", "face_prep", "inference", "streamer")
PERIOD_S = 0.04
AHEAD_FRAMES = 4
"""how long before its picture a session's sound comes"""
CLAP_FRAMES = 50
"""with `clap=1`: from one beep, with a white picture, to the next"""


def clapping(first_frame: int, frames: int) -> npt.NDArray[np.int16]:
    """The sound of some frames: a soft tone, and in each `CLAP_FRAMES`-th frame a loud beep, (640 * frames,)."""
    at = np.arange(640 * first_frame, 640 * (first_frame + frames))
    loud = np.where((at // 640) % CLAP_FRAMES == 0, 12_000, 1_000)
    return (loud * np.sin(2 * np.pi * 1_000 * at / 16_000)).astype(np.int16)


def drawing(number: int, size: int = 480, *, noise: bool = False) -> npt.NDArray[np.uint8]:
    """A drawn face whose mouth is opened by the number, BGR, (size, size, 3)."""
    image = np.full((size, size, 3), (196, 178, 150), np.uint8)
    unit = size // 48
    centre = size // 2
    cv2.ellipse(image, (centre, 50 * unit), (20 * unit, 12 * unit), 0, 180, 360, (92, 70, 60), -1, cv2.LINE_AA)
    cv2.ellipse(image, (centre, centre), (13 * unit, 17 * unit), 0, 0, 360, (150, 188, 232), -1, cv2.LINE_AA)
    cv2.ellipse(image, (centre, 15 * unit), (14 * unit, 9 * unit), 0, 180, 360, (40, 52, 74), -1, cv2.LINE_AA)
    for side in (-1, 1):
        eye = (centre + 5 * side * unit, 22 * unit)
        cv2.ellipse(image, eye, (2 * unit, unit), 0, 0, 360, (250, 250, 250), -1, cv2.LINE_AA)
        cv2.circle(image, eye, unit, (60, 40, 30), -1, cv2.LINE_AA)
    opening = round(unit * (0.4 + 2.2 * abs(np.sin(number / 4))))
    cv2.ellipse(image, (centre, 33 * unit), (5 * unit, opening), 0, 0, 360, (60, 50, 170), -1, cv2.LINE_AA)
    cv2.ellipse(
        image, (centre, 33 * unit), (4 * unit, max(1, opening - unit // 2)), 0, 0, 360, (40, 20, 60), -1, cv2.LINE_AA
    )
    if noise:  # JPEGs of the size of real photos
        grain = np.random.default_rng(number).integers(0, 40, image.shape, dtype=np.uint8)
        image = cv2.subtract(image, grain).astype(np.uint8)
    return image


class Push:
    """Sound that is pushed: it is heard at its own pace by the clock, from the moment it came."""

    bound = 600 * 16_000

    def __init__(self, session: Session, *, live: bool) -> None:
        self._session = session
        self._live = live
        self._lock = threading.Lock()
        self._events: list[InputEvent] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pushed = 0
        self._began_s: float | None = None
        self._base = 0
        self._utterance = 0
        self._ends: list[int] = []
        self._last_end = 0
        self._closed = ""
        self._epoch = -1
        self._epoch_base = 0

    def _heard(self) -> int:
        """Samples heard by now; tells of utterances that ended."""
        heard = self._base
        if self._began_s is not None:
            heard = min(self._pushed, self._base + int((time.monotonic() - self._began_s) * 16_000))
        while self._ends and self._ends[0] <= heard:
            end = self._ends.pop(0)
            self._tell(InputEvent("ended", self._utterance, end, self._pushed - end))
            self._utterance += 1
            self._last_end = end
            if self._pushed > end:
                self._tell(InputEvent("started", self._utterance, end, self._pushed - end))
        if heard == self._pushed:
            self._began_s, self._base = None, heard
        return heard

    def _tell(self, event: InputEvent) -> None:
        self._events.append(event)
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    @property
    def room(self) -> int:
        with self._lock:
            return self.bound - (self._pushed - self._heard())

    def put(self, pcm: npt.NDArray[np.int16], arrived_ns: int) -> None:
        room = self.room
        with self._lock:
            if self._closed:
                raise InputClosedError(self._closed)
            if len(pcm) > min(room, 16_000):
                raise ValueError(f"{len(pcm)} samples, there is room for {room}")
            if self._began_s is None:
                self._began_s, self._base = time.monotonic(), self._pushed
                self._tell(InputEvent("started", self._utterance, self._pushed, len(pcm)))
            status = self._session.status()
            if status.epoch != self._epoch:
                self._epoch, self._epoch_base = status.epoch, self._pushed
            self._session.sound.heard(status.epoch, self._pushed - self._epoch_base, pcm)
            self._pushed += len(pcm)
            self._session.calls.append(("put", (len(pcm), int(np.abs(pcm.astype(int)).max()), arrived_ns)))

    def flush(self) -> int:
        with self._lock:
            if self._pushed > (self._ends[-1] if self._ends else self._last_end):
                self._ends.append(self._pushed)
                return self._utterance + len(self._ends) - 1
            return max(0, self._utterance + len(self._ends) - 1)

    def interrupt(self) -> None:
        with self._lock:
            heard = self._heard()
            self._tell(InputEvent("interrupted", self._utterance, heard))
            self._base, self._began_s, self._ends = self._pushed, None, []
            self._last_end = self._pushed
            self._utterance += 1
        self._session.change(running=True)

    def events(self) -> list[InputEvent]:
        with self._lock:
            self._heard()
            events, self._events = self._events, []
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return events

    def fileno(self) -> int:
        return self._fd

    def replace(self, why: str) -> None:
        with self._lock:
            self._closed = why
            self._tell(InputEvent("closed", text=why))

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._closed = self._closed or "closed"


class Session:
    """Remembers what it was told, publishes 25 frames a second while running and one a second when still."""

    def __init__(
        self,
        name: str = DEFAULT,
        *,
        viewers: int = 64,
        size: int = 480,
        noise: bool = False,
        publish: bool = True,
        clap: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.frames = FrameHub(viewers)
        self.sound = SoundHub()
        self.recordings = Recordings((folder or Path(tempfile.mkdtemp())) / name, self.frames, self.sound, name)
        self.calls: list[tuple[str, Any]] = []
        self.skews: list[float] = []
        self._input: Push | None = None
        self.size = size
        self.noise = noise
        self.clap = clap
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._status = Status(
            running=False,
            source="demo",
            epoch=0,
            face=DEMO_FACE,
            level_db=None,
            sources=(
                SourceChoice("mic", "Microphone", available=True),
                SourceChoice("demo", "Demo speech", available=True),
                SourceChoice("network", "My own sound file", available=True),
            ),
            source_text="A short speech that comes with the program.",
            services=tuple(Service(name, alive=True, expected_hz=25.0, rate_hz=25.0) for name in SERVICES),
            width=size,
            height=size,
        )
        self._thread = threading.Thread(target=self._publish, name="publish", daemon=True)
        if publish:
            self._thread.start()

    def _publish(self) -> None:
        count = number = heard = 0
        epoch = -1
        images = [drawing(n, self.size, noise=self.noise) for n in range(12)]
        white = np.full_like(images[0], 255)
        next_s = time.monotonic()
        while not self._stopped.is_set():
            status = self.status()
            if status.epoch != epoch:
                epoch, number, heard = status.epoch, 0, 0
                frame = Frame(count := count + 1, images[0], epoch=epoch)
            if status.running:
                late = max(0, int((time.monotonic() - next_s) / PERIOD_S) - 1)  # it was stopped: no burst of old frames
                number += 1 + late
                next_s += PERIOD_S * (1 + late)
                if self._input is None and heard < number + AHEAD_FRAMES:
                    self.sound.heard(epoch, 640 * heard, clapping(heard, number + AHEAD_FRAMES - heard))
                    heard = number + AHEAD_FRAMES
                image = white if self.clap and number % CLAP_FRAMES == 0 else images[number % len(images)]
                frame = Frame(count := count + 1, image, media_time=640 * number, epoch=epoch)
            else:
                next_s += 1.0
            self.sound.at(time.monotonic(), epoch, 640 * number if status.running else None)
            self.frames.publish(frame)
            while (left := next_s - time.monotonic()) > 0 and not self._stopped.wait(min(left, 0.05)):
                if self.status().epoch != epoch:
                    next_s = time.monotonic()

    def change(self, **fields: Any) -> None:
        with self._lock:
            if "running" in fields:  # another time line, as in the real core
                fields["epoch"] = max(time.monotonic_ns() // 1_000_000, self._status.epoch + 1)
            self._status = replace(self._status, **fields)

    def status(self) -> Status:
        with self._lock:
            status = self._status
        level = -18.0 if status.running else None
        return replace(
            status,
            session=self.name,
            recording=self.recordings.current,
            viewers=self.frames.viewers,
            level_db=level,
            fps=25.0 * status.running,
        )

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        self.calls.append(("upload", (len(data), index, box)))
        face = hashlib.sha256(data).hexdigest()[:16]
        if b"no face" in data:
            words = "There is no face in this photo. Take one that looks at the camera."
            self.change(face=FaceStatus(face, "problem", words))
            return face
        faces = 3 if b"three faces" in data else 1
        self.change(face=FaceStatus(face, "ready", "Your photo is ready.", faces=faces, index=index))
        return face

    def start(self, source: str | None) -> None:
        self.calls.append(("start", source))
        if source is not None:
            self.choose_source(source)
        self.change(running=True, latency_ms=180.0)

    def stop(self) -> None:
        self.calls.append(("stop", None))
        self.change(running=False)

    def clear(self) -> None:
        self.calls.append(("clear", None))
        self.change(
            running=False, face=FaceStatus("demo", "ready", "The demo face. Put in your own photo.", is_demo=True)
        )

    def choose_source(self, source: str) -> None:
        self.calls.append(("source", source))
        choice = next((c for c in self.status().sources if c.id == source), None)
        if choice is None or not choice.available:
            raise ValueError(f"There is no source {source} here.")
        self.change(source=source, source_text=f"The source is {choice.label}.")

    def choose_face(self, index: int) -> None:
        self.calls.append(("face", index))
        face = self.status().face
        if index >= face.faces:
            raise ValueError(f"The photo has no face {index}.")
        self.change(face=replace(face, index=index))

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        self.calls.append(("speak", pcm.size))
        self.change(source="network", running=True)

    def interrupt(self) -> None:
        self.calls.append(("interrupt", None))
        if self._input is not None:
            self._input.interrupt()
        self.change(running=self.status().running)

    def push(self, *, live: bool) -> Push:
        self.calls.append(("push", live))
        if self._input is not None:
            self._input.replace("Another connection speaks for this session now.")
        self._input = Push(self, live=live)
        self.change(source="browser" if live else "network", running=True)
        return self._input

    def note_heard(self, epoch: int, sample: int) -> None:
        self.calls.append(("heard", (epoch, sample)))

    def note_skew(self, seconds: float) -> None:
        self.skews.append(seconds)

    def close(self) -> None:
        self._stopped.set()
        self.recordings.close()
        self.sound.close()
        self.frames.close()


class StandIn:
    """The sessions."""

    def __init__(self, *, sessions: int = 4, **options: Any) -> None:
        self._most = sessions
        self._options = {"folder": Path(tempfile.mkdtemp()), **options}
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self.create(DEFAULT)

    def session(self, name: str = DEFAULT) -> Session:
        with self._lock:
            if name not in self._sessions:
                raise UnknownSessionError(name)
            return self._sessions[name]

    def sessions(self) -> list[str]:
        with self._lock:
            return list(self._sessions)

    def create(self, name: str | None = None) -> Session:
        with self._lock:
            name = name or secrets.token_hex(4)
            if name in self._sessions:
                raise TakenError(f"There is a session “{name}” already.")
            if len(self._sessions) >= self._most:
                raise LimitError(f"There are {self._most} sessions, which is the most. Delete one and try again.")
            self._sessions[name] = Session(name, **self._options)
            return self._sessions[name]

    def delete(self, name: str) -> None:
        if name == DEFAULT:
            raise ValueError("The session “default” stays.")
        session = self.session(name)
        with self._lock:
            del self._sessions[name]
        session.close()
        session.recordings.forget()

    def metrics(self) -> bytes:
        """The calls and counters of this stand-in, for the tests."""
        default = self.session()
        stats = [vars(s) for s in default.frames.stats()]
        told = {
            "calls": default.calls,
            "encodes": default.frames.encodes,
            "viewers": stats,
            "listeners": default.sound.listeners,
            "sound": default.sound.drain(),
            "skews": default.skews,
            "sessions": {name: self.session(name).calls for name in self.sessions()},
        }
        return json.dumps(told, default=str).encode()

    def close(self) -> None:
        for name in self.sessions():
            self.session(name).close()


def main(arguments: list[str]) -> int:
    """Serve until a signal."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    options = dict(argument.split("=", 1) for argument in arguments[1:])
    viewers = int(options.get("viewers", "64"))
    Push.bound = int(options.get("bound", Push.bound))

    def build() -> StandIn:
        control = StandIn(
            viewers=viewers,
            size=int(options.get("size", "480")),
            noise="noise" in options,
            clap="clap" in options,
            folder=Path(options.get("folder") or tempfile.mkdtemp()),
        )
        if "down" in options:
            services = tuple(replace(s, alive=s.name != options["down"]) for s in control.session().status().services)
            control.session().change(services=services)
        if "nomic" in options:
            why = "No microphone was found. Plug one in, or use the demo speech or a sound file of your own."
            mic, *rest = control.session().status().sources
            control.session().change(sources=(replace(mic, available=False, why=why), *rest), notices=(why,))
        if "run" in options:
            control.session().start(None)
        return control

    try:
        serve(
            options.get("host", "127.0.0.1"),
            int(arguments[0]),
            build,
            token=options.get("token", ""),
            names=tuple(options.get("names", "").split(",")) if "names" in options else (),
            tls=(options["cert"], options["key"]) if "cert" in options else None,
            max_viewers=viewers,
            on_ready=lambda url: print("ready", url, flush=True),  # noqa: T201
        )
    except PortTakenError as error:
        logging.getLogger("streamer").error("%s", error.strerror)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
