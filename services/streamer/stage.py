"""The bus side of the streamer as the web part sees it: `Control`, and the thread that turns the loop."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.streamer.control import (
    DEFAULT,
    FaceStatus,
    InputClosedError,
    LimitError,
    Service,
    SourceChoice,
    Status,
    TakenError,
    UnknownSessionError,
)
from services.streamer.health import GivenUp, Pulse, note_start
from services.streamer.metrics import Screen, exposition
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.photos import Photos
from services.streamer.push import Push
from services.streamer.recordings import Recordings
from services.streamer.service import Streamer
from services.streamer.session import Session
from services.streamer.sessions import ForgetList, SessionBook
from services.streamer.sound import SoundHub
from shared.bus import BusError, open_bus
from shared.clock import SAMPLE_RATE_HZ, frame_of
from shared.service import EXIT_FAILED, Loop, Startup, Tally
from shared.settings import Settings
from shared.topics import SERVICES

__all__ = ["Stage"]

DEMO_FACE: Final = Path(__file__).parents[1] / "face_prep" / "assets" / "demo_face.png"
LONGEST_SPEECH_S: Final = 600
MOST_UPLOAD_BYTES: Final = 10 * 1024 * 1024
LEAVING_S: Final = 6.0
"""how long a new session waits until the recordings of the last one of its name are deleted"""
LOOK_S: Final = 0.1
"""how old a status may be"""
LOOK_WAIT_S: Final = 0.5
"""how long the loop is waited for with a fresh one"""
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
LABELS: Final = {
    "browser": "My microphone",
    "mic": "This server's microphone",
    "demo": "Demo speech",
    "network": "My own sound file",
    "file": "The operator's file",
}
EXPECTED_HZ: Final = {"audio_capture": 50.0, "streamer": 25.0}


class Stage:
    """Owns the bus, the loop and its thread; everything else asks the loop or reads what it last looked like."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        """Start the loop.

        Raises:
            Startup: a port of the bus is taken, or a key file cannot be used.
        """
        self._settings = settings
        self._log = log
        self._began_s = time.monotonic()
        try:
            self._bus = open_bus("streamer", settings)
        except BusError as error:
            raise Startup(str(error)) from error
        self._tally = Tally(log, tracing=settings.trace == "yes")
        self._given_up = GivenUp(settings.state_path / "given_up.json")
        self._lock = threading.Lock()
        self._leaving: dict[str, threading.Thread] = {}
        """what deletes the recordings of sessions that ended, by name; guarded by _lock"""
        self._faces: dict[str, StageSession] = {}
        """the sessions as the web part sees them; guarded by _lock"""
        try:
            owed = ForgetList(self._books / "forget")
            self._streamer = Streamer(
                self._bus, self._tally, owed, idle_s=settings.session_idle_s, on_idle=self._end_idle
            )
        except BusError as error:
            self._bus.close()
            raise Startup(str(error)) from error
        self._streamer.health.starts["streamer"] = note_start(settings.state_path / "starts")
        self._begin(DEFAULT)
        for path in sorted(self._books.glob("*.json")):
            if NAME.fullmatch(path.stem) and path.stem != DEFAULT and len(self._faces) < settings.max_sessions:
                self._begin(path.stem)
        self._clear_away()
        self._stopping = threading.Event()
        self._looked_s = float("-inf")
        self._look()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _clear_away(self) -> None:
        """Delete the recordings of sessions that ended with the server."""
        for movies in (self._settings.state_path / "recordings").glob("*"):
            if NAME.fullmatch(movies.name) is None or movies.name in self._faces:
                continue  # a disk that is mounted here has its lost+found
            try:
                if movies.is_dir() and not movies.is_symlink():
                    shutil.rmtree(movies)
            except OSError as error:
                self._log.warning(
                    "recordings of an ended session cannot be deleted session=%s (%s)", movies.name, error.strerror
                )

    @property
    def _books(self) -> Path:
        return self._settings.state_path / "sessions"

    def _begin(self, name: str) -> StageSession:
        """Make a session; in the loop's thread, or before it runs."""
        settings = self._settings
        photos = Photos(DEMO_FACE)
        face = photos.demo_id
        if settings.face:
            with open(settings.face, "rb") as file:  # noqa: PTH123  # one read of a file that settings checked
                face = photos.add(file.read(MOST_UPLOAD_BYTES))
        default = name == DEFAULT
        book = SessionBook(
            self._books / f"{name}.json",
            session=name,
            running=default and settings.autostarts,
            source=settings.source if default else "network",
            face=face,
        )
        if book.recovered:
            self._log.warning("goes on as it was before the streamer ended unexpectedly session=%s", name)
        movies = settings.state_path / "recordings" / name
        frames = FrameHub(settings.max_viewers, settings.jpeg_quality)
        hubs = (frames, SoundHub(settings.max_viewers))
        session = Session(self._bus, self._tally, book, photos, hubs, (settings.mark, settings.mark_corner))
        if self._tally.tracing:
            frames.on_pass = lambda stage, frame, took_s: self._passed(name, stage, frame, took_s)
        self._streamer.add(session)
        recordings = Recordings(movies, *hubs, name)
        seen = StageSession(self, session, recordings)
        with self._lock:
            self._faces[name] = seen
        return seen

    def _end_idle(self, name: str) -> None:
        """End a session that nobody needs; called by the loop."""
        if name != DEFAULT and not self.session(name).recordings.current:
            self._log.info("is deleted: nobody has watched it or spoken to it for a while session=%s", name)
            self._end(name, "The session was deleted: nobody had used it for a while.")

    def _end(self, name: str, why: str) -> StageSession:
        """End a session for good, in the loop's thread."""
        with self._lock:
            seen = self._faces.pop(name)
        self._streamer.remove(name, why)
        # A file that is being written takes its time, which the loop does not have.
        forgetting = threading.Thread(target=seen.recordings.forget, name="forget", daemon=True)
        with self._lock:
            self._leaving = {left: thread for left, thread in self._leaving.items() if thread.is_alive()}
            self._leaving[name] = forgetting
            forgetting.start()
        return seen

    def _run(self) -> None:
        loop = Loop(
            self._streamer,
            self._bus,
            self._tally,
            tell_beat=lambda beat: self._streamer.health.beat(beat, time.monotonic()),
            beat_file=self._settings.beat_file,
        )
        try:
            while not self._stopping.is_set():
                loop.turn(watchdog=True)
        except Exception:  # noqa: BLE001  # whatever it is, the process ends with it
            self._log.exception("the loop cannot go on; the process ends, to be started again")
            logging.shutdown()
            os._exit(EXIT_FAILED)  # a page without its loop would show a still picture for ever
        faulthandler.cancel_dump_traceback_later()
        self._streamer.close()
        self._bus.close()
        self._log.info("stopped")

    # ---- Control

    def session(self, name: str = DEFAULT) -> StageSession:
        """Give a session."""
        with self._lock:
            if name not in self._faces:
                raise UnknownSessionError(name)
            return self._faces[name]

    def sessions(self) -> list[str]:
        """The names of all sessions, oldest first."""
        with self._lock:
            return list(self._faces)

    def create(self, name: str | None = None) -> StageSession:
        """Begin a session."""
        if name is not None and not NAME.fullmatch(name):
            raise ValueError("A session's name is made of letters, digits, - and _, at most 32 of them.")

        def begin() -> StageSession | threading.Thread:
            names = self.sessions()
            # Asked here, in the loop's thread, which alone ends sessions: so none of this name ends in between.
            with self._lock:
                leaving = self._leaving.get(name or "")
            if leaving is not None and leaving.is_alive():
                return leaving
            if name in names:
                raise TakenError(f"There is a session “{name}” already.")
            if len(names) >= self._settings.max_sessions:
                raise LimitError(
                    f"There are {len(names)} sessions, which is the most here. Delete one and try again; the operator "
                    "can allow more with MOUTHPIECE_MAX_SESSIONS."
                )
            return self._begin(name or secrets.token_hex(6))

        until_s = time.monotonic() + LEAVING_S
        while isinstance(made := self.ask(begin), threading.Thread):
            made.join(max(0.0, until_s - time.monotonic()))
            if made.is_alive():
                raise TakenError(f"The last session “{name}” is still being deleted. Try again in a few seconds.")
        seen: StageSession = made
        return seen

    def delete(self, name: str) -> None:
        """End a session for good."""
        if name == DEFAULT:
            raise ValueError("The session “default” stays. Clear it instead.")

        def end() -> StageSession:
            self.session(name)
            return self._end(name, "The session was deleted.")

        self._streamer.command(end).recordings.forget()

    def metrics(self) -> bytes:
        """Everything that is counted."""
        now_s = time.monotonic()

        def look() -> tuple[list[Pulse], dict[str, int], dict[str, str], dict[str, Screen]]:
            health = self._streamer.health
            screens = {name: _screen(session, now_s) for name, session in self._streamer.sessions.items()}
            return list(health), dict(health.starts), {n: self._given_up.of(n, now_s) for n in SERVICES}, screens

        pulses, starts, given_up, screens = self._streamer.command(look)
        return exposition(pulses, starts, given_up, screens, now_s)

    def close(self) -> None:
        """End the streams and the bus."""
        with self._lock:
            seen = list(self._faces.values())
        for session in seen:
            session.frames.close()
            session.sound.close()
        self._stopping.set()
        self._thread.join(1.0)
        for session in seen:
            session.recordings.close()

    # ---- inside

    def _passed(self, name: str, stage: str, frame: Frame, took_s: float) -> None:
        """Trace a frame that was encoded or sent, in the thread that did it."""
        self._tally.trace(stage, name, frame.epoch, frame_of(frame.media_time), took_ms=took_s * 1000.0)

    def ask(self, what: Callable[[], Any]) -> Any:
        """Have the loop do something, and renew what the sessions look like before anybody asks for it."""

        def do() -> Any:
            result = what()
            self._look()
            return result

        return self._streamer.command(do)

    @property
    def streamer(self) -> Streamer:
        """For the loop's thread, and `wake`."""
        return self._streamer

    def spec(self, source: str) -> str:
        """What a source's id on the page means.

        Raises:
            ValueError: there is no such source.
        """
        if source == "file" and self._settings.source.startswith("file:"):
            return self._settings.source
        if source not in {"mic", "browser", "demo", "network"}:
            raise ValueError("There is no such source of sound. Choose browser, mic, demo or network.")
        return source

    def look(self) -> None:
        """See that what the sessions look like is at most `LOOK_S` old; older where the loop does not answer."""

        def fresh() -> None:
            if time.monotonic() - self._looked_s > LOOK_S:  # many may have asked
                self._look()

        if time.monotonic() - self._looked_s > LOOK_S and not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                self._streamer.command(fresh, LOOK_WAIT_S)

    def _look(self) -> None:
        now_s = time.monotonic()
        services: dict[str, Service] = {name: self._service(name, now_s) for name in SERVICES}
        with self._lock:
            seen = list(self._faces.values())
        for session in seen:
            session.look(services, now_s)
        self._looked_s = now_s

    def _service(self, name: str, now_s: float) -> Service:
        pulses = self._streamer.health.of(name)
        alive = [pulse for pulse in pulses if pulse.alive(now_s)]
        newest = (alive or pulses)[:1]
        info = dict(newest[0].beat.info) if newest else {}
        if len(alive) > 1:
            info["processes"] = str(len(alive))
        running = sum(session.book.state.running for session in self._streamer.sessions.values())
        return Service(
            name=name,
            alive=bool(alive),
            expected_hz=EXPECTED_HZ.get(name, 0.0) * running,
            rate_hz=round(sum(pulse.rate_hz for pulse in alive), 2),
            info=info,
            last_error=newest[0].beat.last_error if newest else "",
            age_s=round(min((now_s - pulse.heard_s for pulse in pulses), default=now_s - self._began_s), 2),
            given_up=self._given_up.of(name, now_s),
        )

    def sources(self) -> tuple[SourceChoice, ...]:
        """The sources that can be chosen, in the loop's thread."""
        microphone = self._streamer.health.info("audio_capture", "microphone")
        missing = microphone.startswith("missing:")
        choices = [
            SourceChoice("browser", LABELS["browser"], available=True),
            SourceChoice("mic", LABELS["mic"], not missing, microphone.partition(":")[2].strip() if missing else ""),
            SourceChoice("demo", LABELS["demo"], available=True),
            SourceChoice("network", LABELS["network"], available=True),
        ]
        if self._settings.source.startswith("file:"):
            choices.append(SourceChoice("file", LABELS["file"], available=True))
        return tuple(choices)

    def notices(self, session: Session, services: dict[str, Service], now_s: float) -> list[str]:
        """What is missing and what to do, in the loop's thread."""
        notices = []
        health = self._streamer.health
        state = session.book.state
        notices += [
            f"The service {service.given_up}, so it is left down. Its log says why; docs/operations.md says how to "
            "start it again."
            for service in services.values()
            if service.given_up
        ]
        if now_s - self._began_s > 5.0:  # at the start nobody has beaten yet
            notices += [
                f"The service {service.name} does not answer; it is being started again. Its log says why."
                for service in services.values()
                if not service.alive and not service.given_up
            ]
        if (
            state.running
            and session.source_state in {"waiting", "failed"}
            and state.source not in {"network", "browser"}
        ):
            notices.append(session.source_text)
        short = health.info("mel_features", "short")
        if state.running and short and health.alive("mel_features", now_s):
            notices.append(f"The lips fall behind: {short}. docs/workers.md says how to add workers.")
        return notices


class StageSession:
    """One session as the web part sees it; a `SessionControl`."""

    def __init__(self, stage: Stage, session: Session, recordings: Recordings) -> None:
        self.name = session.name
        self.frames = session.frames
        self.sound = session.sound
        self.recordings = recordings
        self._stage = stage
        self._session = session
        self._status: Status | None = None

    def look(self, services: dict[str, Service], now_s: float) -> None:
        """Note what it looks like now, in the loop's thread."""
        session = self._session
        state = session.book.state
        photos = session.photos
        source = "file" if state.source.startswith("file:") else state.source
        width, height = session.picture_size()
        self._status = Status(
            running=state.running,
            source=source,
            epoch=state.epoch,
            face=FaceStatus(
                id=photos.wanted,
                state=photos.state,
                text=photos.text,
                faces=photos.faces,
                index=photos.index,
                is_demo=photos.wanted == photos.demo_id,
            ),
            level_db=session.level_db if state.running else None,
            sources=self._stage.sources(),
            source_text=session.source_text if state.running else "",
            services=tuple(services.values()),
            session=self.name,
            notices=tuple(self._stage.notices(session, services, now_s)),
            fps=session.fps(now_s),
            latency_ms=session.latency_ms,
            width=width,
            height=height,
        )

    def status(self) -> Status:
        """The state as it was at most 0.1 s ago."""
        self._stage.look()
        if self._status is None:
            raise UnknownSessionError(self.name)
        return replace(self._status, recording=self.recordings.current, viewers=self.frames.viewers)

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        """Take a photo that is one by its signature; face_prep looks at its pixels."""

        def show() -> str:
            face = self._session.photos.add(data, index, box)
            self._stage.streamer.show_face(self._session, face)
            return face

        made: str = self._ask(show)
        return made

    def start(self, source: str | None) -> None:
        """Start talking."""
        chosen = self._stage.spec(source) if source else None
        self._ask(lambda: self._session.change(running=True, source=chosen, cut="The session was started anew."))

    def stop(self) -> None:
        """Stop talking."""
        self._ask(lambda: self._session.change(running=False, cut="The session was stopped."))

    def clear(self) -> None:
        """Stop and go back to the demo face."""
        self._ask(lambda: self._stage.streamer.clear(self._session))

    def interrupt(self) -> None:
        """Fall silent at once."""
        self._ask(self._session.interrupt)

    def choose_source(self, source: str) -> None:
        """Take the sound from another source."""
        chosen = self._stage.spec(source)
        self._ask(lambda: self._session.change(source=chosen, cut="Another source of sound was chosen."))

    def choose_face(self, index: int) -> None:
        """Take another face of the same photo."""

        def show() -> None:
            photos = self._session.photos
            if not 0 <= index < photos.faces:
                raise ValueError(f"The photo has {photos.faces} faces; there is no number {index + 1}.")
            face = photos.other(index)
            if face is None:
                raise ValueError("The photo is not here any more. Upload it again to choose another face.")
            self._stage.streamer.show_face(self._session, face)

        self._ask(show)

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        """Say a piece of sound."""
        if not SAMPLE_RATE_HZ // 50 <= len(pcm) <= LONGEST_SPEECH_S * SAMPLE_RATE_HZ:
            raise ValueError("The sound must be between 20 ms and 10 minutes long.")
        push = self.push(live=False)
        try:
            push.put(pcm, time.monotonic_ns())
        except InputClosedError as error:
            raise ValueError(str(error)) from error
        finally:
            push.close()

    def push(self, *, live: bool) -> Push:
        """Begin to push sound."""
        streamer = self._stage.streamer
        push = Push(streamer.wake, lambda which: self._stage.ask(lambda: streamer.interrupt(which)), live=live)
        try:
            self._ask(lambda: self._session.listen_to(push))
        except BaseException:  # also when the loop did not answer in time, and takes it all the same
            push.close()
            raise
        return push

    def note_skew(self, seconds: float) -> None:
        """A player tells its skew."""
        self._session.note_skew(seconds)

    def note_heard(self, epoch: int, sample: int) -> None:
        """A player tells what was audible."""
        self._session.note_heard(epoch, sample)
        self._stage.streamer.wake()

    def _ask(self, what: Callable[[], Any]) -> Any:
        """Have the loop do something with this session, if it is still there."""

        def do() -> Any:
            if self._stage.streamer.sessions.get(self.name) is not self._session:
                raise UnknownSessionError(self.name)
            return what()

        return self._stage.ask(do)


def _screen(session: Session, now_s: float) -> Screen:
    return Screen(
        hub=session.frames,
        sound=session.sound,
        running=session.book.state.running,
        frame_rate_hz=session.fps(now_s),
        latency_s=None if session.latency_ms is None else session.latency_ms / 1000.0,
        delay_s=session.playout.delay_s,
        skew_s=session.skew_ms / 1000.0,
        waiting_s=session.waiting_s,
    )
