"""The figures of an evaluation: put together, written as Markdown and JSON."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scripts._evaluate.cost import Cost
from scripts._evaluate.likeness import MOST_LAG, Likeness
from scripts._evaluate.speech import Cases, Quiet, SpeechScore, case_shares

__all__ = ["ClipScore", "Evaluation", "Summary", "markdown", "summaries", "write_atomically", "write_report"]

AXES: Final = ("opening", "width", "jaw")
NOTHING: Final = "-"
FEW: Final = 5
"""clips of a person, where one with many must not outweigh the others"""
CLIPS_TEXT: Final = (
    f"Medians of Pearson's r; each clip's own offset within +-{MOST_LAG} frames corrected on the opening, but for raw. "
    "Lag: positive is later than the speaker."
)
CLIPS_COLUMNS: Final = (
    "clips of", "clips", "persons", "opening raw", "opening", "width", "jaw", "better half, opening",
    "opening by person", "width by person", "lag, ms", f"clips by lag -{MOST_LAG}..{MOST_LAG}",
)  # fmt: skip
COST_COLUMNS: Final = (
    "face, px", "ms a frame, median", "p95", "prepare, ms", "load, ms", "memory (PSS), MiB", "of it engine, MiB",
)  # fmt: skip


@dataclass(frozen=True)
class ClipScore:
    """One clip."""

    name: str
    person: str
    corpus: str
    fold: int | None
    """whose model drove it"""
    motion: Likeness | None
    """of the coefficients with the real mouth"""
    picture: Likeness | None
    """of what FaceMesh sees in the drawn frames"""
    distance: float | None
    """of the lips' points, each mouth in its own scale: 0 the same, 1.41 unrelated"""
    distance_eyes: float | None
    """the same in eye distances"""
    unrest: float | None
    """second differences of the drawn opening over those of the real one, each over its own 90th percentile"""
    sharpness: float | None
    """of the mouth over that of the photo"""


@dataclass(frozen=True)
class Summary:
    """Medians of a group of clips."""

    group: str
    clips: int
    persons: int
    raw: float
    """r of the opening as it is"""
    opening: float
    """r with each clip's own offset corrected"""
    width: float
    jaw: float
    lag_ms: float
    lags: dict[int, int]
    """clips by their best lag"""
    better_half: float
    """r of the opening, offset corrected, of the half with the higher raw r"""
    by_person: float
    """median over persons of their medians, r of the opening, offset corrected"""
    width_by_person: float


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    settings: dict[str, str]
    notes: tuple[str, ...]
    clips: tuple[ClipScore, ...]
    speech: SpeechScore | None
    quiet: tuple[Quiet, ...]
    cost: Cost | None


def summaries(clips: Sequence[ClipScore], of: Callable[[ClipScore], Likeness | None]) -> list[Summary]:
    """Sum up all clips; a few of each person, where some have many; and each folder by itself, where there are several.

    Args:
        clips: all.
        of: which likeness.
    """
    scored = [(clip, likeness) for clip in clips if (likeness := of(clip)) is not None]
    corpora = sorted({clip.corpus for clip, _ in scored})
    groups = [("all", scored)]
    few: list[tuple[ClipScore, Likeness]] = []
    for pair in scored:
        if sum(other.person == pair[0].person for other, _ in few) < FEW:
            few.append(pair)
    if len(few) < len(scored):
        groups.append((f"all, at most {FEW} a person", few))
    if len(corpora) > 1:
        groups += [(corpus, [pair for pair in scored if pair[0].corpus == corpus]) for corpus in corpora]
    return [_summary(name, members) for name, members in groups if members]


def _summary(group: str, scored: Sequence[tuple[ClipScore, Likeness]]) -> Summary:
    order = sorted(scored, key=lambda pair: pair[1].raw[0], reverse=True)
    half = order[: math.ceil(len(order) / 2)]
    persons: dict[str, list[Likeness]] = {}
    for clip, likeness in scored:
        persons.setdefault(clip.person, []).append(likeness)
    lags = [likeness.lag for _, likeness in scored]
    return Summary(
        group=group,
        clips=len(scored),
        persons=len(persons),
        raw=_median(each.raw[0] for _, each in scored),
        opening=_median(each.shifted[0] for _, each in scored),
        width=_median(each.shifted[1] for _, each in scored),
        jaw=_median(each.shifted[2] for _, each in scored),
        lag_ms=_median(each.lag_ms for _, each in scored),
        lags={lag: lags.count(lag) for lag in range(-MOST_LAG, MOST_LAG + 1)},
        better_half=_median(each.shifted[0] for _, each in half),
        by_person=_median(_median(each.shifted[0] for each in own) for own in persons.values()),
        width_by_person=_median(_median(each.shifted[1] for each in own) for own in persons.values()),
    )


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def markdown(done: Evaluation) -> str:
    """Write the tables."""
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in done.settings.items()]
    lines += [f"- {note}" for note in done.notes]
    for title, of in (("motion itself", _motion), ("drawn picture, by FaceMesh", _picture)):
        found = summaries(done.clips, of)
        if not found:
            continue
        lines += [
            "",
            f"## Beside the real speaker: {title}",
            "",
            CLIPS_TEXT,
            "",
            *_head(CLIPS_COLUMNS),
        ]
        for each in found:
            middles = (
                each.raw, each.opening, each.width, each.jaw, each.better_half, each.by_person, each.width_by_person,
            )  # fmt: skip
            cells = [each.group, each.clips, each.persons, *(f"{value:.3f}" for value in middles)]
            lines.append(_row([*cells, f"{each.lag_ms:+.0f}", " ".join(str(count) for count in each.lags.values())]))
    lines += _picture_lines(done.clips)
    lines += _speech_lines(done.speech)
    lines += _quiet_lines(done.quiet)
    if done.cost is not None:
        cost = done.cost
        lines += [
            "",
            "## Cost on one processor, one thread",
            "",
            *_head(COST_COLUMNS),
            _row(
                [
                    cost.face_px,
                    f"{cost.frame_ms:.2f}",
                    f"{cost.frame_p95_ms:.2f}",
                    *(f"{value:.0f}" for value in (cost.prepare_ms, cost.load_ms, cost.memory_mib, cost.engine_mib)),
                ]
            ),
        ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _motion(clip: ClipScore) -> Likeness | None:
    return clip.motion


def _picture(clip: ClipScore) -> Likeness | None:
    return clip.picture


def _picture_lines(clips: Sequence[ClipScore]) -> list[str]:
    def middle(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None and math.isfinite(value)]
        return f"{np.median(known):.3f}" if known else NOTHING

    if all(clip.picture is None for clip in clips):
        return []
    rows = {
        "distance of the 40 lip points, own scale (0 the same, 1.41 unrelated)": [clip.distance for clip in clips],
        "the same, eye distances": [clip.distance_eyes for clip in clips],
        "unrest over the real speaker's": [clip.unrest for clip in clips],
        "sharpness of the mouth over that of the photo": [clip.sharpness for clip in clips],
    }
    told = [_row([name, middle(values)]) for name, values in rows.items()]
    return ["", "## The drawn mouth, medians over clips", "", *_head(["", ""]), *told]


def _speech_lines(speech: SpeechScore | None) -> list[str]:
    if speech is None:
        return []
    columns: dict[str, Sequence[Cases]] = {}
    for by, cases in (("motion", speech.motion), ("picture", speech.picture)):
        if cases is None:
            continue
        columns[f"{by}, all"] = list(cases.values())
        columns |= {f"{by}, {synthesiser}": [each] for synthesiser, each in sorted(cases.items())}
    shares = {name: case_shares(cases) for name, cases in columns.items()}
    rows = next(iter(shares.values()), {})
    return [
        "",
        f"## Synthetic speech with known phones, {speech.texts} texts: share of cases (number)",
        "",
        *_head(["", *shares]),
        *(_row([name, *(_share(*of[name]) for of in shares.values())]) for name in rows),
    ]


def _share(share: float, count: int) -> str:
    return f"{share:.1%} ({count})" if count else NOTHING


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else NOTHING


def _quiet_lines(quiet: Sequence[Quiet]) -> list[str]:
    if not quiet:
        return []
    return [
        "",
        "## Where nobody speaks: opening over the largest in speech of -20 dBFS just before; noise at -50 dBFS",
        "",
        *_head(["sound", "gain", "measured on", "most", "mean", "jitter, eye distances"]),
        *(
            _row([each.sound, each.gate, each.by, _percent(each.most), _percent(each.mean), f"{each.jitter:.4f}"])
            for each in quiet
        ),
    ]


def write_report(done: Evaluation, folder: Path) -> None:
    """Write evaluate.md and evaluate.json.

    Raises:
        OSError: they cannot be written.
    """
    told: dict[str, Any] = {
        **asdict(done),
        "motion": [asdict(each) for each in summaries(done.clips, _motion)],
        "picture": [asdict(each) for each in summaries(done.clips, _picture)],
        "speech_shares": {
            by: {name: case_shares([each]) for name, each in cases.items()}
            for by, cases in (("motion", done.speech.motion), ("picture", done.speech.picture))
            if cases is not None
        }
        if done.speech is not None
        else {},
    }
    write_atomically(folder / "evaluate.json", (json.dumps(_finite(told), indent=1) + "\n").encode())
    write_atomically(folder / "evaluate.md", markdown(done).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that has its name only when it is whole.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            os.fsync(part.fileno())
            part.close()
            Path(part.name).chmod(0o644)
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
