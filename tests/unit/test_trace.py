"""scripts/trace: where each millisecond of one frame went."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from scripts._logs.files import logs_in
from tests.budgets import LOGS_DEADLINE_S, TRACE_ROUNDING_MS, TRACE_STAGES
from tests.rig.stack import ROOT

HUB, BOX = "aaaaaaaa", "bbbbbbbb"
MS: Final = 1_000_000
T0: Final = 5_000 * MS
"""when the last sample that the frame needs was heard"""
WAY: Final = (
    # service, stage, ms after T0, what else
    ("audio_capture", "heard", 2.0, "sample=1920 heard_ns=5000000000"),
    ("mel_features", "windowed", 4.5, "sample=1920 heard_ns=4900000000 last_ns=5000000000 took_ms=1.500"),
    ("mel_features", "given", 7.5, "worker=w1 seq=3 took_ms=3.000"),
    ("inference", "taken", 8.0, "worker=w1"),
    ("inference", "rendered", 20.0, "worker=w1 took_ms=9.000 batch=1"),
    ("streamer", "arrived", 22.0, "worker=w1 render_ms=9.000"),
    ("streamer", "shown", 50.0, "took_ms=1.000 skew_ms=2.000"),
    ("streamer", "encoded", 56.0, "took_ms=4.000"),
    ("streamer", "sent", 56.5, "took_ms=0.500"),
    ("streamer", "sent", 58.5, "took_ms=0.500"),
)
TOLD: Final = {
    "its sound begins; all that its window needs is heard": 100.0,
    "heard, cut, published": 2.0,
    "mel and window": 1.5,
    "waits for a worker with credit": 3.0,
    "waits for its turn": 3.0,
    "engine": 9.0,
    "waits until its sound is played": 28.0,
    "laid on the photo": 1.0,
    "waits for a viewer with room": 1.0,
    "JPEG": 4.0,
    "handed to the kernel": 0.5,
}


def write(
    folder: Path,
    *,
    frame: int = 1,
    epoch: int = 7,
    leave: tuple[str, ...] = (),
    far: bool = False,
    more: tuple[str, ...] = (),
) -> None:
    """The logs of one frame; `far`: its worker is on another box, whose clock is another."""
    logs: dict[str, list[str]] = {}
    for service, stage, ms, rest in WAY:
        if stage in leave:
            continue
        away = far and service == "inference"
        at_ns = T0 + round(ms * MS) + (10**15 if away else 0)
        words = f"epoch={epoch} frame={frame} stage={stage} at_ns={at_ns} clock={BOX if away else HUB} {rest}"
        line = f"2026-11-23T16:00:00.000 INFO    {service} trace session=default {words}"
        logs.setdefault(service, []).append(line)
    logs.setdefault("streamer", []).extend(more)
    for service, lines in logs.items():
        with (folder / f"{service}.log").open("a") as file:
            file.write("\n".join(lines) + "\n")


def trace(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/trace", *words]
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=LOGS_DEADLINE_S, check=False
    )


def rows(output: str) -> list[tuple[str, str, str, float]]:
    found = re.findall(r"^(\S.*?) {2,}(\w+) +(-?[\d.]+|-) +(-?[\d.]+)$", output, re.MULTILINE)
    return [(what, service, at, float(took)) for what, service, at, took in found]


def total(output: str) -> float:
    found = re.search(r"^since the last sample it needs was heard +([\d.]+)$", output, re.MULTILINE)
    assert found is not None, output
    return float(found.group(1))


def test_every_millisecond_of_a_frame_is_told_once(tmp_path: Path):
    write(tmp_path)
    result = trace("default", "1", "--logs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "epoch 7, frame 1" in result.stdout
    parts = rows(result.stdout)
    assert len(parts) >= TRACE_STAGES
    took = {what: ms for what, _, _, ms in parts if what != "on the bus"}
    assert took == pytest.approx(TOLD, abs=TRACE_ROUNDING_MS)
    assert [ms for what, _, _, ms in parts if what == "on the bus"] == pytest.approx([1.0, 0.5, 2.0])
    assert total(result.stdout) == pytest.approx(56.5)
    assert sum(ms for _, _, _, ms in parts[1:]) == pytest.approx(56.5, abs=len(parts) * TRACE_ROUNDING_MS)
    ends = 0.0
    for _, _, at, ms in parts[1:]:
        assert float(at) == pytest.approx(ends, abs=len(parts) * TRACE_ROUNDING_MS), "each part begins where one ends"
        ends = float(at) + ms
    assert "note: it was sent to 2 viewers; told is the first" in result.stdout


def test_of_a_worker_on_another_box_only_differences_are_used(tmp_path: Path):
    write(tmp_path, far=True)
    result = trace("default", "1", "--logs", str(tmp_path))
    parts = {what: (service, at, ms) for what, service, at, ms in rows(result.stdout)}
    assert parts["engine (by the worker's clock)"] == ("inference", "-", 9.0)
    assert parts["waits for its turn (by the worker's clock)"] == ("inference", "-", 3.0)
    assert parts["to the other box and back, both ways"][2] == pytest.approx(2.5)
    assert total(result.stdout) == pytest.approx(56.5)


def test_the_log_of_another_box_may_be_missing(tmp_path: Path):
    write(tmp_path, leave=("taken", "rendered"))
    result = trace("default", "1", "--logs", str(tmp_path))
    assert result.returncode == 0
    assert "its worker tells 9.0 ms in the engine; its log is not here" in result.stdout
    assert total(result.stdout) == pytest.approx(56.5)


@pytest.mark.parametrize(
    ("leave", "dropped", "words"),
    [
        (("shown", "encoded", "sent"), "", "it was not shown: a newer frame was due"),
        (("shown", "encoded", "sent"), "streamer late", "it was dropped by streamer: late"),
        (("given", "taken", "rendered", "arrived", "shown", "encoded", "sent"), "streamer dropped_late", "dropped by"),
        (("arrived", "shown", "encoded", "sent"), "", "its picture never came to the streamer"),
        (("encoded", "sent"), "", "nobody watched"),
    ],
)
def test_a_frame_that_nobody_saw_is_followed_as_far_as_it_came(
    leave: tuple[str, ...], dropped: str, words: str, tmp_path: Path
):
    more: tuple[str, ...] = ()
    if dropped:
        service, reason = dropped.split()
        told = f"epoch=7 frame=1 stage=dropped at_ns={T0} clock={HUB} reason={reason}"
        more = (f"2026-11-23T16:00:00.000 INFO    {service} trace session=default {told}",)
    write(tmp_path, leave=leave, more=more)
    result = trace("default", "1", "--logs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert words in result.stdout


def test_the_newest_time_line_counts_unless_another_is_named(tmp_path: Path):
    write(tmp_path, epoch=7, frame=3)
    write(tmp_path, epoch=8, frame=3)
    write(tmp_path, epoch=8, frame=4)
    write(tmp_path, epoch=9, frame=9, leave=("shown", "encoded", "sent"))
    where = ("--logs", str(tmp_path))
    assert "epoch 8, frame 3" in trace("default", "3", *where).stdout
    assert "epoch 7, frame 3" in trace("default", "3", "--epoch", "7", *where).stdout
    assert "epoch 8, frame 4" in trace("default", "last", *where).stdout
    together = "".join(f"x-1  | {line}\n" for path in tmp_path.iterdir() for line in path.read_text().splitlines())
    assert "epoch 8, frame 4" in trace("default", "last", "--logs", "-", given=together).stdout


def test_the_last_is_a_frame_that_was_shown_not_a_picture_sent_in_its_place(tmp_path: Path):
    write(tmp_path, frame=3)
    write(tmp_path, frame=4, leave=("taken", "rendered", "arrived", "shown"))
    write(tmp_path, frame=5, leave=("encoded", "sent"))
    assert "epoch 7, frame 3" in trace("default", "last", "--logs", str(tmp_path)).stdout


def test_the_log_where_a_frame_ends_is_read_before_those_of_its_way(tmp_path: Path):
    write(tmp_path)
    assert [path.stem for path in logs_in(tmp_path)] == ["streamer", "audio_capture", "inference", "mel_features"]


def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path):
    where = ("--logs", str(tmp_path))
    result = trace("default", "1", *where)
    assert result.returncode == 1
    assert "MOUTHPIECE_TRACE=yes" in result.stderr
    write(tmp_path, frame=3)
    result = trace("default", "1", *where)
    assert result.returncode == 1
    assert "there is 3 to 3 of epoch 7" in result.stderr
    result = trace("anna", "1", *where)
    assert result.returncode == 1
    assert "there is default" in result.stderr
    for wrong in (("default", "-1"), ("default", "x", *where), ("default", "1", "--logs", "/nonexistent")):
        result = trace(*wrong)
        assert result.returncode == 2, wrong
        assert "Traceback" not in result.stderr
