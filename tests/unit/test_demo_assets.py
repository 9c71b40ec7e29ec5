"""The demo face is found, its mouth closed; the demo speech has the promised length, level and pauses.

Both are our own: scripts/make_demo_face draws one from numbers, scripts/make_demo_speech has flite say our own words.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from services.face_prep.detector import Detection, FaceDetector
from services.face_prep.landmarks import FaceMesh
from tests import budgets

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "services/face_prep/assets/demo_face.png"
SPEECH = ROOT / "services/audio_capture/assets/demo_speech.flac"
MODELS = ROOT / "models/face"

# points of FaceMesh
EYE_CORNERS = (33, 263)
MOUTH_CORNERS = (61, 291)
INNER_LIPS = ((13, 14), (82, 87), (312, 317))
FOREHEAD, CHIN = 10, 152
JAW = (58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288)


def missing(reason: str) -> None:
    """Skip what this machine cannot do; under CI nothing is skipped."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def picture() -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(FACE.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return np.asarray(image, np.uint8)


@cache
def found() -> tuple[list[Detection], npt.NDArray[np.float32], float]:
    """Faces, points (468, 3) of the largest, score of the mesh."""
    if not MODELS.is_dir():
        missing(f"the face models are not in {MODELS}; run scripts/fetch_face_models once")
    faces = FaceDetector(MODELS).detect(picture())
    assert faces, "no face found"
    mesh = FaceMesh(MODELS)
    marks = mesh.refined(picture(), mesh.rough(picture(), faces[0]))
    return faces, marks.points, marks.score


@cache
def painter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_demo_face", ROOT / "scripts/_demo_face.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def speech() -> npt.NDArray[np.float64]:
    samples, rate_hz = soundfile.read(SPEECH, dtype="float64")
    assert rate_hz == 16_000
    assert samples.ndim == 1
    return np.asarray(samples, np.float64)


def silences(samples: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Start and end, s, of each stretch in which every 10 ms stays under the silence level."""
    blocks = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    quiet = np.abs(blocks).max(axis=1) < 10 ** (budgets.DEMO_SPEECH_SILENCE_DBFS / 20)
    runs: list[tuple[float, float]] = []
    at = 0
    for is_quiet, group in itertools.groupby(quiet):
        length = len(list(group))
        if is_quiet:
            runs.append((at / 100, (at + length) / 100))
        at += length
    return runs


def test_the_face_is_a_picture_of_the_promised_size() -> None:
    height, width, channels = picture().shape
    assert channels == 3
    assert min(height, width) >= budgets.DEMO_FACE_LEAST_SIDE_PX
    assert max(height, width) <= budgets.DEMO_FACE_MOST_SIDE_PX
    assert FACE.stat().st_size <= budgets.DEMO_FACE_MAX_BYTES
    assert (width, height) == (painter().SIZE, painter().SIZE)


def test_one_face_is_found_surely() -> None:
    faces, points, mesh_score = found()
    assert len(faces) == 1
    assert faces[0].score >= budgets.DEMO_FACE_SCORE
    assert mesh_score >= budgets.DEMO_FACE_SCORE
    low, high = budgets.DEMO_FACE_HEIGHT_SHARE
    # the uppermost point of the mesh lies on the forehead, so the box of BlazeFace adds nothing to it
    assert low <= (points[CHIN, 1] - points[FOREHEAD, 1]) / len(picture()) <= high


def test_the_mouth_is_closed() -> None:
    _, points, _ = found()
    eyes = np.linalg.norm(points[EYE_CORNERS[0], :2] - points[EYE_CORNERS[1], :2])
    gap = max(np.linalg.norm(points[a, :2] - points[b, :2]) for a, b in INNER_LIPS)
    assert gap <= budgets.DEMO_FACE_LIP_GAP * eyes


def test_the_mesh_lies_on_the_drawing() -> None:
    _, points, _ = found()
    middle = painter().MIDDLE
    drawn = {
        MOUTH_CORNERS[0]: (middle - painter().MOUTH_CORNER[0], painter().MOUTH_CORNER[1]),
        MOUTH_CORNERS[1]: (middle + painter().MOUTH_CORNER[0], painter().MOUTH_CORNER[1]),
        EYE_CORNERS[0]: (middle - painter().EYE_CORNER[0], painter().EYE_CORNER[1]),
        EYE_CORNERS[1]: (middle + painter().EYE_CORNER[0], painter().EYE_CORNER[1]),
    }
    for point, place in drawn.items():
        assert np.linalg.norm(points[point, :2] - place) <= budgets.DEMO_FACE_POINT_PX, f"point {point}"
    right = painter().spline(painter().FACE)
    outline = np.vstack([right, right * (-1, 1)]) + painter().ORIGIN
    away = [np.linalg.norm(outline - points[point, :2], axis=1).min() for point in JAW]
    assert max(away) <= budgets.DEMO_FACE_JAW_PX


def test_the_speech_has_the_promised_length_and_level() -> None:
    low, high = budgets.DEMO_SPEECH_S
    assert low <= len(speech()) / 16_000 <= high
    assert SPEECH.stat().st_size <= budgets.DEMO_SPEECH_MAX_BYTES
    peak_dbfs = 20 * np.log10(np.abs(speech()).max())
    assert abs(peak_dbfs - budgets.DEMO_SPEECH_PEAK_DBFS) <= budgets.DEMO_SPEECH_PEAK_TOLERANCE_DB


def test_the_speech_has_real_pauses_and_quiet_ends() -> None:
    runs = silences(speech())
    end = len(speech()) / 16_000
    (first, lead), *between, (tail, last) = runs
    assert first == 0
    assert abs(lead - budgets.DEMO_SPEECH_LEAD_S) <= budgets.DEMO_SPEECH_EDGE_S
    assert abs(end - tail - budgets.DEMO_SPEECH_TAIL_S) <= budgets.DEMO_SPEECH_EDGE_S
    assert abs(end - last) <= 0.01
    pauses = [stop - start for start, stop in between if stop - start >= budgets.DEMO_SPEECH_LEAST_PAUSE_S]
    assert len(pauses) >= budgets.DEMO_SPEECH_LEAST_PAUSES


def test_the_words_of_the_speech_lie_beside_it() -> None:
    assert "Mouthpiece" in SPEECH.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_script_makes_the_same_speech_again(tmp_path: Path) -> None:
    if shutil.which("flite") is None:
        missing("flite is not installed (apt install flite)")
    again = tmp_path / "again.flac"
    command = [sys.executable, str(ROOT / "scripts/make_demo_speech"), "--out", str(again)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    samples, _ = soundfile.read(again, dtype="float64")
    assert len(samples) == len(speech())
    assert np.abs(samples - speech()).max() <= budgets.DEMO_SPEECH_REPEAT_ERROR
    assert again.with_suffix(".txt").read_bytes() == SPEECH.with_suffix(".txt").read_bytes()


def test_without_flite_the_script_says_what_to_do(tmp_path: Path) -> None:
    again = tmp_path / "again.flac"
    command = [sys.executable, str(ROOT / "scripts/make_demo_speech"), "--out", str(again)]
    done = subprocess.run(
        command, check=False, timeout=60, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "apt install flite" in done.stderr
    assert list(tmp_path.iterdir()) == []
