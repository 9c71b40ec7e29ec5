"""Supervisord with its limit of restarts, and what the logs and metrics of the running whole tell."""

from __future__ import annotations

import configparser
import functools
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from services.streamer.metrics import FAMILIES
from tests.budgets import DEATHS, GIVEN_UP_S, LOGS_DEADLINE_S, RECOVERY_S, STOP_S, TRACE_STAGES
from tests.rig.stack import ROOT, Stack, until
from tests.rig.viewer import frames

BIN = Path(sys.executable).parent
SUPERVISE = (sys.executable, ROOT / "scripts" / "supervise", "--nodaemon", "--configuration")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("sv") / "var", {"MOUTHPIECE_TRACE": "yes"}) as running:
        yield running


def control(folder: Path, *words: str, config: Path = ROOT / "deploy" / "supervisord.conf") -> str:
    """supervisorctl, as docs/operations.md says."""
    result = subprocess.run(
        [BIN / "supervisorctl", "-c", config, *words],
        env=os.environ | {"MOUTHPIECE_STATE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=LOGS_DEADLINE_S,
        check=False,
    )
    return result.stdout + result.stderr


def service(stack: Stack, name: str) -> dict[str, Any]:
    services: list[dict[str, Any]] = stack.status()["services"]
    return next(each for each in services if each["name"] == name)


def metric(stack: Stack, name: str, **labels: str) -> list[float]:
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", stack.get("/metrics").decode(), re.MULTILINE)
    return [float(v) for told, v in found if all(f'{key}="{value}"' in told for key, value in labels.items())]


@contextmanager
def watched(stack: Stack) -> Iterator[None]:
    """Somebody looks at the stream."""
    stop = threading.Event()

    def look() -> None:
        for _ in frames(stack.url):
            if stop.is_set():
                return

    viewer = threading.Thread(target=look, name="viewer")
    viewer.start()
    try:
        yield
    finally:
        stop.set()
        viewer.join(RECOVERY_S)


def test_a_frame_is_followed_through_all_services(stack: Stack):
    def traced() -> str:
        command = [sys.executable, "scripts/trace", "default", "last", "--logs", str(stack.folder / "log")]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LOGS_DEADLINE_S, check=False)
        return result.stdout if "handed to the kernel" in result.stdout else ""

    with watched(stack):
        told: str = until(traced, RECOVERY_S, "a frame that was sent")
    parts = re.findall(r"^(\S.*?) {2,}(\w+) +(-?[\d.]+) +(-?[\d.]+)$", told, re.MULTILINE)
    assert len(parts) >= TRACE_STAGES, told
    assert {who for _, who, _, _ in parts} == {"audio_capture", "mel_features", "inference", "streamer"}
    assert all(float(took) >= 0 for _, _, _, took in parts), told
    found = re.search(r"heard +([\d.]+)$", told, re.MULTILINE)
    assert found is not None
    total = float(found.group(1))
    # Their sum is the whole, however long the machine took for each: nothing is left unexplained.
    assert sum(float(took) for _, _, _, took in parts[1:]) == pytest.approx(total, abs=0.06 * len(parts))
    assert "note:" not in told


def test_the_running_whole_tells_every_metric(stack: Stack):
    def missing() -> set[str]:
        text = stack.get("/metrics").decode()
        told = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
        buckets = {name.removesuffix("_bucket") for name in told}
        return {name for name in FAMILIES if name not in told | buckets}

    player = f"{stack.url.replace('http', 'ws')}/ws/player"
    with (
        watched(stack),
        connect(player, additional_headers={"Origin": stack.url}, max_size=None) as line,
        urllib.request.urlopen(f"{stack.url}/audio_feed", timeout=10) as sound,
    ):
        line.send('{"type": "report", "epoch": 1, "sample": 0, "skew_ms": 12.5}')
        until(lambda: sound.read(3200) and not missing(), RECOVERY_S, "every metric")
    assert metric(stack, "mouthpiece_processes") == [1.0] * 5
    assert metric(stack, "mouthpiece_session_running") == [1.0]
    until(lambda: metric(stack, "mouthpiece_frame_rate_hz")[0] > 20, RECOVERY_S, "25 frames a second")
    stages = {
        "mouthpiece_frame_age_seconds_count": ("heard", "windowed", "given", "arrived", "shown"),
        "mouthpiece_stage_duration_seconds_count": ("credit", "queue", "render", "compose"),
    }
    for name, which in stages.items():
        for stage in which:
            counted = functools.partial(metric, stack, name, stage=stage)
            until(lambda counted=counted: counted()[0] > 10, RECOVERY_S, f"{name} {stage}")  # type: ignore[misc]
    shown = metric(stack, "mouthpiece_frames_shown_total")[0]
    stack.post("/requests", {"stop": "Stop"})
    until(lambda: metric(stack, "mouthpiece_session_running") == [0.0], RECOVERY_S, "the end of the epoch is told")
    assert metric(stack, "mouthpiece_frames_shown_total")[0] >= shown, "totals go on through epochs"
    stack.post("/requests", {"start": "Start"})


def test_lines_of_a_session_carry_it(stack: Stack):
    command = [sys.executable, "scripts/logs", str(stack.folder / "log"), "--no-trace", "--session", "default"]
    stack.post("/requests", {"stop": "Stop"})
    stack.post("/requests", {"start": "Start"})

    def lines() -> list[str]:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()

    found = until(lambda: [line for line in lines() if " runs, epoch " in line], LOGS_DEADLINE_S, "the line")
    assert found[-1].endswith(" session=default")
    assert " streamer " in found[-1]


def test_the_socket_is_the_users_alone(stack: Stack):
    path = stack.folder / "supervisor.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_service_that_dies_five_times_is_left_down_named_and_starts_by_hand(stack: Stack):
    ended: set[int] = set()

    def again() -> int:
        """Another process of it; 0 until there is one."""
        pids = [process.pid for process in stack.processes("face_prep")]
        return next((pid for pid in pids if pid not in ended), 0)

    for death in range(DEATHS):
        assert service(stack, "face_prep")["given_up"] == "", f"given up after {death} ends"
        pid = until(again, GIVEN_UP_S, f"start number {death + 1}")
        os.kill(pid, signal.SIGKILL)
        ended.add(pid)
    told = until(lambda: service(stack, "face_prep")["given_up"], GIVEN_UP_S, "the page names it")
    assert told == "face_prep ended 5 times within 60 s"
    until(lambda: re.search(r"face_prep +STOPPED", control(stack.folder, "status")), GIVEN_UP_S, "it is down")
    assert not stack.processes("face_prep")
    until(lambda: not service(stack, "face_prep")["alive"], RECOVERY_S, "its beats are missed")
    status = stack.status()
    assert [each["name"] for each in status["services"] if each["given_up"]] == ["face_prep"]
    notice = [text for text in status["notices"] if "face_prep" in text]
    assert len(notice) == 1
    assert "left down" in notice[0]
    assert "docs/operations.md" in notice[0]
    page = stack.get("/").decode()
    assert "given up" in page
    assert notice[0] in page
    with pytest.raises(OSError, match="503") as answer:
        stack.get("/healthz")
    with answer.value as error:  # type: ignore[attr-defined]
        assert b"face_prep ended 5 times" in error.read()
    assert metric(stack, "mouthpiece_given_up", service="face_prep") == [1.0]
    assert metric(stack, "mouthpiece_given_up") == pytest.approx([0, 0, 1, 0, 0])
    assert all(each["alive"] for each in status["services"] if each["name"] != "face_prep"), "the others go on"
    log = (stack.folder / "log" / "restarts.log").read_text()
    assert "face_prep ended 5 times within 60 s and is left down" in log

    assert "started" in control(stack.folder, "start", "mouthpiece:face_prep")
    until(lambda: service(stack, "face_prep")["alive"], RECOVERY_S, "it beats")
    until(lambda: not service(stack, "face_prep")["given_up"], RECOVERY_S, "all is well")
    assert b'"ok":true' in stack.get("/healthz")
    # It may end again: the count has begun anew.
    pid = until(again, GIVEN_UP_S, "its process")
    os.kill(pid, signal.SIGKILL)
    ended.add(pid)
    until(again, GIVEN_UP_S, "it is back")
    assert service(stack, "face_prep")["given_up"] == ""


@contextmanager
def supervised(folder: Path, **programs: str) -> Iterator[subprocess.Popen[bytes]]:
    """Supervisord with our own settings, but for other programs."""
    parser = configparser.RawConfigParser()
    parser.read_string((ROOT / "deploy" / "supervisord.conf").read_text().replace("%(here)s/..", str(ROOT)))
    for section in [name for name in parser.sections() if name.startswith(("program:", "group:"))]:
        parser.remove_section(section)
    for name, command in programs.items():
        parser[f"program:{name}"] = {"command": command, "startretries": "20", "startsecs": "1", "autorestart": "true"}
    parser["group:mouthpiece"] = {"programs": ",".join(programs)}
    (folder / "log").mkdir()
    with (folder / "test.conf").open("w") as file:
        parser.write(file)
    process = subprocess.Popen(
        [*SUPERVISE, folder / "test.conf"],
        env=os.environ | {"MOUTHPIECE_STATE_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(STOP_S)
    assert code == 0


def test_one_that_cannot_start_is_left_down_too_and_ctrl_c_ends_all(tmp_path: Path):
    status = functools.partial(control, tmp_path, "status", config=tmp_path / "test.conf")
    with supervised(tmp_path, fails="/bin/false", missing="/nonexistent", stays="/bin/sleep 1000"):
        for name in ("fails", "missing"):
            words = rf"mouthpiece:{name} +STOPPED"
            until(lambda words=words: re.search(words, status()), GIVEN_UP_S, f"{name} is left down")  # type: ignore[misc]
        assert re.search(r"mouthpiece:stays +RUNNING", status())
        down = (tmp_path / "given_up.json").read_text()
        assert '"fails": "ended 5 times within 60 s"' in down
        assert '"missing": "ended 5 times within 60 s"' in down
        log = (tmp_path / "log" / "supervisord.log").read_text()
        assert len(re.findall(r"exited: fails ", log)) == DEATHS
        control(tmp_path, "stop", "mouthpiece:stays", config=tmp_path / "test.conf")
        assert "stays" not in (tmp_path / "given_up.json").read_text(), "stopped by hand is not given up"
    assert not (tmp_path / "given_up.json").exists(), "nothing is given up at the next start"
    assert not (tmp_path / "supervisor.sock").exists()


def test_the_listener_that_is_killed_knows_what_it_gave_up(tmp_path: Path):
    status = functools.partial(control, tmp_path, "status", config=tmp_path / "test.conf")

    def listener() -> int:
        found = re.search(r"limit-restarts +RUNNING +pid (\d+)", status())
        return int(found.group(1)) if found else 0

    with supervised(tmp_path, fails="/bin/false"):
        until(lambda: re.search(r"fails +STOPPED", status()), GIVEN_UP_S, "it is left down")
        before = until(listener, GIVEN_UP_S, "the listener")
        os.kill(before, signal.SIGKILL)
        until(lambda: listener() not in {0, before}, GIVEN_UP_S, "another listener")
        assert "fails" in (tmp_path / "given_up.json").read_text()
        control(tmp_path, "start", "mouthpiece:fails", config=tmp_path / "test.conf")
        kept = tmp_path / "given_up.json"
        until(lambda: "fails" not in kept.read_text(), GIVEN_UP_S, "started by hand, it is given up no more")


def test_a_path_too_long_for_the_socket_is_said(tmp_path: Path):
    folder = tmp_path / ("x" * 100)
    (folder / "log").mkdir(parents=True)
    result = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "supervise",
            "--nodaemon",
            "--configuration",
            ROOT / "deploy" / "supervisord.conf",
        ],
        env=os.environ | {"MOUTHPIECE_STATE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=LOGS_DEADLINE_S,
        check=False,
    )
    assert result.returncode == 2
    assert "AF_UNIX path too long" in result.stderr
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="too long"):
        probe.bind(str(folder / "supervisor.sock"))
