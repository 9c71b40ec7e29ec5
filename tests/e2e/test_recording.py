"""A recording of the whole product: lips in step with the voice, and what a kill leaves of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import requests

from tests.budgets import RECORDED_FIT, RECORDED_LAG_S, RECORDED_S, RECORDING_CUT_S, RECOVERY_S
from tests.rig.api import Api
from tests.rig.lips import follow, loudness, openings
from tests.rig.stack import Stack, until

SIDE_PX = 416


@pytest.fixture
def still(tmp_path: Path) -> Any:
    """The services with the demo speech and a face that does nothing of its own accord."""
    with Stack(tmp_path / "var", {"MOUTHPIECE_LIFE": "no"}) as running:
        until(lambda: running.status()["latency_ms"] is not None, RECOVERY_S, "the face speaks")
        yield running


def entry(api: Api) -> dict[str, Any]:
    recordings: list[dict[str, Any]] = requests.get(f"{api.url}/default/recordings", timeout=5).json()["recordings"]
    return recordings[0]


def fetched(api: Api, folder: Path) -> Path:
    path = folder / "film.mp4"
    path.write_bytes(requests.get(f"{api.url}/default/recordings/{entry(api)['id']}.mp4", timeout=20).content)
    return path


def read(path: Path) -> tuple[list[float], list[npt.NDArray[np.uint8]], npt.NDArray[np.int16]]:
    """Times of the pictures, s; pictures, small; sound, 16 kHz."""
    times, pictures, sound = [], [], []
    with av.open(str(path)) as film:
        assert "Synthetic" in str(film.metadata)
        for frame in film.decode(video=0):
            times.append(float(frame.time))
            small = cv2.resize(frame.to_ndarray(format="bgr24"), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
            pictures.append(small.astype(np.uint8))
    with av.open(str(path)) as film:
        for piece in film.decode(audio=0):
            assert piece.sample_rate == 16_000
            sound.append(piece.to_ndarray()[0])
    return times, pictures, (np.concatenate(sound) * 32767).astype(np.int16)


def test_the_lips_in_a_recording_follow_its_voice(
    still: Stack, tmp_path: Path, record_property: Callable[[str, object], None]
):
    api = Api(still)
    api.post("default/recordings")
    until(lambda: entry(api)["seconds"] >= RECORDED_S, 3 * RECORDED_S, "it is recorded")
    assert still.status()["recording"] == entry(api)["id"]
    api.post("default/recordings/stop")
    times, pictures, pcm = read(fetched(api, tmp_path))
    assert np.ptp(times) == pytest.approx(len(pcm) / 16_000, abs=0.2)
    found = follow(loudness(pcm), 0.0, np.array(times), openings(pictures))
    record_property("recorded r", found.correlation)
    record_property("recorded lag s", found.lag_s)
    assert found.correlation > RECORDED_FIT
    assert abs(found.lag_s) <= RECORDED_LAG_S


def test_a_killed_streamer_leaves_a_recording_that_plays(still: Stack, tmp_path: Path):
    api = Api(still)
    api.post("default/recordings")
    until(lambda: entry(api)["seconds"] >= 2.0, RECOVERY_S, "it is recorded")
    seconds = entry(api)["seconds"]
    for process in reversed(still.processes("streamer")):
        process.send_signal(signal.SIGKILL)
    until(partial(unfinished, api), RECOVERY_S, "the streamer is back and lists it")
    times, _, pcm = read(fetched(api, tmp_path))
    assert times[-1] >= seconds - RECORDING_CUT_S
    assert len(pcm) / 16_000 >= seconds - RECORDING_CUT_S


def unfinished(api: Api) -> bool:
    try:
        return bool(entry(api)["state"] == "unfinished")
    except (OSError, requests.RequestException):
        return False
