"""Synthetic speech: are the phones where the sound has them, and does the mouth do what they ask for?"""
# ruff: noqa: RUF001 - the letters of IPA look like others

from __future__ import annotations

import os
import shutil
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from scripts._builtin import phonemes
from scripts._builtin.phonemes import (
    BILABIALS,
    DOMINANCE,
    ESPEAK_LANGUAGES,
    FLITE_VOICES,
    PAUSE,
    VISEMES,
    Phone,
    SpeechError,
    Spoken,
    Voice,
    closures,
    motion_targets,
    speak,
)
from scripts._builtin.sentences import EVALUATION, TRAINING, VOICE_OF
from tests import budgets

HOP, WINDOW = 40, 160
"""samples"""
VOWELS = frozenset("aɑɐæʌɒiɪeɛuʊoɔəɜɚɝ")
CLOSURES_TEXT = "A paper cup, a happy puppy, a copper teapot. Oppa appa eppo. Ippa, uppo, akka, otto, ekko."
HISSES_TEXT = "A sea, a mossy lassie, a basso, a cashew, a hissing goose."


@pytest.fixture(params=["espeak-ng en-us", "espeak-ng it", "espeak-ng de", "flite slt", "flite awb", "flite rms"])
def voice(request: pytest.FixtureRequest) -> Voice:
    synthesiser, name = request.param.split()
    need(synthesiser)
    return Voice(synthesiser, name)


Synthesiser = Literal["espeak-ng", "flite"]


def need(synthesiser: str) -> None:
    """Skip a test without its synthesiser; under CI nothing is skipped."""
    if shutil.which(synthesiser) is None:
        reason = f"{synthesiser} is not installed (apt install {synthesiser})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def followed(spoken: Spoken) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Level, dB, share of energy above 2.4 kHz, and time, s, of short pieces."""
    at = np.arange(0, len(spoken.samples) - WINDOW, HOP)
    pieces = spoken.samples[at[:, None] + np.arange(WINDOW)].astype(np.float64)
    power = np.abs(np.fft.rfft(pieces * np.hanning(WINDOW))) ** 2
    level = 10 * np.log10((pieces**2).mean(axis=1) + 1e-9)
    return level, power[:, 24:].sum(axis=1) / (power.sum(axis=1) + 1e-9), (at + WINDOW / 2) / 16_000


def test_closures_are_silent_where_the_phones_say(voice: Voice) -> None:
    """The stretch that is 15 dB below its vowels begins where p, t, k begin."""
    spoken = speak(CLOSURES_TEXT, voice)
    level, _, at_s = followed(spoken)
    late_s = []
    for before, stop, after in zip(spoken.phones, spoken.phones[1:], spoken.phones[2:], strict=False):
        if stop.symbol in "ptk" and before.symbol in VOWELS and after.symbol in VOWELS:
            vowel = np.median(level[(at_s > before.start_s) & (at_s < before.end_s)])
            near = (at_s > stop.start_s - 0.08) & (at_s < stop.end_s)
            quiet = at_s[near & (level < (vowel + level[near].min()) / 2)]
            late_s.append(quiet[0] - stop.start_s)
    assert len(late_s) >= budgets.PHONEMES_LEAST_CASES
    assert np.median(np.abs(late_s)) <= budgets.PHONEMES_CLOSURE_ERROR_S


def test_hisses_are_where_the_phones_say(voice: Voice) -> None:
    """High frequencies begin and end with s and ʃ."""
    spoken = speak(HISSES_TEXT, voice)
    _, high, at_s = followed(spoken)
    errors_s = []
    for before, hiss, after in zip(spoken.phones, spoken.phones[1:], spoken.phones[2:], strict=False):
        if hiss.symbol in "sʃ" and before.symbol in VOWELS and after.symbol in VOWELS:
            near = (at_s > hiss.start_s - 0.06) & (at_s < hiss.end_s + 0.06)
            loud = at_s[near & (high > 0.5)]
            errors_s += [loud[0] - hiss.start_s, loud[-1] - hiss.end_s] if loud.size else [1.0, 1.0]
    assert len(errors_s) >= budgets.PHONEMES_LEAST_CASES
    assert np.median(np.abs(errors_s)) <= budgets.PHONEMES_HISS_ERROR_S


@pytest.mark.parametrize("synthesiser", ["espeak-ng", "flite"])
def test_phones_cover_the_sound(synthesiser: Synthesiser) -> None:
    need(synthesiser)
    one = speak("My bag. Five ships!", Voice(synthesiser, "en+f2" if synthesiser == "espeak-ng" else "rms", 1.2, 1.1))
    assert one.samples.dtype == np.float32
    assert 0.01 < np.abs(one.samples).max() <= 1
    assert one.phones[0].start_s == 0
    assert one.phones[-1].end_s == pytest.approx(len(one.samples) / 16_000, abs=1e-3)
    for before, after in zip(one.phones, one.phones[1:], strict=False):
        assert before.start_s < before.end_s == pytest.approx(after.start_s)
    said = "".join(phone.symbol for phone in one.phones)
    for part in ("ma", "b", "ɡ", "f", "v", "ʃɪps"):
        assert part in said
    again = speak(one.text, Voice(synthesiser, one.voice, 1.2, 1.1))
    assert np.array_equal(one.samples, again.samples)
    assert one.phones == again.phones


@pytest.mark.parametrize("language", sorted({*EVALUATION, *TRAINING}))
def test_every_language_is_known(language: str) -> None:
    need("espeak-ng")
    for texts in (TRAINING.get(language, ()), EVALUATION.get(language, ())):
        for text in texts[:1]:
            spoken = speak(text, Voice("espeak-ng", VOICE_OF[language]))
            symbols = {phone.symbol for phone in spoken.phones}
            assert symbols <= set(VISEMES)
            assert symbols & BILABIALS


def test_lists() -> None:
    assert set(VOICE_OF.values()) == set(ESPEAK_LANGUAGES)
    training = [text for texts in TRAINING.values() for text in texts]
    evaluation = [text for texts in EVALUATION.values() for text in texts]
    assert len(training) >= budgets.PHONEMES_TRAINING_TEXTS
    assert len({*training, *evaluation}) == len(training) + len(evaluation)
    assert set(VISEMES) == set(DOMINANCE)


def test_lips_meet_on_every_bilabial_and_vowels_differ() -> None:
    """At 25 frames a second, wherever the frames happen to lie."""
    phones = [Phone(PAUSE, 0.0, 0.2)]
    for symbol in "pabimuamapabʊmibe":
        at_s = phones[-1].end_s
        phones.append(Phone(symbol, at_s, at_s + (0.05 if symbol in BILABIALS else 0.14)))
    phones.append(Phone(PAUSE, phones[-1].end_s, phones[-1].end_s + 0.3))
    for shift_s in np.arange(0, 0.04, 0.005):
        moved = [Phone(p.symbol, p.start_s + shift_s, p.end_s + shift_s) for p in phones]
        motion = motion_targets(moved, int(25 * moved[-1].end_s))
        frames_s = (np.arange(len(motion)) + 0.5) / 25
        for first_s, last_s, _ in closures(moved):
            within = motion[(frames_s >= first_s - 1e-9) & (frames_s <= last_s + 1e-9)]
            assert len(within)
            assert within[:, 0].max() == within[:, 2].max() == 0
            assert within[:, 3].min() >= budgets.PHONEMES_PRESSED
    fine = motion_targets(phones, int(200 * phones[-1].end_s), 200.0)
    at = {p.symbol: fine[int(100 * (p.start_s + p.end_s))] for p in phones}
    assert at["a"][0] >= budgets.PHONEMES_OPEN_VOWEL
    assert at["a"][0] > max(at["i"][0], at["u"][0]) + budgets.PHONEMES_VOWEL_DIFFERENCE
    assert at["i"][1] > at["a"][1] > at["u"][1] + budgets.PHONEMES_VOWEL_DIFFERENCE
    assert np.abs(fine[[0, -1]]).max() <= budgets.PHONEMES_REST
    assert np.abs(np.diff(fine, axis=0)).max() <= budgets.PHONEMES_STEP


def test_no_frame_without_phones() -> None:
    assert not motion_targets([], 3).any()
    assert motion_targets([Phone(PAUSE, 0, 1)], 25).max() == 0


def test_what_cannot_be_spoken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    need("espeak-ng")
    with pytest.raises(SpeechError, match="no voice tlh-x"):
        speak("hello", Voice("espeak-ng", "tlh-x"))
    with pytest.raises(SpeechError, match="one of slt"):
        speak("hello", Voice("flite", "nobody"))
    with pytest.raises(SpeechError, match="rate 9"):
        speak("hello", Voice("flite", FLITE_VOICES[0], 9.0))
    with pytest.raises(SpeechError, match="nothing was said"):
        speak("", Voice("espeak-ng", "en"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SpeechError, match="apt install flite"):
        speak("hello", Voice("flite", FLITE_VOICES[0]))
    with pytest.raises(SpeechError, match="not in the set"):
        phonemes._symbols("ʘ", Voice("espeak-ng", "zu"))
