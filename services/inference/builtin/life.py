"""When a face blinks and how its head sways: a schedule that needs no memory.

Frames of one session are made by different processes, so what a face does must follow from the session's name and the
frame's number alone. Chance is drawn from a hash of the name.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = ["FRAMES_A_SECOND", "STILL", "Life", "life_of"]

FRAMES_A_SECOND: Final = 25

# Blinks, frames.
EVERY: Final = 100
"""One blink in each stretch of so many: 15 a minute, 17 with the second ones of pairs. People at rest blink 17 times a
minute, in conversation 26, reading 4.5 (Bentivoglio et al., "Analysis of blink rate patterns in normal subjects",
Movement Disorders 12, 1997)."""
FIRST: Final = 25
"""Where in a stretch a blink may begin at the earliest: the first second of a time line is without."""
SPREAD: Final = 50
"""How much later it may begin: from one to the next it is 2 to 6 s."""
PAIR_SHARE: Final = 0.14
"""Share of the blinks that are followed by another at once."""
PAIR_AFTER: Final = (10.0, 13.0)
"""When the second of a pair begins after the first."""
CLOSING: Final = (2.0, 3.0)
"""The lid falls in 75 to 100 ms and takes about twice as long to rise (Evinger, Manning and Sibony, "Eyelid movements:
mechanisms and normal data", Investigative Ophthalmology & Visual Science 32, 1991); a blink whose rise is as quick as
its fall looks wrong (Trutoiu et al., "Modeling and animating eye blinks", ACM Transactions on Applied Perception 8,
2011)."""
SHUT: Final = 1.0
"""How long the eye stays closed: a frame, so that each blink has one in which it is."""
OPENING: Final = (4.0, 5.0)

# The head.
SIDEWAYS: Final = 0.008
"""Most that the head goes to a side, eye distances: half a millimetre on a person."""
UPWARDS: Final = 0.007
"""Most that it goes up or down."""
ROLL_DEG: Final = 0.35
"""Most that it leans about the neck, degrees."""
WEIGHTS: Final = (0.5, 0.3, 0.2)
SIDEWAYS_PERIODS_S: Final = (7.3, 11.9, 4.7)
UPWARDS_PERIODS_S: Final = (4.4, 9.7, 13.1)
"""The first is breath: an adult at rest breathes 12 to 15 times a minute (Barrett et al., "Ganong's Review of Medical
Physiology")."""
ROLL_PERIODS_S: Final = (9.1, 5.9, 14.3)
HELD: Final = 2
"""Frames for which the head stays where it is: in so short a time it goes less than a thousandth of the eye distance, a
tenth of a pixel where that is 100, which nobody sees; and to move it takes a quarter of the time of a frame."""
SETTLE_S: Final = 2.0
"""A time line begins with the photo's own pose and leaves it in this time."""


@dataclass(frozen=True)
class Life:
    """What a face does of itself in one frame."""

    closed: float
    """how far the eyelids are closed, 0..1"""
    right: float
    """the head's way to the right of the picture, eye distances"""
    down: float
    """its way down the face, eye distances"""
    roll: float
    """its turn about the neck, clockwise in the picture, radians"""


STILL: Final = Life(0.0, 0.0, 0.0, 0.0)


def life_of(session: str, frame: float) -> Life:
    """Say what a face does of itself in a frame.

    Args:
        session: whose face; another session does other things.
        frame: number of the frame on its time line, 25 a second; it may lie between two.

    Returns:
        the same for the same arguments, in whatever process; `STILL` at frame 0.
    """
    if frame <= 0:
        return STILL
    time_s = frame // HELD * HELD / FRAMES_A_SECOND
    settled = _smooth(time_s / SETTLE_S)
    return Life(
        closed=_closed(session, frame),
        right=settled * SIDEWAYS * _sway(session, "right", SIDEWAYS_PERIODS_S, time_s),
        down=settled * UPWARDS * _sway(session, "down", UPWARDS_PERIODS_S, time_s),
        roll=settled * math.radians(ROLL_DEG) * _sway(session, "roll", ROLL_PERIODS_S, time_s),
    )


def _closed(session: str, frame: float) -> float:
    """How far the eyelids are closed, 0..1."""
    stretch = int(frame // EVERY)
    return max(_blink(frame - begin, closing, opening) for begin, closing, opening in _blinks(session, stretch))


@lru_cache(maxsize=64)
def _blinks(session: str, stretch: int) -> tuple[tuple[float, float, float], ...]:
    """Beginning, time of closing and of opening of the blinks of a stretch, frames. They end within it."""
    chance = _chance(session, f"blink {stretch}")
    begin = stretch * EVERY + FIRST + SPREAD * chance[0]
    blinks = [(begin, _between(CLOSING, chance[1]), _between(OPENING, chance[2]))]
    if chance[3] < PAIR_SHARE:
        blinks.append((begin + _between(PAIR_AFTER, chance[4]), *blinks[0][1:]))
    return tuple(blinks)


def _blink(since: float, closing: float, opening: float) -> float:
    """How far the eye is closed some frames after a blink began: quickly down, a moment, and ever slower up."""
    if since <= closing:
        return _smooth(since / closing)
    left = 1.0 - min(1.0, max(0.0, since - closing - SHUT) / opening)
    return left * left * (1.5 - 0.5 * left)


def _sway(session: str, what: str, periods_s: tuple[float, ...], time_s: float) -> float:
    """A slow sum of waves that never meet again, -1..1."""
    chance = _chance(session, what)
    return sum(
        weight * math.sin(2 * math.pi * (time_s / period_s + phase))
        for weight, period_s, phase in zip(WEIGHTS, periods_s, chance, strict=False)
    )


@lru_cache(maxsize=256)
def _chance(session: str, what: str) -> tuple[float, ...]:
    """Five numbers, 0 to below 1, that look random."""
    digest = hashlib.blake2b(f"{what}\0{session}".encode(), digest_size=20).digest()
    return tuple(number / 2**32 for number in struct.unpack("<5I", digest))


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + share * (ends[1] - ends[0])


def _smooth(share: float) -> float:
    share = min(1.0, max(0.0, share))
    return share * share * (3.0 - 2.0 * share)
