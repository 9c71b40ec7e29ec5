"""A session of the streamer: whose face is seen, what becomes of pushed sound, and what others hear of its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from services.streamer.control import DEFAULT
from services.streamer.mjpeg import FrameHub
from services.streamer.photos import Photos
from services.streamer.push import Push
from services.streamer.service import LAST_WORDS, TELL_S, Streamer
from services.streamer.session import MOST_WORKERS, OWED_S, Session
from services.streamer.sessions import MOST_FACES, ForgetList, SessionBook
from services.streamer.sound import SoundHub
from shared.bus import Bus, Delivery
from shared.messages import Audio, Face, Flush, Forget, Message, Patch, Pcm, SessionState
from shared.service import Tally
from tests.rig.stack import free_ports

DEMO = Path(__file__).parents[2] / "services" / "face_prep" / "assets" / "demo_face.png"


class Noted(Bus):
    """A bus that keeps what was sent."""

    def __init__(self) -> None:
        super().__init__("streamer", "127.0.0.1", free_ports(9))
        self.sent: list[Message] = []

    def send(self, name: str, message: Message, key: str = "") -> None:
        self.sent.append(message)
        super().send(name, message, key)

    def drain(self, kind: type[Message]) -> list[Any]:
        """What was sent of a kind since the last call."""
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found


@pytest.fixture
def bus() -> Iterator[Noted]:
    bus = Noted()
    yield bus
    bus.close()


def made(bus: Bus, folder: Path) -> Streamer:
    tally = Tally(logging.getLogger("test"))
    return Streamer(bus, tally, ForgetList(folder / "forget"), idle_s=900.0, on_idle=lambda _: None)


@pytest.fixture
def streamer(bus: Noted, tmp_path: Path) -> Iterator[Streamer]:
    streamer = made(bus, tmp_path)
    yield streamer
    streamer.close()


def begun(streamer: Streamer, bus: Noted, folder: Path, name: str, *, running: bool = False) -> Session:
    photos = Photos(DEMO)
    book = SessionBook(folder / f"{name}.json", session=name, running=running, source="network", face=photos.demo_id)
    tally = Tally(logging.getLogger("test"))
    session = Session(bus, tally, book, photos, (FrameHub(4), SoundHub(4)), ("", "top-left"))
    streamer.add(session)
    return session


def face(name: str, grey: int, side: int = 64) -> Face:
    return Face(
        face=name,
        index=0,
        box=(0, 0, side, side),
        mask_x=0,
        mask_y=0,
        photo=np.full((side, side, 3), grey, np.uint8),
        landmarks=np.zeros((468, 3), np.float32),
        mask=np.full((8, 8), 255, np.uint8),
        boxes=np.zeros((1, 4), np.float32),
    )


def patch(session: Session, of: str, frame: int, grey: int) -> Patch:
    return Patch(
        session=session.name,
        epoch=session.book.state.epoch,
        frame=frame,
        on=-1,
        face=of,
        worker="w",
        rest=False,
        x=0,
        y=0,
        captured_ns=1,
        render_ms=1.0,
        image=np.full((16, 16, 3), grey, np.uint8),
        mask=np.full((16, 16), 255, np.uint8),
    )


def audio(session: Session, first: int, pushed: int = -1) -> Audio:
    return Audio(
        session=session.name,
        epoch=session.book.state.epoch,
        stream="s",
        first_sample=first,
        captured_ns=1,
        pcm=np.ones(320, np.int16),
        pushed=pushed,
    )


def hear(streamer: Streamer, message: Message) -> None:
    streamer.handle(Delivery("", "", message))


def shown(session: Session) -> set[int]:
    frame = session.frames.latest()
    assert frame is not None
    return set(np.unique(frame.image).tolist())


def test_no_mouth_of_the_old_face_is_laid_on_the_new_one(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, "a", running=True)
    old, new = "a" * 32, "b" * 32
    streamer.show_face(session, old)
    hear(streamer, face(old, 10))
    for number in range(4):
        hear(streamer, audio(session, 16_000 + 320 * number))
    now_s = session.playout.clock.time_of(21 * 640) + session.playout.delay_s
    hear(streamer, patch(session, old, 20, 11))
    hear(streamer, patch(session, old, 21, 11))
    session.turn(now_s)
    assert 11 in shown(session)
    streamer.show_face(session, new)
    hear(streamer, face(new, 20))
    session.turn(now_s + 0.05)
    assert shown(session) == {20}
    hear(streamer, patch(session, old, 22, 11))
    session.turn(now_s + 0.1)
    assert shown(session) == {20}
    frame = session.frames.latest()
    assert frame is not None
    assert frame.media_time > 0, "a picture of now, not of the beginning"
    hear(streamer, patch(session, new, 25, 21))
    session.turn(now_s + 0.2)
    assert shown(session) == {20, 21}


def test_what_has_changed_is_laid_on_the_frame_that_it_changes(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, "a", running=True)
    streamer.show_face(session, "a" * 32)
    hear(streamer, face("a" * 32, 10))
    for number in range(4):
        hear(streamer, audio(session, 16_000 + 320 * number))

    def picture_at(frame: int) -> list[int]:
        session.turn(session.playout.clock.time_of(640 * frame + 320) + session.playout.delay_s)
        newest = session.frames.latest()
        assert newest is not None
        return sorted(shown(session))

    def change(frame: int, on: int, grey: int, **other: Any) -> Patch:
        small = patch(session, "a" * 32, frame, grey)
        image = np.full((4, 4, 3), grey, np.uint8)
        return msgspec.structs.replace(small, on=on, image=image, mask=np.zeros((0, 0), np.uint8), **other)

    hear(streamer, patch(session, "a" * 32, 20, 11))
    hear(streamer, change(21, 20, 12))
    hear(streamer, change(22, 20, 13))
    assert picture_at(20) == [10, 11]
    assert picture_at(21) == [10, 11, 12]
    assert picture_at(22) == [10, 11, 13], "it is laid on the whole one, not on the one before"

    lost = (change(23, 21, 14), change(24, 20, 14, worker="other"), change(25, 20, 14, epoch=999))
    for each in lost:
        hear(streamer, each)
    assert picture_at(26) == [10, 11, 13], "the one that it changes is not here"
    assert session._tally.totals["patch_base"] == 2

    # The one that it changes need not have been shown.
    hear(streamer, patch(session, "a" * 32, 20, 15))
    hear(streamer, change(27, 20, 16))
    assert picture_at(27) == [10, 15, 16]

    for number in range(100):
        hear(streamer, msgspec.structs.replace(patch(session, "a" * 32, 28, 15), worker=f"w{number}"))
    assert len(session._wholes) <= MOST_WORKERS
    session.change()
    hear(streamer, change(20, 20, 17))
    assert session._tally.totals["patch_base"] == 3, "of another time line"


def test_one_who_was_cleared_away_is_seen_no_longer(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, DEFAULT)
    streamer.show_face(session, "a" * 32)
    hear(streamer, face("a" * 32, 10))
    session.turn(0.0)
    assert shown(session) == {10}
    streamer.clear(session)
    frame = session.frames.latest()
    assert frame is not None
    np.testing.assert_array_equal(frame.image, session.photos.demo_picture)
    streamer.turn(1.0)
    assert [forget.face for forget in bus.drain(Forget)] == ["a" * 32]


def test_a_picture_is_to_be_deleted_until_it_is(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, "a")
    streamer.show_face(session, "a" * 32)
    streamer.remove("a", "")
    for second in range(2 * LAST_WORDS):
        streamer.turn(second * TELL_S)
        assert [forget.face for forget in bus.drain(Forget)] == ["a" * 32], "face_prep may be down"
    assert len(bus.drain(SessionState)) == LAST_WORDS
    hear(streamer, Forget(face="a" * 32))
    streamer.turn(3 * LAST_WORDS * TELL_S)
    assert bus.drain(Forget) == []


def test_a_picture_that_face_prep_did_not_hear_of_is_told_by_the_next_streamer(tmp_path: Path):
    for last in (False, True):
        bus = Noted()
        streamer = made(bus, tmp_path)
        if not last:
            streamer.show_face(begun(streamer, bus, tmp_path, "a"), "a" * 32)
        else:
            streamer.turn(0.0)
            assert [forget.face for forget in bus.drain(Forget)] == ["a" * 32]
            hear(streamer, Forget(face="a" * 32))
        streamer.close()
        bus.close()
    assert ForgetList(tmp_path / "forget").faces == ()


def test_a_picture_stays_while_another_session_uses_it(streamer: Streamer, bus: Noted, tmp_path: Path):
    for name in ("a", "b"):
        streamer.show_face(begun(streamer, bus, tmp_path, name), "a" * 32)
    hear(streamer, face("a" * 32, 10))
    streamer.remove("a", "")
    streamer.turn(0.0)
    assert bus.drain(Forget) == []
    streamer.remove("b", "")
    streamer.turn(TELL_S)
    assert [forget.face for forget in bus.drain(Forget)] == ["a" * 32]


def test_a_picture_that_is_shown_again_at_once_is_kept(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, "a")
    streamer.show_face(session, "a" * 32)
    streamer.clear(session)
    streamer.show_face(session, "a" * 32)
    streamer.turn(0.0)
    assert bus.drain(Forget) == []


def test_no_word_of_an_ended_session_reaches_the_next_one_of_its_name(streamer: Streamer, bus: Noted, tmp_path: Path):
    first = begun(streamer, bus, tmp_path, "a", running=True)
    streamer.turn(0.0)
    streamer.remove("a", "")
    streamer.turn(TELL_S)
    bus.drain(SessionState)
    second = begun(streamer, bus, tmp_path, "a", running=True)
    assert second.book.state.epoch > first.book.state.epoch + 1
    streamer.turn(2 * TELL_S)
    assert [state.ended for state in bus.drain(SessionState)] == [False]


def test_pushed_sound_that_was_lost_on_the_way_is_passed_on_again(streamer: Streamer, bus: Noted, tmp_path: Path):
    session = begun(streamer, bus, tmp_path, "a")
    push = Push(lambda: None, lambda _: None, live=False)
    session.listen_to(push)
    push.put(np.ones(1000, np.int16), 0)
    push.flush()
    epoch = session.book.state.epoch
    session.turn(100.0)
    assert [len(piece.pcm) for piece in bus.drain(Pcm)] == [1000]
    session.turn(100.0 + OWED_S / 2)
    assert bus.drain(Pcm) == []
    session.turn(100.1 + OWED_S)  # audio_capture has begun anew, and knows nothing of it
    session.turn(100.2 + OWED_S)
    (again,) = bus.drain(Pcm)
    assert (len(again.pcm), again.first_sample) == (1000, 0)
    assert again.epoch == session.book.state.epoch > epoch
    assert [flush.first_sample for flush in bus.drain(Flush)] == [1000, 1000]
    push.close()


def test_a_session_remembers_over_a_crash_whose_pictures_it_had(tmp_path: Path):
    demo = "d" * 32
    book = SessionBook(tmp_path / "a.json", session="a", running=False, source="demo", face=demo)
    faces = [f"{number:032x}" for number in range(MOST_FACES + 1)]
    gone = [one for name in faces for one in book.use(name)]
    assert gone == faces[:1], "more would be forgotten unseen"
    again = SessionBook(tmp_path / "a.json", session="a", running=True, source="mic", face=demo)
    assert again.recovered
    assert again.use_none() == faces[1:]
    assert again.state.source == "demo"


def test_a_full_disk_ends_no_session(tmp_path: Path):
    book = SessionBook(tmp_path / "a.json", session="a", running=True, source="mic", face="d" * 32)
    (tmp_path / "a.new").mkdir()  # stands for whatever makes the writing fail
    book.change(running=False)
    assert not book.state.running
    assert not (tmp_path / "a.json").exists(), "it would have the microphone opened after a crash"
