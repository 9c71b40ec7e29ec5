"""The sound stream: what comes, for whom, how long, and in step with the picture."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from flask import Flask

from services.streamer.answers import RefusedError
from services.streamer.feeds import OpusFile, WavFile, blueprint, pieces
from services.streamer.guard import Guard
from services.streamer.sound import MOST_LISTENERS, SoundHub
from tests.budgets import (
    FEED_SKEW_MS,
    WEB_GONE_S,
    WEB_STOP_S,
)
from tests.web.conftest import until
from tests.web.standin import CLAP_FRAMES, StandIn
from tests.web.watch import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy.typing as npt

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]
    Pcm16 = npt.NDArray[np.int16]

HEAD_BYTES = len(WavFile().head())
BEEP = 8_000
"""louder than anything but the beep of the stand-in"""


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes behind the head of the answer, or all until the end."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) - data.index(b"\r\n\r\n") - 4 < size:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data.partition(b"\r\n\r\n")[2]


def samples(wav: bytes) -> Pcm16:
    """The sound of a WAV stream that was cut off anywhere."""
    body = wav[HEAD_BYTES:]
    return np.frombuffer(body[: len(body) // 2 * 2], "<i2").astype(np.int16)


def seconds_of_wav(seconds: float) -> int:
    return HEAD_BYTES + round(32_000 * seconds)


class Ready:
    """A line that has always room."""

    rate = None

    def wait(self) -> None:
        """At once."""

    def sent(self, size: int, began_s: float) -> None:
        """Nothing to note."""


class Stalls(Ready):
    """A line that stands still for a second, once."""

    def __init__(self) -> None:
        self._waits = itertools.count()

    def wait(self) -> None:
        if next(self._waits) == 3:
            until_s = time.monotonic() + 1.0
            while time.monotonic() < until_s:
                time.sleep(0.01)


class TestBody:
    def test_a_wav_begins_with_a_head_that_says_what_it_is(self) -> None:
        head = WavFile().head()
        assert head[:4] == b"RIFF"
        assert head[8:16] == b"WAVEfmt "
        assert head[20:36] == bytes.fromhex("0100 0100 803e0000 007d0000 0200 1000".replace(" ", ""))
        assert b"synthetic" in head
        assert head.endswith(b"data\xff\xff\xff\xff")

    def test_opus_gives_a_page_for_each_piece(self) -> None:
        file = OpusFile()
        head = file.head()
        assert head.startswith(b"OggS")
        assert b"OpusHead" in head
        assert b"synthetic" in head
        quiet = np.zeros(320, np.int16)
        pages = [file.put(quiet) for _ in range(20)]
        file.close()
        assert all(page.startswith(b"OggS") and page.count(b"OggS") == 1 for page in pages[2:])

    def test_what_was_said_while_the_line_stood_still_is_left_out(self) -> None:
        hub = SoundHub()
        with hub.reader() as reader:
            body = pieces(hub, reader, Stalls(), WavFile())
            next(body)
            began_s = time.monotonic()
            for _ in range(5):
                next(body)
            took_s = time.monotonic() - began_s
            hub.close()
            assert list(body) == []
        assert took_s >= 1.0
        assert took_s < 1.0 + 5 * 0.02 + 2.0

    def test_an_end_ends_it_at_once(self) -> None:
        hub = SoundHub()
        with hub.reader() as reader:
            body = pieces(hub, reader, Ready(), WavFile())
            next(body)
            hub.close()
            assert list(body) == []


@pytest.fixture
def bare() -> Iterator[Flask]:
    """The routes without the server."""
    control = StandIn(publish=False)
    app = Flask("bare")
    app.register_blueprint(blueprint(control, Guard("127.0.0.1", 80)))
    app.register_error_handler(RefusedError, lambda error: (str(error), error.status))
    yield app
    control.close()


class TestAnswer:
    @pytest.mark.parametrize(
        ("query", "kind"), [("", "audio/wav"), ("?format=wav", "audio/wav"), ("?format=opus", "audio/ogg; codecs=opus")]
    )
    def test_head_tells_the_kind_and_takes_no_place(self, bare: Flask, query: str, kind: str) -> None:
        answer = bare.test_client().head("/audio_feed" + query)
        assert answer.status_code == 200
        assert answer.content_type == kind
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Synthetic"] == "yes"
        assert "Content-Length" not in answer.headers

    @pytest.mark.parametrize(
        ("query", "status", "words"),
        [
            ("?format=mp3", 400, "wav or opus"),
            ("?delay_ms=soon", 400, "from -200 to 2000"),
            ("?delay_ms=2001", 400, "from -200 to 2000"),
            ("?delay_ms=-201", 400, "from -200 to 2000"),
            ("?delay_ms=--1", 400, "from -200 to 2000"),
            ("?session=nobody", 404, "no session"),
            ("", 501, "scripts/run"),
            ("?delay_ms=-200", 501, "scripts/run"),
        ],
    )
    def test_what_cannot_be_is_refused_in_words(self, bare: Flask, query: str, status: int, words: str) -> None:
        answer = bare.test_client().get("/audio_feed" + query)
        assert answer.status_code == status
        assert words in answer.text

    def test_a_refused_listener_takes_no_place(self, bare: Flask) -> None:
        client = bare.test_client()
        for _ in range(MOST_LISTENERS + 1):
            assert client.get("/audio_feed").status_code == 501

    def test_the_picture_has_a_head_too(self, bare: Flask) -> None:
        answer = bare.test_client().head("/video_feed")
        assert (answer.status_code, answer.mimetype) == (200, "multipart/x-mixed-replace")


class TestServer:
    def test_the_sound_of_the_picture_comes_as_time_goes(self, serve: Serve) -> None:
        with serve("run=1", "clap=1") as server:
            sock = connect(server.url, "/audio_feed")
            began_s = time.monotonic()
            heard = samples(read(sock, seconds_of_wav(5.0)))
            took_s = time.monotonic() - began_s
            sock.close()
            counted = server.told()["sound"]
        assert took_s >= 4.9, "it came faster than it is heard"
        starts = np.flatnonzero((np.abs(heard[1:]) > BEEP) & (np.abs(heard[:-1]) <= BEEP))
        beeps = starts[np.flatnonzero(np.diff(starts, prepend=-16_000) > 8_000)]
        assert len(beeps) >= 2
        assert np.diff(beeps) == pytest.approx(640 * CLAP_FRAMES, abs=FEED_SKEW_MS * 16)
        assert sum(n for name, n in counted.items() if "skew" in name and not name.endswith("sum")) > 100

    def test_where_nothing_runs_it_is_silence(self, serve: Serve) -> None:
        with serve() as server:
            sock = connect(server.url, "/audio_feed")
            heard = samples(read(sock, seconds_of_wav(0.5)))
            sock.close()
        assert len(heard) >= 8_000
        assert not heard.any()

    @pytest.mark.parametrize("format_", ["wav", "opus"])
    def test_ffmpeg_reads_it(self, serve: Serve, tmp_path: Path, format_: str) -> None:
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            if os.environ.get("CI"):
                pytest.fail("ffmpeg is missing; under CI the stream must be read by it: apt-get install ffmpeg")
            pytest.skip("ffmpeg is missing: apt-get install ffmpeg")
        out = tmp_path / "heard.raw"
        with serve("run=1") as server:
            url = f"{server.url}audio_feed?format={format_}"
            command = [ffmpeg, "-v", "error", "-i", url, "-t", "2", "-ar", "16000", "-ac", "1", "-f", "s16le", str(out)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert (result.returncode, result.stderr) == (0, "")
            assert until(lambda: server.told()["listeners"] == 0, WEB_GONE_S)
        heard = np.frombuffer(out.read_bytes(), "<i2")
        assert len(heard) == 32_000
        spectrum = np.abs(np.fft.rfft(heard[8_000:24_000] * np.blackman(16_000)))
        assert int(spectrum.argmax()) == pytest.approx(1_000, abs=20), "the tone, its rate bent a little"

    def test_a_reader_that_stopped_holds_nobody_up_and_is_cut(self, serve: Serve) -> None:
        with serve("run=1") as server:
            stopped = connect(server.url, "/audio_feed", receive_buffer=4 * 1024)
            assert until(lambda: server.told()["listeners"] == 1, 5)
            other = connect(server.url, "/audio_feed")
            assert len(samples(read(other, seconds_of_wav(1.0)))) >= 16_000
            other.close()
            assert until(lambda: server.told()["listeners"] == 0, 2 * WEB_GONE_S)
            stopped.close()
            assert "Traceback" not in server.log.read_text()

    def test_one_listener_too_many_gets_words(self, serve: Serve) -> None:
        with serve() as server, ThreadPoolExecutor(16) as pool:
            socks = list(pool.map(lambda _: connect(server.url, "/audio_feed", 30.0), range(MOST_LISTENERS)))
            assert until(lambda: server.told()["listeners"] == MOST_LISTENERS, 30)
            answer = server.get("audio_feed")
            assert answer.status_code == 503
            assert f"{MOST_LISTENERS} listeners hear this session already" in answer.text
            for sock in socks:
                sock.close()
            assert until(lambda: server.told()["listeners"] == 0, WEB_GONE_S)
            again = connect(server.url, "/audio_feed")
            assert samples(read(again, seconds_of_wav(0.1))).size
            again.close()

    @pytest.mark.parametrize("format_", ["wav", "opus"])
    def test_stop_ends_it(self, serve: Serve, format_: str) -> None:
        with serve("run=1") as server, ThreadPoolExecutor(3) as pool:
            socks = [connect(server.url, f"/audio_feed?format={format_}", 20.0) for _ in range(3)]
            jobs = [pool.submit(read, sock, 10**9) for sock in socks]
            assert until(lambda: server.told()["listeners"] == 3, 5)
            began_s = time.monotonic()
            assert server.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began_s <= WEB_STOP_S
            assert all(job.result(10) for job in jobs)
            assert "Traceback" not in server.log.read_text()

    def test_a_session_that_is_deleted_ends_its_streams(self) -> None:
        control = StandIn(sessions=2)
        session = control.create("guest")
        with session.sound.reader() as reader:
            body = pieces(session.sound, reader, Ready(), WavFile())
            next(body)
            control.delete("guest")
            assert list(body) == []
        control.close()
