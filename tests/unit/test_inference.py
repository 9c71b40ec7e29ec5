"""What a worker keeps of the sessions: whose face it holds, and for how long. Time is handed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from services.inference import service
from services.inference.service import FACE_UNUSED_S, MOST_FACES, SESSION_SILENT_S, Inference
from shared.bus import Bus, Delivery
from shared.messages import Forget, Message, SessionState, Work
from shared.service import Tally
from tests.examples import EXAMPLES
from tests.rig.stack import free_ports
from tests.rig.worker import SteadyEngine


class Worker:
    """A worker with nobody at the other end, and its clock."""

    def __init__(self) -> None:
        self.bus = Bus("inference", "127.0.0.1", free_ports(9))
        self.inference = Inference(SteadyEngine(0.0, None), self.bus, Tally(logging.getLogger("test")), {"model": ""})
        self.now_s = time.monotonic()

    def hear(self, message: Message) -> None:
        """Take a message, now."""
        self.inference.handle(Delivery(type(message).KIND, "", message))

    def tell(self, session: str, face: str) -> None:
        """Hear of a session that shows a face."""
        self.hear(SessionState(session=session, epoch=1, running=True, source="demo", face=face))

    def show(self, session: str, face: str) -> None:
        """Hear of a session, and be sent its face."""
        self.tell(session, face)
        self.hear(msgspec.structs.replace(EXAMPLES["face"], face=face))

    def after(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.inference.turn(self.now_s)

    @property
    def faces(self) -> set[str]:
        """Those that it says to hold."""
        return set(self.inference.info["faces"].split())

    @property
    def asked(self) -> set[str]:
        """Those that it has subscribed to."""
        return set(self.bus._keys_of["face"])


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker()
    clock = SimpleNamespace(monotonic=lambda: made.now_s, perf_counter=time.perf_counter)
    monkeypatch.setattr(service, "time", clock)
    yield made
    made.bus.close()


def test_a_face_that_no_session_shows_is_forgotten_without_being_told(worker: Worker):
    worker.show("s", "gone")
    worker.show("t", "kept")
    for _ in range(round(FACE_UNUSED_S) - 1):
        worker.after(1.0)
        worker.tell("t", "kept")
    assert worker.faces == worker.asked == {"gone", "kept"}, "a session may come back to it"
    worker.after(2.0)
    assert worker.faces == worker.asked == {"kept"}
    worker.show("s", "gone")
    assert worker.faces == worker.asked == {"gone", "kept"}, "it can be had again"


def test_a_face_just_asked_for_is_waited_for(worker: Worker):
    worker.tell("s", "late")
    for _ in range(3):
        worker.after(FACE_UNUSED_S / 2.0)
        worker.tell("s", "late")
    worker.hear(msgspec.structs.replace(EXAMPLES["face"], face="late"))
    assert worker.faces == worker.asked == {"late"}


def test_a_face_for_which_there_is_work_is_kept(worker: Worker):
    worker.show("s", "f0")
    work = EXAMPLES["work"]
    assert isinstance(work, Work)
    for seq in range(4):  # the streamer is away, the sound goes on
        worker.after(FACE_UNUSED_S / 2.0)
        worker.hear(msgspec.structs.replace(work, seq=seq, face="f0", mel=np.zeros((80, 8), np.float32)))
    assert worker.faces == {"f0"}


def test_a_session_that_is_told_of_no_more_holds_no_face(worker: Worker):
    worker.show("old", "first")
    worker.after(SESSION_SILENT_S + 1.0)
    for number in range(MOST_FACES):
        worker.show("s", f"f{number}")
    assert worker.faces == worker.asked == {f"f{number}" for number in range(MOST_FACES)}
    worker.show("t", "one-more")
    assert len(worker.asked) == MOST_FACES


def test_a_face_goes_at_once_when_it_is_told(worker: Worker):
    worker.show("s", "f0")
    worker.hear(Forget(face="f0"))
    assert not worker.faces
    assert not worker.asked
