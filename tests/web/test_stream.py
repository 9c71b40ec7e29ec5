"""The stream: shared encodings, slow and gone viewers, the end of the server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil
import pytest

from services.streamer import line as line_module
from services.streamer.line import TcpLine
from services.streamer.mjpeg import (
    FIRST_RUNG,
    REPEAT_S,
    RUNGS,
    SHARPEN_FRAMES,
    TRIAL_FRAMES,
    TRIAL_S,
    Frame,
    FrameHub,
    HubClosedError,
    TooManyViewersError,
    Viewer,
    parts,
)
from shared.service import EXIT_FAILED
from tests.budgets import WEB_GONE_S, WEB_SLOW_BYTES_PER_S, WEB_START_S, WEB_STOP_S, WEB_VIEWERS
from tests.web.conftest import ROOT, until
from tests.web.standin import drawing
from tests.web.watch import connect, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.web.conftest import Server

    Serve = Callable[..., AbstractContextManager[Server]]


class OpenLine:
    """A line that has always room."""

    rate = None

    def wait(self) -> None:
        """At once."""

    def sent(self, size: int, began_s: float) -> None:
        """Nothing to note."""


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a real TCP connection: ours, the viewer's (with a small buffer)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            yield ours, theirs


class TestHub:
    def test_all_viewers_share_one_encoding(self) -> None:
        hub = FrameHub()
        frame = Frame(1, drawing(1))
        barrier = threading.Barrier(WEB_VIEWERS)

        def look(_: int) -> bytes:
            barrier.wait(10)
            return hub.jpeg(frame, RUNGS[0])

        with ThreadPoolExecutor(WEB_VIEWERS) as pool:
            jpegs = list(pool.map(look, range(WEB_VIEWERS)))
        assert hub.encodes == 1
        assert len(set(map(id, jpegs))) == 1

    def test_still_picture_is_sent_again_but_not_encoded_again(self) -> None:
        hub = FrameHub()
        frame = Frame(1, drawing(1))
        with hub.viewer() as viewer:
            body = parts(hub, viewer, OpenLine())
            sent = []
            for _ in range(3):
                hub.publish(frame)
                sent.append(next(body))
        assert hub.encodes == 1
        assert viewer.sent == 2, "the third is still under way"
        assert viewer.skipped == 0
        assert all(hub.jpeg(frame, RUNGS[FIRST_RUNG]) in part for part in sent)

    def test_last_frame_comes_again_when_nothing_is_published(self) -> None:
        hub = FrameHub()
        hub.publish(Frame(7, drawing(1)))
        with hub.viewer() as viewer:
            assert viewer.next(0.01) is viewer.next(0.01)

    def test_still_picture_that_could_be_sharper_is_repeated_fast_for_a_while(self) -> None:
        hub = FrameHub()
        hub.publish(Frame(7, drawing(1)))
        with hub.viewer() as viewer:
            viewer.sent, viewer.rung = TRIAL_FRAMES + 1, FIRST_RUNG
            assert viewer.next(0.0) is not None
            fast = 0
            while viewer.repeat_s < REPEAT_S:
                fast += 1
                viewer.next(0.0)
            assert fast == SHARPEN_FRAMES
            hub.publish(Frame(8, drawing(2)))
            viewer.next(0.0)
            assert viewer.repeat_s == TRIAL_S, "another picture"
            viewer.rung = 0
            assert viewer.repeat_s == REPEAT_S, "sharper it does not get"

    def test_rung_of_a_line_that_was_taken_for_slow_on_trial_is_left_at_once(self) -> None:
        hub = FrameHub()
        hub.publish(Frame(7, drawing(1)))
        with hub.viewer() as viewer:
            viewer.rung = FIRST_RUNG
            hub.jpeg(Frame(7, drawing(1)), RUNGS[FIRST_RUNG])
            viewer.choose(1.0, first=False)
            assert viewer.rung == len(RUNGS) - 1
            viewer.sent = TRIAL_FRAMES
            rungs = []
            for _ in RUNGS:
                viewer.choose(1e9, first=not viewer.settled)
                rungs.append(viewer.rung)
        assert rungs == [*range(len(RUNGS) - 2, -1, -1), 0]

    def test_slow_viewer_takes_the_newest_and_counts_what_it_missed(self) -> None:
        hub = FrameHub()
        with hub.viewer() as viewer:
            hub.publish(Frame(0, drawing(0, 96)))
            assert viewer.next() is not None
            for seq in range(1, 11):
                hub.publish(Frame(seq, drawing(seq, 96)))
            newest = viewer.next()
            assert newest is not None
            assert newest.frame.seq == 10
            assert viewer.skipped == 9

    def test_boundary_stands_behind_each_picture(self) -> None:
        hub = FrameHub()
        hub.publish(Frame(1, drawing(1)))
        with hub.viewer() as viewer:
            first = next(parts(hub, viewer, OpenLine()))
        assert first.startswith(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: ")
        assert first.endswith(b"\xff\xd9\r\n--frame\r\n")
        assert b"X-Synthetic: yes" in first

    def test_viewers_are_bounded_and_freed(self) -> None:
        hub = FrameHub(1)
        with hub.viewer(), pytest.raises(TooManyViewersError, match="1 viewers are watching"), hub.viewer():
            pass
        with hub.viewer():
            assert hub.viewers == 1
        assert hub.viewers == 0

    def test_closing_ends_all_waiting_viewers(self) -> None:
        hub = FrameHub()
        with hub.viewer() as viewer, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(viewer.next, 60.0)
            hub.close()
            with pytest.raises(HubClosedError):
                waiting.result(10)
        with pytest.raises(HubClosedError), hub.viewer():
            pass

    def test_quality_follows_the_line_down_at_once_and_up_with_patience(self) -> None:
        hub = FrameHub()
        frame = Frame(1, drawing(1, noise=True))
        best = len(hub.jpeg(frame, RUNGS[0]))
        viewer = Viewer(hub, 1)
        viewer.choose(best * 1.0, first=False)
        assert viewer.rung > 0
        low = viewer.rung
        assert hub.sizes()[low] <= best * 0.2
        viewer.choose(best * 100.0, first=False)
        assert viewer.rung == low
        for _ in range(100):
            viewer.choose(best * 100.0, first=False)
        assert viewer.rung == 0

    def test_smaller_rungs_are_smaller_pictures(self) -> None:
        frame = Frame(1, drawing(1, noise=True))
        sizes = [len(frame.jpeg(rung)[0]) for rung in RUNGS]
        assert sizes == sorted(sizes, reverse=True)
        picture = cv2.imdecode(np.frombuffer(frame.jpeg(RUNGS[3])[0], np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (240, 240, 3)


class TestLine:
    def test_full_line_has_no_room_until_it_is_read(self, tcp: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = tcp
        line = TcpLine(ours)
        assert line._ready()
        ours.setblocking(False)
        line.sent(ours.send(bytes(150_000)), time.monotonic())
        assert not line._ready()
        theirs.settimeout(0.2)
        read = 0

        def drained() -> bool:
            nonlocal read
            with contextlib.suppress(TimeoutError):
                read += len(theirs.recv(65536))
            return line._ready()

        assert until(drained, 10)
        assert read > 50_000
        assert line.rate is not None

    def test_reader_that_sleeps_is_cut_off(
        self, tcp: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = tcp
        line = TcpLine(ours)
        monkeypatch.setattr(line_module, "STALL_S", 0.3)
        ours.setblocking(False)
        line.sent(ours.send(bytes(150_000)), time.monotonic())
        with pytest.raises(ConnectionResetError):
            line.wait()
        theirs.settimeout(5)
        while theirs.recv(65536):  # what was under way, then the end
            pass


class TestServer:
    def test_twenty_viewers_and_a_slow_one(self, serve: Serve) -> None:
        """How fast and how late is for a quiet machine to measure; here stands what must always hold."""
        with serve("run=1", "noise=1") as server, ThreadPoolExecutor(WEB_VIEWERS + 1) as pool:
            socks = [connect(server.url) for _ in range(WEB_VIEWERS)]
            slow_sock = connect(server.url, receive_buffer=32 * 1024)
            slow_job = pool.submit(watch, slow_sock, 2.0, WEB_SLOW_BYTES_PER_S)
            seen = list(pool.map(lambda sock: watch(sock, 2.0), socks))
            told = server.told()
            slow = slow_job.result(30)
            for sock in (*socks, slow_sock):
                sock.close()
            assert until(lambda: server.told()["viewers"] == [], WEB_GONE_S)
        for one in (*seen, slow):
            assert one.frames == sorted(one.frames)
            assert len(one.frames) >= 3
        newest = max(max(one.frames) for one in seen)
        assert told["encodes"] <= (newest + 30) * (1 + 0.2 * len(RUNGS)), "a frame was encoded for each viewer"
        counted = {v["id"]: v for v in told["viewers"]}
        assert len(counted) == WEB_VIEWERS + 1
        late = min(counted.values(), key=lambda v: v["sent"])
        assert late["skipped"] > 0
        assert len(slow.frames) < max(len(one.frames) for one in seen)
        assert sum(slow.sizes) < 2 * 2.0 * WEB_SLOW_BYTES_PER_S + 200_000

    def test_sleeping_reader_is_freed(self, serve: Serve) -> None:
        with serve("run=1", "noise=1") as server:
            sock = connect(server.url, receive_buffer=16 * 1024)
            assert until(lambda: len(server.told()["viewers"]) == 1, 5)
            began_s = time.monotonic()
            assert until(lambda: server.told()["viewers"] == [], WEB_GONE_S + 2)
            assert time.monotonic() - began_s <= WEB_GONE_S
            sock.close()
            assert "Traceback" not in server.log.read_text()

    def test_one_viewer_too_many_gets_words(self, serve: Serve) -> None:
        with serve("viewers=1") as server:
            sock = connect(server.url)
            assert watch(sock, 0.0).frames
            answer = server.get("video_feed")
            assert answer.status_code == 503
            assert "1 viewers are watching already" in answer.text
            sock.close()
            freed = until(lambda: not server.told()["viewers"], WEB_GONE_S)
            assert freed
            again = connect(server.url)
            assert watch(again, 0.0).frames
            again.close()

    def test_still_face_is_repeated_each_second(self, serve: Serve) -> None:
        with serve() as server:
            sock = connect(server.url)
            seen = watch(sock, 2.2)
            sock.close()
            assert len(set(seen.frames)) == 1
            assert len(seen.frames) >= 3
            assert server.told()["encodes"] <= 3, "once for each rung on the way up"
            assert seen.sizes[-1] > seen.sizes[0]

    @pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
    def test_stop_ends_open_streams(self, serve: Serve, sig: signal.Signals) -> None:
        with serve("run=1") as server, ThreadPoolExecutor(3) as pool:
            socks = [connect(server.url) for _ in range(3)]
            jobs = [pool.submit(watch, sock, 60.0) for sock in socks]
            idle = socket.create_connection(socks[0].getpeername())
            assert until(lambda: [v["sent"] > 1 for v in server.told()["viewers"]] == [True] * 3, 5)
            began_s = time.monotonic()
            assert server.stop(sig) == 0
            assert time.monotonic() - began_s <= WEB_STOP_S
            for job in jobs:
                assert job.result(10).frames
            for sock in (idle, *socks):
                sock.close()
            assert "Traceback" not in server.log.read_text()

    def test_killed_master_frees_the_port_at_once(self, serve: Serve) -> None:
        with serve("run=1") as server:
            port = int(server.url.rstrip("/").rsplit(":", 1)[1])
            sock = connect(server.url)
            assert watch(sock, 0.0).frames
            server.process.kill()
            server.process.wait(5)

            def free() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) != 0

            assert until(free, 2)
            sock.close()

    @pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
    def test_a_worker_that_ends_alone_ends_the_server(self, serve: Serve, sig: signal.Signals) -> None:
        with serve("run=1") as server:
            assert server.get("healthz").status_code == 200
            (worker,) = psutil.Process(server.process.pid).children()
            worker.send_signal(sig)
            assert server.process.wait(WEB_STOP_S + 5) == EXIT_FAILED, "who watches it starts it again, and counts that"
            assert "the worker ended by itself" in server.log.read_text()
            assert "Traceback" not in server.log.read_text()

    def test_busy_port_is_said_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = subprocess.run(
                [sys.executable, "-m", "tests.web.standin", str(port)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=WEB_START_S,
                check=False,
            )
        assert result.returncode == 1
        assert f"port {port} is taken by another program; set MOUTHPIECE_PORT" in result.stderr
        assert "Retrying" not in result.stderr
        assert "Traceback" not in result.stderr

    def test_ffmpeg_reads_it(self, serve: Serve) -> None:
        programs = [shutil.which("ffmpeg"), shutil.which("ffprobe")]
        if not all(programs):
            if os.environ.get("CI"):
                pytest.fail("ffmpeg is missing; under CI the stream must be read by it: apt-get install ffmpeg")
            pytest.skip("ffmpeg is missing: apt-get install ffmpeg")
        with serve("run=1") as server:
            url = server.url + "video_feed"
            common = ["-v", "error", "-f", "mpjpeg", "-i", url]
            read = subprocess.run(
                [str(programs[0]), *common, "-frames:v", "50", "-f", "null", "-"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert (read.returncode, read.stderr) == (0, "")
            entries = "stream=codec_name,width,height,nb_read_packets"
            show = ["-read_intervals", "%+#25", "-show_entries", entries, "-count_packets", "-of", "json"]
            probe = subprocess.run(
                [str(programs[1]), *common, *show], capture_output=True, text=True, timeout=30, check=True
            )
            (stream,) = json.loads(probe.stdout)["streams"]
            assert (stream["codec_name"], stream["width"], stream["height"]) == ("mjpeg", 480, 480)
            assert int(stream["nb_read_packets"]) == 25


def test_the_best_rung_has_the_quality_that_was_asked_for() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = []
    for quality in (30, 60, 95):
        hub = FrameHub(quality=quality)
        assert hub.rungs[0].quality == quality
        assert hub.rungs[1:] == RUNGS[1:]
        sizes.append(len(hub.jpeg(Frame(0, image), hub.rungs[0])))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)
