"""The health check of containers: what a service makes has to move."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shared.health import FLOWS, Unhealthy, check, judge
from shared.topics import SERVICES
from tests.rig.stack import ROOT

WORK = {
    "audio_capture": ({"chunks": 50.0}, {}, {"source_state": "running"}),
    "mel_features": ({"heard": 50.0, "windows": 25.0}, {"workers_able": 1.0}, {}),
    "face_prep": ({"received.ingest": 1.0, "sent.face": 1.0}, {}, {}),
    "inference": ({"given": 25.0, "frames": 25.0}, {}, {}),
    "streamer": ({"published": 25.0}, {}, {}),
}
"""counters that a second of work adds, gauges, and words"""
MADE = {
    "audio_capture": "chunks",
    "mel_features": "windows",
    "face_prep": "sent.face",
    "inference": "frames",
    "streamer": "published",
}


def beat(service: str, seconds: float, without: str = "", **changed: Any) -> dict[str, Any]:
    """The beat of a service that has worked for some seconds."""
    counters, gauges, info = WORK[service]
    return {
        "service": service,
        "pid": 7,
        "uptime_s": seconds,
        "counters": {name: value * seconds for name, value in counters.items() if name != without},
        "gauges": gauges,
        "info": info,
        "last_error": "",
        "written_s": time.monotonic(),
        **changed,
    }


def put(path: Path, told: dict[str, Any]) -> None:
    """Write a beat as a service does: whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(told))
    fresh.replace(path)


def test_every_service_is_known() -> None:
    assert set(FLOWS) == set(SERVICES) == set(WORK)


@pytest.mark.parametrize("service", SERVICES)
def test_what_works_is_healthy_and_what_makes_nothing_is_not(service: str) -> None:
    judge(beat(service, 1), beat(service, 3))
    with pytest.raises(Unhealthy, match=f"{service} had work"):
        judge(beat(service, 1, MADE[service]), beat(service, 3, MADE[service]))


@pytest.mark.parametrize("service", sorted(set(SERVICES) - {"streamer"}))
def test_nothing_to_do_is_no_fault(service: str) -> None:
    judge(beat(service, 1, counters={}, info={}), beat(service, 3, counters={}, info={}))


def test_sound_without_workers_is_no_fault_of_mel_features() -> None:
    old, new = (beat("mel_features", at, "windows", gauges={"workers": 1.0, "workers_able": 0.0}) for at in (1, 3))
    judge(old, new)


def test_another_process_counts_from_zero() -> None:
    judge(beat("streamer", 1, pid=8), beat("streamer", 1))


def test_the_check_waits_for_beats(tmp_path: Path) -> None:
    path, done = tmp_path / "beat.json", threading.Event()

    def work(made: str) -> None:
        seconds = 1.0
        while not done.wait(0.05):
            seconds += 0.05
            put(path, beat("inference", seconds, made))

    for without in ("", "frames"):
        put(path, beat("inference", 1.0, without))
        done.clear()
        worker = threading.Thread(target=work, args=(without,))
        worker.start()
        try:
            if without:
                with pytest.raises(Unhealthy, match="made nothing"):
                    check(path)
            else:
                assert check(path).startswith("inference works")
        finally:
            done.set()
            worker.join()


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [
        (None, "has not beaten"),
        (-100.0, "old"),
        (100.0, "no beat came"),
    ],
)
def test_the_program_says_why(tmp_path: Path, ahead_s: float | None, said: str) -> None:
    path = tmp_path / "beat.json"
    if ahead_s is not None:
        put(path, beat("streamer", 1, written_s=time.monotonic() + ahead_s))
    command = [sys.executable, "-m", "shared.health"]
    done = subprocess.run(
        command, cwd=ROOT, env={"MOUTHPIECE_BEAT_FILE": str(path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("unhealthy: ")
    assert said in done.stdout
    assert not done.stderr


def test_the_streamer_s_page_has_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beat.json"
    monkeypatch.setenv("MOUTHPIECE_PORT", "1")
    put(path, beat("streamer", 1.0, written_s=time.monotonic() - 2.0))
    renewal = threading.Timer(0.3, lambda: put(path, beat("streamer", 3.0)))
    renewal.start()
    with pytest.raises(Unhealthy, match="the page does not answer"):
        check(path)
    renewal.join()
