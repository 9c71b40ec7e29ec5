"""mel_features: sound in, one mel window for each frame out, each to exactly one worker that has credit."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Final, Literal

from services.inference.engine import MelWindow
from services.mel_features.track import Track
from services.mel_features.waiting import Waiting, Window
from shared.bus import Bus, Delivery, Event, Subscribed, Unsubscribed
from shared.dispatch import WorkerPool
from shared.messages import Audio, Credit, Gap, Refusal, SessionState, Work
from shared.service import Tally

__all__ = ["MelFeatures"]

BUDGET_S: Final = 0.2
"""how long a window may take from its last sound to its patch"""
MOST_WAIT_S: Final = 0.12
"""how long it may wait for credit: when workers are short, frames fall out evenly, and those made are not old"""
SHORT_S: Final = 2.0
"""over which a shortage of workers is counted"""
MOST_SESSIONS: Final = 256
MOST_WAITING: Final = 64
"""windows that wait for credit, of all sessions"""
WAITING_TURN_S: Final = 0.02
"""how often it is looked whether a window has waited too long"""
IDLE_TURN_S: Final = 0.1
"""the same for credit that was not honoured, while nothing waits"""
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

    def __init__(self, bus: Bus, tally: Tally, engine: str = "", model: str = "") -> None:
        """Begin without workers.

        Args:
            bus: its sockets.
            tally: its counts.
            engine: engine of this hub.
            model: fingerprint of its model; empty when the hub has none.
        """
        self._bus = bus
        self._tally = tally
        self._pool = WorkerPool(engine, model)
        self._sessions: dict[str, _Session] = {}
        self._waiting = Waiting()
        self._given: defaultdict[str, dict[int, Window]] = defaultdict(dict)
        """worker -> running number -> what it holds"""
        self._now_s = 0.0
        self._counted_s = 0.0
        self._wanted = 0
        self._missed = 0
        self._short = 0.0
        self.info: dict[str, str] = {"engine": engine, "model": model}
        tally.begin("heard", "windows", "lost_samples", "dropped_late", "dropped_full", "dropped_epoch", "given_again")
        bus.publishes("work", "beat")
        bus.receives("audio", "credit", "session")

    def handle(self, event: Event) -> None:
        """Follow workers, sessions and sound."""
        self._now_s = time.monotonic()
        match event:
            case Subscribed(topic="work", key=worker):
                self._pool.listen(worker)
            case Unsubscribed(topic="work", key=worker):
                self._take_back(worker)
                self._hand_out()
            case Delivery(message=Credit() as credit):
                self._pool.credit(credit, self._now_s)
                given, held = self._given.get(credit.worker, {}), self._pool.held(credit.worker)
                for seq in [seq for seq in given if seq not in held]:
                    del given[seq]
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
            self._drop(name)
        for worker, why in self._pool.refusals(now_s):
            self._tally.drop("worker_refused", why)
            self._bus.send("work", Refusal(worker=worker, text=why), worker)
        self._hand_out()
        self._count(now_s)
        waits = len(self._waiting) > 0
        self._bus.wakes("credit", wake=waits)  # else it is early enough when the next sound comes
        return now_s + (WAITING_TURN_S if waits else IDLE_TURN_S)

    def _take_back(self, worker: str) -> None:
        """A worker is gone: what it held goes to another one, as long as there is time."""
        lost = self._pool.leave(worker)
        held = self._given.pop(worker, {})
        again = [held[seq] for seq in lost if seq in held and self._is_wanted(held[seq])]
        for window in reversed(again):
            self._waiting.put_back(replace(window, until_s=window.deadline_s))
        self._tally.count("given_again", len(again))

    def _is_wanted(self, window: Window) -> bool:
        session = self._sessions.get(window.session)
        return session is not None and window.epoch >= session.state.epoch and window.deadline_s > self._now_s

    def _count(self, now_s: float) -> None:
        """Say what share of the frames finds no worker in time."""
        if now_s - self._counted_s < SHORT_S:
            return
        self._counted_s = now_s
        missed = min(self._missed, self._wanted)  # some were wanted before
        self._short = missed / self._wanted if missed and self._pool.able() else 0.0
        wanted_hz, made_hz = self._wanted / SHORT_S, (self._wanted - missed) / SHORT_S
        self.info["short"] = ""
        if self._short > 0.0:
            more = self._pool.able() * missed / max(1, self._wanted - missed)
            self.info["short"] = (
                f"workers make {made_hz:.0f} of {wanted_hz:.0f} frames a second; {more:.1f} more like these are needed"
            )
        self._wanted = self._missed = 0

    def _drop(self, name: str) -> None:
        del self._sessions[name]
        self._forget(name, "dropped_epoch")
        self._waiting.forget_turns(set(self._sessions))

    def _follow(self, state: SessionState) -> None:
        session = self._sessions.get(state.session)
        if state.ended:
            if session is not None:
                self._drop(state.session)
            return
        if session is None:
            if len(self._sessions) >= MOST_SESSIONS:
                self._tally.drop("sessions_refused", f"more than {MOST_SESSIONS} sessions")
                return
            self._sessions[state.session] = _Session(state, self._now_s)
            return
        if state.epoch > session.state.epoch:
            self._forget(state.session, "dropped_epoch")
        session.state, session.told_s = state, self._now_s

    def _forget(self, name: str, why: str) -> None:
        self._tally.count(why, self._waiting.forget(name))

    def _hear(self, sound: Audio | Gap) -> None:
        self._tally.count("heard")
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
        if track.lost_samples > lost and not (isinstance(sound, Gap) and sound.reason == "pause"):
            self._tally.drop("lost_samples", "sound is missing", track.lost_samples - lost, session=sound.session)
        for item in due:
            self._wanted += 1
            self._tally.observe("age_windowed", self._now_s - item.captured_ns / 1e9)
            if self._tally.tracing:
                last_ns = sound.captured_ns if isinstance(sound, Audio) else 0
                took_ms = (time.monotonic() - self._now_s) * 1000.0
                told = {"sample": track.position, "heard_ns": item.captured_ns, "last_ns": last_ns, "took_ms": took_ms}
                self._tally.trace("windowed", sound.session, sound.epoch, item.frame, **told)
            self._waiting.put(
                Window(
                    session=sound.session,
                    epoch=sound.epoch,
                    face=session.state.face,
                    due=item,
                    until_s=self._now_s + MOST_WAIT_S,
                    deadline_s=self._now_s + BUDGET_S,
                )
            )
        while len(self._waiting) > MOST_WAITING:
            self._give_up(self._waiting.pop_longest(), "dropped_full", "more windows wait than workers can take")

    def _hand_out(self) -> None:
        """Give what waits to workers with credit, the sessions in turn."""
        for window in self._waiting.expired(self._now_s):
            self._give_up(window, "dropped_late", "no worker had credit in time")
        while self._pool.free() and any(self._given_out(window) for window in self._waiting.in_turn()):
            pass

    def _given_out(self, window: Window) -> bool:
        """Give a window to a worker, if one can do it in time."""
        given = self._pool.assign(window.face, self._now_s, window.deadline_s)
        if given is None:
            return False
        self._waiting.take(window)
        due = window.due
        work = Work(
            session=window.session,
            epoch=window.epoch,
            frame=due.frame,
            face=window.face,
            seq=given.seq,
            budget_ms=(window.deadline_s - self._now_s) * 1000.0,
            gain=due.gain,
            captured_ns=due.captured_ns,
            mel=due.mel,
        )
        waited_s = time.monotonic() - (window.deadline_s - BUDGET_S)
        self._tally.observe("took_credit", waited_s)
        self._tally.observe("age_given", self._now_s - due.captured_ns / 1e9)
        if self._tally.tracing:
            told: dict[str, str | float] = {"worker": given.worker, "seq": given.seq, "took_ms": waited_s * 1000.0}
            self._tally.trace("given", window.session, window.epoch, due.frame, **told)
        self._bus.send("work", work, given.worker)
        self._given[given.worker][given.seq] = window
        self._tally.count("windows")
        return True

    def _give_up(self, window: Window, why: str, words: str) -> None:
        """Make no frame of a window."""
        self._missed += 1
        self._tally.drop(why, words, session=window.session)
        if self._tally.tracing:
            self._tally.trace("dropped", window.session, window.epoch, window.due.frame, reason=why)

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        pool = {f"pool_{name}": float(number) for name, number in self._pool.counters.items()}
        return {
            "workers": float(len(self._pool)),
            "workers_able": float(self._pool.able()),
            "credit": float(self._pool.free()),
            "queue": float(len(self._waiting)),
            "in_work": float(self._pool.waiting_for()),
            "short": self._short,
            "sessions": float(len(self._sessions)),
            "silent_frames": float(sum(s.track.silent_frames for s in self._sessions.values() if s.track)),
            **pool,
        }

    def close(self) -> None:
        """Nothing is open."""
