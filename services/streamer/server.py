"""The streamer's HTTP server: gunicorn, started from Python, one worker process with many threads.

The worker alone builds the `Control` (sockets and threads do not survive a fork). When it ends without an order to
stop, the whole server ends: who started it starts it again, and counts that. A stop takes at most a second
whatever the viewers do: the streams are ended first, and what still hangs after that is left behind.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from services.streamer.app import STREAMS, create_app
from services.streamer.connections import MOST_KEPT, MOST_LINGERING, MOST_QUEUED, MOST_WAITING, PatientWorker
from services.streamer.guard import Guard
from shared.service import EXIT_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask

    from services.streamer.control import Control

__all__ = ["CertificateError", "PortTakenError", "serve"]

SPARE_THREADS: Final = 24
"""threads beside those of the streams, for all other requests"""
MOST_THREADS: Final = 512
FILES: Final = 4096
"""files that may be open, where the system lets us: each connection is one"""
LEAVE_S: Final = 1.5
"""longest time between the order to stop and the end of the worker"""
STREAMS_END_S: Final = 0.2
"""time in which the streams, told to end, write their last bytes"""
PR_SET_PDEATHSIG: Final = 1

log = logging.getLogger(__name__)


class PortTakenError(OSError):
    """The port cannot be had; the text is for the operator."""


class CertificateError(ValueError):
    """The certificate or its key cannot be used; the text is for the operator."""


def serve(
    host: str,
    port: int,
    build_control: Callable[[], Control],
    *,
    token: str = "",
    names: tuple[str, ...] = (),
    local: bool = False,
    tls: tuple[str, str] | None = None,
    max_viewers: int = 64,
    max_sessions: int = 1,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; does not return, but leaves the process with exit code 0.

    Should the worker end without such an order, that is the end of it all, with a non-zero exit code.

    Args:
        host: address to bind.
        port: port to bind; 0 takes any free one.
        build_control: called once in the worker process. What it raises ends the server with a non-zero exit code.
        token: secret that each request must carry; empty for none.
        names: further host names under which the server may be reached.
        local: whether only this machine reaches it, however wide it is bound.
        tls: PEM files of the certificate with its chain and of its private key; with them it speaks HTTPS only.
        max_viewers: most viewers of one session at once.
        max_sessions: most sessions at once. For each viewer of each there is room for a picture and a sound stream, up
            to `MOST_THREADS` threads; a stream beyond gets a 503.
        on_ready: called in the master with the address of the page as soon as connections are taken.

    Raises:
        CertificateError: certificate and key cannot be used.
        PortTakenError: the port or the address cannot be had.
    """
    _Worker.tls = tls and _tls_context(*tls)
    listener = _bind(host, port)
    port = listener.getsockname()[1]
    guard = Guard(host, port, token, names, local, tls=tls is not None)
    shown = "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104
    url = f"{'https' if tls else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{port}/"
    threads = min(MOST_THREADS, 2 * max_viewers * max_sessions + SPARE_THREADS)
    _Server(listener, build_control, guard, tls, threads, lambda: on_ready(url) if on_ready else None).run()


def _tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Read both files before anything else is done: gunicorn would find out at the first connection."""
    for setting, path in (("CERT", certificate), ("KEY", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise CertificateError(f"MOUTHPIECE_TLS_{setting}: the file cannot be read ({error.strerror})") from error

    def no_password() -> str:
        raise CertificateError("MOUTHPIECE_TLS_KEY: this key asks for a password; give one without")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = "MOUTHPIECE_TLS_KEY is not the key of the certificate in MOUTHPIECE_TLS_CERT"
        else:
            text = (
                "MOUTHPIECE_TLS_CERT and MOUTHPIECE_TLS_KEY must be PEM files, a certificate and its private key "
                f"({error.reason or 'no PEM was found in one of them'})"
            )
        raise CertificateError(text) from error
    return context


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

    def exception(self, msg: str, *args: Any, **options: Any) -> None:
        """Log what failed; who reads or sends too slowly is no failure of ours."""
        if isinstance(sys.exc_info()[1], TimeoutError):
            self.error_log.debug(msg, *args)
        else:
            super().exception(msg, *args, **options)

    def access(self, *_args: object) -> None:
        """No log of requests: the metrics count them, and addresses of people do not belong there."""


class _Worker(PatientWorker):
    """A threaded worker that ends its streams when it is told to stop."""

    _leaving = False
    streams = STREAMS

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
        tls: tuple[str, str] | None,
        threads: int,
        on_ready: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._build_control = build_control
        self._guard = guard
        self._tls = tls
        self._threads = threads
        self._on_ready = on_ready
        self._control: Control | None = None
        super().__init__()

    def load_config(self) -> None:
        beside = MOST_WAITING + MOST_KEPT + MOST_QUEUED + MOST_LINGERING
        settings: dict[str, Any] = {
            "bind": [f"fd://{self._listener.detach()}"],
            "workers": 1,
            "worker_class": _Worker,
            "threads": self._threads,
            "worker_connections": self._threads + beside,
            "keepalive": 5,
            "timeout": 30,
            "graceful_timeout": 2,
            "logger_class": _QuietLogger,
            "control_socket_disable": True,
            "post_fork": lambda _server, _worker: _begin_worker(),
            "child_exit": lambda server, _worker: _end_with_worker(server),
            "when_ready": lambda _server: self._on_ready(),
            "proc_name": "mouthpiece-streamer",
        }
        if self._tls:  # the connections are wrapped by the worker; here it tells that requests come by https
            settings["certfile"], settings["keyfile"] = self._tls
        for name, value in settings.items():
            if name in self.cfg.settings:  # control_socket_disable came with gunicorn 25
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Runs in the worker."""
        self._control = self._build_control()
        return create_app(self._control, self._guard, max_streams=self._threads - SPARE_THREADS)

    def close(self) -> None:
        """End the streams and the bus, in the worker."""
        if self._control is not None:
            self._control.close()


def _begin_worker() -> None:
    """What holds for the worker process alone."""
    # One whose master was killed outright would keep the port; the kernel ends it instead (prctl(2)).
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _end_with_worker(server: Any) -> None:
    """In the master, when the worker has ended: gunicorn would fork another one, out of sight of who limits restarts.

    Raises:
        HaltServer: nobody told it to.
    """
    if server.LISTENERS:  # a master that stops has closed them before it tells the worker
        raise HaltServer("the worker ended by itself", EXIT_FAILED)
