"""A voice moves the lips: from a file and through a real PortAudio microphone, measured by FaceMesh on the stream."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.budgets import (
    LIPS_CORRELATION,
    LIPS_LAG_S,
    LIPS_PAUSE_SHARE,
    STREAM_RATE_ERROR_HZ,
    STREAM_SECONDS,
)
from tests.pulse import Pulse, pulse
from tests.rig.ear import Ear
from tests.rig.lips import follow, loudness, openings
from tests.rig.stack import Stack, until
from tests.rig.viewer import Shot, picture, record
from tests.rig.voices import RATE_HZ, paused_speech, write_wav

__all__ = ["pulse"]


@contextmanager
def ffmpeg_reading(stack: Stack) -> Iterator[None]:
    """Have real ffmpeg read ten seconds of the stream meanwhile: 25 frames a second, no decode error."""
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-stats_period", "0.2", "-progress", "-"]
    command += ["-f", "mpjpeg", "-i", stack.url + "/video_feed", "-t", str(STREAM_SECONDS), "-f", "null", "-"]
    told: list[tuple[float, int]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:

        def listen() -> None:
            assert reader.stdout is not None
            for line in reader.stdout:
                if line.startswith("frame="):
                    told.append((time.monotonic(), int(line.removeprefix("frame="))))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield
        finally:
            assert reader.stderr is not None
            listener.join(3 * STREAM_SECONDS)
            reader.kill() if listener.is_alive() else None
            errors = reader.stderr.read()
            listener.join()
    assert reader.returncode == 0, errors
    assert not errors.strip(), errors
    assert told[-1][1] == 25 * STREAM_SECONDS
    times, counts = np.array(told[2:]).T  # the first reports hold what piled up while ffmpeg looked at the format
    assert np.polyfit(times, counts, 1)[0] == pytest.approx(25.0, abs=STREAM_RATE_ERROR_HZ)


def rate_of(shots: list[Shot]) -> float:
    return (len(shots) - 1) / (shots[-1].at_s - shots[0].at_s)


def check_lips(shots: list[Shot], sound_began_s: float, pcm: np.ndarray) -> None:
    times = np.array([shot.at_s for shot in shots])
    opening = openings([picture(shot) for shot in shots])
    result = follow(loudness(pcm), sound_began_s, times, opening)
    assert result.correlation >= LIPS_CORRELATION, result
    assert result.lag_s <= LIPS_LAG_S, result
    assert result.pause_share <= LIPS_PAUSE_SHARE, result


def start(stack: Stack, source: str) -> None:
    status = stack.post("/requests", {"start": "Start", "source": source})
    assert status["running"]


def test_from_a_file_at_25_frames_a_second(tmp_path: Path, astronaut: bytes):
    pcm = paused_speech("espeak-ng")
    face = tmp_path / "face.jpg"
    face.write_bytes(astronaut)
    wav = write_wav(tmp_path / "voice.wav", pcm)
    settings = {"MOUTHPIECE_SOURCE": f"file:{wav}", "MOUTHPIECE_FACE": str(face), "MOUTHPIECE_AUTOSTART": "no"}
    with Stack(tmp_path / "var", settings) as stack:
        until(lambda: holds_face(stack), 30, "the worker holds the face")
        start(stack, "file")
        with ffmpeg_reading(stack):
            shots = record(stack.url, len(pcm) / RATE_HZ)
    assert rate_of(shots) == pytest.approx(25.0, abs=STREAM_RATE_ERROR_HZ)
    check_lips(shots, shots[0].at_s, pcm)


def holds_face(stack: Stack) -> bool:
    """Whether a worker has prepared the face that is shown."""
    face = stack.status()["face"]["id"]
    services = {service["name"]: service for service in stack.status()["services"]}
    return face in services["inference"]["info"].get("faces", "")


@pytest.mark.parametrize("face", ["demo", "astronaut"])
def test_through_a_microphone(face: str, tmp_path: Path, astronaut: bytes, pulse: Pulse):
    pcm = paused_speech("flite")
    with Stack(tmp_path / "var", {"MOUTHPIECE_SOURCE": "mic"}) as stack:
        if face == "astronaut":
            code, answer = stack.upload(astronaut)
            assert code == 200, answer
        until(lambda: holds_face(stack), 30, "the worker holds the face")
        assert not stack.status()["running"], "a microphone is not opened unasked"
        start(stack, "mic")
        until(lambda: stack.status()["level_db"] is not None, 20, "the microphone is heard")
        with Ear(os.environ | pulse.environment) as ear:
            player = pulse.play(pcm.tobytes(), RATE_HZ)
            with ffmpeg_reading(stack):
                shots = record(stack.url, len(pcm) / RATE_HZ + 1.0)
            assert player.wait(30) == 0
        began_s, heard = ear.sound()
    assert rate_of(shots) == pytest.approx(25.0, abs=STREAM_RATE_ERROR_HZ)
    check_lips(shots, began_s, heard)
