"""What an engine does with sounds whose phones are known, and with none: closures, vowels, silence, room noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import soundfile

from scripts._builtin.phonemes import (
    BILABIALS,
    FLITE_VOICES,
    SAMPLE_RATE_HZ,
    Phone,
    Spoken,
    Voice,
    closed_span,
    speak,
)
from scripts._builtin.sentences import EVALUATION, VOICE_OF
from scripts._evaluate.stage import Driver, Stage
from scripts._render.audio import Sound, listen

__all__ = ["Cases", "Quiet", "SpeechScore", "case_shares", "count_cases", "score_quiet", "score_speech", "voices"]

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.floating[Any]]
Say = Callable[[str], None]

RATE_FPS: Final = 25
CLOSED_SHARE: Final = 0.15
"""An opening below this share of the clip's 90th percentile counts as closed."""
CLOSED_PERCENTILE: Final = 90
LEAST_OPENING: Final = 0.01
"""A mouth that opens less, eye distances, does not speak: nothing of it counts as closed."""
BESIDE: Final = 1
"""frames by which a closure may be early or late"""
OPEN, SPREAD, ROUND = frozenset("a\u0251"), frozenset("i"), frozenset("u")
"""/a/ with its back sister, /i/, /u/"""
LEAST_VOWEL_S: Final = 0.06
"""A vowel that is shorter is reduced, not said."""
ESPEAK_VARIANTS: Final = ("", "+m8", "+f5")
"""speakers; the last two are in no list for training"""

LEAD_S: Final = 0.4
"""silence before and after each text"""
SPEECH_DB: Final = -20.0
NOISE_DB: Final = -50.0
QUIET_S: Final = 4.0
SETTLED_S: Final = 0.5
"""after the last word the mouth may still close"""
QUIET_TEXTS: Final = (
    "Papa moved a lamp above the sofa, and mama laughed.",
    "How far away are the farm and the harbour?",
    "A calm father and a happy mother sat by the water.",
)


@dataclass
class Cases:
    """Shares are of counts; each is (hits, cases)."""

    closed: dict[str, list[int]]
    """by p, b, m"""
    open_over_spread: list[int]
    open_over_round: list[int]
    round_under_spread: list[int]

    @classmethod
    def none(cls) -> Cases:
        """Count from 0."""
        return cls({symbol: [0, 0] for symbol in sorted(BILABIALS)}, [0, 0], [0, 0], [0, 0])

    def add(self, other: Cases) -> None:
        """Count those of another as well."""
        for symbol, counts in other.closed.items():
            _add(self.closed[symbol], counts)
        _add(self.open_over_spread, other.open_over_spread)
        _add(self.open_over_round, other.open_over_round)
        _add(self.round_under_spread, other.round_under_spread)


@dataclass(frozen=True)
class SpeechScore:
    """Cases by synthesiser, on the motion and on the picture; None where the engine has no motion, or nothing was
    drawn."""

    texts: int
    motion: dict[str, Cases] | None
    picture: dict[str, Cases] | None


@dataclass(frozen=True)
class Quiet:
    """What the mouth does where nobody speaks, after speech of -20 dBFS.

    Shares are of the largest opening in that speech, and NaN where the mouth did not move in it.
    """

    sound: str
    gate: Literal["gate", "gain 1"]
    by: Literal["motion", "picture"]
    most: float
    """largest opening"""
    mean: float
    jitter: float
    """root mean square of the change from frame to frame, eye distances"""


def voices(*, quick: bool) -> list[tuple[str, Voice]]:
    """Who says what: each text for evaluation by three speakers of espeak-ng and, if it is English, all of flite."""
    chosen: list[tuple[str, Voice]] = []
    for language, texts in EVALUATION.items():
        for index, text in enumerate(texts):
            chosen += [(text, Voice("espeak-ng", VOICE_OF[language] + variant)) for variant in ESPEAK_VARIANTS]
            if language in {"en", "nonsense"}:
                chosen += [(text, Voice("flite", name)) for name in FLITE_VOICES]
            if quick and index == 0:
                break
    return chosen[:: 5 if quick else 1]


def score_speech(
    stage: Stage, driver: Driver, chosen: Sequence[tuple[str, Voice]], *, drawn: bool, say: Say
) -> SpeechScore:
    """Count closures and vowels.

    Args:
        stage: the face.
        driver: the engine.
        chosen: texts and speakers.
        drawn: whether to look at pictures too.
        say: told what is being done.

    Raises:
        SpeechError: a synthesiser is missing.
    """
    motion: dict[str, Cases] = {}
    picture: dict[str, Cases] = {}
    for number, (text, voice) in enumerate(chosen, 1):
        if number % 10 == 1:
            say(f"synthetic speech {number}/{len(chosen)}")
        spoken = speak(text, voice)
        sound = _heard(_padded(spoken.samples))
        phones = _later(spoken)
        played = stage.play(driver, sound, sound.frames, gated=True, drawn=drawn)
        if played.by_motion is not None:
            motion.setdefault(voice.synthesiser, Cases.none()).add(count_cases(played.by_motion, phones))
        if drawn:
            mouth = stage.mouth(played) - stage.rest(driver, sound)
            picture.setdefault(voice.synthesiser, Cases.none()).add(count_cases(mouth, phones))
    return SpeechScore(len(chosen), motion or None, picture or None)


def count_cases(mouth: Numbers, phones: Sequence[Phone]) -> Cases:
    """Count what a mouth does on the phones of one clip.

    Args:
        mouth: opening, 0 where the lips meet, and width of each frame, (n, 2) or more columns.
        phones: with their times on the same clock.

    Returns:
        for each p, b, m whether the lips come together; for each pair of vowels which is wider.
    """
    cases = Cases.none()
    opened = float(np.percentile(mouth[:, 0], CLOSED_PERCENTILE))
    limit = CLOSED_SHARE * opened if opened >= LEAST_OPENING else -np.inf
    total = len(mouth)
    vowels: dict[str, list[Numbers]] = {"open": [], "spread": [], "round": []}
    for phone in phones:
        if phone.symbol in BILABIALS:
            start_s, end_s = closed_span(phone)
            first = max(0, int(start_s * RATE_FPS) - BESIDE)
            last = min(total, int(np.ceil(end_s * RATE_FPS)) + BESIDE)
            if first < last:
                _add(cases.closed[phone.symbol], [int(mouth[first:last, 0].min() <= limit), 1])
        for kind, symbols in (("open", OPEN), ("spread", SPREAD), ("round", ROUND)):
            if phone.symbol in symbols and phone.end_s - phone.start_s >= LEAST_VOWEL_S:
                vowels[kind].append(_during(mouth, phone))
    for wide in vowels["open"]:
        for spread in vowels["spread"]:
            _add(cases.open_over_spread, [int(wide[0] > spread[0]), 1])
        for rounded in vowels["round"]:
            _add(cases.open_over_round, [int(wide[0] > rounded[0]), 1])
    for rounded in vowels["round"]:
        for spread in vowels["spread"]:
            _add(cases.round_under_spread, [int(rounded[1] < spread[1]), 1])
    return cases


def case_shares(cases: Sequence[Cases]) -> dict[str, tuple[float, int]]:
    """Shares and numbers of cases of several counts together; a share is NaN without cases."""
    total = Cases.none()
    for each in cases:
        total.add(each)
    closed = [sum(counts[k] for counts in total.closed.values()) for k in range(2)]
    rows = {
        "p, b, m closed": closed,
        **{f"{symbol} closed": counts for symbol, counts in sorted(total.closed.items())},
        "/a/ wider open than /i/": total.open_over_spread,
        "/a/ wider open than /u/": total.open_over_round,
        "/u/ narrower than /i/": total.round_under_spread,
    }
    return {name: (hits / count if count else float("nan"), count) for name, (hits, count) in rows.items()}


def score_quiet(stage: Stage, driver: Driver, *, drawn: bool, say: Say) -> list[Quiet]:
    """Let it hear speech and then nothing, or the noise of a room.

    Raises:
        SpeechError: flite is missing.
    """
    rng = np.random.default_rng(1)
    pieces = [speak(text, Voice("flite", name)).samples for text, name in zip(QUIET_TEXTS, FLITE_VOICES, strict=False)]
    speech = np.concatenate([_at_level(piece, SPEECH_DB) for piece in pieces])
    quiet = np.zeros(round(QUIET_S * SAMPLE_RATE_HZ), np.float32)
    count = len(speech) + len(quiet)
    white = _at_level(_noise(rng, count, 0.0), NOISE_DB)
    room = _at_level(_noise(rng, count, 1.0) + _hum(count), NOISE_DB)
    said = np.concatenate([speech, quiet])
    begins = np.where(np.arange(count) < len(speech), 0, room).astype(np.float32)
    start = int((len(speech) / SAMPLE_RATE_HZ + SETTLED_S) * RATE_FPS)
    made: list[Quiet] = []
    for name, samples in (
        ("silence", said),
        ("white noise throughout", said + white),
        ("room noise throughout", said + room),
        ("room noise from the end of the speech on", said + begins),
    ):
        say(f"where nobody speaks: {name}")
        sound = _heard(samples)
        end = int(count / SAMPLE_RATE_HZ * RATE_FPS)
        ways: tuple[tuple[Literal["gate", "gain 1"], bool], ...] = (("gate", True), ("gain 1", False))
        for gate, gated in ways:
            played = stage.play(driver, sound, end, gated=gated, drawn=drawn)
            if played.by_motion is not None:
                made.append(_quiet(name, gate, "motion", played.by_motion[:, 0], start))
            if drawn:
                opening = stage.mouth(played)[:, 0] - stage.rest(driver, sound)[0]
                made.append(_quiet(name, gate, "picture", opening, start))
    return made


def _quiet(
    sound: str, gate: Literal["gate", "gain 1"], by: Literal["motion", "picture"], opening: Numbers, start: int
) -> Quiet:
    largest = float(opening[:start].max())
    largest = largest if largest >= LEAST_OPENING else float("nan")
    after = opening[start:]
    jitter = float(np.sqrt((np.diff(after) ** 2).mean()))
    return Quiet(sound, gate, by, float(after.max()) / largest, float(np.maximum(after, 0).mean()) / largest, jitter)


def _padded(samples: Floats) -> Floats:
    silence = np.zeros(round(LEAD_S * SAMPLE_RATE_HZ), np.float32)
    return np.concatenate([silence, _at_level(samples, SPEECH_DB), silence])


def _later(spoken: Spoken) -> list[Phone]:
    return [Phone(phone.symbol, phone.start_s + LEAD_S, phone.end_s + LEAD_S) for phone in spoken.phones]


def _at_level(samples: Floats, level_db: float) -> Floats:
    """Bring a sound to a root mean square, dBFS; peaks are cut off."""
    size = max(float(np.sqrt((samples.astype(np.float64) ** 2).mean())), 1e-9)
    return np.asarray(np.clip(samples * np.float32(10 ** (level_db / 20) / size), -1, 1), np.float32)


def _noise(rng: np.random.Generator, count: int, slope: float) -> Floats:
    """Noise whose power falls with the frequency to this power."""
    spectrum = np.fft.rfft(rng.normal(0, 1, count))
    spectrum /= np.maximum(np.arange(len(spectrum)) * SAMPLE_RATE_HZ / count, 40.0) ** (slope / 2)
    made = np.fft.irfft(spectrum, count)
    return np.asarray(made / made.std(), np.float32)


def _hum(count: int) -> Floats:
    at_s = np.arange(count) / SAMPLE_RATE_HZ
    return np.asarray(sum(0.3 / k * np.sin(2 * np.pi * 50 * k * at_s) for k in (1, 2, 3)), np.float32)


def _heard(samples: Floats) -> Sound:
    """Hear samples as a file is heard, voice gate included."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "sound.wav"
        soundfile.write(wav, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        return listen(wav, Fraction(RATE_FPS), gated=True)


def _during(mouth: Numbers, phone: Phone) -> Numbers:
    """Mean over the frames whose middle lies in the middle half of a phone; the nearest frame where there is none."""
    quarter = (phone.end_s - phone.start_s) / 4
    middles = (np.arange(len(mouth)) + 0.5) / RATE_FPS
    inside = (middles >= phone.start_s + quarter) & (middles <= phone.end_s - quarter)
    if not inside.any():
        inside[np.argmin(np.abs(middles - (phone.start_s + phone.end_s) / 2))] = True
    return np.asarray(mouth[inside].mean(axis=0))


def _add(counts: list[int], more: Sequence[int]) -> None:
    for index, value in enumerate(more):
        counts[index] += value
