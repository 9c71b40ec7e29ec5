"""The card of the built-in model: data, licence, figures, limits, as they were when it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scripts._builtin.learn import Plan, Score, few_of_each
from scripts._builtin.lessons import Lesson
from scripts._builtin.network import length_of
from services.mel_features.mel import MEL_RATE_HZ

__all__ = ["Figures", "write_card"]

FEW: Final = 5
"""clips of one person that may count together with those of others"""
START, END = "<!-- speech: written by scripts/train_builtin -->", "<!-- end of speech -->"


@dataclass(frozen=True)
class Figures:
    """What was found on the way."""

    scores: Sequence[Score]
    """of people who were not learned from"""
    lessons: Sequence[Lesson]
    """what was learned from in the end"""
    left_out: Sequence[str]
    """clips whose sound does not belong to the picture"""
    spoken: Sequence[Lesson]
    plan: Plan
    pressing: Plan
    """of the network that tells of pressing"""
    networks: int


def write_card(path: Path, figures: Figures) -> None:
    """Put what is to be said of the network between its two marks in the card; the rest of the card stays.

    Raises:
        OSError: the card cannot be written.
    """
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    part = path.with_suffix(".part")
    part.write_text(f"{before.rstrip()}\n\n{START}\n{_told(figures)}\n{END}\n{after.lstrip()}", encoding="utf-8")
    part.replace(path)


def _told(figures: Figures) -> str:
    frames = sum(int(lesson.seen.sum()) for lesson in figures.lessons)
    people = len({lesson.person for lesson in figures.lessons})
    said = sum(len(lesson.motion) for lesson in figures.spoken)
    grid = [score for score in figures.scores if score.person.startswith("grid ")]
    others = [score for score in figures.scores if not score.person.startswith("grid ")]
    few = few_of_each(figures.scores, FEW)
    rows = [
        _row("all clips", figures.scores),
        _row("their better-synced half", _better(figures.scores)),
        _row(f"at most {FEW} of each person", few),
        _row("their better-synced half", _better(few)),
        _row("GRID", grid),
        _row("the others", others),
        _row("the others' better-synced half", _better(others)),
    ]
    plan, pressing = figures.plan, figures.pressing
    window_s = length_of(pressing.dilations) / MEL_RATE_HZ
    many = f"{figures.networks} networks of the same form, their mean" if figures.networks > 1 else "one network"
    left_out = ", ".join(f"`{name}`" for name in figures.left_out) or "none"
    return f"""\
Opening and width: {many}; {plan.steps} steps of {plan.batch} sequences of people and
{plan.spoken} of synthesised speech. Pressing: a smaller one ({pressing.channels} channels, {window_s:.1f} s) that
has heard nobody; {pressing.steps} steps of {pressing.spoken} sequences of synthesised speech. Seeds fixed.
Learned from {len(figures.lessons)} clips of {people}
people ({frames} frames), and {len(figures.spoken)} sentences of espeak-ng and flite ({said} frames).

Pearson r with the speaker's own lips, medians over clips, of people who were not learned from (five folds by person,
one network each), each clip's offset corrected within 3 frames:

| clips | how many | opening | width | opening, offset as it is |
|---|---|---|---|---|
{chr(10).join(rows)}

Left out, since their sound hardly goes with their picture: {left_out}."""


def _row(name: str, scores: Sequence[Score]) -> str:
    if not scores:
        return f"| {name} | 0 | - | - | - |"
    opening, width, raw = (
        float(np.median([getattr(score, of) for score in scores])) for of in ("opening", "width", "raw_opening")
    )
    return f"| {name} | {len(scores)} | {opening:.3f} | {width:.3f} | {raw:.3f} |"


def _better(scores: Sequence[Score]) -> list[Score]:
    return sorted(scores, key=lambda score: score.opening)[len(scores) // 2 :]
