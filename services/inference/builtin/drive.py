"""Sound to motion: the mel window of one frame becomes a few numbers that say where the lips are.

The opening follows the loudness of the voiced band against the loudest of the last second, so it does not depend on the
level of the recording; how far a loud vowel opens depends on its first formant, how wide it is on its second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.inference.engine import MelWindow

__all__ = ["WINDOW", "Motion", "motion_of"]

Floats = npt.NDArray[np.float32]

WINDOW: Final = MelWindow(back=80, ahead=7)
"""1 s back to know the loudness of the voice; 7 frames, 100 ms with half of the STFT's own window, ahead."""

BANDS: Final = 80
FRAME_OFFSET: Final = 1.6
"""The middle of a video frame lies 20 ms after its beginning: 1.6 mel frames."""

# Loudness to opening, dB.
RANGE_DB: Final = 23.0
"""From the loudest to a closed mouth."""
FLOOR_DB: Final = -42.0
"""The loudest is never taken lower than this, so that the noise of a room does not speak."""
FORGET_DB: Final = 0.15
"""How much less a mel frame counts as the loudest for each frame that it lies back."""
NOISE_DB: Final = 6.0
"""The mouth stays closed up to this far above the quietest of the window."""

DIGITAL_SILENCE_DB: Final = -75.0
"""Quieter than any room: sound that was cut or has not begun says nothing of the noise."""

# Motion, eye distances.
OPEN_MOST: Final = 0.34
WIDE_MOST: Final = 0.07
NARROW_MOST: Final = 0.17
RAISE_SHARE: Final = 0.12
"""Rise of the upper lip over the drop of the lower."""
PRESS_MOST: Final = 0.022


@dataclass(frozen=True)
class Motion:
    """Where the mouth is, eye distances from its rest."""

    open: float
    """lower inner lip down"""
    width: float
    """corners apart; narrow is negative and protrudes"""
    raised: float
    """upper lip up"""
    press: float
    """lips rolled in"""

    @property
    def coefficients(self) -> Floats:
        """In the order of the axes of the motion basis, (4,)."""
        return np.array([self.open, self.width, self.raised, self.press], np.float32)


REST: Final = Motion(0.0, 0.0, 0.0, 0.0)


def _band(low_hz: float, high_hz: float) -> slice:
    """Mel bands between two frequencies: 80 of them from 55 to 7600 Hz on Slaney's scale."""
    edges = np.array([55.0, 7600.0])
    mels = np.where(edges < 1000, edges * 3 / 200, 15 + 27 * np.log(np.maximum(edges, 1e-9) / 1000) / np.log(6.4))
    centres = np.linspace(mels[0], mels[1], BANDS + 2)[1:-1]
    hz = np.where(centres < 15, centres * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (centres - 15)))
    inside = np.flatnonzero((hz >= low_hz) & (hz < high_hz))
    return slice(int(inside[0]), int(inside[-1]) + 1)


VOICED: Final = _band(300, 3500)
MURMUR: Final = _band(150, 450)
FIRST_FORMANT: Final = _band(550, 1100)
BACK: Final = _band(600, 1300)
FRONT: Final = _band(1700, 3000)


def _kernel(frames: int, now: float, sigma: float) -> Floats:
    """Gaussian weights around a place in the window, sum 1."""
    weights = np.exp(-0.5 * ((np.arange(frames) - now) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


NOW: Final = WINDOW.back + FRAME_OFFSET
QUICK: Final = _kernel(WINDOW.length, NOW, 1.5)
SLOW: Final = _kernel(WINDOW.length, NOW, 2.6)
AROUND: Final = slice(WINDOW.back - 8, WINDOW.back + 7)
RECENCY: Final = np.asarray(FORGET_DB * np.maximum(0, WINDOW.back - np.arange(WINDOW.length)), np.float32)


def _level(power: Floats, band: slice) -> Floats:
    """Level of a band in each mel frame, dB."""
    return np.asarray(10 * np.log10(power[band].sum(axis=0)), np.float32)


def motion_of(mel: Floats, gain: float) -> Motion:
    """Read the motion of one frame from its mel window.

    Args:
        mel: log-mel, -4..4, (80, `WINDOW.length`).
        gain: 1 in speech, 0 in silence; between, the motion is scaled.

    Raises:
        ValueError: the window has another shape.
    """
    if mel.shape != (BANDS, WINDOW.length):
        raise ValueError(f"mel window of shape {mel.shape}: this engine takes ({BANDS}, {WINDOW.length})")
    if gain <= 0:
        return REST
    power = np.power(np.float32(10), (mel + 4) * np.float32(1.25) - 10)
    voiced = _level(power, VOICED)
    padded = np.concatenate([voiced[:1], voiced, voiced[-1:]])
    voiced = np.asarray(0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:], np.float32)
    loudest = max(float((voiced - RECENCY).max()), FLOOR_DB)
    heard = voiced[voiced > DIGITAL_SILENCE_DB]
    noise = float(heard.min()) if heard.size else DIGITAL_SILENCE_DB
    closed = max(loudest - RANGE_DB, min(noise + NOISE_DB, loudest - 10))
    loudness = np.clip((voiced - closed) / (loudest - closed), 0, 1)
    loudness = np.where(loudness > 0, loudness**1.05, 0)
    if not loudness[AROUND].any():
        return REST
    # An open vowel has its energy above 550 Hz, a close one (/i/, /u/) and a nasal below 450 Hz.
    first = np.clip((_level(power, FIRST_FORMANT) - _level(power, MURMUR) + 20) / 24, 0, 1)
    front = _level(power, FRONT) - _level(power, BACK)
    opening = loudness * (0.55 + 0.45 * first)
    weight = SLOW * loudness
    total = float(weight.sum())
    if total <= 0:
        return REST
    close_vowel = 1 - float((weight * first).sum()) / total
    tilt = float((weight * front).sum()) / total
    voice = float((SLOW * loudness).sum())
    spread = close_vowel * np.tanh((tilt - 19) / 12) + (1 - close_vowel) * 0.35 * np.tanh((tilt + 6) / 12)
    opened = float((QUICK * opening).sum())
    strength = min(1.0, voice * 1.6)
    width = strength * (WIDE_MOST if spread > 0 else NARROW_MOST) * float(spread)
    # Lips that close for a moment within speech are pressed together.
    shut = np.clip(1 - opened / 0.12, 0, 1) * np.clip(float(loudness[AROUND].max()) * 2 - 0.4, 0, 1)
    return Motion(
        open=gain * OPEN_MOST * opened,
        width=gain * width,
        raised=gain * OPEN_MOST * RAISE_SHARE * opened,
        press=gain * PRESS_MOST * float(shut),
    )
