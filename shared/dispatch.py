"""Sharing work between workers by credit. A plain class without sockets; time is handed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shared.messages import Credit

__all__ = ["Assignment", "WorkerPool"]

WINDOW: Final = ("back", "ahead", "shift", "in_silence")
"""what of a credit says which windows its worker needs"""


@dataclass(frozen=True)
class Assignment:
    """One window given to one worker."""

    worker: str
    seq: int
    """running number of the work given to this worker"""


@dataclass
class _Worker:
    joined_s: float
    credit: Credit
    heard_s: float
    given_s: float
    told_no_s: float = float("-inf")
    """when it was last told that it gets no work"""
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

    A worker counts from when its subscription is seen (`listen`) and it has said what it is (`credit`): whoever only
    subscribes takes nobody's place. It is given at most `capacity` windows at once. When a window is not done by its
    deadline the worker's credit is withdrawn until it reports again; when the worker has not been heard for
    `SILENCE_S`, likewise.

    All windows of a pool are made for one engine and one model: those of the hub where it has them, else those of the
    worker that joined first; and of one kind, that of the first worker which runs them. Who runs another one, or needs
    other windows, gets no work, and is told so (`refusals`): frames of two kinds in turn would flicker.
    """

    SILENCE_S: Final = 1.0
    RETRY_S: Final = 0.05
    """shortest suspension; it doubles with each miss in a row"""
    RETRY_MOST_S: Final = 2.0
    MOST_MISSES: Final = 10
    MOST_WORKERS: Final = 256
    FORGET_S: Final = 5.0
    """a worker that was given nothing for so long is thought twice as fast as it said: it may have got better"""
    TOLD_EVERY_S: Final = 5.0
    """how often a worker that gets no work is told so"""

    def __init__(self, engine: str = "", model: str = "") -> None:
        """Begin without workers.

        Args:
            engine: engine of the hub.
            model: fingerprint of its model; empty when the hub has none.
        """
        self._engine = engine
        self._model = model
        self._listening: set[str] = set()
        """whose subscriptions are there; the bus keeps as many"""
        self._workers: dict[str, _Worker] = {}
        self.counters: Counter[str] = Counter()

    def listen(self, worker: str) -> None:
        """Its subscription is there: with its next credit it joins."""
        self._listening.add(worker)

    def leave(self, worker: str) -> list[int]:
        """Its subscription ended.

        Returns:
            running numbers of the windows that it held; they can be given to another one.
        """
        self._listening.discard(worker)
        gone = self._workers.pop(worker, None)
        if gone is None:
            return []
        self.counters["left"] += 1
        self.counters["lost"] += len(gone.deadlines)
        return sorted(gone.deadlines)

    def credit(self, credit: Credit, now_s: float) -> None:
        """It says what it is and how far it came."""
        worker = self._workers.get(credit.worker)
        if worker is None:
            if credit.worker not in self._listening or len(self._workers) >= self.MOST_WORKERS:
                return  # its subscription is not here yet, or gone; it says so again within a fraction of a second
            worker = self._workers[credit.worker] = _Worker(now_s, credit, now_s, now_s)
            self.counters["joined"] += 1
        worker.credit = credit
        worker.heard_s = now_s
        done = credit.done if credit.done < worker.next_seq else -1  # else it tells of a time before it joined
        for seq in [seq for seq in worker.deadlines if seq <= done]:
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
            if worker.suspended:
                continue
            late = sum(deadline <= now_s for deadline in worker.deadlines.values())
            if late or now_s - worker.heard_s > self.SILENCE_S:
                worker.suspended = True
                worker.retry_s = now_s + min(self.RETRY_MOST_S, self.RETRY_S * 2**worker.misses)
                worker.misses = min(worker.misses + 1, self.MOST_MISSES)
                self.counters["suspended"] += 1
                self.counters["missed"] += late

    def assign(self, face: str, now_s: float, deadline_s: float) -> Assignment | None:
        """Choose a worker for a window: of those that hold the face the one that will be done first.

        While nobody holds the face it goes to anybody: that is how a worker hears of it.

        Returns:
            the assignment, or None when no worker has credit.
        """
        able = list(self._fitting())
        holders = [(name, worker) for name, worker in able if face in worker.credit.faces]
        best: tuple[float, int, float] | None = None
        chosen = ""
        for name, worker in holders or able:
            credit = worker.credit
            if worker.suspended:
                continue
            held = len(worker.deadlines)
            if held >= credit.capacity:
                continue
            pace_ms = credit.window_ms / (1.0 + (now_s - worker.given_s) / self.FORGET_S)
            if now_s + (held + 1) * pace_ms / 1000.0 > deadline_s:
                continue  # it would be done too late
            rank = ((held + 1) * pace_ms, held, worker.given_s)
            if best is None or rank < best:
                best, chosen = rank, name
        if best is None:
            return None
        worker = self._workers[chosen]
        seq = worker.next_seq
        worker.next_seq += 1
        worker.deadlines[seq] = deadline_s
        worker.given_s = now_s
        return Assignment(chosen, seq)

    def engine(self) -> Credit | None:
        """What the pool runs: the account of the fitting worker that joined first and can work; None without one."""
        able = [worker for _, worker in self._fitting() if not worker.suspended]
        return min(able, key=lambda w: w.joined_s).credit if able else None

    def refusals(self, now_s: float) -> Iterator[tuple[str, str]]:
        """Give the workers that have to be told that they get no work, and why: each once in `TOLD_EVERY_S`."""
        for name, worker in self._workers.items():
            if now_s - worker.told_no_s < self.TOLD_EVERY_S:
                continue
            why = self._misfit(worker.credit)
            if not why:
                continue
            if worker.told_no_s == float("-inf"):
                self.counters["refused"] += 1
            worker.told_no_s = now_s
            yield name, f"worker {name} gets no work: {why}"

    def _misfit(self, credit: Credit) -> str:
        """Why a worker gets no work; empty when it fits."""
        first = self._first()
        engine, model = (self._engine, self._model) if first is None else (first.engine, first.model)
        if (credit.engine, credit.model) != (engine, model):
            theirs, ours = f"{credit.engine} {credit.model or 'unknown'}", f"{engine} {model or 'unknown'}"
            return f"its model is {theirs}, the hub's is {ours}"
        if first is None or _runs(credit) == _runs(first):
            return ""
        mine, its = msgspec.structs.asdict(credit), msgspec.structs.asdict(first)
        differs = [f"{name} {mine[name]} instead of {its[name]}" for name in WINDOW if mine[name] != its[name]]
        return (
            f"its mel window has {', '.join(differs)} as that of {first.worker}, which was here first; "
            "run one version with the same MOUTHPIECE_LIFE and MOUTHPIECE_ALIGNMENT on both"
        )

    def _first(self) -> Credit | None:
        """What the pool runs: the account of the worker with the hub's model that joined first."""
        able = [
            (worker.joined_s, worker.credit)
            for worker in self._workers.values()
            if not self._model or (worker.credit.engine, worker.credit.model) == (self._engine, self._model)
        ]
        return min(able, key=lambda pair: pair[0])[1] if able else None

    def _fitting(self) -> Iterator[tuple[str, _Worker]]:
        """Workers that said what they are and run what the pool runs."""
        first = self._first()
        if first is None:
            return
        runs = _runs(first)
        for name, worker in self._workers.items():
            if _runs(worker.credit) == runs:
                yield name, worker

    def able(self) -> int:
        """How many workers run what the pool runs, and have credit or hold work."""
        return sum(not worker.suspended for _, worker in self._fitting())

    def held(self, worker: str) -> frozenset[int]:
        """Running numbers of the windows that a worker holds."""
        known = self._workers.get(worker)
        return frozenset(known.deadlines) if known is not None else frozenset()

    def holds(self, face: str) -> bool:
        """Whether a worker that can work holds a face prepared."""
        return any(face in w.credit.faces for _, w in self._fitting() if not w.suspended)

    def waiting_for(self) -> int:
        """Windows given out and not yet done."""
        return sum(len(worker.deadlines) for worker in self._workers.values())

    def free(self) -> int:
        """Windows that could be given out now."""
        return sum(max(0, w.credit.capacity - len(w.deadlines)) for _, w in self._fitting() if not w.suspended)

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)


def _runs(credit: Credit) -> tuple[object, ...]:
    """What has to be the same for all workers of a pool."""
    return credit.engine, credit.model, credit.back, credit.ahead, credit.shift, credit.in_silence
