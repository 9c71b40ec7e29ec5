"""The motion basis: how the 468 FaceMesh points move, as few numbers with a meaning, and the pose of a face.

Canonical coordinates: origin midway between the eyes, x along the eyes (to the right in the picture), y down the face,
z into the head; the unit is the distance between the eyes' middles.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["AXES", "STABLE", "BasisError", "MotionBasis", "Pose", "similarity"]

Floats = npt.NDArray[np.float32]

AXES: Final = ("open", "width", "raise", "press")
"""What the numbers of a motion mean, each in eye distances: how far the lower inner lip drops, how much wider the mouth
is, how far the upper lip rises, and how much thinner the lips are."""

STABLE: Final = (
    33, 133, 159, 145, 362, 263, 386, 374, 6, 168, 197, 195, 5, 9, 8, 10,
    70, 63, 105, 66, 107, 300, 293, 334, 296, 336, 151, 67, 297, 54, 284, 127, 356,
)  # fmt: skip
"""Points that speech does not move: eyes, brows, bridge of the nose, forehead, temples."""

FILE: Final = "motion.npz"
POINTS: Final = 468


class BasisError(RuntimeError):
    """The motion basis is missing or broken; the text says what to do."""


@dataclass(frozen=True)
class Pose:
    """Similarity from canonical coordinates to the photo: ``photo = scale * canonical @ rotation.T + shift``."""

    scale: float
    """eye distance, px, as if seen from the front"""
    rotation: Floats
    """(3, 3)"""
    shift: Floats
    """midway between the eyes, px, (3,)"""

    def to_photo(self, points: Floats) -> Floats:
        """Canonical points to pixels of the photo, (..., 3) to (..., 2)."""
        return np.asarray((self.scale * (points @ self.rotation.T) + self.shift)[..., :2], np.float32)

    def turned(self, displacements: Floats) -> Floats:
        """Canonical displacements to displacements on the photo, (..., 3) to (..., 2) px."""
        return np.asarray((self.scale * (displacements @ self.rotation.T))[..., :2], np.float32)


@dataclass(frozen=True)
class MotionBasis:
    """A mean face and its motions."""

    mean: Floats
    """canonical mean face with closed lips, (468, 3), eye distances"""
    axes: Floats
    """displacement of each point for 1 of each of `AXES`, (4, 468, 3)"""

    @classmethod
    def load(cls, models: Path) -> MotionBasis:
        """Read the basis.

        Args:
            models: folder that holds motion.npz.

        Raises:
            BasisError: it is not there, or is no motion basis.
        """
        path = models / FILE
        try:
            with np.load(path, allow_pickle=False) as stored:
                mean = stored["mean"].astype(np.float32)
                axes = stored["axes"].astype(np.float32)
                names = tuple(str(name) for name in stored["names"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BasisError(
                f"{path} cannot be read as a motion basis ({error}): restore it from the repository, or make it with "
                "scripts/train_builtin --basis",
            ) from error
        if names != AXES or mean.shape != (POINTS, 3) or axes.shape != (len(AXES), POINTS, 3):
            raise BasisError(f"{path} is a motion basis of another version: restore it from the repository")
        return cls(mean, axes)

    def pose(self, landmarks: Floats) -> Pose:
        """Fit the mean face to measured points by the points that speech does not move.

        Args:
            landmarks: (468, 3), px.
        """
        return similarity(self.mean[list(STABLE)], landmarks[list(STABLE)])


def similarity(source: Floats, target: Floats) -> Pose:
    """Least-squares similarity that lays `source` on `target`, both (n, 3).

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    a, b = source.astype(np.float64), target.astype(np.float64)
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - a_mean, b - b_mean
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((s * sign).sum() / max((a**2).sum(), 1e-12))
    shift = b_mean - scale * rotation @ a_mean
    return Pose(scale, rotation.astype(np.float32), shift.astype(np.float32))
