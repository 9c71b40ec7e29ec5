"""A hub and as many workers as wanted, each its own process that a test may stop, kill and start again."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from shared.topics import SERVICES
from tests.rig.peer import Process
from tests.rig.stack import Stack, until
from tests.rig.viewer import Shot, frames

__all__ = ["Fleet", "Watch", "watching"]

HUB = tuple(service for service in SERVICES if service != "inference")

LISTENER = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.subscribe(b"")
for address in sys.argv[1:]:
    socket.connect(address)
while True:
    socket.recv_multipart()
"""


class Fleet(Stack):
    """The services of a hub without supervisord; workers are added by the test."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, *, model: bool = False) -> None:
        """Start nothing yet.

        Args:
            folder: of logs and state.
            settings: of all its processes.
            model: whether the hub has a model, which its workers must have too; else its first worker's is taken.
        """
        nothing = {} if model else {"MOUTHPIECE_MODELS_DIR": str(folder / "models")}
        super().__init__(folder, {**(settings or {})})
        (folder / "models").mkdir(parents=True, exist_ok=True)
        ours = {name: value for name, value in self.environment.items() if name.startswith("MOUTHPIECE_")}
        self.own = ours | dict(settings or {})
        self._mel = self.own | nothing
        self.hub: dict[str, Process] = {}
        self.workers: dict[str, Process] = {}

    def start_service(self, service: str, **settings: str) -> Process:
        """Start a service of the hub."""
        own = self._mel if service == "mel_features" else self.own
        self.hub[service] = Process(service, self.folder, own | settings)
        return self.hub[service]

    def __enter__(self) -> Self:
        """Start the hub; it is ready when there are workers too."""
        for service in HUB:
            self.start_service(service)
        return self

    def work(self, name: str, *told: str, before: Sequence[str] = (), **settings: str) -> Process:
        """Add a worker with the steady engine (`--ms`, `--hang`); with nothing told the real one."""
        command = ("-m", "tests.rig.worker", *told) if told else ()
        self.workers[name] = Process(
            "inference", self.folder, self.own | settings, name=name, command=command, before=before
        )
        return self.workers[name]

    def listen(self, addresses: Sequence[str]) -> Process:
        """Start a program that subscribes to everything there, and reads it."""
        self.workers["listener"] = Process("", self.folder, {}, name="listener", command=("-c", LISTENER, *addresses))
        return self.workers["listener"]

    def ready(self) -> bool:
        """Whether all services beat and the face can talk."""
        for process in [*self.hub.values(), *self.workers.values()]:
            assert process.alive(), process.text()
        try:
            status = self.status()
        except OSError:
            return False
        return all(service["alive"] for service in status["services"]) and status["face"]["state"] == "ready"

    def wait_ready(self, timeout_s: float = 40.0) -> None:
        """Wait until it is ready."""
        until(self.ready, timeout_s, "a hub with workers")

    def close(self) -> None:
        """End everything whatever state it is in."""
        for process in [*self.workers.values(), *self.hub.values()]:
            process.close()

    # ---- what it tells

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have the labels; 0 when there is none, nan while nobody answers."""
        try:
            text = self.get("/metrics").decode()
        except OSError:
            return math.nan
        total = 0.0
        for told, value in re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in told for key, wanted in labels.items()):
                total += float(value)
        return total


class Watch:
    """A viewer that notes what it sees, in its own thread."""

    def __init__(self, url: str) -> None:
        self.shots: list[Shot] = []
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.problem: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            for shot in frames(self._url):
                self.shots.append(Shot(shot.at_s, shot.sent_s, shot.media_time, b""))
                if self._ended.is_set():
                    return
        except OSError as error:
            self.problem = error

    def moving(self, since_s: float = 0.0) -> list[Shot]:
        """The first shot of each frame with a patch."""
        told = [shot for shot in self.shots if shot.media_time and shot.at_s >= since_s]
        return [
            shot
            for before, shot in zip([None, *told], told, strict=False)
            if before is None or before.media_time != shot.media_time
        ]

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join(10)


@contextmanager
def watching(stack: Any) -> Iterator[Watch]:
    """Watch the stream of a stack."""
    watch = Watch(stack.url)
    try:
        yield watch
    finally:
        watch.close()
