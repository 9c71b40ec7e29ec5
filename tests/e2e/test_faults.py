"""What may happen to it: services killed, Ctrl-C, bad photos, no microphone, a taken port."""

from __future__ import annotations

import functools
import itertools
import re
import signal
import socket
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import skimage.data

from shared.topics import SERVICES
from tests.budgets import RECOVERY_S, STOP_S, STREAM_STILL_S
from tests.rig.calm import Calm
from tests.rig.stack import ROOT, Stack, ended, until
from tests.rig.viewer import frames


def shown(stack: Stack) -> float:
    """Frames with a moving mouth that were shown since the newest epoch began."""
    found = re.search(r"^mouthpiece_now_playout_shown\{[^}]*\} (\S+)", stack.get("/metrics").decode(), re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def moves(stack: Stack) -> bool:
    """Whether the mouth moves: more frames are shown now than a moment ago. The demo speech has pauses of up to 2 s."""
    try:
        before = shown(stack)
        until(lambda: not before <= shown(stack) <= before + 5, 4.0, "frames")
    except (OSError, TimeoutError):
        return False
    return True


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "streamer"])
def test_a_killed_service_comes_back_and_the_stream_stays_open(service: str, stack: Stack):
    until(lambda: moves(stack), RECOVERY_S, "the mouth moves")
    came: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        for shot in frames(stack.url):
            came.append(shot.at_s)
            if stop.is_set():
                return

    viewer = threading.Thread(target=watch)
    viewer.start()
    with Calm() as calm:
        try:
            for _ in range(3):
                pids = {process.pid for process in stack.processes(service)}
                assert pids
                stack.processes(service)[0].kill()
                until(functools.partial(alone, stack, service, pids), RECOVERY_S, f"{service} is back")
                until(lambda: moves(stack), RECOVERY_S, f"the mouth moves after the end of {service}")
        finally:
            stop.set()
            viewer.join(10)
    assert not viewer.is_alive()
    still_s = max(late - early for early, late in itertools.pairwise(came))
    assert still_s < STREAM_STILL_S + 2 * calm.longest_s, "the stream stood still, and not because the machine did"


def alone(stack: Stack, service: str, old: set[int]) -> bool:
    now = {process.pid for process in stack.processes(service)}
    return bool(now) and not now & old


def test_a_killed_streamer_comes_back_with_its_session(stack: Stack, astronaut: bytes):
    code, answer = stack.upload(astronaut)
    assert code == 200
    face = answer["face"]["id"] if isinstance(answer.get("face"), dict) else answer["face"]
    until(lambda: stack.status()["face"]["state"] == "ready", RECOVERY_S, "the face")
    for whom in (0, -1, 0):  # the master, its worker
        victim = stack.processes("streamer")[whom]
        victim.kill()
        until(functools.partial(ended, victim), 5, "its end")
        until(lambda: moves(stack), 2 * RECOVERY_S, "the stream goes on")
        status = stack.status()
        assert status["running"]
        assert status["face"]["id"] == face, "the photo is still the one that was uploaded"
    stack.post("/requests", {"clear": "clear"})
    stack.post("/requests", {"start": "Start"})


def test_ctrl_c_ends_everything_with_code_0(tmp_path: Path):
    stack = Stack(tmp_path / "var")
    stack.start()
    try:
        stream = frames(stack.url)
        next(stream)
        everybody = stack.everybody()
        code, seconds = stack.stop(signal.SIGINT, STOP_S)
    finally:
        stack.close()
    assert code == 0
    assert seconds < STOP_S
    assert not [process for process in everybody if not ended(process)]
    log = (tmp_path / "var" / "log" / "supervisord.log").read_text()
    codes = re.findall(r"stopped: (\w+) \((.*)\)", log)
    assert {name for name, _ in codes} == set(SERVICES)
    assert {words for _, words in codes} == {"exit status 0"}, log
    assert "SIGKILL" not in log, log
    assert not (tmp_path / "var" / "session.json").exists(), "an orderly end leaves nothing that would start by itself"
    for service in SERVICES:
        assert "Traceback" not in (tmp_path / "var" / "log" / f"{service}.log").read_text()


def png_bomb() -> bytes:
    """A valid PNG head that claims 50,000 x 50,000 pixels."""
    head = b"IHDR" + (50_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + head + zlib.crc32(head).to_bytes(4) + bytes(100)


def jpeg(image: object) -> bytes:
    import cv2
    import numpy as np

    done, data = cv2.imencode(".jpg", np.asarray(image)[:, :, ::-1])
    assert done
    return data.tobytes()


def bad_photos() -> dict[str, bytes]:
    coffee = jpeg(skimage.data.coffee())
    return {
        "no face": coffee,
        "text": b"I am a text file that somebody called photo.jpg\n" * 20,
        "empty": b"",
        "cut short": coffee[: len(coffee) // 3],
        "bomb": png_bomb(),
        "gif": b"GIF89a" + bytes(200),
        "too large": b"\xff\xd8\xff" + bytes(11 * 1024 * 1024),
    }


@pytest.mark.parametrize("kind", sorted(bad_photos()))
def test_a_bad_photo_gets_clear_words_and_changes_nothing(kind: str, stack: Stack):
    stack.post("/requests", {"clear": "clear"})
    demo = until(lambda: stack.status()["face"]["state"] == "ready" and stack.status()["face"], RECOVERY_S, "demo face")
    code, answer = stack.upload(bad_photos()[kind])
    if code >= 400:
        words = answer["error"]
    else:
        problem = until(lambda: stack.status()["face"]["state"] == "problem", RECOVERY_S, "the answer of face_prep")
        assert problem
        words = stack.status()["face"]["text"]
    assert len(words) > 20
    assert "Traceback" not in words
    assert re.search(r"photo|picture|file|image", words, re.IGNORECASE), words
    assert all(service["alive"] for service in stack.status()["services"])
    status = stack.post("/requests", {"start": "Start", "source": "demo"})
    assert status["running"]
    assert moves(stack), "the old face talks on"
    stack.post("/requests", {"clear": "clear"})
    until(lambda: stack.status()["face"]["id"] == demo["id"], RECOVERY_S, "the demo face")


def test_no_microphone_is_said_and_nothing_ends(tmp_path: Path):
    nothing = {"PULSE_SERVER": "unix:/nonexistent", "ALSA_CONFIG_PATH": "/dev/null", "HOME": str(tmp_path)}
    stack = Stack(tmp_path / "var", {"MOUTHPIECE_SOURCE": "mic"} | nothing)
    with stack:
        choice = until(
            lambda: next(source for source in stack.status()["sources"] if source["id"] == "mic"), 20, "the choice"
        )
        until(lambda: not mic(stack)["available"], 20, "the missing microphone is noticed")
        assert "demo" in mic(stack)["why"], choice
        stack.post("/requests", {"start": "Start", "source": "mic"})
        until(lambda: stack.status()["notices"], 20, "words about the microphone")
        assert re.search("microphone|input device|PortAudio", " ".join(stack.status()["notices"]), re.IGNORECASE)
        stack.post("/requests", {"start": "Start", "source": "demo"})
        assert until(lambda: moves(stack), RECOVERY_S, "the demo speech is heard instead")


def mic(stack: Stack) -> dict[str, Any]:
    sources: list[dict[str, Any]] = stack.status()["sources"]
    return next(source for source in sources if source["id"] == "mic")


def preflight(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/preflight"]
    environment = {"PATH": "/usr/bin", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_busy_port_and_an_unknown_setting_are_named_at_once():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        result = preflight(MOUTHPIECE_PORT=port)
        assert result.returncode == 1
        assert f"port {port}" in result.stderr
        assert "MOUTHPIECE_PORT" in result.stderr
        result = preflight(MOUTHPIECE_PORT="8097", MOUTHPIECE_BUS_PORT=port)
        assert "MOUTHPIECE_BUS_PORT" in result.stderr
    result = preflight(MOUTHPIECE_PROT="1")
    assert result.returncode == 1
    assert "unknown setting MOUTHPIECE_PROT" in result.stderr
    assert "Traceback" not in result.stderr
