"""Frames of scripts/render against the published algorithm on the same checkpoint, before encoding."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import librosa
import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import soundfile

from scripts._render.audio import listen
from scripts._render.faces import smoothed
from scripts._wav2lip.convert import plain_ir
from scripts._wav2lip.network import Wav2Lip
from services.inference.engine import MelWindow
from services.inference.wav2lip.engine import lower_face
from tests import budgets
from tests.networks import seeded_wav2lip
from tests.reference import published_frames, published_mel, published_smoothing, published_windows
from tests.rig.stack import ROOT
from tests.unit.speech import speech

DEMO_FACE = ROOT / "services/face_prep/assets/demo_face.png"
PHOTO_BOX = (198, 591, 276, 563)
VIDEO_BOX = (40, 171, 61, 160)

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def module() -> Wav2Lip:
    return seeded_wav2lip()


@pytest.fixture(scope="module")
def model(module: Wav2Lip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "plain.xml"
    ov.save_model(plain_ir(module), path, compress_to_fp16=False)
    return path


def record(path: Path, seconds: float, rate_hz: int = 16_000) -> npt.NDArray[np.float64]:
    """Write the beginning of a sentence as 16-bit WAV; what is in it, within -1..1."""
    soundfile.write(path, speech("espeak-ng", rate_hz)[: int(seconds * rate_hz)], rate_hz, subtype="PCM_16")
    return np.asarray(soundfile.read(path)[0], np.float64)


def run_render(*options: object) -> None:
    command = [sys.executable, str(ROOT / "scripts/render"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=budgets.RENDER_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr


def assert_same_pixels(folder: Path, wanted: list[Pixels]) -> None:
    assert len(wanted) > 10
    far = total = 0
    for number, frame in enumerate(wanted):
        got = cv2.imread(str(folder / f"{number:06d}.png"))
        assert got is not None
        assert got.shape == frame.shape
        difference = np.abs(got.astype(int) - frame)
        far += int((difference > budgets.PARITY_LEVELS).sum())
        total += difference.size
    assert 1 - far / total >= budgets.PARITY_SHARE


def test_a_photo_gets_the_published_pixels(module: Wav2Lip, model: Path, tmp_path: Path) -> None:
    sound = record(tmp_path / "voice.wav", 1.3)
    out = tmp_path / "frames"
    options = ["--alignment", "inference", "--paste", "hard", "--precision", "f32", "--model", model]
    run_render(
        "--face",
        DEMO_FACE,
        "--audio",
        tmp_path / "voice.wav",
        "--frames-dir",
        out,
        *options,
        "--box",
        *map(str, PHOTO_BOX),
    )
    photo = np.asarray(cv2.imread(str(DEMO_FACE)), np.uint8)
    wanted = published_frames(module, [photo], published_windows(published_mel(sound), 25.0), [PHOTO_BOX])
    assert len({picture.tobytes() for picture in wanted}) > len(wanted) // 2, "the reference itself hangs on the sound"
    # Only the box counts: the rest of the photo would be equal in any case.
    y1, y2, x1, x2 = PHOTO_BOX
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for number in range(len(wanted)):
        frame = cv2.imread(str(out / f"{number:06d}.png"))
        assert frame is not None
        cv2.imwrite(str(boxes / f"{number:06d}.png"), frame[y1:y2, x1:x2])
    assert_same_pixels(boxes, [frame[y1:y2, x1:x2] for frame in wanted])
    assert len(list(out.iterdir())) == np.ceil(len(sound) / 16_000 * 25), "the picture covers the sound"


def test_a_short_video_gets_the_published_pixels(module: Wav2Lip, model: Path, tmp_path: Path) -> None:
    """29.97 frames a second, shorter than the sound, with resizing, turning and cutting before."""
    sound = record(tmp_path / "voice.wav", 1.3)
    photo = cv2.resize(np.asarray(cv2.imread(str(DEMO_FACE)), np.uint8), (480, 480))
    shown = [np.ascontiguousarray(np.roll(photo, 3 * k, axis=1)) for k in range(9)]
    video = tmp_path / "face.mkv"
    into = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", "480x480", "-r", "30000/1001", "-i", "pipe:0"]
    subprocess.run(
        ["ffmpeg", "-v", "error", *into, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(video)],
        input=b"".join(frame.tobytes() for frame in shown),
        check=True,
        timeout=60,
    )
    out = tmp_path / "frames"
    options = [
        "--alignment",
        "inference",
        "--paste",
        "hard",
        "--precision",
        "f32",
        "--model",
        model,
        "--loop",
        "repeat",
    ]
    changes = ["--resize-factor", "2", "--rotate", "--crop", "10", "-1", "0", "230"]
    run_render(
        *["--face", video, "--audio", tmp_path / "voice.wav", "--frames-dir", out, *options, *changes],
        *["--box", *map(str, VIDEO_BOX), "--batch", "5"],
    )
    changed = []
    for frame in shown:
        small = cv2.rotate(cv2.resize(frame, (240, 240)), cv2.ROTATE_90_CLOCKWISE)
        changed.append(np.ascontiguousarray(small[10:, :230], np.uint8))
    windows = published_windows(published_mel(sound), 30000 / 1001)
    assert_same_pixels(out, published_frames(module, changed, windows, [VIDEO_BOX] * len(changed)))


@pytest.mark.parametrize("fps", [25.0, 30000 / 1001, 23.976, 50.0])
@pytest.mark.parametrize("seconds", [0.21, 1.0, 3.33])
def test_windows_and_their_number_are_the_published_ones(tmp_path: Path, fps: float, seconds: float) -> None:
    sound = record(tmp_path / "voice.wav", seconds)
    heard = listen(tmp_path / "voice.wav", Fraction(fps).limit_denominator(1001))
    wanted = published_windows(published_mel(sound), fps)
    assert heard.published_frames == len(wanted)
    assert heard.frames == max(len(wanted), int(np.ceil(seconds * fps)))
    window = MelWindow(back=0, ahead=16, shift=0)
    for number, each in enumerate(wanted):
        np.testing.assert_allclose(heard.window(number, window, "held"), each, rtol=0, atol=budgets.MEL_TOLERANCE)
    for number in range(len(wanted), heard.frames):
        assert np.array_equal(heard.window(number, window, "held"), heard.window(len(wanted) - 1, window, "held"))


def test_sound_of_another_rate_in_two_channels_is_heard_as_librosa_loads_it(tmp_path: Path) -> None:
    voice = speech("espeak-ng", 44_100)[:88_200]
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.stack([voice, 0.5 * np.roll(voice, 700)], axis=1), 44_100, subtype="PCM_16")
    mixed = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    loaded = librosa.resample(mixed, orig_sr=44_100, target_sr=16_000, res_type="soxr_hq")
    heard = listen(path, Fraction(25))
    wanted = published_mel(loaded)
    assert heard.mel.shape == wanted.shape
    assert np.abs(heard.mel - wanted).max() < budgets.RENDER_RESAMPLED_MEL
    assert heard.duration_s == pytest.approx(2.0)


@pytest.mark.parametrize("count", [5, 6, 9, 40])
def test_smoothing_is_the_published_one(count: int) -> None:
    draw = np.random.default_rng(count)
    corners = draw.integers(100, 140, (count, 4)) + np.array([0, 0, 150, 180])
    boxes = [(int(a), int(b), int(c), int(d)) for a, b, c, d in corners]
    assert smoothed(boxes) == [tuple(map(int, box)) for box in published_smoothing(boxes)]


def test_soft_blends_what_hard_pastes(model: Path, tmp_path: Path) -> None:
    """The network cut in two against the whole one, in the frames themselves."""
    record(tmp_path / "voice.wav", 0.3)
    for paste in ("soft", "hard"):
        options = ["--face", DEMO_FACE, "--audio", tmp_path / "voice.wav", "--frames-dir", tmp_path / paste]
        options += ["--model", model, "--precision", "f32", "--alignment", "inference", "--paste", paste]
        run_render(*options, "--box", *map(str, PHOTO_BOX))
    photo = cv2.imread(str(DEMO_FACE))
    assert photo is not None
    y1, y2, x1, x2 = PHOTO_BOX
    mask = lower_face(y2 - y1, x2 - x1)[:, :, None]
    half = (y2 - y1) // 2
    under = photo[y1:y2, x1:x2]
    pairs = list(zip(sorted((tmp_path / "soft").iterdir()), sorted((tmp_path / "hard").iterdir()), strict=True))
    assert len(pairs) == 8
    for paths in pairs:
        soft, hard = (np.asarray(cv2.imread(str(path))) for path in paths)
        blended, pasted = soft[y1:y2, x1:x2], hard[y1:y2, x1:x2]
        wanted = mask * pasted + (1 - mask) * under
        # Where the half begins, the enlarged picture has the photo above it and not the drawn face.
        far = np.abs(blended[half + 6 :] - wanted[half + 6 :]) > budgets.PARITY_LEVELS + 1
        assert 1 - far.mean() >= budgets.PARITY_SHARE
        assert (blended[:half] == under[:half]).all()
        assert (pasted[:half] != under[:half]).any(), "hard pastes the upper half too"
        soft[y1:y2, x1:x2] = hard[y1:y2, x1:x2] = under
        assert (soft == photo).all()
        assert (hard == photo).all()
