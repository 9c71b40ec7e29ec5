"""Mouthpiece as containers: a compose project of its own name, port and images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from tests.compose.engine import run
from tests.rig.stack import ROOT, free_ports

__all__ = ["HUB_FILES", "SERVICES", "Project", "composer", "longest_pause_s", "moving", "watch"]

SERVICES: Final = ("audio-capture", "mel-features", "face-prep", "inference", "streamer")
FILES: Final = ("deploy/docker-compose.yml", "tests/compose/host-network.yml")
HUB_FILES: Final = ("deploy/docker-compose.yml", "deploy/docker-compose.hub.yml")
LABEL: Final = "com.docker.compose.project"


def composer() -> list[str]:
    """The command that runs compose: version 2 where it is installed, else 1.29; empty when there is none."""
    second = ["docker", "compose"]
    if shutil.which("docker") and not subprocess.run([*second, "version"], capture_output=True, check=False).returncode:
        return second
    return ["docker-compose"] if shutil.which("docker-compose") else []


class Project:
    """One compose project."""

    def __init__(self, environment: Mapping[str, str], base: str, index: str) -> None:
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.feed = f"{self.url}/video_feed"
        self.name = f"mouthpiece-test-{os.getpid()}"
        clean = {key: value for key, value in environment.items() if not key.startswith(("MOUTHPIECE_", "COMPOSE_"))}
        self.environment = clean | {
            "COMPOSE_FILE": os.pathsep.join(FILES),
            "COMPOSE_PROJECT_NAME": self.name,
            "BASE_IMAGE": base,
            "PIP_INDEX_URL": index,
            "IMAGES": "mouthpiece-test",
            "MOUTHPIECE_PORT": str(self.port),
            "PWD": str(ROOT),
        }
        self._composer = composer()

    def compose(self, *words: str, timeout_s: float = 120.0, files: Sequence[str] = (), **settings: str) -> str:
        """Run compose in the project's folder; what it wrote to stdout."""
        chosen = {"COMPOSE_FILE": os.pathsep.join(files)} if files else {}
        command = ["env", "--chdir", str(ROOT), *self._composer, *words]
        return run(*command, environment=self.environment | chosen | settings, timeout_s=timeout_s)

    def docker(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run docker; what it wrote to stdout."""
        return run("docker", *words, environment=self.environment, timeout_s=timeout_s)

    def containers(self, service: str, *, stopped: bool = False) -> list[str]:
        """Ids of a service's containers."""
        filters = ["--filter", f"label={LABEL}={self.name}", "--filter", f"label=com.docker.compose.service={service}"]
        return self.docker("ps", "--quiet", "--no-trunc", *filters, *(["--all"] if stopped else [])).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        told: list[dict[str, Any]] = json.loads(self.docker("inspect", container))
        return told[0]

    def inside(self, service: str, *command: str) -> tuple[int, str]:
        """Run a program in the first container of a service; exit code and what it wrote."""
        container = self.containers(service)[0]
        done = subprocess.run(
            ["docker", "exec", container, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def main_process(self, container: str) -> int:
        """The process, as numbered in the container, that its init started."""
        return int(self.docker("exec", container, "cat", "/proc/1/task/1/children").split()[0])

    def signal(self, container: str, name: str) -> None:
        """Send a signal to the service itself, past its init."""
        self.docker("exec", container, "sh", "-c", f"kill -{name} {self.main_process(container)}")

    def health(self, service: str) -> list[str]:
        """What the health checks of a service's containers say."""
        return [self.inspect(container)["State"]["Health"]["Status"] for container in self.containers(service)]

    def left(self) -> dict[str, list[str]]:
        """Everything that still belongs to the project, by kind."""
        kinds = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
        label = ["--quiet", "--filter", f"label={LABEL}={self.name}"]
        return {kind: found for kind, words in kinds.items() if (found := self.docker(*words, *label).split())}

    def get(self, path: str, **headers: str) -> bytes:
        """GET from outside; raises OSError."""
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            data: bytes = answer.read()
        return data

    def status(self) -> dict[str, Any]:
        """What the page polls; empty while nobody answers."""
        try:
            told: dict[str, Any] = json.loads(self.get("/api/status"))
        except OSError:
            return {}
        return told

    def workers(self) -> int:
        """How many workers beat."""
        found = [service for service in self.status().get("services", ()) if service["name"] == "inference"]
        return sum(int(service["info"].get("processes", "1")) for service in found if service["alive"])

    def ready(self) -> bool:
        """Whether all services beat and the face can talk."""
        status = self.status()
        return (
            bool(status)
            and all(service["alive"] for service in status["services"])
            and status["face"]["state"] == "ready"
            and status["running"]
        )

    def stop(self, container: str) -> tuple[int, float]:
        """`docker stop` as a person does it; exit code of the service and how long it took, s."""
        began_s = time.monotonic()
        self.docker("stop", "--time", "10", container)
        return int(self.inspect(container)["State"]["ExitCode"]), time.monotonic() - began_s


def watch(address: str, frames: int, timeout_s: float) -> list[tuple[float, str]]:
    """Have ffmpeg read the stream as any player does.

    Returns:
        for each frame when it came, s, and the hash of its pixels.
    """
    command = ["ffmpeg", "-v", "error", "-use_wallclock_as_timestamps", "1", "-f", "mpjpeg", "-i", address]
    command += ["-frames:v", str(frames), "-fps_mode", "passthrough", "-copyts", "-f", "framehash", "-hash", "md5", "-"]
    lines = run(*command, environment=os.environ, timeout_s=timeout_s).splitlines()
    ticks, second = next(line for line in lines if line.startswith("#tb 0:"))[len("#tb 0:") :].split("/")
    rows = [line.split(",") for line in lines if not line.startswith("#")]
    return [(int(row[2]) * int(ticks) / int(second), row[-1].strip()) for row in rows]


def longest_pause_s(shots: list[tuple[float, str]]) -> float:
    """Longest time between two frames."""
    return max(later - earlier for (earlier, _), (later, _) in pairwise(shots))


def moving(shots: list[tuple[float, str]]) -> float:
    """Share of the frames that differ from all others."""
    return len({digest for _, digest in shots}) / len(shots)
