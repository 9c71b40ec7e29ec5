"""Mel frames: equal to librosa's, whatever the pieces."""

from __future__ import annotations

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from services.mel_features.mel import HOP, LONG_GAP_SAMPLES, MEL_FLOOR, StreamingMel, mel_filterbank, whole_file
from tests import budgets
from tests.unit.speech import speech

Sound = npt.NDArray[np.float64]
NOISE = np.random.default_rng(1).normal(0, 0.1, 40_000).clip(-1, 1)


def reference(sound: Sound) -> npt.NDArray[np.float32]:
    """The published recipe on librosa and SciPy, written as plainly as possible."""
    padded = np.pad(lfilter([1, -0.97], [1], sound), 400, mode="reflect")  # librosa's own padding refuses short sounds
    stft = librosa.stft(y=padded, n_fft=800, hop_length=200, win_length=800, center=False)
    bank = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600)
    decibels = 20 * np.log10(np.maximum(1e-5, bank @ np.abs(stft))) - 20
    return np.asarray(np.clip(8 * ((decibels + 100) / 100) - 4, -4, 4), np.float32)


def in_pieces(sound: npt.NDArray[np.generic], lengths: list[int]) -> npt.NDArray[np.float32]:
    mel = StreamingMel()
    made = []
    at = 0
    while at < sound.size:
        for length in lengths:
            first = mel.frames_out
            made.append(mel.push(sound[at : at + length]))
            assert mel.frames_out == first + made[-1].shape[1]
            at += length
    made.append(mel.flush())
    return np.concatenate(made, axis=1)


def test_filterbank_is_librosas() -> None:
    theirs = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600, dtype=np.float64)
    np.testing.assert_allclose(mel_filterbank(), theirs, rtol=0, atol=budgets.MEL_FILTERBANK_TOLERANCE)


def test_the_reference_is_librosas_centred_transform() -> None:
    own = librosa.stft(y=NOISE, n_fft=800, hop_length=200, win_length=800, center=True, pad_mode="reflect")
    padded = librosa.stft(y=np.pad(NOISE, 400, mode="reflect"), n_fft=800, hop_length=200, center=False)
    np.testing.assert_allclose(padded, own, rtol=0, atol=budgets.MEL_FILTERBANK_TOLERANCE)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("synthesiser", ["espeak-ng", "flite"])
def test_speech_equals_librosa(synthesiser: str, rate_hz: int) -> None:
    recorded = speech(synthesiser, rate_hz)
    to_16k = soxr.ResampleStream(rate_hz, 16_000, 1, dtype="float64", quality="HQ")
    step = rate_hz // 50
    pieces = [
        to_16k.resample_chunk(recorded[at : at + step], last=at + step >= recorded.size)
        for at in range(0, recorded.size, step)
    ]
    pcm = np.rint(np.concatenate(pieces) * 32767).clip(-32768, 32767).astype(np.int16)
    expected = reference(pcm / 32768)
    assert expected.max() > 0, "the speech is loud enough to mean something"
    np.testing.assert_allclose(whole_file(pcm), expected, rtol=0, atol=budgets.MEL_TOLERANCE)
    np.testing.assert_allclose(in_pieces(pcm, [320]), expected, rtol=0, atol=budgets.MEL_TOLERANCE)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 6000),
    lengths=st.lists(st.integers(0, 2500), min_size=1, max_size=30).filter(any),
)
def test_any_pieces_give_the_whole(length: int, lengths: list[int]) -> None:
    sound = NOISE[:length]
    whole = whole_file(sound)
    assert whole.shape == (80, 1 + length // HOP)
    np.testing.assert_allclose(in_pieces(sound, lengths), whole, rtol=0, atol=budgets.MEL_TOLERANCE)


@pytest.mark.parametrize("length", [1, 2, 3, 199, 200, 399, 400, 401, 402, 599, 799, 800, 801, 1001])
def test_short_sounds_equal_librosa(length: int) -> None:
    sound = NOISE[:length]
    expected = reference(sound)
    np.testing.assert_allclose(whole_file(sound), expected, rtol=0, atol=budgets.MEL_TOLERANCE)
    np.testing.assert_allclose(in_pieces(sound, [7]), expected, rtol=0, atol=budgets.MEL_TOLERANCE)


def test_a_long_file_is_the_same_in_blocks() -> None:
    sound = np.tile(NOISE, 9)  # 22.5 s, more than two blocks
    np.testing.assert_allclose(whole_file(sound), reference(sound), rtol=0, atol=budgets.MEL_TOLERANCE)


def test_a_frame_is_known_400_samples_after_its_centre() -> None:
    mel = StreamingMel()
    for k in range(5):
        assert mel.push(NOISE[mel.samples_in : 200 * k + 399]).shape[1] == 0
        assert mel.push(NOISE[200 * k + 399 : 200 * k + 400]).shape[1] == 1
        assert mel.frames_out == k + 1


def test_int16_is_scaled_and_silence_is_the_floor() -> None:
    pcm = np.rint(NOISE * 32768).clip(-32768, 32767).astype(np.int16)
    np.testing.assert_array_equal(whole_file(pcm), whole_file(pcm / 32768))
    assert (whole_file(np.zeros(2000, np.int16)) == MEL_FLOOR).all()
    assert whole_file(np.zeros(0, np.int16)).shape == (80, 0)


@pytest.mark.parametrize("gap", [1, 57, 320, 3000, LONG_GAP_SAMPLES - 1])
def test_a_short_gap_is_silence_and_the_time_line_stays(gap: int) -> None:
    mel = StreamingMel()
    made = np.concatenate([mel.push(NOISE[:5000]), mel.skip(gap), mel.push(NOISE[5000 + gap : 40_000]), mel.flush()], 1)
    whole = whole_file(NOISE)
    assert made.shape == whole.shape
    before, after = (5000 - 400) // HOP, -(-(5000 + gap + 401) // HOP)
    np.testing.assert_allclose(made[:, : before + 1], whole[:, : before + 1], rtol=0, atol=budgets.MEL_TOLERANCE)
    np.testing.assert_allclose(made[:, after:], whole[:, after:], rtol=0, atol=budgets.MEL_TOLERANCE)
    silent = made[:, -(-5400 // HOP) : (5000 + gap - 400) // HOP]
    assert (silent == MEL_FLOOR).all()


@pytest.mark.parametrize("gap", [LONG_GAP_SAMPLES, LONG_GAP_SAMPLES + 77, 10 * 3600 * 16_000])
def test_a_long_gap_equals_silence_without_its_frames(gap: int) -> None:
    mel = StreamingMel()
    head = mel.push(NOISE[:5003])
    tail = mel.skip(gap)
    resumed_at = mel.frames_out
    assert resumed_at == -(-(5003 + gap) // HOP)
    after = np.concatenate([mel.push(NOISE[:7000]), mel.flush()], 1)
    assert mel.samples_in == 5003 + gap + 7000

    short = StreamingMel()  # the same phase, with the silence computed
    gap = LONG_GAP_SAMPLES - 200 + gap % HOP
    whole = np.concatenate([short.push(NOISE[:5003]), short.skip(gap), short.push(NOISE[:7000]), short.flush()], 1)
    heard = np.concatenate([head, tail], 1)
    np.testing.assert_allclose(heard, whole[:, : heard.shape[1]], rtol=0, atol=budgets.MEL_TOLERANCE)
    assert (whole[:, heard.shape[1] : (5003 + gap - 400) // HOP + 1] == MEL_FLOOR).all()
    np.testing.assert_allclose(after, whole[:, -after.shape[1] :], rtol=0, atol=budgets.MEL_TOLERANCE)


@pytest.mark.parametrize("start", [0, 1, 199, 200, 12_345, 2**40])
def test_a_start_in_the_middle_keeps_the_numbers(start: int) -> None:
    sound = np.concatenate([np.zeros(4000), NOISE[:8000]])
    mel = StreamingMel(start)
    first = mel.frames_out
    assert first == -(-start // HOP)
    made = np.concatenate([mel.push(sound[:300]), mel.push(sound[300:]), mel.flush()], 1)
    assert mel.frames_out == (start + sound.size) // HOP + 1
    onset = next(k for k in range(made.shape[1]) if made[:, k].max() > MEL_FLOOR)
    centre = (first + onset) * HOP - start
    assert 3600 < centre <= 3820, "the first frame that the noise at 4000 reaches; the window begins at nothing"


def test_a_start_at_a_frame_is_a_file_of_its_own() -> None:
    fresh, moved = StreamingMel(), StreamingMel(200 * 77)
    sound = np.concatenate([[0.0], NOISE[:3000]])
    np.testing.assert_allclose(fresh.push(sound), moved.push(sound), rtol=0, atol=budgets.MEL_TOLERANCE)
    moved.start_at(0)
    assert moved.frames_out == 0
    np.testing.assert_allclose(moved.push(NOISE), StreamingMel().push(NOISE), rtol=0, atol=0)


def test_loud_offsets_do_not_click_after_a_gap() -> None:
    """A steady offset that breaks off and comes again is no sound; pre-emphasis alone would make two clicks of it."""
    mel = StreamingMel()
    steady = np.full(4000, 0.5)
    made = np.concatenate([mel.push(steady), mel.skip(4000), mel.push(steady)], 1)
    assert made[40:, 24:45].max() < whole_file(steady)[40:, :1].max()


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (np.zeros((2, 320), np.int16), "mono"),
        (np.zeros(320, np.int32), "int16"),
        (np.array([0.0, np.nan]), "not finite"),
    ],
)
def test_other_sound_is_refused(sound: npt.NDArray[np.generic], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StreamingMel().push(sound)


def test_misuse_is_refused() -> None:
    mel = StreamingMel()
    with pytest.raises(ValueError, match="0 or more"):
        mel.skip(-1)
    with pytest.raises(ValueError, match="0 or more"):
        mel.start_at(-1)
    mel.flush()
    with pytest.raises(RuntimeError, match="start_at"):
        mel.push(NOISE)
    mel.start_at(0)
    mel.push(NOISE)
