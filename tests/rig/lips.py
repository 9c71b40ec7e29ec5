"""What a face in pictures does with its lips, measured by FaceMesh, beside what a sound does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.face_prep.detector import FaceDetector
from services.face_prep.landmarks import FaceMesh
from tests.rig.stack import ROOT

__all__ = ["Following", "follow", "loudness", "openings", "pauses", "shut_mouth"]

UPPER, LOWER = 13, 14
EYES: Final = (33, 263)


def openings(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """Distance of the inner lips in each picture, in units of the distance between the outer eye corners."""
    models = ROOT / "models" / "face"
    detector, mesh = FaceDetector(models), FaceMesh(models)
    found = detector.detect(pictures[0])
    assert found, "no face in the first picture"
    values = []
    landmarks = mesh.rough(pictures[0], found[0])
    for image in pictures:
        landmarks = mesh.refined(image, landmarks)
        points = landmarks.points
        gap = float(np.linalg.norm(points[UPPER, :2] - points[LOWER, :2]))
        values.append(gap / float(np.linalg.norm(points[EYES[0], :2] - points[EYES[1], :2])))
    return np.array(values)


def loudness(pcm: npt.NDArray[np.int16], floor_db: float = -60.0) -> npt.NDArray[np.float64]:
    """Loudness in steps of 10 ms, dB of full scale, not under `floor_db`; 16 kHz mono."""
    steps = pcm[: len(pcm) // 160 * 160].reshape(-1, 160).astype(np.float64) / 32768.0
    level_db: npt.NDArray[np.float64] = 10.0 * np.log10(np.mean(steps**2, axis=1) + 1e-12)
    return np.maximum(floor_db, level_db)


@dataclass(frozen=True)
class Following:
    """How well the lips follow."""

    correlation: float
    """Pearson r at the best lag"""
    lag_s: float
    """by how much the picture is behind the sound there"""
    pause_share: float
    """largest opening in the pauses, once they have lasted 300 ms + lag, as a share of the speaking maximum, both over
    that of the shut mouth"""
    maximum: float
    """95th percentile of the opening in speech, eye distances"""


def pauses(
    level_db: npt.NDArray[np.float64], quiet_db: float = -45.0, least_s: float = 0.7
) -> list[tuple[float, float]]:
    """Stretches of quiet, (begin, end) in seconds."""
    quiet = np.concatenate([[False], level_db < quiet_db, [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(int)))
    spans = [(begin * 0.01, end * 0.01) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return [(begin, end) for begin, end in spans if end - begin >= least_s]


def shut_mouth(opening: npt.NDArray[np.float64]) -> float:
    """Opening that is measured when the mouth is shut: the least of the first second, before a word was heard.

    The very first pictures may still be the photo as it came, with its smile.
    """
    return float(opening[:12].min())


def follow(
    level_db: npt.NDArray[np.float64],
    level_began_s: float,
    times_s: npt.NDArray[np.float64],
    opening: npt.NDArray[np.float64],
    quiet_db: float = -45.0,
    shut: float = 0.0,
) -> Following:
    """Compare.

    Args:
        level_db: loudness in steps of 10 ms.
        level_began_s: when its first step was heard.
        times_s: when each picture was seen, same clock.
        opening: of each picture.
        quiet_db: under this it is a pause.
        shut: opening that is measured when the mouth is shut; FaceMesh sees a smile a little open always.
    """
    best, best_lag = -1.0, 0.0
    at = level_began_s + 0.01 * (np.arange(len(level_db)) + 0.5)
    for lag_s in np.arange(-0.2, 0.8, 0.01):
        inside = (times_s - lag_s > at[0]) & (times_s - lag_s < at[-1])
        if inside.sum() < 50:
            continue
        heard = np.interp(times_s[inside] - lag_s, at, level_db)
        if np.std(heard) < 1e-9 or np.std(opening[inside]) < 1e-9:
            continue
        value = float(np.corrcoef(heard, opening[inside])[0, 1])
        if value > best:
            best, best_lag = value, float(lag_s)
    heard = np.interp(times_s - best_lag, at, level_db, left=-99, right=-99)
    maximum = float(np.percentile(opening[heard > quiet_db], 95))
    worst = 0.0
    for begin_s, end_s in pauses(level_db, quiet_db):
        quiet = (times_s - best_lag > level_began_s + begin_s + 0.3) & (
            times_s - best_lag < level_began_s + end_s - 0.1
        )
        if quiet.any():
            worst = max(worst, float(opening[quiet].max()))
    share = max(0.0, worst - shut) / max(maximum - shut, 1e-6)
    return Following(best, best_lag, share, maximum)
