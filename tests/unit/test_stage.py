"""The sessions of the streamer, and the recordings that they leave."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.streamer.stage import Stage
from shared.settings import Settings
from tests.rig.stack import free_ports

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
