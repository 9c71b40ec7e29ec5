"""Several sessions, several workers: fair shares, batches, what happens when it is too much. Real processes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.budgets import EVEN_SHARE, PROCESS_START_S, SHARES_ERROR, SHARES_S, THROUGHPUT
from tests.rig.crowd import Crowd
from tests.rig.voices import paused_speech


def speech() -> np.ndarray:
    """Speech without pauses, as the voice gate would leave them out."""
    pcm = paused_speech()
    loud = np.abs(pcm[: len(pcm) // 320 * 320].reshape(-1, 320)).max(axis=1) > 1000
    return np.ascontiguousarray(pcm[: len(loud) * 320].reshape(-1, 320)[loud].reshape(-1))


def test_sessions_share_a_worker_that_is_too_slow_for_all(tmp_path: Path):
    with Crowd(tmp_path, 3, speech()) as crowd:
        crowd.work("only", "--ms", "25")  # 40 frames a second, 75 are wanted
        crowd.until_seen(20, PROCESS_START_S)
        crowd.forget()
        crowd.go_on(SHARES_S)
        numbers = {name: len(seen) for name, seen in crowd.seen.items()}
        mean = sum(numbers.values()) / 3.0
        assert all(abs(number / mean - 1.0) <= SHARES_ERROR for number in numbers.values()), numbers
        for seen in crowd.seen.values():
            frames = [one.frame for one in seen]
            assert frames == sorted(set(frames)), "each once, in order"
            steps = [b - a for a, b in pairwise(frames)]
            assert sum(step <= 3 for step in steps) >= EVEN_SHARE * len(steps), steps


def test_windows_of_several_sessions_are_rendered_together(tmp_path: Path):
    with Crowd(tmp_path, 4, speech()) as crowd:
        crowd.settings["MOUTHPIECE_TRACE"] = "yes"
        worker = crowd.work("only", "--ms", "6")
        crowd.until_seen(50, PROCESS_START_S)
        sizes = [int(found) for found in re.findall(r"stage=rendered .*batch=(\d+)", worker.text())]
        assert max(sizes) >= 2
        assert all(len(seen) >= 50 for seen in crowd.seen.values())


def test_work_is_shared_by_speed(tmp_path: Path, record_property: Callable[[str, object], None]):
    with Crowd(tmp_path, 2, speech()) as crowd:  # 50 frames a second are wanted, both workers can do 37.5
        for name, ms in (("fast", "40"), ("slow", "80")):
            crowd.work(name, "--ms", ms)
        crowd.until_seen(50, PROCESS_START_S)
        crowd.forget()
        crowd.go_on(SHARES_S)
        told = Counter(one.worker for seen in crowd.seen.values() for one in seen)
        (_, fast), (_, slow) = told.most_common(2)
        record_property("fast, slow, seconds", (fast, slow, SHARES_S))
        assert abs(fast / slow / 2.0 - 1.0) <= SHARES_ERROR, told
        assert (fast + slow) / SHARES_S >= THROUGHPUT * 37.5, told
