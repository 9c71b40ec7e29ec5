"""The routes over the real server."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from services.streamer.app import MAX_PHOTO_BYTES, MAX_SPEECH_S, read_wav
from tests.web.standin import drawing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

HTML = {"Accept": "text/html"}


def jpeg(words: bytes = b"") -> bytes:
    """A JPEG with words behind its end: the stand-in reads them, decoders do not."""
    return cv2.imencode(".jpg", drawing(0, 96))[1].tobytes() + words


def wav(samples: int = 1600, rate_hz: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(bytes(samples * channels * width))
    return buffer.getvalue()


def test_page_shows_the_state_without_scripts(server: Server) -> None:
    for path in ("", "requests"):
        answer = server.get(path)
        assert answer.status_code == 200
        for words in (
            "Choose a photo",
            'name="start"',
            'name="stop"',
            'name="clear"',
            "Demo speech",
            "Synthetic video",
        ):
            assert words in answer.text
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in policy
        assert "http" not in policy
        assert " style=" not in answer.text
        assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("form", "call"),
    [
        ({"start": "Start"}, ["start", None]),
        ({"stop": "Stop"}, ["stop", None]),
        ({"clear": "clear"}, ["clear", None]),
    ],
)
def test_requests_as_in_the_prototype(server: Server, form: dict[str, str], call: list[str | None]) -> None:
    answer = server.post("requests", data=form, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert server.calls()[-1] == call
    answer = server.post("requests", data=form)
    assert answer.json()["running"] is (call[0] == "start")
    server.post("requests", data={"clear": "clear"})


def test_start_with_a_source(server: Server) -> None:
    assert server.post("requests", data={"start": "Start", "source": "mic"}).json()["source"] == "mic"
    server.post("requests", data={"clear": "clear"})


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("requests", {}, 400),
        ("requests", {"start": "Start", "stop": "Stop"}, 400),
        ("requests", {"start": "Start", "source": "nothing"}, 409),
        ("source", {}, 400),
        ("source", {"source": "nothing"}, 409),
        ("face", {}, 400),
        ("face", {"index": "-1"}, 400),
        ("face", {"index": "64"}, 400),
        ("face", {"index": "٣"}, 400),
        ("face", {"index": "9" * 5000}, 400),
        ("face", {"index": "9"}, 409),
        ("requests", {"start": "x" * 100_000}, 413),
    ],
)
def test_wrong_forms_get_words(server: Server, path: str, form: dict[str, str], status: int) -> None:
    answer = server.post(path, data=form)
    assert answer.status_code == status
    assert len(answer.json()["error"]) > 10


def test_upload_by_form_and_by_script(server: Server) -> None:
    photo = jpeg()
    answer = server.post("upload", files={"image": ("../../x.jpg", photo)}, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    answer = server.post("upload", files={"image": photo}, data={"index": "2", "box": "10,20,300,400"})
    assert answer.status_code == 200
    assert answer.json()["face"]
    assert server.calls()[-1] == ["upload", [len(photo), 2, [10, 20, 300, 400]]]


@pytest.mark.parametrize(
    ("data", "form", "status", "words"),
    [
        (b"just text", {}, 415, "JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(100), {}, 415, "JPEG, PNG or WebP"),
        (b"", {}, 400, "empty"),
        (None, {}, 400, "No photo"),
        (jpeg(), {"index": "x"}, 400, "index"),
        (jpeg(), {"box": "1,2,3"}, 400, "box"),
        (jpeg(), {"box": "30,2,3,40"}, 400, "box"),
        (jpeg(), {"box": "1,2,3,99999999"}, 400, "box"),
        (jpeg(bytes(MAX_PHOTO_BYTES)), {}, 413, "10 MB"),
        (jpeg(bytes(MAX_PHOTO_BYTES + 3_000_000)), {}, 413, "10 MB"),
    ],
)
def test_bad_photos_get_words(
    server: Server, data: bytes | None, form: dict[str, str], status: int, words: str
) -> None:
    before = server.calls()
    files = {"image": ("photo.jpg", data)} if data is not None else {"other": ("photo.jpg", b"x")}
    answer = server.post("upload", files=files, data=form)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    page = server.post("upload", files=files, data=form, headers=HTML)
    assert page.status_code == status
    assert words in page.text
    assert [call for call in server.calls() if call not in before] == []


def test_speak(server: Server) -> None:
    answer = server.post("speak", data=wav(32_000), headers={"Content-Type": "audio/wav"})
    assert answer.json() == {"seconds": 2.0}
    assert server.calls()[-1] == ["speak", 32_000]
    server.post("requests", data={"clear": "clear"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav(rate_hz=44_100), "44100"),
        (wav(channels=2), "2 channels"),
        (wav(width=1), "8 bits"),
        (wav(0), "no sound"),
        (wav()[:-10], "cut off"),
        (wav()[:30], "not a sound file"),
        (b"OggS" + bytes(200), "not a sound file"),
        (b"", "not a sound file"),
        (wav(MAX_SPEECH_S * 16_000 + 1), "longer than 10 minutes"),
    ],
)
def test_other_sound_is_refused_with_words(server: Server, data: bytes, words: str) -> None:
    answer = server.post("speak", data=data, headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 415
    assert words in answer.json()["error"]


def test_read_wav_gives_the_samples() -> None:
    buffer = io.BytesIO()
    sound = np.array([0, 1, -1, 32767, -32768], np.int16)
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(sound.tobytes())
    np.testing.assert_array_equal(read_wav(buffer.getvalue()), sound)


def test_snapshot_is_the_picture(server: Server) -> None:
    answer = server.get("snapshot.jpg")
    assert answer.headers["X-Synthetic"] == "yes"
    assert answer.headers["Cache-Control"] == "no-store"
    picture = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (480, 480, 3)


def test_health_says_who_is_down(server: Server, serve: Callable[..., AbstractContextManager[Server]]) -> None:
    assert server.get("healthz").status_code == 200
    with serve("down=inference") as ill:
        answer = ill.get("healthz")
        assert answer.status_code == 503
        assert answer.json()["services"]["inference"]["alive"] is False
        assert answer.json()["services"]["streamer"]["alive"] is True
        assert "not answering" in ill.get("").text


def test_what_is_not_there(server: Server) -> None:
    assert server.get("nothing", headers=HTML).status_code == 404
    assert server.get("video_feed?session=other").status_code == 404
    assert server.get("upload").status_code == 405
    assert server.get("static/../app.py").status_code == 404
