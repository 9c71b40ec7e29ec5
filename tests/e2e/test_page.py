"""A person at the page: real Chromium, real services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.face_prep.detector import FaceDetector
from services.face_prep.landmarks import FaceMesh
from tests.budgets import MOUTH_CHANGE, MOUTH_STILL, OTHER_PICTURE, PAGE_WAIT_S, RECOVERY_S, SAME_PICTURE
from tests.rig.stack import ROOT, Stack, until

# Evaluated by the debugger: the page's own content policy forbids waiting functions that are strings.
PICTURE_IS_THERE = "() => window.mouthpiecePlayer?.hasPicture"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services as they are after a start without autostart."""
    settings = {"MOUTHPIECE_AUTOSTART": "no", "MOUTHPIECE_LIFE": "no"}
    with Stack(tmp_path_factory.mktemp("quiet") / "var", settings) as running:
        yield running


def shot(page: Any) -> npt.NDArray[np.uint8]:
    """What the person sees of the picture, BGR."""
    data = page.locator("#canvas").screenshot()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.uint8)


def other(page: Any, before: npt.NDArray[np.uint8]) -> float:
    """How far the middle of the picture, which no button hides, is from what it was; the first may be less sharp."""
    now = shot(page)
    if now.shape != before.shape:
        return 255.0
    height, width = now.shape[:2]
    middle = (slice(height // 5, height * 4 // 5), slice(width // 4, width * 3 // 4))
    return float(np.abs(now[middle].astype(int) - before[middle]).mean())


def mouth_of(image: npt.NDArray[np.uint8]) -> tuple[slice, slice]:
    """Where the mouth is, with a margin."""
    models = ROOT / "models" / "face"
    face = FaceDetector(models).detect(image)[0]
    points = FaceMesh(models).rough(image, face).points
    lips = points[[0, 17, 61, 291, 13, 14]]
    margin = 0.3 * float(np.ptp(lips[:, 0]))
    low, high = lips[:, :2].min(0) - margin, lips[:, :2].max(0) + margin
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def changes(page: Any, mouth: tuple[slice, slice], shots: int) -> tuple[float, float]:
    """Largest mean difference between shots within the mouth, and within the forehead and eyes above it."""
    taken = [shot(page).astype(np.float32) for _ in range(shots)]
    rows, columns = mouth
    high = rows.stop - rows.start
    brow = slice(max(0, rows.start - 3 * high), rows.start - high)
    inside = max(float(np.abs(a[mouth] - b[mouth]).mean()) for a in taken for b in taken)
    above = max(float(np.abs(a[brow, columns] - b[brow, columns]).mean()) for a in taken for b in taken)
    return inside, above


def test_upload_start_stop_clear(quiet: Stack, browser: Any, astronaut: bytes, tmp_path: Path):
    photo = tmp_path / "me.jpg"
    photo.write_bytes(astronaut)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    try:
        page.goto(quiet.url, wait_until="domcontentloaded")
        until(lambda: page.evaluate(PICTURE_IS_THERE), PAGE_WAIT_S, "the picture")
        demo = shot(page)
        page.set_input_files("#photo", str(photo))
        until(lambda: not quiet.status()["face"]["is_demo"], RECOVERY_S, "the photo came")
        until(lambda: quiet.status()["face"]["state"] == "ready", RECOVERY_S, "the face is ready")
        until(lambda: other(page, demo) > OTHER_PICTURE, RECOVERY_S, "the photo is seen")
        mouth = mouth_of(shot(page))

        page.click("#start")
        until(lambda: quiet.status()["running"], RECOVERY_S, "it runs")

        def only_the_mouth_moves() -> bool:
            inside, above = changes(page, mouth, 6)
            return inside > MOUTH_CHANGE and above < MOUTH_STILL and inside > 5 * above

        until(only_the_mouth_moves, RECOVERY_S, "only the mouth moves, once the picture is as sharp as it gets")

        page.click("#stop")
        until(lambda: not quiet.status()["running"], RECOVERY_S, "it stops")
        until(lambda: changes(page, mouth, 4)[0] < MOUTH_STILL, RECOVERY_S, "the mouth is still")

        page.click("#clear")
        until(lambda: quiet.status()["face"]["is_demo"], RECOVERY_S, "the demo face")
        until(lambda: other(page, demo) < SAME_PICTURE, RECOVERY_S, "the demo face is seen")
    finally:
        page.close()
    assert not problems


def test_a_sound_file_of_the_persons_own_is_spoken(quiet: Stack, browser: Any, tmp_path: Path):
    from tests.rig.voices import RATE_HZ, paused_speech, write_wav

    pcm = paused_speech()[: 4 * RATE_HZ]
    wav = write_wav(tmp_path / "mine.wav", pcm)
    page = browser.new_page()
    try:
        page.goto(quiet.url, wait_until="domcontentloaded")
        until(lambda: page.evaluate(PICTURE_IS_THERE), PAGE_WAIT_S, "the picture")
        page.set_input_files("#sound", str(wav))
        until(lambda: quiet.status()["running"] and quiet.status()["source"] == "network", RECOVERY_S, "it is spoken")
        until(lambda: (quiet.status()["level_db"] or -99) > -40, RECOVERY_S, "it is heard")
        until(lambda: not quiet.status()["running"], 2 * RECOVERY_S, "it ends by itself")
    finally:
        page.close()
