"""Sound to motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from scripts._builtin.phonemes import BILABIALS, OPEN_VOWELS, Spoken, Voice, speak
from services.inference.builtin import drive
from services.inference.builtin.engine import MODELS
from services.inference.engine import Drive
from services.mel_features.mel import MEL_FLOOR, whole_file
from services.mel_features.voice import VoiceGate
from tests import budgets
from tests.unit.speech import speech as spoken_by

RATE_HZ = 16_000
LENGTH = drive.WINDOW.length
Pcm = npt.NDArray[np.int16]
LEAD_S = 0.4
AHEAD = 3
"""video frames that the voice gate has heard beyond the one that it is asked for"""


@pytest.fixture(scope="module")
def hearing() -> drive.Speech:
    return drive.Speech(MODELS)


def spoken(text: str) -> Pcm:
    return np.asarray(spoken_by("espeak-ng", RATE_HZ, text) * 32767, np.int16)


def windows(pcm: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> list[Drive]:
    """Mel window of each video frame."""
    mel = whole_file(pcm)
    count = mel.shape[1] * 25 // 80
    padded = np.pad(mel, ((0, 0), (drive.WINDOW.back, drive.WINDOW.ahead)), constant_values=MEL_FLOOR)
    return [Drive(np.ascontiguousarray(padded[:, start : start + LENGTH]), 1.0) for start in
            (80 * k // 25 for k in range(count))]  # fmt: skip


def opening(hearing: drive.Speech, pcm: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How far the lips are apart in each frame, eye distances."""
    return np.array([motion.open + motion.raised for motion in hearing.motions(windows(pcm))])


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


def test_look_ahead_is_at_most_100_ms():
    # The last mel frame is centred 12.5 ms x (ahead - 1) after the start, its STFT window reaches 25 ms further.
    assert 12.5 * (drive.WINDOW.ahead - 1) + 25 <= budgets.BUILTIN_LOOK_AHEAD_MS
    assert drive.WINDOW.shift == 0


def test_opening_follows_loudness_without_lag(hearing: drive.Speech, paused: Pcm):
    lips, loudness = opening(hearing, paused), levels_db(paused)
    best = max(range(-15, 31), key=lambda lag: correlation(lips, loudness, lag))
    assert correlation(lips, loudness, best) >= budgets.BUILTIN_LOUDNESS_CORRELATION
    assert abs(best) * 10 <= budgets.BUILTIN_LOUDNESS_LAG_MS


def correlation(lips: np.ndarray, loudness: np.ndarray, lag: int) -> float:
    """Pearson's r of the opening with the loudness `lag` x 10 ms earlier."""
    at = np.arange(len(lips)) * 4 + 2 - lag
    inside = (at >= 0) & (at < len(loudness))
    return float(np.corrcoef(lips[inside], loudness[at[inside]])[0, 1])


def test_pauses_are_closed_and_speech_is_not(hearing: drive.Speech, paused: Pcm):
    lips, loudness = opening(hearing, paused), levels_db(paused)
    heard = np.array([loudness[max(0, 4 * k - 20) : 4 * k + 20].max() for k in range(len(lips))])
    assert (heard < -80).sum() > 50
    assert lips[heard < -80].max() <= budgets.BUILTIN_NOISE_SHARE * lips.max()
    assert budgets.BUILTIN_SPEAKS * drive.OPEN_MOST < lips.max() <= drive.OPEN_MOST


def test_level_of_the_recording_does_not_matter(hearing: drive.Speech, speech: Pcm):
    loud = opening(hearing, speech)
    quiet = opening(hearing, (speech * 0.2).astype(np.int16))  # 14 dB less
    assert np.abs(loud - quiet).mean() <= budgets.BUILTIN_LEVEL_DIFFERENCE * drive.OPEN_MOST
    assert np.corrcoef(loud, quiet)[0, 1] > budgets.BUILTIN_LEVEL_CORRELATION


def test_noise_of_a_room_does_not_speak(hearing: drive.Speech, speech: Pcm):
    noise = np.random.default_rng(3).standard_normal(4 * RATE_HZ) * 10 ** (-50 / 20) * 32768
    most = opening(hearing, speech).max()
    gate = VoiceGate()
    gated = []
    for k, each in enumerate(windows(noise.astype(np.int16))):
        gate.push(np.asarray(noise[640 * k : 640 * (k + 1)], np.int16))
        if k >= AHEAD:
            gated.append(Drive(each.mel, gate.gain_at(640 * (k - AHEAD) + 320)))
    lips = [motion.open + motion.raised for motion in hearing.motions(gated)]
    assert max(lips) <= budgets.BUILTIN_NOISE_SHARE * most
    assert opening(hearing, noise.astype(np.int16)).max() <= budgets.BUILTIN_UNGATED_NOISE_SHARE * most


TEXTS = (
    "Mamma Mia, the map of Panama. Maybe Bob bumped up a poppy.",
    "A big farmer, a camel, a bubble, a lamp and a problem.",
    "We see three blue moons move far, far away in the afternoon.",
)
VOICES = (
    Voice("espeak-ng", "en-us"),
    Voice("espeak-ng", "en-us+f3", 1.1),
    Voice("flite", "slt"),
    Voice("flite", "rms"),
)


@pytest.fixture(scope="module")
def told(hearing: drive.Speech) -> list[tuple[Spoken, list[drive.Motion]]]:
    """Sentences that nobody trained on, with the motion of each frame; `LEAD_S` of silence stands before."""
    made = []
    for text in TEXTS:
        for voice in VOICES:
            said = speak(text, voice)
            sound = np.pad(said.samples, int(LEAD_S * RATE_HZ)).astype(np.float32)
            made.append((said, hearing.motions(windows(sound))))
    return made


def test_lips_meet_on_p_b_m(told: list[tuple[Spoken, list[drive.Motion]]]):
    met = []
    for said, motions in told:
        lips = np.array([motion.open + motion.raised for motion in motions])
        usual = np.quantile(lips, budgets.BUILTIN_USUAL_QUANTILE)
        for phone in said.phones:
            if phone.symbol in BILABIALS:
                first, last = int((phone.start_s + LEAD_S) * 25 - 1), int((phone.end_s + LEAD_S) * 25 + 2)
                met.append(lips[first : last + 1].min() <= budgets.BUILTIN_CLOSED * usual)
    assert len(met) > 100
    assert np.mean(met) >= budgets.BUILTIN_CLOSURES


def test_vowels_have_their_shapes(told: list[tuple[Spoken, list[drive.Motion]]]):
    wider, narrower = [], []
    for said, motions in told:
        open_: list[float] = []
        close: list[float] = []
        spread: list[float] = []
        rounded: list[float] = []
        for phone in said.phones:
            if phone.end_s - phone.start_s < 0.05:
                continue
            first, last = int((phone.start_s + LEAD_S) * 25), int((phone.end_s + LEAD_S) * 25) + 1
            lips = [motion.open + motion.raised for motion in motions[first:last]]
            width = float(np.mean([motion.width for motion in motions[first:last]]))
            if phone.symbol in OPEN_VOWELS:
                open_.append(max(lips))
            if phone.symbol in "iu":
                close.append(lips[len(lips) // 2])
                (spread if phone.symbol == "i" else rounded).append(width)
        wider += [a > b for a in open_ for b in close]
        narrower += [u < i for u in rounded for i in spread]
    assert np.mean(wider) >= budgets.BUILTIN_WIDER
    assert np.mean(narrower) >= budgets.BUILTIN_NARROWER


def test_gain_scales_and_silences(hearing: drive.Speech, speech: Pcm):
    loud = max(windows(speech), key=lambda each: hearing.motions([each])[0].open)
    full, half, none = hearing.motions([loud, Drive(loud.mel, 0.5), Drive(loud.mel, 0.0)])
    assert full.open > budgets.BUILTIN_LOUD_OPENING
    np.testing.assert_allclose(half.coefficients, full.coefficients / 2, rtol=1e-5)
    assert none == drive.REST


def test_frames_do_not_depend_on_their_batch(hearing: drive.Speech, speech: Pcm):
    some = windows(speech)[10:14]
    alone = [hearing.motions([each])[0].coefficients for each in some]
    np.testing.assert_allclose([motion.coefficients for motion in hearing.motions(some)], alone, atol=1e-5)


def test_silence_is_rest(hearing: drive.Speech):
    (motion,) = hearing.motions([Drive(np.full((80, LENGTH), MEL_FLOOR, np.float32), 1.0)])
    assert motion == drive.REST


def test_wrong_window_is_refused(hearing: drive.Speech):
    with pytest.raises(ValueError, match=f"80, {LENGTH}"):
        hearing.motions([Drive(np.zeros((80, 16), np.float32), 1.0)])


def test_shape_stays_within_what_a_mouth_can_do():
    said = np.random.default_rng(0).normal(0, 2, (500, 4)).astype(np.float32)
    made = drive.shaped(said)
    assert np.isfinite(made).all()
    assert (made[:, 0] >= 0).all()
    assert (made[:, 0] + made[:, 2] <= drive.OPEN_MOST).all()
    assert made[:, 1].min() >= -drive.NARROW_MOST
    assert made[:, 1].max() <= drive.WIDE_MOST


def test_pressed_lips_are_shut_whatever_else_is_said():
    made = drive.shaped(np.array([[0.8, 0.2, 0.1, 0.9], [0.8, 0.2, 0.1, 0.5]], np.float32))
    assert made[0, 0] + made[0, 2] == 0
    assert made[0, 3] == pytest.approx(drive.PRESS_MOST)
    assert made[1, 0] > budgets.BUILTIN_SPEAKS * drive.OPEN_MOST
    assert made[1, 3] == 0


def test_a_missing_network_tells_what_to_do(tmp_path: Path):
    with pytest.raises(drive.SpeechError, match="restore it"):
        drive.Speech(tmp_path)


def test_a_broken_network_tells_what_to_do(tmp_path: Path):
    (tmp_path / "speech.xml").write_text("<net>")
    with pytest.raises(drive.SpeechError, match="scripts/train_builtin"):
        drive.Speech(tmp_path)


def test_a_network_of_another_version_is_refused(tmp_path: Path):
    text = (MODELS / "speech.xml").read_text().replace(f'dim="{LENGTH}"', 'dim="80"', 1)
    (tmp_path / "speech.xml").write_text(text.replace(f"80,{LENGTH}", "80,80", 1))
    (tmp_path / "speech.bin").write_bytes((MODELS / "speech.bin").read_bytes())
    with pytest.raises(drive.SpeechError):
        drive.Speech(tmp_path)
