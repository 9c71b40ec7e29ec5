"""What the network learns from: sequences of mel frames beside the motion of the mouth that goes with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scripts._builtin.network import AHEAD, BACK, LENGTH
from scripts._builtin.tracks import LOWER_INNER, NOSE_TIP, RATE_FPS, UPPER_INNER, Track, laid
from services.inference.builtin.basis import MotionBasis
from services.inference.builtin.drive import DB_A_UNIT, MOST_LOUDER_DB, on_level
from services.mel_features.mel import MEL_BANDS, MEL_FLOOR, MEL_RATE_HZ, SAMPLE_RATE_HZ, whole_file

__all__ = ["FRAMES", "Batch", "Lesson", "columns", "draw", "lesson_of", "padded", "silenced"]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Rng = np.random.Generator

FRAMES: Final = 100
"""video frames of a sequence"""

LEFT_CORNER, RIGHT_CORNER = 291, 61
LEAST_OPENING: Final = 0.05
"""A clip whose mouth never opens further than this, eye distances, is not made to look as if it spoke."""
LEAST_SPREAD: Final = 0.012

# How voices, rooms and microphones differ.
GAIN_DB: Final = 6.0
TILT_DB: Final = 5.0
SHIFT_BANDS: Final = 3.0
NOISE_SHARE: Final = 0.5
NOISE_DB: Final = (3.0, 35.0)
"""below the speech"""
SMEAR_SHARE: Final = 0.25
MASK_SHARE: Final = 0.3
PACE: Final = 0.12
SILENT_SHARE: Final = 0.16
"""of the sequences have no voice in them, or none from somewhere on"""
ONSET_SHARE: Final = 0.5
"""of these: the noise begins after digital silence; of the others as many: after speech"""
ROOM_DB: Final = (-95.0, -38.0)
"""level of the noise of an empty room, dBFS"""
ROOM_REFERENCE_DB: Final = -20.0
"""at which they are made, so that no mel band is cut off at either end"""
SETTLING: Final = 24
"""mel frames after speech within which nothing is said of the mouth"""
ROOMS: Final = 24
ROOM_S: Final = 8.0


@dataclass(frozen=True)
class Lesson:
    """One clip."""

    name: str
    person: str
    mel: Floats
    """(80, n), 80 frames a second"""
    motion: Floats
    """(frames, 4) in the order of `AXES`, in the speaker's own measure: the 95th percentile of the opening is 1, two
    standard deviations of the width are 1"""
    seen: Flags
    """which of them are known, (frames,)"""
    offset: float = 0.0
    """video frames by which the picture is behind the sound"""
    weight: float = 1.0
    """how often it is drawn, beside others"""
    pressed: bool = False
    """whether `motion` tells how thin the lips are; landmarks do not tell it well"""

    def shifted(self, offset: float) -> Lesson:
        """The same clip with another offset."""
        return replace(self, offset=offset)


@dataclass(frozen=True)
class Batch:
    """What is learned in one step."""

    mel: Tensor
    """(n, 80, t)"""
    motion: Tensor
    """(n, FRAMES, 4)"""
    known: Tensor
    """which of them are known, (n, FRAMES, 4), 0 or 1"""


def lesson_of(track: Track, basis: MotionBasis) -> Lesson:
    """Measure how the mouth of a speaker moves, in his own measure."""
    face = laid(track.points, basis.mean)
    gap = (face[:, LOWER_INNER, 1] - face[:, UPPER_INNER, 1]).mean(axis=1)
    known = gap[track.seen]
    closed = track.seen & (gap <= np.quantile(known, 0.2))
    moved = face - face[closed].mean(axis=0)
    nod = moved[:, NOSE_TIP, 1]
    lower = moved[:, LOWER_INNER, 1].mean(axis=1) - nod
    upper = nod - moved[:, UPPER_INNER, 1].mean(axis=1)
    shut = float(np.quantile(known, 0.05)) - float(gap[closed].mean())
    opening = lower + upper - shut
    width = moved[:, LEFT_CORNER, 0] - moved[:, RIGHT_CORNER, 0]
    width = width - np.median(width[track.seen])
    most = max(float(np.quantile(opening[track.seen], 0.95)), LEAST_OPENING)
    spread = max(float(width[track.seen].std()), LEAST_SPREAD)
    motion = np.stack(
        [(lower - shut * 0.8) / most, width / (2 * spread), (upper - shut * 0.2) / most, np.zeros_like(gap)], axis=1
    )
    return Lesson(track.name, track.person, track.mel, np.clip(motion, -2, 2.5).astype(np.float32), track.seen)


def padded(mel: Floats) -> Floats:
    """Mel frames with the silence before and after them that the first and the last window need."""
    return np.pad(mel, ((0, 0), (BACK, AHEAD + 1)), constant_values=MEL_FLOOR)


def columns(frames: int) -> npt.NDArray[np.intp]:
    """Column of `Hearing.forward` over `padded` that belongs to each video frame."""
    return (np.arange(frames) * MEL_RATE_HZ) // RATE_FPS


def draw(lessons: Sequence[Lesson], count: int, rng: Rng) -> Batch:
    """Draw sequences, each heard in another room."""
    weights = np.array([lesson.weight for lesson in lessons])
    chosen = rng.choice(len(lessons), count, p=weights / weights.sum())
    noises = rng.choice(len(lessons), count)
    parts = [_part(lessons[k], rng) for k in chosen]
    mel = np.stack([heard(part[0], lessons[n].mel, rng) for part, n in zip(parts, noises, strict=True)])
    motion, known = np.stack([part[1] for part in parts]), np.stack([part[2] for part in parts])
    for index in range(count):
        if rng.random() < SILENT_SHARE:
            mel[index], spoken, silent = silenced(mel[index], rng)
            known[index, spoken:silent] = 0.0
            motion[index, silent:], known[index, silent:] = 0.0, 1.0
    return Batch(torch.from_numpy(mel), torch.from_numpy(motion), torch.from_numpy(known))


def _part(lesson: Lesson, rng: Rng) -> tuple[Floats, Floats, Floats]:
    """A piece of a clip, a little faster or slower: mel (80, t), motion and what is known of it (FRAMES, 4)."""
    pace = float(np.exp(rng.uniform(-PACE, PACE)))
    total = len(lesson.motion)
    first = rng.uniform(0, max(0.0, total - FRAMES * pace))
    length = int(FRAMES * MEL_RATE_HZ / RATE_FPS) + LENGTH
    at = first * MEL_RATE_HZ / RATE_FPS + (np.arange(length) - BACK) * pace
    mel = _sampled(lesson.mel.T, at, MEL_FLOOR).T
    frames = first + (np.arange(FRAMES) + 0.5) * pace - 0.5 + lesson.offset
    motion = _sampled(lesson.motion, frames, 0.0)
    low = np.clip(np.floor(frames).astype(int), 0, total - 1)
    high = np.clip(low + 1, 0, total - 1)
    seen = lesson.seen[low] & lesson.seen[high] & (frames >= 0) & (frames <= total - 1)
    known = np.repeat(seen[:, None], 4, axis=1).astype(np.float32)
    known[:, 3] *= lesson.pressed
    return mel, motion, known


def _sampled(rows: Floats, at: npt.NDArray[np.floating], beyond: float) -> Floats:
    """Rows at fractions of an index, (len(at), ...)."""
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32)[:, None]
    inside = (low >= 0) & (low < len(rows) - 1)
    low = np.clip(low, 0, max(0, len(rows) - 2))
    values = rows[low] * (1 - share) + rows[np.minimum(low + 1, len(rows) - 1)] * share
    return np.where(inside[:, None], values, np.float32(beyond)).astype(np.float32)


def heard(mel: Floats, noise: Floats, rng: Rng) -> Floats:
    """Let another microphone hear it in another room.

    Args:
        mel: (80, t), -4..4.
        noise: mel frames of whatever may be heard beside it, (80, n).
        rng: draws the room.
    """
    db: npt.NDArray[np.floating] = (mel - 4) * np.float32(DB_A_UNIT)
    shift = float(rng.uniform(-SHIFT_BANDS, SHIFT_BANDS))
    db = _sampled(np.asarray(db, np.float32), np.clip(np.arange(MEL_BANDS) + shift, 0, MEL_BANDS - 1.001), 0.0)
    heights = np.linspace(0, np.pi, MEL_BANDS)
    tilt = sum(rng.normal(0, TILT_DB / k) * np.cos(k * heights) for k in (1, 2, 3))
    db = db + np.asarray(tilt, np.float32)[:, None]
    if rng.random() < SMEAR_SHARE:
        db = _smeared(db, float(rng.uniform(0.3, 0.75)))
    if rng.random() < NOISE_SHARE:
        level = np.quantile(db.max(axis=0), 0.9) - rng.uniform(*NOISE_DB)
        if rng.random() < 0.5 and noise.shape[1] > LENGTH:
            start = int(rng.integers(0, noise.shape[1]))
            other = np.take(noise, np.arange(start, start + db.shape[1]), axis=1, mode="wrap")[:, ::-1]
            other = (other - 4) * np.float32(DB_A_UNIT)
            other = other - np.quantile(other.max(axis=0), 0.9)
        else:
            slope = float(rng.uniform(-12, 0)) / np.pi
            other = np.asarray(slope * heights[:, None] + rng.normal(0, 2.5, db.shape), np.float32)
        db = np.asarray(10 * np.log10(10 ** (db / 10) + 10 ** ((other + level) / 10)), np.float32)
    made = _heard_at(np.asarray(db), rng)
    if rng.random() < MASK_SHARE:
        low = int(rng.integers(0, MEL_BANDS - 8))
        made[low : low + int(rng.integers(2, 9))] = made.mean()
    return made


def _smeared(db: npt.NDArray[np.floating], keep: float) -> Floats:
    """Let the sound die away slowly, at a low level, as in a room."""
    power = 10 ** (db / 10)
    tail = np.zeros(MEL_BANDS, np.float64)
    made = np.empty_like(power)
    for column in range(power.shape[1]):
        made[:, column] = power[:, column] + 0.25 * tail
        tail = keep * (tail + power[:, column] * (1 - keep))
    return np.asarray(10 * np.log10(made + 1e-12), np.float32)


def silenced(mel: Floats, rng: Rng) -> tuple[Floats, int, int]:
    """Let the noise of an empty room be heard: alone, from somewhere on, or after the speech that was there.

    Args:
        mel: of a sequence, as it is heard, (80, t).
        rng: draws the room.

    Returns:
        mel frames; how many video frames hear nothing but the speech; the first in which nobody speaks.
    """
    room = _rooms()[int(rng.integers(ROOMS))]
    length = mel.shape[1]
    start = int(rng.integers(room.shape[1]))
    noise = np.take(room, np.arange(start, start + length), axis=1, mode="wrap") + np.float32(rng.uniform(*ROOM_DB))
    first = int(rng.integers(BACK, length))
    if rng.random() < ONSET_SHARE:
        if rng.random() < ONSET_SHARE:
            noise[:, :first] = -200.0
        return _heard_at(noise, rng), 0, 0
    made = mel.copy()
    # The engine lays each window on one level: at first that of the speech, at last that of the noise.
    louder = rng.uniform(0, MOST_LOUDER_DB)
    made[:, first:] = np.clip((noise[:, first:] + louder) / DB_A_UNIT + 4, MEL_FLOOR, 4)
    spoken, silent = (
        np.clip((first + more) * RATE_FPS // MEL_RATE_HZ, 0, FRAMES) for more in (-LENGTH, SETTLING - BACK)
    )
    return made, int(spoken), int(silent)


@functools.cache
def _rooms() -> tuple[Floats, ...]:
    """Noises of empty rooms at 0 dBFS, as mel frames, dB, (80, n): fans, traffic, mains, machines far and near."""
    rng = np.random.default_rng(ROOMS)
    count = int(ROOM_S * SAMPLE_RATE_HZ)
    at_s = np.arange(count) / SAMPLE_RATE_HZ
    pitch = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE_HZ), 30.0)
    made = []
    for _ in range(ROOMS):
        slope = rng.uniform(-0.3, 2.2)
        shape = pitch ** (-slope / 2)
        for _ in range(int(rng.integers(0, 3))):
            shape = shape * (1 + rng.uniform(0, 6) * np.exp(-((np.log2(pitch / rng.uniform(100, 5000)) / 0.3) ** 2)))
        noise = np.fft.irfft(np.fft.rfft(rng.normal(0, 1, count)) * shape, count)
        noise /= noise.std()
        hum = sum(rng.uniform(0, 1) / k * np.sin(2 * np.pi * 50 * k * at_s + rng.uniform(0, 6)) for k in range(1, 7))
        noise += (rng.random() < ONSET_SHARE) * rng.uniform(0.2, 2.0) * hum
        breath = np.interp(at_s, np.arange(0, ROOM_S + 0.5, 0.5), rng.uniform(-3, 3, int(2 * ROOM_S) + 1))
        noise *= 10 ** (rng.uniform(0, 1) * breath / 20)
        quiet = noise / noise.std() * 10 ** (ROOM_REFERENCE_DB / 20)
        made.append((whole_file(quiet.astype(np.float32)) - 4) * np.float32(DB_A_UNIT) - np.float32(ROOM_REFERENCE_DB))
    return tuple(np.asarray(each, np.float32) for each in made)


def _heard_at(db: npt.NDArray[np.floating], rng: Rng) -> Floats:
    """As mel frames, laid on the level that the engine lays a window on, and a little beside it."""
    mel = on_level(np.clip(db / DB_A_UNIT + 4, MEL_FLOOR, 4).astype(np.float32))
    beside = np.float32(rng.uniform(-GAIN_DB, GAIN_DB) / DB_A_UNIT)
    return np.asarray(np.clip(mel + beside, MEL_FLOOR, 4), np.float32)
