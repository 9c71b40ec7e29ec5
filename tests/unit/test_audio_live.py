"""The time line of a browser's microphone: drift, jitter, stalls, pauses, connections that come anew."""

from __future__ import annotations

import dataclasses
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from services.audio_capture.chunks import Chunk, Hole
from services.audio_capture.live import Bend, LiveSource
from tests.budgets import (
    LIVE_BEND_DB,
    LIVE_BEND_DELAY_SAMPLES,
    LIVE_DRIFT_S,
    LIVE_HELD_MS,
    LIVE_LINE_MS,
    LIVE_PAUSE_MS,
    LIVE_STEADY_MS,
)

START_NS = 7_000_000_000
MS = 1_000_000
FAIL_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@dataclass(frozen=True)
class Sent:
    """A block on its way from the browser."""

    first_sample: int
    made_ns: int
    """when its last sample was heard by the browser"""
    arrived_ns: int
    pcm: npt.NDArray[np.int16]


def browser(seconds: float, *, ppm: float = 0.0, jitter_ms: float = 8.0, block: int = 320, seed: int = 0) -> list[Sent]:
    """A browser whose clock is off by `ppm` behind a radio link of 15 ms, hearing a click at each second of true time.

    The link jitters, and keeps the order as TCP does.
    """
    random = np.random.default_rng(seed)
    true_rate = 16_000 * (1 + ppm * 1e-6)
    blocks = []
    arrived_ns = 0
    for index in range(int(seconds * true_rate / block)):
        first = index * block
        pcm = np.zeros(block, np.int16)
        click = int(np.ceil(np.ceil(first / true_rate) * true_rate))
        if click < first + block:
            pcm[click - first] = 29_000
        made_ns = START_NS + round((first + block) / true_rate * 1e9)
        arrived_ns = max(arrived_ns, made_ns + 15 * MS + int(random.exponential(jitter_ms) * MS))
        blocks.append(Sent(first, made_ns, arrived_ns, pcm))
    return blocks


def run(source: LiveSource, blocks: list[Sent]) -> list[tuple[int, Chunk | Hole]]:
    """Push the blocks; what came of them, and when."""
    given = []
    for block in blocks:
        source.push(block.first_sample, block.pcm, block.arrived_ns)
        given += [(block.arrived_ns, item) for item in source.read()]
    source.close()
    return given


def state(source: LiveSource) -> str:
    return source.status.state


def holes(given: list[tuple[int, Chunk | Hole]]) -> list[Hole]:
    return [item for _, item in given if isinstance(item, Hole)]


def check_contiguous(given: list[tuple[int, Chunk | Hole]]) -> None:
    place = 0
    for _, item in given:
        assert item.first_sample == place
        assert not isinstance(item, Chunk) or (item.pcm.shape == (320,) and item.pcm.dtype == np.int16)
        place += 320 if isinstance(item, Chunk) else item.samples


def click_errors_ms(given: list[tuple[int, Chunk | Hole]]) -> list[float]:
    """How far each click lies from its second by the time that its sample claims, less the delay of the link, ms."""
    errors = []
    last_s = -1.0
    for _, item in given:
        if isinstance(item, Chunk) and item.pcm.max() > 14_000:
            peak = int(item.pcm.argmax())
            heard_s = (item.captured_ns - START_NS) / 1e9 - (320 - peak) / 16_000 - 0.015
            if heard_s - last_s > 0.5:
                errors.append((heard_s - round(heard_s)) * 1000)
            last_s = heard_s
    return errors


def delays_ms(given: list[tuple[int, Chunk | Hole]]) -> npt.NDArray[np.float64]:
    """How long after its last sample was heard (with the delay of the link) each chunk was given, ms."""
    return np.array([(at_ns - item.captured_ns) / 1e6 for at_ns, item in given if isinstance(item, Chunk)])


@pytest.mark.parametrize("ppm", [-200.0, 0.0, 200.0])
def test_a_drifting_sound_card_stays_on_the_line(ppm: float) -> None:
    given = run(LiveSource(), browser(LIVE_DRIFT_S, ppm=ppm))
    check_contiguous(given)
    assert not holes(given)
    errors = click_errors_ms(given)
    assert len(errors) >= LIVE_DRIFT_S - 2
    assert max(abs(error) for error in errors) <= LIVE_LINE_MS
    assert abs(float(np.median(errors[-30:]))) <= LIVE_STEADY_MS


def test_a_calm_link_adds_no_more_than_a_chunk() -> None:
    given = run(LiveSource(), browser(10, jitter_ms=0.01, block=128))
    assert len(errors := click_errors_ms(given)) == 10
    assert max(abs(error) for error in errors) <= LIVE_STEADY_MS
    steady = delays_ms(given)[25:]
    assert steady.max() <= LIVE_STEADY_MS + 128 / 16 + 1  # the block that ended it, and the bend's own millisecond


def test_sound_that_is_not_bent_comes_out_as_it_went_in() -> None:
    pcm = np.random.default_rng(3).integers(-20_000, 20_000, 8_000).astype(np.int16)
    blocks = browser(0.5, jitter_ms=0.0)
    given = run(LiveSource(), [dataclasses.replace(b, pcm=pcm[i * 320 : i * 320 + 320]) for i, b in enumerate(blocks)])
    heard = np.concatenate([item.pcm for _, item in given if isinstance(item, Chunk)])
    assert len(heard) >= 8_000 - 320 - LIVE_BEND_DELAY_SAMPLES
    np.testing.assert_array_equal(heard, pcm[: len(heard)])


@pytest.mark.parametrize("stall_s", [0.3, 1.0, 6.0])
def test_a_stall_of_the_network_loses_nothing_and_is_caught_up(stall_s: float) -> None:
    blocks = browser(12)
    begin_ns, end_ns = START_NS + 4_000 * MS, START_NS + round((4 + stall_s) * 1e9)
    stalled = [
        dataclasses.replace(b, arrived_ns=max(b.arrived_ns, end_ns)) if b.arrived_ns >= begin_ns else b for b in blocks
    ]
    given = run(LiveSource(), stalled)
    check_contiguous(given)
    assert not holes(given)
    assert len(click_errors_ms(given)) == 12
    late = delays_ms(given)
    assert late.max() >= stall_s * 1000 - 100, "the burst is given as late as it is"
    after = [at - item.captured_ns for at, item in given if isinstance(item, Chunk) and at > end_ns]
    assert max(after) <= 120 * MS, "and the next sound is in time again"


def test_a_link_that_is_busy_for_a_while_makes_no_hole() -> None:
    blocks = browser(10)
    busy = [
        dataclasses.replace(b, arrived_ns=b.arrived_ns + 80 * MS)
        if 3_000 * MS <= b.made_ns - START_NS < 5_000 * MS
        else b
        for b in blocks
    ]
    given = run(LiveSource(), busy)
    assert not holes(given)
    assert max(abs(error) for error in click_errors_ms(given)) <= LIVE_LINE_MS


@pytest.mark.parametrize("pause_s", [0.4, 10.0])
def test_a_pause_of_the_sender_is_one_hole(pause_s: float) -> None:
    """The browser sends nothing and counts nothing, as with a microphone that is muted by closing it."""
    blocks = browser(6 + pause_s)
    skipped = round(pause_s * 50)
    kept = blocks[:150] + [
        dataclasses.replace(b, first_sample=b.first_sample - skipped * 320) for b in blocks[150 + skipped :]
    ]
    given = run(LiveSource(), kept)
    check_contiguous(given)
    (hole,) = holes(given)
    assert hole.reason == "lost"
    assert 0 <= hole.samples / 16 - pause_s * 1000 <= LIVE_PAUSE_MS
    assert max(abs(error) for error in click_errors_ms(given)) <= LIVE_LINE_MS
    first_ns = kept[150].arrived_ns
    resumed_ns = next(at for at, item in given if isinstance(item, Hole))
    assert (resumed_ns - first_ns) / MS <= LIVE_HELD_MS


def test_a_new_connection_goes_on_with_a_hole_for_the_time_between() -> None:
    blocks = browser(12)
    again = [dataclasses.replace(b, first_sample=b.first_sample - 250 * 320) for b in blocks[250:]]
    source = LiveSource()
    given = run(source, blocks[:150] + again)
    check_contiguous(given)
    (hole,) = holes(given)
    assert hole.reason == "lost"
    assert 0 <= hole.samples / 16 - 2_000 <= LIVE_PAUSE_MS
    assert max(abs(error) for error in click_errors_ms(given)) <= LIVE_LINE_MS


def test_numbers_that_begin_anew_without_a_pause_are_no_break() -> None:
    """A new epoch counts from 0; the microphone goes on."""
    blocks = browser(6)
    given = run(
        LiveSource(),
        blocks[:150] + [dataclasses.replace(b, first_sample=b.first_sample - 48_000) for b in blocks[150:]],
    )
    check_contiguous(given)
    assert not holes(given)
    assert len(errors := click_errors_ms(given)) == 6
    assert max(abs(error) for error in errors) <= LIVE_LINE_MS


def test_sound_that_the_bus_lost_is_a_hole_of_its_length() -> None:
    blocks = browser(6)
    given = run(LiveSource(), blocks[:150] + blocks[170:])
    check_contiguous(given)
    (hole,) = holes(given)
    assert hole.reason == "lost"
    assert 0 <= hole.samples - 20 * 320 <= 320 + 2 * LIVE_BEND_DELAY_SAMPLES
    assert max(abs(error) for error in click_errors_ms(given)) <= LIVE_LINE_MS


def test_numbers_that_run_ahead_of_the_clock_do_not_move_the_line() -> None:
    """A jump of a minute at once: whatever the sender means, sound is not heard before it was made."""
    blocks = browser(6)
    given = run(
        LiveSource(),
        blocks[:150] + [dataclasses.replace(b, first_sample=b.first_sample + 960_000) for b in blocks[150:]],
    )
    check_contiguous(given)
    assert sum(hole.samples for hole in holes(given)) / 16 <= LIVE_PAUSE_MS
    assert all(item.captured_ns <= at for at, item in given if isinstance(item, Chunk))


def test_a_burst_at_the_start_does_not_make_the_line_late() -> None:
    """The page had sound ready before the connection stood."""
    blocks = browser(6)
    given = run(
        LiveSource(), [dataclasses.replace(b, arrived_ns=max(b.arrived_ns, blocks[20].arrived_ns)) for b in blocks]
    )
    assert not holes(given)
    assert max(abs(error) for error in click_errors_ms(given)) <= LIVE_LINE_MS


def test_the_state_follows_the_sound() -> None:
    source = LiveSource()
    source.start()
    assert state(source) == "waiting"
    assert source.next_due() is None
    assert not select.select([source], [], [], 0)[0]
    source.push(0, np.zeros(320, np.int16), time.monotonic_ns())
    assert state(source) == "running"
    assert select.select([source], [], [], 0)[0]
    deadline = time.monotonic() + FAIL_S
    while (due := source.next_due()) is not None:
        assert time.monotonic() < deadline
        select.select([source], [], [], max(0.0, due - time.monotonic()))
        source.read()
    assert state(source) == "waiting"
    assert source.next_due() is None
    source.push(320, np.zeros(320, np.int16), time.monotonic_ns())
    assert state(source) == "running"
    source.close()
    source.close()
    assert state(source) == "ended"
    assert source.read() == []
    with pytest.raises(ValueError, match="closed"):
        source.fileno()
    with pytest.raises(ValueError, match="closed"):
        source.push(640, np.zeros(320, np.int16), 0)


def test_pushed_sound_of_another_kind_is_refused() -> None:
    source = LiveSource()
    with pytest.raises(ValueError, match="int16"):
        source.push(0, np.zeros(10, np.float32), 0)
    source.push(0, np.zeros(0, np.int16), 0)
    assert state(source) == "waiting"
    source.close()


@pytest.mark.parametrize("share", [-0.001, 0.0002])
def test_bent_sound_is_the_same_sound(share: float) -> None:
    bend = Bend()
    bend.steer(share)
    turn = 2 * np.pi * 3_000 / 16_000
    tone = np.sin(turn * np.arange(32_000)).astype(np.float32)
    sizes = np.random.default_rng(1).integers(1, 900, 200)
    out = np.concatenate([bend.process(part) for part in np.split(tone, np.cumsum(sizes)) if len(part)])
    assert abs(bend.expected - 32_000 * (1 + share)) <= 1
    assert 0 <= bend.expected - len(out) <= LIVE_BEND_DELAY_SAMPLES + 1
    wanted = np.sin(turn * np.arange(len(out)) / (1 + share))
    error = (out - wanted)[100:]
    assert 10 * np.log10((error**2).mean() / (wanted**2).mean()) <= LIVE_BEND_DB


def test_only_16_khz_are_bent() -> None:
    with pytest.raises(ValueError, match="16000"):
        Bend(48_000)
