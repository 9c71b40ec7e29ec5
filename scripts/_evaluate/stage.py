"""A photo on which an engine speaks, and what FaceMesh sees of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from scripts._builtin.tracks import laid, measured
from scripts._evaluate.likeness import LIPS
from scripts._render.audio import Sound
from services.face_prep.face import FaceMaker
from services.face_prep.landmarks import FaceMesh, Landmarks
from services.inference.builtin.basis import MotionBasis
from services.inference.builtin.drive import Motion
from services.inference.builtin.engine import MODELS, BuiltinEngine
from services.inference.builtin.warp import FaceWarp
from services.inference.engine import Drive, Engine, Rendered
from services.streamer.compositor import compose
from shared.messages import Face

__all__ = ["Driver", "EvaluateError", "Played", "Stage", "load_driver", "prepared"]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

AT_ONCE: Final = 16
"""frames drawn in one call"""
LEAST_SCORE: Final = 0.5
"""of FaceMesh"""
SHARPNESS_EVERY: Final = 5
"""frames"""
AROUND_LIPS: Final = 0.12
"""by which the lips are surrounded where sharpness is measured, eye distances"""
INSIDE_MOUTH: Final = 0.03
"""by which the inner edge of the lips is left out there, since teeth and darkness are not in the photo"""
NOTHING: Final = Rendered(0, 0, np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))


class EvaluateError(ValueError):
    """It cannot be evaluated; the text says why and what to do."""


class _Watched(BuiltinEngine):
    """The built-in engine, whose motion is written down on the way to the picture; it draws only if it is to."""

    def __init__(self, models: Path) -> None:
        super().__init__(models)
        self.seen: list[Floats] = []
        self.drawing = True

    def posed(self, state: FaceWarp, motion: Motion) -> Rendered:
        """Write the motion down, and draw it."""
        self.seen.append(motion.coefficients)
        return super().posed(state, motion) if self.drawing else NOTHING


@dataclass(frozen=True)
class Driver:
    """An engine that is loaded."""

    engine: Engine[Any]
    watched: _Watched | None
    """the same, if its motion can be read"""


@dataclass(frozen=True)
class Played:
    """What an engine did with a sound."""

    motion: Floats | None
    """coefficients of each frame in the order of the motion basis, (n, 4); None where the engine has none"""
    points: Floats | None
    """FaceMesh points of each drawn frame, px, (n, 468, 3); None if nothing was drawn"""
    seen: Flags
    """where FaceMesh saw the face, (n,)"""
    sharpness: float
    """around the lips over that of the photo, median; NaN if nothing was drawn"""
    kept: dict[int, Pixels] = field(default_factory=dict)
    """pictures that were asked for, by frame"""

    @property
    def by_motion(self) -> Floats | None:
        """Opening, width and jaw as the motion has them, (n, 3)."""
        if self.motion is None:
            return None
        opened, width, raised = self.motion[:, 0], self.motion[:, 1], self.motion[:, 2]
        return np.stack([opened + raised, width, opened], axis=1)


def load_driver(engine: Literal["builtin", "wav2lip"], model: Path | None, root: Path) -> Driver:
    """Load an engine.

    Args:
        engine: its name.
        model: its model folder; None: the project's own.
        root: of the project.

    Raises:
        EvaluateError: there is no such model.
    """
    folder = model or (MODELS if engine == "builtin" else root / "models" / "wav2lip")
    if engine == "builtin" and not folder.is_dir():
        raise EvaluateError(f"{folder}: there is no such model folder; make one with scripts/train_builtin")
    if engine == "wav2lip" and not folder.exists():
        raise EvaluateError(
            f"{folder}: there is no converted Wav2Lip; give one by --model, or fetch it with scripts/fetch_models"
        )
    try:
        if engine == "builtin":
            watched = _Watched(folder)
            return Driver(watched, watched)
        from services.inference.wav2lip.engine import Wav2LipEngine  # noqa: PLC0415 - only where it is used

        return Driver(Wav2LipEngine(folder), None)
    except (ValueError, RuntimeError) as error:  # also BasisError
        raise EvaluateError(str(error)) from error


def prepared(maker: FaceMaker, photo: Path, face_px: int) -> Face:
    """Find the face of a photo, which is scaled so that the face is so wide, if it is larger.

    Raises:
        OSError: the photo cannot be read; also `ImageError` and `FaceError`.
    """
    data = photo.read_bytes()
    face = maker.make("evaluate", data)
    width = face.box[2] - face.box[0]
    if width > face_px:
        longest = max(face.photo.shape[:2])
        face = maker.make("evaluate", data, max_side_px=max(64, round(longest * face_px / width)))
    return face


class Stage:
    """One face on which engines speak.

    Args:
        face: prepared.
        mesh: finds the points in what was drawn.
        basis: on whose mean face they are laid.
    """

    def __init__(self, face: Face, mesh: FaceMesh, basis: MotionBasis) -> None:
        self.face = face
        self._mesh = mesh
        self._basis = basis
        self._states: dict[int, tuple[Driver, Any]] = {}
        self._sharp = _detail(face.photo, face.landmarks)
        self._rest: dict[int, Floats] = {}

    def state(self, driver: Driver) -> Any:
        """The face as the engine has prepared it."""
        if id(driver) not in self._states:
            self._states[id(driver)] = (driver, driver.engine.prepare(self.face))
        return self._states[id(driver)][1]

    def play(
        self, driver: Driver, sound: Sound, frames: int, *, gated: bool, drawn: bool, keep: Collection[int] = ()
    ) -> Played:
        """Let an engine speak.

        Args:
            driver: the engine.
            sound: what it hears, with the gains of the voice gate if they are wanted.
            frames: how many.
            gated: whether the voice gate closes the mouth; else the gain is 1 throughout.
            drawn: whether the frames are drawn and looked at.
            keep: frames whose pictures are wanted.
        """
        state = self.state(driver)
        window = driver.engine.window
        gains = [1.0] * frames
        if gated:
            gains = [sound.gains[k] if k < len(sound.gains) else 0.0 for k in range(frames)]
        points: list[Floats] = []
        seen = np.zeros(frames, bool)
        sharp: list[float] = []
        kept: dict[int, Pixels] = {}
        last = Landmarks(self.face.landmarks, 1.0)
        if driver.watched is not None:
            driver.watched.seen.clear()
            driver.watched.drawing = drawn
        for first in range(0, frames, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, frames))
            drives = [Drive(sound.window(k, window, "silence"), gains[k]) for k in numbers]
            rendered = driver.engine.render([state] * len(drives), drives)
            if not drawn:
                continue
            for k, each in zip(numbers, rendered, strict=True):
                picture = compose(self.face.photo, each)
                found = self._mesh.refined(picture, last)
                seen[k] = found.score >= LEAST_SCORE
                last = found if seen[k] else Landmarks(self.face.landmarks, 1.0)
                points.append(found.points)
                if k % SHARPNESS_EVERY == 0 and seen[k]:
                    sharp.append(_detail(picture, found.points) / max(self._sharp, 1e-6))
                if k in keep:
                    kept[k] = picture
        if driver.watched is not None and len(driver.watched.seen) != frames:
            raise RuntimeError("BuiltinEngine.render no longer draws each frame by posed(), where its motion is read")
        return Played(
            motion=np.stack(driver.watched.seen) if driver.watched is not None and frames else None,
            points=np.stack(points) if points else None,
            seen=seen if drawn else np.ones(frames, bool),
            sharpness=float(np.nanmedian(sharp)) if np.isfinite(sharp).any() else float("nan"),
            kept=kept,
        )

    def rest(self, driver: Driver, sound: Sound) -> Floats:
        """Opening, width and jaw of the drawn mouth at rest, (3,): what FaceMesh makes of lips that meet."""
        if id(driver) not in self._rest:
            still = Sound(sound.rate_hz, sound.duration_s, sound.mel, [])
            played = self.play(driver, still, 3, gated=True, drawn=True)
            self._rest[id(driver)] = np.median(self.mouth(played), axis=0).astype(np.float32)
        return self._rest[id(driver)]

    def mouth(self, played: Played) -> Floats:
        """Opening, width and jaw of drawn frames, (n, 3)."""
        if played.points is None:
            raise ValueError("nothing was drawn")
        return measured(played.points, self._basis)

    def lips(self, points: Floats) -> Floats:
        """Points of the lips without the pose of the head, (n, 40, 2), eye distances."""
        return laid(points, self._basis.mean)[:, list(LIPS), :2]


def _detail(picture: Pixels, points: Floats) -> float:
    """Mean size of the Laplacian on the lips and around them, without the inside of the mouth, grey levels."""
    eyes = [points[list(eye), :2].mean(axis=0) for eye in ((33, 133), (263, 362))]
    unit = float(np.linalg.norm(eyes[0] - eyes[1]))
    around = max(1, round(AROUND_LIPS * unit))
    low = np.floor(points[list(LIPS), :2].min(axis=0) - around).astype(int) - 2
    high = np.ceil(points[list(LIPS), :2].max(axis=0) + around).astype(int) + 3
    low, high = np.maximum(low, 0), np.minimum(high, picture.shape[1::-1])
    if (high - low).min() < 3:
        return float("nan")
    part = np.ascontiguousarray(picture[low[1] : high[1], low[0] : high[0]])
    shown = np.zeros(part.shape[:2], np.uint8)
    lips = np.rint(points[list(LIPS), :2] - low).astype(np.int32)
    outer, inner = lips[:20], lips[20:]
    for line, colour, grown in ((outer, 255, around), (inner, 0, max(1, round(INSIDE_MOUTH * unit)))):
        cv2.fillPoly(shown, [line], colour)
        cv2.polylines(shown, [line], isClosed=True, color=colour, thickness=2 * grown)
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(part, cv2.COLOR_BGR2GRAY), cv2.CV_32F))
    return float(detail[shown > 0].mean()) if shown.any() else float("nan")
