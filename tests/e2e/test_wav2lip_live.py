"""Engine wav2lip in the whole pipeline, on a network of random weights in the published form."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tests.budgets import WAV2LIP_LIVE_CHANGE, WAV2LIP_LIVE_FRAMES, WAV2LIP_LIVE_S
from tests.rig.stack import Stack, until


def test_the_lower_face_is_drawn_live_and_the_choice_is_told(converted_wav2lip: Path, tmp_path: Path):
    settings = {"MOUTHPIECE_ENGINE": "wav2lip", "MOUTHPIECE_MODEL": str(converted_wav2lip)}
    with Stack(tmp_path / "var", settings) as stack:
        seen: dict[bytes, npt.NDArray[np.int16]] = {}

        def enough() -> bool:
            jpeg = fetch(stack.url + "/snapshot.jpg")
            image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            seen[jpeg] = image.astype(np.int16)
            return len(seen) >= WAV2LIP_LIVE_FRAMES

        until(enough, WAV2LIP_LIVE_S, "different pictures")
        (inference,) = [service for service in stack.status()["services"] if service["name"] == "inference"]
        metrics = fetch(stack.url + "/metrics").decode()
        log = stack.logs(100_000)
    first, *others = seen.values()
    change = np.max([np.abs(other - first).max(axis=2) for other in others], axis=0)
    height = len(change)
    assert change[height // 2 :].max() > WAV2LIP_LIVE_CHANGE, "the mouth moves"
    assert change[: height // 4].max() <= WAV2LIP_LIVE_CHANGE, "the hair stays"
    precision = inference["info"]["precision"]
    assert precision in ("f32", "bf16", "f16")
    assert re.search(rf'mouthpiece_engine_info{{.*engine="wav2lip".*precision="{precision}".*}} 1.0', metrics)
    assert f"engine wav2lip; device: CPU, threads: {inference['info']['threads']}, precision: {precision}" in log


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        body: bytes = answer.read()
    return body
