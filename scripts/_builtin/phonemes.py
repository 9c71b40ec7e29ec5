"""Speech by espeak-ng and flite with the times of its phones, and the mouth that each phone asks for.

Speech that a synthesiser makes knows its own phones: free, clean supervision for closures and vowels. espeak-ng tells
them by the phoneme events of its library, flite by ``-psdur``. Both come as one set of IPA symbols without length,
stress, tone and nasality; diphthongs and affricates are two phones.

From phones to a mouth: each phone has a target for each axis and a dominance, which says how much it insists on it;
what the mouth does is the mean of the targets, weighted by dominances that fade with the distance in time (Cohen and
Massaro, "Modeling coarticulation in synthetic visual speech", 1993; built from the published idea, the numbers are our
own).
"""
# ruff: noqa: RUF001 - the letters of IPA look like others

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

__all__ = [
    "BILABIALS",
    "CLOSE_VOWELS",
    "DOMINANCE",
    "ESPEAK_LANGUAGES",
    "ESPEAK_VARIANTS",
    "FLITE_VOICES",
    "LABIODENTALS",
    "OPEN_VOWELS",
    "PAUSE",
    "ROUNDED",
    "SAMPLE_RATE_HZ",
    "SPREAD",
    "VISEMES",
    "Phone",
    "SpeechError",
    "Spoken",
    "Voice",
    "closed_span",
    "closures",
    "motion_targets",
    "speak",
]

Floats = npt.NDArray[np.float32]
Four = tuple[float, float, float, float]

SAMPLE_RATE_HZ: Final = 16_000
PAUSE: Final = ""
"""symbol of silence"""

ESPEAK_LANGUAGES: Final = (
    "en-us", "en", "de", "fr", "es", "it", "pt-br", "nl", "pl", "ru", "tr", "fi", "id", "sw", "cmn-latn-pinyin",
    "hi", "ja",
)  # fmt: skip
"""voices of espeak-ng whose phones are all known here; Mandarin is written in pinyin"""
ESPEAK_VARIANTS: Final = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4")
"""appended to a language they give another speaker"""
FLITE_VOICES: Final = ("slt", "awb", "rms", "kal16")
"""all American English (awb with a Scottish accent)"""

ESPEAK_WORDS_A_MINUTE: Final = 175
SPEAK_TIMEOUT_S: Final = 60.0


class SpeechError(RuntimeError):
    """No speech can be made; the text says what to do."""


@dataclass(frozen=True)
class Phone:
    """One sound of a speech."""

    symbol: str
    """IPA, one of `VISEMES`; "" is silence"""
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how."""

    synthesiser: Literal["espeak-ng", "flite"]
    name: str
    """espeak-ng: language and variant, such as "de+f2"; flite: one of `FLITE_VOICES`"""
    rate: float = 1.0
    """speed, 1 is normal"""
    pitch: float = 1.0
    """over the voice's own pitch, 0.5..2"""


@dataclass(frozen=True)
class Spoken:
    """Speech and its phones."""

    samples: Floats
    """mono, 16 kHz, -1..1, (n,)"""
    phones: tuple[Phone, ...]
    """without holes, from 0 to the end"""
    synthesiser: str
    voice: str
    text: str


# The set of symbols. Each: target (open, width, raise, press), dominance (of the same four).
#   open   1 a fully open /a/          width  +1 a full smile-spread /i/, -1 a fully pursed /u/
#   raise  1 the upper lip of an /a/   press  1 lips pressed together
_FREE: Final = (0.15, 0.10, 0.10, 0.05)
_VOWEL: Final = (0.85, 0.75, 0.60, 0.60)
_ROUND: Final = (0.90, 1.00, 0.60, 0.60)
_TONGUE: Final = (0.45, 0.25, 0.25, 0.50)
_SIBILANT: Final = (0.75, 0.40, 0.40, 0.60)
_HUSH: Final = (0.75, 0.80, 0.50, 0.60)
_LIPS: Final = (1.00, 0.20, 1.00, 1.00)
_LIP_TEETH: Final = (1.00, 0.35, 0.80, 0.90)

_SET: Final[dict[str, tuple[Four, Four]]] = {
    PAUSE: ((0.0, 0.0, 0.0, 0.0), (0.60, 0.35, 0.60, 0.60)),
    # open vowels
    "a": ((1.00, 0.15, 1.00, 0.0), _VOWEL),
    "ɑ": ((1.00, 0.00, 0.90, 0.0), _VOWEL),
    "ɐ": ((0.80, 0.10, 0.80, 0.0), _VOWEL),
    "æ": ((0.90, 0.40, 0.95, 0.0), _VOWEL),
    "ʌ": ((0.72, 0.05, 0.70, 0.0), _VOWEL),
    "ɒ": ((0.80, -0.30, 0.70, 0.0), _VOWEL),
    # spread and front vowels
    "i": ((0.20, 1.00, 0.35, 0.0), _VOWEL),
    "ɪ": ((0.28, 0.60, 0.35, 0.0), _VOWEL),
    "e": ((0.42, 0.65, 0.50, 0.0), _VOWEL),
    "ɛ": ((0.58, 0.45, 0.65, 0.0), _VOWEL),
    "ɨ": ((0.22, 0.45, 0.30, 0.0), _VOWEL),
    "ɯ": ((0.22, 0.30, 0.25, 0.0), _VOWEL),
    # rounded vowels
    "u": ((0.13, -1.00, 0.10, 0.0), _ROUND),
    "ʊ": ((0.22, -0.65, 0.20, 0.0), _ROUND),
    "o": ((0.36, -0.80, 0.30, 0.0), _ROUND),
    "ɔ": ((0.60, -0.50, 0.50, 0.0), _ROUND),
    "y": ((0.14, -0.90, 0.15, 0.0), _ROUND),
    "ʏ": ((0.22, -0.65, 0.20, 0.0), _ROUND),
    "ø": ((0.30, -0.70, 0.30, 0.0), _ROUND),
    "œ": ((0.46, -0.50, 0.45, 0.0), _ROUND),
    "ɵ": ((0.30, -0.50, 0.30, 0.0), _ROUND),
    "ʉ": ((0.15, -0.85, 0.15, 0.0), _ROUND),
    # vowels of the middle
    "ə": ((0.38, 0.05, 0.35, 0.0), (0.50, 0.35, 0.40, 0.50)),
    "ɜ": ((0.45, -0.05, 0.45, 0.0), _VOWEL),
    "ɘ": ((0.35, 0.10, 0.35, 0.0), _VOWEL),
    "ɤ": ((0.42, 0.15, 0.40, 0.0), _VOWEL),
    "ɚ": ((0.35, -0.25, 0.35, 0.0), (0.60, 0.50, 0.45, 0.50)),
    "ɝ": ((0.38, -0.25, 0.38, 0.0), (0.70, 0.55, 0.50, 0.55)),
    # lips
    "p": ((0.00, 0.00, 0.00, 1.0), _LIPS),
    "b": ((0.00, 0.00, 0.00, 0.9), _LIPS),
    "m": ((0.00, 0.00, 0.00, 0.9), _LIPS),
    "ɸ": ((0.05, 0.00, 0.05, 0.3), _LIP_TEETH),
    "β": ((0.06, 0.00, 0.05, 0.3), _LIP_TEETH),
    "f": ((0.06, 0.15, 0.25, 0.5), _LIP_TEETH),
    "v": ((0.07, 0.15, 0.25, 0.5), _LIP_TEETH),
    "ɱ": ((0.06, 0.10, 0.20, 0.5), _LIP_TEETH),
    "ʋ": ((0.12, 0.10, 0.20, 0.3), _LIP_TEETH),
    "w": ((0.10, -1.00, 0.08, 0.1), _ROUND),
    "ʍ": ((0.10, -1.00, 0.08, 0.1), _ROUND),
    "ɥ": ((0.12, -0.90, 0.10, 0.1), _ROUND),
    # tip of the tongue
    "θ": ((0.22, 0.15, 0.25, 0.0), _TONGUE),
    "ð": ((0.22, 0.15, 0.25, 0.0), _TONGUE),
    "t": ((0.18, 0.15, 0.25, 0.0), _TONGUE),
    "d": ((0.20, 0.15, 0.25, 0.0), _TONGUE),
    "n": ((0.20, 0.10, 0.25, 0.0), _TONGUE),
    "l": ((0.30, 0.10, 0.30, 0.0), _TONGUE),
    "ɫ": ((0.30, -0.05, 0.30, 0.0), _TONGUE),
    "ɬ": ((0.28, 0.10, 0.30, 0.0), _TONGUE),
    "ɾ": ((0.25, 0.10, 0.25, 0.0), _TONGUE),
    "r": ((0.28, 0.05, 0.25, 0.0), _TONGUE),
    "ɹ": ((0.20, -0.40, 0.25, 0.0), (0.50, 0.55, 0.35, 0.50)),
    "ɻ": ((0.20, -0.40, 0.25, 0.0), (0.50, 0.55, 0.35, 0.50)),
    "ɽ": ((0.25, -0.05, 0.25, 0.0), _TONGUE),
    "ʈ": ((0.18, 0.00, 0.25, 0.0), _TONGUE),
    "ɖ": ((0.20, 0.00, 0.25, 0.0), _TONGUE),
    "ɳ": ((0.20, 0.00, 0.25, 0.0), _TONGUE),
    "ɭ": ((0.28, 0.00, 0.25, 0.0), _TONGUE),
    # hissing: the teeth are nearly closed
    "s": ((0.10, 0.45, 0.35, 0.0), _SIBILANT),
    "z": ((0.11, 0.45, 0.35, 0.0), _SIBILANT),
    "ʃ": ((0.14, -0.55, 0.40, 0.0), _HUSH),
    "ʒ": ((0.14, -0.55, 0.40, 0.0), _HUSH),
    "ʂ": ((0.14, -0.35, 0.40, 0.0), _HUSH),
    "ʐ": ((0.14, -0.35, 0.40, 0.0), _HUSH),
    "ɕ": ((0.12, 0.25, 0.35, 0.0), _SIBILANT),
    "ʑ": ((0.12, 0.25, 0.35, 0.0), _SIBILANT),
    # back of the tongue: the lips are free
    "ç": ((0.20, 0.35, 0.30, 0.0), _TONGUE),
    "j": ((0.18, 0.60, 0.30, 0.0), (0.50, 0.55, 0.35, 0.50)),
    "ʝ": ((0.18, 0.50, 0.30, 0.0), _TONGUE),
    "ɲ": ((0.20, 0.30, 0.25, 0.0), _TONGUE),
    "ʎ": ((0.24, 0.30, 0.28, 0.0), _TONGUE),
    "c": ((0.20, 0.25, 0.25, 0.0), _TONGUE),
    "ɟ": ((0.20, 0.25, 0.25, 0.0), _TONGUE),
    "k": ((0.28, 0.05, 0.28, 0.0), _FREE),
    "ɡ": ((0.28, 0.05, 0.28, 0.0), _FREE),
    "ŋ": ((0.28, 0.05, 0.28, 0.0), _FREE),
    "x": ((0.30, 0.05, 0.30, 0.0), _FREE),
    "ɣ": ((0.28, 0.05, 0.28, 0.0), _FREE),
    "ɰ": ((0.28, 0.05, 0.28, 0.0), _FREE),
    "q": ((0.32, 0.00, 0.30, 0.0), _FREE),
    "χ": ((0.34, 0.00, 0.32, 0.0), _FREE),
    "ʁ": ((0.32, 0.00, 0.30, 0.0), _FREE),
    "ʀ": ((0.32, 0.00, 0.30, 0.0), _FREE),
    "ħ": ((0.40, 0.00, 0.40, 0.0), _FREE),
    "ʕ": ((0.40, 0.00, 0.40, 0.0), _FREE),
    "h": ((0.35, 0.00, 0.35, 0.0), _FREE),
    "ɦ": ((0.35, 0.00, 0.35, 0.0), _FREE),
    "ʔ": ((0.30, 0.00, 0.30, 0.0), _FREE),
}

VISEMES: Final[dict[str, Four]] = {symbol: target for symbol, (target, _) in _SET.items()}
"""where each phone wants the mouth: open, width, raise, press"""
DOMINANCE: Final[dict[str, Four]] = {symbol: weight for symbol, (_, weight) in _SET.items()}
"""how strongly it insists on each of them, 0..1"""

BILABIALS: Final = frozenset("pbm")
LABIODENTALS: Final = frozenset("fvɱ")
OPEN_VOWELS: Final = frozenset("aɑɐæ")
SPREAD: Final = frozenset("i")
CLOSE_VOWELS: Final = frozenset("iuyʉ")
ROUNDED: Final = frozenset("uʊoyøwɥʉ")
_VOWELS: Final = frozenset("aɑɐæʌɒiɪeɛɨɯuʊoɔyʏøœɵʉəɜɘɤɚɝ")
_STOPS: Final = frozenset("pbtdkɡʈɖcɟq")
_VOICED: Final = frozenset("bdɡɖɟmnɱɳɲŋlɫɭʎɹɻrɾɽjwɥʋ")

_ARPABET: Final = {
    "pau": "", "sil": "", "ssil": "", "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ",
    "ay": "aɪ", "b": "b", "ch": "tʃ", "d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "l", "em": "m", "en": "n",
    "er": "ɝ", "ey": "eɪ", "f": "f", "g": "ɡ", "hh": "h", "hv": "ɦ", "ih": "ɪ", "iy": "i", "jh": "dʒ", "k": "k",
    "l": "l", "m": "m", "n": "n", "ng": "ŋ", "nx": "n", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s",
    "sh": "ʃ", "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip
_SAME: Final = {"g": "ɡ", "ᵻ": "ɪ", "ɴ": "ŋ", "ʌ̟": "ʌ", "ɺ": "ɾ", "ɶ": "œ", "ɞ": "ɜ", "ʙ": "b", "ɓ": "b", "ɗ": "d",
                "ᵊ": "ə", "ɮ": "l", "ʟ": "l", "ɧ": "ʃ", "ʜ": "ħ", "ʢ": "ʕ", "ɢ": "ɡ"}  # fmt: skip
"""letters of IPA that stand for a phone of the set"""
_MARKS: Final = frozenset("ːˑˈˌʰʱʲʷˠˤʼ˞̯̃ˀ'.-_|ǀ↓↑˥˦˧˨˩0123456789ᵐᵑⁿᶣᵝ·;:!?\"")
"""length, stress, tone and the like, which say nothing of the lips here"""

# Where the two synthesisers place their times.
SILENT: Final = 0.002
"""largest sample of the silence within a closure"""
LONGEST_CLOSURE_S: Final = 0.09
"""after a pause the lips close this long before the release at most"""
VOWEL_START_S: Final = 0.018
"""espeak-ng tells of a vowel after its first transition; after a voiced consonant the sound of it begins so much
earlier (median of the rise of energy over six languages: 0.014 to 0.034)"""
LEAST_PAUSE_S: Final = 0.03

# Coarticulation.
REACH_BEFORE_S: Final = (0.032, 0.070, 0.032, 0.030)
REACH_AFTER_S: Final = (0.032, 0.050, 0.032, 0.030)
"""time in which a dominance falls to 1/e before and after its phone's core, for each axis; rounding begins early"""
CORE: Final = 0.25
"""share of a phone around its middle in which its dominance is whole"""
REST_MARGIN_S: Final = 0.08
"""a pause lets the neighbours have its ends"""
CLOSED_S: Final = 0.021
"""the lips of a closure meet at least so long before and after its middle: one frame of 40 ms must see it"""
PARTING_S: Final = 0.032
"""from lips that meet to a free mouth"""
STOP_CLOSURE: Final = 0.62
"""share of a stop that is its closure; the rest is release"""


def speak(text: str, voice: Voice) -> Spoken:
    """Have a text spoken.

    The same text and voice give the same samples.

    Args:
        text: UTF-8 in the voice's language; Mandarin in pinyin with tones.
        voice: who speaks.

    Returns:
        speech with its phones.

    Raises:
        SpeechError: the synthesiser is not installed, has no such voice, failed, or used a sound that is not in the
            set.
    """
    if not 0.3 <= voice.rate <= 3 or not 0.4 <= voice.pitch <= 2.5:
        raise SpeechError(f"rate {voice.rate:g} and pitch {voice.pitch:g}: give 0.3 to 3, and 0.4 to 2.5")
    samples, phones = _by_espeak(text, voice) if voice.synthesiser == "espeak-ng" else _by_flite(text, voice)
    if not samples.size or not any(phone.symbol for phone in phones):
        raise SpeechError(f"{voice.synthesiser} {voice.name}: nothing was said of {text!r}; give words of its language")
    return Spoken(samples, tuple(phones), voice.synthesiser, voice.name, text)


def motion_targets(phones: Sequence[Phone], frames: int, rate_hz: float = 25.0) -> Floats:
    """Mouth that phones ask for, blended by dominance, at the middle of each frame.

    During the middle of p, b and m (of a stop: of its closure) opening and raising are 0 and the lips pressed.

    Args:
        phones: in order.
        frames: how many; frame k is seen at (k + 0.5) / rate_hz.
        rate_hz: frames a second.

    Returns:
        (frames, 4): open, width, raise, press in the scale of `VISEMES`.
    """
    if not phones:
        return np.zeros((frames, 4), np.float32)
    at_s = (np.arange(frames) + 0.5) / rate_hz
    starts = np.array([phone.start_s for phone in phones])
    ends = np.array([phone.end_s for phone in phones])
    pauses = np.array([phone.symbol == PAUSE for phone in phones])
    targets = np.array([VISEMES[phone.symbol] for phone in phones])
    weights = np.array([DOMINANCE[phone.symbol] for phone in phones])
    middles, halves = (starts + ends) / 2, (ends - starts) / 2
    cores = np.where(pauses, np.maximum(halves - REST_MARGIN_S, 0.25 * halves), CORE * halves)
    cores[[0, -1]] = np.where(pauses[[0, -1]], halves[[0, -1]], cores[[0, -1]])
    distance = at_s[:, None] - middles
    outside = np.maximum(np.abs(distance) - cores, 0.0)
    # The ends of the first and last pause lie outside of the speech.
    if pauses[0]:
        outside[:, 0] = np.maximum(at_s - (ends[0] - REST_MARGIN_S), 0.0)
    if pauses[-1]:
        outside[:, -1] = np.maximum(starts[-1] + REST_MARGIN_S - at_s, 0.0)
    reach = np.where((distance < 0)[..., None], REACH_BEFORE_S, REACH_AFTER_S)
    dominance = weights * np.exp(-outside[..., None] / reach) + 1e-12
    blended = (dominance * targets).sum(axis=1) / dominance.sum(axis=1)
    for first_s, last_s, press in closures(phones):
        away = np.maximum(np.maximum(first_s - at_s, at_s - last_s), 0.0)
        free = np.clip(away / PARTING_S, 0.0, 1.0)
        free = free * free * (3 - 2 * free)
        blended[:, 0] *= free
        blended[:, 2] *= free
        blended[:, 3] = np.maximum(blended[:, 3], press * (1 - free))
    return np.asarray(blended, np.float32)


def closed_span(phone: Phone) -> tuple[float, float]:
    """When the lips of a p, b or m are closed, s: a stop's release is no longer part of it."""
    share = 1.0 if phone.symbol == "m" else STOP_CLOSURE
    return phone.start_s, phone.start_s + share * (phone.end_s - phone.start_s)


def closures(phones: Sequence[Phone]) -> list[tuple[float, float, float]]:
    """Say when the lips meet, a little longer where a closure is too short for a frame to see.

    Returns:
        of each p, b, m: from when to when, s, and how strongly they are pressed, 0..1; neighbours (mp, mb) are one.
    """
    found: list[tuple[float, float, float]] = []
    for phone in phones:
        if phone.symbol not in BILABIALS:
            continue
        first_s, last_s = closed_span(phone)
        middle_s = (first_s + last_s) / 2
        half_s = max(CLOSED_S, 0.3 * (last_s - first_s))
        press = VISEMES[phone.symbol][3]
        if found and first_s - found[-1][1] < CLOSED_S:
            found[-1] = (found[-1][0], middle_s + half_s, max(found[-1][2], press))
        else:
            found.append((middle_s - half_s, middle_s + half_s, press))
    return found


def _by_espeak(text: str, voice: Voice) -> tuple[Floats, list[Phone]]:
    words = round(ESPEAK_WORDS_A_MINUTE * voice.rate)
    pitch = int(np.clip(round(50 + 50 * np.log2(voice.pitch)), 0, 100))
    program = Path(__file__).with_name("espeak.py")
    command = [sys.executable, "-I", "-S", str(program), voice.name, str(words), str(pitch)]
    answer = _run(command, voice, text.encode())
    head, _, sound = answer.partition(b"\n")
    told = json.loads(head)
    rate_hz = int(told["rate"])
    raw = np.frombuffer(sound, "<i2").astype(np.float32) / np.float32(32768)
    events = [(int(at) / rate_hz, _symbols(name, voice)) for at, name in told["phones"] if not name.startswith("(")]
    phones = _of_espeak(events, raw, rate_hz)
    samples = np.clip(soxr.resample(raw, rate_hz, SAMPLE_RATE_HZ), -1, 1).astype(np.float32)
    return samples, phones


def _of_espeak(events: list[tuple[float, str]], raw: Floats, rate_hz: int) -> list[Phone]:
    """Events to phones: closures begin with their silence, vowels with their transition."""
    total_s = len(raw) / rate_hz
    merged: list[tuple[float, str]] = []
    for start_s, symbols in events:
        if symbols or not merged:
            merged.append((start_s, symbols))
        elif merged[-1][1]:
            # A name without letters is a pause where it is silent, else a mark on what stands before.
            following = [at for at, _ in events if at > start_s + 1e-6]
            end_s = min(following, default=total_s)
            if end_s - start_s >= LEAST_PAUSE_S and _is_silent(raw, rate_hz, start_s, end_s):
                merged.append((start_s, PAUSE))
    if merged and merged[0][1][:1] in _STOPS:
        merged.insert(0, (0.0, PAUSE))
    merged[:1] = [(0.0, symbols) for _, symbols in merged[:1]]
    starts = [start_s for start_s, _ in merged]
    for k in range(1, len(merged)):
        before, here = merged[k - 1][1][-1:], merged[k][1][:1]
        if here in _STOPS:
            starts[k] = max(starts[k - 1], _silent_from(raw, rate_hz, starts[k]))
        elif here in _VOWELS and before in _VOICED:
            starts[k] = max(starts[k] - VOWEL_START_S, starts[k - 1] + 0.6 * (starts[k] - starts[k - 1]))
    phones: list[Phone] = []
    for start_s, end_s, (_, symbols) in zip(starts, [*starts[1:], total_s], merged, strict=True):
        phones += _split(symbols, start_s, end_s)
    return _joined(phones)


def _silent_from(raw: Floats, rate_hz: int, at_s: float) -> float:
    """When the silence began that ends at a release; the release itself where there is none."""
    last = round(at_s * rate_hz)
    first = max(0, last - round(LONGEST_CLOSURE_S * rate_hz))
    loud = np.flatnonzero(np.abs(raw[first : max(first, last - 8)]) > SILENT)
    return (first + (int(loud[-1]) + 1 if loud.size else 0)) / rate_hz


def _is_silent(raw: Floats, rate_hz: int, start_s: float, end_s: float) -> bool:
    """Whether most of a stretch is silent; at its beginning the last sound still dies away."""
    part = raw[round(start_s * rate_hz) : round(end_s * rate_hz)]
    return not part.size or float(np.median(np.abs(part))) < SILENT


def _by_flite(text: str, voice: Voice) -> tuple[Floats, list[Phone]]:
    if voice.name not in FLITE_VOICES:
        raise SpeechError(f"flite has no voice {voice.name}; give one of {', '.join(FLITE_VOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        features = ["--setf", f"duration_stretch={1 / voice.rate:.4f}", "--setf", f"f0_shift={voice.pitch:.4f}"]
        answer = _run(["flite", "-voice", voice.name, *features, "-psdur", "-t", text, "-o", str(wav)], voice)
        try:
            raw, rate_hz = soundfile.read(wav, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise SpeechError(f"flite {voice.name}: wrote no sound that can be read ({error})") from error
    samples = raw.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        samples = np.clip(soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), -1, 1)
    total_s = len(samples) / SAMPLE_RATE_HZ
    phones: list[Phone] = []
    # An utterance of several sentences has a line for each, whose times begin anew.
    offset_s = at_s = 0.0
    for line in answer.decode().splitlines():
        for each in line.split():
            name, _, end = each.rpartition(":")
            end_s = offset_s + float(end)
            if name not in _ARPABET:
                raise SpeechError(f"flite {voice.name}: unknown sound {name!r} in {text!r}")
            phones += _split(_ARPABET[name], at_s, min(end_s, total_s))
            at_s = min(end_s, total_s)
        offset_s = at_s
    if phones and at_s < total_s:
        phones.append(Phone(PAUSE, at_s, total_s))
    return np.asarray(samples, np.float32), _joined(phones)


def _run(command: list[str], voice: Voice, given: bytes = b"") -> bytes:
    install = f"install it (Debian, Ubuntu: apt install {voice.synthesiser})"
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=SPEAK_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise SpeechError(f"{voice.synthesiser} is not installed; {install}") from error
    except subprocess.TimeoutExpired as error:
        raise SpeechError(
            f"{voice.synthesiser} {voice.name} did not end within {SPEAK_TIMEOUT_S:.0f} s; give less text"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"it ended with {done.returncode}"
        advice = install if done.returncode == 3 else "see espeak-ng --voices, flite -lv"
        raise SpeechError(f"{voice.synthesiser} cannot speak as {voice.name}: {why}; {advice}")
    return done.stdout


def _symbols(name: str, voice: Voice) -> str:
    """Reduce an IPA name to symbols of the set.

    Raises:
        SpeechError: a letter is not in it.
    """
    found = _known(name)
    if found is None:
        raise SpeechError(
            f"{voice.synthesiser} {voice.name}: the sound {name!r} is not in the set; use another language, or add it "
            "to scripts/_builtin/phonemes.py"
        )
    return found


@functools.cache
def _known(name: str) -> str | None:
    kept = []
    # ç is a letter of IPA, not a c with a mark.
    for letter in unicodedata.normalize("NFD", name.replace("ç", "\ue000")):
        here = "ç" if letter == "\ue000" else _SAME.get(letter, letter)
        if here in _SET:
            kept.append(here)
        elif not unicodedata.combining(letter) and here not in _MARKS and not letter.isspace():
            return None
    return "".join(kept)


def _split(symbols: str, start_s: float, end_s: float) -> list[Phone]:
    """A diphthong or an affricate is two phones: the first has the greater part of a vowel, the half of the rest."""
    if end_s <= start_s:
        return []
    if len(symbols) < 2:
        return [Phone(symbols, start_s, end_s)]
    first = 0.6 if symbols[0] in _VOWELS else 0.5
    cuts = start_s + (end_s - start_s) * np.array([0.0, *np.linspace(first, 1.0, len(symbols))])
    return [Phone(symbol, float(cuts[k]), float(cuts[k + 1])) for k, symbol in enumerate(symbols)]


def _joined(phones: list[Phone]) -> list[Phone]:
    """Make one pause of several in a row."""
    made: list[Phone] = []
    for phone in phones:
        if made and phone.symbol == PAUSE == made[-1].symbol:
            made[-1] = Phone(PAUSE, made[-1].start_s, phone.end_s)
        else:
            made.append(phone)
    return made
