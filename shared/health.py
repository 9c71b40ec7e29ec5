"""Health check of one service, for containers: `python -m shared.health` says by its exit code whether it works.

It is healthy when the beats in the file that MOUTHPIECE_BEAT_FILE names are fresh and, between two of them, what the
service makes has moved as far as it had anything to make it from. The streamer's page must answer as well.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["FLOWS", "Unhealthy", "check", "judge", "main"]

FRESH_S: Final = 3.0
"""oldest beat that counts as alive; one is written each second"""
SPAN_S: Final = 1.5
"""least time between two beats that are compared: a streamer at rest shows one picture a second"""
WAIT_S: Final = 3.5
"""longest wait for the second beat; with it a check stays below the 5 s that containers give it"""
LOOK_S: Final = 0.1
PAGE_S: Final = 1.0

Told = Mapping[str, Any]


class Unhealthy(Exception):
    """The service does not work; the text says why."""


@dataclass(frozen=True)
class Flow:
    """What a service makes, and when it has to."""

    due: Callable[[Told, Told], bool]
    """whether something had to be made between two beats"""
    made: tuple[str, ...]
    """counters (or gauges that count) of which one has to have moved; `x_*` means all that begin with `x_`"""


def _worked(told: Told) -> bool:
    """Whether there was a worker that can be given work."""
    return bool(told["gauges"].get("workers_able", 0))


FLOWS: Final[dict[str, Flow]] = {
    "audio_capture": Flow(
        lambda old, new: all(told["info"].get("source_state") == "running" for told in (old, new)),
        ("chunks", "gap_*"),
    ),
    "mel_features": Flow(
        lambda old, new: _moved(old, new, "heard") and _worked(old) and _worked(new),
        ("windows", "silent_frames", "sound_ignored", "dropped_*"),
    ),
    "face_prep": Flow(lambda old, new: _moved(old, new, "received.ingest"), ("sent.face", "send_blocked.face")),
    "inference": Flow(lambda old, new: _moved(old, new, "given"), ("frames", "dropped_*")),
    "streamer": Flow(lambda _old, _new: True, ("published",)),
}


def check(path: Path) -> str:
    """Look at a service's beats.

    Args:
        path: the file to which it writes them.

    Returns:
        what was seen, for a person.

    Raises:
        Unhealthy: it does not work.
    """
    old = _fresh(path)
    deadline_s = time.monotonic() + WAIT_S
    while (new := _fresh(path))["written_s"] - old["written_s"] < SPAN_S:
        if time.monotonic() > deadline_s:
            raise Unhealthy(f"no beat came within {WAIT_S:g} s")
        time.sleep(LOOK_S)
    judge(old, new)
    if new["service"] == "streamer":
        _ask_page()
    return f"{new['service']} works, up {new['uptime_s']:.0f} s"


def judge(old: Told, new: Told) -> None:
    """Compare two beats of a service, the second at least `SPAN_S` after the first.

    Raises:
        Unhealthy: it had to make something between them and did not.
    """
    service = new["service"]
    flow = FLOWS[service]
    if new["pid"] == old["pid"] and flow.due(old, new) and not any(_moved(old, new, name) for name in flow.made):
        raise Unhealthy(f"{service} had work and made nothing of it; its last error: {new['last_error'] or 'none'}")


def _fresh(path: Path) -> Told:
    """Read the beat; it is replaced as a whole, so never half of it."""
    try:
        told: Told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unhealthy("it has not beaten yet") from None
    age_s = time.monotonic() - told["written_s"]
    if age_s > FRESH_S:
        raise Unhealthy(f"its last beat is {age_s:.1f} s old")
    return told


def _moved(old: Told, new: Told, name: str) -> bool:
    before, now = ({**told["gauges"], **told["counters"]} for told in (old, new))
    names = [key for key in now if key.startswith(name[:-1])] if name.endswith("*") else [name]
    return any(now.get(key, 0) != before.get(key, 0) for key in names)


def _ask_page() -> None:
    """Have the page's server answer, whatever it says of the other services or of a missing token."""
    # Not by `shared.settings`: the token may be known to the service alone, and without it the settings are refused.
    host = os.environ.get("MOUTHPIECE_HOST", "")
    if host in {"", "0.0.0.0", "::"}:  # noqa: S104  # bound to all addresses, so to this one too
        host = "127.0.0.1"
    page = http.client.HTTPConnection(host, int(os.environ.get("MOUTHPIECE_PORT") or 8080), timeout=PAGE_S)
    try:
        page.request("GET", "/healthz")
        page.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(f"the page does not answer: {error}") from error
    finally:
        page.close()


def main() -> int:
    """Check the service whose beats MOUTHPIECE_BEAT_FILE names.

    Returns:
        0 when it works, else 1.
    """
    name = os.environ.get("MOUTHPIECE_BEAT_FILE", "")
    try:
        seen, code = (check(Path(name)), 0) if name else ("unhealthy: MOUTHPIECE_BEAT_FILE is not set", 1)
    except Unhealthy as error:
        seen, code = f"unhealthy: {error}", 1
    sys.stdout.write(f"{seen}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
