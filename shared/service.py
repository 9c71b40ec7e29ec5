"""One loop for all services: signals, beats, watchdog, exit codes, and a log to stdout."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Final, Protocol

import psutil

from shared.bus import Bus, BusError, Event
from shared.messages import Beat
from shared.settings import Settings, SettingsError, load, redacted
from shared.topics import ServiceName

__all__ = ["EXIT_FAILED", "EXIT_USAGE", "Loop", "Service", "Startup", "Tally", "configured", "main"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
BEAT_S: Final = 1.0
HUNG_S: Final = 5.0
REARM_S: Final = 0.5
LONGEST_WAIT_S: Final = 0.25


class Startup(RuntimeError):
    """The service cannot start; the text says what to do."""


class Service(Protocol):
    """What a service is, as the loop sees it."""

    @property
    def name(self) -> ServiceName:
        """Which service it is."""
        ...

    info: dict[str, str]
    """words for the status page"""

    def handle(self, event: Event) -> None:
        """Take one event from the bus."""

    def turn(self, now_s: float) -> float:
        """Do what is due.

        Returns:
            the monotonic time at which something is due again.
        """
        ...

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        ...

    def close(self) -> None:
        """Let go of everything."""


class Tally:
    """Counts what happens; drops and errors are logged at most once a second, with how many there were."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self.totals: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._words: dict[str, str] = {}
        self._told_s = float("-inf")
        self.last_error = ""

    def say(self, words: str) -> None:
        """Log something that happens once, at INFO."""
        self._log.info("%s", words)

    def count(self, name: str, number: float = 1) -> None:
        """Count without a word."""
        self.totals[name] += number  # type: ignore[assignment]  # totals may be fractions, as of seconds

    def drop(self, name: str, words: str = "", number: int = 1) -> None:
        """Count something that was lost or refused, and tell it in the log."""
        self.totals[name] += number
        self._pending[name] += number
        if words:
            self._words[name] = words
            self.last_error = words

    def tell(self, now_s: float) -> None:
        """Write what is pending, if a second went by."""
        if not self._pending or now_s - self._told_s < 1.0:
            return
        self._told_s = now_s
        for name, number in self._pending.items():
            self._log.warning("%s x %d%s", name, number, f": {self._words[name]}" if name in self._words else "")
        self._pending.clear()
        self._words.clear()


class Loop:
    """Turns a service: waits for events, hands them over, sends the beat."""

    def __init__(
        self, service: Service, bus: Bus, tally: Tally, *, tell_beat: Callable[[Beat], None] | None = None
    ) -> None:
        """Prepare the loop.

        Args:
            service: what is turned.
            bus: its sockets.
            tally: its counts.
            tell_beat: takes the beat instead of the bus (the streamer keeps its own).
        """
        self._service = service
        self._bus = bus
        self._tally = tally
        self._tell_beat = tell_beat
        self._instance = secrets.token_hex(6)
        self._process = psutil.Process()
        self._began_s = time.monotonic()
        self._beat_s = self._began_s
        self._armed_s = float("-inf")
        self._due_s = self._began_s
        self._corrupt = 0

    def turn(self, watchdog: bool) -> None:
        """Go round once."""
        now_s = time.monotonic()
        if watchdog and now_s - self._armed_s > REARM_S:
            faulthandler.dump_traceback_later(HUNG_S, exit=True)
            self._armed_s = now_s
        for event in self._bus.receive(min(self._due_s - now_s, self._beat_s - now_s, LONGEST_WAIT_S)):
            self._service.handle(event)
        now_s = time.monotonic()
        self._due_s = self._service.turn(now_s)
        corrupt = sum(number for name, number in self._bus.counters.items() if name.startswith("corrupt."))
        if corrupt > self._corrupt:
            self._tally.drop("corrupt", self._bus.last_problem, corrupt - self._corrupt)
            self._corrupt = corrupt
        self._tally.tell(now_s)
        if now_s >= self._beat_s:
            self._beat_s = max(self._beat_s + BEAT_S, now_s)
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        times = self._process.cpu_times()
        beat = Beat(
            service=self._service.name,
            instance=self._instance,
            pid=os.getpid(),
            uptime_s=now_s - self._began_s,
            cpu_s=times.user + times.system,
            rss_bytes=self._process.memory_info().rss,
            counters={k: float(v) for k, v in (self._tally.totals + self._bus.counters).items()},
            gauges=self._service.gauges(),
            info={k: v[:1000] for k, v in self._service.info.items()},
            last_error=self._tally.last_error[:1000],
        )
        if self._tell_beat is None:
            self._bus.send("beat", beat)
        else:
            self._tell_beat(beat)


def open_log(service: str, level: str) -> logging.Logger:
    """Log lines to stdout: local time, level, service, text."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s.%(msecs)03d %(levelname)-7s {service} %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    return logging.getLogger(service)


def configured(name: ServiceName) -> tuple[Settings, logging.Logger]:
    """Read the settings and open the log.

    Raises:
        SystemExit: a setting is wrong; it was said, the code is `EXIT_USAGE`.
    """
    try:
        settings = load()
    except SettingsError as error:
        sys.stdout.write(f"{name}: {error}\n")
        raise SystemExit(EXIT_USAGE) from None
    return settings, open_log(name, settings.log_level)


def main(name: ServiceName, build: Callable[[Settings, Bus, Tally], Service]) -> int:
    """Run a service until SIGTERM or SIGINT.

    Returns:
        0 after a signal, `EXIT_FAILED` when it cannot start.

    Raises:
        SystemExit: a setting is wrong.
    """
    faulthandler.enable()
    settings, log = configured(name)
    wake, waker = socket.socketpair()
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    with wake, waker, contextlib.ExitStack() as cleanup:
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        cleanup.callback(signal.set_wakeup_fd, -1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        bus = Bus(name, settings.bus_host, settings.bus_port)
        cleanup.callback(bus.close)
        tally = Tally(log)
        try:
            service = build(settings, bus, tally)
        except (Startup, BusError) as error:
            log.error("%s", error)  # noqa: TRY400  # the text is meant for a person, a traceback is not
            return EXIT_FAILED
        cleanup.callback(service.close)
        bus.watch(wake.fileno())
        log.info("started, pid %d; %s", os.getpid(), redacted(settings))
        loop = Loop(service, bus, tally)
        cleanup.callback(faulthandler.cancel_dump_traceback_later)
        while not stopping:
            loop.turn(watchdog=True)
        log.info("stopped")
    return 0
