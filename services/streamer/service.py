"""streamer: the sessions' states, clocks and pictures. The loop runs in one thread; the web part speaks to it through
`Control` (see stage.py)."""

from __future__ import annotations

import queue
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Literal

from services.streamer.control import DEFAULT
from services.streamer.health import Health
from services.streamer.push import Push
from services.streamer.session import Session
from services.streamer.sessions import ForgetList
from shared.bus import Bus, Delivery, Event, Ready, Subscribed
from shared.messages import (
    FORGOTTEN,
    Audio,
    Beat,
    Face,
    FaceProblem,
    Forget,
    Gap,
    Patch,
    SessionState,
    SourceState,
)
from shared.service import Tally

__all__ = ["Streamer"]

LAST_WORDS: Final = 3
"""times that something which must not be missed is told, a second apart; that a picture is to be deleted is told until
face_prep answers"""
TELL_S: Final = 1.0
LOOK_S: Final = 1.0
"""how often it is looked for sessions that nobody needs"""


class Streamer:
    """The sessions, by name, and the faces that they ask for."""

    name: Literal["streamer"] = "streamer"

    def __init__(
        self, bus: Bus, tally: Tally, owed: ForgetList, *, idle_s: float, on_idle: Callable[[str], None]
    ) -> None:
        """Begin without sessions.

        Args:
            bus: its sockets.
            tally: its counts.
            owed: the faces that are still to be deleted.
            idle_s: time after which a session that nobody needs is ended.
            on_idle: is told the name of such a session, in the loop.
        """
        self._bus = bus
        self._tally = tally
        self._idle_s = idle_s
        self._on_idle = on_idle
        self.sessions: dict[str, Session] = {}
        self.health = Health()
        self.info: dict[str, str] = {}
        self._faces: dict[str, Face] = {}
        """those that a session looks at and that came"""
        self._asked: dict[str, set[str]] = {}
        """face -> sessions that look at it"""
        self._owed = owed
        self._last_words: list[tuple[int, str, SessionState | Forget]] = [
            (LAST_WORDS, "ingest", Forget(face=face)) for face in owed.faces
        ]
        """how often still to tell, topic, message"""
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._told_s = float("-inf")
        self._looked_s = float("-inf")
        tally.begin("gap_samples", "patch_epoch", "patch_face", "patch_base", "published", "push_lost")
        tally.begin("sound.missing_samples", "sound.tap_dropped_samples")
        tally.begin(*(f"playout.{name}" for name in ("shown", "held", "late", "skipped", "twice", "overflow")))
        bus.publishes("session", "ingest")
        bus.receives("audio", "face", "patch", "beat")
        bus.subscribe("face", FORGOTTEN)
        bus.watch(self._wake.fileno())

    # ---- what comes in

    def handle(self, event: Event) -> None:
        """Take what the other services tell, and commands of the web part."""
        if isinstance(event, Ready):
            self._run_commands()
            return
        if isinstance(event, Subscribed):
            for session in self.sessions.values():
                session.tell_again()  # a service that has just come need not wait for the next second
        if not isinstance(event, Delivery):
            return
        match event.message:
            case Audio() | Gap() | SourceState() as sound:
                if sound.session in self.sessions:
                    self.sessions[sound.session].hear(sound)
            case Patch() as patch:
                if patch.session in self.sessions:
                    self.sessions[patch.session].take(patch)
                else:
                    self._tally.count("patch_epoch")
            case Face() | FaceProblem() as answer:
                self._face_came(answer)
            case Forget() as done:
                self._forgotten(done.face)
            case Beat() as beat:
                self.health.beat(beat, time.monotonic())
            case _:
                pass

    def command(self, do: Callable[[], Any], patience_s: float = 2.0) -> Any:
        """Run something in the loop's thread and wait for its result; for the threads of the web part.

        Raises:
            TimeoutError: the loop did not answer in time; it may do it later.
        """
        future: Future[Any] = Future()
        self._commands.put((do, future))
        self.wake()
        return future.result(timeout=patience_s)

    def wake(self) -> None:
        """Have the loop look what is to be done; from any thread."""
        try:
            self._waker.send(b"c")
        except BlockingIOError:
            return  # it is awake, with more to do than it has read of
        except OSError:
            return  # it has ended

    def _run_commands(self) -> None:
        self._wake.recv(4096)
        while not self._commands.empty():
            do, future = self._commands.get()
            try:
                future.set_result(do())
            except Exception as error:  # noqa: BLE001  # it is handed to the thread that asked
                future.set_exception(error)
        for session in self.sessions.values():
            session.pushed()

    def _forgotten(self, face: str) -> None:
        """A picture is deleted. What was not told of it yet is about another time."""
        self._last_words = [told for told in self._last_words if told[0] == LAST_WORDS or not _forgets(told[2], face)]

    def _face_came(self, answer: Face | FaceProblem) -> None:
        lookers = self._asked.get(answer.face, set())
        if isinstance(answer, Face) and lookers:
            self._faces[answer.face] = answer
        for name in lookers:
            self.sessions[name].face_came(answer)

    # ---- what the web part asks, in the loop's thread

    def add(self, session: Session) -> None:
        """Begin a session."""
        # One of the same name may just have ended: the others drop that when they hear of the newer epoch.
        self._last_words = [t for t in self._last_words if not _ends(t[2], session.name)]
        self.sessions[session.name] = session
        self.show_face(session, session.book.state.face)

    def remove(self, name: str, why: str) -> None:
        """End a session for good; its faces are deleted everywhere, unless another session shows them."""
        session = self.sessions.pop(name)
        session.count_up()
        self._leave(session)
        self._forget_faces(session.book.use_none(), session.photos.clear())
        state = session.book.state
        gone = SessionState(
            session=name, epoch=state.epoch + 1, running=False, source=state.source, face=state.face, ended=True
        )
        self._last_words.append((LAST_WORDS, "session", gone))
        self._told_s = float("-inf")
        session.close(why)

    def show_face(self, session: Session, face: str) -> None:
        """Have a session ask for a face; it is shown when it is there."""
        self._leave(session)
        session.photos.want(face)
        self._forget_faces(session.book.use(face), session.photos.demo_id)
        session.tell_again()
        self._last_words = [told for told in self._last_words if not _forgets(told[2], face)]
        lookers = self._asked.setdefault(face, set())
        lookers.add(session.name)
        known = self._faces.get(face)
        if known is not None:
            session.face_came(known)
            return
        if len(lookers) > 1:
            self._bus.unsubscribe("face", face)
        self._bus.subscribe("face", face)  # face_prep answers each new subscription

    def clear(self, session: Session) -> None:
        """Stop a session and go back to the demo face; its photos are forgotten."""
        session.change(running=False, cut="The session was cleared.")
        demo = session.photos.clear()
        session.show_demo()
        self.show_face(session, demo)
        self._forget_faces(session.book.use_none(), demo)

    def interrupt(self, push: Push) -> None:
        """Interrupt the session that listens to a connection, if one does."""
        for session in self.sessions.values():
            if session.pushes(push):
                session.interrupt()

    def _leave(self, session: Session) -> None:
        """A session looks at its face no more."""
        face = session.photos.wanted
        lookers = self._asked.get(face, set())
        lookers.discard(session.name)
        if face in self._asked and not lookers:
            del self._asked[face]
            self._faces.pop(face, None)
            self._bus.unsubscribe("face", face)

    def _forget_faces(self, faces: list[str], demo: str) -> None:
        """Have pictures deleted that no session uses any more."""
        kept = {demo}
        for session in self.sessions.values():
            kept |= {session.photos.wanted, session.book.state.face, *session.book.used}
        for face in set(faces) - kept:
            self._last_words.append((LAST_WORDS, "ingest", Forget(face=face)))
            self._told_s = float("-inf")

    # ---- what is due

    def turn(self, now_s: float) -> float:
        """Turn every session; tell what must not be missed."""
        due_s = min((session.turn(now_s) for session in self.sessions.values()), default=now_s + TELL_S)
        for session in self.sessions.values():
            if session.photos.given_up(now_s):
                demo = session.photos.clear()
                session.show_demo()
                self.show_face(session, demo)
        if self._last_words and now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            for _, topic, message in self._last_words:
                self._bus.send(topic, message, "photo" if topic == "ingest" else "")
            self._last_words = [
                (max(1, left - 1), topic, message)
                for left, topic, message in self._last_words
                if left > 1 or isinstance(message, Forget)  # until face_prep says that it is done
            ]
        self._note_owed()
        if self._last_words:
            due_s = min(due_s, self._told_s + TELL_S)
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            for name in [n for n, s in self.sessions.items() if s.idle_s(now_s) > self._idle_s]:
                self._on_idle(name)
        return due_s

    def _note_owed(self) -> None:
        if not self._last_words and not self._owed.faces:
            return
        self._owed.note(tuple(told.face for _, _, told in self._last_words if isinstance(told, Forget)))

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        playout = sum((session.playout.counters for session in self.sessions.values()), Counter[str]())
        return {
            "sessions": float(len(self.sessions)),
            "faces": float(len(self._faces)),
            **{f"playout_{name}": float(number) for name, number in playout.items()},
        }

    def close(self) -> None:
        """An orderly end: sessions that somebody made end with their faces, the default one only with its state."""
        for name in [name for name in self.sessions if name != DEFAULT]:
            self.remove(name, "The server is stopping.")
        for _, topic, message in self._last_words:
            self._bus.send(topic, message, "photo" if topic == "ingest" else "")
        self._note_owed()
        for session in self.sessions.values():
            session.close("The server is stopping.")
        self._wake.close()
        self._waker.close()


def _forgets(message: SessionState | Forget, face: str) -> bool:
    return isinstance(message, Forget) and message.face == face


def _ends(message: SessionState | Forget, session: str) -> bool:
    return isinstance(message, SessionState) and message.session == session
