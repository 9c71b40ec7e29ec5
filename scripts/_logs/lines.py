"""Lines of log files, of ours, of supervisord and as `docker compose logs` prints them, put together to entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

__all__ = ["LEVELS", "Entry", "Reader", "entries", "stamp"]

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_OURS = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}) ([A-Z]+) +([\w.-]+) (.*)", re.DOTALL)
_SUPERVISORD = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d),(\d{3}) ([A-Z]+) (.*)", re.DOTALL)
_CONTAINER = re.compile(r"(?:([\w.@-]+) +\||\[([\w./-]+)\]) ?(.*)", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STACK = re.compile(r"Traceback \(most recent call last\):|Fatal Python error:|Timeout \(\d+:\d\d:\d\d\)!")
_LEVEL_OF: Final = {"CRIT": "CRITICAL", "WARN": "WARNING", "ERRO": "ERROR", "DEBG": "DEBUG"}
"""supervisord's words"""


def stamp(at: datetime) -> str:
    """A local time as it begins a line."""
    return at.replace(tzinfo=None).isoformat(timespec="milliseconds")


@dataclass
class Entry:
    """One thing that was said, with the lines that belong to it."""

    at: str
    """local time, `2026-11-23T16:05:30.123`; as text it sorts by time"""
    level: str
    """one of `LEVELS`"""
    service: str
    """who said it"""
    text: str
    """what"""
    more: list[str] = field(default_factory=list)
    """further lines: a traceback, stacks"""
    process: str = ""
    """which one of the service, where that is known: its container or log, `inference-2`"""

    def __str__(self) -> str:
        """As it stands in a log."""
        return "\n".join([f"{self.at} {self.level:<7} {self.process or self.service} {self.text}", *self.more])

    def of_service(self, name: str) -> bool:
        """Whether a service said it, or one process of it, `inference-2`."""
        return _plain(name) in {_plain(self.service), _plain(self.process)}

    def of_session(self, name: str) -> bool:
        """Whether it is about a session."""
        return bool(re.search(rf"(?:^|\s)session={re.escape(name)}(?=\s|$)", self.text))

    def at_least(self, level: str) -> bool:
        """Whether it is as grave as a level."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


def _plain(name: str) -> str:
    """A name as services write theirs."""
    return name.replace("-", "_")


class Reader:
    """Puts the lines of one file, or of containers mixed with each other, together to entries."""

    def __init__(self, service: str = "", at: str = "") -> None:
        """Begin.

        Args:
            service: who says the lines that name nobody.
            at: time of lines before the first that has one.
        """
        self._service = service
        self._at = at
        self._open: dict[str, Entry] = {}

    def feed(self, line: str) -> Entry | None:
        """Take a line without its end; the entry that is complete by it, if one is."""
        line = _COLOUR.sub("", line)
        who = ""
        if not line[:4].isdigit():
            container = _CONTAINER.fullmatch(line)
            if container is not None and not self._service:
                who, line = container[1] or container[2], container[3]
        entry = self._begin(line, who)
        if entry is not None:
            before = self._open.pop(who, None)
            self._open[who] = entry
            return before
        self._open[who].more.append(line)
        return None

    def flush(self) -> list[Entry]:
        """The entries that wait for more lines: no more are to come."""
        left = list(self._open.values())
        self._open.clear()
        return left

    def _begin(self, line: str, who: str) -> Entry | None:
        """The entry that a line begins; None when it belongs to the one before."""
        ours = _OURS.fullmatch(line)
        if ours is not None:
            at, level, service, text = ours.groups()
            self._at = at
            process = who or (self._service if _plain(self._service).startswith(f"{_plain(service)}_") else "")
            return Entry(at, level if level in LEVELS else "INFO", service, text, process=process)
        theirs = _SUPERVISORD.fullmatch(line)
        if theirs is not None:
            day, second, ms, level, text = theirs.groups()
            self._at = f"{day}T{second}.{ms}"
            return Entry(self._at, _LEVEL_OF.get(level, level if level in LEVELS else "INFO"), "supervisord", text)
        before = self._open.get(who)
        if before is None:
            level = "ERROR" if _STACK.match(line) else "INFO"
            return Entry(self._at, level, who or self._service or "unknown", line, process=who)
        if _STACK.match(line) and not before.at_least("ERROR"):
            # The stacks of a process that ends by surprise come without time and level, behind whatever it said last.
            return Entry(before.at, "ERROR", before.service, line, process=before.process)
        return None


def entries(lines: Iterable[str], reader: Reader) -> Iterator[Entry]:
    """The complete entries of lines; what is still open stays in the reader."""
    for line in lines:
        entry = reader.feed(line)
        if entry is not None:
            yield entry
