"""A PulseAudio of one's own with a virtual microphone, for tests; nothing of the machine's own sound is touched.

``from tests.pulse import pulse`` gives the fixture. It runs for one test, with its own home, runtime folder and
socket, and sets the environment so that PortAudio's default device is the monitor of a null sink.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

__all__ = ["Pulse", "pulse"]

ALSA_CONFIG: Final = """
<{alsa}>
pcm.!default {{ type pulse }}
ctl.!default {{ type pulse }}
"""


class Pulse:
    """A private PulseAudio server with the null sink `vmic` (48 kHz, stereo)."""

    NEEDED: Final = ("pulseaudio", "pactl", "pacat")
    WAIT_S: Final = 20.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "native"
        self._server: subprocess.Popen[bytes] | None = None
        self.server_environment: dict[str, str] = {}
        """of the server alone"""
        home = folder / "home"
        home.mkdir(mode=0o700)
        (folder / "runtime").mkdir(mode=0o700)
        alsa = next((path for path in ("/usr/share/alsa/alsa.conf", "/etc/alsa/alsa.conf") if Path(path).exists()), "")
        (home / ".asoundrc").write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        self.environment: dict[str, str] = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "PULSE_RUNTIME_PATH": str(folder / "runtime" / "pulse"),
            "PULSE_SERVER": f"unix:{self._socket}",
            "PULSE_LATENCY_MSEC": "20",
            "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent",
        }
        if alsa:
            config = folder / "alsa.conf"
            config.write_text(ALSA_CONFIG.format(alsa=alsa))
            self.environment["ALSA_CONFIG_PATH"] = str(config)

    def start(self) -> None:
        """Start the server and wait until it answers with its microphone."""
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--use-pid-file=no",
            "--log-level=error",
        ]
        command += ["-L", f"module-native-protocol-unix auth-anonymous=1 socket={self._socket}"]
        self._server = subprocess.Popen(
            command,
            env=self._env() | self.server_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + self.WAIT_S
        while not self._answers():
            assert self._server.poll() is None, f"pulseaudio ended with code {self._server.returncode}"
            assert time.monotonic() < deadline, f"pulseaudio does not answer within {self.WAIT_S} s"
            select.select([], [], [], 0.02)
        self.plug()

    def plug(self) -> None:
        """Make the virtual microphone and the default source of it."""
        # without norewinds the monitor hands its sound over in lumps of 2 s
        self._pactl("load-module", "module-null-sink", "sink_name=vmic", "norewinds=1", "rate=48000")
        self._pactl("set-default-source", "vmic.monitor")

    def add_card(self, name: str) -> None:
        """Make another virtual sound card, the default one to play to; what it plays can be heard at NAME.monitor."""
        self._pactl("load-module", "module-null-sink", f"sink_name={name}", "norewinds=1", "rate=48000")
        self._pactl("set-default-sink", name)

    def offer(self) -> None:
        """Offer the virtual microphone to programs that leave monitors out, as browsers do."""
        self._pactl("load-module", "module-remap-source", "source_name=mic", "master=vmic.monitor")
        self._pactl("set-default-source", "mic")

    def unplug(self) -> None:
        """Take the virtual microphone away; the server stays."""
        self._pactl("unload-module", "module-null-sink")

    def suspend(self, suspended: bool) -> None:
        """Stop the microphone's clock, or let it run again."""
        self._pactl("suspend-sink", "vmic", "1" if suspended else "0")

    def kill(self) -> None:
        """Kill the server as a crash would."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(5)
            self._server = None
        self._socket.unlink(missing_ok=True)

    def play(self, pcm: bytes, rate_hz: int, latency_ms: int = 20) -> subprocess.Popen[bytes]:
        """Begin to play mono int16 sound into the microphone; the caller waits for the process.

        A low latency runs dry on a busy machine, and what comes after is late.
        """
        sound = self._folder / "sound.raw"
        sound.write_bytes(pcm)
        command = ["pacat", "--playback", "--raw", "--format=s16le", "--channels=1", f"--rate={rate_hz}"]
        command += [f"--latency-msec={latency_ms}", "--device=vmic", str(sound)]
        return subprocess.Popen(
            command, env=self._env(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _env(self) -> dict[str, str]:
        return dict(os.environ) | self.environment

    def _answers(self) -> bool:
        done = subprocess.run(["pactl", "info"], env=self._env(), capture_output=True, timeout=self.WAIT_S, check=False)
        return done.returncode == 0

    def _pactl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["pactl", *arguments], env=self._env(), capture_output=True, timeout=self.WAIT_S, check=False
        )
        assert done.returncode == 0, f"pactl {' '.join(arguments)}: {done.stderr.decode(errors='replace')}"


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    """A running private PulseAudio whose virtual microphone is the default input device."""
    missing = [program for program in Pulse.NEEDED if shutil.which(program) is None]
    if missing:
        text = f"{', '.join(missing)} is missing (apt-get install pulseaudio pulseaudio-utils libasound2-plugins)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    folder = tmp_path / "pulse"
    folder.mkdir(mode=0o700)
    server = Pulse(folder)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        server.start()
        yield server
    finally:
        server.kill()
