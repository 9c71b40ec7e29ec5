"""Training of the Wav2Lip network on a few clips, for a checkpoint whose activations are those of a trained network.

Random weights do not behave like trained ones: what is said of precision and quantisation needs weights that have
learned faces. This is the published first stage, reconstruction alone: K R Prajwal et al., "A Lip Sync Expert Is All
You Need for Speech to Lip Generation In The Wild", ACM Multimedia 2020. The network sees a face with its lower half
black, another frame of the same clip and the mel window of the frame, and draws the frame; the loss is L1, the
optimiser Adam. The expert's and the discriminator's losses are left out, so mouths stay soft. One thing is our own: a
mistake around the mouth counts more, since otherwise a short training hardly listens.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from scripts._wav2lip.checkpoint import load_checkpoint, save_checkpoint
from scripts._wav2lip.network import Wav2Lip
from services.face_prep.face import FaceError, FaceMaker
from services.mel_features.mel import MEL_RATE_HZ, SAMPLE_RATE_HZ, whole_file

__all__ = [
    "Batch",
    "Clip",
    "ClipError",
    "Figures",
    "Plan",
    "choose",
    "contact_sheet",
    "draw_batch",
    "load_clips",
    "measure",
    "read_clip",
    "save_clips",
    "train",
]

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Say = Callable[[str], None]

SUFFIXES: Final = {".mp4", ".mov", ".mpg", ".avi", ".mkv", ".webm"}
RATE_FPS: Final = 25
SIZE: Final = 96
WINDOW: Final = 16
"""mel frames of a window"""
FIRST_FRAME: Final = 10
"""The first frames are left out: people have not begun to speak, and the mel window of frame 0 begins before it."""
FRAMES_A_CLIP: Final = 50
LEAST_FRAMES: Final = 10
BOX_EVERY: Final = 12
"""The face is looked for in every so many frames; its box is interpolated between them."""
LONGEST_SIDE_PX: Final = 720
MOST_CLIPS: Final = 100
MOST_HELD_OUT: Final = 24
CLIPS_A_SPEAKER: Final = 20
DECODE_TIMEOUT_S: Final = 60

HIGHEST_RATE: Final = 3e-4
LOWEST_RATE: Final = 3e-5
"""Step lengths of Adam; along half a cosine from the one to the other."""
MOUTH: Final = (slice(54, 90), slice(22, 74))
"""Rows and columns around the mouth of a crop."""
MOUTH_WEIGHT: Final = 8.0
"""A mistake there counts as so many elsewhere."""
SETTLING_BATCHES: Final = 8
SNAPSHOT_S: Final = 240.0
REPORT_S: Final = 30.0
TRIAL_STEPS: Final = 4
MEASURED_FRAMES: Final = 96


class ClipError(ValueError):
    """A clip or a file of clips cannot be used; the text says why."""


@dataclass(frozen=True)
class Clip:
    """The face of one person who speaks."""

    name: str
    """of the file"""
    held_out: bool
    """only looked at, never learned from"""
    crops: Pixels
    """faces, BGR, (n, 96, 96, 3)"""
    windows: Floats
    """mel window of each frame, training alignment, -4..4, (n, 80, 16)"""


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    mels: Tensor
    """(N, 1, 80, 16)"""
    faces: Tensor
    """masked frame, then reference, BGR 0..1, (N, 6, 96, 96)"""
    targets: Tensor
    """BGR 0..1, (N, 3, 96, 96)"""

    def on(self, device: torch.device) -> Batch:
        """Move to a device."""
        return Batch(self.mels.to(device), self.faces.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    minutes: float
    frames_a_step: int = 12
    seed: int = 0
    start: Path | None = None
    """checkpoint to go on from; random weights without one"""


@dataclass(frozen=True)
class Figures:
    """Mean absolute error of a network, 0..1."""

    whole: float
    """of all pixels"""
    lower: float
    """of the lower half"""
    mouth: float
    """around the mouth"""
    deaf: float
    """around the mouth, with mel windows of other frames"""
    reference: float
    """around the mouth, if the reference frame were returned as it is"""


def choose(folders: Sequence[Path], held_out: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Choose a bounded number of clips, as many speakers as there are.

    A speaker is what stands in a file's name before the last underscore; of each in turn one clip is taken.

    Args:
        folders: video files lie in or below them.
        held_out: shell patterns; files whose path matches one are held out.

    Returns:
        clips to learn from, at most `MOST_CLIPS`, and clips held out, at most `MOST_HELD_OUT`.

    Raises:
        ClipError: there is nothing to learn from, or nothing is held out.
    """
    found = sorted({path for each in folders for path in each.rglob("*") if path.suffix.lower() in SUFFIXES})
    tests = [path for path in found if any(fnmatch(path.as_posix(), pattern) for pattern in held_out)]
    learned = [path for path in found if path not in set(tests)]
    if not learned:
        raise ClipError(f"no video files to learn from in {', '.join(str(each) for each in folders)}")
    if not tests:
        raise ClipError(f"no clip matches {' or '.join(held_out)}: name some to be held out with --hold-out")
    return _in_turn(learned)[:MOST_CLIPS], _in_turn(tests)[:MOST_HELD_OUT]


def _in_turn(paths: Sequence[Path]) -> list[Path]:
    speakers: dict[str, list[Path]] = {}
    for path in paths:
        speakers.setdefault(path.stem.rpartition("_")[0], []).append(path)
    rounds = itertools.zip_longest(*(each[:CLIPS_A_SPEAKER] for each in speakers.values()))
    return [path for each in rounds for path in each if path is not None]


def read_clip(path: Path, maker: FaceMaker, *, held_out: bool) -> Clip:
    """Read the face and the sound of a clip.

    Args:
        path: a video file with sound, of any frame rate; it is read at 25 fps.
        maker: finds the face, in every `BOX_EVERY`-th frame.
        held_out: kept in the clip.

    Returns:
        at most `FRAMES_A_CLIP` frames.

    Raises:
        ClipError: no picture, no sound, no face, or too little of them.
    """
    pictures = list(_pictures(path))
    windows = _windows(path, len(pictures))
    pictures = pictures[: len(windows)]
    if len(pictures) < LEAST_FRAMES:
        raise ClipError(f"{path.name} is too short: {len(pictures)} frames with sound")
    boxes = _boxes(path, pictures, maker)
    crops = np.stack([_crop(picture, box) for picture, box in zip(pictures, boxes, strict=True)])
    return Clip(path.name, held_out, crops, windows)


def _pictures(path: Path) -> Iterator[Pixels]:
    """Frames from `FIRST_FRAME` on, BGR, the longer side at most `LONGEST_SIDE_PX`."""
    capture = cv2.VideoCapture(str(path))
    try:
        rate_fps = float(capture.get(cv2.CAP_PROP_FPS))
        if not 1.0 <= rate_fps <= 240.0:
            raise ClipError(f"{path.name} is no video that can be read")
        at = -1
        for frame in range(FIRST_FRAME, FIRST_FRAME + FRAMES_A_CLIP):
            wanted = math.floor(frame * rate_fps / RATE_FPS + 1e-6)
            grabbed = True
            while at < wanted and grabbed:
                grabbed = capture.grab()
                at += 1
            ok, picture = capture.retrieve() if grabbed else (False, np.zeros(0))
            if not ok:
                return
            scale = LONGEST_SIDE_PX / max(picture.shape[:2])
            if scale < 1:
                picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            yield np.asarray(picture, np.uint8)
    finally:
        capture.release()


def _windows(path: Path, frames: int) -> Floats:
    """Mel windows of frames `FIRST_FRAME` and on; fewer where the sound ends before."""
    seconds = (FIRST_FRAME + frames) / RATE_FPS + WINDOW / MEL_RATE_HZ
    wanted = ("-map", "0:a:0", "-t", f"{seconds:.3f}", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ), "-f", "s16le", "-")
    try:
        made = subprocess.run(
            ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-i", str(path), *wanted],
            capture_output=True,
            check=True,
            timeout=DECODE_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise ClipError("ffmpeg is not installed; try: apt install ffmpeg") from error
    except subprocess.SubprocessError as error:
        raise ClipError(f"{path.name} has no sound that can be read") from error
    mel = whole_file(np.frombuffer(made.stdout, "<i2").astype(np.int16))
    # The training alignment: the window of frame i begins where frame i - 1 does.
    starts = [MEL_RATE_HZ * (FIRST_FRAME + index - 1) // RATE_FPS for index in range(frames)]
    cut = [mel[:, start : start + WINDOW] for start in starts if start + WINDOW <= mel.shape[1]]
    return np.array(cut, np.float32).reshape(-1, mel.shape[0], WINDOW)


def _boxes(path: Path, pictures: Sequence[Pixels], maker: FaceMaker) -> Floats:
    """Face box of each frame, interpolated between those looked at, (n, 4) px."""
    seen: list[int] = []
    found: list[tuple[int, int, int, int]] = []
    for index in range(0, len(pictures), BOX_EVERY):
        picture = pictures[index]
        try:
            face = maker.make("clip", cv2.imencode(".png", picture)[1].tobytes(), max_side_px=LONGEST_SIDE_PX)
        except FaceError:
            continue
        if face.photo.shape == picture.shape:
            seen.append(index)
            found.append(face.box)
    if not seen:
        raise ClipError(f"{path.name} shows no face")
    edges = np.array(found, np.float64)
    frames = np.arange(len(pictures))
    return np.stack([np.interp(frames, seen, edge) for edge in edges.T], axis=1).astype(np.float32)


def _crop(picture: Pixels, box: Floats) -> Pixels:
    x1, y1, x2, y2 = (max(0, round(float(edge))) for edge in box)
    return np.asarray(cv2.resize(picture[y1:y2, x1:x2], (SIZE, SIZE)), np.uint8)


def save_clips(clips: Sequence[Clip], path: Path) -> None:
    """Keep decoded clips in one NPZ file; it is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                names=np.array([clip.name for clip in clips]),
                held_out=np.array([clip.held_out for clip in clips]),
                lengths=np.array([len(clip.crops) for clip in clips]),
                crops=np.concatenate([clip.crops for clip in clips]),
                windows=np.concatenate([clip.windows for clip in clips]),
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def load_clips(path: Path) -> list[Clip]:
    """Read what `save_clips` wrote.

    Raises:
        ClipError: it is another file, or damaged.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            ends = np.cumsum(stored["lengths"])[:-1]
            crops, windows = np.split(stored["crops"], ends), np.split(stored["windows"], ends)
            rows = zip(stored["names"], stored["held_out"], crops, windows, strict=True)
            clips = [Clip(str(name), bool(held_out), some, mels) for name, held_out, some, mels in rows]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path} holds no decoded clips; delete it to have them decoded again") from error
    for clip in clips:
        frames = len(clip.crops)
        if clip.crops.shape[1:] != (SIZE, SIZE, 3) or clip.windows.shape != (frames, 80, WINDOW) or frames < 2:
            raise ClipError(f"{path} holds no decoded clips; delete it to have them decoded again")
    return clips


def draw_batch(clips: Sequence[Clip], frames: int, random: np.random.Generator) -> Batch:
    """Draw frames at random, each with another frame of its clip beside it; half of the pairs are mirrored.

    Args:
        clips: at least one, of two frames or more.
        frames: how many.
        random: source of chance.

    Returns:
        float32 tensors of `frames` rows.
    """
    mels: list[Floats] = []
    targets: list[Pixels] = []
    references: list[Pixels] = []
    for _ in range(frames):
        clip = clips[int(random.integers(len(clips)))]
        frame, other = random.choice(len(clip.crops), 2, replace=False)
        step = -1 if random.random() < 0.5 else 1
        mels.append(clip.windows[frame])
        targets.append(clip.crops[frame][:, ::step])
        references.append(clip.crops[other][:, ::step])
    target = _planes(targets)
    masked = target.clone()
    masked[:, :, SIZE // 2 :] = 0
    faces = torch.cat([masked, _planes(references)], dim=1)
    return Batch(torch.from_numpy(np.stack(mels)[:, None]), faces, target)


def _planes(crops: Sequence[Pixels]) -> Tensor:
    """BGR crops as planes 0..1, (N, 3, 96, 96)."""
    values = np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2), np.float32) / np.float32(255)
    return torch.from_numpy(values)


@dataclass(frozen=True)
class _Way:
    """How a step is computed."""

    device: torch.device
    bfloat16: bool = False
    layout: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        layout = "channels last" if self.layout == torch.channels_last else "channels first"
        return f"{self.device}, {'bfloat16' if self.bfloat16 else 'float32'}, {layout}"

    def placed(self, module: Wav2Lip) -> Wav2Lip:
        """Move a network to where and how this way wants it."""
        module.to(self.device)
        module.to(memory_format=self.layout)  # type: ignore[call-overload]  # the stubs know it only for tensors
        return module

    def step(self, module: Wav2Lip, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
        """Learn from one batch; returns its mean absolute error, each pixel counted once."""
        here = batch.on(self.device)
        faces = here.faces.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            drawn = module(here.mels, faces)
        wrong = (drawn.float() - here.targets).abs()
        loss = wrong.mean() + (MOUTH_WEIGHT - 1) * wrong[:, :, *MOUTH].sum() / wrong.numel()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(wrong.detach().mean())


def _quickest(module: Wav2Lip, batch: Batch, say: Say) -> _Way:
    """Try both precisions in both memory layouts on copies of the network.

    They take turns, and the quickest step of each counts: other programs on the machine disturb all alike.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layouts = (torch.contiguous_format, torch.channels_last)
    trials = [
        (way, way.placed(copy.deepcopy(module)))
        for way in (_Way(device, bfloat16, layout) for bfloat16 in (True, False) for layout in layouts)
    ]
    least_s = dict.fromkeys(range(len(trials)), math.inf)
    for _ in range(TRIAL_STEPS):
        for index, (way, trial) in enumerate(trials):
            began_s = time.perf_counter()
            way.step(trial, torch.optim.SGD(trial.parameters(), lr=0.0), batch)
            least_s[index] = min(least_s[index], time.perf_counter() - began_s)
    for index, (way, _) in enumerate(trials):
        say(f"{way}: {len(batch.mels) / least_s[index]:.1f} frames a second")
    return trials[min(least_s, key=lambda index: least_s[index])][0]


def train(clips: Sequence[Clip], out: Path, plan: Plan, say: Say) -> Wav2Lip:
    """Train for a given time and write the checkpoint.

    A snapshot goes to `out` every `SNAPSHOT_S` seconds and at the end, each whole.

    Args:
        clips: those held out are left alone.
        out: the checkpoint, in the published form.
        plan: how long and how.
        say: told how it goes, one line at a time.

    Returns:
        the network as written last, in eval mode, float32, on the processor.

    Raises:
        ClipError: every clip is held out.
        CheckpointError: the checkpoint to start from cannot be used.
        OSError: a checkpoint cannot be read or written.
    """
    learned = [clip for clip in clips if not clip.held_out]
    if not learned:
        raise ClipError("every clip is held out: there is nothing to learn from")
    began_s = time.perf_counter()
    torch.manual_seed(plan.seed)
    random = np.random.default_rng(plan.seed)
    module = (Wav2Lip() if plan.start is None else load_checkpoint(plan.start)).requires_grad_().train()
    way = _quickest(module, draw_batch(learned, plan.frames_a_step, random), say)
    way.placed(module)
    optimiser = torch.optim.Adam(module.parameters(), lr=HIGHEST_RATE)
    say(f"{len(learned)} clips; {way}; {plan.frames_a_step} frames a step")

    steps, losses, seconds = 0, 0.0, plan.minutes * 60
    told_s, told_steps = 0.0, 0
    snapshot_s = SNAPSHOT_S
    while True:
        elapsed_s = time.perf_counter() - began_s
        if elapsed_s >= told_s + REPORT_S and steps > told_steps:
            speed = (steps - told_steps) * plan.frames_a_step / (elapsed_s - told_s)
            loss = losses / (steps - told_steps)
            say(f"{elapsed_s / 60:.1f} min  step {steps}  L1 {loss:.4f}  {speed:.1f} frames a second")
            told_s, told_steps, losses = elapsed_s, steps, 0.0
        if elapsed_s >= min(snapshot_s, seconds):
            settled = _settled(module, learned, plan)
            save_checkpoint(settled, out)
            say(f"{elapsed_s / 60:.1f} min  step {steps}  written: {out}")
            if elapsed_s >= seconds:
                return settled
            snapshot_s += SNAPSHOT_S
        part = min(1.0, elapsed_s / seconds)
        for group in optimiser.param_groups:
            group["lr"] = LOWEST_RATE + (HIGHEST_RATE - LOWEST_RATE) * (1 + math.cos(math.pi * part)) / 2
        losses += way.step(module, optimiser, draw_batch(learned, plan.frames_a_step, random))
        steps += 1


def _settled(module: Wav2Lip, clips: Sequence[Clip], plan: Plan) -> Wav2Lip:
    """Copy with the means and variances of BatchNorm taken anew: those kept while training lag behind the weights."""
    copied = _Way(torch.device("cpu")).placed(copy.deepcopy(module)).train()
    norms = [part for part in copied.modules() if isinstance(part, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    random = np.random.default_rng(plan.seed + 1)
    with torch.inference_mode():
        for _ in range(SETTLING_BATCHES):
            batch = draw_batch(clips, 16, random)
            copied(batch.mels, batch.faces)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return copied.eval()


def measure(module: Wav2Lip, clips: Sequence[Clip], seed: int = 0) -> Figures:
    """Compare what the network draws with the frames themselves.

    Args:
        module: in eval mode.
        clips: frames are drawn from them.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    found: list[tuple[float, ...]] = []
    for _ in range(MEASURED_FRAMES // 16):
        batch = draw_batch(clips, 16, random)
        with torch.inference_mode():
            drawn, deaf = module(batch.mels, batch.faces), module(batch.mels.roll(1, 0), batch.faces)
        wrong, wrong_deaf, copied = ((each - batch.targets).abs() for each in (drawn, deaf, batch.faces[:, 3:]))
        mouth = (wrong[:, :, *MOUTH], wrong_deaf[:, :, *MOUTH], copied[:, :, *MOUTH])
        found.append(tuple(float(each.mean()) for each in (wrong, wrong[:, :, SIZE // 2 :], *mouth)))
    return Figures(*(float(each) for each in np.mean(found, axis=0)))


def contact_sheet(module: Wav2Lip, clips: Sequence[Clip], frames: int = 8, seed: int = 0) -> Pixels:
    """Show frames: a column each with what is masked, the reference, the target and what the network drew.

    Args:
        module: in eval mode.
        clips: one frame is taken of each, evenly spaced, at most `frames`.
        frames: columns.
        seed: which frames.

    Returns:
        BGR, (4 * 192, columns * 192, 3).
    """
    random = np.random.default_rng(seed)
    places = np.unique(np.linspace(0, len(clips) - 1, frames).astype(int))
    columns = []
    for place in places:
        batch = draw_batch([clips[place]], 1, random)
        with torch.inference_mode():
            drawn = module(batch.mels, batch.faces)
        rows = torch.cat([batch.faces[:, :3], batch.faces[:, 3:], batch.targets, drawn]).numpy()
        tall = np.concatenate([row.transpose(1, 2, 0) for row in rows])
        columns.append(np.clip(tall * 255, 0, 255).astype(np.uint8))
    sheet = np.concatenate(columns, axis=1)
    return np.asarray(cv2.resize(sheet, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), np.uint8)
