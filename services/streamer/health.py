"""What the services' beats say: who is alive, at what rate; and what supervisord started too often in vain."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from shared.messages import Beat
from shared.topics import SERVICES

__all__ = ["GivenUp", "Health", "Pulse", "note_start"]

ALIVE_S: Final = 3.0
FORGET_S: Final = 60.0
LOOK_S: Final = 0.5
"""how often the file of what was given up is read"""
RATE_OF: Final = {
    "audio_capture": "chunks",
    "mel_features": "windows",
    "face_prep": "faces_told",
    "inference": "frames",
    "streamer": "published",
}
"""which counter is a service's rate"""

log = logging.getLogger(__name__)


@dataclass
class Pulse:
    """One process of a service as its last beats told it."""

    beat: Beat
    heard_s: float
    rate_hz: float = 0.0
    cpu: float = 0.0
    """share of one core over the last two beats"""

    def alive(self, now_s: float) -> bool:
        """Whether its beats come."""
        return now_s - self.heard_s < ALIVE_S


class Health:
    """Keeps the newest beat of every process."""

    def __init__(self) -> None:
        self._pulses: dict[tuple[str, str], Pulse] = {}
        self.starts: Counter[str] = Counter()
        """processes of each service that began to beat"""

    def beat(self, beat: Beat, now_s: float) -> None:
        """Take a beat."""
        key = (beat.service, beat.instance)
        before = self._pulses.get(key)
        pulse = Pulse(beat, now_s)
        if before is None:
            self.starts[beat.service] += 1
        else:
            span = max(1e-3, beat.uptime_s - before.beat.uptime_s)
            counter = RATE_OF.get(beat.service, "")
            pulse.rate_hz = max(0.0, beat.counters.get(counter, 0.0) - before.beat.counters.get(counter, 0.0)) / span
            pulse.cpu = max(0.0, beat.cpu_s - before.beat.cpu_s) / span
        self._pulses[key] = pulse
        for old in [k for k, p in self._pulses.items() if now_s - p.heard_s > FORGET_S]:
            del self._pulses[old]

    def of(self, service: str) -> list[Pulse]:
        """Every process of a service, newest beat first."""
        found = [pulse for (name, _), pulse in self._pulses.items() if name == service]
        return sorted(found, key=lambda pulse: -pulse.heard_s)

    def alive(self, service: str, now_s: float) -> bool:
        """Whether at least one process of a service beats."""
        return any(pulse.alive(now_s) for pulse in self.of(service))

    def info(self, service: str, name: str) -> str:
        """A word that the service told of itself; empty when there is none."""
        pulses = self.of(service)
        return pulses[0].beat.info.get(name, "") if pulses else ""

    def __iter__(self) -> Iterator[Pulse]:
        return (pulse for service in SERVICES for pulse in self.of(service))


class GivenUp:
    """Which processes were left down because they ended too often, as scripts/limit_restarts tells in a file.

    Without supervisord there is no file and nothing is given up.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_s = float("-inf")
        self._words: dict[str, str] = {}

    def of(self, service: str, now_s: float) -> str:
        """Why processes of a service were given up; empty when none was."""
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._words = self._read()
        return "; ".join(f"{name} {words}" for name, words in self._words.items() if name.startswith(service))

    def _read(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}


def note_start(path: Path) -> int:
    """Count a start of the streamer in a file, since it cannot have seen its own earlier ones.

    Returns:
        how many there were before; 0 too when the file cannot be read.
    """
    before = 0
    try:
        before = max(0, int(path.read_text()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, the starts are counted anew: %s", path.name, error)
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_text(str(before + 1))
        fresh.replace(path)
    except OSError as error:
        log.warning("this start cannot be counted: %s", error)
    return before
