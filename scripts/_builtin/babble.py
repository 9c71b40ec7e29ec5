"""Random syllables for the synthesisers: each sound of the lips beside each vowel, in the letters of each language."""

from __future__ import annotations

from typing import Final

import numpy as np

__all__ = ["babble"]

LIPS: Final = "pbm"
OTHERS: Final = "tdkgfvsnlr"
LIPS_SHARE: Final = 0.5
VOWELS: Final = "aiueo"
VOWEL_SHARES: Final = (0.34, 0.26, 0.2, 0.1, 0.1)
ENDING_SHARE: Final = 0.2
WORDS: Final = (4, 8)

_SPELLED: Final[dict[str, dict[str, str]]] = {
    "fr": {"u": "ou", "e": "é", "g": "gu"},
    "nl": {"u": "oe", "i": "ie"},
    "nonsense": {"a": "ah", "i": "ee", "u": "oo", "o": "oh"},
    "ru": dict(zip("pbmtdkgfvsnlraiueo", "пбмтдкгфвснлраиуэо", strict=True)),
    "hi": dict(zip("pbmtdkgfvsnlr", "पबमतदकगफवसनलर", strict=True)),
}
"""letters of a language for those of the syllables, where they are others"""
_HINDI_VOWELS: Final = dict(zip(VOWELS, "ािुेो", strict=True))
_KANA: Final = {
    "p": "ぱぴぷぺぽ", "b": "ばびぶべぼ", "m": "まみむめも", "t": "たちつてと", "d": "だじずでど", "k": "かきくけこ",
    "g": "がぎぐげご", "f": "はひふへほ", "v": "わりゆえよ", "s": "さしすせそ", "n": "なにぬねの", "l": "らりるれろ",
    "r": "らりるれろ",
}  # fmt: skip
_PINYIN: Final = {
    "p": "pa pi pu pei po", "b": "ba bi bu bei bo", "m": "ma mi mu mei mo", "t": "ta ti tu te tuo",
    "d": "da di du de duo", "k": "ka ji ku ke kuo", "g": "ga qi gu ge guo", "f": "fa xi fu fei fo",
    "v": "wa yi wu wei wo", "s": "sa xi su se suo", "n": "na ni nu nei nuo", "l": "la li lu lei luo",
    "r": "sha li ru re ruo",
}  # fmt: skip


def babble(language: str, rng: np.random.Generator) -> str:
    """Make up a few words, half of whose consonants are made with the lips.

    Args:
        language: as in `scripts._builtin.sentences.VOICE_OF`.
        rng: draws the syllables.
    """
    words = []
    for _ in range(int(rng.integers(*WORDS))):
        syllables = [_syllable(language, rng) for _ in range(int(rng.integers(1, 4)))]
        words.append("".join(syllables))
    middle = len(words) // 2
    return " ".join(words[:middle]) + ", " + " ".join(words[middle:]) + "."


def _syllable(language: str, rng: np.random.Generator) -> str:
    first, last = _consonant(rng), _consonant(rng)
    vowel = int(rng.choice(len(VOWELS), p=VOWEL_SHARES))
    ending = rng.random() < ENDING_SHARE
    if language == "ja":
        return _KANA[first][vowel]
    if language == "zh":
        return _PINYIN[first].split()[vowel] + str(rng.integers(1, 5))
    spelled = _SPELLED.get(language, {})
    letters = spelled.get(first, first)
    if language == "hi":
        letters += _HINDI_VOWELS[VOWELS[vowel]]
    else:
        letters += spelled.get(VOWELS[vowel], VOWELS[vowel])
    return letters + (spelled.get(last, last) if ending else "")


def _consonant(rng: np.random.Generator) -> str:
    return str(rng.choice(list(LIPS if rng.random() < LIPS_SHARE else OTHERS)))
