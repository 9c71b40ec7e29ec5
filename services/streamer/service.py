"""streamer: one session's state, its clock, its pictures. The loop runs in one thread; the web part speaks to it
through `Control` (see stage.py)."""

from __future__ import annotations

import queue
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from services.streamer.compositor import compose, marked
from services.streamer.health import Health
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.photos import Photos
from services.streamer.playout import Playout
from services.streamer.sessions import SessionBook
from shared.bus import Bus, Delivery, Event, Ready, Subscribed
from shared.clock import SAMPLE_RATE_HZ, sample_of
from shared.messages import Audio, Beat, Face, FaceProblem, Gap, Patch, Pcm
from shared.service import Tally

__all__ = ["Streamer"]

MOST_BEHIND_S: Final = 0.1
"""ticks of the screen that lie further back are left out"""
STILL_S: Final = 1.0
"""how often a picture that does not move is sent"""
TELL_S: Final = 1.0
"""how often the whole state is told"""
PUSH_S: Final = 0.1
"""how often a second of the person's own sound is passed on: ten times as fast as it is heard"""
DRAINED_S: Final = 1.5
"""how long after its last sound a source that ended is stopped"""


class Streamer:
    """The session `default`: what is heard, which face is shown, which frame is due."""

    name: Literal["streamer"] = "streamer"

    def __init__(
        self, bus: Bus, tally: Tally, book: SessionBook, photos: Photos, hub: FrameHub, mark: tuple[str, str]
    ) -> None:
        self._bus = bus
        self._tally = tally
        self.book = book
        self.photos = photos
        self.health = Health()
        self._hub = hub
        self._mark = mark
        self.playout = Playout()
        self.level_db: float | None = None
        self.latency_ms: float | None = None
        self.info: dict[str, str] = {}
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._photo: npt.NDArray[np.uint8] = photos.demo_picture
        self._frame = Frame(seq=0, image=marked(self._photo, *mark))
        self._patch: Patch | None = None
        self._rest: Patch | None = None
        self._stream = ""
        self._looked_at = ""
        self._told_s = float("-inf")
        self._published_s = float("-inf")
        self._tick_s = float("-inf")
        self._heard_s = float("-inf")
        self._speech: list[Pcm] = []
        self._push_due_s = 0.0
        self._times: list[float] = []
        self._skew_ms = 0.0
        self._counted: Counter[str] = Counter()
        tally.begin("gap_samples", "patch_epoch", "patch_face", "published")
        tally.begin(*(f"playout.{name}" for name in ("shown", "held", "late", "skipped", "twice", "overflow")))
        bus.publishes("session", "ingest")
        bus.receives("audio", "face", "patch", "beat")
        bus.watch(self._wake.fileno())
        self._look_at(book.state.face)

    # ---- what comes in

    def handle(self, event: Event) -> None:
        """Take what the other services tell, and commands of the web part."""
        if isinstance(event, Ready):
            self._run_commands()
            return
        if isinstance(event, Subscribed):
            self._told_s = float("-inf")  # a service that has just come need not wait for the next second
        if not isinstance(event, Delivery):
            return
        match event.message:
            case Audio() | Gap() as sound:
                self._hear(sound)
            case Patch() as patch:
                self._take(patch)
            case Face() | FaceProblem() as answer:
                self._face_came(answer)
            case Beat() as beat:
                self.health.beat(beat, time.monotonic())
            case _:
                pass

    def command(self, do: Callable[[], Any]) -> Any:
        """Run something in the loop's thread and wait for its result; for the threads of the web part.

        Raises:
            TimeoutError: the loop did not answer within 2 s.
        """
        future: Future[Any] = Future()
        self._commands.put((do, future))
        self._waker.send(b"c")
        return future.result(timeout=2.0)

    def _run_commands(self) -> None:
        self._wake.recv(4096)
        while not self._commands.empty():
            do, future = self._commands.get()
            try:
                future.set_result(do())
            except Exception as error:  # noqa: BLE001  # it is handed to the thread that asked
                future.set_exception(error)

    def _hear(self, sound: Audio | Gap) -> None:
        state = self.book.state
        if sound.session != state.session or sound.epoch != state.epoch or not state.running:
            return
        if self._stream and sound.stream != self._stream:
            # audio_capture began anew within the epoch: its count no longer fits, so everybody begins anew.
            self._tally.count("time_line_broken")
            self.change()
            return
        self._stream = sound.stream
        self._heard_s = now_s = time.monotonic()
        if isinstance(sound, Gap):
            self._tally.count("gap_samples", sound.samples)
            return
        self.playout.heard(sound.first_sample + len(sound.pcm), now_s)
        power = float(np.mean(np.square(sound.pcm.astype(np.float32) / 32768.0)))
        level = 10.0 * np.log10(max(1e-10, power))
        before = -100.0 if self.level_db is None else self.level_db
        self.level_db = max(level, before - 1.5)  # 75 dB a second down, at once up: as level meters do

    def _take(self, patch: Patch) -> None:
        state = self.book.state
        if patch.rest and patch.face == state.face:
            self._rest = patch  # the mouth at rest is the same in every epoch
        if patch.session != state.session or patch.epoch != state.epoch or not state.running:
            self._tally.count("patch_epoch")
        elif patch.face != state.face:
            self._tally.count("patch_face")
        elif patch.frame or not patch.rest:  # the rest that a worker tells when it comes belongs to no moment
            self._push(patch, time.monotonic())

    def _push(self, patch: Patch, now_s: float) -> None:
        late = self.playout.counters["late"]
        self.playout.push(patch, now_s)
        if patch.captured_ns and not patch.rest:
            self._tally.observe("age_arrived", now_s - patch.captured_ns / 1e9)
        if self._tally.tracing:
            which = (patch.session, patch.epoch, patch.frame)
            self._tally.trace("arrived", *which, worker=patch.worker, render_ms=patch.render_ms)
            if self.playout.counters["late"] > late:
                self._tally.trace("dropped", *which, reason="late")

    def _face_came(self, answer: Face | FaceProblem) -> None:
        wanted = self.photos.answered(answer)
        if isinstance(answer, Face) and answer.face == wanted:
            if answer.face != self.book.state.face:
                self.book.change_face(answer.face)
                self._told_s = float("-inf")
            self._photo = answer.photo
            self._patch = self._rest = None
            self._renew(None)

    # ---- what the web part asks, in the loop's thread

    def change(self, *, running: bool | None = None, source: str | None = None) -> None:
        """Begin a new epoch."""
        state = self.book.change(running=running, source=source)
        self._tally.say(f"{'runs' if state.running else 'is stopped'}, epoch {state.epoch} session={state.session}")
        self._count_playout()
        self._counted.clear()
        self.playout = Playout()
        self._stream = ""
        self._speech = []
        self.level_db = self.latency_ms = None
        self._heard_s = time.monotonic()
        self._told_s = float("-inf")
        if not self.book.state.running:
            self._renew(None)

    def show_face(self, face: str) -> None:
        """Ask for a face; it is shown when it is there."""
        self._look_at(face)

    def clear(self) -> None:
        """Stop and go back to the demo face."""
        self.change(running=False)
        self.show_face(self.photos.clear())

    def speak(self, pcm: npt.NDArray[np.int16]) -> None:
        """Begin to say a piece of sound."""
        self.change(running=True, source="network")
        state = self.book.state
        self._speech = [
            Pcm(session=state.session, epoch=state.epoch, first_sample=at, pcm=pcm[at : at + SAMPLE_RATE_HZ])
            for at in range(0, len(pcm), SAMPLE_RATE_HZ)
        ][::-1]

    def _look_at(self, face: str) -> None:
        """Subscribe to a face anew: face_prep answers each new subscription."""
        if self._looked_at:
            self._bus.unsubscribe("face", self._looked_at)
        self._bus.subscribe("face", face)
        self._looked_at = face
        self.photos.want(face)
        self._told_s = float("-inf")

    # ---- what is due

    def turn(self, now_s: float) -> float:
        """Show the frame that is due; tell the state; pass photos and sound on."""
        state = self.book.state
        due_s = self._show(now_s)
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._bus.send("session", state)
            self._count_playout()
            for photo in self.photos.to_tell():
                self._bus.send("ingest", photo, "photo")
            lost = self.photos.given_up(now_s)
            if lost:
                self.show_face(self.photos.clear())
                self.book.change_face(self.photos.demo_id)
        if self._speech and now_s >= self._push_due_s:
            self._push_due_s = now_s + PUSH_S
            self._bus.send("ingest", self._speech.pop(), "pcm")
        if state.running and self._ended() and now_s - self._heard_s > DRAINED_S:
            self.change(running=False)
        if now_s - self._heard_s > 0.5:
            self.level_db = None
        return min(due_s, self._told_s + TELL_S, self._push_due_s if self._speech else float("inf"))

    def _ended(self) -> bool:
        """Whether the source has told all it has and none is on its way."""
        if self._speech or self.book.state.source == "mic":
            return False
        state = self.health.info("audio_capture", "source_state")
        return state == "ended" or (state == "waiting" and self.book.state.source == "network")

    def _show(self, now_s: float) -> float:
        """Publish what is due; give the time at which the next is: 25 a second while it runs, else one."""
        if not self.book.state.running:
            if now_s - self._published_s >= STILL_S:
                self._publish(now_s)
            return self._published_s + STILL_S
        if now_s >= self._tick_s:
            if now_s - self._tick_s > MOST_BEHIND_S:  # it was stopped, or the machine slept: no burst of old ticks
                self._tick_s = now_s
            patch = self.playout.take(now_s) or self._rest
            if patch is not self._patch:
                self._renew(patch)
                if patch is not None and not patch.rest:
                    self._shown(patch, now_s)
            self._publish(now_s)
            self._tick_s = self.playout.next_tick_s(self._tick_s)
        return self._tick_s

    def _shown(self, patch: Patch, now_s: float) -> None:
        """Count how old a frame is, and how far from its sound, whose picture was due at `now_s` and is made now."""
        took_s = time.monotonic() - now_s
        lag_ms = now_s * 1000.0 - patch.captured_ns / 1e6
        self.latency_ms = lag_ms if self.latency_ms is None else 0.95 * self.latency_ms + 0.05 * lag_ms
        skew_s = now_s - self.playout.clock.time_of(sample_of(patch.frame)) - self.playout.delay_s
        self._skew_ms += 0.05 * (skew_s * 1000.0 - self._skew_ms)
        self._tally.observe("age_shown", lag_ms / 1000.0)
        self._tally.observe("took_compose", took_s)
        self._tally.observe("skew", abs(skew_s))
        if self._tally.tracing:
            told = {"at_ns": round(now_s * 1e9), "took_ms": took_s * 1000.0, "skew_ms": skew_s * 1000.0}
            self._tally.trace("shown", patch.session, patch.epoch, patch.frame, **told)

    def _count_playout(self) -> None:
        """Add to the totals what the playout counted since the last time; its own counts end with the epoch."""
        now = self.playout.counters.copy()
        for name, number in (now - self._counted).items():
            self._tally.count(f"playout.{name}", number)
        self._counted = now

    def _renew(self, patch: Patch | None) -> None:
        """Make the picture to publish from here on."""
        self._patch = patch
        picture = marked(compose(self._photo, patch), *self._mark)
        self._frame = Frame(
            seq=self._frame.seq + 1,
            image=picture,
            media_time=sample_of(patch.frame) if patch else 0,
            epoch=self.book.state.epoch,
        )

    def _publish(self, now_s: float) -> None:
        self._hub.publish(self._frame)
        self._published_s = now_s
        self._tally.count("published")
        self._times = [at for at in self._times if now_s - at < 1.0] + [now_s]

    # ---- what it tells of itself

    def fps(self, now_s: float) -> float:
        """Frames published in the last second."""
        return float(sum(now_s - at < 1.0 for at in self._times))

    def picture_size(self) -> tuple[int, int]:
        """Width and height of the picture, px."""
        return self._photo.shape[1], self._photo.shape[0]

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        counters = {f"playout_{name}": float(number) for name, number in self.playout.counters.items()}
        latency = {} if self.latency_ms is None else {"latency_ms": self.latency_ms}
        return {
            "running": float(self.book.state.running),
            "delay_ms": self.playout.delay_s * 1000.0,
            "skew_ms": self._skew_ms,
            "fps": self.fps(time.monotonic()),
            **latency,
            **counters,
        }

    def close(self) -> None:
        """An orderly end."""
        self.book.close()
        self._wake.close()
        self._waker.close()
