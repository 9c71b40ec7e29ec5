"""Mel windows: the published alignments, gaps, bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine import MelWindow
from services.mel_features.mel import MEL_FLOOR
from services.mel_features.windows import Windows, mel_index

Mel = npt.NDArray[np.float32]
TRAINING, INFERENCE = MelWindow(back=0, ahead=16, shift=-1), MelWindow(back=0, ahead=16, shift=0)
BUILTIN = MelWindow(back=24, ahead=7)
ALL = [TRAINING, INFERENCE, BUILTIN, MelWindow(back=3, ahead=1, shift=2)]


def numbered(first: int, count: int) -> Mel:
    """Mel frames that hold their own number."""
    return np.broadcast_to(np.arange(first, first + count, dtype=np.float32), (80, count)).copy()


def published_chunks(mel: Mel, fps: float = 25.0) -> list[Mel]:
    """Wav2Lip's inference script, in its own terms."""
    multiplier = 80.0 / fps
    chunks = []
    i = 0
    while True:
        start = int(i * multiplier)
        if start + 16 > mel.shape[1]:
            chunks.append(mel[:, mel.shape[1] - 16 :])
            return chunks
        chunks.append(mel[:, start : start + 16])
        i += 1


def cut(mel: Mel, window: MelWindow, frame: int) -> Mel:
    """A window by its definition, silence around the sound."""
    start = int(80 * (frame + window.shift) / 25) - window.back
    padded = np.pad(mel, ((0, 0), (200, 200)), constant_values=MEL_FLOOR)
    return padded[:, 200 + start : 200 + start + window.length]


def push_all(windows: Windows, first: int, mel: Mel, sizes: list[int]) -> list[tuple[int, Mel]]:
    made = []
    at = 0
    while at < mel.shape[1]:
        for size in sizes:
            made += windows.push(first + at, mel[:, at : at + size])
            at = min(at + size, mel.shape[1])
    return made


def test_mel_index_is_the_published_expression() -> None:
    for frame in range(-30, 200_000):
        assert mel_index(frame) == int(80 * frame / 25)
        if frame >= 0:
            assert mel_index(frame) == int(frame * (80.0 / 25))


@pytest.mark.parametrize("frames", [16, 17, 19, 20, 100, 403])
def test_inference_alignment_gives_the_published_chunks(frames: int) -> None:
    mel = np.random.default_rng(frames).uniform(-4, 4, (80, frames)).astype(np.float32)
    windows = Windows(INFERENCE)
    made = push_all(windows, 0, mel, [3, 1]) + windows.finish()
    assert [i for i, _ in made] == list(range(len(made)))
    for (_, window), theirs in zip(made, published_chunks(mel), strict=True):
        np.testing.assert_array_equal(window, theirs)


def test_training_alignment_begins_one_frame_earlier() -> None:
    mel = numbered(0, 200)
    windows = Windows(TRAINING)
    made = dict(push_all(windows, 0, mel, [5]) + windows.finish())
    chunks = published_chunks(mel)
    assert made[0][0].tolist() == [MEL_FLOOR] * 3 + list(range(13))
    for frame, chunk in enumerate(chunks):
        np.testing.assert_array_equal(made[frame + 1], chunk)
    assert len(made) == len(chunks) + 1


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from(ALL),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    frames=st.integers(0, 150),
)
def test_a_window_comes_as_soon_as_it_is_complete(window: MelWindow, sizes: list[int], frames: int) -> None:
    mel = numbered(0, frames)
    made = push_all(Windows(window), 0, mel, sizes)
    complete = [i for i in range(80) if int(80 * (i + window.shift) / 25) + window.ahead <= frames and frames]
    assert [i for i, _ in made] == complete
    for i, got in made:
        np.testing.assert_array_equal(got, cut(mel, window, i))


def test_windows_are_copies() -> None:
    windows = Windows(BUILTIN)
    (_, first), (_, second), *_ = windows.push(0, numbered(0, 40))
    first[:] = 99
    assert (second != 99).all()


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from(ALL),
    heard=st.integers(1, 120),
    gap=st.integers(1, 400),
    size=st.integers(1, 50),
)
def test_a_gap_never_mixes_positions(window: MelWindow, heard: int, gap: int, size: int) -> None:
    windows = Windows(window)
    made = push_all(windows, 0, numbered(0, heard), [size])
    made += push_all(windows, heard + gap, numbered(heard + gap, 150), [size])
    line = np.full((80, heard + gap + 150), MEL_FLOOR, np.float32)
    line[:, :heard] = numbered(0, heard)
    line[:, heard + gap :] = numbered(heard + gap, 150)
    numbers = [i for i, _ in made]
    assert numbers == sorted(set(numbers))
    for i, got in made:
        np.testing.assert_array_equal(got, cut(line, window, i))
    last = numbers[-1]
    owed = [i for i in range(last + 1) if mel_index(i) < heard or mel_index(i) >= heard + gap]
    assert set(owed) <= set(numbers), "each frame that begins in heard sound is made"
    if gap > 2 * window.length + 10:
        assert numbers == owed, "none in the gap"


@pytest.mark.parametrize("window", ALL)
def test_a_late_start_begins_with_the_frames_heard(window: MelWindow) -> None:
    windows = Windows(window)
    made = windows.push(1001, numbered(1001, 100))
    line = np.full((80, 1101), MEL_FLOOR, np.float32)
    line[:, 1001:] = numbered(1001, 100)
    assert made[0][0] == 313, "the first with 3.2 i >= 1001"
    for i, got in made:
        np.testing.assert_array_equal(got, cut(line, window, i))


@pytest.mark.parametrize("ahead_of_sound", [True, False])
def test_skip_to(ahead_of_sound: bool) -> None:
    windows = Windows(BUILTIN)
    mel = numbered(0, 400)
    if ahead_of_sound:
        windows.skip_to(50)
        made = push_all(windows, 0, mel, [10])
    else:
        assert windows.push(0, mel[:, :20])[-1][0] < 50
        windows.skip_to(50)
        made = windows.push(20, mel[:, 20:])
    assert made[0][0] == 50
    np.testing.assert_array_equal(made[0][1], cut(mel, BUILTIN, 50))
    before = windows.next_frame
    windows.skip_to(3)
    assert windows.next_frame == before, "never back"


def test_memory_is_bounded() -> None:
    windows = Windows(BUILTIN)
    for at in range(0, 20_000, 8):
        windows.push(at, numbered(at, 8))
        assert windows._held.nbytes <= 80 * 4 * (BUILTIN.length + 16)
    windows.skip_to(10**6)
    for at in range(20_000, 22_000, 8):
        windows.push(at, numbered(at, 8))
        assert windows._held.nbytes <= 80 * 4 * (BUILTIN.length + 16)
    windows.push(10**9, numbered(0, 8))
    assert windows._held.nbytes <= 80 * 4 * (BUILTIN.length + 16)


def test_a_short_sound_is_led_in_by_silence() -> None:
    windows = Windows(INFERENCE)
    assert windows.push(0, numbered(0, 5)) == []
    ((frame, got),) = windows.finish()
    assert frame == 0
    assert got[0].tolist() == [MEL_FLOOR] * 11 + [0, 1, 2, 3, 4]
    assert Windows(INFERENCE).finish() == []


def test_misuse_is_refused() -> None:
    windows = Windows(INFERENCE)
    windows.push(0, numbered(0, 5))
    with pytest.raises(ValueError, match="new time line"):
        windows.push(4, numbered(4, 5))
    with pytest.raises(ValueError, match=r"must be \(80, n\)"):
        windows.push(5, np.zeros((16, 80), np.float32))
    with pytest.raises(ValueError, match="ahead >= 1"):
        Windows(MelWindow(back=0, ahead=0))
