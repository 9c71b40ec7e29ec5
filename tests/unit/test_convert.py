"""Wav2Lip's checkpoints are told apart from others and converted, by the real script on a random network."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from torch import Tensor, nn

from scripts._wav2lip import model_folder
from scripts._wav2lip.accuracy import compare, draw_lower
from scripts._wav2lip.calibration import samples
from scripts._wav2lip.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from scripts._wav2lip.convert import plain_ir
from scripts._wav2lip.model_folder import FolderError, check_place, new_folder
from scripts._wav2lip.network import Block, Wav2Lip
from services.inference.wav2lip import network as wav2lip_network
from services.inference.wav2lip.files import digest, read_manifest
from services.inference.wav2lip.network import GATE_DB, Wav2LipNetwork, precisions_of
from tests import budgets
from tests.networks import seeded_crops, seeded_mels, seeded_wav2lip, stacked

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/convert_model"
NETWORKS = ["face.bin", "face.xml", "generator.bin", "generator.xml", "wav2lip.bin", "wav2lip.xml"]
QUICK = ("--windows", "8", "--calibration", "12")
WITHOUT_TORCH = (
    "import runpy, sys\n"
    "sys.modules['torch'] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


@pytest.fixture(scope="module")
def module() -> Wav2Lip:
    return seeded_wav2lip()


@pytest.fixture(scope="module")
def checkpoint(module: Wav2Lip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "mine.pth"
    save_checkpoint(module, path, optimizer_state={"state": {0: {"exp_avg": torch.ones(3)}}}, global_step=7)
    return path


@pytest.fixture(scope="module")
def plain(module: Wav2Lip) -> ov.Model:
    return plain_ir(module)


@pytest.fixture(scope="module")
def ir16(plain: ov.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As people have it from the prototype: weights in 16 bits. Its picture is pale, so that 8 bits do."""
    pale = plain.clone()
    last = pale.get_results()[0].input_value(0).get_node().input(0)
    paler = ops.multiply(last.get_source_output(), ops.constant(np.full((1, 1, 1, 1), 0.1, np.float32)))
    last.replace_source_output(paler.output(0))
    path = tmp_path_factory.mktemp("ir") / "wav2lip_openvino_model.xml"
    ov.save_model(pale, path, compress_to_fp16=True)
    return path


def run(*words: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-W", "error", *(["-c", code] if code else []), str(SCRIPT)]
    return subprocess.run(
        [*program, *map(str, words)], capture_output=True, text=True, check=False, timeout=budgets.CONVERT_DEADLINE_S
    )


def rows(report: str) -> list[dict[str, str]]:
    """The table that the script prints."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def drawn(module: Wav2Lip, count: int) -> tuple[Any, Any, Any]:
    crops, mels = seeded_crops(count, 5), seeded_mels(count, 5)
    return crops, mels, module(torch.from_numpy(mels[:, None]), torch.from_numpy(stacked(crops))).numpy()


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---- the network


def test_the_network_is_the_published_one() -> None:
    module = Wav2Lip().eval()
    assert sum(parameter.numel() for parameter in module.parameters()) == budgets.WAV2LIP_PARAMETERS
    macs = dict.fromkeys(budgets.WAV2LIP_MMACS, 0)

    def count(part: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer.weight, Tensor)
            pixels = (inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output).shape[-2:].numel()
            macs[part] += layer.weight.numel() * pixels

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count(name.split(".")[0]))
    assert module(torch.zeros(1, 1, 80, 16), torch.zeros(1, 6, 96, 96)).shape == (1, 3, 96, 96)
    assert {part: round(number / 1e6) for part, number in macs.items()} == budgets.WAV2LIP_MMACS
    assert {
        "face_encoder_blocks.0.0.conv_block.0.weight",
        "audio_encoder.12.conv_block.1.running_mean",
        "face_decoder_blocks.6.2.conv_block.1.num_batches_tracked",
        "output_block.0.conv_block.0.bias",
        "output_block.1.weight",
    } <= module.state_dict().keys()


def test_residuals_stand_where_published() -> None:
    counts = dict.fromkeys(budgets.WAV2LIP_RESIDUALS, 0)
    for name, block in Wav2Lip().named_modules():
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + int(getattr(block, "residual", False))
    assert {part: counts[part] for part in budgets.WAV2LIP_RESIDUALS} == budgets.WAV2LIP_RESIDUALS
    still = Block(nn.Conv2d(2, 2, 3, padding=1), residual=True).eval()
    for parameter in still.parameters():
        nn.init.zeros_(parameter)
    x = torch.tensor([-1.0, 2.0]).reshape(1, 2, 1, 1)
    assert torch.equal(still(x), torch.tensor([0.0, 2.0]).reshape(1, 2, 1, 1))  # added first, then ReLU


def test_openvino_draws_what_pytorch_draws(module: Wav2Lip, plain: ov.Model) -> None:
    crops, mels, wanted = drawn(module, 3)
    assert wanted.std() > 0.1  # the random network draws something
    assert [port.get_any_name() for port in (*plain.inputs, *plain.outputs)] == [
        "audio_sequences",
        "face_sequences",
        "output",
    ]
    compiled = ov.Core().compile_model(plain, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (3, 1):
        found = compiled({"audio_sequences": mels[:count, None], "face_sequences": stacked(crops[:count])})[0]
        assert np.abs(found - wanted[:count]).max() < budgets.CONVERT_DIFFERENCE


def test_comparing_pictures() -> None:
    wanted = np.zeros((2, 3, 48, 96), np.float32)
    found = wanted.copy()
    found[1] += 0.1
    found[1, 0, 0, 0] = 0.2
    accuracy = compare(found, wanted)
    assert accuracy.max_difference == pytest.approx(0.2)
    assert accuracy.worst_psnr_db == pytest.approx(20.0, abs=0.01)
    assert accuracy.windows == 2
    assert compare(wanted, wanted).worst_psnr_db == pytest.approx(200.0)  # finite, so that it can be stored
    with pytest.raises(ValueError, match="alike"):
        compare(wanted, wanted[:1])


# ---- checkpoints that are taken


def plain_state(module: Wav2Lip) -> dict[str, Any]:
    return dict(module.state_dict())


def as_published(module: Wav2Lip) -> dict[str, Any]:
    state = {"module." + key: value for key, value in module.state_dict().items()}
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"state_dict": state, "optimizer": optimiser, "global_step": 9, "global_epoch": 1}


def without_counters(module: Wav2Lip) -> dict[str, Any]:
    return {"state_dict": {key: value for key, value in plain_state(module).items() if "num_batches" not in key}}


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("form", [plain_state, as_published, without_counters])
def test_published_forms_are_taken(
    module: Wav2Lip, tmp_path: Path, form: Callable[[Wav2Lip], dict[str, Any]], old_format: bool
) -> None:
    path = tmp_path / "wav2lip.pth"
    torch.save(form(module), path, _use_new_zipfile_serialization=not old_format)
    loaded = load_checkpoint(path)
    assert not loaded.training
    for (key, value), ours in zip(loaded.state_dict().items(), module.state_dict().values(), strict=True):
        if "num_batches" in key and form is without_counters:
            assert value == 0
        else:
            assert torch.equal(value, ours), key
    path.unlink()


def test_half_precision_is_taken(module: Wav2Lip, tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({key: value.half() for key, value in module.state_dict().items()}, path)
    loaded = load_checkpoint(path)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    for ours, value in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(value, ours.half().float())


def test_saved_and_read_again(module: Wav2Lip, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True, mmap=True)
    assert list(content) == ["state_dict", "optimizer", "global_step", "global_epoch"]
    assert content["global_step"] == 7
    assert all(key.startswith("module.") for key in content["state_dict"])
    for ours, value in zip(module.parameters(), load_checkpoint(checkpoint).parameters(), strict=True):
        assert torch.equal(value, ours)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["mine.pth"]


# ---- files that are refused, with words


def weights(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors of these shapes that take no room."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def published() -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Wav2Lip().state_dict().items()}
    return weights(**shapes)


def encoder(blocks: list[list[tuple[int, int, int]]]) -> dict[str, Tensor]:
    """A variant with another face encoder: channels in and out and kernel of each layer of each block."""
    state = {key: value for key, value in published().items() if not key.startswith("face_encoder_blocks")}
    for i, block in enumerate(blocks):
        for j, (inputs, outputs, kernel) in enumerate(block):
            name = f"face_encoder_blocks.{i}.{j}.conv_block.0.weight"
            state |= weights(**{name: (outputs, inputs, kernel, kernel)})
    return {"state_dict": state}  # type: ignore[dict-item]


def halving(count: int) -> list[list[tuple[int, int, int]]]:
    return [[(6, 16, 7)], *[[(16, 16, 3), (16, 16, 3)]] * count]


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("wav2lip.pth", b"inside")
    return file.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "html": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "ir": (lambda: b'<?xml version="1.0"?>\n<net name="Wav2Lip" version="11">', "OpenVINO IR.*--from-ir"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:ca9a\n", "Git LFS pointer"),
    "text": (lambda: b"hello\n" * 9, "a text file"),
    "safetensors": (lambda: (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + b" " * 60, "safetensors"),
    "onnx": (lambda: b"\x08\x0a\x12\x07pytorch" + b"\0" * 99, "ONNX network.*--from-ir"),
    "gzip": (lambda: b"\x1f\x8b\x08" + b"\0" * 99, "gzip archive"),
    "noise": (lambda: bytes(range(128, 256)) * 9, "unknown kind|pickle"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + b"\0" * 99, "TensorFlow Lite"),
    "torchscript": (scripted, "TorchScript"),
    "zip": (zipped, "a zip archive"),
    "cut zip": (lambda: saved({"a": torch.ones(999)})[:-600], "cut short or damaged"),
    "bad zip": (lambda: flipped(saved({"a": torch.ones(999)}), 2000), "damaged"),
    "cut old": (lambda: saved({"a": torch.ones(999)}, _use_new_zipfile_serialization=False)[:-600], "cut short"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "not one of PyTorch"),
    "tensor": (lambda: saved(torch.ones(3)), "holds a Tensor"),
    "numbers": (lambda: saved({"epoch": 3}), "no dictionary of weights; it holds epoch"),
    "discriminator": (
        lambda: saved(
            weights(
                **{"module.face_encoder_blocks.0.0.conv_block.0.weight": (32, 3, 7, 7), "binary_pred.0.weight": (1, 9)}
            )
        ),
        "the discriminator of Wav2Lip",
    ),
    "syncnet": (
        lambda: saved({"state_dict": weights(**{"face_encoder.0.x": (32, 15, 7, 7), "audio_encoder.0.x": (1,)})}),
        "SyncNet",
    ),
    "retinaface": (lambda: saved(weights(**{"module.body.stage1.0.0.weight": (8, 3, 3, 3)})), "RetinaFace"),
    "s3fd": (lambda: saved(weights(**{"conv1_1.weight": (64, 3, 3, 3)})), "S3FD"),
    "other network": (lambda: saved(weights(**{"fc.weight": (2, 3)})), "another network.*fc.weight"),
    "192": (lambda: saved(encoder([*halving(6), [(16, 16, 3), (16, 16, 1)]])), "192 x 192"),
    "256": (lambda: saved(encoder([*halving(6), [(16, 16, 4), (16, 16, 1)]])), "256 x 256"),
    "288": (
        lambda: saved(encoder([*halving(6), [(16, 16, 3), (16, 16, 1)], [(16, 16, 3), (16, 16, 1)]])),
        "288 x 288",
    ),
    "wider": (
        lambda: saved(published() | weights(**{"output_block.1.weight": (3, 64, 1, 1)})),
        r"other layers: output_block.1.weight is \(3, 64, 1, 1\), published is \(3, 32, 1, 1\)",
    ),
    "part": (
        lambda: saved({key: value for key, value in published().items() if key != "output_block.1.bias"}),
        "output_block.1.bias is missing",
    ),
    "more": (lambda: saved(published() | weights(**{"sam.sa.conv1.weight": (1,)})), "sam.sa.conv1.weight is too much"),
    "not finite": (
        lambda: saved(published() | {"output_block.1.bias": torch.tensor([0.0, float("nan"), 0.0])}),
        "not finite in output_block.1.bias",
    ),
    "integers": (
        lambda: saved(published() | {"output_block.1.bias": torch.zeros(3, dtype=torch.int8)}),
        "torch.int8, not floating point",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    make, words = WRONG[kind]
    path = tmp_path / "given.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "fetch_models" in text  # what to do
    assert "\n" not in text


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("old_format", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, old_format: bool) -> None:
    made = tmp_path / "made"
    path = tmp_path / "evil.pth"
    path.write_bytes(saved({"a": Bomb(str(made))}, _use_new_zipfile_serialization=not old_format))
    torch.load(path, weights_only=False)
    assert made.is_dir()  # the bomb works
    made.rmdir()
    with pytest.raises(CheckpointError, match=r"Python objects beside weights \((posix|os).mkdir\)"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb(str(made))))
    with pytest.raises(CheckpointError, match="not opened"):
        load_checkpoint(path)
    assert not made.exists()


def test_any_damaged_byte_gives_words(tmp_path: Path) -> None:
    data = saved(published(), _use_new_zipfile_serialization=False)
    path = tmp_path / "damaged.pth"
    for at in range(30, 4000, 61):
        path.write_bytes(flipped(data, at))
        try:
            load_checkpoint(path)
        except CheckpointError:
            continue  # a byte in a tensor's number or a spare one may also do no harm


# ---- the folder


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    place = tmp_path / "models/wav2lip"
    with new_folder(place) as draft:
        (draft / "model.json").write_text("first")
        assert not place.exists()
    assert (place / "model.json").read_text() == "first"

    def fail() -> None:
        with new_folder(place) as draft:
            (draft / "model.json").write_text("second")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (place / "model.json").read_text() == "first"
    with new_folder(place) as draft:
        (draft / "face.xml").write_text("third")
    assert [path.name for path in place.iterdir()] == ["face.xml"]
    assert [path.name for path in place.parent.iterdir()] == ["wav2lip"]


def test_a_place_with_other_things_or_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "new/folder")
    (tmp_path / "wav2lip.bin").touch()
    check_place(tmp_path)
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(FolderError, match="thesis"):
        check_place(tmp_path)
    with pytest.raises(FolderError, match="is a file"):
        check_place(tmp_path / "thesis.doc")
    monkeypatch.setattr(model_folder, "NEEDED_BYTES", shutil.disk_usage(tmp_path).total + 1)
    with pytest.raises(FolderError, match="MB are needed"):
        check_place(tmp_path / "new")


# ---- the script


def test_a_checkpoint_is_converted(module: Wav2Lip, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run(checkpoint, "--out", folder, "--no-int8", *QUICK)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NETWORKS, "model.json"])
    assert not leftovers(tmp_path)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.source, manifest.known_as) == ("checkpoint", "")
    assert manifest.digest == digest(folder)
    assert len(manifest.source_sha256) == 64
    found = manifest.precisions["f32"]
    assert found.max_difference < budgets.CONVERT_DIFFERENCE
    assert found.windows == 8
    if "bf16" in manifest.precisions:
        assert manifest.precisions["bf16"].worst_psnr_db > budgets.CONVERT_BF16_PSNR_DB
    table = rows(result.stdout)
    assert [row["precision"] for row in table] == ["f32", *manifest.precisions]
    assert [row["network"] for row in table[:2]] == ["wav2lip.xml", "face.xml + generator.xml"]
    size = sum((folder / name).stat().st_size for name in ("wav2lip.xml", "wav2lip.bin"))
    assert float(table[0]["MB"]) == pytest.approx(size / 1e6, abs=0.1)
    assert "compared with PyTorch" in result.stdout

    crops, mels, wanted = drawn(module, 2)
    network = Wav2LipNetwork(folder, precision="f32")
    assert network.split
    lower = network.draw_exactly(network.prepare(crops), mels)
    assert np.abs(lower - wanted[:, :, 48:]).max() < budgets.CONVERT_DIFFERENCE


def test_a_network_of_others_is_split_and_quantised_without_pytorch(
    ir16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    result = run("--from-ir", ir16, "--out", folder, *QUICK, code=WITHOUT_TORCH)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} >= {*NETWORKS, "model.json"}
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.source == "ir"
    assert manifest.precisions["f32"].max_difference < budgets.CONVERT_DIFFERENCE
    assert "int8" in manifest.precisions
    assert manifest.precisions["int8"].worst_psnr_db >= GATE_DB
    assert "generator_int8.xml" in result.stdout
    assert (folder / "generator_int8.bin").stat().st_size < (folder / "generator.bin").stat().st_size
    assert not leftovers(tmp_path)

    # What lies between the products of 8 bits is in the type that is faster here.
    kept: list[Any] = []

    def sooner_each_time(_: Wav2LipNetwork, request: Any) -> float:
        kept.append(request)
        return 1.0 / len(kept)

    with monkeypatch.context() as patch:
        patch.setattr(Wav2LipNetwork, "_time_ms", sooner_each_time)
        network = Wav2LipNetwork(folder, precision="int8")
    rests = [request._request(1, 1).get_compiled_model().get_property("INFERENCE_PRECISION_HINT") for request in kept]
    if "bf16" in network._able():
        assert rests == [ov.Type.f32, ov.Type.bf16]
        assert network._request is kept[1]
    else:
        assert not rests, "one way alone is not timed"

    # A processor that cannot add up bytes draws the same picture, worked out in 32 bits.
    held_out = samples(8, seed=0, held_out=True)
    exactly = draw_lower(Wav2LipNetwork(folder, precision="f32"), held_out)
    monkeypatch.setattr(wav2lip_network, "multiplies_bytes", lambda: False)
    network = Wav2LipNetwork(folder, precision="int8")
    assert "works 8 bits out in 32" in network.choice
    assert compare(draw_lower(network, held_out), exactly).worst_psnr_db >= GATE_DB
    assert precisions_of("CPU", ["FP32", "INT8"]) == precisions_of("AUTO", ["FP32", "INT8"]) == ["f32"]
    assert precisions_of("GPU", ["FP32", "INT8"]) == ["f32", "int8"]


def other_network(folder: Path, audio: str = "audio_sequences") -> Path:
    """Inputs and output of Wav2Lip, but not built like it."""
    mel = ops.parameter([2, 1, 80, 16], ov.Type.f32, name=audio)
    face = ops.parameter([2, 6, 96, 96], ov.Type.f32, name="face_sequences")
    mel.output(0).set_names({audio})
    face.output(0).set_names({"face_sequences"})
    level = ops.reduce_mean(mel, ops.constant(np.array([1, 2, 3])), keep_dims=True)
    masked, whole = ops.split(face, ops.constant(np.int64(1)), 2).outputs()
    path = folder / "other.xml"
    ov.save_model(ov.Model([ops.add(masked, ops.multiply(whole, level))], [mel, face], "other"), path)
    return path


def test_a_network_that_cannot_be_split_is_written_whole(tmp_path: Path) -> None:
    result = run("--from-ir", other_network(tmp_path), "--out", tmp_path / "out", *QUICK)
    assert result.returncode == 0, result.stderr
    assert "cannot be split" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "wav2lip.bin", "wav2lip.xml"]
    network = Wav2LipNetwork(tmp_path / "out", precision="f32")
    assert not network.split
    crops, mels = seeded_crops(3), seeded_mels(3)
    assert network.draw(network.prepare(crops), mels).shape == (3, 48, 96, 3)


def test_what_is_wrong_costs_one_line_and_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.json").write_text("before")
    page = tmp_path / "wav2lip.pth"
    page.write_text("<html>")
    cases: list[tuple[list[str | Path], str]] = [
        ([page], "a web page"),
        (["--from-ir", page], r"expected an OpenVINO IR"),
        (["--from-ir", other_network(tmp_path, audio="sound")], "expected the inputs audio_sequences"),
        ([page, "--voices", tmp_path / "nowhere"], "nowhere is not there"),
    ]
    for words, text in cases:
        result = run(*words, "--out", out, *QUICK)
        assert result.returncode == 2, result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("convert_model: ")
        assert re.search(text, last), last
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert {path.name: path.read_text() for path in out.iterdir()} == {"model.json": "before"}
        assert not leftovers(tmp_path)
    (out / "holiday.jpg").touch()
    result = run(page, "--out", out)
    assert result.returncode == 2
    assert "holiday.jpg" in result.stderr


def test_stopped_half_way_nothing_is_left(ir16: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--from-ir", str(ir16), "--out", str(tmp_path / "out"), "--no-int8"]
    command += ["--windows", "48"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "measuring" in line:
                break
        assert leftovers(tmp_path)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=budgets.CONVERT_DEADLINE_S)
    assert process.returncode == 130
    assert "stopped" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_published_weights_are_known_by_their_hash() -> None:
    text = (
        "import runpy, json\n"
        f"names = runpy.run_path({str(SCRIPT)!r})\n"
        "print(json.dumps([names['known_as'](h) for h in json.loads(__import__('sys').argv[1])]))\n"
    )
    hashes = [
        "ca9ab7b7b812c0e80a6e70a5977c545a1e8a365a6c49d5e533023c034d7ac3d8",
        "b78b681b68ad9fe6c6fb1debc6ff43ad05834a8af8a62ffc4167b7b34ef63c37",
        "12318393097b6d5b802235ed2df3eaab6999d50d56cec25173a7b49e8bc2d701",
        "0" * 64,
    ]
    result = subprocess.run(
        [sys.executable, "-c", text, json.dumps(hashes)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(result.stdout) == ["wav2lip_gan", "wav2lip", "wav2lip_openvino_model", ""]
