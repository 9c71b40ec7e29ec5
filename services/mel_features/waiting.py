"""Windows that wait for a worker. Who had the fewest turns comes first, so that sessions share what there is evenly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from services.mel_features.track import Due

__all__ = ["Waiting", "Window"]


@dataclass(frozen=True, eq=False)
class Window:
    """A window that waits for a worker, or that one holds."""

    session: str
    epoch: int
    face: str
    due: Due
    until_s: float
    """how long it may wait for credit"""
    deadline_s: float
    """when its patch has to be there"""


class Waiting:
    """A queue for each session, and how many turns each had (start-time fair queueing with equal weights and costs)."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Window]] = {}
        self._turns: dict[str, int] = {}
        self._now = 0
        """turns of the session that was served last"""

    def put(self, window: Window) -> None:
        """Add a window behind its session's others."""
        queue = self._queues.get(window.session)
        if queue is None:
            queue = self._queues[window.session] = deque()
            # Who comes, or comes back, begins where the others are: turns that were not taken are not saved up.
            self._turns[window.session] = max(self._now, self._turns.get(window.session, 0))
        queue.append(window)

    def put_back(self, window: Window) -> None:
        """Put a window before its session's others: its worker is gone."""
        self.put(window)
        queue = self._queues[window.session]
        queue.rotate(1)

    def in_turn(self) -> Iterator[Window]:
        """Give all windows, those of the session with the fewest turns first, each session's in their order."""
        order = sorted(self._queues, key=lambda name: (self._turns[name], self._queues[name][0].until_s))
        for name in order:
            yield from tuple(self._queues[name])

    def take(self, window: Window) -> None:
        """Take a window out: its session had its turn."""
        self._leave(window)
        self._now = self._turns[window.session]
        self._turns[window.session] += 1

    def expired(self, now_s: float) -> list[Window]:
        """Take out what waited too long."""
        late = [window for queue in self._queues.values() for window in queue if window.until_s <= now_s]
        if late:
            kept = {name: deque(w for w in queue if w.until_s > now_s) for name, queue in self._queues.items()}
            self._queues = {name: queue for name, queue in kept.items() if queue}
        return late

    def pop_longest(self) -> Window:
        """Take out the first window of the session with the most."""
        window = max(self._queues.values(), key=len)[0]
        self._leave(window)
        return window

    def forget(self, session: str) -> int:
        """Take out all of a session; how many there were."""
        return len(self._queues.pop(session, ()))

    def forget_turns(self, sessions: set[str]) -> None:
        """Keep the turns of these sessions only."""
        self._turns = {name: turns for name, turns in self._turns.items() if name in sessions or name in self._queues}

    def _leave(self, window: Window) -> None:
        queue = self._queues[window.session]
        queue.remove(window)
        if not queue:
            del self._queues[window.session]

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))
