"""Several sessions at once, on the whole product: each with its own face, sound and time line, and what leaves then."""

from __future__ import annotations

import json
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import requests

from services.streamer.service import LAST_WORDS, TELL_S
from tests.budgets import (
    INTERRUPT_EVENT_S,
    PUSHED_EVENT_S,
    RECOVERY_S,
    SESSION_FPS,
    SESSION_GONE_S,
)
from tests.rig.api import Api, next_of, speaker
from tests.rig.stack import Stack, until


def speech(seconds: float) -> bytes:
    """Something with the loudness and pitch of a voice."""
    at = np.arange(int(seconds * 16_000)) / 16_000
    voice = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 20)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * at))
    return bytes((voice * 4000).astype("<i2"))


def test_each_session_has_its_own_face_sound_and_state(stack: Stack, astronaut: bytes):
    api = Api(stack)
    api.create("a", source="demo", start=True)
    api.create("b")
    try:
        api.post("b/face", files={"image": ("photo.jpg", astronaut)})
        until(lambda: api.status("b")["face"]["state"] == "ready", RECOVERY_S, "the face of b")
        until(lambda: api.status("a")["latency_ms"] is not None, RECOVERY_S, "a speaks")
        until(lambda: api.status("a")["fps"] >= SESSION_FPS, RECOVERY_S, "25 pictures a second")
        a, b, default = api.status("a"), api.status("b"), stack.status()
        assert a["running"]
        assert not b["running"]
        assert a["face"]["is_demo"]
        assert not b["face"]["is_demo"]
        assert default["running"], "the others go on as they were"
        assert (b["width"], b["height"]) == (512, 512)
        with speaker(stack, "b") as line:
            line.send(speech(1.0))
            line.send(json.dumps({"type": "flush"}))
            next_of(line, "started", PUSHED_EVENT_S)
            until(lambda: api.status("b")["latency_ms"] is not None, RECOVERY_S, "b speaks")
            assert next_of(line, "ended", PUSHED_EVENT_S)["sample"] == 16_000
        api.post("a/stop")
        assert not api.status("a")["running"]
        assert stack.status()["running"]
    finally:
        for name in ("a", "b"):
            api.delete(name)
    assert api.names() == ["default"]


def test_an_interrupt_tells_how_far_it_was_heard(stack: Stack):
    api = Api(stack)
    api.create("agent")
    try:
        with speaker(stack, "agent") as line:
            whole = speech(20.0)
            for at in range(0, len(whole), 32_000):
                line.send(whole[at : at + 32_000])
            started = next_of(line, "started", PUSHED_EVENT_S)
            assert started["sample"] == 0
            began_s = time.monotonic()
            until(lambda: api.status("agent")["latency_ms"], RECOVERY_S, "the agent speaks")
            asked_s = time.monotonic()
            line.send(json.dumps({"type": "interrupt"}))
            cut = next_of(line, "interrupted", PUSHED_EVENT_S)
            assert time.monotonic() - asked_s < INTERRUPT_EVENT_S
            assert abs(cut["sample"] / 16_000 - (asked_s - began_s)) < INTERRUPT_EVENT_S
            # What comes now is heard at once: nothing of the rest stands before it.
            line.send(speech(0.5))
            line.send(json.dumps({"type": "flush"}))
            assert next_of(line, "ended", PUSHED_EVENT_S)["utterance"] == cut["utterance"] + 1
    finally:
        api.delete("agent")


def test_nothing_is_lost_when_the_capture_dies_while_sound_is_pushed(stack: Stack):
    api = Api(stack)
    api.create("agent")
    try:
        with speaker(stack, "agent") as line:
            line.send(speech(2.0))
            line.send(json.dumps({"type": "flush"}))
            next_of(line, "started", PUSHED_EVENT_S)
            stack.processes("audio_capture")[0].send_signal(signal.SIGKILL)
            assert next_of(line, "ended", RECOVERY_S)["sample"] == 32_000
    finally:
        api.delete("agent")
        until(stack.ready, RECOVERY_S, "audio_capture is back")


def test_a_session_that_is_made_anew_at_once_is_left_alone(stack: Stack):
    api = Api(stack)
    api.create("again", source="demo", start=True)
    until(lambda: api.status("again")["latency_ms"], RECOVERY_S, "it speaks")
    api.delete("again")
    api.create("again", source="demo", start=True)
    epoch = api.status("again")["epoch"]
    began_s = time.monotonic()
    until(lambda: time.monotonic() - began_s > LAST_WORDS * TELL_S, LAST_WORDS * TELL_S + 1.0, "the old one is told of")
    assert api.status("again")["epoch"] == epoch
    assert api.status("again")["fps"] > 0
    api.delete("again")


def test_a_photo_leaves_when_the_server_stops_and_when_nobody_can_delete_it(tmp_path: Path, astronaut: bytes):
    with Stack(tmp_path / "var", {"MOUTHPIECE_AUTOSTART": "no"}) as stack:
        api = Api(stack)
        for name in ("first", "second"):
            api.create(name)
            face = api.post(f"{name}/face", data=astronaut, headers={"Content-Type": "image/jpeg"})["face"]
            path = stack.folder / "faces" / f"{face}.face"
            until(path.exists, RECOVERY_S, "the face is kept")
            if name == "first":
                stack.processes("face_prep")[0].send_signal(signal.SIGKILL)
                api.delete(name)
                until(partial(is_gone, path), RECOVERY_S + SESSION_GONE_S, "it is deleted all the same")
        stack.stop()
        assert not path.exists()


def is_gone(path: Path) -> bool:
    return not path.exists()


def test_a_photo_leaves_with_its_session(stack: Stack, astronaut: bytes):
    api = Api(stack)
    kept = stack.folder / "faces"
    before = set(kept.iterdir())
    api.create("guest")
    face = api.post("guest/face", data=astronaut, headers={"Content-Type": "image/jpeg"})["face"]
    until(lambda: api.status("guest")["face"]["state"] == "ready", RECOVERY_S, "the face")
    path = kept / f"{face}.face"
    until(path.exists, RECOVERY_S, "the face is kept")
    until(lambda: face in worker_faces(stack), RECOVERY_S, "the worker holds the face")
    api.delete("guest")
    until(lambda: not path.exists(), SESSION_GONE_S, "the face is deleted")
    until(lambda: face not in worker_faces(stack), SESSION_GONE_S, "the worker forgets it")
    assert set(kept.iterdir()) <= before


def worker_faces(stack: Stack) -> str:
    services = {service["name"]: service for service in stack.status()["services"]}
    faces: str = services["inference"]["info"].get("faces", "")
    return faces


def test_sessions_survive_the_death_of_the_streamer(tmp_path: Path, astronaut: bytes):
    with Stack(tmp_path / "var", {"MOUTHPIECE_MAX_SESSIONS": "2"}) as stack:
        api = Api(stack)
        api.create("a", source="demo", start=True)
        refused = requests.post(api.url, json={"name": "b"}, timeout=5)
        assert refused.status_code == 429
        assert "MOUTHPIECE_MAX_SESSIONS" in refused.json()["error"]
        face = api.post("a/face", data=astronaut, headers={"Content-Type": "image/jpeg"})["face"]
        until(lambda: api.status("a")["face"]["state"] == "ready", RECOVERY_S, "the face of a")
        (worker,) = [p for p in stack.processes("streamer") if p.name() and p.children() == []][-1:]
        worker.send_signal(signal.SIGKILL)
        until(lambda: answers(api), RECOVERY_S, "the streamer is back")
        until(lambda: api.status("a")["latency_ms"], RECOVERY_S, "a speaks again")
        assert api.status("a")["face"]["id"] == face
        starts = b'mouthpiece_starts_total{service="streamer"} 2.0'
        until(lambda: starts in stack.get("/metrics"), RECOVERY_S, "supervisord began it anew, and that is counted")


def answers(api: Api) -> bool:
    try:
        return "a" in api.names()
    except (OSError, requests.RequestException):
        return False


def test_a_session_that_nobody_needs_ends(tmp_path: Path):
    with Stack(tmp_path / "var", {"MOUTHPIECE_SESSION_IDLE_S": "5"}) as stack:
        api = Api(stack)
        api.create("idle", source="demo", start=True)
        api.create("watched")
        with requests.get(f"{stack.url}/video_feed?session=watched", stream=True, timeout=10) as stream:
            parts = stream.iter_content(65_536)
            until(lambda: next(parts) and "idle" not in api.names(), 5 + SESSION_GONE_S, "it ends")
            assert api.names() == ["default", "watched"]
