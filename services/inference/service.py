"""inference: takes mel windows that were given to this worker, renders them, publishes the patches."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from typing import Any, Final, Literal

import numpy as np

from services.inference.engine import Drive, Engine, Rendered
from shared.bus import Bus, Delivery, Event
from shared.messages import Credit, Face, Forget, Patch, Refusal, SessionState, Work
from shared.service import Tally

__all__ = ["Inference"]

CAPACITY: Final = 2
MOST_CAPACITY: Final = 8
HELD_S: Final = 0.1
"""work that a fast worker may hold beyond `CAPACITY`: what is on its way on a slow line counts as held"""
BATCH: Final = 4
BATCH_S: Final = 0.04
"""longest that a batch may take: a slow engine shows each frame as soon as it is made"""
PACES: Final = 15
"""renders whose median is the worker's pace: one that the machine held up says nothing"""
CREDIT_S: Final = 0.2
MOST_FACES: Final = 16
"""that are kept, unless the sessions show more"""
MOST_SESSIONS: Final = 64
SESSION_SILENT_S: Final = 5.0
"""a session that the streamer no longer tells of is forgotten"""
FACE_UNUSED_S: Final = 60.0
"""a face that no session shows is forgotten: the word that it is to be deleted may have come while we were away"""


class Inference:
    """One worker. It keeps prepared faces; everything else comes with the work."""

    name: Literal["inference"] = "inference"

    def __init__(self, engine: Engine[Any], bus: Bus, tally: Tally, info: dict[str, str]) -> None:
        self._engine = engine
        self._bus = bus
        self._tally = tally
        self._worker = bus.prefix + secrets.token_hex(6)
        self._queue: deque[tuple[Work, float]] = deque()
        self._states: dict[str, Any] = {}
        self._wanted: OrderedDict[str, float] = OrderedDict()
        """face -> when it was last asked for, monotonic s"""
        self._sessions: OrderedDict[str, SessionState] = OrderedDict()
        self._told_s: dict[str, float] = {}
        """session -> when it was last told of, monotonic s"""
        self._given: dict[str, tuple[int, str, int]] = {}
        """session -> epoch, face and number of the last frame that was given whole, laid on the photo"""
        self._done = -1
        self._wanted_here = False
        """work came: the hub did not refuse us"""
        self._credit_due_s = 0.0
        self._paces: deque[float] = deque(maxlen=PACES)
        self._pace_s = 0.0
        self._model = info.get("model", "")
        self.info = {"worker": self._worker, "engine": engine.name, **info, "faces": ""}
        tally.begin("given", "frames", "dropped_late", "dropped_no_face", "dropped_window", "dropped_epoch")
        bus.publishes("credit", "patch", "beat")
        bus.receives("work", "session", "face")
        bus.subscribe("work", self._worker)
        tally.say(f"is worker {self._worker}")

    def handle(self, event: Event) -> None:
        """Queue work; follow the sessions' faces and epochs."""
        if not isinstance(event, Delivery):
            return
        match event.message:
            case Work() as work:
                self._tally.count("given")
                self._queue.append((work, time.monotonic()))
                if work.face in self._wanted:
                    self._want(work.face)
                if not self._wanted_here:  # who gives work takes our pictures
                    self._wanted_here = True
                    for face in self._states:
                        self._tell_rest(face)
            case SessionState(ended=True) as state:
                self._leave(state.session)
            case SessionState() as state:
                self._sessions[state.session] = state
                self._sessions.move_to_end(state.session)
                self._told_s[state.session] = time.monotonic()
                while len(self._sessions) > MOST_SESSIONS:
                    self._leave(next(iter(self._sessions)))
                self._want(state.face)
            case Face() as face:
                self._prepare(face)
            case Forget() as forget:
                if forget.face in self._wanted:
                    self._forget(forget.face)
            case Refusal() as refusal:
                self._tally.drop("refused_by_hub", refusal.text)
            case _:
                pass  # a FaceProblem is for the streamer to tell

    def turn(self, now_s: float) -> float:
        """Render what waits; say how much more may come."""
        if self._queue:
            self._render(now_s)
            self._credit_due_s = now_s
        if now_s >= self._credit_due_s:
            self._credit_due_s = now_s + CREDIT_S
            self._clear(now_s)
            self._tell_credit()
        return now_s if self._queue else self._credit_due_s

    def _render(self, now_s: float) -> None:
        batch: list[Work] = []
        states: list[Any] = []
        most = max(1, min(BATCH, int(BATCH_S / self._pace_s))) if self._pace_s else 1
        while self._queue and len(batch) < most:
            work, came_s = self._queue.popleft()
            self._done = work.seq
            told = self._sessions.get(work.session)
            if told is not None and work.epoch < told.epoch:
                self._tally.count("dropped_epoch")
            elif (now_s - came_s) * 1000.0 > work.budget_ms:
                self._tally.drop("dropped_late", session=work.session)
            elif work.face not in self._states:
                self._want(work.face)
                self._tally.drop("dropped_no_face", "the face is not here yet", session=work.session)
            elif work.mel.shape[1] != self._engine.window.length:
                self._tally.drop("dropped_window", f"a mel window of {work.mel.shape[1]} frames came")
            else:
                batch.append(work)
                states.append(self._states[work.face])  # a further face that is wanted may put this one out
                self._tally.observe("took_queue", now_s - came_s)
            if self._tally.tracing:
                self._trace(work, "taken", at_ns=round(came_s * 1e9))
                if not batch or batch[-1] is not work:
                    self._trace(work, "dropped", reason="worker")
        if not batch:
            return
        drives = [Drive(work.mel, work.gain, work.session, work.frame, self._known(work)) for work in batch]
        began_s = time.perf_counter()
        rendered = self._engine.render(states, drives)
        took_ms = (time.perf_counter() - began_s) * 1000.0
        self._paces.append(took_ms / 1000.0 / len(batch))
        self._pace_s = sorted(self._paces)[len(self._paces) // 2]
        self._tally.count("frames", len(batch))
        self._tally.count("render_seconds", took_ms / 1000.0)
        self._tally.observe("took_render", took_ms / 1000.0)
        for work, drive, picture in zip(batch, drives, rendered, strict=True):
            if self._tally.tracing:
                self._trace(work, "rendered", took_ms=took_ms, batch=len(batch))
            self._send_patch(
                work.session,
                work.epoch,
                work.frame,
                work.face,
                work.captured_ns,
                took_ms,
                picture,
                on=int(drive.known) if picture.on_known else -1,
                rest=work.gain == 0.0 and not self._engine.window.in_silence,
            )
            if not picture.on_known and work.session in self._sessions:
                self._given[work.session] = work.epoch, work.face, work.frame

    def _known(self, work: Work) -> int:
        """The frame of the session that the streamer has whole; -1: none."""
        epoch, face, frame = self._given.get(work.session, (-1, "", -1))
        return frame if (epoch, face) == (work.epoch, work.face) else -1

    def _trace(self, work: Work, stage: str, **told: float | str) -> None:
        self._tally.trace(stage, work.session, work.epoch, work.frame, worker=self._worker, **told)

    def _send_patch(
        self,
        session: str,
        epoch: int,
        frame: int,
        face: str,
        captured_ns: int,
        took_ms: float,
        picture: Rendered,
        *,
        on: int = -1,
        rest: bool,
    ) -> None:
        patch = Patch(
            session=session,
            epoch=epoch,
            frame=frame,
            on=on,
            face=face,
            worker=self._worker,
            rest=rest,
            x=picture.x,
            y=picture.y,
            captured_ns=captured_ns,
            render_ms=min(took_ms, 60_000.0),
            image=picture.image,
            mask=picture.mask,
        )
        self._bus.send("patch", patch)

    def _want(self, face: str) -> None:
        """Subscribe to a face; face_prep answers a subscription with the face."""
        known = face in self._wanted
        self._wanted[face] = time.monotonic()
        self._wanted.move_to_end(face)
        if known:
            return
        self._bus.subscribe("face", face)
        shown = {state.face for state in self._sessions.values()} | {face}
        unused = [wanted for wanted in self._wanted if wanted not in shown]
        for too_many in unused[: max(0, len(self._wanted) - MOST_FACES)]:
            self._forget(too_many)

    def _clear(self, now_s: float) -> None:
        """Forget sessions that are told of no more, and faces that nobody has asked for since."""
        for session in [name for name, told_s in self._told_s.items() if now_s - told_s > SESSION_SILENT_S]:
            self._leave(session)
        for face in [name for name, asked_s in self._wanted.items() if now_s - asked_s > FACE_UNUSED_S]:
            self._forget(face)

    def _leave(self, session: str) -> None:
        self._sessions.pop(session, None)
        self._told_s.pop(session, None)
        self._given.pop(session, None)

    def _forget(self, face: str) -> None:
        del self._wanted[face]
        self._bus.unsubscribe("face", face)
        self._states.pop(face, None)
        self.info["faces"] = " ".join(self._states)

    def _prepare(self, face: Face) -> None:
        if face.face in self._states or face.face not in self._wanted:
            return
        began_s = time.perf_counter()
        try:
            self._states[face.face] = self._engine.prepare(face)
        except ValueError as error:
            self._tally.drop("face_unfit", f"this engine cannot move the face: {error}")
            return
        if self._wanted_here:
            self._tell_rest(face.face)
        self._tally.count("faces_prepared")
        self.info["faces"] = " ".join(self._states)
        self._tally.count("prepare_seconds", time.perf_counter() - began_s)

    def _tell_rest(self, face: str) -> None:
        """Send the mouth at rest as soon as the face is there, so that it is closed before the first word."""
        silence = np.full((80, self._engine.window.length), -4.0, np.float32)
        (picture,) = self._engine.render([self._states[face]], [Drive(mel=silence, gain=0.0)])
        for session, shown in self._sessions.items():
            if shown.face == face:
                self._send_patch(session, shown.epoch, 0, face, 0, 0.0, picture, rest=True)

    def _tell_credit(self) -> None:
        window = self._engine.window
        self._bus.send(
            "credit",
            Credit(
                worker=self._worker,
                engine=self._engine.name,
                capacity=self._capacity(),
                held=min(len(self._queue), 64),
                done=self._done,
                back=window.back,
                ahead=window.ahead,
                shift=window.shift,
                in_silence=window.in_silence,
                model=self._model,
                window_ms=self._pace_s * 1000.0,
                faces=tuple(self._states),
            ),
        )

    def _capacity(self) -> int:
        most = int(HELD_S / self._pace_s) if self._pace_s else CAPACITY
        return max(CAPACITY, min(MOST_CAPACITY, most))

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        return {"queue": float(len(self._queue)), "faces": float(len(self._states)), "render_ms": self._pace_s * 1000.0}

    def close(self) -> None:
        """Nothing is kept beside the process."""
