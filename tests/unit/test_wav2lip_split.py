"""The split network draws what the plain one draws, and the fastest precision that is near enough is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from scripts._benchmark.peak import macs
from services.inference.wav2lip import files
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


def test_fewer_products_draw_the_same(plain: ov.Model) -> None:
    faces, mels = inputs(7)
    both = split(plain)
    before = [node.get_friendly_name() for node in both.generator.get_ordered_ops()]
    fewer = with_fewer_products(both.generator)
    assert fewer is not None
    assert [node.get_friendly_name() for node in both.generator.get_ordered_ops()] == before
    assert macs(fewer) < budgets.WAV2LIP_FEWER_PRODUCTS * macs(both.generator)
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


def test_a_generator_without_such_convolutions_stays(plain: ov.Model) -> None:
    assert with_fewer_products(split(plain).face) is None


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_way_in_32_bits_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    calls: list[Any] = []

    def timed(_self: Wav2LipNetwork, request: Any) -> float:
        calls.append(request)
        return float((len(calls) == 2) is not faster)  # the rewritten one comes second

    monkeypatch.setattr(Wav2LipNetwork, "_time_ms", timed)
    network = Wav2LipNetwork(folder, precision="f32", batches=(1, 2))
    assert ("half of the products" in network.choice) is faster
    parts = network.prepare(seeded_crops(2, 5))
    mels = seeded_mels(3, 5)
    got = network.draw_exactly([parts[0], parts[0], parts[0]], mels)
    np.testing.assert_allclose(
        got[2], network.draw_exactly([parts[0]], mels[2:])[0], rtol=0, atol=budgets.WAV2LIP_SPLIT_TOLERANCE
    )
    assert got.shape == (3, 3, 48, 96)
    assert np.abs(got[1] - network.draw_exactly([parts[1]], mels[1:2])[0]).max() > budgets.WAV2LIP_PICTURE_STD


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
