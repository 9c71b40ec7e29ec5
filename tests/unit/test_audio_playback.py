"""Files and pushed sound, played in real time."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import soundfile

from services.audio_capture.chunks import Chunk, Hole, Source
from services.audio_capture.playback import FileSource, NetworkSource, Playout
from tests.budgets import BURST_CROWD, BURST_MEMORY_SHARE, BURST_S

MS = 1_000_000
FAIL_S = 20.0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert not psutil.Process().children(recursive=True)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that holds this process up for a moment makes no hole where each sample is asked for."""
    monkeypatch.setattr(Playout, "JITTER_NS", round(FAIL_S * 1e9))


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


@pytest.mark.usefixtures("unhurried")
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


@pytest.mark.usefixtures("unhurried")
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


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    ("kind", "rate_hz"), [("WAV", 16_000), ("FLAC", 16_000), ("OGG", 16_000), ("MP3", 16_000), ("XI", 44_100)]
)  # libsndfile cannot go back in an XI, which names no rate
def test_every_loop_of_every_kind_of_file_is_the_first_one_again(
    tmp_path: Path, kind: str, rate_hz: int, capfd: pytest.CaptureFixture[str]
) -> None:
    length = 6_400
    soundfile.write(tmp_path / "a", noise(length * rate_hz // 16_000), rate_hz, format=kind)
    heard = []
    for loop in (False, True):
        source = FileSource(tmp_path / "a", loop=loop)
        source.start()
        heard.append(sound_of(follow(source, 2 * length if loop else None)))
        source.close()
    assert len(heard[0]) == length
    # After a pause of the machine a source gives more at once than was waited for.
    np.testing.assert_array_equal(heard[1], np.resize(heard[0], len(heard[1])))
    assert len(heard[1]) >= 2 * length
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("unhurried")
def test_a_looped_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened anew for each loop it made the process grow."""
    monkeypatch.setattr(FileSource, "AHEAD_BLOCKS", 1)
    soundfile.write(tmp_path / "a.flac", noise(1_600), 16_000)
    source = FileSource(tmp_path / "a.flac", loop=True)
    source.start()
    follow(source, 3_200)
    (tmp_path / "a.flac").unlink()
    assert len(sound_of(follow(source, 8_000))) >= 8_000
    source.close()


@pytest.mark.usefixtures("unhurried")
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


@pytest.mark.usefixtures("unhurried")
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
    assert items[3] == Hole(960, 700 * 16 - 960, "late")
    assert len(items) == 6
    assert playout.due_ns() == 760 * MS


def test_between_two_utterances_nothing_is_missing() -> None:
    playout = Playout()
    playout.put(noise(320), 0)
    playout.finish()
    items = playout.take(40 * MS)
    playout.put(noise(320), 700 * MS)
    items += playout.take(800 * MS)
    playout.put(noise(320), 1_700 * MS)
    items += playout.take(1_800 * MS)
    check_line(items)
    assert [item.reason for item in items if isinstance(item, Hole)] == ["pause", "late"]


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


def pushed_sound(items: list[Chunk | Hole]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """All sound of the chunks, and the place in what is pushed that each sample claims; -1 behind its chunk's sound."""
    chunks = [item for item in items if isinstance(item, Chunk)]
    ends = [chunk.pushed for chunk in chunks[1:]] + [10**9]
    places = [chunk.pushed + np.arange(320) for chunk in chunks]
    cut = [np.where(place < end, place, -1) for place, end in zip(places, ends, strict=True)]
    return np.concatenate([chunk.pcm for chunk in chunks]), np.concatenate(cut)


def drive(playout: Playout, until_ns: int, step_ns: int = 5 * MS, since_ns: int = 0) -> list[Chunk | Hole]:
    return [item for now_ns in range(since_ns, until_ns + 1, step_ns) for item in playout.take(now_ns)]


def test_each_chunk_tells_its_exact_place_in_what_is_pushed() -> None:
    """Over uneven pieces, a piece that was lost, the end of an utterance, and a pause."""
    source = NetworkSource()
    pcm = noise(10_000)
    for first, last in ((0, 77), (77, 1_000), (1_500, 3_000), (3_000, 3_333)):
        assert source.push(first, pcm[first:last])
    source.flush(3_333)
    items = follow(source)
    assert source.push(3_333, pcm[3_333:5_000])
    source.end()
    items += follow(source)
    source.close()
    check_line(items)
    heard, place = pushed_sound(items)
    lost = (place >= 1_000) & (place < 1_500)
    padded = (place < 0) | (place >= 5_000)
    np.testing.assert_array_equal(heard[~lost & ~padded], pcm[place[~lost & ~padded]])
    assert not heard[lost | padded].any()
    told = np.unique(place[~lost & ~padded])
    np.testing.assert_array_equal(told, [n for n in range(5_000) if not 1_000 <= n < 1_500])


def test_other_sources_push_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(700), 16_000)
    source = FileSource(tmp_path / "a.wav")
    source.start()
    assert {item.pushed for item in follow(source) if isinstance(item, Chunk)} == {-1}
    source.close()


def test_the_end_of_an_utterance_is_said_when_it_is_due() -> None:
    source = NetworkSource()
    source.push(0, noise(1_000))
    began_s = time.monotonic()
    source.flush(1_000)
    items = follow(source, 1_280)
    source.close()
    assert time.monotonic() - began_s < NetworkSource.QUIET_NS / 1e9, "it did not wait for more"
    heard = sound_of(items)
    np.testing.assert_array_equal(heard, np.concatenate((noise(1_000), np.zeros(280, np.int16))))


def test_without_a_flush_a_chunk_waits_for_more() -> None:
    playout = Playout()
    playout.put(noise(1_000), 0, 0)
    assert len(drive(playout, 400 * MS)) == 3


def test_an_utterance_that_follows_in_time_follows_without_a_seam() -> None:
    playout = Playout()
    pcm = noise(1_500)
    playout.put(pcm[:1_000], 0, 0)
    playout.pad()
    playout.put(pcm[1_000:1_100], 30 * MS, 1_000)
    items = drive(playout, 85 * MS)
    assert len(items) == 3, "the next utterance has begun: its first chunk waits for more as any other"
    playout.put(pcm[1_100:], 90 * MS, 1_100)
    playout.pad()
    items += drive(playout, 200 * MS, since_ns=90 * MS)
    np.testing.assert_array_equal(sound_of(items), np.concatenate((pcm, np.zeros(100, np.int16))))
    assert [item.pushed for item in items if isinstance(item, Chunk)] == [0, 320, 640, 960, 1_280]


def test_a_flush_of_what_came_before_changes_nothing() -> None:
    source = NetworkSource()
    source.flush(0)
    began_s = time.monotonic()
    source.push(0, noise(300))
    source.push(300, noise(300))
    source.flush(300)
    deadline = began_s + 0.2
    items: list[Chunk | Hole] = []
    while time.monotonic() < deadline:
        select.select([source], [], [], 0.02)
        items += source.read()
    source.close()
    assert len(items) == 1 or time.monotonic() - began_s > NetworkSource.QUIET_NS / 1e9, "the machine stood still"


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_speech_that_comes_too_slowly_loses_and_doubles_nothing(share: float) -> None:
    """A TTS at less than real time: the line pauses again and again, and stays near the clock."""
    playout = Playout()
    pcm = noise(32_000)
    items: list[Chunk | Hole] = []
    given_ns: list[int] = []
    sent = 0
    for now_ns in range(0, 6_000 * MS, 5 * MS):
        while sent < len(pcm) and now_ns >= sent / 16 / share * MS:
            playout.put(pcm[sent : sent + 256], now_ns, sent)
            sent += 256
            if sent == len(pcm):
                playout.pad()
        given = playout.take(now_ns)
        items += given
        given_ns += [now_ns - item.captured_ns for item in given if isinstance(item, Chunk)]
    check_line(items)
    assert any(isinstance(item, Hole) for item in items) or share > 0.95
    assert max(given_ns) <= Playout.JITTER_NS + 20 * MS
    heard, place = pushed_sound(items)
    mine = (place >= 0) & (place < len(pcm))
    np.testing.assert_array_equal(place[mine], np.arange(len(pcm)))
    np.testing.assert_array_equal(heard[mine], pcm)


def test_a_burst_of_ten_minutes_loses_nothing_and_costs_no_more_than_its_sound() -> None:
    """Pushed at 20 times real time, as small pieces, and taken in real time."""
    pcm = np.tile(noise(16_000), BURST_S)
    tracemalloc.start()
    playout = Playout()
    items: list[Chunk | Hole] = []
    piece = 330
    places = iter(range(0, len(pcm), piece))
    most = 0
    for now_ms in range(0, BURST_S * 1_000 + 40, 20):
        for _ in range(20):
            if (first := next(places, None)) is not None:
                playout.put(pcm[first : first + piece].copy(), now_ms * MS, first)
        if now_ms == BURST_S * 50:
            most = tracemalloc.get_traced_memory()[0]
        for item in playout.take(now_ms * MS):
            assert isinstance(item, Chunk)
            assert item.pushed == item.first_sample
            np.testing.assert_array_equal(item.pcm, pcm[item.first_sample : item.first_sample + 320])
            items.append(Hole(item.first_sample, 320, "lost"))
    tracemalloc.stop()
    assert len(items) == len(pcm) // 320
    assert most <= len(pcm) * 2 * BURST_MEMORY_SHARE


def test_a_crowd_of_tiny_pieces_costs_no_more_than_their_sound() -> None:
    tracemalloc.start()
    playout = Playout()
    for index in range(BURST_CROWD):
        playout.put(np.full(1, index % 1_000, np.int16), 0, index)
        playout.pad()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held <= BURST_CROWD * 2 * BURST_MEMORY_SHARE + 20_000
    heard = sound_of(playout.take(10**15))
    np.testing.assert_array_equal(heard[:BURST_CROWD], np.arange(BURST_CROWD) % 1_000)


def test_the_bound_counts_sound_and_not_the_holes_in_it() -> None:
    source = NetworkSource()
    minute = np.zeros(16_000 * 60, np.int16)
    for i in range(10):
        assert source.push(i * 2 * len(minute), minute)
    assert source.waiting_samples == NetworkSource.BUFFER_SAMPLES
    assert not source.push(20 * len(minute), minute[:1])
    source.close()
