"""RetinaFace: conversion against PyTorch, decoding against a plain reference, the search, and the published weights.

The published weights and the photos to measure them on are no part of the project: they are looked for in the folder
that MOUTHPIECE_TEST_DATA names and in shared/data beside the project. Where they are not, the tests of them are skipped
with words; under CI, which never has them and allows no skipped test, they are not collected.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import skimage.data
import torch
from openvino import opset13 as ops

from scripts._retinaface.convert import DetectorError, load_detector, plain_ir, write_ir
from scripts._retinaface.network import RetinaFace as PlainRetinaFace
from services.face_prep.detector import Detection, iou
from services.face_prep.face import BELIEVED, UPRIGHT_MARGIN
from services.face_prep.landmarks import FaceMesh
from services.face_prep.network import NetworkError
from services.face_prep.retinaface import FILE, TEMPERATURE, RetinaFace, anchors, decode
from tests import budgets

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models" / "face"
SQUARE = 200.0
"""grey level of the squares that stand for faces"""
UPRIGHT = ((-2.5, -2.0), (2.5, -2.0), (0.0, 0.0), (-2.0, 3.0), (2.0, 3.0))
"""eyes, nose and corners of the mouth, tenths of the anchor"""

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def seeded() -> PlainRetinaFace:
    """The published form with random parameters, which keep the values within bounds."""
    torch.manual_seed(20)
    module = PlainRetinaFace()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            torch.nn.init.normal_(layer.running_mean, 0.0, 0.3)
            torch.nn.init.uniform_(layer.running_var, 0.3, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0.0, 0.3)
    return module.eval()


def parameters(prefix: str = "module.") -> dict[str, torch.Tensor]:
    return {prefix + key: values for key, values in seeded().state_dict().items()}


def convert(checkpoint: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/convert_detector", str(checkpoint), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def largest_difference(module: PlainRetinaFace, path: Path, values: Floats) -> float:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        wanted = [output.numpy() for output in module(torch.from_numpy(values))]
    got = list(compiled([values]).values())
    assert [output.shape for output in got] == [output.shape for output in wanted]
    assert all(output.std() > 0.01 for output in wanted), "nothing to compare"
    return max(float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True))


def test_a_published_checkpoint_converts_and_computes_what_pytorch_does(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "seeded.pth", tmp_path / "models" / "face"
    torch.save(parameters(), checkpoint)
    for _ in range(2):  # the second replaces the first
        done = convert(checkpoint, out)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "weights of another origin" in done.stdout
        assert sorted(path.name for path in out.iterdir()) == [Path(FILE).with_suffix(".bin").name, FILE]
    numbers = np.random.default_rng(3)
    for shape in ((1, 3, 64, 64), (2, 3, 96, 160), (1, 3, 75, 50)):
        values = numbers.uniform(-120, 150, shape).astype(np.float32)
        assert largest_difference(seeded(), out / FILE, values) < budgets.RETINAFACE_DIFFERENCE


@pytest.mark.parametrize("form", ["bare", "nested", "half"])
def test_other_forms_of_the_checkpoint_are_read(tmp_path: Path, form: str) -> None:
    content: dict[str, Any] = parameters("")
    if form == "nested":
        content = {"state_dict": parameters(), "epoch": 250}
    elif form == "half":
        content = {key: values.half() if values.is_floating_point() else values for key, values in content.items()}
    torch.save(content, tmp_path / "form.pth", _use_new_zipfile_serialization=form != "bare")
    got = load_detector(tmp_path / "form.pth").state_dict()
    for key, values in seeded().state_dict().items():
        assert got[key].dtype == values.dtype
        wanted = values.half().float() if form == "half" and values.is_floating_point() else values
        assert torch.equal(got[key], wanted)


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def torch_script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"net/{name}", pickle.dumps(()))
        archive.writestr("net/version", b"3\n")
        archive.writestr("net/code/__torch__.py", b"")


def saved(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(change(parameters()), path)


def written(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 100_000_000)


def cut_short(path: Path) -> None:
    torch.save(parameters(), path)
    path.write_bytes(path.read_bytes()[:900_000])


def not_finite(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    content["module.fpn.output1.0.weight"][0, 0, 0, 0] = math.nan
    return content


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "is missing"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:29\nsize 1789735\n"), "git lfs pull"),
    "page": (written(b"\n<!DOCTYPE html><html><body>Not found</body></html>"), "web page"),
    "text": (written(b"mobilenet0.25_Final.pth\n"), "no file of weights"),
    "noise": (written(np.random.default_rng(1).bytes(5000)), "no file of weights|cannot be read"),
    "large": (large, "100 MB"),
    "cut short": (cut_short, "cut short"),
    "code": (lambda path: torch.save(Trap(path.with_name("sprung")), path), "holds code"),
    "TorchScript": (torch_script, "TorchScript"),
    "safetensors": (written(b"\x40\0\0\0\0\0\0\0" + b'{"body.stage1.0.0.weight": {}}'), "safetensors"),
    "ONNX": (written(b"\x08\x06\x12\x07pytorch\x1a\x051.8"), "an ONNX network"),
    "list": (saved(lambda content: list(content.values())), "no table of parameters"),
    "epoch": (lambda path: torch.save({"epoch": 3}, path), "no table of parameters"),
    "Wav2Lip": (lambda path: torch.save({"module.face_decoder_blocks.0.w": torch.zeros(1)}, path), "Wav2Lip"),
    "ResNet": (lambda path: torch.save({"body.layer1.0.conv1.weight": torch.zeros(1)}, path), "ResNet-50"),
    "S3FD": (lambda path: torch.save({"vgg.0.weight": torch.zeros(1)}, path), "S3FD"),
    "other": (lambda path: torch.save({"weight": torch.zeros(1)}, path), "another network"),
    "one too few": (saved(lambda content: dict(list(content.items())[:-1])), "LandmarkHead.2.conv1x1.bias"),
    "one too many": (saved(lambda content: content | {"module.more": torch.zeros(1)}), "'more'"),
    "wider": (
        saved(lambda content: content | {"module.ssh1.conv3X3.0.weight": torch.zeros(64, 64, 3, 3)}),
        "another width",
    ),
    "not finite": (saved(not_finite), "is damaged"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_with_words(tmp_path: Path, kind: str) -> None:
    make, words = WRONG[kind]
    path = tmp_path / "mobilenet.pth"
    make(path)
    with pytest.raises(DetectorError, match=words) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)
    assert "mobilenet0.25_Final.pth" in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_the_script_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_bytes(b"<html></html>")
    done = convert(tmp_path / "page.pth", tmp_path / "out")
    assert done.returncode == 2
    assert re.fullmatch(r"convert_detector: .*web page.*\n", done.stderr)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    torch.save(parameters(), tmp_path / "seeded.pth")
    (tmp_path / "file").touch()
    done = convert(tmp_path / "seeded.pth", tmp_path / "file")
    assert done.returncode == 1
    assert re.fullmatch(r"convert_detector: .*file.*\n", done.stderr)
    folder = tmp_path / "out"
    (folder / Path(FILE).with_suffix(".bin")).mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_ir(plain_ir(seeded()), folder / FILE)
    assert [path.name for path in folder.iterdir()] == [Path(FILE).with_suffix(".bin").name]


def test_anchors_and_decoding_equal_a_plain_reference() -> None:
    side = 96
    numbers = np.random.default_rng(4)
    wanted_boxes, wanted_points, rows = [], [], []
    offsets, marks = [], []
    for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for row in range(side // stride):
            for column in range(side // stride):
                for size in sizes:
                    offset, mark = numbers.normal(0, 2, 4), numbers.normal(0, 2, 10)
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    centre_x, centre_y = x + 0.1 * size * offset[0], y + 0.1 * size * offset[1]
                    width, height = size * math.exp(0.2 * offset[2]), size * math.exp(0.2 * offset[3])
                    rows.append((x, y, size))
                    offsets.append(offset)
                    marks.append(mark)
                    wanted_boxes.append(
                        (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
                    )
                    wanted_points.append(
                        [(x + 0.1 * size * mark[2 * k], y + 0.1 * size * mark[2 * k + 1]) for k in range(5)]
                    )
    at = anchors(side)
    assert np.array_equal(at, np.array(rows, np.float32))
    boxes, points = decode(np.array(offsets, np.float32), np.array(marks, np.float32), at)
    np.testing.assert_allclose(boxes, wanted_boxes, atol=budgets.RETINAFACE_DECODED_PX)
    np.testing.assert_allclose(points, wanted_points, atol=budgets.RETINAFACE_DECODED_PX)


def bright_squares(folder: Path, lean_deg: float = 0.0) -> RetinaFace:
    """A network of the same form to which a bright cell of stride 16 or 32 is a face the size of its first anchor."""
    pictures = ops.parameter([-1, 3, -1, -1], ov.Type.f32, name="pictures")
    pictures.output(0).set_names({"pictures"})

    def number(*values: Any) -> Any:
        return ops.constant(np.array(values, np.float32))

    grey = ops.reduce_mean(pictures, ops.constant(np.array([1])), keep_dims=True)
    faces = []
    for stride in (8, 16, 32):
        cells = ops.avg_pool(grey, [stride] * 2, [0, 0], [0, 0], [stride] * 2, exclude_pad=False)
        shares = ops.multiply(ops.reshape(cells, [0, -1, 1], special_zero=True), number(0.01 if stride > 8 else 0.0))
        firsts = ops.concat([shares, ops.multiply(shares, number(0.0))], 2)
        faces.append(ops.reshape(firsts, [0, -1, 1], special_zero=True))
    face = ops.clamp(ops.concat(faces, 1), 0.0, 0.99)
    none = ops.multiply(face, number(0.0))
    turn = math.radians(lean_deg)
    turned = np.array(UPRIGHT) @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    outputs = [
        ops.add(none, number([[0.0] * 4])),
        ops.concat([ops.subtract(number(1.0), face), face], 2),
        ops.add(none, number([turned.ravel().tolist()])),
    ]
    ov.save_model(ov.Model(outputs, [pictures], "bright"), folder / FILE, compress_to_fp16=False)
    return RetinaFace(folder)


def squares(width: int, height: int, *places: tuple[int, int, int, float]) -> Pixels:
    """A black picture with squares: left, top, side, grey level."""
    picture = np.zeros((height, width, 3), np.uint8)
    for x, y, side, level in places:
        picture[y : y + side, x : x + side] = level
    return picture


@pytest.mark.parametrize(
    ("width", "height", "x", "y", "side"),
    [(1280, 960, 416, 160, 32), (960, 1280, 64, 1056, 32), (640, 480, 208, 320, 16), (320, 200, 80, 96, 16)],
)
def test_a_face_is_found_where_it_is(tmp_path: Path, width: int, height: int, x: int, y: int, side: int) -> None:
    (face,) = bright_squares(tmp_path).detect(squares(width, height, (x, y, side, SQUARE)))
    middle, anchor = np.array([x, y]) + side / 2, 4 * side
    np.testing.assert_allclose(face.box, [*(middle - anchor / 2), *(middle + anchor / 2)], atol=0.01)
    eyes_nose_mouth = [*UPRIGHT[:3], (0.0, 3.0)]
    wanted = [
        *(middle + anchor * np.array(eyes_nose_mouth) / 10),
        *(middle + anchor * np.array([(-5, -2), (5, -2)]) / 10),
    ]
    np.testing.assert_allclose(face.keypoints, wanted, atol=0.01)
    assert face.box.dtype == face.keypoints.dtype == np.float32
    sure = 0.01 * (SQUARE - np.mean([104, 117, 123]))
    assert face.score == pytest.approx(1 / (1 + math.exp(-math.log(sure / (1 - sure)) / TEMPERATURE)), abs=1e-4)


def test_one_face_is_told_once_and_the_largest_first(tmp_path: Path) -> None:
    detector = bright_squares(tmp_path)
    (face,) = detector.detect(squares(640, 640, (208, 320, 16, 190), (224, 320, 16, 210)))
    assert face.box.tolist() == [200, 296, 264, 360]
    faces = detector.detect(squares(640, 640, (48, 48, 16, 210), (480, 480, 32, 190)))
    assert [round(each.box[2] - each.box[0]) for each in faces[:2]] == [256, 64]
    assert any(iou(each.box, np.array([24, 24, 88, 88], np.float32)) == 1 for each in faces[1:])
    assert detector.detect(squares(640, 640)) == []


@pytest.mark.parametrize(("lean_deg", "count"), [(0, 1), (40, 1), (-40, 1), (50, 0), (-90, 0), (180, 0)])
def test_a_face_that_is_not_upright_is_left_to_quarter_turns(tmp_path: Path, lean_deg: float, count: int) -> None:
    faces = bright_squares(tmp_path, lean_deg).detect(squares(640, 640, (208, 320, 16, SQUARE)))
    assert len(faces) == count
    for face in faces:
        assert face.roll_deg == pytest.approx(lean_deg, abs=0.01)
        right, left = face.keypoints[4:]
        across = 64 * np.array([math.cos(math.radians(lean_deg)), math.sin(math.radians(lean_deg))])
        np.testing.assert_allclose(left - right, across, atol=0.01)


def test_later_searches_look_around_and_nearer(tmp_path: Path) -> None:
    detector = bright_squares(tmp_path)
    whole, margin, tiles = detector.searches(squares(2000, 1500, (160, 160, 16, SQUARE)))
    assert (whole, margin) == ([], [])
    assert [face.box.tolist() for face in tiles] == [[136, 136, 200, 200]]
    last = squares(2000, 1500, (1360 + 320, 860 + 160, 16, SQUARE))
    assert [face.box.tolist() for face in detector.detect(last)] == [[1656, 996, 1720, 1060]]
    _, margin, tiles = detector.searches(squares(640, 640, (300, 200, 60, SQUARE)))
    np.testing.assert_allclose((margin[0].box[:2] + margin[0].box[2:]) / 2, (330, 230), atol=30)
    assert tiles == []


def test_missing_or_wrong_networks_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"xml is missing.*convert_detector"):
        RetinaFace(tmp_path)
    bright_squares(tmp_path)
    with pytest.raises(NetworkError, match=r"another device"):
        RetinaFace(tmp_path, "NOSUCH")
    weights = (tmp_path / FILE).with_suffix(".bin")
    weights.unlink()
    with pytest.raises(NetworkError, match=r"bin is missing.*convert_detector"):
        RetinaFace(tmp_path)
    weights.touch()
    (tmp_path / FILE).write_text("<html></html>")
    with pytest.raises(NetworkError, match=r"cannot be loaded.*convert_detector"):
        RetinaFace(tmp_path)
    picture = ops.parameter([-1, 3, -1, -1], ov.Type.f32)
    ov.save_model(ov.Model([ops.relu(picture)], [picture], "other"), tmp_path / FILE)
    with pytest.raises(NetworkError, match=r"another network.*convert_detector"):
        RetinaFace(tmp_path)


def data_folder() -> Path | None:
    """The folder of published weights and photos."""
    named = os.environ.get("MOUTHPIECE_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if (folder / "weights" / "mobilenet.pth").is_file() else None


if data_folder() or not os.environ.get("CI"):

    @pytest.fixture(scope="module")
    def data() -> Path:
        folder = data_folder()
        if folder is None:
            pytest.skip("weights/mobilenet.pth is not there; name its folder in MOUTHPIECE_TEST_DATA")
        if not MODELS.is_dir():
            pytest.skip("the face models are not fetched: run `make setup`")
        return folder

    @pytest.fixture(scope="module")
    def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with all face networks, RetinaFace with its published weights."""
        folder = tmp_path_factory.mktemp("models")
        done = convert(data / "weights" / "mobilenet.pth", folder)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "the published weights" in done.stdout
        for path in MODELS.glob("*.tflite"):
            shutil.copy(path, folder)
        return folder

    def astronaut() -> Pixels:
        rgb = np.asarray(skimage.data.astronaut(), np.uint8)
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)

    def test_the_published_weights_compute_what_pytorch_does(data: Path, models: Path) -> None:
        module = load_detector(data / "weights" / "mobilenet.pth")
        values = (cv2.resize(astronaut(), (320, 256)) - np.array([104, 117, 123], np.float32)).transpose(2, 0, 1)
        difference = largest_difference(module, models / FILE, np.ascontiguousarray(values[None], np.float32))
        assert difference < budgets.RETINAFACE_DIFFERENCE

    def test_the_published_weights_find_a_face_that_facemesh_confirms(models: Path) -> None:
        detector, mesh = RetinaFace(models), FaceMesh(models)
        (face,) = detector.detect(astronaut())
        np.testing.assert_allclose(face.keypoints[:2], [(206, 105), (245, 106)], atol=budgets.RETINAFACE_POINT_PX)
        np.testing.assert_allclose(face.keypoints[3], (228, 150), atol=budgets.RETINAFACE_POINT_PX)
        assert mesh.rough(astronaut(), face).score > BELIEVED
        for quarter in (1, 2, 3):
            turned: list[Detection] = detector.detect(np.ascontiguousarray(np.rot90(astronaut(), quarter)))
            assert all(other.score < face.score - UPRIGHT_MARGIN for other in turned)

    def test_the_published_weights_find_what_yunet_and_scrfd_find(data: Path, models: Path, tmp_path: Path) -> None:
        for path in sorted((data / "photos").iterdir())[::3]:
            shutil.copy(path, tmp_path)
        command = [sys.executable, "scripts/compare_detectors", str(tmp_path), str(data / "weights")]
        command += ["--models", str(models)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
        row = re.search(r"^\| RetinaFace \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|", done.stdout, re.MULTILINE)
        assert row, done.stdout
        found, missed, extra = (int(row[k]) for k in (1, 2, 3))
        assert found > 0
        assert missed <= budgets.RETINAFACE_MISSED_SHARE * (found + missed)
        assert extra <= budgets.RETINAFACE_EXTRA_SHARE * (found + missed)
        assert float(row[4]) > budgets.RETINAFACE_MEAN_IOU
