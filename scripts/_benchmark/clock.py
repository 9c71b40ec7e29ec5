"""Times contenders against each other: interleaved, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["FAILURES", "Rounds", "Spread", "Turn", "paired", "race", "spread"]

FAILURES = (RuntimeError, ValueError, OSError, MemoryError, ImportError)
"""what a contender may fail with while the others go on"""

Key = tuple[str, int]
"""name and group"""


@dataclass(frozen=True)
class Turn:
    """What one contender does in a round."""

    name: str
    call: Callable[[], object]
    units: int
    """frames, or whatever is counted, that one call does"""
    repeats: int
    """calls that are timed; one more goes before them, to bring the contender's weights back into the cache"""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


@dataclass
class Rounds:
    """What came of it."""

    seconds: dict[Key, dict[int, float]] = field(default_factory=dict)
    """by name and group, and by number of the round: time for one unit, s"""
    failures: dict[str, str] = field(default_factory=dict)
    """who dropped out, and why"""
    interrupted: bool = False
    """whether Ctrl-C ended it"""

    def of(self, name: str, group: int) -> dict[int, float]:
        """Times of one contender by round; empty if it has none."""
        return self.seconds.get((name, group), {})


def spread(values: Sequence[float]) -> Spread | None:
    """Median and quartiles; None of nothing."""
    if not values:
        return None
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(q1), float(q3))


def paired(
    first: Mapping[int, float], second: Mapping[int, float], combine: Callable[[float, float], float]
) -> Spread | None:
    """Combine two contenders' times round by round; None if they have no round in common."""
    return spread([combine(first[number], second[number]) for number in first if number in second])


def race(groups: Mapping[int, Sequence[Turn]], rounds: int, seed: int, say: Callable[[str], None]) -> Rounds:
    """Let everybody run once in each round.

    The groups come in another order each round, and the turns of a group, which follow each other, too. Who raises one
    of `FAILURES` drops out. Ctrl-C ends the race; what was timed until then is kept.

    Args:
        groups: turns that are to be compared, by group (the batch).
        rounds: how many.
        seed: of the order.
        say: told after each round.

    Returns:
        the times of each turn: median of its repeats, divided by its units.
    """
    order = random.Random(seed)  # noqa: S311  # an order to run in, no secret
    found = Rounds()
    try:
        for number in range(rounds):
            for group in order.sample(list(groups), len(groups)):
                for turn in order.sample(list(groups[group]), len(groups[group])):
                    if turn.name not in found.failures:
                        _take(turn, group, number, found)
            say(f"round {number + 1} of {rounds}")
    except KeyboardInterrupt:
        found.interrupted = True
    return found


def _take(turn: Turn, group: int, number: int, found: Rounds) -> None:
    times = []
    try:
        turn.call()
        for _ in range(turn.repeats):
            began_s = time.perf_counter()
            turn.call()
            times.append(time.perf_counter() - began_s)
    except FAILURES as error:
        found.failures[turn.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return
    found.seconds.setdefault((turn.name, group), {})[number] = float(np.median(times)) / turn.units
