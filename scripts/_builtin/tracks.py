"""What people in clips do with their faces while they speak: landmark tracks beside mel frames. No pixel is kept."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from scripts._render.audio import listen
from scripts._render.video import RenderError
from services.face_prep.detector import FaceDetector
from services.face_prep.landmarks import FaceMesh, Landmarks
from services.inference.builtin.basis import STABLE, MotionBasis, similarity

__all__ = [
    "LOWER_INNER",
    "NOSE_TIP",
    "RATE_FPS",
    "UPPER_INNER",
    "Track",
    "TrackError",
    "laid",
    "measured",
    "read_tracks",
]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Say = Callable[[str], None]

ROOT: Final = Path(__file__).resolve().parents[2]
MODELS: Final = ROOT / "models"
PEOPLE: Final = Path(__file__).with_name("people.csv")
"""Which files show the same person, by patterns of their names; who is in none of them is somebody of his own."""

SUFFIXES: Final = frozenset({".mp4", ".mov", ".mpg", ".avi", ".mkv", ".webm"})
RATE_FPS: Final = 25
LONGEST_SIDE_PX: Final = 720
LEAST_SCORE: Final = 0.5
MOST_STEP: Final = 0.35
"""A face whose middle leaps further than this from one frame to the next, eye distances, is another shot."""
LONGEST_HOLE: Final = 2
"""Frames without a face that are bridged."""
LEAST_FRAMES: Final = 40
PROCESSES: Final = 2
VERSION: Final = "1"
"""Changes with what is kept."""

UPPER_INNER: Final = (82, 13, 312)
LOWER_INNER: Final = (87, 14, 317)
NOSE_TIP: Final = 4
"""what is left of the head's own motion shows there"""
CHIN: Final = (152, 148, 377)


class TrackError(ValueError):
    """There is nothing to learn from; the text says why."""


@dataclass(frozen=True)
class Track:
    """One clip."""

    name: str
    """file name"""
    path: Path
    person: str
    corpus: str
    """folder of the clip"""
    points: Floats
    """landmarks in the middle of each video frame, (frames, 468, 3) px"""
    seen: Flags
    """where there is a face, (frames,)"""
    mel: Floats
    """(80, n), 80 frames a second, from the same moment on"""


def read_tracks(folder: Path, cache: Path, say: Say, *, people: Path = PEOPLE) -> list[Track]:
    """Track the faces of all clips below a folder.

    Args:
        folder: videos of one speaking person each, with their sound.
        cache: folder where tracks are kept; a clip that lies there is not read again.
        say: is told what goes on.
        people: CSV with the columns file (pattern of a name) and person.

    Returns:
        one for each clip that shows a face for `LEAST_FRAMES` frames and has a sound, in order of their paths.

    Raises:
        TrackError: no such clip.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    cache.mkdir(parents=True, exist_ok=True)
    with people.open(newline="", encoding="utf-8") as opened:
        patterns = [(row["file"], row["person"]) for row in csv.DictReader(opened)]
    stored = [cache / f"{_key(path)}.npz" for path in paths]
    missing = [(path, file) for path, file in zip(paths, stored, strict=True) if not file.is_file()]
    if missing:
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            for count, told in enumerate(pool.map(_keep, *zip(*missing, strict=True)), 1):
                say(f"{count}/{len(missing)} {told}")
    tracks = []
    for path, file in zip(paths, stored, strict=True):
        person = next((who for pattern, who in patterns if fnmatchcase(path.name, pattern)), path.stem)
        track = _load(file, path, person)
        if track is not None:
            tracks.append(track)
    if not tracks:
        raise TrackError(f"{folder}: no clip with a sound and a face for {LEAST_FRAMES} frames lies below it")
    return tracks


def laid(points: npt.NDArray[np.floating], mean: npt.NDArray[np.floating]) -> Floats:
    """Take the pose of the head from landmarks.

    Args:
        points: (n, 468, 3) px.
        mean: face on which they are laid, (468, 3), by the points that speech does not move.

    Returns:
        (n, 468, 3), canonical coordinates, eye distances.
    """
    stable = list(STABLE)
    target = mean[stable].astype(np.float32)
    out = np.empty(points.shape, np.float32)
    for index, each in enumerate(points):
        pose = similarity(each[stable], target)
        out[index] = pose.scale * (each @ pose.rotation.T) + pose.shift
    return out


def measured(points: Floats, basis: MotionBasis | None = None) -> Floats:
    """Measure opening, width and jaw without the pose of the head.

    Args:
        points: (n, 468, 3) px.
        basis: the motion basis; the one that is shipped if none is given.

    Returns:
        (n, 3), eye distances: between the inner lips, between the corners of the mouth, the chin's height below the
        eyes.
    """
    face = laid(points, (basis if basis is not None else MotionBasis.load(MODELS / "builtin")).mean)
    opening = (face[:, LOWER_INNER, 1] - face[:, UPPER_INNER, 1]).mean(axis=1)
    width = face[:, 291, 0] - face[:, 61, 0]
    jaw = face[:, CHIN, 1].mean(axis=1)
    return np.stack([opening, width, jaw], axis=1)


def _key(path: Path) -> str:
    """What a clip is known by: its name, size and date."""
    about = path.stat()
    told = f"{VERSION} {path.name} {about.st_size} {about.st_mtime_ns}"
    return f"{path.stem[:60]}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _keep(path: Path, file: Path) -> str:
    """Track a clip and keep the result, also if there is none; says what was found."""
    points, seen, mel, told = np.zeros((0, 468, 3), np.float32), np.zeros(0, bool), np.zeros((80, 0), np.float32), ""
    try:
        mel = listen(path, Fraction(RATE_FPS)).mel
        points, seen = _track(path)
    except RenderError as error:
        told = str(error)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        try:
            np.savez(part, points=points.astype(np.float32), seen=seen, mel=mel)
            part.close()
            Path(part.name).replace(file)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return told or f"{path.name}: {int(seen.sum())} of {len(seen)} frames"


def _load(file: Path, path: Path, person: str) -> Track | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            points, seen, mel = stored["points"], stored["seen"], stored["mel"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrackError(f"{file}: cannot be read ({error}); delete it, and it is made again") from error
    frames = min(len(points), mel.shape[1] * RATE_FPS // 80)
    if int(seen[:frames].sum()) < LEAST_FRAMES:
        return None
    return Track(path.name, path, person, path.parent.name, points[:frames], seen[:frames], mel)


def _track(path: Path) -> tuple[Floats, Flags]:
    """Landmarks in the middle of each frame of 25 a second, and where there are any."""
    found = list(_found(path))
    if len(found) < 2:
        return np.zeros((0, 468, 3), np.float32), np.zeros(0, bool)
    times = np.array([at for at, _ in found])
    wanted = (np.arange(int(times[-1] * RATE_FPS + 0.5)) + 0.5) / RATE_FPS
    held = np.array([points is not None for _, points in found])
    if not held.any():
        return np.zeros((0, 468, 3), np.float32), np.zeros(0, bool)
    faces = np.stack([points for _, points in found if points is not None])
    known = times[held]
    after = np.clip(np.searchsorted(known, wanted), 1, max(1, len(known) - 1))
    before = after - 1
    if len(known) == 1:
        return np.zeros((0, 468, 3), np.float32), np.zeros(0, bool)
    gap = known[after] - known[before]
    share = np.clip((wanted - known[before]) / gap, 0, 1).astype(np.float32)[:, None, None]
    points = faces[before] * (1 - share) + faces[after] * share
    step = float(np.median(np.diff(times)))
    near = (wanted > known[before] - step) & (wanted < known[after] + step)
    leap = np.linalg.norm(faces[after][:, 168] - faces[before][:, 168], axis=1)
    unit = np.linalg.norm(faces[before][:, 33] - faces[before][:, 263], axis=1)
    seen = near & (gap < (LONGEST_HOLE + 1.5) * step) & (leap < MOST_STEP * unit)
    return points.astype(np.float32), np.asarray(seen)


def _found(path: Path) -> Iterator[tuple[float, Floats | None]]:
    """Middle of each picture of a clip, s, and the landmarks of its face, px; None where no face is found."""
    cv2.setNumThreads(1)
    detector, mesh = _networks()
    capture = cv2.VideoCapture(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) or RATE_FPS
        last: Landmarks | None = None
        index = -1
        while True:
            ok, picture = capture.read()
            if not ok:
                return
            index += 1
            scale = min(1.0, LONGEST_SIDE_PX / max(picture.shape[:2]))
            if scale < 1:
                picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            bgr = picture.astype(np.uint8, copy=False)
            if last is None:
                faces = detector.detect(bgr)
                last = mesh.refined(bgr, mesh.rough(bgr, faces[0])) if faces else None
            if last is not None:
                last = mesh.refined(bgr, last)
                last = last if last.score >= LEAST_SCORE else None
            yield (index + 0.5) / rate, None if last is None else last.points / np.float32(scale)
    finally:
        capture.release()


_LOADED: list[tuple[FaceDetector, FaceMesh]] = []


def _networks() -> tuple[FaceDetector, FaceMesh]:
    """The face networks, once a process."""
    if not _LOADED:
        _LOADED.append((FaceDetector(MODELS / "face"), FaceMesh(MODELS / "face")))
    return _LOADED[0]
