"""The way of one frame through the stages, from the lines that MOUTHPIECE_TRACE=yes puts into the logs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from scripts._logs.lines import Entry

__all__ = ["Mark", "Part", "Traces", "Way", "way"]

_TRACE = re.compile(r"trace session=(\S+) epoch=(\d+) frame=(\d+) stage=(\S+) ?(.*)")
LAST: Final = "sent"


@dataclass(frozen=True)
class Mark:
    """One line: a frame passed a stage."""

    service: str
    stage: str
    told: dict[str, str]

    def ns(self, name: str = "at_ns") -> int:
        """A moment, monotonic ns."""
        return int(self.told[name])

    def took_ns(self) -> int:
        """How long the stage took, ns; 0 where it does not say."""
        return round(float(self.told.get("took_ms", "0")) * 1e6)

    @property
    def clock(self) -> str:
        """Whose monotonic clock it is."""
        return self.told.get("clock", "")


@dataclass(frozen=True)
class Part:
    """One part of the way."""

    what: str
    service: str
    began_ms: float | None
    """since the last sample that the frame needs was heard; None where the clock is another box's"""
    took_ms: float


@dataclass
class Way:
    """Where the time of one frame went."""

    parts: list[Part]
    total_ms: float
    """from the last sample that the frame needs to the end of the last part"""
    notes: list[str] = field(default_factory=list)
    """what else there is to say about it"""


class Traces:
    """All trace lines of some logs."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._marks: defaultdict[tuple[str, int, int], list[Mark]] = defaultdict(list)
        self._heard: dict[tuple[str, int, int], Mark] = {}
        for entry in entries:
            if not entry.text.startswith("trace "):
                continue
            found = _TRACE.fullmatch(entry.text)
            if found is None:
                continue
            session, epoch, frame, stage, rest = found.groups()
            told = dict(word.split("=", 1) for word in rest.split() if "=" in word)
            mark = Mark(entry.service, stage, told)
            if "at_ns" not in told or not told["at_ns"].isdecimal():
                continue
            if stage == "heard":
                self._heard[session, int(epoch), int(told.get("sample", "0"))] = mark
            else:
                self._marks[session, int(epoch), int(frame)].append(mark)

    def sessions(self) -> list[str]:
        """Whose frames were traced."""
        return sorted({session for session, _, _ in self._marks})

    def epochs(self, session: str) -> list[int]:
        """Time lines of a session, oldest first."""
        return sorted({epoch for name, epoch, _ in self._marks if name == session})

    def frames(self, session: str, epoch: int, stage: str = "") -> list[int]:
        """Frames of a time line that passed a stage; of any without one."""
        return sorted(
            frame
            for (name, which, frame), marks in self._marks.items()
            if (name, which) == (session, epoch) and (not stage or any(mark.stage == stage for mark in marks))
        )

    def of(self, session: str, epoch: int, frame: int) -> list[Mark]:
        """What was told of a frame, with the piece of sound that was the last it needed."""
        marks = list(self._marks.get((session, epoch, frame), []))
        windowed = _first(marks, "windowed")
        if windowed is not None:
            heard = self._heard.get((session, epoch, int(windowed.told.get("sample", "-1"))))
            marks += [heard] if heard is not None else []
        return marks


def way(marks: list[Mark]) -> Way | None:
    """Put the marks of one frame in order.

    Returns:
        the parts, each from where the one before ended; None when mel_features told nothing of it.
    """
    windowed = _first(marks, "windowed")
    if windowed is None:
        return None
    zero_ns = windowed.ns("last_ns") or windowed.ns()
    walk = _Walk(zero_ns, windowed.clock)
    heard_ms = (zero_ns - windowed.ns("heard_ns")) / 1e6
    walk.parts.append(
        Part("its sound begins; all that its window needs is heard", "audio_capture", -heard_ms, heard_ms)
    )
    walk.to(_first(marks, "heard"), "heard, cut, published")
    walk.to(windowed, "mel and window", before="on the bus")
    given = _last(marks, "given")
    walk.to(given, "waits for a worker with credit")
    arrived = _last(marks, "arrived")
    worker = given.told.get("worker", "") if given is not None else ""
    taken = _first([mark for mark in marks if mark.told.get("worker") == worker], "taken")
    rendered = _first([mark for mark in marks if mark.told.get("worker") == worker], "rendered")
    if taken is not None and taken.clock != windowed.clock:
        walk.away(taken, rendered, arrived)
    else:
        walk.to(taken, "on the bus")
        walk.to(rendered, "engine", before="waits for its turn")
        walk.to(arrived, "on the bus")
    walk.to(_first(marks, "shown"), "waits until its sound is played")
    walk.stage(_first(marks, "shown"), "laid on the photo")
    walk.to(_first(marks, "encoded"), "JPEG", before="waits for a viewer with room")
    walk.to(_first(marks, LAST), "handed to the kernel")
    return Way(walk.parts, (walk.at_ns - zero_ns) / 1e6, _notes(marks, arrived))


class _Walk:
    """Goes from mark to mark of one clock; each part begins where the last one ended."""

    def __init__(self, zero_ns: int, clock: str) -> None:
        self.parts: list[Part] = []
        self.at_ns = self._zero_ns = zero_ns
        self._clock = clock

    def to(self, mark: Mark | None, what: str, *, before: str = "") -> None:
        """Go on to a mark. What it says that its stage took is told apart from what was `before` that."""
        if mark is None or mark.clock != self._clock:
            return
        end_ns = mark.ns()
        if before:
            began_ns = min(max(self.at_ns, end_ns - mark.took_ns()), max(self.at_ns, end_ns))
            self._add(before, mark.service, began_ns)
        self._add(what, mark.service, end_ns)

    def stage(self, mark: Mark | None, what: str) -> None:
        """Go on by what the stage of a mark took that tells when it began."""
        if mark is not None:
            self._add(what, mark.service, mark.ns() + mark.took_ns())

    def away(self, taken: Mark, rendered: Mark | None, arrived: Mark | None) -> None:
        """Go to a worker on another box and back: of its clock only differences count."""
        if rendered is None or arrived is None or arrived.clock != self._clock:
            return
        own_ns = rendered.ns() - taken.ns()
        turn_ns = max(0, own_ns - rendered.took_ns())
        whole_ns = arrived.ns() - self.at_ns
        self.parts += [
            Part("waits for its turn (by the worker's clock)", taken.service, None, turn_ns / 1e6),
            Part("engine (by the worker's clock)", taken.service, None, rendered.took_ns() / 1e6),
            Part("to the other box and back, both ways", "network", None, (whole_ns - own_ns) / 1e6),
        ]
        self.at_ns = arrived.ns()

    def _add(self, what: str, service: str, end_ns: int) -> None:
        self.parts.append(Part(what, service, (self.at_ns - self._zero_ns) / 1e6, (end_ns - self.at_ns) / 1e6))
        self.at_ns = end_ns


def _notes(marks: list[Mark], arrived: Mark | None) -> list[str]:
    notes = []
    given = [mark for mark in marks if mark.stage == "given"]
    if len(given) > 1:
        notes.append(f"it was given out {len(given)} times: a worker that held it was lost")
    dropped = _first(marks, "dropped")
    seen = {mark.stage for mark in marks}
    if dropped is not None:
        notes.append(f"it was dropped by {dropped.service}: {dropped.told.get('reason', '')}")
    elif not seen & {"taken", "rendered", "arrived"}:
        notes.append("no worker told of it: perhaps the log of its box is not here")
    elif "arrived" not in seen:
        notes.append("its picture never came to the streamer")
    elif "shown" not in seen:
        notes.append("it was not shown: a newer frame was due")
    elif LAST not in seen:
        notes.append("nobody watched, or no viewer had room for it")
    if arrived is not None and "rendered" not in seen:
        notes.append(
            f"its worker tells {float(arrived.told.get('render_ms', '0')):.1f} ms in the engine; its log is not here"
        )
    viewers = sum(mark.stage == LAST for mark in marks)
    if viewers > 1:
        notes.append(f"it was sent to {viewers} viewers; told is the first")
    return notes


def _first(marks: list[Mark], stage: str) -> Mark | None:
    found = [mark for mark in marks if mark.stage == stage]
    return min(found, key=Mark.ns) if found else None


def _last(marks: list[Mark], stage: str) -> Mark | None:
    found = [mark for mark in marks if mark.stage == stage]
    return max(found, key=Mark.ns) if found else None
