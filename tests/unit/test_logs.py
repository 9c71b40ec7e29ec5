"""scripts/logs: one story out of many files, whatever happens to them."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from scripts._logs.files import Tail
from scripts._logs.lines import Reader, entries, stamp
from shared.service import open_log
from tests.budgets import LOGS_DEADLINE_S, LOGS_TURNINGS
from tests.rig.stack import ROOT

MIXED = {
    "inference.log": """\
2026-11-23T16:00:01.000 INFO    inference started
2026-11-23T16:00:03.000 WARNING inference dropped_late x 3 session=anna
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: bad
2026-11-23T16:00:06.000 INFO    inference trace session=anna epoch=1 frame=2 stage=taken at_ns=1
""",
    "streamer.log": """\
2026-11-23T16:00:02.000 INFO    streamer runs, epoch 1 session=anna
2026-11-23T16:00:04.000 ERROR   streamer the loop cannot go on
Traceback (most recent call last):
  File "y.py", line 1, in <module>
KeyError: 'z'
2026-11-23T16:00:05.000 INFO    streamer runs, epoch 2 session=annabel
""",
    "supervisord.log": "2026-11-23 16:00:00,500 INFO spawned: 'inference' with pid 7\n2026-11-23 16:00:07,000 CRIT x\n",
}
COMPOSE = """\
inference-1  | 2026-11-23T16:00:03.000 WARNING inference dropped_late x 3
streamer-1   | 2026-11-23T16:00:01.000 ERROR   streamer broken
inference-2  | 2026-11-23T16:00:02.000 INFO    inference started
streamer-1   | Traceback (most recent call last):
streamer-1   | KeyError: 'z'
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in MIXED.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def logs(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/logs", *words]
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=LOGS_DEADLINE_S, check=False
    )


def shown(*words: str, given: str = "") -> list[str]:
    result = logs(*words, given=given)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_all_services_are_merged_by_time_and_tracebacks_stay_with_their_line(folder: Path):
    lines = shown(str(folder))
    seconds = [line[17:23] for line in lines if line.startswith("2026")]
    assert seconds == sorted(seconds)
    assert [line[24:].split()[1] for line in lines if line.startswith("2026")] == [
        "supervisord", "inference", "streamer", "inference", "inference", "streamer", "streamer", "inference",
        "supervisord",
    ]  # fmt: skip
    broken = lines.index("2026-11-23T16:00:04.000 ERROR   streamer the loop cannot go on")
    assert lines[broken + 1 : broken + 4] == MIXED["streamer.log"].splitlines()[2:5]
    assert len(lines) == sum(text.count("\n") for text in MIXED.values()), "nothing is lost"


def test_filters(folder: Path):
    where = str(folder)
    assert len(shown(where, "--service", "inference")) == 6
    assert len(shown(where, "--service", "inference", "--service", "supervisord")) == 8
    assert len(shown(where, "--session", "anna")) == 3, "not those of annabel, not the stack of a process's end"
    assert len(shown(where, "--session", "anna", "--no-trace")) == 2
    errors = shown(where, "--level", "error")
    # The stack that came without a level is an error, the word CRIT of supervisord is graver than one.
    assert [line for line in errors if line.startswith("2026")] == [
        "2026-11-23T16:00:03.000 ERROR   inference Traceback (most recent call last):",
        "2026-11-23T16:00:04.000 ERROR   streamer the loop cannot go on",
        "2026-11-23T16:00:07.000 CRITICAL supervisord x",
    ]
    assert len(shown(where, "--since", "2026-11-23T16:00:05")) == 3
    assert shown(where, "--since", "2027-01-01") == []


def test_since_a_while_ago_and_a_time_of_today(tmp_path: Path):
    now = datetime.now().astimezone()
    ages = {"old": timedelta(hours=3), "new": timedelta(minutes=5)}
    lines = [f"{stamp(now - age)} INFO    streamer {name}\n" for name, age in ages.items()]
    (tmp_path / "streamer.log").write_text("".join(lines))
    assert [line.split()[-1] for line in shown(str(tmp_path), "--since", "10m")] == ["new"]
    assert [line.split()[-1] for line in shown(str(tmp_path), "--since", "1d")] == ["old", "new"]
    assert len(shown(str(tmp_path), "--since", "0:00")) in {0, 1, 2}  # just after midnight nothing is of today


def test_what_was_turned_over_comes_first(tmp_path: Path):
    for number, name in enumerate(("streamer.log.10", "streamer.log.2", "streamer.log.1", "streamer.log")):
        text = f"2026-11-23T16:00:0{number}.000 INFO    streamer {name}\n  more {name}\n"
        (tmp_path / name).write_text(text)
    assert [line.split()[-1] for line in shown(str(tmp_path))][::2] == [
        "streamer.log.10", "streamer.log.2", "streamer.log.1", "streamer.log",
    ]  # fmt: skip


def test_a_log_that_never_had_a_whole_line_is_shown(tmp_path: Path):
    (tmp_path / "mel_features.log").write_text("Fatal Python error: Segmentation fault\n\nCurrent thread\n")
    lines = shown(str(tmp_path), "--level", "ERROR", "--service", "mel_features", "--since", "1h")
    assert lines[0].endswith("ERROR   mel_features Fatal Python error: Segmentation fault")
    assert lines[1:] == ["", "Current thread"]


def test_processes_of_one_service_are_told_apart(tmp_path: Path):
    for number in range(2):
        line = f"2026-11-23T16:00:0{number}.000 INFO    inference hello\n"
        (tmp_path / f"inference-0{number}.log").write_text(line)
    assert [line.split()[2] for line in shown(str(tmp_path))] == ["inference-00", "inference-01"]
    assert len(shown(str(tmp_path), "--service", "inference")) == 2
    assert len(shown(str(tmp_path), "--service", "inference-01")) == 1


def test_containers_from_a_pipe():
    lines = shown("-", given=COMPOSE)
    assert [line.split()[2] if line.startswith("2026") else "" for line in lines] == [
        "streamer-1", "", "", "inference-2", "inference-1",
    ]  # fmt: skip
    assert len(shown("-", "--service", "inference", given=COMPOSE)) == 2
    assert len(shown("-", "--service", "inference-2", given=COMPOSE)) == 1
    swarm = COMPOSE.replace("inference-2  |", "hub_inference.2.x1y2@box    |")
    assert len(shown("-", "--service", "inference", given=swarm)) == 2
    pods = COMPOSE.replace("inference-2  |", "[pod/inference-7f9-abc/inference]")
    assert "pod/inference-7f9-abc/inference" in shown("-", "--service", "inference", given=pods)[0]
    assert shown("-", "--follow", given=COMPOSE)[0].endswith("dropped_late x 3"), "in a stream the order is as it comes"


def test_wrong_words_get_one_clear_line():
    result = logs("/nonexistent")
    assert result.returncode == 2
    assert result.stderr.startswith("logs: /nonexistent is no folder")
    assert result.stderr.count("\n") == 1
    result = logs("--since", "yesterday")
    assert result.returncode == 2
    assert "16:05" in result.stderr


def test_a_reader_that_has_enough_is_no_error(folder: Path):
    many = "".join(f"2026-11-23T17:00:00.000 INFO    streamer line {n}\n" for n in range(20_000))
    (folder / "many.log").write_text(many)
    command = f"{sys.executable} scripts/logs {folder} | head -1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_the_lines_that_services_write_are_understood(capsys: pytest.CaptureFixture[str]):
    import logging

    handlers = logging.getLogger().handlers[:]
    try:
        log = open_log("mel_features", "INFO")
        log.info("one %d session=%s", 1, "anna")
        try:
            int("two")
        except ValueError:
            log.exception("it broke")
    finally:
        logging.basicConfig(handlers=handlers, force=True)
        logging.captureWarnings(capture=False)
    reader = Reader()
    found = [*entries(capsys.readouterr().out.splitlines(), reader), *reader.flush()]
    assert [(entry.level, entry.service) for entry in found] == [("INFO", "mel_features"), ("ERROR", "mel_features")]
    assert found[0].of_session("anna")
    assert found[1].more[-1].startswith("ValueError: ")


def turn_over(log: Path, most: int = 3) -> None:
    """As supervisord does it."""
    for number in reversed(range(1, most)):
        old = log.with_name(f"{log.name}.{number}")
        if old.exists():
            old.replace(log.with_name(f"{log.name}.{number + 1}"))
    log.replace(log.with_name(f"{log.name}.1"))
    log.touch()


def test_nothing_is_lost_or_told_twice_while_logs_are_turned_over(tmp_path: Path):
    log = tmp_path / "streamer.log"
    log.touch()
    tail = Tail(log)
    written: list[str] = []
    seen: list[str] = []
    for turn in range(LOGS_TURNINGS):
        for part in range(3):
            name = f"line {turn}.{part}"
            with log.open("a") as file:
                file.write(f"{name}\nhalf of ")
            written += [name if not written else f"half of {name}"]
            if part == turn % 3:
                seen += tail.lines()  # at the beginning, in the middle or at the end of a file
        turn_over(log)
        if turn % 2:
            turn_over(log)  # twice between two looks
    seen += tail.lines()
    tail.close()
    assert seen == written


def test_a_reader_that_slept_for_long_goes_on_with_what_is_left(tmp_path: Path):
    log = tmp_path / "streamer.log"
    log.write_text("first\nhalf of what is ")
    tail = Tail(log)
    assert list(tail.lines()) == ["first"]
    for turn in range(6):
        turn_over(log)
        log.write_text(f"turn {turn}\n")
    turn_over(log)
    log.write_text("last\n")
    assert list(tail.lines()) == ["turn 3", "turn 4", "turn 5", "last"], "older ones are thrown away"
    log.write_text("")
    log.write_text("cut\n")
    assert list(tail.lines()) == ["cut"]
    tail.close()


@contextmanager
def following(*words: str) -> Iterator[queue.Queue[str]]:
    lines: queue.Queue[str] = queue.Queue()
    process = subprocess.Popen(
        [sys.executable, "scripts/logs", "--follow", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None

    def read(stream: Iterator[str]) -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))

    reader = threading.Thread(target=read, args=(process.stdout,))
    reader.start()
    try:
        yield lines
    finally:
        process.terminate()
        process.wait(LOGS_DEADLINE_S)
        reader.join(LOGS_DEADLINE_S)
        process.stdout.close()


def test_follow_shows_what_comes_in_order_through_turnings_and_new_services(tmp_path: Path):
    streamer, inference = tmp_path / "streamer.log", tmp_path / "inference.log"
    streamer.write_text(f"{stamp(datetime.now().astimezone())} INFO    streamer before\n")

    def say(log: Path, name: str, more: str = "") -> None:
        with log.open("a") as file:
            file.write(f"{stamp(datetime.now().astimezone())} INFO    {log.stem} {name}\n{more}")

    with following(str(tmp_path)) as lines:
        say(streamer, "begin")
        assert lines.get(timeout=LOGS_DEADLINE_S).endswith("before")
        assert lines.get(timeout=LOGS_DEADLINE_S).endswith("begin")
        expected = []
        for turn in range(LOGS_TURNINGS):
            say(streamer, f"a{turn}", "Traceback\n")
            say(inference, f"b{turn}")  # a service that was not there at the start
            turn_over(streamer, LOGS_TURNINGS)
            expected += [f"streamer a{turn}", "Traceback", f"inference b{turn}"]
        got = [lines.get(timeout=LOGS_DEADLINE_S) for _ in expected]
        told = [line[32:] if line.startswith("20") else line for line in got]
        for name in ("streamer", "inference"):  # lines of the same millisecond may change places
            assert [line for line in told if line.startswith(name)] == [x for x in expected if x.startswith(name)]
        assert all(told[n - 1].startswith("streamer") for n, line in enumerate(told) if line == "Traceback"), told
        say(streamer, "end")
        assert lines.get(timeout=LOGS_DEADLINE_S).endswith("streamer end"), "nothing is told twice"
