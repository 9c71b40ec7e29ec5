"""The motion basis of the built-in engine, learned from landmark tracks: how a face moves when it speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from scripts._builtin.tracks import LOWER_INNER, NOSE_TIP, UPPER_INNER, Track, laid
from services.inference.builtin.basis import AXES

__all__ = ["Learned", "learn_basis", "save_basis"]

Array = npt.NDArray[np.float64]

FRAMES_A_CLIP: Final = 110
CLIPS_A_PERSON: Final = 12
COMPONENTS: Final = 10
"""Principal components kept before the regression: the rest is noise of the landmarks."""
LIP_LINE: Final = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIP_REACH: Final = 0.3
"""How far from the lips their own motions (all but the jaw's) are followed, eye distances."""
CHIN, FOREHEAD = 152, 10


@dataclass(frozen=True)
class Learned:
    """A basis, and what it was learned from."""

    mean: Array
    """(468, 3)"""
    axes: Array
    """(4, 468, 3)"""
    clips: int
    frames: int


def learn_basis(tracks: Sequence[Track]) -> Learned:
    """Learn a basis: at most `CLIPS_A_PERSON` clips of a person, evenly spaced frames of each."""
    taken: dict[str, int] = {}
    chosen = []
    for track in tracks:
        taken[track.person] = taken.get(track.person, 0) + 1
        if taken[track.person] <= CLIPS_A_PERSON:
            points = track.points[track.seen]
            at = np.unique(np.linspace(0, len(points) - 1, FRAMES_A_CLIP).astype(int))
            chosen.append(points[at].astype(np.float64))
    return _learn(chosen)


def save_basis(learned: Learned, path: Path) -> None:
    """Write a basis, whole or not at all."""
    part = path.with_name(f"part-{path.name}")
    np.savez_compressed(
        part, mean=learned.mean.astype(np.float16), axes=learned.axes.astype(np.float16), names=np.array(AXES)
    )
    part.replace(path)


def _upright(points: Array) -> Array:
    """Lay a face into canonical coordinates."""
    right, left = points[[33, 133]].mean(axis=0), points[[362, 263]].mean(axis=0)
    x = left - right
    unit = np.linalg.norm(x)
    x /= unit
    y = points[CHIN] - points[FOREHEAD]
    y -= (y @ x) * x
    y /= np.linalg.norm(y)
    return np.asarray((points - (right + left) / 2) @ np.stack([x, y, np.cross(x, y)]).T / unit)


def _mirror_pairs(mean: Array) -> npt.NDArray[np.intp]:
    """For each point the one that lies opposite, by the shape of a mean face."""
    distance = np.linalg.norm((mean * [-1, 1, 1])[:, None] - mean[None], axis=-1)
    _, opposite = linear_sum_assignment((distance + distance.T) ** 2)
    mutual = opposite[opposite] == np.arange(len(mean))
    return np.where(mutual, opposite, np.arange(len(mean)))


def _regress(moves: Array, causes: Array) -> Array:
    """Displacement of each point for 1 of each cause, (causes, 468, 3)."""
    weights = np.linalg.lstsq(causes, moves.reshape(len(moves), -1), rcond=None)[0]
    return np.asarray(weights.reshape(-1, *moves.shape[1:]))


def _lip_distance(mean: Array) -> Array:
    """Distance of each point from the outer line of the lips, 0 within, eye distances."""
    line = mean[list(LIP_LINE), :2].astype(np.float32)
    return np.array([max(0.0, -cv2.pointPolygonTest(line, (float(x), float(y)), True)) for x, y in mean[:, :2]])


def _learn(tracks: list[Array]) -> Learned:
    """Mean face and axes from tracks of landmarks."""
    mean = _upright(tracks[0][0])
    pairs = np.arange(len(mean))
    for _ in range(3):
        means = [laid(each, mean).mean(axis=0, dtype=np.float64) for each in tracks]
        mean = _upright(np.mean(means, axis=0))
        pairs = _mirror_pairs(mean)
        mean = _upright((mean + mean[pairs] * [-1, 1, 1]) / 2)

    moved, neutrals = [], []
    for each in tracks:
        faces = laid(each, mean).astype(np.float64)
        gap = np.linalg.norm(faces[:, 13] - faces[:, 14], axis=1)
        neutral = faces[gap <= np.quantile(gap, 0.2)].mean(axis=0)
        neutrals.append(neutral)
        moved.append(faces - neutral)
    moves = np.concatenate(moved)
    moves = np.concatenate([moves, moves[:, pairs] * [-1, 1, 1]])  # nobody speaks crookedly on the mean
    flat = moves.reshape(len(moves), -1)
    flat = flat - flat.mean(axis=0)
    _, _, components = np.linalg.svd(flat[::3], full_matrices=False)
    smooth = (flat @ components[:COMPONENTS].T @ components[:COMPONENTS]).reshape(moves.shape)

    lower = smooth[:, LOWER_INNER, 1].mean(axis=1)
    upper = smooth[:, UPPER_INNER, 1].mean(axis=1)
    width = smooth[:, 291, 0] - smooth[:, 61, 0]
    thin = (lower - upper) - (smooth[:, 17, 1] - smooth[:, 0, 1])
    # What is left of the head's own motion shows at the tip of the nose; it is regressed away.
    nod = smooth[:, NOSE_TIP, 1]
    drivers = np.stack([lower - nod, width, nod - upper, thin], axis=1)
    rest = np.stack([nod, np.ones(len(nod))], axis=1)
    axes = _regress(smooth, np.concatenate([drivers, rest], axis=1))[: len(AXES)]
    # The jaw follows the opening however the lips are held, so there the lips are left free.
    jaw = _regress(smooth, np.concatenate([drivers[:, :2], rest], axis=1))[0]
    near = np.exp(-((_lip_distance(mean) / LIP_REACH) ** 2))[:, None]
    axes[0] = near * axes[0] + (1 - near) * jaw
    axes[1:] *= near
    axes = (axes + axes[:, pairs] * [-1, 1, 1]) / 2
    neutral = np.mean(neutrals, axis=0)
    neutral = (neutral + neutral[pairs] * [-1, 1, 1]) / 2
    return Learned(neutral, axes, len(tracks), sum(map(len, tracks)))
