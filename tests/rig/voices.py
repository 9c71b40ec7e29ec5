"""A recording with sentences and pauses of a second, spoken by the system's synthesisers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile

from tests.unit.speech import speech

__all__ = ["RATE_HZ", "paused_speech", "write_wav"]

RATE_HZ: Final = 16_000
SENTENCES: Final = (
    "Good morning, and welcome to a small demonstration.",
    "Maybe Bob may mop up the beer, before the party begins.",
    "You who knew the moon too soon, how do you do?",
    "All father's cars are far apart in the yard.",
    "Please see the green leaves, each of these means peace.",
)


def paused_speech(synthesiser: str = "flite", sentences: int = len(SENTENCES)) -> npt.NDArray[np.int16]:
    """Sentences with 1 s of silence before, between and after them; 16 kHz mono int16."""
    silence = np.zeros(RATE_HZ)
    pieces = [silence]
    for sentence in SENTENCES[:sentences]:
        spoken = speech(synthesiser, RATE_HZ, sentence)
        heard = np.flatnonzero(np.abs(spoken) > 0.005)
        pieces += [spoken[heard[0] : heard[-1]], silence]
    sound = np.concatenate(pieces)
    pcm: npt.NDArray[np.int16] = np.rint(sound / np.abs(sound).max() * 0.7 * 32767).astype(np.int16)
    return pcm


def write_wav(path: Path, pcm: npt.NDArray[np.int16]) -> Path:
    """Write 16 kHz mono."""
    soundfile.write(path, pcm, RATE_HZ, subtype="PCM_16")
    return path
