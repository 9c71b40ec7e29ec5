"""Sound to motion: a small network hears in the mel window of one frame where the lips are.

The network (`models/builtin/speech.xml`, trained by scripts/train_builtin) sees one window and keeps no state, so any
worker can do any frame. What is done here lays the window on one loudness, and makes sure that lips that nearly meet do
meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import openvino as ov

from services.inference.builtin.columns import ColumnNetwork
from services.inference.engine import Drive, MelWindow

__all__ = ["DB_A_UNIT", "OPEN_MOST", "REST", "WINDOW", "Motion", "Speech", "SpeechError", "on_level", "shaped"]

Floats = npt.NDArray[np.float32]

WINDOW: Final = MelWindow(back=88, ahead=7)
"""1.1 s back; 7 frames, 100 ms with half of the STFT's own window, ahead."""
BANDS: Final = 80
DB_A_UNIT: Final = 12.5
"""dB for 1 of the log-mel scale"""
FILE: Final = "speech.xml"
SILENCE: Final = -3.9
"""A window in which nothing is louder is digital silence."""

LEVEL_DB: Final = -53.0
"""Mean power of all bands over which each piece of sound is laid."""
MOST_LOUDER_DB: Final = 16.0
MOST_QUIETER_DB: Final = 30.0
LEVEL_STEP_DB: Final = 1.5
"""Steps in which it is made louder or quieter from frame to frame: most frames then go on as the one before, and of
their windows only the new columns have to be heard. Half of it more or less nobody sees."""

# What the network says is in the speaker's own measure: the 95th percentile of the opening is 1.
MEETING: Final = 0.08
"""Lips that are said to be so far apart or less meet: a mean over what may be heard never quite closes a mouth."""
PRESSED: Final = (0.60, 0.85)
"""From where to where on the share that is said of pressing closes the mouth, whatever else is said. The network was
taught to say rather too much than too little."""
RAISE_SHARES: Final = (0.06, 0.26)
"""Least and most of an opening that the upper lip does."""

# Motion, eye distances.
OPEN_USUAL: Final = 0.50
"""Opening that a usual wide one becomes, before the bound: that of lively speakers, as a small picture needs it; the
median speaker of the clips opens half as far."""
OPEN_MOST: Final = 0.35
WIDTH_USUAL: Final = 0.07
DRAWN_IN: Final = 0.05
"""Share of the opening by which the corners come nearer: with the jaw they part in most speakers and close in in some,
which cannot be heard, so the network's guess, that of most, is taken back a little."""
WIDE_MOST: Final = 0.09
NARROW_MOST: Final = 0.17
PRESS_MOST: Final = 0.022


class SpeechError(RuntimeError):
    """The network is missing or broken; the text says what to do."""


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


class Speech:
    """The network; calls must not overlap."""

    def __init__(self, models: Path) -> None:
        """Load the network. It runs on one thread of the processor: it takes half a millisecond.

        Args:
            models: folder that holds speech.xml and speech.bin.

        Raises:
            SpeechError: they are missing or broken.
        """
        path = models / FILE
        config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
        core = ov.Core()
        try:
            model = core.read_model(path)
            shape = model.input(0).partial_shape
            wanted = ov.PartialShape([-1, BANDS, WINDOW.length])
            fits = shape == wanted and model.output(0).partial_shape == ov.PartialShape([-1, 4])
            network = ColumnNetwork(core, model, config) if fits else None
        except RuntimeError as error:
            raise SpeechError(
                f"{path} cannot be read as the network of the built-in engine: restore it and {path.stem}.bin from the "
                f"repository, or make them with scripts/train_builtin; OpenVINO says: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        if network is None:
            raise SpeechError(f"{path} is of another version (input {shape}): restore it from the repository")
        self._network = network

    def motions(self, drives: Sequence[Drive]) -> list[Motion]:
        """Hear the motion of some frames.

        Args:
            drives: mel windows, (80, `WINDOW.length`), with the gain of the voice gate: 1 in speech, 0 in silence;
                between, the motion is scaled.

        Raises:
            ValueError: a window has another shape.
        """
        for drive in drives:
            if drive.mel.shape != (BANDS, WINDOW.length):
                raise ValueError(f"mel window of shape {drive.mel.shape}: this engine takes ({BANDS}, {WINDOW.length})")
        speaking = [k for k, drive in enumerate(drives) if drive.gain > 0 and drive.mel.max() > SILENCE]
        made = [REST] * len(drives)
        if speaking:
            said = np.concatenate(
                [self._network.hear(on_level(drives[k].mel, LEVEL_STEP_DB), drives[k].session) for k in speaking]
            )
            for k, row in zip(speaking, shaped(said), strict=True):
                made[k] = Motion(*(float(value) * drives[k].gain for value in row))
        return made


def on_level(mel: Floats, step_db: float = 0.0) -> Floats:
    """Lay sound on one loudness, so that the level of a recording does not matter.

    Args:
        mel: log-mel, -4..4, (80, n).
        step_db: it is made louder or quieter by a multiple of this; 0: by any number.

    Returns:
        the same, no more than `MOST_LOUDER_DB` louder, so that a quiet room stays quiet.
    """
    power = np.exp((mel - 4) * np.float32(DB_A_UNIT / 10 * np.log(10)))  # a third of the time of 10 ** x
    level_db = 10 * np.log10(float(power.mean()) + 1e-12)
    shift_db = LEVEL_DB - level_db
    if step_db:
        shift_db = step_db * round(shift_db / step_db)
    shift_db = min(max(shift_db, -MOST_QUIETER_DB), MOST_LOUDER_DB)
    return np.asarray(np.maximum(mel + np.float32(shift_db / DB_A_UNIT), np.float32(-4)), np.float32)


def shaped(said: Floats) -> Floats:
    """Make coefficients of the motion basis of what the network says.

    Args:
        said: opening by the lower lip, width, opening by the upper lip, in the speaker's own measure, and pressing,
            0..1, (n, 4).

    Returns:
        (n, 4) in the order of the axes, eye distances.
    """
    return np.array([_shaped(*row) for row in said.tolist()], np.float32).reshape(-1, 4)


def _shaped(lower: float, width: float, upper: float, press: float) -> tuple[float, float, float, float]:
    """The same for one frame. NumPy takes ten times as long for so few numbers."""
    opening = lower + upper
    pressed = min(max((press - PRESSED[0]) / (PRESSED[1] - PRESSED[0]), 0.0), 1.0)
    share = min(max(upper / max(opening, 0.05), RAISE_SHARES[0]), RAISE_SHARES[1])
    opened = max(opening - MEETING, 0.0) / (1 - MEETING) * (1 - pressed)
    # A shout opens wider, but no jaw falls off.
    opened = OPEN_MOST * math.tanh(opened * (OPEN_USUAL / OPEN_MOST))
    wide = min(max(WIDTH_USUAL * width - DRAWN_IN * opened, -NARROW_MOST), WIDE_MOST)
    return opened * (1 - share), wide, opened * share, PRESS_MOST * pressed
