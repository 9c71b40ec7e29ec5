"""What every service's loop does beside the service: counts, log lines, traces, beats."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.bus import Bus, Event
from shared.messages import Beat, pack, unpack
from shared.service import BUCKETS_S, EXIT_USAGE, Loop, Tally, configured
from shared.topics import ServiceName
from tests.budgets import LOOP_BEATS, LOOP_READS
from tests.rig.stack import free_ports

TRACE = re.compile(
    r"trace session=default epoch=3 frame=120 stage=shown at_ns=\d+ clock=[0-9a-f]{8} worker=w1 took_ms=1\.235"
)


class Idle:
    """A service that does nothing."""

    name: ServiceName = "face_prep"

    def __init__(self) -> None:
        self.info = {"word": "x"}

    def handle(self, event: Event) -> None:
        raise AssertionError(event)

    def turn(self, now_s: float) -> float:
        return now_s

    def gauges(self) -> dict[str, float]:
        return {"queue": 2.0}

    def close(self) -> None:
        pass


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus("face_prep", "127.0.0.1", free_ports(9))
    bus.publishes("beat")
    yield bus
    bus.close()


def words(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_drops_are_told_once_a_second_with_their_session(caplog: pytest.LogCaptureFixture):
    tally = Tally(logging.getLogger("loop-test"))
    for _ in range(3):
        tally.drop("late", "no worker", session="anna")
    tally.drop("late", session="ben")
    tally.tell(10.0)
    assert words(caplog) == ["late x 3: no worker session=anna", "late x 1 session=ben"]
    tally.drop("late", session="ben")
    tally.tell(10.5)
    assert len(caplog.records) == 2, "not before a second went by"
    tally.tell(11.0)
    assert words(caplog)[-1] == "late x 1 session=ben"
    assert tally.totals["late"] == 5
    assert tally.last_error == "no worker"


def test_ages_are_counted_in_classes():
    tally = Tally(logging.getLogger("loop-test"))
    for seconds in (-0.1, BUCKETS_S[0], BUCKETS_S[0] + 1e-6, BUCKETS_S[-1], 7.0):
        tally.observe("age_shown", seconds)
    last = len(BUCKETS_S)
    counts = {name: number for name, number in tally.totals.items() if not name.endswith("sum")}
    # The upper bound belongs to its class, as Prometheus has it.
    assert counts == {f"hist.age_shown.{n}": k for n, k in ((0, 2), (1, 1), (last - 1, 1), (last, 1))}
    assert tally.totals["hist.age_shown.sum"] == pytest.approx(-0.1 + 2 * BUCKETS_S[0] + 1e-6 + BUCKETS_S[-1] + 7.0)


def test_traces_come_at_any_level_of_the_log_and_only_when_asked_for(caplog: pytest.LogCaptureFixture):
    log = logging.getLogger("loop-test-quiet")
    log.setLevel(logging.ERROR)
    assert not Tally(log).tracing
    tally = Tally(log, tracing=True)
    tally.say("not told at this level")
    tally.trace("shown", "default", 3, 120, worker="w1", took_ms=1.23456)
    assert len(caplog.records) == 1
    assert TRACE.fullmatch(words(caplog)[0]), words(caplog)
    tally.trace("heard", "default", 3, 120, at_ns=17)
    assert " at_ns=17 " in words(caplog)[1]
    assert re.search(r"clock=(\w+)", words(caplog)[0]) != re.search("clock=$", words(caplog)[1])


def test_a_beat_file_is_whole_whenever_it_is_read(bus: Bus, tmp_path: Path):
    path = tmp_path / "beat.json"
    tally = Tally(logging.getLogger("loop-test"))
    tally.count("frames", 3)
    tally.begin("frames", "late")
    loop = Loop(Idle(), bus, tally, beat_file=str(path))
    began_s = time.monotonic()
    loop.turn(watchdog=False)
    told = json.loads(path.read_bytes())
    assert set(told) == {"service", "pid", "uptime_s", "counters", "gauges", "info", "last_error", "written_s"}
    assert told["counters"]["frames"] == 3
    assert told["counters"]["late"] == 0, "what may happen is told before it does"
    assert told["gauges"]["queue"] == 2
    assert told["gauges"]["open_files"] > 3
    assert told["gauges"]["pss_bytes"] > 1e6
    assert began_s <= told["written_s"] <= time.monotonic()
    seen: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(json.loads(path.read_bytes())["written_s"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(LOOP_BEATS):
            loop._beat(time.monotonic())
    finally:
        stop.set()
        reader.join()
    assert len(seen) >= LOOP_READS
    assert seen == sorted(seen)
    assert [file.name for file in tmp_path.iterdir()] == ["beat.json"], "nothing temporary is left"


def test_a_beat_file_that_cannot_be_written_is_said_and_nothing_ends(bus: Bus, tmp_path: Path):
    tally = Tally(logging.getLogger("loop-test"))
    loop = Loop(Idle(), bus, tally, beat_file=str(tmp_path / "nowhere" / "beat.json"))
    loop.turn(watchdog=False)
    assert tally.totals["beat_file"] == 1
    assert "MOUTHPIECE_BEAT_FILE" in tally.last_error
    assert bus.counters["sent.beat"] == 1, "the bus has it all the same"


def test_a_beat_with_all_that_a_service_counts_keeps_its_limits(bus: Bus):
    tally = Tally(logging.getLogger("loop-test"))
    for name in ("age_arrived", "age_shown", "took_compose", "skew"):
        for bound in (*BUCKETS_S, 10.0):
            tally.observe(name, bound)
    beats: list[Beat] = []
    loop = Loop(Idle(), bus, tally, tell_beat=beats.append)
    loop.turn(watchdog=False)
    (beat,) = beats
    assert unpack([bytes(frame) for frame in pack(beat)], [Beat]) == beat


def test_a_wrong_setting_is_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MOUTHPIECE_TRACE", "perhaps")
    handlers = logging.getLogger().handlers[:]
    try:
        with pytest.raises(SystemExit) as ended:
            configured("inference")
    finally:
        logging.basicConfig(handlers=handlers, force=True)
        logging.captureWarnings(capture=False)
    assert ended.value.code == EXIT_USAGE
    assert re.fullmatch(r"\S+T\S+ ERROR +inference MOUTHPIECE_TRACE='perhaps'.*\n", capsys.readouterr().out)
