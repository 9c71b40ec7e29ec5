"""The mark in the picture stays on top of a head that fills it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.budgets import MARK_LETTERS, MARK_MOVES, MARK_SECONDS
from tests.rig.stack import ROOT, Stack, until
from tests.rig.viewer import picture, record


def test_a_head_that_moves_does_not_cover_the_mark(tmp_path: Path):
    demo = cv2.imread(str(ROOT / "services/face_prep/assets/demo_face.png"))
    assert demo is not None
    _, close = cv2.imencode(".png", demo[150:620, 230:610])
    with Stack(tmp_path / "var", {"MOUTHPIECE_MARK": "synthetic"}) as stack:
        status, told = stack.upload(close.tobytes(), "close.png")
        assert status == 200, told
        until(lambda: stack.status()["face"]["state"] == "ready", 20, "the face is ready")
        stack.post("/requests", {"start": "Start", "source": "demo"})
        until(lambda: stack.status()["latency_ms"], 20, "the face speaks")
        shots = [picture(shot).astype(int) for shot in record(stack.url + "/video_feed", MARK_SECONDS)]
    corner = np.stack([shot[-60:, -150:] for shot in shots])
    whole = np.stack([shot[60:200] for shot in shots])
    assert np.abs(np.diff(whole, axis=0)).max() > MARK_MOVES  # it does move
    # White letters with a black rim, always the same ones.
    assert ((corner > 200).all(axis=-1).sum(axis=(1, 2)) > MARK_LETTERS).all()
    letters = (corner > 200).all(axis=(0, -1))
    assert letters.sum() > MARK_LETTERS
