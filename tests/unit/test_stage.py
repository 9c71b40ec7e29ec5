"""Sessions that begin and end in the running loop, and the recordings that they leave."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.streamer import stage as stage_module
from services.streamer.mjpeg import FrameHub
from services.streamer.recordings import Recordings
from services.streamer.sound import SoundHub
from services.streamer.stage import Stage
from shared.settings import Settings
from tests.budgets import STAGE_WAIT_S, STATUS_CROWD, STATUS_LOOKS, STATUS_PATIENCE_S
from tests.rig.stack import free_ports, until

MOVIE = "20260101-120000-abcd.mp4"


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    stage = Stage(Settings(state_dir=str(folder), bus_port=free_ports(9), max_sessions=3), logging.getLogger("test"))
    try:
        yield stage
    finally:
        stage.close()


def recorded(folder: Path, name: str) -> Path:
    movie = folder / "recordings" / name / MOVIE
    movie.parent.mkdir(parents=True)
    movie.touch()
    return movie


def test_what_is_no_recording_of_a_session_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.WARNING)
    state, elsewhere = tmp_path / "var", tmp_path / "elsewhere"
    gone, stuck, kept, mounted = (recorded(state, name) for name in ("gone", "stuck", "default", "lost+found"))
    elsewhere.mkdir()
    (elsewhere / "mine").touch()
    (state / "recordings" / "linked").symlink_to(elsewhere)
    (state / "recordings" / "note").touch()
    delete = shutil.rmtree

    def refuse(path: Path) -> None:
        if path.name in {"stuck", "lost+found"}:  # as for who is not root
            raise PermissionError(13, "Permission denied")
        delete(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with staged(state) as stage:
        assert stage.sessions() == ["default"]
    assert not gone.parent.exists()
    assert stuck.exists()
    assert kept.exists()
    assert mounted.exists()
    assert (elsewhere / "mine").exists()
    assert (state / "recordings" / "linked").is_symlink()
    assert (state / "recordings" / "note").exists()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == "recordings of an ended session cannot be deleted session=stuck (Permission denied)"


def test_a_session_waits_for_the_recordings_of_the_last_one_of_its_name(tmp_path: Path):
    with staged(tmp_path) as stage, ThreadPoolExecutor(3) as pool:
        last = stage.create("a")
        movie = recorded(tmp_path, "a")
        held, here = threading.Event(), threading.Event()
        waiting = stage.streamer._commands

        def hold() -> None:
            here.set()
            assert held.wait(STAGE_WAIT_S)

        with last.recordings._lock:  # as a file does that takes its time to become whole
            pool.submit(stage.ask, hold)
            assert here.wait(STAGE_WAIT_S)
            deletion = pool.submit(stage.delete, "a")
            until(lambda: waiting.qsize() == 1, STAGE_WAIT_S, "the deletion stands in line")
            creation = pool.submit(stage.create, "a")
            until(lambda: waiting.qsize() == 2, STAGE_WAIT_S, "the creation stands behind it")
            held.set()
            stage.ask(lambda: None)
            assert stage.sessions() == ["default"]
            assert movie.exists()
        assert creation.result(STAGE_WAIT_S).recordings.list() == []
        deletion.result(STAGE_WAIT_S)
        assert stage.sessions() == ["default", "a"]


def test_what_a_session_recorded_is_deleted_once(tmp_path: Path):
    movie = recorded(tmp_path, "a")
    last = Recordings(movie.parent, FrameHub(1), SoundHub(1), "a")
    last.forget()
    assert not movie.parent.exists()
    recorded(tmp_path, "a")
    last.forget()
    assert movie.exists(), "this is the next one's"


def test_a_status_is_fresh_and_gathered_once_for_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with staged(tmp_path) as stage:
        session = stage.streamer.sessions["default"]
        before = stage.session().status()
        stage.streamer.command(lambda: session.change(running=not before.running))
        looks: list[None] = []
        look = stage._look
        monkeypatch.setattr(stage, "_look", lambda: looks.append(look()))
        monkeypatch.setattr(stage, "_looked_s", float("-inf"))
        with ThreadPoolExecutor(STATUS_CROWD) as crowd:
            told = list(crowd.map(lambda _: stage.session().status(), range(STATUS_CROWD)))
        assert {(status.running, status.epoch) for status in told} == {(not before.running, session.book.state.epoch)}
        assert 1 <= len(looks) <= STATUS_LOOKS


def test_a_loop_that_hangs_keeps_nobody_who_asks_for_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with staged(tmp_path) as stage:
        before = stage.session().status()
        monkeypatch.setattr(stage_module, "LOOK_WAIT_S", STATUS_PATIENCE_S)
        begun, ends = threading.Event(), threading.Event()

        def hang() -> bool:
            begun.set()
            return ends.wait(STAGE_WAIT_S)

        with ThreadPoolExecutor(1) as other:
            held = other.submit(stage.streamer.command, hang, STAGE_WAIT_S)
            assert begun.wait(STAGE_WAIT_S)
            monkeypatch.setattr(stage, "_looked_s", float("-inf"))
            told = stage.session().status()
            ends.set()
            assert held.result(STAGE_WAIT_S), "it hung until the end"
        assert told == before, "the last one that is known"
