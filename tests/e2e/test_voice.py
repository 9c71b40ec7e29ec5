"""A voice moves the lips: from a file and through a real PortAudio microphone, measured by FaceMesh on the stream."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.budgets import (
    LIPS_CORRELATION,
    LIPS_LAG_S,
    LIPS_PAUSE_SHARE,
    LIPS_SENTENCES,
    LIPS_SHUT,
    STREAM_RATE_ERROR_HZ,
    STREAM_SECONDS,
)
from tests.pulse import Pulse, pulse
from tests.rig.ear import Ear
from tests.rig.lips import follow, loudness, openings, shut_mouth
from tests.rig.stack import Stack, until
from tests.rig.viewer import Shot, picture, record
from tests.rig.voices import RATE_HZ, paused_speech, write_wav

__all__ = ["pulse"]


class FfmpegReader:
    """Real ffmpeg reading ten seconds of the stream in the background."""

    def __init__(self, url: str) -> None:
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-stats_period", "0.2", "-progress", "-"]
        command += ["-f", "mpjpeg", "-i", url + "/video_feed", "-t", str(STREAM_SECONDS), "-f", "null", "-"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._told: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        self.errors = ""

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("frame="):
                self._told.append((time.monotonic(), int(line.removeprefix("frame="))))

    def finish(self) -> None:
        """Wait for its end."""
        self._thread.join(3 * STREAM_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
        _, self.errors = self._process.communicate()
        self._thread.join()

    def check(self) -> None:
        """25 frames a second, no decode error."""
        assert self._process.returncode == 0, self.errors
        assert not self.errors.strip(), self.errors
        assert self._told[-1][1] == 25 * STREAM_SECONDS
        # The first reports hold what piled up while ffmpeg looked at the format.
        times, counts = np.array(self._told[2:]).T
        assert np.polyfit(times, counts, 1)[0] == pytest.approx(25.0, abs=STREAM_RATE_ERROR_HZ)


@dataclass(frozen=True)
class Measured:
    """What was seen, and what was heard meanwhile."""

    shots: list[Shot]
    sound_began_s: float
    pcm: npt.NDArray[np.int16]
    reader: FfmpegReader

    def check(self) -> None:
        self.reader.check()
        times = np.array([shot.at_s for shot in self.shots])
        assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(25.0, abs=STREAM_RATE_ERROR_HZ)
        opening = openings([picture(shot) for shot in self.shots[::2]])
        shut = shut_mouth(opening)
        assert shut <= LIPS_SHUT
        result = follow(loudness(self.pcm), self.sound_began_s, times[::2], opening, shut=shut)
        assert result.correlation >= LIPS_CORRELATION, result
        assert result.lag_s <= LIPS_LAG_S, result
        assert result.pause_share <= LIPS_PAUSE_SHARE, result


def start(stack: Stack, source: str) -> None:
    status = stack.post("/requests", {"start": "Start", "source": source})
    assert status["running"]


def holds_face(stack: Stack) -> bool:
    """Whether a worker has prepared the face that is shown."""
    status = stack.status()
    services = {service["name"]: service for service in status["services"]}
    held: str = services["inference"]["info"].get("faces", "")
    return status["face"]["state"] == "ready" and status["face"]["id"] in held


def test_from_a_file_at_25_frames_a_second(tmp_path: Path, astronaut: bytes):
    pcm = paused_speech("espeak-ng", LIPS_SENTENCES)
    face = tmp_path / "face.jpg"
    face.write_bytes(astronaut)
    wav = write_wav(tmp_path / "voice.wav", pcm)
    settings = {"MOUTHPIECE_SOURCE": f"file:{wav}", "MOUTHPIECE_FACE": str(face), "MOUTHPIECE_AUTOSTART": "no"}

    def measure() -> Measured:
        start(stack, "file")
        reader = FfmpegReader(stack.url)
        shots = record(stack.url, len(pcm) / RATE_HZ)
        reader.finish()
        return Measured(shots, shots[0].at_s, pcm, reader)

    with Stack(tmp_path / "var", settings) as stack:
        until(lambda: holds_face(stack), 30, "the worker holds the face")
        measured = measure()
    measured.check()


@pytest.mark.parametrize("face", ["demo", "astronaut"])
def test_through_a_microphone(face: str, tmp_path: Path, astronaut: bytes, pulse: Pulse):
    pcm = paused_speech("flite", LIPS_SENTENCES)

    def measure() -> Measured:
        with Ear(os.environ | pulse.environment) as ear:
            player = pulse.play(pcm.tobytes(), RATE_HZ)
            reader = FfmpegReader(stack.url)
            shots = record(stack.url, len(pcm) / RATE_HZ + 1.0)
            reader.finish()
            assert player.wait(30) == 0
        return Measured(shots, *ear.sound(), reader)

    with Stack(tmp_path / "var", {"MOUTHPIECE_SOURCE": "mic"}) as stack:
        if face == "astronaut":
            code, answer = stack.upload(astronaut)
            assert code == 200, answer
        until(lambda: holds_face(stack), 30, "the worker holds the face")
        assert not stack.status()["running"], "a microphone is not opened unasked"
        start(stack, "mic")
        until(lambda: stack.status()["level_db"] is not None, 20, "the microphone is heard")
        measured = measure()
    measured.check()
