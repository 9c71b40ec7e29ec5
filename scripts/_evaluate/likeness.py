"""How alike two moving mouths are: correlation, lead or lag, distance of the lips, unrest.

A track of a mouth here is opening, width and jaw of each frame, (n, 3), as `scripts._builtin.tracks.measured` gives
them, or points of the lips, (n, 40, 2), both without the pose of the head, in eye distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["LIPS", "MOST_LAG", "Likeness", "compare", "distance_of", "pearson", "unrest"]

Numbers = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]

MOST_LAG: Final = 3
"""video frames by which a clip's sound may be out of step with its picture"""
FRAME_MS: Final = 40.0
LEAST_FRAMES: Final = 25
STILL: Final = 1e-6
"""A track that varies less than this says nothing."""

LIPS: Final = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
"""the 40 FaceMesh points of the lips: the outer contour, then the inner one"""


@dataclass(frozen=True)
class Likeness:
    """One mouth beside another. Correlations are Pearson's r; 0 where the mouth does not move."""

    frames: int
    """compared"""
    raw: tuple[float, float, float]
    """r of opening, width and jaw as they stand"""
    shifted: tuple[float, float, float]
    """the same at `lag`"""
    lag: int
    """frames within +-`MOST_LAG` at which the r of the opening is best; positive: the mouth is later than the other"""
    lag_ms: float
    """the same between frames, by a parabola through r at the neighbours"""


def pearson(a: Numbers, b: Numbers) -> float:
    """Pearson's r of two series (n,); 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    if length < STILL**2 * len(a) or a.std() < STILL or b.std() < STILL:
        return 0.0
    return float((a * b).sum() / length)


def compare(made: Numbers, made_seen: Flags, real: Numbers, real_seen: Flags) -> Likeness | None:
    """Compare a mouth with the real one.

    Args:
        made: opening, width and jaw of each frame, (n, 3).
        made_seen: which of them are known, (n,).
        real: of the real speaker, (m, 3).
        real_seen: (m,).

    Returns:
        None where fewer than `LEAST_FRAMES` are known of both, or the real mouth stands still.
    """
    found: dict[int, tuple[int, tuple[float, float, float]]] = {}
    for lag in range(-MOST_LAG, MOST_LAG + 1):
        a, b = _both(made_seen, real_seen, lag)
        if len(a) < LEAST_FRAMES:
            continue
        one, other = made[a].astype(np.float64), real[b].astype(np.float64)
        r = [pearson(one[:, k], other[:, k]) for k in range(3)]
        found[lag] = (len(a), (r[0], r[1], r[2]))
    if 0 not in found or real[real_seen, 0].std() < STILL:
        return None
    best = max(found, key=lambda lag: (found[lag][1][0], -abs(lag)))
    by_lag = {lag: values[0] for lag, (_, values) in found.items()}
    return Likeness(found[best][0], found[0][1], found[best][1], best, FRAME_MS * (best + _peak(by_lag, best)))


def distance_of(
    made: Numbers, made_seen: Flags, real: Numbers, real_seen: Flags, lag: int
) -> tuple[float, float] | None:
    """Measure how far the points of the lips are from where the real speaker has them, each from its own mean place.

    Args:
        made: points of the lips, (n, 40, 2), eye distances.
        made_seen: which frames are known, (n,).
        real: of the real speaker, (m, 40, 2).
        real_seen: (m,).
        lag: frames by which `made` is late.

    Returns:
        root mean square of the difference where each of both moves by 1 in its own root mean square: 0 is the same,
        1.41 two mouths that have nothing to do with each other; and the mean difference in eye distances. None where
        there are too few frames, or one of them does not move.
    """
    a, b = _both(made_seen, real_seen, lag)
    if len(a) < LEAST_FRAMES:
        return None
    one, other = made[a].astype(np.float64), real[b].astype(np.float64)
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    one_size, other_size = (float(np.sqrt((each**2).sum(axis=2).mean())) for each in (one, other))
    if min(one_size, other_size) < STILL:
        return None
    scaled = one / one_size - other / other_size
    plain = np.sqrt(((one - other) ** 2).sum(axis=2)).mean()
    return float(np.sqrt((scaled**2).sum(axis=2).mean())), float(plain)


def unrest(opening: Numbers, seen: Flags) -> float:
    """Root mean square of the second differences of an opening (n,), over those frames that are known with both
    neighbours; NaN without such frames."""
    whole = seen[:-2] & seen[1:-1] & seen[2:]
    bends = opening[:-2] - 2 * opening[1:-1] + opening[2:]
    return float(np.sqrt((bends[whole].astype(np.float64) ** 2).mean())) if whole.any() else float("nan")


def _peak(r: Mapping[int, float], best: int) -> float:
    """How far the top of a parabola through three points lies from the middle one, -0.5..0.5."""
    if best - 1 not in r or best + 1 not in r:
        return 0.0
    before, after = r[best - 1] - r[best], r[best + 1] - r[best]
    return 0.5 * (before - after) / (before + after) if before + after < 0 else 0.0


def _both(made_seen: Flags, real_seen: Flags, lag: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Frames of both that belong together: frame k + lag of the one to frame k of the other."""
    first, last = max(0, -lag), min(len(real_seen), len(made_seen) - lag)
    b = np.arange(first, max(first, last))
    b = b[real_seen[b] & made_seen[b + lag]]
    return b + lag, b
