"""The bus side of the streamer as the web part sees it: `Control`, and the thread that turns the loop."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.streamer.control import FaceStatus, Service, SourceChoice, Status
from services.streamer.health import GivenUp, Pulse
from services.streamer.metrics import exposition
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.photos import Photos
from services.streamer.service import Streamer
from services.streamer.sessions import SessionBook
from shared.bus import BusError, open_bus
from shared.clock import SAMPLE_RATE_HZ, frame_of
from shared.service import EXIT_FAILED, Loop, Startup, Tally
from shared.settings import Settings
from shared.topics import SERVICES

__all__ = ["Stage"]

LONGEST_SPEECH_S: Final = 600
MOST_UPLOAD_BYTES: Final = 10 * 1024 * 1024
LABELS: Final = {
    "mic": "Microphone",
    "demo": "Demo speech",
    "network": "My own sound file",
    "file": "The operator's file",
}
EXPECTED_HZ: Final = {"audio_capture": 50.0, "streamer": 25.0}


class Stage:
    """Owns the bus, the loop and its thread; everything else asks the loop or reads its last status."""

    def __init__(self, settings: Settings, photos: Photos, log: logging.Logger) -> None:
        """Start the loop.

        Raises:
            Startup: a port of the bus is taken, or a key file cannot be used.
        """
        self._settings = settings
        self._log = log
        self._began_s = time.monotonic()
        self.frames = FrameHub(settings.max_viewers, settings.jpeg_quality)
        try:
            self._bus = open_bus("streamer", settings)
        except BusError as error:
            raise Startup(str(error)) from error
        self._tally = Tally(log, tracing=settings.trace == "yes")
        self._given_up = GivenUp(settings.state_path / "given_up.json")
        face = photos.demo_id
        if settings.face:
            with open(settings.face, "rb") as file:  # noqa: PTH123  # one read of a file that settings checked
                face = photos.add(file.read(MOST_UPLOAD_BYTES))
        book = SessionBook(
            settings.state_path / "session.json",
            session="default",
            running=settings.autostarts,
            source=settings.source,
            face=face,
        )
        if book.recovered:
            log.warning("the session goes on as it was before the streamer ended unexpectedly")
        try:
            self._streamer = Streamer(
                self._bus, self._tally, book, photos, self.frames, (settings.mark, settings.mark_corner)
            )
        except BusError as error:
            self._bus.close()
            book.close()
            raise Startup(str(error)) from error
        if self._tally.tracing:
            self.frames.on_pass = self._passed
        self._stopping = threading.Event()
        self._status = self._look()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        loop = Loop(
            self._streamer,
            self._bus,
            self._tally,
            tell_beat=lambda beat: self._streamer.health.beat(beat, time.monotonic()),
            beat_file=self._settings.beat_file,
        )
        looked_s = 0.0
        try:
            while not self._stopping.is_set():
                loop.turn(watchdog=True)
                if time.monotonic() - looked_s > 0.1:
                    looked_s = time.monotonic()
                    self._status = self._look()
        except Exception:  # noqa: BLE001  # whatever it is, the process ends with it
            self._log.exception("the loop cannot go on; the process ends, to be started again")
            logging.shutdown()
            os._exit(EXIT_FAILED)  # a page without its loop would show a still picture for ever
        faulthandler.cancel_dump_traceback_later()
        self._streamer.close()
        self._bus.close()
        self._log.info("stopped")

    # ---- Control

    def status(self) -> Status:
        """The state as it was at most 0.1 s ago."""
        return self._status

    def upload(self, data: bytes, index: int, box: tuple[int, int, int, int] | None) -> str:
        """Take a photo that is one by its signature; face_prep looks at its pixels."""

        def show() -> str:
            face = self._streamer.photos.add(data, index, box)
            self._streamer.show_face(face)
            return face

        made: str = self._do(show)
        return made

    def start(self, source: str | None) -> None:
        """Start talking."""
        chosen = self._spec(source) if source else self._streamer.book.state.source
        self._do(lambda: self._streamer.change(running=True, source=chosen))

    def stop(self) -> None:
        """Stop talking."""
        self._do(lambda: self._streamer.change(running=False))

    def clear(self) -> None:
        """Stop and go back to the demo face."""
        self._do(self._streamer.clear)

    def choose_source(self, source: str) -> None:
        """Take the sound from another source."""
        chosen = self._spec(source)
        self._do(lambda: self._streamer.change(source=chosen))

    def choose_face(self, index: int) -> None:
        """Take another face of the same photo."""

        def show() -> None:
            photos = self._streamer.photos
            if not 0 <= index < photos.faces:
                raise ValueError(f"The photo has {photos.faces} faces; there is no number {index + 1}.")
            face = photos.other(index)
            if face is None:
                raise ValueError("The photo is not here any more. Upload it again to choose another face.")
            self._streamer.show_face(face)

        self._do(show)

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        """Say a piece of sound."""
        if not SAMPLE_RATE_HZ // 50 <= len(pcm) <= LONGEST_SPEECH_S * SAMPLE_RATE_HZ:
            raise ValueError("The sound must be between 20 ms and 10 minutes long.")
        self._do(lambda: self._streamer.speak(pcm))

    def metrics(self) -> bytes:
        """Everything that is counted."""
        now_s = time.monotonic()

        def look() -> tuple[list[Pulse], dict[str, int], dict[str, str]]:
            health = self._streamer.health
            return list(health), dict(health.starts), {name: self._given_up.of(name, now_s) for name in SERVICES}

        pulses, starts, given_up = self._streamer.command(look)
        return exposition(pulses, starts, given_up, self.frames, now_s)

    def close(self) -> None:
        """End the streams and the bus."""
        self.frames.close()
        self._stopping.set()
        self._thread.join(1.0)

    # ---- inside

    def _passed(self, stage: str, frame: Frame, took_s: float) -> None:
        """Trace a frame that was encoded or sent, in the thread that did it."""
        session = self._streamer.book.state.session
        self._tally.trace(stage, session, frame.epoch, frame_of(frame.media_time), took_ms=took_s * 1000.0)

    def _do(self, what: Callable[[], Any]) -> Any:
        """Have the loop do something, and renew the status before anybody asks for it."""

        def do() -> Any:
            result = what()
            self._status = self._look()
            return result

        return self._streamer.command(do)

    def _spec(self, source: str) -> str:
        """What a source's id on the page means."""
        if source == "file" and self._settings.source.startswith("file:"):
            return self._settings.source
        if source not in {"mic", "demo", "network"}:
            raise ValueError("There is no such source of sound. Choose mic, demo or network.")
        return source

    def _look(self) -> Status:
        now_s = time.monotonic()
        streamer = self._streamer
        state = streamer.book.state
        photos = streamer.photos
        health = streamer.health
        services = tuple(self._service(name, now_s) for name in SERVICES)
        source = "file" if state.source.startswith("file:") else state.source
        width, height = streamer.picture_size()
        return Status(
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
            level_db=streamer.level_db if state.running else None,
            sources=self._sources(),
            source_text=health.info("audio_capture", "source") if state.running else "",
            services=services,
            notices=tuple(self._notices(services, now_s)),
            fps=streamer.fps(now_s),
            latency_ms=streamer.latency_ms,
            viewers=len(self.frames.stats()),
            width=width,
            height=height,
        )

    def _service(self, name: str, now_s: float) -> Service:
        pulses = self._streamer.health.of(name)
        alive = [pulse for pulse in pulses if pulse.alive(now_s)]
        newest = (alive or pulses)[:1]
        info = dict(newest[0].beat.info) if newest else {}
        if len(alive) > 1:
            info["processes"] = str(len(alive))
        expected_hz = EXPECTED_HZ.get(name, 0.0) if self._streamer.book.state.running else 0.0
        return Service(
            name=name,
            alive=bool(alive),
            expected_hz=expected_hz,
            rate_hz=round(sum(pulse.rate_hz for pulse in alive), 2),
            info=info,
            last_error=newest[0].beat.last_error if newest else "",
            age_s=round(min((now_s - pulse.heard_s for pulse in pulses), default=now_s - self._began_s), 2),
            given_up=self._given_up.of(name, now_s),
        )

    def _sources(self) -> tuple[SourceChoice, ...]:
        microphone = self._streamer.health.info("audio_capture", "microphone")
        missing = microphone.startswith("missing:")
        choices = [
            SourceChoice("mic", LABELS["mic"], not missing, microphone.partition(":")[2].strip() if missing else ""),
            SourceChoice("demo", LABELS["demo"], available=True),
            SourceChoice("network", LABELS["network"], available=True),
        ]
        if self._settings.source.startswith("file:"):
            choices.append(SourceChoice("file", LABELS["file"], available=True))
        return tuple(choices)

    def _notices(self, services: tuple[Service, ...], now_s: float) -> list[str]:
        notices = []
        health = self._streamer.health
        running = self._streamer.book.state.running
        notices += [
            f"The service {service.given_up}, so it is left down. Its log says why; docs/operations.md says how to "
            "start it again."
            for service in services
            if service.given_up
        ]
        if now_s - self._began_s > 5.0:  # at the start nobody has beaten yet
            notices += [
                f"The service {service.name} does not answer; it is being started again. Its log says why."
                for service in services
                if not service.alive and not service.given_up
            ]
        source_state = health.info("audio_capture", "source_state")
        if running and source_state in {"waiting", "failed"} and self._streamer.book.state.source != "network":
            notices.append(health.info("audio_capture", "source"))
        short = health.info("mel_features", "short")
        if running and short and health.alive("mel_features", now_s):
            notices.append(f"The lips fall behind: {short}. docs/workers.md says how to add workers.")
        return notices
