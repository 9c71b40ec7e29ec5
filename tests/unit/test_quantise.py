"""Mixed 8 bits for the generator of Wav2Lip, and the samples on which it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
import soundfile
import torch
from torch import nn

from scripts._wav2lip import quantise as module
from scripts._wav2lip.calibration import DEMO_BOX, DEMO_FACE, CalibrationError, samples
from scripts._wav2lip.convert import plain_ir
from scripts._wav2lip.network import Block
from scripts._wav2lip.quantise import LAYERS, Quantised, QuantiseError, quantise
from services.inference.wav2lip import network as wav2lip_network
from services.inference.wav2lip.network import hints_for_bytes
from services.inference.wav2lip.split import AUDIO, FACES, OUTPUT, SKIPS, Split, split
from tests import budgets
from tests.networks import seeded_wav2lip, stacked

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = samples(32, seed=0)
HELD_OUT = samples(24, seed=1, held_out=True)
FEW = samples(8, seed=2)
WEIGHTED = ("Convolution", "ConvolutionBackpropData")


@pytest.fixture(scope="module")
def plain() -> ov.Model:
    """Random weights amplify the noise of rounding as trained ones do not; with small residuals they do so less."""
    network = seeded_wav2lip()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, Block) and part.residual:
                normalisation = part.conv_block[1]
                assert isinstance(normalisation, nn.BatchNorm2d)
                normalisation.weight.mul_(0.15)
            if isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                part.momentum = None
        last = network.output_block[1]
        assert isinstance(last, nn.Conv2d)
        last.weight.mul_(0.25)
        network.train()(torch.from_numpy(CALIBRATION.mels[:, None]), torch.from_numpy(stacked(CALIBRATION.crops)))
    return plain_ir(network.eval())


@pytest.fixture(scope="module")
def parts(plain: ov.Model) -> Split:
    return split(plain, "added")


@pytest.fixture(scope="module")
def mixed(parts: Split) -> Quantised:
    return quantise(parts.face, parts.generator, CALIBRATION, HELD_OUT, budgets.QUANTISE_GATE_DB)


def compiled(model: ov.Model, **hints: str) -> ov.CompiledModel:
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **hints})


def drawn(face: ov.Model, generator: ov.Model) -> npt.NDArray[np.float64]:
    shares = compiled(face)({FACES: stacked(HELD_OUT.crops)})
    inputs = {AUDIO: HELD_OUT.mels[:, None], **{name: shares[name] for name in SKIPS}}
    picture = compiled(generator, **hints_for_bytes())(inputs)[OUTPUT]
    return np.asarray(255.0 * picture.astype(np.float64))


def weights_type(node: ov.Node) -> str:
    """Type in which a convolution's weights are stored."""
    source = node.input_value(1).get_node()
    while source.get_type_name() != "Constant":
        source = source.input_value(0).get_node()
    return str(source.get_element_type().get_type_name())


def reads_rounded(node: ov.Node) -> bool:
    source = node.input_value(0).get_node()
    if source.get_type_name() == "Slice":
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "FakeQuantize")


def test_the_gate_holds_in_every_held_out_window(parts: Split, mixed: Quantised) -> None:
    error = ((drawn(parts.face, mixed.model) - drawn(parts.face, parts.generator)) ** 2).mean(axis=(1, 2, 3))
    psnr_db = 10.0 * np.log10(255.0**2 / error)
    assert psnr_db.min() >= budgets.QUANTISE_GATE_DB
    assert mixed.worst_psnr_db == pytest.approx(psnr_db.min(), abs=budgets.QUANTISE_PSNR_ERROR_DB)
    assert mixed.median_psnr_db == pytest.approx(np.median(psnr_db), abs=budgets.QUANTISE_PSNR_ERROR_DB)


def test_kept_layers_stay_in_32_bits_and_the_others_do_not(mixed: Quantised) -> None:
    nodes = {node.get_friendly_name(): node for node in mixed.model.get_ops() if node.get_type_name() in WEIGHTED}
    assert set(nodes) == set(LAYERS)
    assert mixed.kept
    assert set(mixed.kept) < set(LAYERS)
    for layer, node in nodes.items():
        assert reads_rounded(node) == (layer not in mixed.kept), layer
        assert weights_type(node) == ("f32" if layer in mixed.kept else "i8"), layer


def in_8_bits(model: ov.CompiledModel) -> list[str]:
    """Kinds of the convolutions that run in 8 bits."""
    run = [
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in (node.get_rt_info() for node in model.get_runtime_model().get_ops())
    ]
    return [kind for kind, precision in run if precision in ("u8", "i8") and kind.endswith("onvolution")]


def test_the_processor_runs_8_bits(mixed: Quantised) -> None:
    found = in_8_bits(compiled(mixed.model))
    assert len(found) == len(LAYERS) - len(mixed.kept)
    assert "Deconvolution" in found


def test_a_processor_that_would_overflow_works_them_out_in_32(
    mixed: Quantised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wav2lip_network, "multiplies_bytes", lambda: False)
    assert in_8_bits(compiled(mixed.model, **hints_for_bytes())) == []
    assert hints_for_bytes("GPU") == {}


def test_a_gate_out_of_reach_is_an_error_that_says_what_was_reached(parts: Split) -> None:
    with pytest.raises(QuantiseError, match=r"reaches \d\d\.\d dB, 99 dB are wanted"):
        quantise(parts.face, parts.generator, FEW, FEW, 99.0)


def test_another_network_is_an_error(parts: Split) -> None:
    with pytest.raises(QuantiseError, match="not the generator"):
        quantise(parts.face, parts.face, FEW, FEW)


@pytest.mark.parametrize("residuals", ["added", "folded"])
def test_equal_channels_draw_the_same(plain: ov.Model, residuals: Any) -> None:
    parts = split(plain, residuals)
    named, _ = module._named(parts.generator)
    windows = module._Windows(compiled(parts.face), FEW)
    equal = module._equalised(named, windows)
    difference = module._draw(equal, windows, windows.batches()) - module._draw(named, windows, windows.batches())
    assert np.abs(difference).max() <= budgets.QUANTISE_EQUAL_DIFFERENCE
    before, after = (
        np.mean([peak.min() for peak in module._peaks(model, windows).values()]) for model in (named, equal)
    )
    assert after > budgets.QUANTISE_LEVELLED * before


def test_samples_are_those_of_their_seed() -> None:
    again, other = samples(32, seed=0), samples(32, seed=2)
    assert CALIBRATION.crops.shape == (32, 96, 96, 3)
    assert CALIBRATION.crops.dtype == np.uint8
    assert CALIBRATION.mels.shape == (32, 80, 16)
    assert CALIBRATION.mels.dtype == np.float32
    assert np.abs(CALIBRATION.mels).max() <= 4.0
    np.testing.assert_array_equal(again.crops, CALIBRATION.crops)
    np.testing.assert_array_equal(again.mels, CALIBRATION.mels)
    assert (other.crops != CALIBRATION.crops).any()


def test_what_is_held_out_comes_from_other_blocks(tmp_path: Path) -> None:
    # Two seconds of a low tone, two of a high one, and so on.
    seconds = np.arange(16_000 * 8) / 16_000
    low = (seconds // 2).astype(int) % 2 == 0
    tone = 0.5 * np.sin(2 * np.pi * np.where(low, 300.0, 4000.0) * seconds)
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    # The demo speech has the other windows; a tone has all its strength in a few bands.
    for held_out, own, others in ((False, slice(0, 12), slice(50, 80)), (True, slice(50, 80), slice(0, 12))):
        drawn_ = samples(60, seed=3, voices=[tmp_path], held_out=held_out)
        strength = drawn_.mels.mean(axis=2)
        pure = [band for band in strength if np.sort(band)[-12:].mean() - np.median(band) > 2.5]
        assert any(band[own].max() > 0 for band in pure)
        assert not any(band[others].max() > 0 and band[own].max() < -1 for band in pure)


def test_own_photos_join_and_unusable_files_are_named(tmp_path: Path) -> None:
    if not (ROOT / "models/face/face_landmark.tflite").is_file():
        pytest.skip("no face models; run scripts/fetch_face_models")
    (tmp_path / "one.png").write_bytes(DEMO_FACE.read_bytes())
    (tmp_path / "notes.txt").write_text("no photo")
    assert [text.split(":")[0] for text in samples(2, 0, faces=[tmp_path]).left_out] == ["notes.txt"]
    (tmp_path / "one.png").unlink()
    with pytest.raises(CalibrationError, match=r"no face could be used.*notes\.txt"):
        samples(2, 0, faces=[tmp_path])


def test_the_demo_box_is_what_the_face_finder_says() -> None:
    from services.face_prep.face import FaceMaker

    if not (ROOT / "models/face/face_landmark.tflite").is_file():
        pytest.skip("no face models; run scripts/fetch_face_models")
    found = FaceMaker(ROOT / "models/face").make("demo", DEMO_FACE.read_bytes()).box
    np.testing.assert_allclose(found, DEMO_BOX, atol=budgets.DEMO_BOX_PX)


def test_unusable_recordings_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is not there"):
        samples(2, 0, voices=[tmp_path / "none.wav"])
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(8000), 16_000)
    with pytest.raises(CalibrationError, match=r"(?s)none of the recordings.*short\.wav: shorter.*text\.wav"):
        samples(2, 0, voices=[tmp_path])
