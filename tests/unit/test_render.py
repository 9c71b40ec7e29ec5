"""scripts/render: what it writes, how it follows a face, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import psutil
import pytest
import soundfile

from scripts._render import video
from scripts._render.faces import BoxStore, Choice, Follower, padded, smoothed
from scripts._render.job import Job, render
from scripts._render.video import SYNTHETIC, Change, Clip, RenderError
from services.face_prep.detector import iou
from tests import budgets
from tests.rig.stack import ROOT, until
from tests.unit.speech import speech
from tests.unit.test_wav2lip import save

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

DEMO_FACE = ROOT / "services/face_prep/assets/demo_face.png"
DEMO_BOX = (276, 198, 563, 581)
FACE_MODELS = ROOT / "models/face"
SMALL = 320
"""side of the test videos, px"""


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    missing += [] if FACE_MODELS.is_dir() else ["models/face (scripts/fetch_face_models)"]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not here: {', '.join(missing)}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of the published form, whose lower half is as bright as the sound is loud."""
    return save(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("render_script", str(ROOT / "scripts/render"))
    spec = importlib.util.spec_from_loader("render_script", loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a voice and with things that cannot be used."""
    folder = tmp_path_factory.mktemp("things")
    say(folder / "voice.wav", 0.4)
    say(folder / "breath.wav", 0.0)
    (folder / "words.txt").write_text("this is neither sound nor picture\n" * 20)
    grey = np.full((120, 160, 3), 128, np.uint8)
    cv2.imwrite(str(folder / "grey.png"), grey)
    film(folder / "grey.mkv", [grey] * 3)
    film(folder / "face.mkv", [demo(SMALL)] * 3)
    return folder


@pytest.fixture
def _own_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def demo(side: int) -> Pixels:
    photo = cv2.imread(str(DEMO_FACE))
    assert photo is not None
    return np.asarray(cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def say(path: Path, seconds: float, rate_hz: int = 16_000) -> None:
    soundfile.write(path, speech("espeak-ng", rate_hz)[: int(seconds * rate_hz)], rate_hz, subtype="PCM_16")


def film(path: Path, frames: Sequence[Pixels], rate: str = "25", codec: Sequence[str] = ("-c:v", "ffv1")) -> Path:
    height, width = frames[0].shape[:2]
    into = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}", "-r", rate, "-i", "pipe:0"]
    kind = [] if "libx264" in codec else ["-pix_fmt", "bgr0"]
    pixels = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *into, *codec, *kind, str(path)], input=pixels, check=True, timeout=60
    )
    return path


def quiet(_what: str, _done: int, _total: int) -> None:
    """No progress bar."""


def make(tmp_path: Path, **options: Any) -> Job:
    defaults: dict[str, Any] = {
        "face": DEMO_FACE,
        "audio": tmp_path / "voice.wav",
        "precision": "f32",
        "face_models": FACE_MODELS,
        "wav2lip_models": tmp_path / "none",
        "cache": tmp_path / "cache",
    }
    return Job(**(defaults | options))


def pictures(folder: Path) -> list[Pixels]:
    return [np.asarray(cv2.imread(str(path)), np.uint8) for path in sorted(folder.glob("*.png"))]


def looked_at(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", str(path)]
    told: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return told


# What is written.


def test_a_photo_speaks_with_the_builtin_engine(tmp_path: Path) -> None:
    say(tmp_path / "voice.wav", 1.5, 44_100)
    job = make(tmp_path, output=tmp_path / "out.mp4", frames_dir=tmp_path / "frames", engine="auto", still=True)
    made = render(job, quiet)
    frames = pictures(tmp_path / "frames")
    assert (made.frames, made.faceless, made.engine) == (38, 0, "builtin")
    assert len(frames) == 38
    photo = cv2.imread(str(DEMO_FACE))
    assert photo is not None
    assert all((frame[:190] == photo[:190]).all() for frame in frames), "only the mouth moves"
    moved = [np.abs(frame[420:560, 340:500].astype(int) - frames[0][420:560, 340:500]).mean() for frame in frames]
    assert max(moved) > budgets.RENDER_SOFT_CHANGE
    told = looked_at(job.output or Path())
    picture, sound = told["streams"]
    assert (picture["codec_name"], sound["codec_name"], picture["pix_fmt"]) == ("h264", "aac", "yuv420p")
    assert (picture["r_frame_rate"], int(picture["nb_read_frames"])) == ("25/1", 38)
    assert sound["sample_rate"] == "44100", "the sound is the original's, not the network's"
    assert told["format"]["tags"]["comment"] == told["format"]["tags"]["description"] == SYNTHETIC
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "out.mp4", "voice.wav"]
    whole = (job.output or Path()).read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat"), "a browser can begin before the end has come"


def test_a_photo_lives_while_it_speaks(tmp_path: Path) -> None:
    """From the photo on its head begins to move, and does the same again in the next render."""
    say(tmp_path / "voice.wav", 1.0, 16_000)
    films = []
    for name in ("one", "other"):
        render(make(tmp_path, frames_dir=tmp_path / name, engine="builtin"), quiet)
        films.append(pictures(tmp_path / name))
    photo = cv2.imread(str(DEMO_FACE))
    assert photo is not None
    moved = [np.abs(frame[:190].astype(int) - photo[:190]).mean() for frame in films[0]]
    assert moved[0] == 0
    assert max(moved[-5:]) > 0
    assert all(np.array_equal(one, other) for one, other in zip(*films, strict=True))


def test_a_video_keeps_its_rate_and_its_pixels_outside_the_face(model: Path, tmp_path: Path) -> None:
    """Odd size, 29.97 Hz, and frames without a face, which pass through as they are."""
    say(tmp_path / "voice.wav", 0.6)
    face, grey = demo(SMALL)[:, :-1], np.full((SMALL, SMALL - 1, 3), 90, np.uint8)
    shown = [face] * 6 + [grey] * 3 + [face] * 12
    film(tmp_path / "face.mkv", shown, "30000/1001")
    options = {"face": tmp_path / "face.mkv", "frames_dir": tmp_path / "frames", "model": model}
    made = render(make(tmp_path, output=tmp_path / "out.mp4", **options), quiet)
    frames = pictures(tmp_path / "frames")
    assert made.frames == len(frames) == 18
    assert made.faceless == 3
    for got, was in zip(frames, shown, strict=False):
        changed = np.argwhere((got != was).any(axis=2))
        if was is grey:
            assert not len(changed)
            continue
        scale = SMALL / 832
        x1, y1, x2, y2 = (edge * scale for edge in DEMO_BOX)
        low, high = changed.min(axis=0), changed.max(axis=0)
        assert low[0] >= (y1 + y2) / 2 - 2, "only the lower half"
        assert low[1] >= x1 - 2
        assert high[0] <= y2 + 12
        assert high[1] <= x2 + 2
    told = looked_at(tmp_path / "out.mp4")["streams"][0]
    assert (told["r_frame_rate"], told["width"], told["height"]) == ("30000/1001", SMALL - 2, SMALL)
    with_frames = list(Clip(tmp_path / "out.mp4", Change()).frames())
    assert len(with_frames) == 18
    for encoded, exact in zip(with_frames, frames, strict=True):
        difference = np.abs(encoded.astype(int) - exact[:, : SMALL - 2]).mean()
        assert difference < budgets.RENDER_ENCODED_LEVELS, "colours survive"


def test_picture_and_sound_are_in_step(model: Path, tmp_path: Path) -> None:
    """A burst in silence: where it is heard, and which frame is the first whose window holds it."""
    burst_s = 1.2
    sound = np.zeros(16_000 * 2)
    sound[int(burst_s * 16_000) :] = 0.5 * np.random.default_rng(3).standard_normal(sound.size - int(burst_s * 16_000))
    soundfile.write(tmp_path / "voice.wav", np.clip(sound, -1, 1), 16_000, subtype="PCM_16")
    taken = {"box": (198, 591, 276, 563), "model": model, "alignment": "inference"}
    render(make(tmp_path, output=tmp_path / "out.mp4", frames_dir=tmp_path / "frames", **taken), quiet)
    frames = pictures(tmp_path / "frames")
    # Mel frame k sees samples 200 k +- 400; a window from int(3.2 i) on holds 16 of them.
    reached = next(k for k in range(200) if 200 * k + 400 > burst_s * 16_000)
    first = next(i for i in range(50) if int(3.2 * i) + 16 > reached)
    still = [bool((frame == frames[0]).all()) for frame in frames]
    assert still.index(False) in (first, first + 1), "the window's edge may hold too little to change a pixel"
    picture, heard = looked_at(tmp_path / "out.mp4")["streams"]
    assert abs(float(picture["start_time"]) - float(heard["start_time"])) < budgets.RENDER_IN_STEP_S
    assert 0 <= float(picture["duration"]) - 2.0 < 0.04, "the picture covers the sound"
    assert abs(float(heard["duration"]) - 2.0) < budgets.RENDER_IN_STEP_S
    decode = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "out.mp4"), "-ac", "1", "-f", "f32le", "-"]
    samples = np.frombuffer(subprocess.run(decode, capture_output=True, check=True, timeout=60).stdout, "<f4")
    loud = int(np.flatnonzero(np.abs(samples) > 0.2)[0]) / 16_000
    assert abs(loud - burst_s) < budgets.RENDER_IN_STEP_S
    encoded = list(Clip(tmp_path / "out.mp4", Change()).frames())
    jumps = [float(np.abs(b.astype(int) - a).mean()) for a, b in pairwise(encoded)]
    drawn = [float(np.abs(b.astype(int) - a).mean()) for a, b in pairwise(frames)]
    assert int(np.argmax(jumps)) == int(np.argmax(drawn)), "encoding moves no frame in time"


# Reading a video.


def numbered(count: int, side: int = 96) -> list[Pixels]:
    """Frames that all differ, and move."""
    draw = np.random.default_rng(1)
    ground = cv2.GaussianBlur(draw.uniform(0, 255, (side, side, 3)).astype(np.float32), (0, 0), 2)
    ground = cv2.normalize(ground, ground, 0, 255, cv2.NORM_MINMAX)
    return [np.roll(ground, (2 * k, 3 * k), axis=(0, 1)).astype(np.uint8) for k in range(count)]


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "3", "-g", "12", "-pix_fmt", "yuv420p")


@pytest.mark.parametrize("kind", ["constant", "varying", "shifted"])
def test_to_and_fro_shows_every_frame_exactly(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "clip.mp4", numbered(61), "25", (*X264, "-x264opts", "bframes=3:open-gop=0"))
    if kind == "varying":  # some frames are left out, the others keep their time
        other = tmp_path / "varying.mp4"
        leave = ["-vf", "select='mod(n,7)-3'", "-fps_mode", "vfr"]
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, *leave, *X264, other], check=True, timeout=60)
        path = other
    elif kind == "shifted":  # sound that begins before the picture
        other = tmp_path / "shifted.mp4"
        tone = ["-f", "lavfi", "-t", "2", "-i", "sine"]
        subprocess.run(
            ["ffmpeg", "-v", "error", *tone, "-itsoffset", "0.3", "-i", path, "-c:v", "copy", other],
            check=True,
            timeout=60,
        )
        path = other
    clip = Clip(path, Change())
    assert clip.rate_hz == 25
    forward = list(clip.frames())
    count = len(forward)
    assert count >= 59
    monkeypatch.setattr(video, "CHUNK_BYTES", 8 * forward[0].nbytes)
    starts: list[int] = []
    frames = Clip.frames

    def counted(self: Clip, start: int = 0) -> Any:
        starts.append(start)
        return frames(self, start)

    monkeypatch.setattr(Clip, "frames", counted)
    wanted = [*range(count), *range(count - 2, 0, -1), *range(count), *range(count - 2, 0, -1)]
    played = list(islice(clip.played(10_000, "pingpong"), len(wanted)))
    assert [index for index, _ in played] == wanted
    assert all((frame == forward[index]).all() for index, frame in played)
    sought = [start for start in starts if start]
    assert len(sought) > 6, "stretches are reached by seeking, not by decoding from the start"
    assert starts.count(0) <= 2 + 2 * 3, "but those near the start"


def test_again_from_the_start(tmp_path: Path) -> None:
    clip = Clip(film(tmp_path / "clip.mkv", numbered(5)), Change())
    assert [index for index, _ in clip.played(13, "repeat")] == [0, 1, 2, 3, 4] * 2 + [0, 1, 2]
    one = Clip(film(tmp_path / "one.mkv", numbered(1)), Change())
    assert [index for index, _ in one.played(4, "pingpong")] == [0] * 4
    two = Clip(film(tmp_path / "two.mkv", numbered(2)), Change())
    assert [index for index, _ in two.played(5, "pingpong")] == [0, 1, 0, 1, 0]


def test_a_video_that_is_stored_turned_is_read_upright(tmp_path: Path) -> None:
    upright = film(tmp_path / "clip.mp4", [frame[:, :64] for frame in numbered(4)], "25", X264)
    turned = tmp_path / "turned.mov"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", upright, "-c", "copy", "-metadata:s:v", "rotate=90", turned],
        check=True,
        timeout=60,
    )
    before, after = Clip(upright, Change()).first(), Clip(turned, Change()).first()
    assert before.shape == (96, 64, 3)
    assert after.shape == (64, 96, 3)
    assert np.abs(np.rot90(after, 1).astype(int) - before).mean() < budgets.RENDER_ENCODED_LEVELS or (
        np.abs(np.rot90(after, -1).astype(int) - before).mean() < budgets.RENDER_ENCODED_LEVELS
    )


def test_changes_come_in_the_published_order() -> None:
    frame = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    got = Change(2, True, (1, -1, 0, 3)).apply(frame)
    wanted = cv2.rotate(cv2.resize(frame, (6, 4)), cv2.ROTATE_90_CLOCKWISE)[1:, :3]
    assert (got == wanted).all()
    for change in (Change(9), Change(crop=(0, 9, 0, -1)), Change(crop=(4, 4, 0, -1)), Change(crop=(0, -1, -3, 5))):
        with pytest.raises(RenderError, match="leaves nothing"):
            change.apply(frame)


# Following a face.


def moving_pair(count: int) -> tuple[list[Pixels], list[Floats], list[Floats]]:
    """A large face on the left and a small one on the right, both moving; frames and the box of each."""
    large, small = demo(300), demo(200)
    frames: list[Pixels] = []
    large_boxes: list[Floats] = []
    small_boxes: list[Floats] = []
    for k in range(count):
        frame = np.zeros((320, 560, 3), np.uint8)
        frame[10:310, 2 * k : 2 * k + 300] = large
        frame[60 + 2 * k : 260 + 2 * k, 350:550] = small
        frames.append(frame)
        box = np.array(DEMO_BOX, np.float32)
        large_boxes.append((box * (300 / 832) + np.array([2 * k, 10] * 2)).astype(np.float32))
        small_boxes.append((box * (200 / 832) + np.array([350, 60 + 2 * k] * 2)).astype(np.float32))
    return frames, large_boxes, small_boxes


@pytest.mark.parametrize(
    ("choice", "which"), [(Choice(), 0), (Choice(1), 1), (Choice(at=(460, 150)), 1), (Choice(at=(10, 10)), 0)]
)
def test_the_chosen_face_is_followed(choice: Choice, which: int) -> None:
    frames, *boxes = moving_pair(22)
    follower = Follower(FACE_MODELS, "CPU", choice)
    for frame, wanted in zip(frames, boxes[which], strict=True):
        found = follower.find(frame)
        assert found is not None
        assert iou(np.array(found, np.float32), wanted) > budgets.RENDER_BOX_IOU


def test_a_cut_and_a_face_that_leaves() -> None:
    frames, large, _ = moving_pair(4)
    alone = frames[0].copy()
    alone[:, 310:] = 0
    elsewhere = np.full_like(alone, 200)
    elsewhere[10:310, 250:550] = demo(300)
    only_small = frames[0].copy()
    only_small[:, :320] = 0
    follower = Follower(FACE_MODELS, "CPU", Choice())
    for frame in (alone, alone):
        found = follower.find(frame)
        assert found is not None
        assert iou(np.array(found, np.float32), large[0]) > budgets.RENDER_BOX_IOU
    after_cut = follower.find(elsewhere)
    assert after_cut is not None
    assert iou(np.array(after_cut, np.float32), large[0] + np.array([250, 0] * 2, np.float32)) > budgets.RENDER_BOX_IOU
    follower = Follower(FACE_MODELS, "CPU", Choice())
    assert follower.find(frames[0]) is not None
    faded = np.asarray(cv2.addWeighted(frames[0], 0.6, only_small, 0.4, 0), np.uint8)
    faded[:, :320] //= 3  # no cut: the large face goes dark, the small one stays
    follower.find(faded)
    assert follower.find(only_small) is None, "the other face is not taken at once"


def test_smoothing_stops_where_no_face_is() -> None:
    run = [(10 + k, 20, 60 + k, 90) for k in range(7)]
    assert smoothed([*run, None, *run]) == [*smoothed(run), None, *smoothed(run)]
    far = [(300 + k, 20, 350 + k, 90) for k in range(7)]
    assert smoothed([*run, *far]) == [*smoothed(run), *smoothed(far)], "a jump is a cut"
    assert smoothed(run[:2]) == [(10, 20, 60, 90), (10, 20, 60, 90)]
    assert smoothed([None]) == [None]
    assert smoothed([]) == []


def test_pads_are_cut_to_the_picture() -> None:
    assert padded((10, 20, 60, 90), (5, 10, 3, 4), (100, 100)) == (7, 15, 64, 100)
    assert padded((10, 20, 60, 90), (50, 50, 50, 50), (80, 100)) == (0, 0, 80, 100)
    with pytest.raises(RenderError, match="--pads -40 -40 0 0"):
        padded((10, 20, 60, 90), (-40, -40, 0, 0), (100, 100))


def test_boxes_are_found_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(tmp_path / "voice.wav", 0.4)
    film(tmp_path / "face.mkv", [demo(SMALL)] * 4)
    options = {"face": tmp_path / "face.mkv", "model": model}
    render(make(tmp_path, frames_dir=tmp_path / "first", **options), quiet)
    (kept,) = (tmp_path / "cache").iterdir()
    looked: list[int] = []
    find = Follower.find

    def counted(self: Follower, frame: Pixels) -> Any:
        looked.append(1)
        return find(self, frame)

    monkeypatch.setattr(Follower, "find", counted)
    render(make(tmp_path, frames_dir=tmp_path / "second", pads=(0, 14, 0, 0), smooth=False, **options), quiet)
    assert not looked, "pads and smoothing come after"
    kept.write_text(kept.read_text()[:30])
    render(make(tmp_path, frames_dir=tmp_path / "third", **options), quiet)
    assert len(looked) == 4
    for one, two in zip(pictures(tmp_path / "first"), pictures(tmp_path / "third"), strict=True):
        assert (one == two).all()
    render(make(tmp_path, frames_dir=tmp_path / "fourth", change=Change(crop=(0, -1, 10, -1)), **options), quiet)
    assert len(looked) == 8, "in another picture they are elsewhere"


def test_known_boxes_of_a_part_are_not_taken_for_all(tmp_path: Path) -> None:
    (tmp_path / "video").write_bytes(b"1")
    store = BoxStore(tmp_path, tmp_path / "video", "")
    store.save([(1, 2, 3, 4), None], complete=False)
    assert store.load(2) == [(1, 2, 3, 4), None]
    assert store.load(1) == [(1, 2, 3, 4)]
    assert store.load(3) is None
    store.save([(1, 2, 3, 4), None], complete=True)
    assert store.load(3) == [(1, 2, 3, 4), None]
    assert BoxStore(tmp_path, tmp_path / "video", "other").load(1) is None


# What goes wrong.

FACE, VOICE = ("--face", str(DEMO_FACE)), ("--audio", "voice.wav")
OUT = ("-o", "out.mp4")


@pytest.mark.usefixtures("_own_sigterm")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--face", "none.png", *VOICE, *OUT], r"none\.png: no such file"),
        ([*FACE, "--audio", "none.wav", *OUT], r"none\.wav: no such file"),
        ([*FACE, "--audio", "grey.mkv", *OUT], "has no sound"),
        ([*FACE, "--audio", "words.txt", *OUT], r"words\.txt: neither sound nor video, but text"),
        ([*FACE, "--audio", "breath.wav", *OUT], r"breath\.wav: "),
        (["--face", "words.txt", *VOICE, *OUT], r"words\.txt: neither sound nor video, but text"),
        (["--face", "voice.wav", *VOICE, *OUT], "has no video; give a photo"),
        (["--face", "grey.png", *VOICE, *OUT], "No face was found"),
        (["--face", "grey.mkv", *VOICE, *OUT, "--model", "MODEL"], "no face was found in any frame"),
        (["--face", "face.mkv", *VOICE, *OUT, "--engine", "builtin"], "photo, not a video.*--static"),
        ([*FACE, *VOICE, *OUT, "--face-index", "3"], "Face number 4 was asked for"),
        ([*FACE, *VOICE, *OUT, "--face-at", "here"], "--face-at here: must be two numbers"),
        ([*FACE, *VOICE, *OUT, "--box", "0", "900", "0", "100"], "--box 0 900 0 100.*832 x 832"),
        ([*FACE, *VOICE, *OUT, "--crop", "0", "900", "0", "-1"], "--crop 0 900 0 -1"),
        ([*FACE, *VOICE, *OUT, "--model", "MODEL", "--pads", "0", "-400", "0", "0"], "--pads 0 -400 0 0"),
        ([*FACE, *VOICE, *OUT, "--model", "nothing.xml"], r"nothing\.xml: no such file"),
        ([*FACE, *VOICE, *OUT, "--model", "MODEL", "--device", "TPU"], "TPU"),
        ([*FACE, *VOICE, *OUT, "--fps", "0"], "--fps 0: must be"),
        ([*FACE, *VOICE, *OUT, "--batch", "0"], "--batch 0: must be"),
        ([*FACE, *VOICE, *OUT, "--resize-factor", "0"], "--resize-factor 0: must be"),
        ([*FACE, *VOICE, "-o", "out.avi"], r"ends in \.mp4"),
        ([*FACE, *VOICE, "-o", "none/out.mp4"], "there is no folder none"),
        ([*FACE, *VOICE], "give -o"),
        ([*FACE, *VOICE, "--frames-dir", "."], "is not empty"),
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(
    options: list[str],
    words: str,
    script: ModuleType,
    model: Path,
    things: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    given = [str(model) if each == "MODEL" else each for each in options]
    monkeypatch.setattr(sys, "argv", ["render", *given, "--cache", "cache"])
    assert script.main() == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1, told.err
    assert told.err.startswith("render: ")
    assert re.search(words, told.err), told.err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "cache") == before


def test_what_is_read_is_not_overwritten(things: Path, tmp_path: Path) -> None:
    shutil.copy(things / "face.mkv", tmp_path / "face.mp4")
    say(tmp_path / "voice.wav", 0.3)
    with pytest.raises(RenderError, match="is what is read"):
        render(make(tmp_path, face=tmp_path / "face.mp4", output=tmp_path / "face.mp4"), quiet)


def test_missing_ffmpeg_is_named(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match=r"ffprobe is not installed.*apt install ffmpeg"):
        render(make(things, output=tmp_path / "out.mp4"), quiet)
    (tmp_path / "ffprobe").symlink_to("/usr/bin/ffprobe")
    with pytest.raises(RenderError, match="ffmpeg is not installed"):
        render(make(things, output=tmp_path / "out.mp4"), quiet)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: both make writing fail."""
    say(tmp_path / "voice.wav", 2.0)
    (tmp_path / "out.mp4").write_bytes(b"the one before")
    command = [sys.executable, ROOT / "scripts/render", "--face", DEMO_FACE, "--audio", "voice.wav", "-o", "out.mp4"]
    done = subprocess.run(
        [*map(str, command), "--engine", "builtin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=budgets.RENDER_DEADLINE_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("render: out.mp4: cannot be written: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "voice.wav"]
    assert (tmp_path / "out.mp4").read_bytes() == b"the one before"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_half_file(tmp_path: Path, number: signal.Signals) -> None:
    soundfile.write(tmp_path / "voice.wav", np.tile(speech("espeak-ng"), 10), 16_000, subtype="PCM_16")
    command = [sys.executable, ROOT / "scripts/render", "--face", DEMO_FACE, "--audio", "voice.wav", "-o", "out.mp4"]
    with subprocess.Popen(
        [*map(str, command), "--frames-dir", "frames", "--engine", "builtin"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        until(lambda: len(list(tmp_path.glob(".frames.*/*.png"))) > 20, budgets.RENDER_DEADLINE_S, "some frames")
        started = psutil.Process(running.pid).children(recursive=True)
        assert [child.name() for child in started] == ["ffmpeg"]
        running.send_signal(number)
        _, told = running.communicate(timeout=budgets.RENDER_DEADLINE_S)
    assert running.returncode == 130
    assert told == "render: stopped; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["voice.wav"]
    assert not any(child.is_running() for child in started)
