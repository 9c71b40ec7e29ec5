"""The jitter buffer, with made-up time: order, lateness, delay, a source that pauses, a worker that dies."""

from __future__ import annotations

import numpy as np
import pytest

from services.streamer.playout import Moving, Playout
from shared.messages import Patch
from tests.budgets import PLAYOUT_MARGIN_S, STREAM_RATE_ERROR_HZ
from tests.examples import EXAMPLES


def patch(frame: int, rest: bool = False) -> Moving:
    import msgspec

    example = EXAMPLES["patch"]
    assert isinstance(example, Patch)
    return Moving(msgspec.structs.replace(example, frame=frame, rest=rest))


class World:
    """Sound that is heard on time, patches that need `lag_s` after their moment, and the clock of the screen."""

    def __init__(self, lag_s: float, jitter_s: float = 0.0, seed: int = 0) -> None:
        self.playout = Playout()
        self.lag_s = lag_s
        self.jitter_s = jitter_s
        self.now_s = self.tick_s = 100.0
        self.shown: list[tuple[float, int | None]] = []
        self._rng = np.random.default_rng(seed)
        self._coming: list[tuple[float, int]] = []
        self._sound = 0
        self._made = 0
        self.dead = False

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 0.001
            if self.now_s - 100.0 >= (self._sound + 320) / 16_000:
                self._sound += 320
                self.playout.heard(self._sound, self.now_s)
            while self.now_s - 100.0 >= self._made * 0.04:
                if not self.dead:
                    arrival_s = 100.0 + self._made * 0.04 + self.lag_s + self._rng.uniform(0, self.jitter_s)
                    self._coming.append((arrival_s, self._made))
                self._made += 1
            for item in [item for item in self._coming if item[0] <= self.now_s]:
                self._coming.remove(item)
                self.playout.push(patch(item[1]), self.now_s)
            if self.now_s >= self.tick_s:
                given = self.playout.take(self.now_s)
                self.shown.append((self.now_s, given.patch.frame if given else None))
                self.tick_s = self.playout.next_tick_s(self.tick_s)


@pytest.mark.parametrize(("lag_s", "jitter_s"), [(0.12, 0.0), (0.12, 0.05), (0.3, 0.02)])
def test_25_frames_a_second_in_order_just_behind_the_engine(lag_s: float, jitter_s: float):
    world = World(lag_s, jitter_s)
    world.run(20)
    recent = [(at, frame) for at, frame in world.shown if at > 105]
    frames = [frame for _, frame in recent if frame is not None]
    assert len(recent) / 15 == pytest.approx(25, rel=0.01)
    assert frames == sorted(frames)
    assert len(set(frames)) / len(recent) > 0.95, "few frames are missed"
    delays = [at - 100.0 - frame * 0.04 for at, frame in recent if frame is not None]
    assert np.median(delays) <= lag_s + jitter_s + PLAYOUT_MARGIN_S


def test_the_delay_falls_again_after_a_bad_moment():
    world = World(0.12)
    world.run(5)
    world.lag_s = 0.45
    world.run(5)
    assert world.playout.delay_s > 0.44
    world.lag_s = 0.12
    world.run(10)
    assert world.playout.delay_s < 0.12 + PLAYOUT_MARGIN_S
    ticks = np.array([at for at, _ in world.shown])
    for begin in np.arange(101, 110):
        seen = ((ticks >= begin) & (ticks < begin + 10)).sum()
        assert seen / 10 == pytest.approx(25, abs=STREAM_RATE_ERROR_HZ), "whatever the delay does, the rate stays"


def test_a_late_frame_is_dropped_and_counted():
    world = World(0.12)
    world.run(2)
    before = world.shown[-1][1]
    assert before is not None
    world.playout.push(patch(before - 5), world.now_s)
    assert world.playout.counters["late"] >= 1
    world.run(0.2)
    frames = [frame for _, frame in world.shown if frame is not None]
    assert frames == sorted(frames)


def test_a_mouth_whose_worker_died_is_held_and_then_let_go():
    world = World(0.12)
    world.run(3)
    world.dead = True
    world.run(0.3)
    held = world.shown[-1]
    world.run(1.0)
    assert held[1] is not None
    assert world.shown[-1][1] is None, "let go"
    rate = sum(at > world.now_s - 1.0 for at, _ in world.shown)
    assert rate == pytest.approx(25, abs=1), "the stream goes on"


def test_rest_is_held_for_ever():
    playout = Playout()
    for index in range(100):
        playout.heard(320 * (index + 1), 100.0 + 0.02 * (index + 1))
    playout.push(patch(60, rest=True), 102.0)
    given = [playout.take(102.0 + 0.04 * index) for index in range(200)]
    assert given[-1] is not None
    assert given[-1].patch.rest


def test_it_holds_a_bounded_number():
    playout = Playout()
    for frame in range(10_000):
        playout.push(patch(frame), 100.0)
    assert len(playout._waiting) <= Playout.WAITING
    assert playout.counters["overflow"] > 0


def test_without_sound_the_stream_keeps_time():
    playout = Playout()
    assert playout.next_tick_s(50.0) == pytest.approx(50.04)
    assert playout.take(50.04) is None
