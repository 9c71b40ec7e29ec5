"""Speech for tests, made by the synthesisers of the system."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

SENTENCE = "The quick brown fox jumps over the lazy dog, and fifty-six big ships sail past the bay."


@cache
def _spoken(synthesiser: str, text: str) -> tuple[npt.NDArray[np.float64], int]:
    if shutil.which(synthesiser) is None:
        reason = f"{synthesiser} is not installed (apt install {synthesiser})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        command = (
            ["espeak-ng", "-w", str(wav), text] if synthesiser == "espeak-ng" else ["flite", "-t", text, "-o", str(wav)]
        )
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        sound, rate_hz = soundfile.read(wav, dtype="float64")
    sound.setflags(write=False)
    return sound, rate_hz


def speech(synthesiser: str, rate_hz: int = 16_000, text: str = SENTENCE) -> npt.NDArray[np.float64]:
    """Speech of espeak-ng or flite: (n,) within -1..1 at this rate."""
    sound, own_hz = _spoken(synthesiser, text)
    return np.asarray(soxr.resample(sound, own_hz, rate_hz, quality="VHQ"), np.float64)
