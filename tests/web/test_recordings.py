"""Recordings over the real server: begin, end, fetch, delete, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests

from services.streamer import recordings
from tests.budgets import RECORDING_CUT_S, RECORDING_LENGTH_S, RECORDING_SKEW_S, RECORDING_WAIT_S
from tests.process.test_recorder import decoded
from tests.web.conftest import until
from tests.web.standin import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from services.streamer.mjpeg import Frame
    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]

DEFAULT = "api/sessions/default/recordings"


def delete(server: Server, path: str) -> requests.Response:
    return requests.delete(server.url + path, timeout=10)


def start(server: Server, where: str = DEFAULT) -> dict[str, Any]:
    assert until(lambda: server.get("snapshot.jpg").status_code == 200, RECORDING_WAIT_S)
    answer = server.post(where)
    assert answer.status_code == 201, answer.text
    begun: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/{where}/{begun['id']}"
    return begun


def grown(server: Server, seconds: float, where: str = DEFAULT) -> None:
    """Wait until the newest recording is that long."""
    assert until(lambda: server.get(where).json()["recordings"][0]["seconds"] >= seconds, RECORDING_WAIT_S)


def probed(path: Path) -> dict[str, Any]:
    words = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_begin_end_fetch_delete(serve: Serve, tmp_path: Path) -> None:
    with serve("run=", "clap=") as server:
        assert server.get(DEFAULT).json() == {"current": "", "recordings": []}
        begun = start(server)
        assert begun["state"] == "recording"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", begun["started"])
        assert server.get(DEFAULT).json()["current"] == begun["id"]
        assert server.get("api/status").json()["recording"] == begun["id"]
        assert server.told()["viewers"] == []
        grown(server, 4.5)
        early = server.get(begun["url"][1:])
        ended = server.post(DEFAULT + "/stop").json()
        assert ended["id"] == begun["id"]
        assert ended["state"] == "finished"
        assert ended["text"] == ""
        assert server.get(DEFAULT).json() == {"current": "", "recordings": [ended]}
        assert server.get(f"{DEFAULT}/{begun['id']}").json() == ended

        whole = server.get(ended["url"][1:])
        assert whole.status_code == 200
        assert whole.headers["Content-Type"] == "video/mp4"
        assert whole.headers["Content-Disposition"] == f"attachment; filename=mouthpiece-{begun['id']}.mp4"
        assert whole.headers["X-Synthetic"] == "yes"
        assert whole.headers["Cache-Control"] == "no-store"
        assert len(whole.content) == ended["bytes"]
        part = server.get(ended["url"][1:], headers={"Range": "bytes=100-199"})
        assert part.status_code == 206
        assert part.content == whole.content[100:200]
        assert server.get(ended["url"][1:], headers={"Range": "bytes=99999999-"}).status_code == 416

        for data in (whole.content, early.content):
            movie = tmp_path / "movie.mp4"
            movie.write_bytes(data)
            streams = {s["codec_type"]: s for s in probed(movie)["streams"]}
            assert (streams["video"]["codec_name"], streams["audio"]["codec_name"]) == ("h264", "aac")
            assert streams["video"]["avg_frame_rate"] == "25/1"
        movie.write_bytes(whole.content)
        assert float(probed(movie)["format"]["duration"]) == pytest.approx(ended["seconds"], abs=RECORDING_LENGTH_S)
        film = decoded(movie)
        pairs = [(f, c) for f in film.flashes() for c in film.clicks() if abs(f - c) < 0.5]
        assert len(pairs) >= 2
        assert max(abs(flash - click) for flash, click in pairs) < RECORDING_SKEW_S, pairs

        thumbnail = server.get(ended["thumbnail"][1:])
        assert thumbnail.headers["Content-Type"] == "image/jpeg"
        assert thumbnail.headers["X-Synthetic"] == "yes"
        assert thumbnail.content[:3] == b"\xff\xd8\xff"

        assert delete(server, f"{DEFAULT}/{begun['id']}").status_code == 204
        assert server.get(DEFAULT).json()["recordings"] == []
        for path in (ended["url"][1:], ended["thumbnail"][1:], f"{DEFAULT}/{begun['id']}"):
            answer = server.get(path)
            assert answer.status_code == 404
            assert "no such recording" in answer.json()["error"]
        assert delete(server, f"{DEFAULT}/{begun['id']}").status_code == 404


def test_refusals(serve: Serve) -> None:
    with serve() as server:
        assert server.get("api/sessions/nobody/recordings").status_code == 404
        refused = server.post(DEFAULT + "/stop")
        assert (refused.status_code, refused.json()) == (409, {"error": "Nothing is being recorded."})
        start(server)
        refused = server.post(DEFAULT)
        assert refused.status_code == 409
        assert "already" in refused.json()["error"]
        assert server.post(DEFAULT, headers={"Origin": "http://elsewhere.example"}).status_code == 403
        for path in ("..%2Fdefault", "x.mp4", "20260101-000000-0000%2F..%2F..", "20260101-000000-000g.mp4"):
            assert server.get(f"{DEFAULT}/{path}").status_code == 404
        assert server.get(DEFAULT + "/stop").status_code == 405


def test_a_kill_costs_at_most_the_last_second(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with serve("run=", "clap=", f"folder={folder}") as server:
        begun = start(server)
        began_s = time.monotonic()
        grown(server, 4.0)
        length_s = time.monotonic() - began_s
        master = psutil.Process(server.process.pid)
        for process in [*master.children(recursive=True), master]:
            process.kill()
        server.process.wait(RECORDING_WAIT_S)
    movie = folder / "default" / f"{begun['id']}.mp4"
    film = decoded(movie)
    assert film.times[-1] > length_s - RECORDING_CUT_S
    assert len(film.pcm) / 16_000 > length_s - RECORDING_CUT_S
    assert abs(film.flashes()[0] - film.clicks()[0]) < RECORDING_SKEW_S
    with serve(f"folder={folder}") as server:
        (left,) = server.get(DEFAULT).json()["recordings"]
        assert left["state"] == "unfinished"
        assert length_s - RECORDING_CUT_S < left["seconds"] < length_s + RECORDING_LENGTH_S
        assert server.get(left["url"][1:]).content == movie.read_bytes()
        assert server.get(left["thumbnail"][1:]).status_code == 200
        assert server.stop() == 0


def test_a_stop_of_the_server_finishes_the_file(serve: Serve, tmp_path: Path) -> None:
    with serve("run=", f"folder={tmp_path / 'kept'}") as server:
        start(server)
        grown(server, 1.0)
        assert server.stop() == 0
    with serve(f"folder={tmp_path / 'kept'}") as server:
        assert [r["state"] for r in server.get(DEFAULT).json()["recordings"]] == ["finished"]


def test_a_deleted_session_takes_its_recordings_along(serve: Serve, tmp_path: Path) -> None:
    with serve(f"folder={tmp_path}") as server:
        assert server.post("api/sessions", json={"name": "guest"}).status_code == 201
        where = "api/sessions/guest/recordings"
        assert until(lambda: server.get("snapshot.jpg?session=guest").status_code == 200, RECORDING_WAIT_S)
        answer = server.post(where)
        assert answer.status_code == 201
        assert len(list((tmp_path / "guest").iterdir())) == 2
        assert delete(server, "api/sessions/guest").status_code == 204
        assert not (tmp_path / "guest").exists()
        assert server.get(where).status_code == 404


def test_without_a_thumbnail_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _frame: Frame) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    session = Session(folder=tmp_path)
    try:
        assert until(session.frames.latest, RECORDING_WAIT_S)
        monkeypatch.setattr(recordings, "_write_thumbnail", full)
        with pytest.raises(ValueError, match="Nothing was begun"):
            session.recordings.start()
        assert session.recordings.current == ""
        assert session.recordings.list() == []
        assert session.sound.listeners == 0
    finally:
        session.close()
