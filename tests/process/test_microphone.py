"""The microphone with the real PortAudio, on a virtual PulseAudio source."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from services.audio_capture.chunks import Chunk, Hole
from services.audio_capture.devices import list_devices
from services.audio_capture.microphone import MicrophoneSource
from tests.budgets import PULSE_PATH_MS, TIME_LINE_MS, TONE_RATIO
from tests.pulse import Pulse, pulse

__all__ = ["pulse"]

FAIL_S = 25.0
RATE_HZ = 48_000


class Listener:
    """Drives a microphone as the service does, and keeps all that it gives."""

    def __init__(self, device: str | None = None) -> None:
        self.source = MicrophoneSource(device)
        self.items: list[Chunk | Hole] = []
        self.seen: list[str] = []
        self.delays_ms: list[float] = []
        self.source.start()

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + FAIL_S
        while not done():
            assert time.monotonic() < deadline, (self.source.status, self.holes())
            due = self.source.next_due()
            wait_s = 0.2 if due is None else max(0.0, min(0.2, due - time.monotonic()))
            select.select([self.source], [], [], wait_s)
            for item in self.source.read():
                self.items.append(item)
                if isinstance(item, Chunk):
                    self.delays_ms.append((time.monotonic_ns() - item.captured_ns) / 1e6)
            if self.source.status.text not in self.seen:
                self.seen.append(self.source.status.text)

    def more(self, seconds: float) -> None:
        wanted = self.length() + round(seconds * 16_000)
        self.until(lambda: self.length() >= wanted)

    def length(self) -> int:
        if not self.items:
            return 0
        last = self.items[-1]
        return last.first_sample + (320 if isinstance(last, Chunk) else last.samples)

    def holes(self) -> list[Hole]:
        return [item for item in self.items if isinstance(item, Hole)]

    def sound(self) -> npt.NDArray[np.int16]:
        """Everything in its place, zeros in the holes."""
        line = np.zeros(self.length(), np.int16)
        place = 0
        for item in self.items:
            assert item.first_sample == place
            if isinstance(item, Chunk):
                line[place : place + 320] = item.pcm
            place += 320 if isinstance(item, Chunk) else item.samples
        return line

    def check_on_the_clock(self, within_ms: float = TIME_LINE_MS) -> None:
        """Before and after every hole, a chunk comes equally long after it was captured."""
        best = [min(self.delays_ms[:40]), min(self.delays_ms[-40:])]
        assert abs(best[1] - best[0]) <= within_ms, best


@pytest.fixture
def listener(pulse: Pulse) -> Iterator[Listener]:
    assert pulse
    it = Listener()
    try:
        yield it
    finally:
        began = time.monotonic()
        it.source.close()
        assert time.monotonic() - began < 0.5
        deadline = time.monotonic() + FAIL_S
        while recorders():
            assert time.monotonic() < deadline, "a recorder is left"
            select.select([], [], [], 0.02)


def recorders() -> list[psutil.Process]:
    """The recorders that we started and that are not reaped."""
    found = []
    for child in psutil.Process().children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE or "services.audio_capture.recorder" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def clicks(count: int, every_s: float) -> bytes:
    sound = np.zeros(round(count * every_s * RATE_HZ), np.int16)
    for i in range(count):
        sound[round((i + 0.5) * every_s * RATE_HZ) :][:96] = 20_000
    return sound.tobytes()


def click_places(sound: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > 6_000)
    return loud[np.diff(loud, prepend=-10_000) > 800]


def finish(player: subprocess.Popen[bytes]) -> None:
    assert player.wait(FAIL_S) == 0


def test_devices_are_listed_and_an_unknown_one_is_answered_by_them(
    pulse: Pulse, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pulse
    devices = list_devices()
    assert [device.name for device in devices if device.default] == ["default"]
    assert {"pulse", "default"} <= {device.name for device in devices}
    it = Listener("no such thing")
    try:
        it.until(lambda: it.source.status.state == "waiting")
    finally:
        it.source.close()
    assert "'no such thing'" in it.source.status.text or any(
        "'no such thing'" in text and "pulse" in text for text in it.seen
    )
    assert capfd.readouterr() == ("", ""), "PortAudio and ALSA must not talk into our log"


def test_the_doctor_names_the_microphone_and_its_level(pulse: Pulse) -> None:
    assert pulse
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "scripts" / "doctor"), "--listen"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False, text=True)
    assert done.returncode in (0, 1), done.stdout
    assert "default, 44100 Hz, 32 in, default; level: digital silence" in done.stdout
    assert "ALSA lib" not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_tone_is_heard_at_its_pitch_and_on_the_clock(pulse: Pulse, listener: Listener) -> None:
    listener.more(0.5)
    tone = 12_000 * np.sin(2 * np.pi * 1_000 * np.arange(RATE_HZ * 3) / RATE_HZ)
    player = pulse.play(tone.astype(np.int16).tobytes(), RATE_HZ)
    listener.more(3.6)
    finish(player)
    assert not listener.holes()
    sound = listener.sound().astype(np.float64)
    loud = np.flatnonzero(np.abs(sound) > 6_000)
    middle = sound[loud[0] + 2_000 : loud[-1] - 2_000]
    assert len(middle) >= 16_000 * 2
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 19))
    assert spectrum.argmax() * 16_000 / (1 << 19) == pytest.approx(1_000, rel=TONE_RATIO)
    assert 11_000 <= np.abs(middle).max() <= 13_000
    listener.check_on_the_clock(TIME_LINE_MS + PULSE_PATH_MS)


def test_a_reader_that_stalls_for_3_s_makes_one_hole_and_the_time_line_stays_right(
    pulse: Pulse, listener: Listener
) -> None:
    listener.more(0.5)
    player = pulse.play(clicks(16, 0.5), RATE_HZ, latency_ms=300)
    listener.until(lambda: len(click_places(listener.sound())) >= 2)
    select.select([], [], [], 3.0)  # the stall itself
    listener.until(lambda: bool(listener.holes()))
    listener.more(1.5)
    finish(player)
    (hole,) = listener.holes()
    assert hole.reason == "overflow"
    assert hole.samples >= 16_000
    # The clicks' spacing is no measure on a busy machine: the null sink itself runs dry. The clock is.
    assert (click_places(listener.sound()) > hole.first_sample).sum() >= 2
    listener.check_on_the_clock(TIME_LINE_MS + PULSE_PATH_MS)


def check_it_came_back(listener: Listener, within_ms: float = TIME_LINE_MS) -> None:
    (hole,) = listener.holes()
    assert hole.reason == "unplugged"
    listener.check_on_the_clock(within_ms)


def test_an_unplugged_device_is_found_again(pulse: Pulse, listener: Listener) -> None:
    listener.more(1)
    pulse.unplug()
    listener.until(lambda: listener.source.status.state == "waiting")
    assert "looked for" in listener.source.status.text
    pulse.plug()
    listener.until(lambda: bool(listener.holes()))
    player = pulse.play(clicks(3, 0.4), RATE_HZ)
    listener.more(1.6)
    finish(player)
    check_it_came_back(listener, TIME_LINE_MS + PULSE_PATH_MS)
    assert len(click_places(listener.sound())) == 3


def test_a_device_that_falls_silent_is_found_again(pulse: Pulse, listener: Listener) -> None:
    listener.more(1)
    pulse.suspend(True)
    listener.until(lambda: listener.source.status.state == "waiting")
    pulse.suspend(False)
    listener.until(lambda: bool(listener.holes()))
    listener.more(1)
    check_it_came_back(listener)


def test_a_sound_server_that_crashes_is_found_again(pulse: Pulse, listener: Listener) -> None:
    listener.more(1)
    pulse.kill()
    listener.until(lambda: "No microphone is there" in listener.source.status.text)
    pulse.start()
    listener.until(lambda: bool(listener.holes()))
    listener.more(1)
    check_it_came_back(listener)


def test_a_recorder_that_hangs_is_replaced(listener: Listener) -> None:
    listener.more(1)
    (recorder,) = recorders()
    os.kill(recorder.pid, signal.SIGSTOP)
    listener.until(lambda: bool(listener.holes()))
    listener.more(1)
    check_it_came_back(listener)
    assert not recorder.is_running()


@pytest.mark.parametrize(
    ("library", "state", "words"),
    [
        ("raise ImportError('libportaudio.so.2')", "failed", "portaudio19-dev"),
        ("import time; time.sleep(600)", "waiting", "has not opened the microphone within"),
        ("import os; os.abort()", "waiting", "looked for every second"),
        (
            "class PyAudio:\n    def __init__(self): raise OSError(-9999, 'Unanticipated host error')",
            "waiting",
            "host error",
        ),
    ],
)
def test_a_broken_portaudio_is_told_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, state: str, words: str
) -> None:
    (tmp_path / "pyaudio.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(MicrophoneSource, "OPEN_S", 2.0)
    it = Listener()
    try:
        it.until(lambda: it.source.status.state != "starting")
        assert it.source.status.state == state
        assert words in it.source.status.text
        assert not it.items
    finally:
        it.source.close()


def test_the_recorder_dies_with_its_owner_even_while_it_hangs(pulse: Pulse, tmp_path: Path) -> None:
    assert pulse
    program = (
        "import select, os, signal\n"
        "from services.audio_capture.microphone import MicrophoneSource\n"
        "source = MicrophoneSource()\n"
        "source.start()\n"
        "while source.status.state != 'running':\n"
        "    select.select([source], [], [], 5)\n"
        "    source.read()\n"
        "print(source._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    error = tmp_path / "error"
    with error.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=file, timeout=FAIL_S, check=False
        )
    assert done.returncode == -signal.SIGKILL, error.read_text()
    pid = int(done.stdout)
    try:
        psutil.Process(pid).wait(5)
    except psutil.NoSuchProcess:
        return
    assert not psutil.pid_exists(pid)
