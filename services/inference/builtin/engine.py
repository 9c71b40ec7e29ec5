"""The built-in engine: no network to fetch, sharp at the photo's own resolution, a few milliseconds a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from services.inference.builtin import drive, eyes, head, warp
from services.inference.builtin.basis import MotionBasis
from services.inference.builtin.head import NO_MOMENT, Drawn, Moment
from services.inference.builtin.life import STILL, Life, life_of
from services.inference.builtin.pictures import Floats, enlarged, fine_scale, floats, mixed
from services.inference.engine import Drive, MelWindow, Rendered
from shared.messages import Face

__all__ = ["MODELS", "BuiltinEngine", "LivingEngine", "LivingFace"]

MODELS: Final = Path(__file__).resolve().parents[3] / "models" / "builtin"
LID_STEPS: Final = 16
"""Places of a lid on its way down that are told apart, and drawn once for a face: it passes several from one frame to
the next."""


class BuiltinEngine:
    """Bends the photo by a learned basis of motions. Each frame depends on its own mel window alone."""

    name: str = "builtin"
    window: MelWindow = drive.WINDOW
    info: Mapping[str, str] = MappingProxyType({})

    def __init__(self, models: Path = MODELS) -> None:
        """Load the motion basis and the network that hears.

        Args:
            models: folder that holds motion.npz, speech.xml and speech.bin.

        Raises:
            BasisError: motion.npz is missing or broken.
            SpeechError: the network is missing or broken.
        """
        self._basis = MotionBasis.load(models)
        self._speech = drive.Speech(models)

    def prepare(self, face: Face) -> warp.FaceWarp:
        """Do once for a face what depends on the face alone."""
        return warp.prepare(face, self._basis)

    def render(self, states: Sequence[warp.FaceWarp], drives: Sequence[Drive]) -> list[Rendered]:
        """Render a batch; ``states[k]`` is moved by ``drives[k]``.

        Raises:
            ValueError: there are not as many states as drives, or a mel window has the wrong shape.
        """
        return [self.posed(state, motion) for state, motion in zip(states, self.motions(drives), strict=True)]

    def motions(self, drives: Sequence[Drive]) -> list[drive.Motion]:
        """Hear the motion of some frames.

        Raises:
            ValueError: a mel window has the wrong shape.
        """
        return self._speech.motions(drives)

    def posed(self, state: warp.FaceWarp, motion: drive.Motion) -> Rendered:
        """Render one frame from a motion, without sound."""
        coefficients = motion.coefficients
        image = warp.render(state, coefficients) if np.any(coefficients) else state.rest
        return Rendered(state.x, state.y, image, state.mask)


@dataclass(frozen=True)
class LivingFace:
    """What is made once for a face that lives."""

    warp: warp.FaceWarp
    head: head.Head
    eyes: eyes.Eyelids
    rest: Drawn | None
    """the mouth at rest, where it is other than in the photo"""
    shares: tuple[Floats, Floats]
    """of what is drawn of the mouth, and of the photo, (h, w), 0..1"""
    lids: dict[int, list[Drawn]] = field(default_factory=dict)
    """closed by so many of `LID_STEPS`: each eye; made when first seen"""


class LivingEngine:
    """The same engine for faces that blink and sway a little, in speech and in silence, each session in its own way."""

    name: str = BuiltinEngine.name
    info: Mapping[str, str] = MappingProxyType({})

    def __init__(self, still: BuiltinEngine) -> None:
        """Give life to what it draws.

        Args:
            still: draws the mouth.
        """
        self._still = still
        self.window: MelWindow = replace(still.window, in_silence=True)

    def prepare(self, face: Face) -> LivingFace:
        """Do once for a face what depends on the face alone."""
        state = self._still.prepare(face)
        height, width = state.mask.shape
        photo = np.ascontiguousarray(face.photo[state.y : state.y + height, state.x : state.x + width])
        share = floats(state.mask) * np.float32(1 / 255)
        resting = mixed(state.rest, photo, share)
        scale = fine_scale(resting.shape)
        rest = Drawn(state.x, state.y, enlarged(resting, scale), scale)
        nodes = (state.nodes + 0.5) * state.cell - 0.5 + np.array([state.x, state.y], np.float32)
        return LivingFace(
            warp=state,
            head=head.prepare(face, state.unit, state.across, state.down, floats(nodes)),
            eyes=eyes.prepare(face, state.unit, state.down),
            rest=None if np.array_equal(resting, photo) else rest,
            shares=(share, 1 - share),
        )

    def render(self, states: Sequence[LivingFace], drives: Sequence[Drive]) -> list[Rendered]:
        """Render a batch; ``states[k]`` is moved by ``drives[k]``.

        Raises:
            ValueError: there are not as many states as drives, or a mel window has the wrong shape.
        """
        return [
            self.living(state, motion, life_of(each.session, each.frame), (each.session, each.frame), each.known)
            for state, motion, each in zip(states, self._still.motions(drives), drives, strict=True)
        ]

    def living(
        self,
        state: LivingFace,
        motion: drive.Motion,
        life: Life,
        moment: Moment = NO_MOMENT,
        known: float = -1.0,
    ) -> Rendered:
        """Render one frame from a motion of the mouth and what the face does of itself.

        Args:
            state: of the face.
            motion: of the mouth.
            life: what the face does of itself.
            moment: session and frame.
            known: as in `Drive`.

        Returns:
            the patch of the whole head, or what of it is other than in the frame that is known; that of the mouth
            where the face does nothing.
        """
        if life == STILL:
            return self._still.posed(state.warp, motion)
        coefficients = motion.coefficients
        if np.any(coefficients):
            carried = head.carried(state.head, life)
            spoken = warp.render(state.warp, coefficients, carried.way)
            drawn = [Drawn(state.warp.x, state.warp.y, spoken, 0, state.shares)]
        else:
            drawn = [] if state.rest is None else [state.rest]
        step = round(life.closed * LID_STEPS)
        if step and step not in state.lids:
            state.lids[step] = [Drawn(e.x, e.y, eyes.closed(e, step / LID_STEPS)) for e in state.eyes]
        drawn += state.lids.get(step, [])
        return head.moved(state.head, life, drawn, moment, known)
