"""The real thing under test: supervisord and the five services, on ports and in a folder of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import psutil

__all__ = ["ROOT", "Stack", "free_ports", "until"]

ROOT: Final = Path(__file__).resolve().parents[2]
_PAUSE = threading.Event()


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Ask again and again until something true comes; the answer.

    Raises:
        TimeoutError: it did not come in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        _PAUSE.wait(0.1)


def free_ports(number: int) -> int:
    """The first of `number` free ports in a row, below the range that the kernel gives out by itself."""
    for base in range(20_000 + os.getpid() % 500 * 20, 32_000, number + 1):
        sockets = []
        try:
            for port in range(base, base + number):
                probe = socket.socket()
                sockets.append(probe)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return base
        finally:
            for probe in sockets:
                probe.close()
    raise RuntimeError("no free ports")


class Stack:
    """The services, started by supervisord as `make run` does."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.bus_port = base = free_ports(9)
        self.port = base + 8
        self.url = f"http://127.0.0.1:{self.port}"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MOUTHPIECE_")}
        self.environment = clean | {
            "MOUTHPIECE_PORT": str(self.port),
            "MOUTHPIECE_BUS_PORT": str(base),
            "MOUTHPIECE_STATE_DIR": str(folder),
            **(settings or {}),
        }
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 40.0) -> None:
        """Start everything and wait until every service beats and the face is there."""
        (self.folder / "log").mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "scripts/supervise",
            "--nodaemon",
            "--configuration",
            "deploy/supervisord.conf",
        ]
        self._supervisor = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until(self.ready, timeout_s, "all services alive and the face prepared")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def ready(self) -> bool:
        """Whether all services beat and the face can talk."""
        assert self._supervisor is not None
        assert self._supervisor.poll() is None, f"supervisord ended\n{self.logs()}"
        try:
            status = self.status()
        except OSError:
            return False
        return all(service["alive"] for service in status["services"]) and status["face"]["state"] == "ready"

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 15.0) -> tuple[int, float]:
        """End it as Ctrl-C does; exit code and how long it took, s."""
        assert self._supervisor is not None
        began_s = time.monotonic()
        self._supervisor.send_signal(number)
        code = self._supervisor.wait(timeout_s)
        self._supervisor = None
        return code, time.monotonic() - began_s

    def close(self) -> None:
        """End it whatever state it is in."""
        if self._supervisor is None:
            return
        processes = [psutil.Process(self._supervisor.pid)]
        processes += processes[0].children(recursive=True)
        self._supervisor.send_signal(signal.SIGINT)
        try:
            self._supervisor.wait(10)
        except subprocess.TimeoutExpired:
            for process in processes:
                if process.is_running():
                    process.kill()
            self._supervisor.wait(5)
        self._supervisor = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a client asks

    def get(self, path: str, timeout_s: float = 5.0) -> bytes:
        """GET; raises OSError."""
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            data: bytes = answer.read()
        return data

    def status(self) -> dict[str, Any]:
        """What the page polls."""
        answer: dict[str, Any] = json.loads(self.get("/api/status"))
        return answer

    def post(self, path: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """POST a form, as the page does."""
        request = urllib.request.Request(
            self.url + path,
            data=urllib.parse.urlencode(fields).encode(),
            headers={"Accept": "application/json", "Origin": self.url},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            back: dict[str, Any] = json.loads(answer.read())
        return back

    def upload(self, data: bytes, name: str = "photo.jpg") -> tuple[int, dict[str, Any]]:
        """Upload a photo; status code and answer."""
        boundary = "----mouthpiece"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        request = urllib.request.Request(
            self.url + "/upload",
            data=body,
            headers={
                "Accept": "application/json",
                "Origin": self.url,
                "Content-Type": f"multipart/form-data; boundary={boundary}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    # ---- its processes

    def processes(self, service: str) -> list[psutil.Process]:
        """The processes of a service, its own first."""
        assert self._supervisor is not None
        children = psutil.Process(self._supervisor.pid).children()
        own = [child for child in children if f"services.{service}" in " ".join(_command(child))]
        return [process for child in own for process in (child, *_below(child))]

    def everybody(self) -> list[psutil.Process]:
        """Supervisord and all below it."""
        assert self._supervisor is not None
        supervisor = psutil.Process(self._supervisor.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def logs(self, most: int = 3000) -> str:
        """The end of every log."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-most:]}"
            for path in sorted((self.folder / "log").glob("*.log"))
        )


def ended(process: psutil.Process) -> bool:
    """Whether it is gone, or is only waited for."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it went between the two questions
        return True


def _below(process: psutil.Process) -> list[psutil.Process]:
    """All that it started; none if it has ended meanwhile."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command
