"""Sound to motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from services.inference.builtin import drive
from services.mel_features.mel import MEL_FLOOR, whole_file
from tests import budgets
from tests.unit.speech import speech as spoken_by

RATE_HZ = 16_000
LENGTH = drive.WINDOW.length
Pcm = npt.NDArray[np.int16]


def spoken(text: str) -> Pcm:
    return np.asarray(spoken_by("espeak-ng", RATE_HZ, text) * 32767, np.int16)


def motions(pcm: Pcm) -> list[drive.Motion]:
    """Motion of each video frame."""
    mel = whole_file(pcm)
    count = mel.shape[1] * 25 // 80
    padded = np.pad(mel, ((0, 0), (drive.WINDOW.back, drive.WINDOW.ahead)), constant_values=MEL_FLOOR)
    starts = [80 * k // 25 for k in range(count)]
    return [drive.motion_of(padded[:, start : start + LENGTH], 1.0) for start in starts]


def levels_db(pcm: Pcm) -> np.ndarray:
    """Loudness of each 10 ms, dB of full scale."""
    pieces = pcm[: len(pcm) // 160 * 160].reshape(-1, 160) / 32768.0
    return np.asarray(20 * np.log10(np.sqrt((pieces**2).mean(axis=1)) + 1e-5))


@pytest.fixture(scope="module")
def speech() -> Pcm:
    return spoken("The quick brown fox jumps over the lazy dog. Peter bought a big map of Brooklyn.")


@pytest.fixture(scope="module")
def paused(speech: Pcm) -> Pcm:
    pause = np.zeros(RATE_HZ, np.int16)
    return np.concatenate([pause, speech, pause, speech, pause])


def opening(pcm: Pcm) -> np.ndarray:
    return np.array([motion.open for motion in motions(pcm)])


def test_look_ahead_is_at_most_100_ms():
    # The last mel frame is centred 12.5 ms x (ahead - 1) after the start, its STFT window reaches 25 ms further.
    assert 12.5 * (drive.WINDOW.ahead - 1) + 25 <= budgets.BUILTIN_LOOK_AHEAD_MS
    assert drive.WINDOW.shift == 0


def test_opening_follows_loudness_without_lag(paused: Pcm):
    lips, loudness = opening(paused), levels_db(paused)
    best = max(range(-15, 31), key=lambda lag: correlation(lips, loudness, lag))
    assert correlation(lips, loudness, best) >= budgets.BUILTIN_LOUDNESS_CORRELATION
    assert abs(best) * 10 <= budgets.BUILTIN_LOUDNESS_LAG_MS


def correlation(lips: np.ndarray, loudness: np.ndarray, lag: int) -> float:
    """Pearson's r of the opening with the loudness `lag` x 10 ms earlier."""
    at = np.arange(len(lips)) * 4 + 2 - lag
    inside = (at >= 0) & (at < len(loudness))
    return float(np.corrcoef(lips[inside], loudness[at[inside]])[0, 1])


def test_pauses_are_closed_and_speech_is_not(paused: Pcm):
    lips, loudness = opening(paused), levels_db(paused)
    heard = np.array([loudness[max(0, 4 * k - 12) : 4 * k + 16].max() for k in range(len(lips))])
    assert (heard < -80).sum() > 50
    assert not lips[heard < -80].any()
    assert lips.max() > 0.5 * drive.OPEN_MOST
    assert lips.max() <= drive.OPEN_MOST


def test_level_of_the_recording_does_not_matter(speech: Pcm):
    loud = opening(speech)
    quiet = opening((speech * 0.2).astype(np.int16))  # 14 dB less
    assert np.abs(loud - quiet).mean() <= budgets.BUILTIN_LEVEL_DIFFERENCE * drive.OPEN_MOST
    assert np.corrcoef(loud, quiet)[0, 1] > 0.95


def test_noise_of_a_room_does_not_speak():
    noise = np.random.default_rng(3).standard_normal(4 * RATE_HZ) * 10 ** (-50 / 20) * 32768
    assert opening(noise.astype(np.int16)).max() <= budgets.BUILTIN_NOISE_SHARE * drive.OPEN_MOST


def test_vowels_have_their_shapes():
    wide, narrow, wide_open = (middle_of(spoken(f"[[p{vowel}:p{vowel}:]]")) for vowel in ("i", "u", "A"))
    assert wide.width > narrow.width
    assert wide_open.open > wide.open
    assert wide_open.open > narrow.open


def middle_of(pcm: Pcm) -> drive.Motion:
    """Mean motion of the louder half."""
    found = sorted(motions(pcm), key=lambda motion: motion.open)[-len(motions(pcm)) // 3 :]
    return drive.Motion(*np.mean([motion.coefficients for motion in found], axis=0))


def test_lips_close_between_vowels():
    lips = opening(spoken("[[ap'ap'apa]]"))
    peaks = np.flatnonzero(lips > 0.4 * lips.max())
    between = lips[peaks[0] : peaks[-1]]
    assert between.min() <= budgets.BUILTIN_CLOSURE_SHARE * lips.max()


def test_gain_scales_and_silences(speech: Pcm):
    mel = whole_file(speech)[:, 40 : 40 + LENGTH]
    full, half = drive.motion_of(mel, 1.0), drive.motion_of(mel, 0.5)
    assert full.open > 0
    np.testing.assert_allclose(half.coefficients, full.coefficients / 2, rtol=1e-6)
    assert drive.motion_of(mel, 0.0) == drive.REST


def test_silence_is_rest():
    assert drive.motion_of(np.full((80, LENGTH), MEL_FLOOR, np.float32), 1.0) == drive.REST


def test_wrong_window_is_refused():
    with pytest.raises(ValueError, match="80, 87"):
        drive.motion_of(np.zeros((80, 16), np.float32), 1.0)
