"""The built-in engine: no network to fetch, sharp at the photo's own resolution, a few milliseconds a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from services.inference.builtin import drive, warp
from services.inference.builtin.basis import MotionBasis
from services.inference.engine import Drive, MelWindow, Rendered
from shared.messages import Face

__all__ = ["MODELS", "BuiltinEngine"]

MODELS: Final = Path(__file__).resolve().parents[3] / "models" / "builtin"


class BuiltinEngine:
    """Bends the photo by a learned basis of motions. Each frame depends on its own mel window alone."""

    name: str = "builtin"
    window: MelWindow = drive.WINDOW
    info: Mapping[str, str] = MappingProxyType({})

    def __init__(self, models: Path = MODELS) -> None:
        """Load the motion basis.

        Args:
            models: folder that holds motion.npz.

        Raises:
            BasisError: it is missing or broken.
        """
        self._basis = MotionBasis.load(models)

    def prepare(self, face: Face) -> warp.FaceWarp:
        """Do once for a face what depends on the face alone."""
        return warp.prepare(face, self._basis)

    def render(self, states: Sequence[warp.FaceWarp], drives: Sequence[Drive]) -> list[Rendered]:
        """Render a batch; ``states[k]`` is moved by ``drives[k]``.

        Raises:
            ValueError: there are not as many states as drives, or a mel window has the wrong shape.
        """
        return [
            self.posed(state, drive.motion_of(each.mel, each.gain)) for state, each in zip(states, drives, strict=True)
        ]

    def posed(self, state: warp.FaceWarp, motion: drive.Motion) -> Rendered:
        """Render one frame from a motion, without sound."""
        coefficients = motion.coefficients
        image = warp.render(state, coefficients) if np.any(coefficients) else state.rest
        return Rendered(state.x, state.y, image, state.mask)
