"""The voice gate: open in speech, closed without it, in the rooms and at the microphones that people have."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from services.mel_features.voice import VoiceGate
from tests import budgets
from tests.unit.speech import speech

Sound = npt.NDArray[np.float64]

RATE_HZ = 16_000
STEP = 160
"""grid of the questions here; the frames of a picture ask every 640"""
LOOKAHEAD = 1600
"""samples that a frame waits for: the engine's look-ahead of 100 ms"""
SENTENCES = (
    "Good morning everybody.",
    "She sells sea shells.",
    "Put a better apple on top.",
)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def coloured(samples: int, colour: str) -> Sound:
    """Noise of unit RMS."""
    if colour == "hum":
        t = np.arange(samples) / RATE_HZ
        noise = sum(
            np.sin(2 * np.pi * 50 * k * t + k) * level
            for k, level in enumerate((1, 0.5, 0.6, 0.2, 0.3, 0.1, 0.15, 0.05, 0.08), 1)
        ) + random(3).normal(0, 0.01, samples)
    else:
        spectrum = np.fft.rfft(random(2).normal(size=samples))
        hz = np.maximum(np.fft.rfftfreq(samples, 1 / RATE_HZ), 1.0)
        spectrum *= {"white": 1.0, "pink": hz**-0.5, "fan": 1 / (1 + hz / 150)}[colour]
        spectrum[0] = 0
        noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))), np.float64)


@cache
def spoken(synthesiser: str) -> tuple[Sound, tuple[tuple[int, int], ...]]:
    """Sentences with 1 s of nothing between and 1.5 s before; unit RMS within the sentences; where they are."""
    parts, places, at = [np.zeros(3 * RATE_HZ // 2)], [], 3 * RATE_HZ // 2
    for text in SENTENCES:
        sentence = speech(synthesiser, text=text)
        loud = np.flatnonzero(np.abs(sentence) > 0.01 * np.abs(sentence).max())
        sentence = sentence[loud[0] : loud[-1] + 1]
        places.append((at, at + sentence.size))
        parts += [sentence, np.zeros(RATE_HZ)]
        at += sentence.size + RATE_HZ
    sound = np.concatenate(parts)
    sound /= np.sqrt(np.mean(np.concatenate([sound[a:b] for a, b in places]) ** 2))
    return sound, tuple(places)


def gains(sound: Sound, chunk: int = 320, every: int = STEP, lookahead: int = LOOKAHEAD) -> Sound:
    """What frames are told that ask 100 ms after their moment, on a finer grid than theirs."""
    pcm = np.rint(sound * 32767).clip(-32768, 32767).astype(np.int16)
    gate = VoiceGate()
    told: list[float] = []
    for at in range(0, pcm.size, chunk):
        gate.push(pcm[at : at + chunk])
        while len(told) * every + lookahead <= at + chunk:
            told.append(gate.gain_at(len(told) * every))
    return np.array(told)


def level_db(sound: Sound, moments: npt.NDArray[np.int64]) -> Sound:
    """RMS of the 20 ms around each moment, dB."""
    power = np.concatenate([[0.0], np.cumsum(sound**2)])
    low, high = np.maximum(moments - 160, 0), np.minimum(moments + 160, sound.size)
    return np.asarray(10 * np.log10((power[high] - power[low]) / 320 + 1e-12), np.float64)


def assert_follows(
    sound: Sound, clean: Sound, places: tuple[tuple[int, int], ...], audible_db: float, share: float
) -> None:
    """Hold the gate to the speech without its noise (unit RMS), whose parts above `audible_db` can be heard in it."""
    gain = gains(sound)
    moments = np.arange(gain.size) * STEP
    level = level_db(clean, moments)
    heard = level >= audible_db
    assert gain[heard].mean() >= share
    for start, end in places:
        inside = (moments >= start) & (moments < end)
        onset = moments[inside & heard][0]
        opened = moments[(gain >= 1.0) & (moments >= onset - 3200)][0]
        assert (opened - onset) / 16 <= budgets.VOICE_ONSET_MS
        pause = (moments >= end + 16 * budgets.VOICE_CLOSED_AFTER_MS) & (moments < end + RATE_HZ - 16 * 70)
        assert gain[pause].max(initial=0.0) == 0.0, (
            f"open {(moments[pause & (gain > 0)] - end) / 16} ms after the voice"
        )
    assert gain[moments < places[0][0] - 16 * 70].max() == 0.0, "closed before the first word"


@pytest.mark.parametrize(("synthesiser", "snr_db"), [("espeak-ng", 20), ("espeak-ng", 10), ("flite", 10)])
@pytest.mark.parametrize("colour", ["white", "pink", "fan", "hum"])
def test_speech_in_noise(synthesiser: str, colour: str, snr_db: int) -> None:
    clean, places = spoken(synthesiser)
    noise = coloured(clean.size, colour) * 10 ** (-snr_db / 20)
    audible_db, share = {
        20: (-6.0, budgets.VOICE_OPEN_SHARE),
        10: (2.0, budgets.VOICE_OPEN_SHARE_NOISY),
    }[snr_db]
    assert_follows(0.08 * (clean + noise), clean, places, audible_db, share)


@pytest.mark.parametrize("synthesiser", ["espeak-ng", "flite"])
@pytest.mark.parametrize("room", ["digital zero", "room of -50 dBFS", "direct current", "quiet microphone"])
def test_speech_in_rooms(synthesiser: str, room: str) -> None:
    clean, places = spoken(synthesiser)
    white = coloured(clean.size, "white")
    sound = {
        "digital zero": 0.08 * clean,
        "room of -50 dBFS": 0.08 * clean + 10 ** (-50 / 20) * coloured(clean.size, "pink"),
        "direct current": 0.08 * clean + 0.3 + 10 ** (-65 / 20) * white,
        "quiet microphone": 10 ** (-35 / 20) * clean / np.abs(clean).max() + 10 ** (-78 / 20) * white,
    }[room]
    assert_follows(sound, clean, places, -6.0, budgets.VOICE_OPEN_SHARE)


@pytest.mark.parametrize("colour", ["white", "pink", "fan", "hum"])
def test_a_noise_from_the_start_never_opens(colour: str) -> None:
    assert gains(10 ** (-50 / 20) * coloured(6 * RATE_HZ, colour)).max() == 0.0


@pytest.mark.parametrize("colour", ["white", "pink", "fan"])
@pytest.mark.parametrize("level_dbfs", [-45, -30])
def test_a_fan_that_is_switched_on_is_noise_after_a_second(colour: str, level_dbfs: int) -> None:
    sound = 1e-4 * coloured(8 * RATE_HZ, "white")
    sound[2 * RATE_HZ :] += 10 ** (level_dbfs / 20) * coloured(6 * RATE_HZ, colour)
    gain = gains(sound)
    assert gain.max() == 1.0, "nobody can know at once"
    closed_s = np.flatnonzero(gain)[-1] * 0.01 - 2.0
    assert closed_s <= budgets.VOICE_NOISE_LEARNT_S


def test_a_held_vowel_stays_open() -> None:
    t = np.arange(2 * RATE_HZ) / RATE_HZ
    vowel = sum(np.sin(2 * np.pi * 120 * k * t) / (1 + ((120 * k - 600) / 400) ** 2) for k in range(1, 30))
    sound = 1e-3 * coloured(5 * RATE_HZ, "white")
    sound[2 * RATE_HZ : 4 * RATE_HZ] += 0.05 * vowel
    assert gains(sound)[200:400].min() == 1.0


def test_connected_speech_does_not_become_its_own_floor() -> None:
    sound, places = spoken("espeak-ng")
    talk = np.concatenate([sound[a:b] for a, b in places] * 4)
    gain = gains(0.08 * talk + 1e-3 * coloured(talk.size, "pink"))
    loud = level_db(talk, np.arange(gain.size) * 160) >= 0.0
    assert talk.size > 10 * RATE_HZ
    assert gain[loud].mean() >= budgets.VOICE_OPEN_SHARE


def test_speech_from_the_first_sample_is_heard() -> None:
    sound, places = spoken("espeak-ng")
    talk = 0.08 * sound[slice(*places[0])]
    assert gains(talk)[:20].min() == 1.0


def test_clicks_do_not_open() -> None:
    sound = 1e-3 * coloured(5 * RATE_HZ, "white")
    sound[20_000] += 0.9
    for at, length in ((30_000, 16), (40_000, 80), (55_007, 160)):
        sound[at : at + length] += 0.5 * random(at).normal(0, 1, length)
    assert gains(sound).max() == 0.0


@pytest.mark.parametrize("value", [0, 1, -32768, 32767])
def test_constant_sound_is_silence(value: int) -> None:
    gate = VoiceGate()
    for _ in range(100):
        gate.push(np.full(320, value, np.int16))
    assert max(gate.gain_at(sample) for sample in range(0, 32_000, 160)) == 0.0


def test_a_stop_within_a_word_does_not_close() -> None:
    burst = speech("espeak-ng", text="Aah")
    burst = burst / np.sqrt(np.mean(burst**2)) * 0.08
    voice = burst[np.abs(burst) > 0.02][:1600]
    voice = np.tile(voice, 4)[:4800]
    for stop_ms in (40, 80, 120):
        sound = np.concatenate([np.zeros(RATE_HZ), voice, np.zeros(16 * stop_ms), voice, np.zeros(RATE_HZ)])
        sound += 1e-4 * coloured(sound.size, "white")
        gain = gains(sound)
        assert gain[100 : 100 + 60 + stop_ms // 10 - 2].min() == 1.0, stop_ms


def test_it_falls_by_steps_and_not_at_once() -> None:
    clean, places = spoken("flite")
    gain = gains(0.08 * clean + 1e-4 * coloured(clean.size, "white"))
    assert np.diff(gain).min() >= -budgets.VOICE_STEEPEST_FALL
    assert len(places) <= np.count_nonzero((gain > 0) & (gain < 1))


@pytest.mark.parametrize("chunk", [1, 7, 160, 333, 16_000])
def test_the_pieces_do_not_matter(chunk: int) -> None:
    clean, _ = spoken("espeak-ng")
    pcm = np.rint(0.08 * clean[: 2 * RATE_HZ] * 32767).astype(np.int16)
    whole, pieces = VoiceGate(), VoiceGate()
    whole.push(pcm)
    for at in range(0, pcm.size, chunk):
        pieces.push(pcm[at : at + chunk])
    moments = range(0, pcm.size, 160)
    assert [whole.gain_at(sample) for sample in moments] == [pieces.gain_at(sample) for sample in moments]
    assert whole.gain_at(28_000) == 1.0


@pytest.mark.parametrize("gap", [1, 159, 160, 161, 1600, 50_000, 10**9])
def test_a_gap_keeps_the_time_line_and_the_floor(gap: int) -> None:
    clean, places = spoken("espeak-ng")
    sound = 0.08 * clean + 10 ** (-50 / 20) * coloured(clean.size, "pink")
    gate = VoiceGate()
    cut = places[0][0] - 3000  # in the noise before the first word
    gate.push(sound[:cut])
    floor = gate.floor_dbfs
    gate.skip(gap)
    gate.push(sound[cut : cut + 400])
    assert gate.floor_dbfs == pytest.approx(floor, abs=2.0)
    gate.push(sound[cut + 400 : places[0][1]])
    told = [gate.gain_at(gap + sample) for sample in range(cut, places[0][1], 160)]
    opened = cut + 160 * told.index(1.0)
    assert abs(opened - places[0][0]) / 16 <= budgets.VOICE_GAP_SHIFT_MS
    assert gate.gain_at(cut + gap // 2) == 0.0


def test_a_start_in_the_middle_shifts_the_time_line() -> None:
    clean, _ = spoken("espeak-ng")
    sound = 0.08 * clean[: 3 * RATE_HZ]
    here, there = VoiceGate(), VoiceGate(123_457)
    here.push(sound)
    there.push(sound)
    moments = range(0, sound.size, 160)
    assert [here.gain_at(m) for m in moments] == [there.gain_at(m + 123_457) for m in moments]
    there.start_at(0)
    assert there.gain_at(0) == 0.0
    there.push(sound)
    assert [here.gain_at(m) for m in moments] == [there.gain_at(m) for m in moments]


def test_memory_is_bounded_and_old_moments_are_silent() -> None:
    gate = VoiceGate()
    clean, places = spoken("espeak-ng")
    gate.push(0.08 * clean)
    gate.skip(10 * RATE_HZ)
    assert gate.gain_at(places[0][0] + 3000) == 0.0
    assert len(gate._confirmed) <= 500
    assert gate._sound.size < 320


def test_misuse_is_refused() -> None:
    gate = VoiceGate()
    with pytest.raises(ValueError, match="0 or more"):
        gate.skip(-1)
    with pytest.raises(ValueError, match="0 or more"):
        VoiceGate(-1)
    with pytest.raises(ValueError, match="mono"):
        gate.push(np.zeros((320, 2), np.int16))
