"""What an operator does to workers while people watch: kill, stop, add, slow down, cut off. Real processes.

`FAULTS=full` runs them as often and as long as the figures in docs/faults.md say; without it they are shorter.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from shared.topics import TOPICS
from tests.budgets import (
    BACK_S,
    EVEN_SHARE,
    FAULT_GAP_S,
    FAULT_KILLS,
    FAULT_LOST,
    HUNG_AWAY_S,
    HUNG_END_S,
    JOIN_S,
    LATE_SHARE,
    LINK_CUTS,
    LINK_DELAY_S,
    OLD_S,
    PROCESS_START_S,
    SHORT_FOUND_S,
    STARTS,
    STEPS_S,
    STOPPED_AWAY_S,
    STOPPED_GROWTH_BYTES,
    STOPPED_S,
)
from tests.rig.fleet import HUB, Fleet, Watch, watching
from tests.rig.proxy import proxied
from tests.rig.stack import ROOT, until

Record = Callable[[str, object], None]
"""pytest's record_property: what was measured goes into --junit-xml"""
FRAME = 640
"""samples"""
STEPS = (3600, -3600, 0)
"""s by which the wall clock is off"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, {"MOUTHPIECE_TRACE": "yes"}) as fleet:
        yield fleet


def given(fleet: Fleet, since_s: float, until_s: float = float("inf")) -> Counter[str]:
    """Windows given to each worker in a time (monotonic), by the traces of mel_features."""
    told = re.findall(r"stage=given at_ns=(\d+) .*worker=(\S+)", fleet.hub["mel_features"].text())
    return Counter(worker for at_ns, worker in told if since_s <= int(at_ns) / 1e9 < until_s)


def id_of(fleet: Fleet, name: str) -> str:
    """Which id a worker has on the bus: it says so when it starts."""
    found = until(lambda: re.search(r"is worker (\S+)", fleet.workers[name].text()), PROCESS_START_S, f"{name} starts")
    return str(found.group(1))


def wait(watch: Watch, frames: int, timeout_s: float = 30.0) -> None:
    """Wait until so many more frames were shown."""
    least = len(watch.moving()) + frames
    until(lambda: len(watch.moving()) >= least, timeout_s, f"{frames} more frames; {watch.problem}")


def pause(seconds: float) -> None:
    """Let time go by: what is tested is what happens meanwhile."""
    at_s = time.monotonic() + seconds
    until(lambda: time.monotonic() > at_s, seconds + 5.0, "some time")


def in_order(watch: Watch) -> bool:
    """Whether no frame was shown after a later one. The demo speech begins anew with an epoch."""
    times = [shot.media_time for shot in watch.moving()]
    return all(a <= b for a, b in pairwise(times))


def worst(watch: Watch, since_s: float) -> tuple[float, int]:
    """Longest time between two new frames, and most frames left out at once."""
    both = list(pairwise(watch.moving(since_s)))
    return (
        max(b.at_s - a.at_s for a, b in both),
        max((b.media_time - a.media_time) // FRAME - 1 for a, b in both),
    )


def test_a_worker_that_is_killed_is_not_missed(fleet: Fleet, record_property: Record):
    names = {fleet.work(name, "--ms", "8") and id_of(fleet, name): name for name in ("first", "second")}
    fleet.wait_ready()
    found = []
    with watching(fleet) as watch:
        wait(watch, 50)
        for _ in range(FAULT_KILLS):
            busy = given(fleet, time.monotonic() - 1.0).most_common(1)[0][0]
            name = names.pop(busy)
            at_s = time.monotonic()
            os.kill(fleet.workers[name].pid, signal.SIGKILL)
            fleet.workers[name].wait(5)
            wait(watch, 25)
            found.append(worst(watch, at_s - 0.5))
            fleet.work(name, "--ms", "8")
            names[id_of(fleet, name)] = name
            until(lambda: fleet.metric("mouthpiece_workers") == 2.0, BACK_S, "both work")
        record_property("longest gap s, most lost", (max(gap for gap, _ in found), max(lost for _, lost in found)))
        assert max(gap_s for gap_s, _ in found) <= FAULT_GAP_S, found
        assert max(lost for _, lost in found) <= FAULT_LOST, found
        assert in_order(watch)


def test_a_worker_that_stands_still_gets_nothing_and_shows_nothing_old(fleet: Fleet, record_property: Record):
    for name in ("first", "second"):
        fleet.work(name, "--ms", "8")
    fleet.wait_ready()
    with watching(fleet) as watch:
        wait(watch, 50)
        ids = {id_of(fleet, name): name for name in fleet.workers}
        busy = given(fleet, time.monotonic() - 1.0).most_common(1)[0][0]
        process = psutil.Process(fleet.workers[ids[busy]].pid)
        usual_s = sorted(shot.at_s - shot.media_time / 16_000 for shot in watch.moving())[len(watch.moving()) // 2]
        process.suspend()
        stopped_s = time.monotonic()
        wait(watch, 100)
        process.resume()
        resumed_s = time.monotonic()
        wait(watch, 100)
        told = given(fleet, stopped_s + STOPPED_AWAY_S, resumed_s)
        oldest_s = max(shot.at_s - shot.media_time / 16_000 for shot in watch.moving(stopped_s)) - usual_s
        record_property("given to it, to others, oldest s", (told[busy], sum(told.values()), oldest_s))
        assert busy not in told
        assert sum(told.values()) > 50
        assert oldest_s < OLD_S
        assert in_order(watch)
        until(lambda: given(fleet, resumed_s)[busy] > 10, BACK_S, "it works again")


def test_a_third_worker_relieves_two_that_are_short(fleet: Fleet, record_property: Record):
    for name in ("first", "second"):
        fleet.work(name, "--ms", "95")  # 21 frames a second in all
    fleet.wait_ready()
    with watching(fleet) as watch:
        wait(watch, 40)
        until(lambda: fleet.metric("mouthpiece_shortage_ratio") > 0.1, SHORT_FOUND_S, "the shortage is told")
        assert any("more like these are needed" in notice for notice in fleet.status()["notices"])
        shares = [(b.media_time - a.media_time) // FRAME for a, b in pairwise(watch.moving(time.monotonic() - 3.0))]
        assert sum(share <= 2 for share in shares) >= EVEN_SHARE * len(shares), f"frames fall out evenly: {shares}"
        fleet.work("third", "--ms", "95")
        joined_s = until(
            lambda: "started, pid" in fleet.workers["third"].text() and time.monotonic(), PROCESS_START_S, ""
        )
        third = id_of(fleet, "third")
        until(lambda: f"worker={third}" in fleet.workers["third"].text(), JOIN_S, "its first frame")
        record_property("first frame after s", time.monotonic() - joined_s)
        assert time.monotonic() - joined_s < JOIN_S
        until(lambda: fleet.metric("mouthpiece_shortage_ratio") == 0.0, SHORT_FOUND_S, "nobody is missing any more")
        assert in_order(watch)


def test_services_start_in_any_order(tmp_path: Path):
    choose = random.Random(3)
    for number in range(STARTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        fleet = Fleet(folder)
        try:
            services = [*HUB, "inference"]
            choose.shuffle(services)
            for service in services:
                if service == "inference":
                    fleet.work("only", "--ms", "5")
                else:
                    fleet.start_service(service)
                pause(choose.random() * 0.3)
            fleet.wait_ready()
            with watching(fleet) as watch:
                wait(watch, 5)
            again = choose.choice(services)
            if again == "inference":
                fleet.workers["only"].stop(10)
                fleet.work("only", "--ms", "5")
            else:
                fleet.hub[again].stop(10)
                fleet.start_service(again)
            fleet.wait_ready()
            with watching(fleet) as watch:
                wait(watch, 5)
        finally:
            fleet.close()


def test_a_reader_that_stands_still_costs_nobody_anything(fleet: Fleet, record_property: Record):
    fleet.work("only")
    fleet.wait_ready()
    addresses = [f"tcp://127.0.0.1:{fleet.bus_port + topic.port}" for topic in TOPICS if topic.binds != "streamer"]
    listener = fleet.listen(addresses)
    with watching(fleet) as watch:
        wait(watch, 50)
        processes = {name: psutil.Process(process.pid) for name, process in {**fleet.hub, **fleet.workers}.items()}
        before = {name: process.memory_info().rss for name, process in processes.items()}
        stands = psutil.Process(listener.pid)
        stands.suspend()
        at_s = time.monotonic()
        pause(STOPPED_S)
        grown = {name: process.memory_info().rss - before[name] for name, process in processes.items()}
        record_property("grown bytes", grown)
        assert max(grown.values()) <= STOPPED_GROWTH_BYTES, grown
        assert fleet.metric("mouthpiece_audio_lost_seconds_total") == 0.0
        assert worst(watch, at_s)[1] <= FAULT_LOST
        # the one who reads most: pictures wait for the streamer in the worker
        with_pictures = processes["only"].memory_info().rss
        processes["streamer"].suspend()
        pause(STOPPED_S)
        grown_by = processes["only"].memory_info().rss - with_pictures
        record_property("worker grown while the streamer stood still, bytes", grown_by)
        assert grown_by <= STOPPED_GROWTH_BYTES
        processes["streamer"].resume()
        stands.resume()
        wait(watch, 50)


def test_a_bad_line_to_a_worker_disturbs_nothing(fleet: Fleet, record_property: Record):
    near = fleet.bus_port + 20
    ports = {near + topic.port: fleet.bus_port + topic.port for topic in TOPICS if topic.binds != "inference"}
    with proxied(ports, delay_s=LINK_DELAY_S) as line:
        fleet.work("far", "--ms", "5", MOUTHPIECE_BUS_PORT=str(near))
        fleet.wait_ready()
        with watching(fleet) as watch:
            wait(watch, 100)
            shown = fleet.metric("mouthpiece_frames_shown_total")
            late = fleet.metric("mouthpiece_frames_dropped_total", reason="late")  # for credit, or for the screen
            for _ in range(LINK_CUTS):
                line.cut += 1
                wait(watch, 100)
            assert line.cuts == LINK_CUTS
            shown = fleet.metric("mouthpiece_frames_shown_total") - shown
            late = fleet.metric("mouthpiece_frames_dropped_total", reason="late") - late
            record_property("late, shown, cuts", (late, shown, line.cuts))
            assert late <= LATE_SHARE * shown, (late, shown, line.cuts)
            assert in_order(watch)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="without gcc the wall clock cannot be moved")
def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: Path, record_property: Record):
    mover, told = tmp_path / "wallclock.so", tmp_path / "seconds"
    source = ROOT / "tests" / "rig" / "wallclock.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", mover, source], check=True)
    told.write_bytes(bytes(8))
    moved = {"LD_PRELOAD": str(mover), "WALLCLOCK": str(told), "MOUTHPIECE_TRACE": "yes"}
    with Fleet(tmp_path / "hub", moved) as fleet:
        fleet.work("only", "--ms", "5")
        fleet.wait_ready()
        with watching(fleet) as watch:
            wait(watch, 50)
            at_s = time.monotonic()
            for step in STEPS:
                with told.open("r+b") as file:
                    file.write(step.to_bytes(8, sys.byteorder, signed=True))
                wait(watch, round(25 * STEPS_S))
            record_property("longest gap s, most lost", worst(watch, at_s))
            assert worst(watch, at_s)[1] <= FAULT_LOST
            assert in_order(watch)
        for process in (fleet.workers["only"], fleet.hub["streamer"]):
            hours = set(re.findall(r"T(\d\d):\d\d:\d\d", process.text()))
            assert len(hours) >= len(STEPS), "its wall clock did jump"


def test_an_engine_that_hangs_loses_its_work_and_ends_itself(fleet: Fleet, tmp_path: Path, record_property: Record):
    hang = tmp_path / "hang"
    fleet.work("hangs", "--ms", "4", "--hang", str(hang))
    fleet.work("works", "--ms", "12")
    fleet.wait_ready()
    with watching(fleet) as watch:
        wait(watch, 50)
        hanging = id_of(fleet, "hangs")
        hang.touch()
        at_s = time.monotonic()
        assert fleet.workers["hangs"].wait(HUNG_END_S) != 0
        ended_s = time.monotonic()
        told = given(fleet, at_s + HUNG_AWAY_S, ended_s)
        record_property("ended after s, given elsewhere", (ended_s - at_s, sum(told.values())))
        assert hanging not in told
        assert sum(told.values()) > 50
        assert "tests/rig/worker.py" in fleet.workers["hangs"].text(), "its stacks are in its log"
        wait(watch, 25)
        assert in_order(watch)
