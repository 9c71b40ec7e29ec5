"""Sharing work between workers by credit. A plain class without sockets; time is handed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.messages import Credit

__all__ = ["Assignment", "WorkerPool"]


@dataclass(frozen=True)
class Assignment:
    """One window given to one worker."""

    worker: str
    seq: int
    """running number of the work given to this worker"""


@dataclass
class _Worker:
    joined_s: float
    credit: Credit | None = None
    heard_s: float = 0.0
    next_seq: int = 0
    deadlines: dict[int, float] = field(default_factory=dict)
    """seq -> monotonic time by which it must be done"""
    suspended: bool = False
    """it missed a deadline: no work until it answers again"""
    retry_s: float = 0.0
    """monotonic time before which it stays suspended"""
    misses: int = 0
    """deadlines missed since a window was done in time"""


class WorkerPool:
    """Workers that joined, what each may still be given, and what each holds.

    A worker counts from when its subscription is seen (`join`) and it has said what it is (`credit`). It is given at
    most `capacity` windows at once. When a window is not done by its deadline the worker's credit is withdrawn until
    it reports again; when the worker has not been heard for `SILENCE_S`, likewise.
    """

    SILENCE_S: Final = 1.0
    RETRY_S: Final = 0.05
    """shortest suspension; it doubles with each miss in a row"""
    RETRY_MOST_S: Final = 2.0

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self.counters: Counter[str] = Counter()

    def join(self, worker: str, now_s: float) -> None:
        """Its subscription is there."""
        if worker not in self._workers:
            self._workers[worker] = _Worker(joined_s=now_s)
            self.counters["joined"] += 1

    def leave(self, worker: str) -> None:
        """Its subscription ended: what it held is lost."""
        gone = self._workers.pop(worker, None)
        if gone is not None:
            self.counters["left"] += 1
            self.counters["lost"] += len(gone.deadlines)

    def credit(self, credit: Credit, now_s: float) -> None:
        """It says what it is and how far it came."""
        worker = self._workers.get(credit.worker)
        if worker is None:
            return  # its subscription is not here yet; it says so again within a fraction of a second
        worker.credit = credit
        worker.heard_s = now_s
        for seq in [seq for seq in worker.deadlines if seq <= credit.done]:
            if worker.deadlines.pop(seq) > now_s:
                worker.misses = 0
        if not worker.suspended or now_s < worker.retry_s:
            return
        if credit.held == 0:  # what it was given and does not hold was lost on the way
            self.counters["lost"] += len(worker.deadlines)
            worker.deadlines.clear()
        if not worker.deadlines:
            worker.suspended = False
            self.counters["resumed"] += 1

    def expire(self, now_s: float) -> None:
        """Withdraw the credit of workers that missed a deadline or fell silent."""
        for worker in self._workers.values():
            if worker.credit is None or worker.suspended:
                continue
            late = sum(deadline <= now_s for deadline in worker.deadlines.values())
            if late or now_s - worker.heard_s > self.SILENCE_S:
                worker.suspended = True
                worker.retry_s = now_s + min(self.RETRY_MOST_S, self.RETRY_S * 2**worker.misses)
                worker.misses += 1
                self.counters["suspended"] += 1
                self.counters["missed"] += late

    def assign(self, face: str, engine: str, deadline_s: float) -> Assignment | None:
        """Choose a worker for a window: one that holds the face first, then the one with the most credit.

        Returns:
            the assignment, or None when no worker of that engine has credit.
        """
        best: tuple[bool, int, float] | None = None
        chosen = ""
        for name, worker in self._workers.items():
            credit = worker.credit
            if credit is None or worker.suspended or credit.engine != engine:
                continue
            free = credit.capacity - len(worker.deadlines)
            if free <= 0:
                continue
            rank = (face in credit.faces, free, -worker.heard_s)
            if best is None or rank > best:
                best, chosen = rank, name
        if best is None:
            return None
        worker = self._workers[chosen]
        seq = worker.next_seq
        worker.next_seq += 1
        worker.deadlines[seq] = deadline_s
        return Assignment(chosen, seq)

    def engine(self) -> Credit | None:
        """What the pool runs: the account of the worker that joined first and can work; None without workers.

        All windows are made for this engine; workers that run another one get no work.
        """
        able = [w for w in self._workers.values() if w.credit is not None and not w.suspended]
        return min(able, key=lambda w: w.joined_s).credit if able else None

    def holds(self, face: str) -> bool:
        """Whether a worker that can work holds a face prepared."""
        return any(face in w.credit.faces for w in self._workers.values() if w.credit is not None and not w.suspended)

    def waiting_for(self) -> int:
        """Windows given out and not yet done."""
        return sum(len(worker.deadlines) for worker in self._workers.values())

    def free(self) -> int:
        """Windows that could be given out now."""
        return sum(
            max(0, w.credit.capacity - len(w.deadlines))
            for w in self._workers.values()
            if w.credit is not None and not w.suspended
        )

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)
