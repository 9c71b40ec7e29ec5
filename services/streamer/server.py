"""The streamer's HTTP server: gunicorn, started from Python, one worker process with many threads.

The worker alone builds the `Control` (sockets and threads do not survive a fork). A stop takes at most a second
whatever the viewers do: the streams are ended first, and what still hangs after that is left behind.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from services.streamer.app import create_app
from services.streamer.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from services.streamer.control import Control

__all__ = ["PortTakenError", "serve"]

SPARE_THREADS: Final = 24
"""threads beside those of the viewers, for all other requests"""
LEAVE_S: Final = 1.5
"""longest time between the order to stop and the end of the worker"""
STREAMS_END_S: Final = 0.2
"""time in which the streams, told to end, write their last bytes"""
PR_SET_PDEATHSIG: Final = 1

log = logging.getLogger(__name__)


class PortTakenError(OSError):
    """The port cannot be had; the text is for the operator."""


def serve(
    host: str,
    port: int,
    build_control: Callable[[], Control],
    *,
    token: str = "",
    names: tuple[str, ...] = (),
    local: bool = False,
    max_viewers: int = 64,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; does not return, but leaves the process with exit code 0.

    Args:
        host: address to bind.
        port: port to bind; 0 takes any free one.
        build_control: called once in the worker process. What it raises ends the server with a non-zero exit code.
        token: secret that each request must carry; empty for none.
        names: further host names under which the server may be reached.
        local: whether only this machine reaches it, however wide it is bound.
        max_viewers: most streams at once; `FrameHub` of the control must hold the same number.
        on_ready: called in the master with the address of the page as soon as connections are taken.

    Raises:
        PortTakenError: the port or the address cannot be had.
    """
    listener = _bind(host, port)
    port = listener.getsockname()[1]
    guard = Guard(host, port, token, names, local)
    shown = "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104
    url = f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
    _Server(listener, build_control, guard, max_viewers, lambda: on_ready(url) if on_ready else None).run()


def _bind(host: str, port: int) -> socket.socket:
    """Bind before gunicorn does: it would try five times, a second apart, and say what failed five times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose last server has just ended is free, one that is listened on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} is taken by another program; set MOUTHPIECE_PORT to a free one, for example {port + 1}"
        elif error.errno == errno.EACCES:
            text = f"port {port} may not be used by this user; set MOUTHPIECE_PORT to one above 1023"
        else:
            text = f"the address {host} cannot be used ({error.strerror or error}); set MOUTHPIECE_HOST to 127.0.0.1"
        raise PortTakenError(error.errno, text) from error
    return listener


class _QuietLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's own words go where ours go, and only from warnings up."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.disabled = True

    def access(self, *_args: object) -> None:
        """No log of requests: the metrics count them, and addresses of people do not belong there."""


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A threaded worker that ends its streams when it is told to stop."""

    _leaving = False

    def handle_exit(self, _sig: int, _frame: object) -> None:
        """SIGTERM, SIGINT and SIGQUIT: stop soon, in good order."""
        if not self._leaving:
            self._leaving = True
            # A signal handler may not wait for locks that the interrupted thread could hold.
            # Gunicorn's own way out is not taken: it would end the main thread, and with it the process, before the
            # bus side has put its state away.
            threading.Thread(target=self._leave, name="leave").start()

    handle_quit = handle_exit

    def _leave(self) -> None:
        # Idle kept-alive connections, a half-sent upload, a thread of a library: nothing of that may delay the end.
        threading.Timer(LEAVE_S, lambda: os._exit(0)).start()
        try:
            self.app.close()
            time.sleep(STREAMS_END_S)
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(
        self,
        listener: socket.socket,
        build_control: Callable[[], Control],
        guard: Guard,
        max_viewers: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._build_control = build_control
        self._guard = guard
        self._max_viewers = max_viewers
        self._on_ready = on_ready
        self._control: Control | None = None
        super().__init__()

    def load_config(self) -> None:
        threads = self._max_viewers + SPARE_THREADS
        settings: dict[str, Any] = {
            "bind": [f"fd://{self._listener.detach()}"],
            "workers": 1,
            "worker_class": _Worker,
            "threads": threads,
            "worker_connections": threads + 200,
            "keepalive": 5,
            "timeout": 30,
            "graceful_timeout": 2,
            "logger_class": _QuietLogger,
            "control_socket_disable": True,
            "post_fork": lambda _server, _worker: _die_with_parent(),
            "when_ready": lambda _server: self._on_ready(),
            "proc_name": "mouthpiece-streamer",
        }
        for name, value in settings.items():
            if name in self.cfg.settings:  # control_socket_disable came with gunicorn 25
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Runs in the worker."""
        self._control = self._build_control()
        return create_app(self._control, self._guard)

    def close(self) -> None:
        """End the streams and the bus, in the worker."""
        if self._control is not None:
            self._control.close()


def _die_with_parent() -> None:
    """A worker whose master was killed outright would keep the port; the kernel ends it instead (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
