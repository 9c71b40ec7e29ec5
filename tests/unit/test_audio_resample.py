"""Streaming resampling: the right length, the right place, the right sound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from shared.resample import ClockLine, StreamResampler
from tests.budgets import (
    RESAMPLER_ALIAS_DB,
    RESAMPLER_LAG_MS,
    RESAMPLER_PLACE_SAMPLES,
    RESAMPLER_SNR_DB,
    RESAMPLER_STEERED_SPUR_DB,
)

RATES = (16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000)
Sound = npt.NDArray[np.float32]


def feed(resampler: StreamResampler, sound: Sound, block: int) -> Sound:
    return np.concatenate([resampler.process(sound[i : i + block]) for i in range(0, len(sound), block)])


def tone(hz: float, rate_hz: int, seconds: float) -> Sound:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", RATES)
def test_output_keeps_up_with_the_input_and_flush_completes_it(rate_hz: int) -> None:
    resampler = StreamResampler(rate_hz)
    block = rate_hz // 100
    made = 0
    for i in range(300):
        made += len(resampler.process(np.zeros(block, np.float32)))
        lag_ms = (i + 1) * block * 1000 / rate_hz - made / 16
        if i > 10:
            assert -0.1 <= lag_ms <= RESAMPLER_LAG_MS
    made += len(resampler.flush())
    assert made == round(300 * block * 16_000 / rate_hz)


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("block", [1 / 100, 1 / 37])
def test_an_impulse_comes_out_in_its_place(rate_hz: int, block: float) -> None:
    sound = np.zeros(rate_hz * 2, np.float32)
    sound[rate_hz + 7] = 1.0
    out = feed(StreamResampler(rate_hz), sound, int(rate_hz * block))
    assert abs(int(np.argmax(np.abs(out))) - (rate_hz + 7) * 16_000 / rate_hz) <= RESAMPLER_PLACE_SAMPLES


@pytest.mark.parametrize("rate_hz", RATES[1:])
@pytest.mark.parametrize("hz", [200.0, 3_000.0, 7_000.0])
def test_a_tone_stays_clean(rate_hz: int, hz: float) -> None:
    out = feed(StreamResampler(rate_hz), tone(hz, rate_hz, 1.5), rate_hz // 100)[4_000:20_000]
    turn = 2 * np.pi * hz * np.arange(len(out)) / 16_000
    basis = np.stack((np.sin(turn), np.cos(turn)), axis=1)
    fit = basis @ np.linalg.lstsq(basis, out, rcond=None)[0]
    assert 20 * np.log10(np.std(fit) / np.std(out - fit)) >= RESAMPLER_SNR_DB
    assert np.std(fit) == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
@pytest.mark.parametrize("hz", [9_500.0, 15_000.0])
def test_what_is_above_8_khz_does_not_fold_back(rate_hz: int, hz: float) -> None:
    out = feed(StreamResampler(rate_hz), tone(hz, rate_hz, 1.0), rate_hz // 100)[4_000:12_000]
    assert 20 * np.log10(np.std(out) / (0.5 / np.sqrt(2))) <= RESAMPLER_ALIAS_DB


def test_steering_changes_the_length_and_makes_no_click() -> None:
    resampler = StreamResampler(44_100)
    pieces = []
    sound = tone(1_000.0, 44_100, 6.0)
    for i, start in enumerate(range(0, 441 * 600, 441)):
        if i in (200, 400):
            resampler.steer(0.0005 if i == 200 else -0.0005)
        pieces.append(resampler.process(sound[start : start + 441]))
    out = np.concatenate(pieces)
    assert resampler.expected == pytest.approx(600 * 160, abs=0.1)
    assert resampler.produced == len(out)
    around = out[31_000:33_000].astype(np.float64) * np.blackman(2_000)
    spectrum = np.abs(np.fft.rfft(around))
    peak = int(spectrum.argmax())
    spectrum_rest = np.delete(spectrum, slice(peak - 12, peak + 13))
    assert 20 * np.log10(spectrum_rest.max() / spectrum[peak]) <= RESAMPLER_STEERED_SPUR_DB


def test_an_empty_block_gives_nothing() -> None:
    assert len(StreamResampler(48_000).process(np.zeros(0, np.float32))) == 0


@pytest.mark.parametrize("rate_hz", [0, -1, 100, 1e9, float("nan")])
def test_an_impossible_rate_is_refused(rate_hz: float) -> None:
    with pytest.raises(ValueError, match="cannot resample"):
        StreamResampler(rate_hz)


def test_the_clock_line_goes_by_the_least_lateness_of_a_second() -> None:
    line = ClockLine()
    second = 1_000_000_000
    assert line.observe(0, 50_000_000) is None
    assert line.observe(second // 2, 3_000_000) is None
    assert line.observe(second, 40_000_000) == pytest.approx(0.0001, rel=0.01)
    assert line.late_ns == 3_000_000
