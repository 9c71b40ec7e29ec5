"""Recordings: a whole file with sound in step, whatever the disk, the encoder and the screen do."""

from __future__ import annotations

import shutil
import stat
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
import pytest

from services.streamer import recorder
from services.streamer.control import LimitError
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.recorder import MARK, RESERVE_BYTES, fit, free_bytes, whole_bytes
from services.streamer.recordings import START_BYTES, Recording, Recordings, UnknownRecordingError
from services.streamer.sound import SoundHub
from tests.budgets import (
    RECORDING_CUT_S,
    RECORDING_DISK_BYTES,
    RECORDING_FLASHES_SEEN,
    RECORDING_LENGTH_S,
    RECORDING_SKEW_S,
    RECORDING_SLOW_PX,
    RECORDING_WAIT_S,
)
from tests.rig import stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

SLOT_S = 0.04
AHEAD = 5
"""ticks by which sound comes before its picture"""
SIGNALS = (30, 55, 80)
"""ticks with a flash and a click"""


def picture(grey: int, size: tuple[int, int] = (96, 128)) -> npt.NDArray[np.uint8]:
    return np.full((*size, 3), grey, np.uint8)


class Screen:
    """A session's pictures and sound, ticking as the streamer's loop does, from a thread of its own."""

    def __init__(self, image: Callable[[int], npt.NDArray[np.uint8]], period_s: float = SLOT_S) -> None:
        self.frames, self.sound = FrameHub(1), SoundHub()
        self.ticks = 0
        self._image = image
        self._period_s = period_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.frames.publish(Frame(0, image(0)))

    def _run(self) -> None:
        began_s = time.monotonic()
        for tick in range(AHEAD):
            self._speak(tick)
        while not self._end.wait(max(0.0, began_s + self.ticks * self._period_s - time.monotonic())):
            self._speak(self.ticks + AHEAD)
            self.sound.at(time.monotonic(), 1, 640 * self.ticks)
            self.frames.publish(Frame(self.ticks, self._image(self.ticks), media_time=640 * self.ticks, epoch=1))
            self.ticks += 1

    def _speak(self, tick: int) -> None:
        pcm = np.random.default_rng(tick).integers(-200, 200, 640).astype(np.int16)
        if tick in SIGNALS:
            pcm[:80] = 30_000
        self.sound.heard(1, 640 * tick, pcm)

    def reaches(self, tick: int) -> None:
        stack.until(lambda: self.ticks > tick, RECORDING_WAIT_S, f"tick {tick}")

    def __enter__(self) -> Screen:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.frames.close()
        self.sound.close()


@dataclass
class Film:
    """A decoded file."""

    times: list[float]
    greys: list[float]
    """mean of each picture"""
    pcm: npt.NDArray[np.float32]
    """from media time 0"""
    last: npt.NDArray[np.uint8]

    def flashes(self) -> list[float]:
        bright = np.array(self.greys) > (min(self.greys) + max(self.greys)) / 2
        return [t for t, now, before in zip(self.times[1:], bright[1:], bright[:-1], strict=True) if now and not before]

    def clicks(self) -> list[float]:
        loud = np.flatnonzero(np.abs(self.pcm) > 0.25)
        return [float(i) / 16_000 for i, gap in zip(loud, np.diff(loud, prepend=-16_000), strict=True) if gap > 4000]


def decoded(path: Path) -> Film:
    film = Film([], [], np.zeros(0, np.float32), picture(0))
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            film.last = frame.to_ndarray(format="bgr24").astype(np.uint8, copy=False)
            film.times.append(float(frame.time))
            film.greys.append(float(film.last.mean()))
    with av.open(str(path)) as container:
        for sound in container.decode(audio=0):
            samples = sound.to_ndarray()[0]
            assert sound.time is not None
            assert round(sound.time * 16_000) == len(film.pcm), "the sound has a gap"
            film.pcm = np.concatenate((film.pcm, samples))
    return film


def recordings(folder: Path, screen: Screen) -> Recordings:
    return Recordings(folder, screen.frames, screen.sound)


def stopped(made: Recordings) -> Recording:
    recording = made.stop()
    assert recording is not None
    return recording


def test_sound_and_picture_are_in_step(tmp_path: Path) -> None:
    with Screen(lambda tick: picture(220 if tick in SIGNALS else 60)) as screen:
        made = recordings(tmp_path / "r", screen)
        screen.reaches(5)
        before_s = time.monotonic()
        made.start()
        began_s = time.monotonic()
        screen.reaches(SIGNALS[-1] + 15)
        ended_s = time.monotonic()
        recording = stopped(made)
        after_s = time.monotonic()
    assert recording.state == "finished"
    assert ended_s - began_s - RECORDING_LENGTH_S < recording.seconds < after_s - before_s + RECORDING_LENGTH_S
    film = decoded(made.path(recording.id))
    assert np.allclose(np.diff(film.times), SLOT_S, atol=1e-4)
    assert len(film.pcm) / 16_000 == pytest.approx(recording.seconds, abs=RECORDING_LENGTH_S)
    flashes, clicks = film.flashes(), film.clicks()
    assert len(clicks) == len(SIGNALS)
    assert len(flashes) >= RECORDING_FLASHES_SEEN
    skews = [min((flash - click for click in clicks), key=abs) for flash in flashes]
    assert max(map(abs, skews)) < RECORDING_SKEW_S, skews


def test_a_still_face_takes_its_time(tmp_path: Path) -> None:
    with Screen(lambda _: picture(90), period_s=1.0) as screen:
        made = recordings(tmp_path, screen)
        made.start()
        screen.reaches(2)
        recording = stopped(made)
    film = decoded(made.path(recording.id))
    assert np.allclose(np.diff(film.times), SLOT_S, atol=1e-4)
    assert len(film.times) * SLOT_S == pytest.approx(recording.seconds, abs=SLOT_S)
    assert recording.seconds > 2 - RECORDING_LENGTH_S


def test_a_slow_encoder_costs_pictures_and_neither_sound_nor_ticks(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (RECORDING_SLOW_PX, RECORDING_SLOW_PX, 3), dtype=np.uint8)
    shown = [grain, np.ascontiguousarray(grain[::-1])]
    with Screen(lambda tick: shown[tick % 2]) as screen:
        made = recordings(tmp_path, screen)
        made.start()
        screen.reaches(60)
        recording = stopped(made)
    film = decoded(made.path(recording.id))
    assert len(film.times) < recording.seconds / SLOT_S - 1, "nothing was left out, so nothing was tried"
    assert len(film.pcm) / 16_000 > 60 * SLOT_S - RECORDING_LENGTH_S
    assert film.times[-1] > recording.seconds / 2, "pictures are left out here and there, not from some moment on"


def test_another_face_is_fitted_into_the_first_size(tmp_path: Path) -> None:
    with Screen(lambda tick: picture(200, (97, 129) if tick < 10 else (200, 100))) as screen:
        made = recordings(tmp_path, screen)
        screen.reaches(1)
        made.start()
        screen.reaches(25)
        film = decoded(made.path(stopped(made).id))
    assert film.last.shape == (96, 128, 3)
    assert film.last[:, :30].mean() < 10, "a bar at the left"
    assert film.last[:, 50:78].mean() > 190


def test_fit_keeps_the_shape() -> None:
    image = picture(255, (40, 80))
    fitted = fit(image, 40, 40)
    assert fitted.shape == (40, 40, 3)
    assert fitted[:9].max() == fitted[31:].max() == 0
    assert fitted[10:30].min() == 255


def test_files_say_what_they_are_and_are_for_the_owner_alone(tmp_path: Path) -> None:
    with Screen(lambda _: picture(120, (640, 320))) as screen:
        made = recordings(tmp_path / "deep" / "r", screen)
        begun = made.start()
        assert begun.state == "recording"
        assert made.current == begun.id
        assert screen.frames.viewers == 0, "a recorder takes no viewer's place"
        screen.reaches(10)
        recording = stopped(made)
    assert made.current == ""
    path, thumbnail = made.path(recording.id), made.thumbnail(recording.id)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path, thumbnail)] == [0o700, 0o600, 0o600]
    small = cv2.imread(str(thumbnail))
    assert small is not None
    assert small.shape == (320, 160, 3)
    told = subprocess.run(
        [
            "ffprobe",
            "-v",
            "error",
            "-show_entries",
            "stream=codec_name:format_tags=title,comment",
            "-of",
            "csv=p=0",
            path,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stderr == ""
    assert "h264" in told.stdout
    assert "aac" in told.stdout
    assert told.stdout.count(MARK) == 2


def test_what_a_crash_leaves_is_listed_and_plays(tmp_path: Path) -> None:
    with Screen(lambda tick: picture(40 + tick % 100)) as screen:
        made = recordings(tmp_path / "r", screen)
        began_s = time.monotonic()
        begun = made.start()
        screen.reaches(50)
        # What the disk holds now is what a kill would leave, and in the middle of a write of the last fragment too.
        left = shutil.copytree(tmp_path / "r", tmp_path / "left")
        length_s = time.monotonic() - began_s
        stopped(made)
        movie = left / f"{begun.id}.mp4"
        found = recordings(left, screen).list()
        assert [(r.id, r.state) for r in found] == [(begun.id, "unfinished")]
        assert length_s - RECORDING_CUT_S < found[0].seconds <= length_s
        assert found[0].started == begun.started
        movie.write_bytes(movie.read_bytes()[:-100])
        assert whole_bytes(movie) < movie.stat().st_size
        played = subprocess.run(["ffmpeg", "-v", "quiet", "-i", movie, "-f", "null", "-"], check=False)
        assert played.returncode == 0
        movie.write_bytes(b"")
        assert recordings(left, screen).list()[0].seconds == 0.0


def test_refusals_say_why(tmp_path: Path) -> None:
    with Screen(lambda _: picture(90)) as screen:
        made = Recordings(tmp_path, FrameHub(), screen.sound)
        assert made.list() == []
        assert made.stop() is None
        with pytest.raises(ValueError, match="no picture yet"):
            made.start()
        made = recordings(tmp_path, screen)
        made.start()
        with pytest.raises(ValueError, match="already"):
            made.start()
        made.close()
        with pytest.raises(ValueError, match="ending"):
            made.start()
        assert [r.state for r in made.list()] == ["finished"]
        for name in ("", "20260101-000000-0000", "../secret", "20260101-000000-0000/../x"):
            for ask in (made.path, made.thumbnail, made.get, made.delete):
                with pytest.raises(UnknownRecordingError):
                    ask(name)
        occupied = tmp_path / "file"
        occupied.write_text("no folder")
        with pytest.raises(ValueError, match="cannot be written"):
            recordings(occupied, screen).start()


def test_as_many_listeners_as_there_may_be(tmp_path: Path) -> None:
    frames, sound = FrameHub(), SoundHub(max_listeners=0)
    frames.publish(Frame(0, picture(0)))
    with pytest.raises(LimitError, match="listeners"):
        Recordings(tmp_path, frames, sound).start()
    assert list(tmp_path.iterdir()) == []


def test_delete_and_forget(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with Screen(lambda _: picture(90)) as screen:
        made = recordings(folder, screen)
        first = made.start().id
        screen.reaches(5)
        stopped(made)
        second = made.start().id
        third_too = screen.ticks + 5
        assert {r.id for r in made.list()} == {first, second}
        made.delete(first)
        assert {p.stem for p in folder.iterdir()} == {second}
        screen.reaches(third_too)
        made.delete(second)
        assert made.current == ""
        assert list(folder.iterdir()) == []
        made.start()
        made.forget()
        assert not folder.exists()
        assert made.list() == []
    assert not [t.name for t in threading.enumerate() if t.name.startswith("record-")]


def test_the_end_of_a_session_ends_its_recording_well(tmp_path: Path) -> None:
    with Screen(lambda _: picture(90)) as screen:
        made = recordings(tmp_path, screen)
        made.start()
        screen.reaches(20)
    stack.until(lambda: not made.current, RECORDING_WAIT_S, "the end of the recording")
    assert [r.state for r in made.list()] == ["finished"]


def test_a_recording_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_S", 1)
    with Screen(lambda _: picture(90)) as screen:
        made = recordings(tmp_path, screen)
        begun = made.start()
        stack.until(lambda: not made.current, RECORDING_WAIT_S, "the end of the recording")
        recording = made.get(begun.id)
    assert recording.state == "finished"
    assert recording.seconds == pytest.approx(1.0, abs=RECORDING_LENGTH_S)
    assert "at most" in recording.text


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={RECORDING_DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left_bytes: int) -> None:
    """Leave so many bytes free, or less: the recorder writes as well."""
    with suppress(OSError), (folder / "ballast").open("ab", buffering=0) as file:
        while (more := free_bytes(folder) - left_bytes) > 0:
            file.write(bytes(more))


@pytest.mark.parametrize("left_bytes", [RESERVE_BYTES - 1_000_000, 0], ids=["nearly full", "full"])
def test_a_full_disk_ends_a_recording_that_plays(tmp_path: Path, left_bytes: int) -> None:
    grain = np.random.default_rng(0).integers(0, 60, (240, 240, 3), dtype=np.uint8)
    with small_disk(tmp_path / "disk") as disk, Screen(lambda tick: np.roll(grain, 3 * tick, 0)) as screen:
        made = recordings(disk / "r", screen)
        screen.reaches(1)
        begun = made.start()
        began_s = time.monotonic()
        screen.reaches(40)
        fill(disk, left_bytes)
        length_s = time.monotonic() - began_s
        stack.until(lambda: not made.current, RECORDING_WAIT_S, "the end of the recording")
        recording = made.get(begun.id)
        assert "disk is full" in recording.text
        assert recording.state == "finished" or not left_bytes
        assert recording.seconds > length_s - RECORDING_CUT_S
        path = made.path(begun.id)
        assert whole_bytes(path) == path.stat().st_size
        film = decoded(path)
        assert film.times[-1] > length_s - RECORDING_CUT_S
        with pytest.raises(ValueError, match=f"{START_BYTES // 10**6} MB"):
            made.start()
