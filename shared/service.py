"""One loop for all services: signals, beats, watchdog, exit codes, and a log to stdout with traces of frames."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

import msgspec
import psutil

from shared.bus import Bus, BusError, Event, open_bus
from shared.messages import Beat
from shared.settings import Settings, SettingsError, load, redacted
from shared.topics import ServiceName

__all__ = ["BUCKETS_S", "EXIT_FAILED", "EXIT_USAGE", "Loop", "Service", "Startup", "Tally", "configured", "main"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
BEAT_S: Final = 1.0
HUNG_S: Final = 5.0
REARM_S: Final = 0.5
LONGEST_WAIT_S: Final = 0.25
END_S: Final = 1.5
"""after which a service that was told to stop is gone, whatever still holds it"""
MEMORY_S: Final = 30.0
"""how often the kernel is asked how much memory is this process's own"""
BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.3, 0.5, 1.0)
"""upper bounds of the classes in which ages and durations are counted, s"""


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
    """Counts what happens; drops and errors are logged at most once a second, with how many there were.

    With `tracing` it logs when each frame passes a stage, for scripts/trace.
    """

    def __init__(self, log: logging.Logger, *, tracing: bool = False) -> None:
        self._log = log
        self.tracing = tracing
        """whether `trace` is to be called"""
        self.totals: Counter[str] = Counter()
        self._pending: Counter[tuple[str, str]] = Counter()
        self._words: dict[tuple[str, str], str] = {}
        self._told_s = float("-inf")
        self.last_error = ""
        self._tracer = log.getChild("trace")
        self._tracer.setLevel(logging.INFO)  # traces that were asked for come whatever else is logged
        self._clock = _clock_name() if tracing else ""

    def say(self, words: str) -> None:
        """Log something that happens once, at INFO."""
        self._log.info("%s", words)

    def count(self, name: str, number: float = 1) -> None:
        """Count without a word."""
        self.totals[name] += number  # type: ignore[assignment]  # totals may be fractions, as of seconds

    def begin(self, *names: str) -> None:
        """Name what stands at 0 until it happens: a first time can only be seen as a rise from 0."""
        for name in names:
            self.totals[name] += 0

    def observe(self, name: str, seconds: float) -> None:
        """Count an age or duration in its class of `BUCKETS_S`; /metrics makes a histogram of it."""
        self.totals[f"hist.{name}.{bisect_left(BUCKETS_S, seconds)}"] += 1
        self.totals[f"hist.{name}.sum"] += seconds  # type: ignore[assignment]

    def drop(self, name: str, words: str = "", number: int = 1, *, session: str = "") -> None:
        """Count something that was lost or refused, and tell it in the log."""
        self.totals[name] += number
        self._pending[name, session] += number
        if words:
            self._words[name, session] = words
            self.last_error = words

    def trace(self, stage: str, session: str, epoch: int, frame: int, **told: str | float) -> None:
        """Log that a frame passed a stage. Ask `tracing` first: what is told costs time to find out.

        Args:
            stage: which.
            session: whose frame.
            epoch: time line of the session.
            frame: its number.
            told: more by name; `at_ns`, monotonic, is now unless it is given. Times end in `_ns` or `_ms`.
        """
        whole: dict[str, str | float] = {"at_ns": time.monotonic_ns(), "clock": self._clock, **told}
        words = " ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in whole.items())
        self._tracer.info("trace session=%s epoch=%d frame=%d stage=%s %s", session, epoch, frame, stage, words)

    def tell(self, now_s: float) -> None:
        """Write what is pending, if a second went by."""
        if not self._pending or now_s - self._told_s < 1.0:
            return
        self._told_s = now_s
        for which, number in self._pending.items():
            name, session = which
            words = f": {self._words[which]}" if which in self._words else ""
            self._log.warning("%s x %d%s%s", name, number, words, f" session={session}" if session else "")
        self._pending.clear()
        self._words.clear()


def _clock_name() -> str:
    """Name the monotonic clock, which is a kernel's since it booted: processes that say the same read the same one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    except OSError:
        return secrets.token_hex(4)


class Loop:
    """Turns a service: waits for events, hands them over, sends the beat."""

    def __init__(
        self,
        service: Service,
        bus: Bus,
        tally: Tally,
        *,
        tell_beat: Callable[[Beat], None] | None = None,
        beat_file: str = "",
    ) -> None:
        """Prepare the loop.

        Args:
            service: what is turned.
            bus: its sockets.
            tally: its counts.
            tell_beat: takes the beat instead of the bus (the streamer keeps its own).
            beat_file: path to which each beat is written as JSON, for health checks; empty: none.
        """
        self._service = service
        self._bus = bus
        self._tally = tally
        self._tell_beat = tell_beat
        self._beat_file = Path(beat_file) if beat_file else None
        self._memory: dict[str, float] = {}
        self._memory_s = float("-inf")
        self._instance = secrets.token_hex(6)
        self._process = psutil.Process()
        self._began_s = time.monotonic()
        self._beat_s = self._began_s
        self._armed_s = float("-inf")
        self._due_s = self._began_s
        self._told: Counter[str] = Counter()

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
        for kind, words in (("corrupt", self._bus.last_problem), ("refused", self._bus.last_refusal)):
            if not words:
                continue  # there has been none
            number = sum(number for name, number in self._bus.counters.items() if name.startswith(f"{kind}."))
            if number > self._told[kind]:
                self._tally.drop(kind, words, number - self._told[kind])
                self._told[kind] = number
        self._tally.tell(now_s)
        if now_s >= self._beat_s:
            self._beat_s = max(self._beat_s + BEAT_S, now_s)
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        times = self._process.cpu_times()
        counted = self._tally.totals.copy()
        counted.update(self._bus.counters)  # adds; a plain + would leave out what stands at 0
        beat = Beat(
            service=self._service.name,
            instance=self._instance,
            pid=os.getpid(),
            uptime_s=now_s - self._began_s,
            cpu_s=times.user + times.system,
            rss_bytes=self._process.memory_info().rss,
            counters={name: float(number) for name, number in counted.items()},
            gauges=self._service.gauges() | self._own(now_s),
            info={k: v[:1000] for k, v in self._service.info.items()},
            last_error=self._tally.last_error[:1000],
        )
        if self._tell_beat is None:
            self._bus.send("beat", beat)
        else:
            self._tell_beat(beat)
        if self._beat_file is not None:
            self._write(self._beat_file, beat)

    def _own(self, now_s: float) -> dict[str, float]:
        """What every process says of itself."""
        if now_s - self._memory_s >= MEMORY_S:  # the kernel walks all pages for it
            self._memory_s = now_s
            self._memory = _proportional_memory()
        return {"open_files": float(self._process.num_fds()), **self._memory}

    def _write(self, path: Path, beat: Beat) -> None:
        """Write the beat so that a reader finds the old one or the new one, never half of it."""
        told = {
            "service": beat.service,
            "pid": beat.pid,
            "uptime_s": beat.uptime_s,
            "counters": beat.counters,
            "gauges": beat.gauges,
            "info": beat.info,
            "last_error": beat.last_error,
            "written_s": time.monotonic(),
        }
        fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(told))
            fresh.replace(path)
        except OSError as error:
            self._tally.drop("beat_file", f"MOUTHPIECE_BEAT_FILE cannot be written: {error.strerror}")


def _proportional_memory() -> dict[str, float]:
    """Memory of this process with its part of what is shared (PSS); nothing where the kernel does not say."""
    try:
        with Path("/proc/self/smaps_rollup").open("rb") as lines:
            found = next((line for line in lines if line.startswith(b"Pss:")), None)
    except OSError:
        return {}
    return {} if found is None else {"pss_bytes": 1024.0 * int(found.split()[1])}


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
        open_log(name, "ERROR").error("%s", error)
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
        tally = Tally(log, tracing=settings.trace == "yes")
        try:
            bus = open_bus(name, settings)
            cleanup.callback(bus.close)
            service = build(settings, bus, tally)
        except (Startup, BusError) as error:
            log.error("%s", error)  # noqa: TRY400  # the text is meant for a person, a traceback is not
            return EXIT_FAILED
        cleanup.callback(service.close)
        bus.watch(wake.fileno())
        log.info("started, pid %d; %s", os.getpid(), redacted(settings))
        loop = Loop(service, bus, tally, beat_file=settings.beat_file)
        cleanup.callback(faulthandler.cancel_dump_traceback_later)
        while not stopping:
            loop.turn(watchdog=True)
        log.info("stopped")
        _end_within(END_S)
    return 0


def _end_within(seconds: float) -> None:
    """End the process if closing takes longer: libzmq waits for a name server that does not answer."""
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()
