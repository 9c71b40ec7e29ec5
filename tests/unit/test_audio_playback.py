"""Files and pushed sound, played in real time."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import soundfile

from services.audio_capture.chunks import Chunk, Hole, Source
from services.audio_capture.playback import FileSource, NetworkSource, Playout

MS = 1_000_000
FAIL_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert not psutil.Process().children(recursive=True)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def follow(source: Source, until_samples: int | None = None) -> list[Chunk | Hole]:
    """Drive a source as the service does, until it ends, fails, waits, or has given so much."""
    items: list[Chunk | Hole] = []
    deadline = time.monotonic() + FAIL_S
    while True:
        given = source.read()
        now_ns = time.monotonic_ns()
        assert all(item.captured_ns <= now_ns for item in given if isinstance(item, Chunk)), "before it was due"
        items += given
        state = source.status.state
        length = sum(320 if isinstance(item, Chunk) else item.samples for item in items)
        if state in ("ended", "failed", "waiting") or (until_samples is not None and length >= until_samples):
            return items
        assert time.monotonic() < deadline, source.status
        due = source.next_due()
        select.select([source], [], [], FAIL_S if due is None else max(0.0, due - time.monotonic()))


def state(source: Source) -> str:
    return source.status.state


def sound_of(items: list[Chunk | Hole]) -> npt.NDArray[np.int16]:
    assert all(isinstance(item, Chunk) for item in items)
    return np.concatenate([item.pcm for item in items if isinstance(item, Chunk)])


def check_line(items: list[Chunk | Hole]) -> None:
    """Contiguous, and exactly on the monotonic clock."""
    place = 0
    origins = set()
    for item in items:
        assert item.first_sample == place
        place += 320 if isinstance(item, Chunk) else item.samples
        if isinstance(item, Chunk):
            origins.add(item.captured_ns - place * 62_500)
    assert len(origins) <= 1


def noise(samples: int) -> npt.NDArray[np.int16]:
    return np.random.default_rng(3).integers(-9_000, 9_000, samples).astype(np.int16)


def test_a_file_comes_out_as_it_is_in_real_time(tmp_path: Path) -> None:
    pcm = noise(320 * 20 + 100)
    soundfile.write(tmp_path / "a.wav", pcm, 16_000)
    source = FileSource(tmp_path / "a.wav", loop=False)
    source.start()
    items = follow(source)
    assert source.status.state == "ended"
    source.close()
    check_line(items)
    heard = sound_of(items)
    assert len(heard) == 320 * 21
    np.testing.assert_array_equal(heard[: len(pcm)], pcm)
    assert not heard[len(pcm) :].any()


def test_a_loop_has_no_seam(tmp_path: Path) -> None:
    pcm = noise(1_500)
    soundfile.write(tmp_path / "a.flac", pcm, 16_000)
    source = FileSource(tmp_path / "a.flac", loop=True)
    source.start()
    items = follow(source, 320 * 30)
    source.close()
    check_line(items)
    heard = sound_of(items)
    np.testing.assert_array_equal(heard, np.tile(pcm, 10)[: len(heard)])


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_another_rate_and_stereo_are_brought_to_16_khz_mono(tmp_path: Path, rate_hz: int) -> None:
    turn = 2 * np.pi * 100 * np.arange(int(rate_hz * 0.4)) / rate_hz
    soundfile.write(tmp_path / "a.wav", np.stack((0.6 * np.sin(turn), 0.2 * np.sin(turn)), axis=1), rate_hz)
    source = FileSource(tmp_path / "a.wav", loop=False)
    source.start()
    heard = sound_of(follow(source)) / 32768
    source.close()
    wanted = 0.4 * np.sin(2 * np.pi * 100 * np.arange(6_400) / 16_000)
    assert len(heard) == 6_400
    np.testing.assert_allclose(heard[640:-640], wanted[640:-640], atol=0.06)  # 3 samples of 16 kHz: 0.047


def test_what_libsndfile_cannot_read_is_read_by_ffmpeg(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        assert os.environ.get("CI") != "true", "ffmpeg is missing"
        pytest.skip("ffmpeg is missing")
    soundfile.write(tmp_path / "a.wav", noise(8_000), 16_000)
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "pcm_s16le", tmp_path / "a.mkv"],
        check=True,
        timeout=20,
    )
    source = FileSource(tmp_path / "a.mkv", loop=True)
    source.start()
    items = follow(source, 9_600)
    source.close()
    check_line(items)
    np.testing.assert_array_equal(sound_of(items)[:9_600], np.tile(noise(8_000), 2)[:9_600])


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "voice.wav"
    if kind == "text":
        path.write_text("not a sound\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2_000))
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0, np.int16), 16_000)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "silent film":
        path = folder / "film.mkv"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=s=16x16:d=0.2", "-c:v", "mjpeg", str(path)]
        subprocess.run(command, check=True, timeout=20)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "is not there"),
        ("text", "no sound or video file"),
        ("empty", "is empty"),
        ("directory", "is a directory"),
        ("picture", "no sound track"),
        ("no samples", "holds no sound"),
        ("pipe", "no ordinary file"),
        ("silent film", "no sound track"),
    ],
)
def test_a_bad_file_fails_with_clear_words(tmp_path: Path, kind: str, words: str) -> None:
    if shutil.which("ffmpeg") is None:
        assert os.environ.get("CI") != "true", "ffmpeg is missing"
        pytest.skip("ffmpeg is missing")
    source = FileSource(bad_file(tmp_path, kind), loop=True)
    source.start()
    assert follow(source) == []
    assert source.status.state == "failed"
    assert words in source.status.text
    assert source.read() == []
    assert source.next_due() is None
    assert not select.select([source], [], [], 0)[0], "a failed source must not keep its owner busy"
    source.close()
    assert source.status.state == "failed"


def test_without_ffmpeg_the_words_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = FileSource(bad_file(tmp_path, "text"))
    source.start()
    follow(source)
    source.close()
    assert "apt-get install ffmpeg" in source.status.text


def test_a_file_may_be_closed_at_any_moment(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(16_000 * 20), 16_000)
    early = FileSource(tmp_path / "a.wav", loop=True)
    early.close()
    source = FileSource(tmp_path / "a.wav", loop=True)
    source.start()
    follow(source, 640)
    source.close()
    source.close()
    assert source.read() == []
    with pytest.raises(ValueError, match="closed"):
        source.fileno()


def test_playout_is_due_by_the_clock_and_an_owner_who_looks_away_loses_nothing() -> None:
    playout = Playout()
    playout.put(noise(320 * 200), 0)
    assert playout.take(20 * MS - 1) == []
    assert len(playout.take(20 * MS)) == 1
    assert playout.due_ns() == 40 * MS
    items = playout.take(3_000 * MS)
    assert len(items) == 149
    playout.put(noise(320), 3_000 * MS)
    assert len(playout.take(4_020 * MS)) == 51


def test_a_short_wait_is_jitter_and_a_long_one_is_a_hole() -> None:
    playout = Playout()
    playout.put(noise(320), 0)
    items = playout.take(40 * MS)
    assert playout.starved_ns == 40 * MS
    playout.put(noise(320), 130 * MS)
    items += playout.take(130 * MS)
    playout.put(noise(100), 135 * MS)
    items += playout.take(200 * MS)
    playout.put(noise(640), 700 * MS)
    items += playout.take(740 * MS)
    check_line(items)
    assert items[3] == Hole(960, 700 * 16 - 960, "lost")
    assert len(items) == 6
    assert playout.due_ns() == 760 * MS


def test_pushed_sound_is_played_and_a_jump_is_a_hole() -> None:
    source = NetworkSource()
    source.start()
    assert state(source) == "waiting"
    assert source.next_due() is None
    pcm = noise(1_000)
    assert source.push(5_000, pcm[:700])
    assert source.push(5_700, pcm[700:])
    assert source.push(7_000, pcm[:640])
    assert source.push(0, pcm[:320])  # a sender that began anew
    source.end()
    items = follow(source)
    assert state(source) == "ended"
    check_line(items)
    assert [item for item in items if isinstance(item, Hole)] == [Hole(1_280, 720, "lost")]
    heard = np.concatenate([item.pcm for item in items if isinstance(item, Chunk)])
    np.testing.assert_array_equal(heard, np.concatenate((pcm, np.zeros(280, np.int16), pcm[:640], pcm[:320])))
    source.close()


def test_pushed_sound_that_stops_waits_and_goes_on_by_the_clock() -> None:
    source = NetworkSource()
    source.push(0, noise(500))
    items = follow(source)
    assert state(source) == "waiting"
    assert source.next_due() is None
    source.push(500, noise(320))
    assert state(source) == "running"
    source.end()
    items += follow(source)
    check_line(items)
    (hole,) = (item for item in items if isinstance(item, Hole))
    assert hole.first_sample == 640
    assert hole.samples >= 16 * 480
    source.close()


def test_pushed_sound_has_a_bound_and_what_is_refused_is_counted() -> None:
    source = NetworkSource()
    minute = np.zeros(16_000 * 60, np.int16)
    assert [source.push(i * len(minute), minute) for i in range(11)] == [True] * 10 + [False]
    assert source.refused_samples == len(minute)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.push(0, minute)


def test_pushed_sound_of_another_kind_is_refused() -> None:
    source = NetworkSource()
    with pytest.raises(ValueError, match="int16"):
        source.push(0, np.zeros(10, np.float32))
    source.close()
