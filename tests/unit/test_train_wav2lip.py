"""The training of the Wav2Lip network for tests: the clips it reads, what a step learns from, and its command."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scripts._wav2lip import train as training
from scripts._wav2lip.checkpoint import load_checkpoint, save_checkpoint
from scripts._wav2lip.network import Wav2Lip
from scripts._wav2lip.train import (
    SIZE,
    WINDOW,
    Clip,
    ClipError,
    Plan,
    _Way,
    choose,
    contact_sheet,
    draw_batch,
    load_clips,
    read_clip,
    save_clips,
    train,
)
from services.face_prep.face import FaceMaker
from services.mel_features.mel import whole_file
from tests import budgets
from tests.networks import seeded_wav2lip
from tests.rig.voices import RATE_HZ, paused_speech

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "services" / "face_prep" / "assets" / "demo_face.png"
FPS = 50


def filmed(path: Path, seconds: float = 3.0, *, picture: Path = FACE, sound: bool = True) -> Path:
    """A video of a picture that grows brighter by a tenth a second, at 50 fps, with speech."""
    voice = path.with_suffix(".raw")
    voice.write_bytes(paused_speech()[: int(seconds * RATE_HZ)].tobytes())
    command = ["ffmpeg", "-y", "-nostdin", "-loglevel", "error", "-loop", "1", "-framerate", str(FPS)]
    command += ["-t", str(seconds), "-i", str(picture)]
    if sound:
        command += ["-f", "s16le", "-ar", str(RATE_HZ), "-ac", "1", "-i", str(voice), "-c:a", "pcm_s16le"]
    command += ["-vf", "scale=320:320,eq=brightness='0.1*t-0.1':eval=frame", "-c:v", "mjpeg", "-q:v", "2", str(path)]
    subprocess.run(command, check=True, timeout=60)
    voice.unlink()
    return path


def random_clip(name: str, *, held_out: bool = False, frames: int = 12, seed: int = 0) -> Clip:
    random = np.random.default_rng(seed)
    crops = random.integers(0, 256, (frames, SIZE, SIZE, 3)).astype(np.uint8)
    return Clip(name, held_out, crops, random.uniform(-4, 4, (frames, 80, WINDOW)).astype(np.float32))


@pytest.fixture(scope="module")
def maker() -> FaceMaker:
    return FaceMaker(ROOT / "models" / "face")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, maker: FaceMaker) -> Clip:
    return read_clip(filmed(tmp_path_factory.mktemp("clip") / "me_1.mkv"), maker, held_out=False)


def test_a_clip_is_read_at_25_frames_a_second(clip: Clip) -> None:
    assert clip.crops.shape == (50, SIZE, SIZE, 3)
    light = clip.crops.reshape(50, -1).mean(1)
    assert (np.diff(light) > -budgets.FILM_DIP).all()  # in their order
    rise = np.polyfit(np.arange(50) / 25, light, 1)[0]
    assert rise == pytest.approx(budgets.FILM_RISE, rel=budgets.FILM_RISE_SHARE)  # neither half nor double speed


def test_the_window_of_a_frame_begins_where_the_frame_before_does(clip: Clip) -> None:
    mel = whole_file(paused_speech()[: 3 * RATE_HZ])
    for index in (0, 7, 40):
        start = 80 * (10 + index - 1) // 25
        np.testing.assert_allclose(clip.windows[index], mel[:, start : start + WINDOW], atol=budgets.FILM_MEL)


@pytest.mark.parametrize(
    ("what", "words"),
    [("text", "no video that can be read"), ("silent", "no sound"), ("short", "too short"), ("wall", "shows no face")],
)
def test_a_clip_that_cannot_be_used_is_refused_with_words(
    what: str, words: str, maker: FaceMaker, tmp_path: Path
) -> None:
    path = tmp_path / f"{what}.mkv"
    if what == "text":
        path.write_text("not a film")
    elif what == "wall":
        wall = tmp_path / "wall.png"
        cv2.imwrite(str(wall), np.full((320, 320, 3), 128, np.uint8))
        filmed(path, picture=wall)
    else:
        filmed(path, 0.6 if what == "short" else 3.0, sound=what != "silent")
    with pytest.raises(ClipError, match=words) as refused:
        read_clip(path, maker, held_out=False)
    assert path.name in str(refused.value)


def test_speakers_take_turns_and_those_held_out_are_not_learned_from(tmp_path: Path) -> None:
    for name in ("a_1", "a_2", "a_3", "b_1", "c_1"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "notes.txt").touch()
    learned, held_out = choose([tmp_path], ["*/c_*"])
    assert [path.stem for path in learned] == ["a_1", "b_1", "a_2", "a_3"]
    assert [path.stem for path in held_out] == ["c_1"]
    with pytest.raises(ClipError, match="--hold-out"):
        choose([tmp_path], ["*/d_*"])
    with pytest.raises(ClipError, match="no video files"):
        choose([tmp_path], ["*"])


def test_decoded_clips_are_kept_whole(tmp_path: Path) -> None:
    clips = [random_clip("one.mp4", frames=3), random_clip("two.mp4", held_out=True, seed=1)]
    kept = tmp_path / "clips.npz"
    save_clips(clips, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["clips.npz"]
    for before, after in zip(clips, load_clips(kept), strict=True):
        assert (before.name, before.held_out) == (after.name, after.held_out)
        np.testing.assert_array_equal(before.crops, after.crops)
        np.testing.assert_array_equal(before.windows, after.windows)
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(ClipError, match="delete it"):
        load_clips(kept)


def test_a_step_sees_the_upper_half_another_frame_and_the_frames_own_sound() -> None:
    clip = random_clip("one.mp4")
    batch = draw_batch([clip], 40, np.random.default_rng(0))
    planes = torch.from_numpy(clip.crops.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    mirrored = 0
    for mel, faces, target in zip(batch.mels, batch.faces, batch.targets, strict=True):
        found = [n for n in range(12) if torch.equal(torch.from_numpy(clip.windows[n]), mel[0])]
        assert len(found) == 1
        own = [planes[found[0]], planes[found[0]].flip(2)]
        turned = torch.equal(target, own[1])
        assert turned or torch.equal(target, own[0])
        mirrored += turned
        assert torch.equal(faces[:3, : SIZE // 2], target[:, : SIZE // 2])
        assert not faces[:3, SIZE // 2 :].any()
        others = [n for n in range(12) if torch.equal(planes[n].flip(2) if turned else planes[n], faces[3:])]
        assert others
        assert others != found
    assert 5 < mirrored < 35


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of what surrounds the training itself."""
    monkeypatch.setattr(training, "TRIAL_STEPS", 1)
    monkeypatch.setattr(training, "SETTLING_BATCHES", 1)
    monkeypatch.setattr(training, "MEASURED_FRAMES", 16)


def test_steps_come_nearer_to_the_picture(clip: Clip) -> None:
    torch.manual_seed(0)
    module = Wav2Lip().requires_grad_().train()
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-4)
    batch = draw_batch([clip], 4, np.random.default_rng(0))
    wrong = [_Way(torch.device("cpu")).step(module, optimiser, batch) for _ in range(8)]
    assert wrong[-1] < budgets.LEARNED_SHARE * wrong[0]


@pytest.mark.usefixtures("hurried")
def test_training_goes_on_from_a_checkpoint(clip: Clip, tmp_path: Path) -> None:
    start, out = tmp_path / "start.pth", tmp_path / "out.pth"
    save_checkpoint(seeded_wav2lip(), start)
    told: list[str] = []
    module = train([clip], out, Plan(minutes=0.001, frames_a_step=2, start=start), told.append)
    assert sum("written" in line for line in told) == 1
    weights, begun = load_checkpoint(out).state_dict(), load_checkpoint(start).state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(weights[name], value)
        if name.endswith("weight"):  # a step or none: near to where it began
            assert float((value - begun[name]).abs().max()) < budgets.FEW_STEPS_MOVE
    with pytest.raises(ClipError, match="held out"):
        train([random_clip("one.mp4", held_out=True)], out, Plan(minutes=0.01), told.append)


def test_the_sheet_shows_a_column_for_each_clip() -> None:
    sheet = contact_sheet(seeded_wav2lip(), [random_clip("one.mp4"), random_clip("two.mp4", seed=1)])
    assert sheet.shape == (4 * 192, 2 * 192, 3)
    assert not sheet[SIZE : 2 * SIZE].any()  # the masked half


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's own main function, with these arguments; its exit code."""
    monkeypatch.setattr(sys, "argv", ["train_wav2lip", *map(str, arguments)])
    try:
        code: int = runpy.run_path(str(ROOT / "scripts" / "train_wav2lip"), run_name="train_wav2lip")["main"]()
    except SystemExit as error:
        return int(error.code or 0)
    return code


@pytest.mark.usefixtures("hurried")
def test_the_command_makes_a_checkpoint_from_a_folder_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for name in ("a_1", "b_1"):
        filmed(films / f"{name}.mkv", 1.2)
    (films / "c_1.mkv").write_text("not a film")
    out, cache, sheet = tmp_path / "out.pth", tmp_path / "clips.npz", tmp_path / "sheet.png"
    options = ("--clips", films, "--hold-out", "*/b_*", "--minutes", 0.001, "--batch", 2, "--out", out)
    assert command(monkeypatch, *options, "--threads", 2, "--cache", cache, "--sheet", sheet) == 0
    told = capsys.readouterr()
    assert "c_1.mkv is no video that can be read" in told.err
    assert "2 clips" in told.out
    assert "held out" in told.out
    assert all(torch.isfinite(value).all() for value in load_checkpoint(out).state_dict().values())
    assert cv2.imread(str(sheet)) is not None
    assert [clip.name for clip in load_clips(cache)] == ["a_1.mkv", "b_1.mkv"]


@pytest.mark.parametrize("problem", ["no clips", "no folder", "no checkpoint"])
def test_the_command_says_what_is_wrong_in_a_line(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "clips.npz", tmp_path / "out.pth"
    save_clips([random_clip("one.mp4"), random_clip("two.mp4", held_out=True)], cache)
    options = {
        "no clips": ("--out", out),
        "no folder": ("--out", tmp_path / "nowhere" / "out.pth"),
        "no checkpoint": ("--out", out, "--cache", cache, "--start", cache, "--minutes", 0.001),
    }[problem]
    assert command(monkeypatch, "--clips", tmp_path, *options) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("train_wav2lip: ")
    assert not out.exists()
