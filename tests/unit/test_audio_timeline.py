"""The time line of a microphone: drift, late blocks, lost blocks, a device that comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from services.audio_capture.chunks import Chunk, Hole
from services.audio_capture.timeline import Block, CaptureLine
from tests.budgets import TIME_LINE_HOUR_S, TIME_LINE_MS

RATE_HZ = 8_000
START_NS = 5_000_000_000


def device(
    seconds: float,
    *,
    ppm: float = 0.0,
    block_s: float = 0.01,
    click_s: float = 1.0,
    rate_hz: int = RATE_HZ,
    seed: int = 0,
) -> Iterator[Block]:
    """A sound card whose clock is off by `ppm`, hearing a click at each multiple of `click_s` of true time."""
    random = np.random.default_rng(seed)
    true_rate = rate_hz * (1 + ppm * 1e-6)
    frames = round(rate_hz * block_s)
    heard_ns = 0
    for index in range(int(seconds / block_s)):
        first = index * frames
        samples = np.zeros(frames, np.float32)
        click = int(np.ceil(first / true_rate / click_s) * click_s * true_rate)
        if first <= click < first + frames:
            samples[click - first] = 0.9
        made_ns = START_NS + round((first + frames) / true_rate * 1e9)
        heard_ns = max(heard_ns, made_ns + int(random.exponential(2e6)))
        yield Block(first, heard_ns, overflow=False, samples=samples)


def run(line: CaptureLine, blocks: list[Block] | Iterator[Block]) -> list[Chunk | Hole]:
    return [item for block in blocks for item in line.feed(block)]


def begun(rate_hz: int = RATE_HZ) -> CaptureLine:
    line = CaptureLine()
    line.begin(rate_hz)
    return line


def holes(items: list[Chunk | Hole]) -> list[Hole]:
    return [item for item in items if isinstance(item, Hole)]


def check_contiguous(items: list[Chunk | Hole]) -> None:
    place = 0
    for item in items:
        assert item.first_sample == place
        assert not isinstance(item, Chunk) or (item.pcm.shape == (320,) and item.pcm.dtype == np.int16)
        place += 320 if isinstance(item, Chunk) else item.samples


def check_clicks(items: list[Chunk | Hole], click_s: float = 1.0) -> int:
    """Every click that is heard lies at its true time, by the sample count and by captured_ns; how many there are."""
    found = 0
    last = -10_000
    for item in items:
        if isinstance(item, Chunk) and item.pcm.max() > 5_000:
            place = item.first_sample + int(item.pcm.argmax())
            if place - last > 400:
                found += 1
                off_ms = (place / 16_000 / click_s - round(place / 16_000 / click_s)) * click_s * 1000
                assert abs(off_ms) <= TIME_LINE_MS
                heard_s = (item.captured_ns - START_NS) / 1e9 - (319 - int(item.pcm.argmax())) / 16_000
                assert abs(heard_s / click_s - round(heard_s / click_s)) * click_s * 1000 <= TIME_LINE_MS
            last = place
    return found


@pytest.mark.parametrize(("ppm", "seconds"), [(200.0, TIME_LINE_HOUR_S), (-400.0, TIME_LINE_HOUR_S / 6)])
def test_a_card_with_a_wrong_clock_stays_on_the_line(ppm: float, seconds: float) -> None:
    items = run(begun(4_000), device(seconds, ppm=ppm, block_s=0.5, click_s=60.0, rate_hz=4_000))
    assert not holes(items)
    check_contiguous(items)
    assert check_clicks(items, 60.0) >= seconds // 60 - 1


def test_a_steady_device_has_no_hole_and_every_click() -> None:
    items = run(begun(44_100), device(4, rate_hz=44_100))
    check_contiguous(items)
    assert not holes(items)
    assert check_clicks(items) >= 3


def test_blocks_that_come_late_in_a_burst_lose_nothing() -> None:
    blocks = list(device(6))
    late = [
        dataclasses.replace(block, heard_ns=max(block.heard_ns, blocks[339].heard_ns)) if 300 <= i < 340 else block
        for i, block in enumerate(blocks)
    ]
    items = run(begun(), late)
    assert not holes(items)
    assert check_clicks(items) == 6


@pytest.mark.parametrize("flag", [False, True])
def test_sound_that_the_driver_lost_is_one_hole(flag: bool) -> None:
    kept = []
    for i, block in enumerate(device(6)):
        if 310 <= i < 350:  # 400 ms; the frame numbers do not show it
            continue
        lost = 40 * 80 if i >= 350 else 0
        kept.append(dataclasses.replace(block, first_frame=block.first_frame - lost, overflow=flag and i == 350))
    items = run(begun(), kept)
    check_contiguous(items)
    (hole,) = holes(items)
    assert hole.reason == "overflow"
    assert (
        400 - TIME_LINE_MS <= hole.samples / 16 <= 400 + 20 + 30 + TIME_LINE_MS
    )  # with what was in chunk and resampler
    assert check_clicks(items) == 6


def test_blocks_that_the_queue_had_no_room_for_are_one_hole() -> None:
    items = run(begun(), [block for i, block in enumerate(device(8)) if not 210 <= i < 450])
    check_contiguous(items)
    (hole,) = holes(items)
    assert hole.reason == "overflow"
    assert abs(hole.samples / 16 - 2400) <= 50 + TIME_LINE_MS
    assert check_clicks(items) == 6


def test_two_breaks_close_together_leave_the_line_right() -> None:
    items = run(begun(), [block for i, block in enumerate(device(6)) if not (210 <= i < 250 or 252 <= i < 280)])
    check_contiguous(items)
    assert 1 <= len(holes(items)) <= 2
    assert abs(sum(hole.samples for hole in holes(items)) / 16 - 680) <= 100 + TIME_LINE_MS
    assert check_clicks(items) >= 5


def test_a_device_that_comes_back_at_another_rate_makes_one_hole_of_the_right_length() -> None:
    line = begun()
    items = run(line, [block for i, block in enumerate(device(10)) if i < 250])
    line.begin(48_000)
    again = [block for i, block in enumerate(device(10, rate_hz=48_000)) if i >= 610]
    items += run(line, [dataclasses.replace(block, first_frame=block.first_frame - 610 * 480) for block in again])
    check_contiguous(items)
    (hole,) = holes(items)
    assert hole.reason == "unplugged"
    assert abs(hole.samples / 16 - 3600) <= 50 + TIME_LINE_MS
    assert check_clicks(items) == 3 + 3


def test_a_line_that_was_begun_too_late_is_moved() -> None:
    blocks = list(device(8))
    slow = [dataclasses.replace(b, heard_ns=b.heard_ns + (200_000_000 if i < 60 else 0)) for i, b in enumerate(blocks)]
    slow = [
        dataclasses.replace(b, heard_ns=max(b.heard_ns, slow[59].heard_ns)) if i > 59 else b for i, b in enumerate(slow)
    ]
    items = run(begun(), slow)
    assert not holes(items)
    last = items[-1]
    assert isinstance(last, Chunk)
    assert 0 <= (slow[-1].heard_ns - last.captured_ns) / 1e6 <= 80
