"""Lessons by synthesisers: what they say is known to the phone, so closures and vowels are supervised cleanly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from scripts._builtin.babble import babble
from scripts._builtin.lessons import Lesson
from scripts._builtin.phonemes import (
    ESPEAK_VARIANTS,
    FLITE_VOICES,
    SAMPLE_RATE_HZ,
    Phone,
    Voice,
    motion_targets,
    speak,
)
from scripts._builtin.sentences import TRAINING, VOICE_OF
from scripts._builtin.tracks import RATE_FPS
from services.mel_features.mel import whole_file

__all__ = ["spoken_lessons"]

OPEN_SHARE: Final = 0.85
"""of the opening of a fully open /a/ that the lower lip has; the upper one has the rest"""
PURSED: Final = 1.7
"""A fully pursed mouth is so much further from rest than a fully spread one."""
LEAD_S: Final = 0.4
"""silence before and after a sentence"""
BABBLES: Final = 16
"""texts of random syllables in each language of espeak-ng, and by each voice of flite"""
ENGLISH_TIMES: Final = 3
"""voices that say each English sentence, for one that says each of another language's"""


def spoken_lessons(seed: int = 1) -> list[Lesson]:
    """Have every training sentence spoken, each time by another voice.

    Raises:
        SpeechError: a synthesiser is not installed.
    """
    rng = np.random.default_rng(seed)
    return [_lesson(text, voice, rng) for text, voice in _cast(rng)]


def _cast(rng: np.random.Generator) -> Iterator[tuple[str, Voice]]:
    yield from _readers(rng)
    for language, voice in VOICE_OF.items():
        for _ in range(BABBLES):
            yield babble(language, rng), _espeak(voice, rng)
    for _ in range(BABBLES):
        for name in FLITE_VOICES:
            yield babble("nonsense", rng), _flite(name, rng)


def _readers(rng: np.random.Generator) -> Iterator[tuple[str, Voice]]:
    for language, texts in TRAINING.items():
        for text in texts:
            for _ in range(ENGLISH_TIMES if language == "en" else 1):
                yield text, _espeak(VOICE_OF[language], rng)
            if language == "en":
                for name in FLITE_VOICES:
                    yield text, _flite(name, rng)


def _espeak(voice: str, rng: np.random.Generator) -> Voice:
    rate, pitch = float(np.exp(rng.uniform(-0.3, 0.25))), float(np.exp(rng.uniform(-0.35, 0.35)))
    return Voice("espeak-ng", voice + str(rng.choice(ESPEAK_VARIANTS)), rate, pitch)


def _flite(name: str, rng: np.random.Generator) -> Voice:
    return Voice("flite", name, float(np.exp(rng.uniform(-0.2, 0.2))), 1.0)


def _lesson(text: str, voice: Voice, rng: np.random.Generator) -> Lesson:
    said = speak(text, voice)
    lead = int(LEAD_S * SAMPLE_RATE_HZ)
    hiss = 10 ** (rng.uniform(-90, -55) / 20)
    samples = np.pad(said.samples, lead) + rng.normal(0, hiss, len(said.samples) + 2 * lead).astype(np.float32)
    phones = [Phone(phone.symbol, phone.start_s + LEAD_S, phone.end_s + LEAD_S) for phone in said.phones]
    phones = [Phone("", 0.0, LEAD_S), *phones, Phone("", phones[-1].end_s, len(samples) / SAMPLE_RATE_HZ)]
    mel = whole_file(np.clip(samples, -1, 1).astype(np.float32))
    wanted = motion_targets(phones, mel.shape[1] * RATE_FPS // 80)
    width = np.where(wanted[:, 1] < 0, PURSED, 1.0) * wanted[:, 1]
    motion = np.stack([OPEN_SHARE * wanted[:, 0], width, (1 - OPEN_SHARE) * wanted[:, 2], wanted[:, 3]], axis=1)
    name = f"{voice.synthesiser} {voice.name}: {text}"
    seen = np.ones(len(motion), bool)
    return Lesson(name, voice.synthesiser, mel, motion.astype(np.float32), seen, pressed=True)
