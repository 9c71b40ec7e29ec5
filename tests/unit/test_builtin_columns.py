"""Columns that were heard before: the same as the whole network, whatever came before."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset8 as ops

from services.inference.builtin.columns import MOST_KEPT, ColumnNetwork
from services.inference.builtin.engine import MODELS
from tests import budgets

BANDS, COLUMNS = 80, 95
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
Floats = np.ndarray


@pytest.fixture(scope="module")
def core() -> ov.Core:
    return ov.Core()


@pytest.fixture(scope="module")
def whole(core: ov.Core) -> ov.CompiledModel:
    return core.compile_model(core.read_model(MODELS / "speech.xml"), "CPU", CONFIG)


@pytest.fixture
def network(core: ov.Core) -> ColumnNetwork:
    return ColumnNetwork(core, core.read_model(MODELS / "speech.xml"), CONFIG)


def sound(columns: int, seed: int = 0) -> Floats:
    """Mel frames that change slowly from band to band and from frame to frame."""
    noise = np.random.default_rng(seed).normal(size=(BANDS, columns + 8)).astype(np.float32)
    smooth = np.stack([np.roll(noise, k, axis=1) for k in range(8)]).sum(axis=0) / 8**0.5
    return np.asarray(np.clip(2 * smooth[:, 8:] - 1, -4, 4), np.float32)


def windows(frames: int, seed: int = 0) -> list[Floats]:
    mel = sound(COLUMNS + 80 * frames // 25, seed)
    return [np.ascontiguousarray(mel[:, at : at + COLUMNS]) for at in (80 * k // 25 for k in range(frames))]


def same(network: ColumnNetwork, whole: ov.CompiledModel, window: Floats, session: str = "default") -> bool:
    told, wanted = network.hear(window, session), whole({0: window[None]})[0]
    return np.allclose(told, wanted, rtol=0, atol=budgets.COLUMNS_ERROR)


def test_windows_that_go_on_say_what_the_whole_network_says(network: ColumnNetwork, whole: ov.CompiledModel) -> None:
    assert all(same(network, whole, window) for window in windows(40))


def test_only_new_columns_are_heard(network: ColumnNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = windows(20)
    network.hear(first, "default")
    monkeypatch.setattr(network, "_whole", None)
    for window in rest:
        network.hear(window, "default")


def test_a_window_that_does_not_go_on_is_heard_whole(network: ColumnNetwork, whole: ov.CompiledModel) -> None:
    one, other = windows(6), windows(6, seed=1)
    louder = [window + np.float32(0.25) for window in one]
    late = one[3].copy()
    late[5, 40] += np.float32(0.5)
    for window in (one[0], one[1], louder[2], one[3], other[4], one[4], one[4], one[2], late, one[4], one[5]):
        assert same(network, whole, window)


def test_sessions_do_not_mix(network: ColumnNetwork, whole: ov.CompiledModel) -> None:
    crowd = [windows(4, seed) for seed in range(MOST_KEPT + 2)]
    for frame in range(4):
        for number, each in enumerate(crowd):
            if number < 3 or frame != 2:
                assert same(network, whole, each[frame], f"session{number}")


def test_after_a_failure_the_next_window_is_heard_whole(
    network: ColumnNetwork, whole: ov.CompiledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Floats:
        raise RuntimeError("no memory")

    first, second, *rest = windows(4)
    assert same(network, whole, first)
    with monkeypatch.context() as broken:
        broken.setattr(network._new, "run", fails)
        with pytest.raises(RuntimeError):
            network.hear(second, "default")
    assert all(same(network, whole, window) for window in rest)


def test_a_network_without_columns_to_keep_is_run_whole(core: ov.Core) -> None:
    mel = ops.parameter(ov.PartialShape([-1, BANDS, COLUMNS]), np.float32)
    model = ov.Model([ops.reduce_mean(mel, ops.constant(np.array([2])))], [mel])
    window = sound(COLUMNS)
    said = ColumnNetwork(core, model, CONFIG).hear(window, "default")
    np.testing.assert_allclose(said, window.mean(axis=1)[None], atol=budgets.COLUMNS_ERROR)


@pytest.mark.parametrize(
    ("padding", "spaces", "streams"), [(0, (1, 2, 1), True), (0, (1, 2, 2), False), (1, (1, 2, 1), False)]
)
def test_a_network_of_another_build_says_the_same(
    core: ov.Core, padding: int, spaces: tuple[int, ...], streams: bool
) -> None:
    """Layers over time on the mel itself; one that reads over the ends or leaves out the newest column is run whole."""
    chance = np.random.default_rng(3)
    mel = ops.parameter(ov.PartialShape([-1, BANDS, COLUMNS]), np.float32)
    values: ov.Node = mel
    for stride in spaces:
        weights = ops.constant(chance.normal(0, 0.06, (BANDS, BANDS, 3)).astype(np.float32))
        values = ops.relu(ops.convolution(values, weights, [stride], [padding], [padding], [1]))
    said = ops.gather(values, ops.constant(np.array(-1)), ops.constant(2))
    model = ov.Model([said], [mel])
    whole = core.compile_model(model, "CPU", CONFIG)
    network = ColumnNetwork(core, model.clone(), CONFIG)
    assert (network._new is not None) == streams
    assert all(same(network, whole, window) for window in windows(12))
