"""The split network draws what the plain one draws, and the fastest precision that is near enough is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset12 as ops

from scripts._benchmark.peak import macs
from services.inference.wav2lip import files
from services.inference.wav2lip.arrange import as_matrices, beside_each_other
from services.inference.wav2lip.network import Wav2LipNetwork, _FixedBatches
from services.inference.wav2lip.split import AUDIO, FACES, SKIPS, SplitError, split
from services.inference.wav2lip.winograd import with_fewer_products
from tests import budgets
from tests.networks import seeded_crops, seeded_mels
from tests.unit.test_wav2lip import build


@pytest.fixture(scope="module")
def plain(converted_wav2lip: Path) -> ov.Model:
    return ov.Core().read_model(converted_wav2lip / files.PLAIN)


@pytest.fixture
def folder(converted_wav2lip: Path) -> Path:
    return converted_wav2lip


def inputs(count: int) -> tuple[Any, Any]:
    """Faces as the network reads them, (n, 6, 96, 96), and mel windows, (n, 1, 80, 16)."""
    whole = seeded_crops(count, 7).transpose(0, 3, 1, 2).astype(np.float32) / 255
    black = whole.copy()
    black[:, :, 48:] = 0
    return np.concatenate([black, whole], axis=1), seeded_mels(count, 7)[:, None]


def compiled(model: ov.Model) -> Any:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("residuals", ["folded", "added"])
@pytest.mark.parametrize("halves", [False, True], ids=["float", "weights-in-16-bits"])
def test_both_parts_draw_what_the_plain_network_draws(
    plain: ov.Model, tmp_path: Path, residuals: Any, halves: bool
) -> None:
    if halves:
        ov.save_model(plain, tmp_path / "plain.xml", compress_to_fp16=True)
        plain = ov.Core().read_model(tmp_path / "plain.xml")
    faces, mels = inputs(3)
    wanted = compiled(plain)({FACES: faces, AUDIO: mels})[0][:, :, 48:]
    assert wanted.std() > budgets.WAV2LIP_PICTURE_STD, "the network draws something"
    both = split(plain, residuals)
    shares = compiled(both.face)({FACES: faces})
    generator = compiled(both.generator)
    got = generator({AUDIO: mels, **{name: shares[name] for name in SKIPS}})[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)
    one_face = generator({AUDIO: mels, **{name: shares[name][:1] for name in SKIPS}})[0]
    np.testing.assert_allclose(one_face[0], wanted[0], rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)
    assert np.abs(one_face[1] - wanted[1]).max() > budgets.WAV2LIP_PICTURE_STD, "another face"


@pytest.mark.parametrize("least_channels", [64, 128])
def test_fewer_products_draw_the_same(plain: ov.Model, least_channels: int) -> None:
    faces, mels = inputs(7)
    both = split(plain)
    before = [node.get_friendly_name() for node in both.generator.get_ordered_ops()]
    fewer = with_fewer_products(both.generator, least_channels)
    assert fewer is not None
    assert [node.get_friendly_name() for node in both.generator.get_ordered_ops()] == before
    assert macs(fewer) < budgets.WAV2LIP_FEWER_PRODUCTS[least_channels] * macs(both.generator)
    shares = compiled(both.face)({FACES: faces})
    wanted = compiled(plain)({FACES: faces, AUDIO: mels})[0][:, :, 48:]
    got = compiled(fewer)({AUDIO: mels, **{name: shares[name] for name in SKIPS}})[0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)

    drawer = _FixedBatches(fewer, (1, 4), compiled)
    each = drawer.infer({AUDIO: mels, **{name: shares[name] for name in SKIPS}}, share_inputs=True)[0]
    np.testing.assert_allclose(each, wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)
    same = np.repeat(faces[:1], 7, axis=0)
    wanted = compiled(plain)({FACES: same, AUDIO: mels})[0][:, :, 48:]
    together = drawer.infer({AUDIO: mels, **{name: shares[name][:1] for name in SKIPS}}, share_inputs=True)[0]
    np.testing.assert_allclose(together, wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)


@pytest.mark.parametrize("rows", [8, 9, 10, 11, 13])
def test_rows_that_no_number_divides_come_out_the_same(rows: int) -> None:
    rng = np.random.default_rng(rows)
    read = ops.parameter([-1, 64, rows, 7], np.float32)
    values: Any = read
    for above, side, out in ((1, 3, 64), (0, 3, 64), (1, 3, 96), (0, 1, 32)):
        into = int(values.output(0).get_partial_shape()[1].get_length())
        weights = rng.normal(0, 1 / np.sqrt(into * side**2), (out, into, side, side)).astype(np.float32)
        begin, end = ((above, 1), (1, 1)) if side == 3 else ((0, 0), (0, 0))
        made = ops.convolution(values, ops.constant(weights), (1, 1), begin, end, (1, 1))
        bias = ops.constant(rng.normal(0.5, 1, (1, out, 1, 1)).astype(np.float32))
        values = ops.relu(ops.add(made, bias))
    directly = ov.Model([ops.result(values)], [read], "rows")
    fewer = with_fewer_products(directly)
    assert fewer is not None
    assert macs(fewer) < budgets.WAV2LIP_FEWER_IN_A_CHAIN * macs(directly)
    given = rng.normal(size=(2, 64, rows, 7)).astype(np.float32)
    wanted = compiled(directly)(given)[0]
    assert wanted.shape == (2, 32, rows - 1, 7)
    assert wanted.std() > budgets.WAV2LIP_PICTURE_STD
    np.testing.assert_allclose(compiled(fewer)(given)[0], wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)


@pytest.mark.parametrize("faces_each", [False, True])
def test_a_batch_that_lies_beside_each_other_is_drawn_the_same(plain: ov.Model, faces_each: bool) -> None:
    count = 3
    faces, mels = inputs(count)
    faces = faces if faces_each else faces[:1]
    both = split(plain)
    shares = compiled(both.face)({FACES: faces})
    given = {AUDIO: mels, **{name: shares[name] for name in SKIPS}}
    wanted = compiled(both.generator)(given)[0]
    network = as_matrices(both.generator)
    assert [node.get_type_name() for node in network.get_ordered_ops()].count("MatMul") == budgets.WAV2LIP_MATRICES
    shapes = {name: [len(value), *value.shape[1:]] for name, value in given.items()}
    network.reshape(shapes)
    arranged = beside_each_other(network)
    read = [first_shape(node) for node in convolutions(arranged)]
    # of levels 0 to 2, which are 3, 6 and 5 rows high
    assert [shape[0] for shape in read if shape[1] == 512] == [1] * budgets.WAV2LIP_BESIDE
    assert sum(shape[0] == 1 for shape in read) == budgets.WAV2LIP_BESIDE
    assert sum(shape[0] == 1 for shape in map(first_shape, convolutions(network))) == 0
    np.testing.assert_allclose(compiled(arranged)(given)[0], wanted, rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE)


def test_a_picture_alone_has_nothing_beside_it(plain: ov.Model) -> None:
    network = split(plain).generator
    network.reshape({name: [1, *shape] for name, shape in shapes_of(network).items()})
    kinds = [node.get_type_name() for node in network.get_ordered_ops()]
    assert [node.get_type_name() for node in beside_each_other(network).get_ordered_ops()] == kinds


def convolutions(network: ov.Model) -> list[Any]:
    kinds = ("Convolution", "ConvolutionBackpropData")
    return [node for node in network.get_ordered_ops() if node.get_type_name() in kinds]


def first_shape(node: Any) -> list[int]:
    return list(node.input_value(0).get_partial_shape().to_shape())


def shapes_of(network: ov.Model) -> dict[str, list[int]]:
    """Of the inputs, without the batch."""
    return {
        port.get_any_name(): [int(size.get_length()) for size in list(port.get_partial_shape())[1:]]
        for port in network.inputs
    }


def test_a_generator_without_such_convolutions_stays(plain: ov.Model) -> None:
    assert with_fewer_products(split(plain).face) is None


@pytest.mark.parametrize(("fastest", "told"), [(0, ""), (1, "64 channels and more"), (2, "128 channels and more")])
def test_the_fastest_way_in_32_bits_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fastest: int, told: str
) -> None:
    made: list[ov.Model] = []
    kept: list[Any] = []
    whole = Wav2LipNetwork._drawer

    def drawer(self: Wav2LipNetwork, generator: Any, *rest: Any) -> Any:
        made.append(generator)
        kept.append(whole(self, generator, *rest))
        return kept[-1]

    monkeypatch.setattr(Wav2LipNetwork, "_drawer", drawer)
    monkeypatch.setattr(Wav2LipNetwork, "_time_ms", lambda _, request: float(kept.index(request) != fastest))
    network = Wav2LipNetwork(folder, precision="f32", batches=(1, 2))
    assert network._request is kept[fastest]
    assert macs(made[0]) > macs(made[2]) > macs(made[1])
    assert told in network.choice
    assert ("half of the products" in network.choice) is (fastest > 0)
    parts = network.prepare(seeded_crops(2, 5))
    mels = seeded_mels(3, 5)
    got = network.draw_exactly([parts[0], parts[0], parts[0]], mels)
    np.testing.assert_allclose(
        got[2], network.draw_exactly([parts[0]], mels[2:])[0], rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE
    )
    assert got.shape == (3, 3, 48, 96)
    assert np.abs(got[1] - network.draw_exactly([parts[1]], mels[1:2])[0]).max() > budgets.WAV2LIP_PICTURE_STD


@pytest.mark.parametrize(
    ("bf16_ms", "tried", "chosen"),
    [(10.0, ["bf16", "f32"], "bf16"), (18.9, ["bf16", "f32", "f32", "f32"], "f32")],
)
def test_the_most_exact_precision_that_is_nearly_the_fastest_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bf16_ms: float, tried: list[str], chosen: str
) -> None:
    """Directly 20 ms in 32 bits, 17 at best; what cannot win with fewer products is not tried with them."""
    made: list[tuple[str, float]] = []

    def drawer(_self: Wav2LipNetwork, _generator: ov.Model, precision: str, *_: Any) -> tuple[str, float]:
        times_ms = {"f32": max(17.0, 20.0 - 2 * sum(name == "f32" for name, _ in made)), "bf16": bf16_ms}
        made.append((precision, times_ms[precision]))
        return made[-1]

    monkeypatch.setattr(Wav2LipNetwork, "_able", lambda _: ["f32", "bf16"])
    monkeypatch.setattr(Wav2LipNetwork, "_drawer", drawer)
    monkeypatch.setattr(Wav2LipNetwork, "_time_ms", lambda _, request: request[1])
    network = Wav2LipNetwork(folder)
    assert [name for name, _ in made] == tried
    assert network.precision == chosen
    assert network._request == (chosen, 17.0 if chosen == "f32" else bf16_ms)


def test_the_plain_network_is_left_as_it_was(plain: ov.Model) -> None:
    before = [node.get_friendly_name() for node in plain.get_ordered_ops()]
    split(plain)
    assert [node.get_friendly_name() for node in plain.get_ordered_ops()] == before


def test_another_network_is_not_split() -> None:
    with pytest.raises(SplitError, match="expected a Sigmoid at the end"):
        split(build())
    with pytest.raises(SplitError, match="expected the inputs audio_sequences and face_sequences"):
        split(build(audio="mel"))


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "plain-file"])
def test_the_network_draws_lower_halves_of_several_faces(folder: Path, as_folder: bool, tmp_path: Path) -> None:
    if not as_folder:
        for suffix in (".xml", ".bin"):
            (tmp_path / f"own{suffix}").write_bytes((folder / files.PLAIN).with_suffix(suffix).read_bytes())
    network = Wav2LipNetwork(folder if as_folder else tmp_path / "own.xml", precision="f32")
    assert network.split
    crops, mels = seeded_crops(3, 5), seeded_mels(4, 5)
    parts = network.prepare(crops)
    order = [2, 0, 0, 1]
    lower = network.draw([parts[k] for k in order], mels)
    whole = network.draw_whole(crops[order], mels)
    assert lower.shape == (4, 48, 96, 3)
    assert np.abs(lower.astype(int) - whole[:, 48:].astype(int)).max() <= 1
    same = network.draw([parts[0]] * 2, mels[1:3])
    assert np.abs(same.astype(int) - lower[1:3].astype(int)).max() <= 1


def test_the_fastest_precision_that_is_near_enough_is_taken(folder: Path, tmp_path: Path) -> None:
    chosen = Wav2LipNetwork(folder)
    assert chosen.precision in ("f32", "bf16", "f16")
    assert "f32 " in chosen.choice
    assert "ms a frame on CPU" in chosen.choice
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    far = files.PrecisionReport(max_difference=0.5, worst_psnr_db=20.0, windows=200)
    files.write_manifest(
        tmp_path,
        files.Manifest(
            source="ir", source_sha256="", digest=files.digest(folder), precisions={"bf16": far, "f16": far}
        ),
    )
    assert Wav2LipNetwork(tmp_path).precision == "f32", "the others were found too far from the original"


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no 8-bit model beside it; convert"):
        Wav2LipNetwork(folder, precision="int8")
    with pytest.raises(ValueError, match=r"wav2lip\.xml: no such file; convert"):
        Wav2LipNetwork(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / files.MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match=r"model\.json: .*convert the model again"):
        Wav2LipNetwork(tmp_path)
    (tmp_path / files.MANIFEST).unlink()
    (tmp_path / files.FACE).unlink()
    with pytest.raises(ValueError, match=r"face\.xml: no such file"):
        Wav2LipNetwork(tmp_path)
    for suffix in (".xml", ".bin"):
        (tmp_path / files.FACE).with_suffix(suffix).unlink(missing_ok=True)
        (tmp_path / files.FACE).with_suffix(suffix).symlink_to((folder / files.PLAIN).with_suffix(suffix))
    with pytest.raises(ValueError, match="do not belong together"):
        Wav2LipNetwork(tmp_path)


def test_wrong_faces_and_windows_are_refused(folder: Path) -> None:
    network = Wav2LipNetwork(folder, precision="f32")
    with pytest.raises(ValueError, match=r"must be \(n, 96, 96, 3\), uint8"):
        network.prepare(np.zeros((1, 96, 96, 3), np.float32))
    (part,) = network.prepare(seeded_crops(1, 0))
    with pytest.raises(ValueError, match=r"must be \(2, 80, 16\)"):
        network.draw([part, part], seeded_mels(1, 0))
