"""The wav2lip engine on a small network of the published form, which the test builds itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset13 as ops
from skimage import data

from services.inference.engine import Drive, Engine, MelWindow, Rendered
from services.inference.wav2lip.engine import Wav2LipEngine, Wav2LipState
from shared.messages import Face
from tests import budgets

PHOTO: npt.NDArray[np.uint8] = np.ascontiguousarray(data.astronaut()[:, :, ::-1])
BOX = (178, 70, 270, 186)


def make_face(
    box: tuple[int, int, int, int] = BOX,
    photo: npt.NDArray[np.uint8] = PHOTO,
    mask: npt.NDArray[np.uint8] | None = None,
) -> Face:
    x1, y1, x2, y2 = box
    if mask is None:
        mask = np.full((y2 - y1 + 20, x2 - x1), 255, np.uint8)
    return Face(
        face="astronaut",
        index=0,
        box=box,
        mask_x=x1,
        mask_y=y1,
        photo=photo,
        landmarks=np.zeros((468, 3), np.float32),
        mask=mask,
        boxes=np.array([box], np.float32),
    )


def drive(level: float, gain: float = 1.0) -> Drive:
    return Drive(mel=np.full((80, 16), level, np.float32), gain=gain)


def build(
    batch: int = -1,
    audio: str = "audio_sequences",
    faces: str = "face_sequences",
    mel_frames: int = 16,
    size: int = 96,
    outputs: int = 1,
    scale: float = 1.0,
    dtype: ov.Type = ov.Type.f32,
) -> ov.Model:
    """The masked face, and in the lower half the whole face at the brightness of the mel's mean: -4 black, 4 full."""
    mel = ops.parameter([batch, 1, 80, mel_frames], dtype, name=audio)
    face = ops.parameter([batch, 6, size, size], dtype, name=faces)
    for parameter, name in ((mel, audio), (face, faces)):
        parameter.output(0).set_names({name})

    def number(value: Any) -> Any:
        return ops.constant(np.array(value, np.float16 if dtype == ov.Type.f16 else np.float32))

    mean = ops.reduce_mean(mel, ops.constant(np.array([1, 2, 3])), keep_dims=True)
    level = ops.multiply(ops.add(mean, number(4.0)), number(scale / 8))
    masked, whole = ops.split(face, ops.constant(np.int64(1)), 2).outputs()
    lower = np.zeros((1, 1, size, 1))
    lower[:, :, size // 2 :] = 1
    drawn = ops.add(masked, ops.multiply(ops.multiply(whole, level), number(lower)))
    return ov.Model([drawn] * outputs if outputs == 1 else [drawn, mean], [mel, face], "wav2lip")


def save(folder: Path, **options: Any) -> Path:
    path = folder / "net.xml"
    ov.save_model(build(**options), path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Wav2LipEngine:
    return Wav2LipEngine(save(tmp_path_factory.mktemp("net")), precision="f32")


def expected(face: Face, level: float) -> npt.NDArray[np.uint8]:
    """The whole crop as the published script makes it, with the test's network in NumPy."""
    x1, y1, x2, y2 = face.box
    x1, y1, x2, y2 = max(0, x1), max(0, y1), min(face.photo.shape[1], x2), min(face.photo.shape[0], y2 + 10)
    small = cv2.resize(face.photo[y1:y2, x1:x2], (96, 96)).astype(np.float32) / 255
    small[48:] *= (level + 4) / 8
    return np.asarray(cv2.resize((small * 255 + 1e-3).astype(np.uint8), (x2 - x1, y2 - y1)), np.uint8)


def on_crop(face: Face, rendered: Rendered) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Patch and mask, laid on the crop; 0 elsewhere."""
    x1, y1, x2, y2 = face.box
    x1, y1, x2, y2 = max(0, x1), max(0, y1), min(face.photo.shape[1], x2), min(face.photo.shape[0], y2 + 10)
    image, mask = np.zeros((y2 - y1, x2 - x1, 3), np.uint8), np.zeros((y2 - y1, x2 - x1), np.uint8)
    height, width = rendered.mask.shape
    place = np.s_[rendered.y - y1 : rendered.y - y1 + height, rendered.x - x1 : rendered.x - x1 + width]
    image[place], mask[place] = rendered.image, rendered.mask
    return image, mask


def assert_close(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=0, atol=budgets.WAV2LIP_PIXEL_TOLERANCE)


def test_it_is_an_engine_with_both_alignments(tmp_path: Path) -> None:
    path = save(tmp_path)
    training: Engine[Wav2LipState] = Wav2LipEngine(path)
    assert training.window == MelWindow(back=0, ahead=16, shift=-1)
    assert Wav2LipEngine(path, alignment="inference").window == MelWindow(back=0, ahead=16, shift=0)


@pytest.mark.parametrize("level", [-3.0, 0.0, 4.0])
@pytest.mark.parametrize("box", [BOX, (150, 40, 290, 220), (-30, -20, 200, 260), (400, 380, 560, 540)])
def test_the_pixels_are_those_of_the_published_script(
    engine: Wav2LipEngine, box: tuple[int, int, int, int], level: float
) -> None:
    face = make_face(box)
    (rendered,) = engine.render([engine.prepare(face)], [drive(level)])
    image, mask = on_crop(face, rendered)
    wanted = expected(face, level)
    assert mask.max() == 255
    assert_close(image[mask > 0], wanted[mask > 0])


def test_the_mask_is_soft_and_in_the_lower_face(engine: Wav2LipEngine) -> None:
    ellipse = np.zeros((140, 120), np.uint8)
    cv2.ellipse(ellipse, (46, 85), (35, 22), 0, 0, 360, 255, -1)
    ellipse = cv2.GaussianBlur(ellipse, (0, 0), 3).astype(np.uint8)
    face = make_face(mask=ellipse)
    (rendered,) = engine.render([engine.prepare(face)], [drive(1.0)])
    _, mask = on_crop(face, rendered)
    assert rendered.image.shape == (*rendered.mask.shape, 3)
    assert (mask <= ellipse[: mask.shape[0], : mask.shape[1]]).all()
    assert mask[: mask.shape[0] // 2 + 1].max() == 0, "nothing that the network was shown"
    edge = np.concatenate([rendered.mask[[0, -1]].ravel(), rendered.mask[:, [0, -1]].ravel()])
    assert edge.max() == 0
    assert rendered.mask[1:-1, 1:-1].any(axis=1).all(), "the patch is no larger than its mask and its border"
    steps = np.abs(np.diff(mask.astype(int), axis=0)).max(), np.abs(np.diff(mask.astype(int), axis=1)).max()
    assert max(steps) <= budgets.WAV2LIP_MASK_STEP


@pytest.mark.parametrize("batch", [-1, 1, 4])
def test_a_batch_of_faces_equals_one_by_one(tmp_path: Path, batch: int) -> None:
    engine = Wav2LipEngine(save(tmp_path, batch=batch), precision="f32")
    states = [engine.prepare(make_face(box)) for box in (BOX, (150, 40, 290, 220), (100, 100, 180, 200))]
    order = [0, 2, 1, 1, 0]
    drives = [drive(-2), drive(3), drive(1), drive(0, gain=0.0), drive(2, gain=0.5)]
    together = engine.render([states[k] for k in order], drives)
    assert len(together) == 5
    for k, one, got in zip(order, drives, together, strict=True):
        (alone,) = engine.render([states[k]], [one])
        assert (got.x, got.y) == (alone.x, alone.y)
        assert_close(got.image, alone.image)
    assert engine.render([], []) == []


def test_the_gain_closes_the_mouth_smoothly(engine: Wav2LipEngine) -> None:
    state = engine.prepare(make_face())
    brightness = []
    for gain in (0.0, 0.25, 0.5, 0.75, 1.0):
        (rendered,) = engine.render([state], [drive(4.0, gain)])
        brightness.append(float(rendered.image[rendered.mask > 200].mean()))
    (silence,) = engine.render([state], [drive(-4.0)])
    assert brightness[0] == float(silence.image[silence.mask > 200].mean())
    np.testing.assert_allclose(np.diff(brightness), brightness[-1] / 4, atol=1)


def test_a_network_of_half_floats_is_fed_the_same(tmp_path: Path) -> None:
    engine = Wav2LipEngine(save(tmp_path, dtype=ov.Type.f16), precision="f32")
    face = make_face()
    (rendered,) = engine.render([engine.prepare(face)], [drive(2.0)])
    image, mask = on_crop(face, rendered)
    assert_close(image[mask > 0], expected(face, 2.0)[mask > 0])


def test_a_face_that_leaves_nothing_to_draw_is_refused(engine: Wav2LipEngine) -> None:
    with pytest.raises(ValueError, match="give a larger box"):
        engine.prepare(make_face((600, 600, 700, 700)))
    with pytest.raises(ValueError, match="mouth mask"):
        engine.prepare(make_face(mask=np.zeros((10, 10), np.uint8)))


def test_wrong_drives_are_refused(engine: Wav2LipEngine) -> None:
    state = engine.prepare(make_face())
    with pytest.raises(ValueError, match=r"must be \(80, 16\)"):
        engine.render([state], [Drive(np.zeros((80, 20), np.float32), 1.0)])
    with pytest.raises(ValueError, match="as many"):
        engine.render([state], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"audio": "mel"}, "expected the inputs audio_sequences.*found.*mel"),
        ({"mel_frames": 20}, r"audio_sequences \(N, 1, 80, 16\).*found.*20"),
        ({"size": 256}, r"face_sequences \(N, 6, 96, 96\).*found.*256"),
        ({"outputs": 2}, "expected one output"),
        ({"scale": float("nan")}, "not finite"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Wav2LipEngine(save(tmp_path, **options))
    assert "scripts/convert_model" in str(caught.value)


@pytest.mark.parametrize("part", ["net.xml", "net.bin"])
@pytest.mark.parametrize("left", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused(tmp_path: Path, part: str, left: float) -> None:
    path = save(tmp_path)
    content = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(content[: int(left * len(content))])
    with pytest.raises(ValueError, match=r"damaged, cut short.*convert"):
        Wav2LipEngine(path)


def test_a_broken_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"this is no network" * 20)
    with pytest.raises(ValueError, match="damaged"):
        Wav2LipEngine(tmp_path / "net.onnx")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.xml: no such file; convert"):
        Wav2LipEngine(tmp_path / "none.xml")
    path = save(tmp_path)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(ValueError, match=r"net\.bin: no such file"):
        Wav2LipEngine(path)
    with pytest.raises(ValueError, match=r"expected an OpenVINO IR"):
        Wav2LipEngine(tmp_path / "wav2lip.pth")


def test_an_absent_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this machine has .*CPU"):
        Wav2LipEngine(save(tmp_path), device="TPU")


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training or inference"):
        Wav2LipEngine(save(tmp_path), alignment="live")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="auto, f32"):
        Wav2LipEngine(save(tmp_path), precision="int4")
