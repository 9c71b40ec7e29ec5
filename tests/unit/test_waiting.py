"""Windows that wait: turns, order, age."""

from __future__ import annotations

import numpy as np

from services.mel_features.track import Due
from services.mel_features.waiting import Waiting, Window


def window(session: str, frame: int, until_s: float = 1.0) -> Window:
    due = Due(frame=frame, gain=1.0, captured_ns=0, mel=np.zeros((80, 1), np.float32))
    return Window(session=session, epoch=1, face="f", due=due, until_s=until_s, deadline_s=until_s + 1.0)


def taken(waiting: Waiting, number: int) -> list[tuple[str, int]]:
    found = []
    for _ in range(number):
        first = next(waiting.in_turn())
        waiting.take(first)
        found.append((first.session, first.due.frame))
    return found


def test_sessions_take_turns_and_each_keeps_its_order():
    waiting = Waiting()
    for frame in range(4):
        waiting.put(window("a", frame))
    for frame in range(2):
        waiting.put(window("b", frame))
    assert taken(waiting, 6) == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("a", 3)]
    assert len(waiting) == 0


def test_turns_are_not_saved_up():
    waiting = Waiting()
    for frame in range(10):
        waiting.put(window("a", frame))
        waiting.put(window("b", frame))
    taken(waiting, 14)
    for frame in range(10):
        waiting.put(window("c", frame))
    sessions = [session for session, _ in taken(waiting, 9)]
    assert sorted(sessions) == sorted("abc" * 3)


def test_what_waits_too_long_goes_and_what_comes_back_goes_first():
    waiting = Waiting()
    for frame, until_s in ((0, 1.0), (1, 2.0), (2, 3.0)):
        waiting.put(window("a", frame, until_s))
    assert [late.due.frame for late in waiting.expired(2.5)] == [0, 1]
    waiting.put_back(window("a", 1, 9.0))
    assert taken(waiting, 2) == [("a", 1), ("a", 2)]
    assert not waiting.expired(99.0)


def test_the_longest_queue_is_cut_and_a_session_can_be_forgotten():
    waiting = Waiting()
    for frame in range(3):
        waiting.put(window("a", frame))
    waiting.put(window("b", 0))
    assert waiting.pop_longest().session == "a"
    assert waiting.forget("a") == 2
    assert waiting.forget("a") == 0
    waiting.forget_turns({"b"})
    assert taken(waiting, 1) == [("b", 0)]
