"""Chunks that go out in pairs: nothing is lost, late, or joined that does not belong together."""

from __future__ import annotations

import numpy as np
import pytest

from services.audio_capture.chunks import CHUNK_SAMPLES, NS_PER_SAMPLE, Chunk
from services.audio_capture.pairs import PATIENCE_S, Pairs
from services.inference.builtin.drive import WINDOW
from services.inference.engine import MelWindow
from services.inference.wav2lip.network import MEL_FRAMES
from services.mel_features.mel import HOP, N_FFT
from services.mel_features.windows import Windows
from tests.budgets import PAIRS_ALONE, PAIRS_CHUNKS


def chunk(place: int, *, late_ns: int = 0, pushed: int = -1) -> Chunk:
    """A chunk whose samples are numbered."""
    end_ns = 10**9 + (place + CHUNK_SAMPLES) * NS_PER_SAMPLE + late_ns
    pcm = np.arange(place, place + CHUNK_SAMPLES).astype(np.int16)
    return Chunk(place, end_ns, pcm, pushed)


def given(pairs: Pairs, chunks: list[Chunk]) -> list[Chunk]:
    """All that goes out, and what is held at the end."""
    return [out for each in chunks for out in pairs.add(each, each.first_sample, 0.0)] + pairs.flush()


@pytest.mark.parametrize("begin", [0, CHUNK_SAMPLES, 37])
def test_all_sound_goes_out_in_order_and_mostly_in_pairs(begin: int) -> None:
    out = given(Pairs(), [chunk(begin + k * CHUNK_SAMPLES) for k in range(PAIRS_CHUNKS)])
    samples = np.arange(begin, begin + PAIRS_CHUNKS * CHUNK_SAMPLES)
    assert np.array_equal(np.concatenate([each.pcm for each in out]), samples)
    assert sum(len(each.pcm) == CHUNK_SAMPLES for each in out) <= PAIRS_ALONE
    for each in out:
        assert each.captured_ns == 10**9 + (each.first_sample + len(each.pcm)) * NS_PER_SAMPLE, "of its last sample"


@pytest.mark.parametrize(
    "window",
    [
        WINDOW,
        MelWindow(back=0, ahead=MEL_FRAMES, shift=-1),  # Wav2Lip as in its training
        MelWindow(back=0, ahead=MEL_FRAMES, shift=0),  # and as in its inference script
    ],
)
def test_no_picture_waits_for_the_second_of_a_pair(window: MelWindow) -> None:
    """The chunk that completes a mel window ends a message, for each frame."""
    pairs, windows, place = Pairs(), Windows(window), 0
    for frame in range(40, 80):
        windows.skip_to(frame)
        needed = (windows.reach - 1) * HOP + N_FFT // 2
        out: list[Chunk] = []
        while place < needed:
            out = pairs.add(chunk(place), place, 0.0)
            place += CHUNK_SAMPLES
        assert out
        assert out[-1].first_sample + len(out[-1].pcm) == place


def test_a_single_chunk_goes_when_its_time_is_over() -> None:
    pairs = Pairs()
    assert pairs.due_s == float("inf")
    assert pairs.may_wait(CHUNK_SAMPLES)
    assert not pairs.may_wait(0)
    late = chunk(CHUNK_SAMPLES)
    heard_s = late.captured_ns / 1e9
    assert pairs.add(late, CHUNK_SAMPLES, heard_s + PATIENCE_S / 2) == []
    assert pairs.due_s == heard_s + PATIENCE_S
    assert not pairs.may_wait(2 * CHUNK_SAMPLES)
    (single,) = pairs.flush()
    assert single.first_sample == CHUNK_SAMPLES
    assert pairs.due_s == float("inf")
    assert pairs.flush() == []


@pytest.mark.parametrize(
    "second",
    [
        chunk(3 * CHUNK_SAMPLES),
        chunk(2 * CHUNK_SAMPLES, late_ns=1_000_000),
        chunk(2 * CHUNK_SAMPLES, pushed=7),
    ],
)
def test_what_does_not_go_on_is_not_joined(second: Chunk) -> None:
    out = given(Pairs(), [chunk(CHUNK_SAMPLES), second])
    assert [len(each.pcm) for each in out] == [CHUNK_SAMPLES] * 2
    assert out[1] is second


def test_pushed_sound_is_counted_from_its_first_sample() -> None:
    out = given(
        Pairs(),
        [chunk(CHUNK_SAMPLES, pushed=900), chunk(2 * CHUNK_SAMPLES, pushed=900 + CHUNK_SAMPLES)],
    )
    assert [(len(each.pcm), each.pushed) for each in out] == [(2 * CHUNK_SAMPLES, 900)]
