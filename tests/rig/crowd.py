"""Many sessions at once: the test speaks and shows, mel_features and the workers are real processes."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from shared.bus import Bus, Delivery, Subscribed
from shared.clock import SAMPLE_RATE_HZ
from shared.messages import Audio, Face, Patch, SessionState
from tests.examples import EXAMPLES
from tests.rig.peer import Process
from tests.rig.stack import free_ports

__all__ = ["Crowd", "Seen"]

PIECE: int = SAMPLE_RATE_HZ // 50


@dataclass(frozen=True)
class Seen:
    """A patch, and when it came."""

    at_s: float
    frame: int
    worker: str
    age_s: float
    """since the end of its sound"""


class Crowd:
    """Plays audio_capture, face_prep and streamer for sessions that speak without a pause."""

    def __init__(self, folder: Path, sessions: int, pcm: npt.NDArray[np.int16]) -> None:
        """Open the bus; sound begins with the first `turn`.

        Args:
            folder: of logs.
            sessions: how many.
            pcm: what they say again and again, 16 kHz, a different place for each.
        """
        self.base_port = free_ports(9)
        self.folder = folder
        self.settings = {
            "MOUTHPIECE_BUS_PORT": str(self.base_port),
            "MOUTHPIECE_STATE_DIR": str(folder),
            "MOUTHPIECE_MODELS_DIR": str(folder / "none"),
        }
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self._names = [f"s{number}" for number in range(sessions)]
        self._pcm = pcm
        self._piece = 0
        self._began_s = 0.0
        self._told_s = 0.0
        self._audio = Bus("audio_capture", "127.0.0.1", self.base_port)
        self._audio.publishes("audio")
        self._faces = Bus("face_prep", "127.0.0.1", self.base_port)
        self._faces.publishes("face")
        self._shows = Bus("streamer", "127.0.0.1", self.base_port)
        self._shows.publishes("session")
        self._shows.receives("patch", "beat")
        face = EXAMPLES["face"]
        assert isinstance(face, Face)
        self._face = face
        self.processes = [Process("mel_features", folder, self.settings)]

    def __enter__(self) -> Self:
        return self

    def work(self, name: str, *told: str, before: tuple[str, ...] = (), **settings: str) -> Process:
        """Add a worker, as `Fleet.work` does."""
        command = ("-m", "tests.rig.worker", *told) if told else ()
        process = Process("inference", self.folder, self.settings | settings, name=name, command=command, before=before)
        self.processes.append(process)
        return process

    def turn(self) -> None:
        """Say and hear what is due."""
        now_s = time.monotonic()
        if now_s - self._told_s > 0.5:
            self._told_s = now_s
            for name in self._names:
                state = SessionState(session=name, epoch=1, running=True, source="network", face="f0")
                self._shows.send("session", state)
        self._began_s = self._began_s or now_s
        while self._piece * 0.02 <= now_s - self._began_s:
            for number, name in enumerate(self._names):
                at = (self._piece * PIECE + number * SAMPLE_RATE_HZ) % (len(self._pcm) - PIECE)
                audio = Audio(
                    session=name,
                    epoch=1,
                    stream="a1",
                    first_sample=self._piece * PIECE,
                    captured_ns=time.monotonic_ns(),
                    pcm=self._pcm[at : at + PIECE],
                )
                self._audio.send("audio", audio)
            self._piece += 1
        for _ in self._audio.receive(0.0):
            pass
        for event in self._faces.receive(0.0):
            if isinstance(event, Subscribed):
                self._faces.send("face", msgspec.structs.replace(self._face, face=event.key), event.key)
        for event in self._shows.receive(0.004):
            if isinstance(event, Delivery) and isinstance(event.message, Patch):
                self._note(event.message)

    def _note(self, patch: Patch) -> None:
        if patch.captured_ns:
            now_s = time.monotonic()
            age_s = now_s - patch.captured_ns / 1e9
            self.seen[patch.session].append(Seen(now_s, patch.frame, patch.worker, age_s))

    def until_seen(self, frames: int, timeout_s: float) -> None:
        """Turn until every session has shown so many frames."""
        deadline = time.monotonic() + timeout_s
        while any(len(self.seen[name]) < frames for name in self._names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[len(self.seen[n]) for n in self._names]} frames\n{self.processes[0].text()}")
            self.turn()

    def go_on(self, seconds: float) -> None:
        """Turn for a time."""
        ended_s = time.monotonic() + seconds
        while time.monotonic() < ended_s:
            self.turn()

    def forget(self) -> None:
        """Begin to count anew."""
        self.seen.clear()

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.close()
        for bus in (self._audio, self._faces, self._shows):
            bus.close()
