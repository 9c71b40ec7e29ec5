"""scripts/benchmark: everybody runs in each round, and the figures are those of the rounds. No speed is asserted."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from scripts._benchmark.clock import Turn, race
from scripts._benchmark.contenders import PLAIN_NAME, PYTORCH, TITLES, Entrant, able
from scripts._benchmark.live import LiveFigures, Session
from scripts._benchmark.peak import Way, macs
from scripts._benchmark.report import PEAK_GROUP, session_table, table_of
from tests import budgets
from tests.rig.stack import ROOT

Groups = dict[int, list[Turn]]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script itself, where no converted model lies."""
    return subprocess.run(
        [sys.executable, "-W", "error", "scripts/benchmark", "--out", str(folder / "out"), *words],
        cwd=ROOT,
        env=os.environ | {"MOUTHPIECE_MODELS_DIR": str(folder / "models")},
        capture_output=True,
        text=True,
        timeout=budgets.BENCHMARK_DEADLINE_S,
        check=False,
    )


# ---- counting


def test_macs_of_a_convolution_and_of_a_transposed_one() -> None:
    shown = ops.parameter([-1, 3, 10, 12], np.float32)
    weights = ops.constant(np.zeros((5, 3, 3, 3), np.float32))
    small = ops.convolution(shown, weights, [2, 2], [1, 1], [1, 1], [1, 1])  # 5 x 6
    back = ops.constant(np.zeros((5, 7, 3, 3), np.float32))
    large = ops.convolution_backprop_data(
        small, back, [2, 2], pads_begin=[1, 1], pads_end=[1, 1], output_padding=[1, 1]
    )
    model = ov.Model([ops.result(ops.relu(large))], [shown], "two")
    assert macs(model) == (5 * 6) * (5 * 3 * 9) + (5 * 6) * (5 * 7 * 9)


def test_macs_refuses_what_has_no_size() -> None:
    shown = ops.parameter([1, 3, -1, 12], np.float32)
    weights = ops.constant(np.zeros((5, 3, 3, 3), np.float32))
    found = ops.convolution(shown, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="not fixed"):
        macs(ov.Model([ops.result(found)], [shown], "open"))


# ---- the race


def noted(log: list[tuple[str, int]], groups: tuple[int, ...] = (1, 2)) -> Groups:
    """Three turns a group that write down who ran."""
    return {
        group: [Turn(name, functools.partial(log.append, (name, group)), 1, 1) for name in "abc"] for group in groups
    }


def test_each_round_runs_everybody_in_another_order_that_the_seed_gives() -> None:
    log: list[tuple[str, int]] = []
    again: list[tuple[str, int]] = []
    found = race(noted(log), 8, 5, lambda _: None)
    race(noted(again), 8, 5, lambda _: None)
    assert log == again
    calls = log[::2]  # the first of two calls in a row is not timed
    assert calls == log[1::2]
    rounds = [calls[at : at + 6] for at in range(0, len(calls), 6)]
    assert all(sorted(each) == sorted((name, group) for name in "abc" for group in (1, 2)) for each in rounds)
    assert all(each[0][1] == each[1][1] == each[2][1] for each in rounds), "a group stays together"
    assert len({tuple(each) for each in rounds}) > 1
    assert all(set(times) == set(range(8)) for times in found.seconds.values())
    assert not found.interrupted


def test_who_fails_is_named_and_the_others_go_on() -> None:
    log: list[tuple[str, int]] = []
    groups = noted(log, (1,))

    def fail() -> object:
        raise RuntimeError("out of luck\nand more")

    groups[1].append(Turn("d", fail, 1, 1))
    found = race(groups, 3, 0, lambda _: None)
    assert found.failures == {"d": "RuntimeError: out of luck"}
    assert {name for name, _ in found.seconds} == set("abc")
    assert len(found.of("a", 1)) == 3


def test_ctrl_c_keeps_what_was_timed() -> None:
    left: Iterator[int] = iter(range(3))

    def call() -> object:
        try:
            return next(left)
        except StopIteration:
            raise KeyboardInterrupt from None

    found = race({1: [Turn("a", call, 1, 1)]}, 9, 0, lambda _: None)
    assert found.interrupted
    assert list(found.of("a", 1)) == [0]


def test_ratios_are_taken_within_a_round_and_the_peak_is_that_of_the_best_way() -> None:
    turns = [Turn(name, lambda: None, 1, 1) for name in (PYTORCH, PLAIN_NAME, "split_f32")]
    found = race({1: turns}, 1, 0, lambda _: None)
    # The machine is twice as slow in the second round, and in the third everything but PyTorch was interrupted.
    found.seconds = {
        (PYTORCH, 1): {0: 0.4, 1: 0.8, 2: 0.4},
        (PLAIN_NAME, 1): {0: 0.2, 1: 0.4},
        ("split_f32", 1): {0: 0.1, 1: 0.2},
        ("good", PEAK_GROUP): {0: 0.5, 1: 1.0},
        ("bad", PEAK_GROUP): {0: 0.9, 1: 1.8},
    }
    ways = {name: Way(name, "f32", 1e9, "", lambda: None) for name in ("good", "bad")}
    entrants = [Entrant(turn.name, "f32", 10**8, None) for turn in turns]
    table = table_of(1, 3, entrants, ways, found, [1])
    cell = table.cells["split_f32"][1]
    assert cell.to_openvino is not None
    assert cell.to_pytorch is not None
    assert cell.peak_share is not None
    assert cell.to_openvino.median == cell.to_openvino.q1 == cell.to_openvino.q3 == pytest.approx(2.0)
    assert cell.to_pytorch.median == cell.to_pytorch.q1 == pytest.approx(4.0)
    assert cell.ms.median == pytest.approx(150.0)
    assert table.peaks["f32"].way == "good"
    assert table.peaks["f32"].gops.median == pytest.approx(1.5)
    # 2 x 10^8 operations in 0.1 s are 2 x 10^9 a second, the peak of that round as well.
    assert cell.peak_share.median == pytest.approx(1.0)


# ---- the script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quick run on random weights: its files and what it printed."""
    place = tmp_path_factory.mktemp("benchmark")
    done = run(place, "--quick", "--batches", "1", "2", "--threads", "2", "1")
    assert done.returncode == 0, done.stderr
    return place / "out", done.stdout


def numbers(value: Any) -> Iterator[float]:
    """All numbers anywhere in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_every_contender_stands_in_the_tables_and_in_the_json(folder: tuple[Path, str]) -> None:
    place, printed = folder
    told = json.loads((place / "benchmark.json").read_text())
    assert (place / "benchmark.md").read_text() == printed
    lacking = {
        f"{kind}_{name}" for kind in ("split", "video") for name in ("bf16", "f16", "int8") if name not in able()
    }
    assert [table["threads"] for table in told["tables"]] == [2, 1]
    for table in told["tables"]:
        assert set(table["left_out"]) == lacking
        assert set(table["cells"]) == set(TITLES) - lacking
        assert set(table["peaks"]) == set(able())
        for cells in table["cells"].values():
            assert set(cells) == {"1", "2"}
            figures = list(numbers(cells))
            assert figures
            assert all(math.isfinite(each) and each > 0.0 for each in figures)
            assert all(
                len(cell["rounds_ms"]) == 2 and cell["to_openvino"] and cell["to_pytorch"] for cell in cells.values()
            )
        assert all(math.isfinite(each) and each > 0.0 for each in numbers(table["peaks"]))
    for name in set(TITLES) - lacking:
        assert printed.count(f"| {TITLES[name]} |") == 4, f"{name}: times and ratios, for both numbers of threads"
    assert "random weights" in printed
    assert told["machine"]["processor"]
    assert {"openvino", "torch", "onnxruntime"} <= set(told["machine"]["libraries"])
    assert told["meanwhile"]["seconds"] > 0.0


def test_the_work_is_counted_and_the_pictures_are_compared(folder: tuple[Path, str]) -> None:
    told = json.loads((folder[0] / "benchmark.json").read_text())
    millions = {name: count / 1e6 for name, count in told["macs"].items()}
    assert millions[PLAIN_NAME] == pytest.approx(budgets.BENCHMARK_PLAIN_MMACS, abs=1.0)
    # Directly or with fewer products, whichever is faster here.
    ways = (budgets.BENCHMARK_GENERATOR_MMACS, *budgets.BENCHMARK_FEWER_MMACS)
    assert any(millions["split_f32"] == pytest.approx(way, abs=10.0) for way in ways)
    assert millions["video_f32"] == pytest.approx(millions["split_f32"] + millions["face"])
    for name in ("onnxruntime", PLAIN_NAME, "split_f32"):
        assert told["likeness"][name]["to"] == PYTORCH
        assert told["likeness"][name]["lower_half"]["max_difference"] < budgets.BENCHMARK_F32_DIFFERENCE


def test_the_plot_is_a_picture(folder: tuple[Path, str]) -> None:
    path = folder[0] / "benchmark.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    shown = cv2.imread(str(path))
    assert shown is not None
    assert shown.std() > 0.0
    assert {each.name for each in folder[0].iterdir()} == {f"benchmark.{end}" for end in ("md", "json", "png")}


@pytest.mark.parametrize("words", [("--model", "nowhere"), ("--checkpoint", "pyproject.toml"), ("--batches", "0")])
def test_wrong_input_is_told_and_nothing_written(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, "--quick", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("benchmark: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_session_costs_is_told_without_the_encoder():
    def look(streamer: float, encoder: float, rate_hz: float) -> LiveFigures:
        return LiveFigures(
            seconds=20.0, frames=500, frame_rate_hz=rate_hz, new_rate_hz=24.0, late=0, skipped=0, held=0,
            delay_median_ms=150, delay_p95_ms=160, picture_p95_ms=180,
            processor={"inference": 0.1, "streamer": streamer}, encoder=encoder,
            memory_mib={"inference": 100.0, "streamer": 60.0}, idle_share=0.5,
        )  # fmt: skip

    told = session_table(Session(512, (look(0.09, 0.02, 25.0), look(0.08, 0.02, 24.9), look(0.12, 0.01, 25.0))))
    rows = dict(line.strip("| ").split(" | ") for line in told.splitlines()[2:])
    assert rows["streamer"] == "9.0 (8.0-12.0)"
    assert rows["all services"] == "19.0 (18.0-22.0)"
    assert rows["the JPEG encoder's part of it"] == "2.0 (1.0-2.0)"
    assert rows["all services without the JPEG encoder"] == "17.0 (16.0-21.0)"
    assert "24.9 frames a second or more" in told
