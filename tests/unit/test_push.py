"""Sound that is pushed: kept until it was heard, passed on a little ahead, told of to the sample."""

from __future__ import annotations

import select

import numpy as np
import pytest

from services.streamer.control import InputClosedError, InputEvent
from services.streamer.push import AHEAD, BOUND, END_SAMPLES, MOST_PIECE, Push
from tests.budgets import PUSH_PIECES

CHUNK = 320


class Line:
    """What audio_capture does with what it is given: plays it in chunks, the last of an utterance padded."""

    def __init__(self, push: Push) -> None:
        self.push = push
        self.given: list[np.ndarray] = []
        self.flushes: list[int] = []
        self.played = 0
        self.media = 0

    def fetch(self) -> None:
        for piece in self.push.to_send():
            if piece.pcm is None:
                self.flushes.append(piece.first_sample)
            else:
                assert piece.first_sample == self.total, "in order, without a gap"
                self.given.append(piece.pcm)

    @property
    def total(self) -> int:
        return sum(map(len, self.given))

    def play(self, chunks: int) -> None:
        """Play so many chunks; one that is cut short by a flush, or by the end, is padded."""
        for _ in range(chunks):
            self.fetch()
            end = min([self.total, *(f for f in self.flushes if f > self.played)])
            if end == self.played:
                return
            self.push.came_back(self.media, self.played, CHUNK)
            self.played = min(end, self.played + CHUNK)
            self.media += CHUNK


def made() -> tuple[Push, list[Push]]:
    interrupted: list[Push] = []
    return Push(lambda: None, interrupted.append, live=False), interrupted


def sound(samples: int, first: int = 0) -> np.ndarray:
    return (np.arange(first, first + samples) % 30_000).astype(np.int16)


def kinds(events: list[InputEvent]) -> list[tuple[str, int, int]]:
    return [(event.kind, event.utterance, event.sample) for event in events]


def test_only_a_little_is_passed_on_ahead_and_all_of_it_arrives():
    push, _ = made()
    line = Line(push)
    whole = sound(20 * 16_000)
    for at in range(0, len(whole), 777):
        push.put(whole[at : at + 777], 0)
    line.fetch()
    assert line.total < AHEAD + 16_000 + 1
    while line.played < len(whole):
        line.play(10)
        push.heard(line.media)
    np.testing.assert_array_equal(np.concatenate(line.given), whole)
    assert push.waiting == 0


def test_events_tell_the_exact_sample_over_padded_ends():
    push, _ = made()
    line = Line(push)
    push.put(sound(1000), 0)
    assert push.flush() == 0
    assert push.flush() == 0, "nothing came since"
    push.put(sound(500), 0)
    assert push.flush() == 1
    line.play(100)
    assert line.flushes == [1000, 1500]
    assert line.media == 4 * CHUNK + 2 * CHUNK
    seen = []
    for media in range(0, line.media + 1, 40):
        push.heard(media)
        seen += [(media, *told) for told in kinds(push.events())]
    assert [told[1:] for told in seen] == [
        ("started", 0, 0),
        ("ended", 0, 1000),
        ("started", 1, 1000),
        ("ended", 1, 1500),
    ]
    # 1000 samples are heard 1000 samples in; the padding behind them is nothing of theirs.
    assert [told[0] for told in seen] == [40, 1000, 4 * CHUNK + 40, 4 * CHUNK + 520 - 520 % 40]
    assert push.place_of(4 * CHUNK - 1) == 1000


def test_an_interrupt_forgets_what_was_not_heard_and_counts_on():
    push, asked = made()
    line = Line(push)
    push.put(sound(16_000), 0)
    push.flush()
    push.put(sound(8_000), 0)
    line.play(20)
    push.heard(10 * CHUNK)
    push.interrupt()
    assert asked == [push]
    place = push.snapshot()
    heard = push.place_of(10 * CHUNK + 100)
    push.forget()
    push.restart()
    push.tell_cut(max(heard, place(10 * CHUNK + 120)))
    assert kinds(push.events()) == [("started", 0, 0), ("interrupted", 0, 10 * CHUNK + 120)]
    assert push.waiting == 0
    assert push.to_send() == []
    # Two utterances were pushed; the next is the third, and its samples count on.
    push.put(sound(640), 0)
    assert push.flush() == 2
    line = Line(push)
    line.play(2)
    push.heard(640)
    assert kinds(push.events()) == [("started", 2, 24_000), ("ended", 2, 24_640)]


def test_what_was_not_heard_is_said_again_when_the_capture_begins_anew():
    push, _ = made()
    line = Line(push)
    whole = sound(40_000)
    push.put(whole, 0)
    push.flush()
    line.play(50)
    push.heard(7 * CHUNK + 11)
    push.restart()
    line = Line(push)
    line.play(1000)
    np.testing.assert_array_equal(np.concatenate(line.given), whole[7 * CHUNK + 11 :])
    push.heard(line.media)
    assert kinds(push.events()) == [("started", 0, 0), ("ended", 0, 40_000)]


def test_the_bound_is_told_and_room_comes_again():
    push, _ = made()
    line = Line(push)
    second = sound(16_000)
    while push.room >= 16_000:
        push.put(second, 0)
    assert push.room == 0
    with pytest.raises(ValueError, match="room"):
        push.put(second, 0)
    line.play(51)
    push.heard(51 * CHUNK)
    (event,) = [event for event in push.events() if event.kind == "room"]
    assert event.waiting == BOUND - 51 * CHUNK
    assert push.room == 51 * CHUNK


def test_tiny_pieces_do_not_pile_up():
    push, _ = made()
    for _ in range(20_000):
        push.put(np.ones(1, np.int16), 0)
    assert len(push._kept) <= PUSH_PIECES
    while push.room > 0:
        push.put(np.ones(1, np.int16), 0)
        push.flush()
    assert len(push._kept) <= PUSH_PIECES + BOUND // END_SAMPLES


def test_no_piece_is_longer_than_a_message_may_be():
    push, _ = made()
    whole = sound(5 * 32_768)
    for at in range(0, len(whole), 32_768):  # as messages of 64 KiB come
        push.put(whole[at : at + 32_768], 0)
    line = Line(push)
    line.play(len(whole) // CHUNK + 1)
    assert max(map(len, line.given)) <= MOST_PIECE
    np.testing.assert_array_equal(np.concatenate(line.given)[: len(whole)], whole[: line.total])


def test_one_that_was_replaced_is_told_why_and_takes_nothing():
    push, _ = made()
    push.put(sound(640), 0)
    push.replace("Another connection speaks now.")
    assert select.select([push.fileno()], [], [], 0)[0]
    assert [(event.kind, event.text) for event in push.events()] == [("closed", "Another connection speaks now.")]
    with pytest.raises(InputClosedError, match="Another"):
        push.put(sound(640), 0)
    assert push.to_send() == []
    push.close()
    push.close()
    assert push.fileno() == -1


def test_a_microphone_is_passed_on_at_once_and_nothing_of_it_is_kept():
    push = Push(lambda: None, lambda _: None, live=True)
    for at in range(0, BOUND + 16_000, 320):  # a microphone has no end
        push.put(sound(320, at), at)
        (piece,) = push.to_send()
        assert (piece.first_sample, piece.arrived_ns) == (at, at)
    assert push.room == BOUND
    push.restart()
    push.put(sound(320), 5)
    (piece,) = push.to_send()
    assert piece.first_sample == 0, "places count from the epoch"
    assert push.waiting == 0
    push.close()
    assert push.drained
