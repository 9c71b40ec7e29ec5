"""mel_features: sound in, one mel window for each frame out, each to exactly one worker that has credit."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from services.inference.engine import MelWindow
from services.mel_features.track import Due, Track
from shared.bus import Bus, Delivery, Event, Subscribed, Unsubscribed
from shared.dispatch import WorkerPool
from shared.messages import Audio, Credit, Gap, SessionState, Work
from shared.service import Tally

__all__ = ["MelFeatures"]

BUDGET_S: Final = 0.2
"""how long a window may take from its last sound to its patch"""
MOST_WAITING: Final = 64
"""windows that wait for credit, of all sessions"""
SESSION_SILENT_S: Final = 5.0
"""a session that the streamer no longer tells of is forgotten"""


@dataclass
class _Session:
    state: SessionState
    told_s: float
    track: Track | None = None


class MelFeatures:
    """Follows the sound of every session and hands its windows out."""

    name: Literal["mel_features"] = "mel_features"

    def __init__(self, bus: Bus, tally: Tally) -> None:
        self._bus = bus
        self._tally = tally
        self._pool = WorkerPool()
        self._sessions: dict[str, _Session] = {}
        self._waiting: deque[tuple[str, int, str, Due, float]] = deque()
        self._now_s = 0.0
        self.info: dict[str, str] = {}
        bus.publishes("work", "beat")
        bus.receives("audio", "credit", "session")

    def handle(self, event: Event) -> None:
        """Follow workers, sessions and sound."""
        self._now_s = time.monotonic()
        match event:
            case Subscribed(topic="work", key=worker):
                self._pool.join(worker, self._now_s)
            case Unsubscribed(topic="work", key=worker):
                self._pool.leave(worker)
            case Delivery(message=Credit() as credit):
                self._pool.credit(credit, self._now_s)
                self._hand_out()
            case Delivery(message=SessionState() as state):
                self._follow(state)
            case Delivery(message=Audio() | Gap() as sound):
                self._hear(sound)
                self._hand_out()
            case _:
                pass

    def turn(self, now_s: float) -> float:
        """Withdraw credit that was not honoured, forget what is too late."""
        self._now_s = now_s
        self._pool.expire(now_s)
        for name in [n for n, s in self._sessions.items() if now_s - s.told_s > SESSION_SILENT_S]:
            del self._sessions[name]
        self._hand_out()
        return now_s + 0.02

    def _follow(self, state: SessionState) -> None:
        session = self._sessions.get(state.session)
        if session is None:
            self._sessions[state.session] = _Session(state, self._now_s)
            return
        if state.epoch > session.state.epoch:
            self._forget(state.session, "dropped_epoch")
        session.state, session.told_s = state, self._now_s

    def _forget(self, name: str, why: str) -> None:
        kept = [item for item in self._waiting if item[0] != name]
        self._tally.count(why, len(self._waiting) - len(kept))
        self._waiting = deque(kept)

    def _hear(self, sound: Audio | Gap) -> None:
        session = self._sessions.get(sound.session)
        if session is None or not session.state.running or sound.epoch < session.state.epoch:
            self._tally.count("sound_ignored")
            return
        track = session.track
        if track is None or track.epoch != sound.epoch or track.stream != sound.stream:
            track = session.track = Track(sound.epoch, sound.stream)
        engine = self._pool.engine()
        track.set_window(
            None if engine is None else MelWindow(engine.back, engine.ahead, engine.shift, engine.in_silence)
        )
        if not self._pool.holds(session.state.face):
            track.tell_rest()
        lost = track.lost_samples
        if isinstance(sound, Audio):
            due = track.push(sound.first_sample, sound.pcm, sound.captured_ns)
        else:
            missing = sound.first_sample + sound.samples - track.position
            due = track.gap(missing) if missing > 0 else []
        if track.lost_samples > lost:
            self._tally.drop("lost_samples", "sound is missing", track.lost_samples - lost)
        for item in due:
            self._waiting.append((sound.session, sound.epoch, session.state.face, item, self._now_s + BUDGET_S))
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._tally.drop("dropped_full", "more windows wait than workers can take")

    def _hand_out(self) -> None:
        """Give what waits to workers with credit, oldest first."""
        engine = self._pool.engine()
        while self._waiting:
            name, epoch, face, due, deadline_s = self._waiting[0]
            if deadline_s <= self._now_s:
                self._waiting.popleft()
                self._tally.drop("dropped_late", "no worker had credit in time")
                continue
            given = None if engine is None else self._pool.assign(face, engine.engine, deadline_s)
            if given is None:
                return
            self._waiting.popleft()
            work = Work(
                session=name,
                epoch=epoch,
                frame=due.frame,
                face=face,
                seq=given.seq,
                budget_ms=(deadline_s - self._now_s) * 1000.0,
                gain=due.gain,
                captured_ns=due.captured_ns,
                mel=due.mel,
            )
            self._bus.send("work", work, given.worker)
            self._tally.count("windows")

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        pool = {f"pool_{name}": float(number) for name, number in self._pool.counters.items()}
        return {
            "workers": float(len(self._pool)),
            "credit": float(self._pool.free()),
            "queue": float(len(self._waiting)),
            "in_work": float(self._pool.waiting_for()),
            "sessions": float(len(self._sessions)),
            "silent_frames": float(sum(s.track.silent_frames for s in self._sessions.values() if s.track)),
            **pool,
        }

    def close(self) -> None:
        """Nothing is open."""
