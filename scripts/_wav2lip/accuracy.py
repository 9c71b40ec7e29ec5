"""How near a converted network comes to the original: differences of the lower half of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from scripts._wav2lip.calibration import Samples
from services.inference.wav2lip.network import Wav2LipNetwork
from services.inference.wav2lip.network import masked as stacked

__all__ = ["BATCH", "Accuracy", "compare", "draw_lower", "stacked"]

BATCH: Final = 8
"""windows that are taken at once; bounds the memory"""
PEAK: Final = 255.0
MOST_DB: Final = 200.0
"""stands for "no difference at all", which has no number of decibels"""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Accuracy:
    """Of one precision."""

    max_difference: float
    """largest difference of a pixel value, 0..1"""
    worst_psnr_db: float
    """of the worst window"""
    median_psnr_db: float
    windows: int


def compare(drawn: Float32, wanted: Float32) -> Accuracy:
    """Compare pictures.

    Args:
        drawn: (n, 3, h, w), 0..1.
        wanted: the same.

    Returns:
        the figures; PSNR of each picture with a peak of 255 levels.

    Raises:
        ValueError: other shapes.
    """
    if drawn.shape != wanted.shape:
        raise ValueError(f"pictures of {drawn.shape} and {wanted.shape}: must be alike")
    difference = np.abs(drawn.astype(np.float64) - wanted)
    mean_square = ((PEAK * difference) ** 2).mean(axis=(1, 2, 3))
    psnr_db = 10.0 * np.log10(PEAK**2 / np.maximum(mean_square, PEAK**2 * 10.0 ** (-MOST_DB / 10.0)))
    return Accuracy(float(difference.max()), float(psnr_db.min()), float(np.median(psnr_db)), len(drawn))


def draw_lower(network: Wav2LipNetwork, held_out: Samples) -> Float32:
    """Draw the lower halves as the engine does, (n, 3, 48, 96), 0..1."""
    drawn = []
    for at in range(0, len(held_out.crops), BATCH):
        parts = network.prepare(held_out.crops[at : at + BATCH])
        drawn.append(network.draw_exactly(parts, held_out.mels[at : at + BATCH]))
    return np.concatenate(drawn)
