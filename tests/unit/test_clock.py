"""The media clock finds the truth behind late arrivals, follows drift, and survives a pause of the source."""

from __future__ import annotations

import numpy as np
import pytest

from shared.clock import MediaClock, frame_of, sample_of
from tests.budgets import CLOCK_ERROR_S


def hear(clock: MediaClock, seconds: float, rng: np.random.Generator, start: int = 0, at: float = 0.0, ppm: float = 0):
    """20 ms chunks; most arrive within 3 ms, one in twenty up to 60 ms late."""
    for index in range(int(seconds * 50)):
        late = rng.uniform(0, 0.003) if rng.random() > 0.05 else rng.uniform(0.01, 0.06)
        end = start + 320 * (index + 1)
        clock.heard(end, at + 0.02 * (index + 1) * (1 + ppm * 1e-6) + late)


def test_jitter_does_not_move_it():
    clock = MediaClock()
    hear(clock, 10, np.random.default_rng(1), at=100.0)
    assert clock.time_of(160_000) == pytest.approx(110.0, abs=CLOCK_ERROR_S)
    assert clock.sample_at(clock.time_of(123.0)) == pytest.approx(123.0, abs=1e-3)


def test_a_late_first_arrival_is_mended_within_a_second():
    clock = MediaClock()
    clock.heard(320, 100.02 + 0.15)
    rng = np.random.default_rng(2)
    hear(clock, 1, rng, start=320, at=100.02)
    assert clock.time_of(0) == pytest.approx(100.0, abs=CLOCK_ERROR_S)


@pytest.mark.parametrize("ppm", [-300.0, 300.0])
def test_drift_is_followed(ppm: float):
    clock = MediaClock()
    hear(clock, 120, np.random.default_rng(3), ppm=ppm)
    assert clock.time_of(120 * 16_000) == pytest.approx(120 * (1 + ppm * 1e-6), abs=CLOCK_ERROR_S)


def test_a_pause_of_the_source_moves_it_at_once_but_one_late_piece_does_not():
    clock = MediaClock()
    rng = np.random.default_rng(4)
    hear(clock, 3, rng, at=0.0)
    clock.heard(48_000, 3.5)
    assert clock.time_of(48_000) == pytest.approx(3.0, abs=CLOCK_ERROR_S)
    hear(clock, 1, rng, start=48_000, at=8.0)
    assert clock.time_of(48_000 + 16_000) == pytest.approx(9.0, abs=CLOCK_ERROR_S)


def test_it_says_so_before_it_started():
    clock = MediaClock()
    assert not clock.started
    with pytest.raises(RuntimeError, match="not started"):
        clock.sample_at(1.0)
    with pytest.raises(RuntimeError, match="not started"):
        clock.time_of(1)


def test_frames_and_samples():
    assert sample_of(25) == 16_000
    assert [frame_of(sample) for sample in (0, 639, 640, 16_000)] == [0, 0, 1, 25]
