"""Training of the network, and what it is worth."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scripts._builtin.lessons import FRAMES, Batch, Lesson, columns, draw, padded
from scripts._builtin.network import DILATIONS, Hearing, shares
from services.inference.builtin.drive import on_level

__all__ = [
    "WIDEST_LEARNED",
    "WIDEST_OFFSET",
    "Plan",
    "Score",
    "Task",
    "aligned",
    "balanced",
    "few_of_each",
    "folds_of",
    "hear",
    "learn",
    "learn_all",
    "score",
    "usual",
]

Floats = npt.NDArray[np.float32]
Say = Callable[[str], None]

WEIGHTS: Final = (1.0, 0.8, 0.3)
"""how much a mistake of opening, width and raising counts"""
CORRELATION: Final = (1.5, 0.5)
"""how much opening and width of a sequence that do not go with the speaker's count"""
SHUT_BELOW: Final = 0.12
SHUT_WEIGHT: Final = 2.0
"""A mouth that should be shut and is not counts this much more."""
PRESS_WEIGHT: Final = 2.0
"""and one whose lips should be pressed and are not"""
WIDEST_OFFSET: Final = 3
"""video frames by which the picture of a clip may be early or late when it is scored"""
WIDEST_LEARNED: Final = 5
"""and when it is learned from"""
LEAST_LIKENESS: Final = 0.15
"""A clip whose mouth goes with its sound less than this, whatever the offset, is left out."""
CLIPS_A_PERSON: Final = 3
PROCESSES: Final = 2
"""that train at once, on one thread each: so they are a fifth faster than one after the other on two threads, and what
comes out does not depend on how many cores there are"""
RATE: Final = 2e-3
DECAY: Final = 0.05
AVERAGE: Final = 0.98
"""The network that is used is the running mean of those of the last steps."""
WARM_SHARE: Final = 0.05


@dataclass(frozen=True)
class Plan:
    """How long and how much is learned."""

    steps: int
    batch: int = 25
    spoken: int = 5
    """sequences of synthesised speech in a batch, beside those of people"""
    pressing: float = 0.2
    """how much a mistake of pressing counts"""
    channels: int = 128
    dilations: tuple[int, ...] = DILATIONS
    dropout: float = 0.25
    seed: int = 1


@dataclass(frozen=True)
class Task:
    """One network to train."""

    name: str
    people: Sequence[Lesson]
    plan: Plan


@dataclass(frozen=True)
class Score:
    """How well the network's motion goes with a speaker's."""

    name: str
    person: str
    opening: float
    """Pearson r, with the best offset"""
    width: float
    raw_opening: float
    """Pearson r as it is"""
    offset: int
    """video frames by which the speaker's picture is behind"""


OfPerson = TypeVar("OfPerson", Lesson, Score)


def learn(people: Sequence[Lesson], spoken: Sequence[Lesson], plan: Plan, say: Say) -> Hearing:
    """Train a network.

    Args:
        people: real speakers; may be empty if the plan draws none of them.
        spoken: synthesised speech; the same.
        plan: how long.
        say: is told what goes on.

    Returns:
        the network, for use.
    """
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    network = Hearing(plan.channels, plan.dropout, plan.dilations).train()
    average = torch.optim.swa_utils.AveragedModel(
        network,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=plan.steps, pct_start=WARM_SHARE)
    half = _multiplies_bf16()
    at = torch.from_numpy(columns(FRAMES))
    lost, began_s = 0.0, time.monotonic()
    for step in range(plan.steps):
        drawn = [draw(lessons, count, rng) for lessons, count in ((people, plan.batch), (spoken, plan.spoken)) if count]
        batch = Batch(*(torch.cat(parts) for parts in zip(*map(_parts, drawn), strict=True)))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            heard = network(batch.mel)
        loss = _loss(heard.float()[:, :, at].transpose(1, 2), batch, plan.pressing)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        lost += 0.02 * (float(loss.detach()) - lost) if step else float(loss.detach())
        if (step + 1) % 200 == 0:
            say(f"step {step + 1}/{plan.steps}: loss {lost:.3f}, {time.monotonic() - began_s:.0f} s")
    found = average.module
    assert isinstance(found, Hearing)  # noqa: S101 - it is a copy of the network
    return found.eval()


def learn_all(tasks: Sequence[Task], spoken: Sequence[Lesson]) -> list[Hearing]:
    """Train several networks, `PROCESSES` at a time; what goes on is told to stderr.

    Args:
        tasks: what each of them learns from, and how long.
        spoken: synthesised speech, from which all of them learn.

    Returns:
        in the order of the tasks.
    """
    with ProcessPoolExecutor(
        min(PROCESSES, len(tasks)), multiprocessing.get_context("spawn"), _begin, (tuple(spoken),)
    ) as pool:
        found = list(pool.map(_weights, tasks))
    networks = []
    for task, weights in zip(tasks, found, strict=True):
        network = Hearing(task.plan.channels, task.plan.dropout, task.plan.dilations)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        networks.append(network.eval())
    return networks


_SPOKEN: list[Lesson] = []
"""in a process of `learn_all`"""


def _begin(spoken: Sequence[Lesson]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent too, which says so
    torch.set_num_threads(1)
    _SPOKEN[:] = spoken


def _weights(task: Task) -> dict[str, npt.NDArray[np.generic]]:
    """Train one, in a process of its own; tensors would cross by shared memory, of which a container has little."""
    network = learn(task.people, _SPOKEN, task.plan, functools.partial(_tell, task.name))
    return {name: value.numpy() for name, value in network.state_dict().items()}


def _tell(name: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {text}", file=sys.stderr, flush=True)


def _multiplies_bf16() -> bool:
    """Whether the processor multiplies in bfloat16, which halves the time."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _parts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.mel, batch.motion, batch.known


def _loss(found: Tensor, batch: Batch, pressing: float) -> Tensor:
    wanted = batch.motion
    opening = wanted[..., 0] + wanted[..., 2]
    heavy = torch.ones_like(wanted)
    heavy[..., 0] += SHUT_WEIGHT * (opening < SHUT_BELOW)
    heavy[..., 2] += SHUT_WEIGHT * (opening < SHUT_BELOW)
    heavy[..., 3] += PRESS_WEIGHT * wanted[..., 3]
    error = torch.cat(
        (
            torch.nn.functional.smooth_l1_loss(found[..., :3], wanted[..., :3], reduction="none", beta=0.3),
            torch.nn.functional.binary_cross_entropy_with_logits(found[..., 3:], wanted[..., 3:], reduction="none"),
        ),
        dim=2,
    )
    error = error * heavy * batch.known
    loss = (error.mean(dim=(0, 1)) * torch.tensor((*WEIGHTS, pressing))).sum()
    for weight, ours, theirs in (
        (CORRELATION[0], found[..., 0] + found[..., 2], opening),
        (CORRELATION[1], found[..., 1], wanted[..., 1]),
    ):
        loss = loss + weight * (1 - _likeness(ours, theirs, batch.known[..., 0])).mean()
    return loss


def _likeness(ours: Tensor, theirs: Tensor, seen: Tensor) -> Tensor:
    """Pearson r of each sequence, (n,); 1 where there is nothing to be alike."""
    count = seen.sum(dim=1, keepdim=True).clamp(min=1)
    a = (ours - (ours * seen).sum(dim=1, keepdim=True) / count) * seen
    b = (theirs - (theirs * seen).sum(dim=1, keepdim=True) / count) * seen
    spread = b.square().sum(dim=1)
    r = (a * b).sum(dim=1) / (a.square().sum(dim=1) * spread + 1e-4).sqrt()
    return torch.where(spread > 0.05, r, torch.ones_like(r))


def hear(networks: Sequence[Hearing], mel: Floats, frames: int, pressing: Hearing | None = None) -> Floats:
    """Motion of each video frame of a recording, (frames, 4), in the measure of `Lesson.motion`.

    Args:
        networks: whose mean is wanted.
        mel: of the recording, (80, n).
        frames: how many.
        pressing: the network that tells of pressing, if it is not they.
    """
    given = torch.from_numpy(padded(on_level(mel)))[None]
    with torch.no_grad():
        found = torch.stack([shares(network(given))[0] for network in networks]).mean(dim=0).numpy()
        if pressing is not None:
            found[3] = shares(pressing(given))[0, 3].numpy()
    return np.ascontiguousarray(found[:, np.minimum(columns(frames), found.shape[1] - 1)].T)


def usual(networks: Sequence[Hearing], lessons: Sequence[Lesson]) -> tuple[float, float]:
    """What networks say of people: 95th percentile of the opening, twice the standard deviation of the width."""
    few = few_of_each(lessons, CLIPS_A_PERSON)
    said = np.concatenate([hear(networks, lesson.mel, len(lesson.motion)) for lesson in few])
    return float(np.quantile(said[:, 0] + said[:, 2], 0.95)), float(2 * said[:, 1].std())


def few_of_each(clips: Sequence[OfPerson], most: int) -> list[OfPerson]:
    """The first clips of each person, `most` at most."""
    taken: dict[str, int] = {}
    kept = []
    for clip in clips:
        taken[clip.person] = taken.get(clip.person, 0) + 1
        if taken[clip.person] <= most:
            kept.append(clip)
    return kept


def score(lesson: Lesson, motion: Floats, widest: int = WIDEST_OFFSET) -> Score:
    """Compare a motion with the speaker's own.

    Args:
        lesson: the speaker.
        motion: (frames, 4), in any measure.
        widest: offset that is tried, video frames.
    """
    best, raw = (-2.0, 0), 0.0
    for offset in range(-widest, widest + 1):
        r = _pearson(*_overlap(lesson, motion, offset, opening=True))
        best = max(best, (r, offset))
        raw = r if offset == 0 else raw
    width = _pearson(*_overlap(lesson, motion, best[1], opening=False))
    return Score(lesson.name, lesson.person, best[0], width, raw, best[1])


def _overlap(lesson: Lesson, motion: Floats, offset: int, *, opening: bool) -> tuple[Floats, Floats]:
    """What was heard and what was seen `offset` frames later."""
    theirs = lesson.motion[:, 0] + lesson.motion[:, 2] if opening else lesson.motion[:, 1]
    ours = motion[:, 0] + motion[:, 2] if opening else motion[:, 1]
    frames = min(len(theirs), len(ours))
    at = np.arange(max(0, -offset), frames - max(0, offset))
    keep = lesson.seen[at + offset]
    return ours[at][keep], theirs[at + offset][keep]


def _pearson(a: Floats, b: Floats) -> float:
    if len(a) < 10 or a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def aligned(lessons: Sequence[Lesson], scores: Sequence[Score], say: Say) -> list[Lesson]:
    """Correct the offset of each clip, and leave out those whose sound does not belong to the picture."""
    kept = []
    for lesson, told in zip(lessons, scores, strict=True):
        if told.opening < LEAST_LIKENESS:
            say(f"left out, r {told.opening:.2f}: {lesson.name}")
            continue
        kept.append(lesson.shifted(told.offset))
    return kept


def balanced(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Let each person be drawn by the square root of how long he speaks."""
    frames: dict[str, int] = {}
    for lesson in lessons:
        frames[lesson.person] = frames.get(lesson.person, 0) + len(lesson.motion)
    return [replace(each, weight=len(each.motion) / frames[each.person] ** 0.5) for each in lessons]


def folds_of(lessons: Sequence[Lesson], count: int, seed: int) -> dict[str, int]:
    """Fold of each person, so that each fold has about as many clips; s1 of GRID, with most clips, in one."""
    rng = np.random.default_rng(seed)
    clips: dict[str, int] = {}
    for lesson in lessons:
        clips[lesson.person] = clips.get(lesson.person, 0) + 1
    people = sorted(clips)
    order = sorted(rng.permutation(people), key=lambda person: -clips[str(person)])
    sizes = [0] * count
    fold = {}
    for person in map(str, order):
        least = int(np.argmin(sizes))
        fold[person] = least
        sizes[least] += clips[person]
    return fold
