"""How many sessions one machine carries."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from shared.topics import SERVICES
from tests.rig.api import Api, total
from tests.rig.stack import Stack, until

__all__ = ["carried"]

SETTLE_S: Final = 8.0
WATCH_S: Final = 20.0
ENOUGH_HZ: Final = 24.9
"""new frames a second from which a session counts as 25 a second"""


def carried(numbers: Sequence[int], settings: Mapping[str, str], what: str) -> Iterator[tuple[str, str]]:
    """Run so many sessions at once, each with one viewer that reads its stream.

    Args:
        numbers: of sessions.
        settings: of the stack.
        what: words for the rows.

    Yields:
        for each number the rate of new frames of the worst session, what was held or dropped, and the processor used.
    """
    for number in numbers:
        with _running(number, settings) as stack:
            names = ["default", *(f"s{n}" for n in range(1, number))]
            with ExitStack() as readers:
                for name in names:
                    readers.enter_context(_viewer(stack, name))
                time.sleep(SETTLE_S)
                yield f"{number} {what}", _look(stack, number)


def _look(stack: Stack, number: int) -> str:
    groups = {name: stack.processes(name) for name in SERVICES}
    before = {name: _cpu_s(group) for name, group in groups.items()}
    shown, held, dropped = _counts(stack)
    fps = []
    began_s = time.monotonic()
    while time.monotonic() - began_s < WATCH_S:
        time.sleep(2.0)
        text = stack.get("/metrics").decode()
        fps += [float(line.split()[-1]) for line in text.splitlines() if line.startswith("mouthpiece_frame_rate_hz{")]
    seconds = time.monotonic() - began_s
    after = _counts(stack)
    used = {name: (_cpu_s(group) - before[name]) / seconds for name, group in groups.items()}
    rate = (after[0] - shown) / seconds / number
    parts = ", ".join(f"{name} {share:.0%}" for name, share in used.items())
    return (
        f"{rate:.1f} new frames a second each, pictures handed out {min(fps):.0f}-{max(fps):.0f} a second; "
        f"{(after[1] - held) / seconds:.1f} held and {(after[2] - dropped) / seconds:.1f} dropped a second in all; "
        f"{sum(used.values()):.0%} of a core: {parts}; sound to picture {_latency_ms(stack):.0f} ms"
    )


def _latency_ms(stack: Stack) -> float:
    text = stack.get("/metrics").decode()
    lines = [line for line in text.splitlines() if line.startswith("mouthpiece_latency_seconds{")]
    return max(float(line.split()[-1]) for line in lines) * 1000.0


def _counts(stack: Stack) -> tuple[float, float, float]:
    return (
        total(stack, "mouthpiece_frames_shown_total"),
        total(stack, "mouthpiece_frames_held_total"),
        total(stack, "mouthpiece_frames_dropped_total"),
    )


def _cpu_s(group: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in group)


@contextmanager
def _running(number: int, settings: Mapping[str, str]) -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder) / "var", {"MOUTHPIECE_MAX_SESSIONS": str(max(8, number)), **settings}) as stack,
    ):
        api = Api(stack)
        for n in range(1, number):
            api.create(f"s{n}", source="demo", start=True)
        for n in range(1, number):
            until(partial(_speaks, api, f"s{n}"), 60.0, f"session {n} speaks")
        yield stack


def _speaks(api: Api, name: str) -> bool:
    return api.status(name)["latency_ms"] is not None


@contextmanager
def _viewer(stack: Stack, session: str) -> Iterator[None]:
    """A reader that costs hardly anything."""
    command = ["curl", "--silent", "--no-buffer", "--output", "/dev/null", f"{stack.url}/video_feed?session={session}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as reader:
        try:
            yield
        finally:
            reader.terminate()
