"""Clips of people who speak: an engine hears their sound, and what it does is laid beside what they did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from scripts._builtin.tracks import RATE_FPS, Track, measured
from scripts._evaluate.likeness import compare, distance_of, unrest
from scripts._evaluate.report import ClipScore
from scripts._evaluate.sheet import Strip, moments, real_frames, tile
from scripts._evaluate.stage import Driver, EvaluateError, Stage, load_driver
from scripts._render.audio import listen

__all__ = ["Drivers", "chosen", "read_folds", "score_clip"]

Numbers = npt.NDArray[np.floating[Any]]

FOLDS_FILE: Final = "folds.json"
LEAST_OPENING: Final = 0.01
"""of a mouth that moves at all, eye distances"""


@dataclass
class Drivers:
    """The engines that drive the clips: one for all, or one for each fold."""

    engine: Literal["builtin", "wav2lip"]
    model: Path | None
    folds: Path | None
    of_clip: Mapping[str, int]
    """fold of each clip by file name; empty without folds"""
    root: Path

    def __post_init__(self) -> None:
        self._loaded: dict[int | None, Driver] = {}

    def fold(self, clip: str) -> int | None:
        """Fold of a clip; None without folds."""
        return self.of_clip[clip] if self.folds is not None else None

    def driver(self, fold: int | None) -> Driver:
        """Load the engine of a fold, once."""
        if fold not in self._loaded:
            folder = self.model if fold is None or self.folds is None else self.folds / f"fold_{fold}"
            self._loaded[fold] = load_driver(self.engine, folder, self.root)
        return self._loaded[fold]

    @property
    def general(self) -> Driver:
        """The engine that is asked where no clip is involved: without folds the one, else that of the first fold."""
        return self.driver(None if self.folds is None or self.model is not None else min(self.of_clip.values()))


def read_folds(folder: Path) -> dict[str, int]:
    """Read which model has not seen a clip.

    Raises:
        EvaluateError: folds.json is missing or says something else.
    """
    path = folder / FOLDS_FILE
    advice = "scripts/train_builtin writes it: a JSON object of clip file names and fold numbers"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluateError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(told, dict) or not told or not all(type(fold) is int for fold in told.values()):
        raise EvaluateError(f"{path} holds something else; {advice}")
    for fold in sorted(set(told.values())):
        if not (folder / f"fold_{fold}").is_dir():
            raise EvaluateError(f"{folder / f'fold_{fold}'}: this model folder, which {path} names, is missing")
    return told


def chosen(tracks: Sequence[Track], most: int | None) -> list[Track]:
    """Choose so many clips: of each folder and person in turn; None takes all, in their order."""
    if most is None or most >= len(tracks):
        return list(tracks)
    waiting: dict[str, dict[str, list[Track]]] = {}
    for track in tracks:
        waiting.setdefault(track.corpus, {}).setdefault(track.person, []).append(track)
    taken: list[Track] = []
    while len(taken) < most:
        for people in waiting.values():
            person = next(iter(people), None)
            if person is not None and len(taken) < most:
                clips = people.pop(person)
                taken.append(clips.pop(0))
                if clips:
                    people[person] = clips  # to the end of the line
    names = {id(track) for track in taken}
    return [track for track in tracks if id(track) in names]


def score_clip(
    track: Track,
    stage: Stage,
    drivers: Drivers,
    *,
    gated: bool,
    drawn: bool,
    longest_s: float,
    say: Callable[[str], None],
) -> tuple[ClipScore, Strip | None]:
    """Drive a face by the sound of a clip and compare.

    Args:
        track: the clip.
        stage: the face.
        drivers: the engines.
        gated: whether the voice gate closes the mouth, as in the live path.
        drawn: whether to look at pictures too.
        longest_s: of a longer clip only the beginning is used.
        say: told what was found.

    Returns:
        the figures, and a strip of pictures if there are any.

    Raises:
        RenderError: its sound cannot be read.
    """
    fold = drivers.fold(track.name)
    driver = drivers.driver(fold)
    sound = listen(track.path, Fraction(RATE_FPS), gated=gated)
    frames = min(len(track.points), sound.frames, round(longest_s * RATE_FPS))
    points, seen = track.points[:frames], track.seen[:frames]
    real = measured(points)
    shown = moments(real[:, 0], seen) if drawn else []
    played = stage.play(driver, sound, frames, gated=gated, drawn=drawn, keep=set(shown))
    motion = played.by_motion
    by_motion = None if motion is None else compare(motion, np.ones(frames, bool), real, seen)
    by_picture = distance = agitation = strip = None
    if played.points is not None:
        mouth = stage.mouth(played)
        by_picture = compare(mouth, played.seen, real, seen)
        if by_picture is not None:
            lips, real_lips = stage.lips(played.points), stage.lips(points)
            distance = distance_of(lips, played.seen, real_lips, seen, by_picture.lag)
            agitation = _agitation(mouth[:, 0], played.seen) / _agitation(real[:, 0], seen)
        strip = _strip(track, shown, played.kept, played.points, by_picture.shifted[0] if by_picture else None)
    likeness = by_picture or by_motion
    if likeness is not None:
        told = ", ".join(
            f"{name} {r:.2f}" for name, r in zip(("opening", "width", "jaw"), likeness.shifted, strict=True)
        )
        say(f"{track.name}: {told}, lag {likeness.lag_ms:+.0f} ms")
    score = ClipScore(
        name=track.name,
        person=track.person,
        corpus=track.corpus,
        fold=fold,
        motion=by_motion,
        picture=by_picture,
        distance=distance[0] if distance else None,
        distance_eyes=distance[1] if distance else None,
        unrest=agitation,
        sharpness=played.sharpness if drawn else None,
    )
    return score, strip


def _agitation(opening: Numbers, seen: npt.NDArray[np.bool_]) -> float:
    """Unrest of an opening in its own scale."""
    low, high = np.percentile(opening[seen], (10, 90))
    return unrest(opening, seen) / max(float(high - low), LEAST_OPENING)


def _strip(
    track: Track,
    frames: Sequence[int],
    kept: Mapping[int, npt.NDArray[np.uint8]],
    points: npt.NDArray[np.float32],
    r: float | None,
) -> Strip:
    real = real_frames(track.path, frames, RATE_FPS)
    told = "" if r is None else f", opening r {r:.2f}"
    both = [frame for frame in frames if frame in real and frame in kept]
    return Strip(
        title=f"{track.name[:90]}{told}",
        real=[tile(real[frame], track.points[frame]) for frame in both],
        drawn=[tile(kept[frame], points[frame]) for frame in both],
    )
