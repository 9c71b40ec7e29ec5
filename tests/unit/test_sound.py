"""The sound of a session: in step with the picture, without clicks, silent at once when it is cut, bounded."""

from __future__ import annotations

import select
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from services.streamer.mjpeg import HubClosedError, TooManyViewersError
from services.streamer.sound import FADE, TAP_PIECES, TAP_SAMPLES, SoundHub
from shared.resample import REACH, interpolate
from tests.budgets import (
    INTERPOLATE_SNR_DB,
    SOUND_CLICK,
    SOUND_DRIFT_SKEW_S,
    SOUND_MEMORY_BYTES,
    SOUND_RETURN_S,
    SOUND_SETTLED_S,
    SOUND_SPUR_DB,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from services.streamer.sound import SoundReader

    Pcm16 = npt.NDArray[np.int16]

LOUD = 10_000
PIECE = 320
SLOW_HZ = 50
"""one turn a piece: from its phase one sees where a piece was cut out, to within half a turn (10 ms)"""


def tone(first: int, samples: int, hz: float = SLOW_HZ) -> Pcm16:
    """Sound in which each sample is what its media time says."""
    wave = LOUD * np.sin(2 * np.pi * hz * np.arange(first, first + samples, dtype=np.float64) / 16_000)
    pcm: Pcm16 = np.rint(wave).astype(np.int16)
    return pcm


def place_of(pcm: Pcm16, about: float) -> float:
    """The media time at which a piece of `tone` begins, which must lie within 10 ms of `about`."""
    turn = 2 * np.pi * np.arange(len(pcm)) / PIECE
    phase = np.arctan2(pcm @ np.cos(turn), pcm @ np.sin(turn)) / (2 * np.pi) * PIECE
    return float(about + (phase - about + PIECE / 2) % PIECE - PIECE / 2)


def biggest_step(sound: Pcm16) -> float:
    """Between two samples, as a share of the loudness; a tone of 50 Hz alone makes steps of 0.02."""
    return float(np.abs(np.diff(sound.astype(np.int32))).max()) / LOUD


class Rig:
    """A hub whose loop ticks and whose sound comes by a clock that the test moves."""

    def __init__(self, hz: float = SLOW_HZ, ahead: int = 3_200) -> None:
        self.hub = SoundHub()
        self.now_s = 1_000.0
        self.epoch = 7
        self.base = 80.0
        """media time due at the start; pieces begin and end where the tone is loudest, so that a cut must fade"""
        self.rate = 16_000.0
        self.ticks = 0
        self.hz = hz
        self.ahead = ahead
        self.end = 80
        self.comes = True
        self.runs = True
        self.gap: tuple[int, int] = (0, 0)

    @property
    def due(self) -> float:
        """The media time whose picture is shown now."""
        return self.base + (self.now_s - 1_000.0) * self.rate

    def turn(self, reader: SoundReader) -> Pcm16:
        """20 ms: sound comes, each second time the screen ticks, the listener hears."""
        while self.comes and self.end < self.due + self.ahead:
            if not self.gap[0] <= self.end < self.gap[1]:
                self.hub.heard(self.epoch, self.end, tone(self.end, PIECE, self.hz))
            self.end += PIECE
        if self.ticks % 2 == 0:
            self.hub.at(self.now_s, self.epoch, self.due if self.runs else None)
        self.ticks += 1
        pcm = reader.read(PIECE, self.now_s)
        self.now_s += 0.02
        return pcm

    def run(self, reader: SoundReader, seconds: float) -> Pcm16:
        return np.concatenate([self.turn(reader) for _ in range(round(seconds * 50))])


class TestStep:
    @pytest.mark.parametrize("ppm", [-200, 0, 200])
    def test_five_minutes_of_a_drifting_clock(self, ppm: int) -> None:
        rig = Rig()
        rig.rate = 16_000 * (1 + ppm * 1e-6)
        off_s, biggest, last = 0.0, 0.0, np.zeros(0, np.int16)
        with rig.hub.reader() as reader:
            rig.run(reader, 0.1)
            for _ in range(15_000):
                due = rig.due
                pcm = rig.turn(reader)
                off_s = max(off_s, abs(place_of(pcm, due) - due) / 16_000)
                biggest = max(biggest, biggest_step(np.concatenate((last, pcm))))
                last = pcm[-1:]
            assert reader.jumps == 0
        assert off_s <= SOUND_DRIFT_SKEW_S
        assert biggest <= SOUND_CLICK
        assert "sound.missing_samples" not in rig.hub.drain()

    @pytest.mark.parametrize("ppm", [-200, 200])
    def test_a_tone_stays_pure_while_the_clock_drifts(self, ppm: int) -> None:
        rig = Rig(hz=1_000.0)
        rig.rate = 16_000 * (1 + ppm * 1e-6)
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
            sound = rig.run(reader, 20.0)
        for second in np.split(sound, 20):
            spectrum = np.abs(np.fft.rfft(second * np.blackman(len(second))))
            peak = int(spectrum.argmax())
            assert abs(peak - 1_000) <= 1
            rest = np.delete(spectrum, slice(peak - 6, peak + 7))
            assert 20 * np.log10(rest.max() / spectrum[peak]) <= SOUND_SPUR_DB

    @pytest.mark.parametrize("change_s", [0.008, -0.008])
    def test_a_delay_that_changes_each_frame_is_followed_without_a_jump(self, change_s: float) -> None:
        rig = Rig(ahead=6_400)
        rig.base = 3_040.0
        heard = []
        with rig.hub.reader() as reader:
            heard.append(rig.run(reader, 1.0))
            for _ in range(12):
                rig.base -= change_s * 16_000
                heard.append(rig.run(reader, 0.04))
            heard.append(rig.run(reader, SOUND_RETURN_S))
            due = rig.due
            assert abs(place_of(rig.turn(reader), due) - due) / 16_000 <= SOUND_SETTLED_S
            assert reader.skew_s is not None
            assert abs(reader.skew_s) <= SOUND_SETTLED_S
            assert reader.jumps == 0
        assert biggest_step(np.concatenate(heard)) <= SOUND_CLICK

    def test_what_is_far_off_jumps_once_and_fades(self) -> None:
        rig = Rig(ahead=12_000)
        with rig.hub.reader() as reader:
            before = rig.run(reader, 1.0)
            rig.base += 0.403 * 16_000
            rig.ticks = 0
            due = rig.due
            after = rig.turn(reader)
            assert reader.jumps == 1
            assert abs(place_of(rig.turn(reader), due + PIECE) - due - PIECE) <= 1.0
        assert biggest_step(np.concatenate((before, after))) <= SOUND_CLICK

    def test_where_it_is_quiet_it_jumps_at_once(self) -> None:
        rig = Rig(hz=0.0)
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
            rig.base -= 0.05 * 16_000
            rig.ticks = 0
            rig.turn(reader)
            assert reader.jumps == 1
            assert reader.skew_s == 0.0

    def test_a_late_call_that_tells_its_moment_moves_nothing(self) -> None:
        rig = Rig(ahead=6_400)
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
            due_s, due = rig.now_s, rig.due
            rig.now_s += 0.12
            rig.ticks = 0
            rig.hub.at(rig.now_s, rig.epoch, rig.due)
            for i in range(6):
                pcm = reader.read(PIECE, due_s + 0.02 * i)
                assert abs(place_of(pcm, due + PIECE * i) - due - PIECE * i) <= 1.0

    def test_a_listener_may_ask_to_hear_later(self) -> None:
        rig = Rig()
        with rig.hub.reader(0.1) as reader:
            rig.run(reader, 0.5)
            due = rig.due
            assert place_of(rig.turn(reader), due - 1_600) == pytest.approx(due - 1_600, abs=1.0)

    def test_skew_is_counted_for_the_metrics(self) -> None:
        rig = Rig()
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
            rig.base += 0.03 * 16_000
            rig.run(reader, 0.2)
            skew_s = rig.hub.stats().skew_s
            assert skew_s == reader.skew_s
            assert skew_s is not None
            assert skew_s < -0.02, "the sound is behind the picture"
        counted = rig.hub.drain()
        counts = {name: n for name, n in counted.items() if not name.endswith("sum")}
        assert sum(counts.values()) == 60
        assert counted["hist.sound_skew.3"] >= 9, "20 to 40 ms"
        assert rig.hub.drain() == {}


class TestCuts:
    @pytest.mark.parametrize("told", ["heard", "at"])
    def test_a_new_epoch_is_silence_within_one_read(self, told: str) -> None:
        rig = Rig()
        with rig.hub.reader() as reader:
            before = rig.run(reader, 1.0)
            if told == "heard":
                rig.hub.heard(8, 0, tone(0, PIECE))
            else:
                rig.hub.at(rig.now_s, 8, None)
            cut = reader.read(PIECE, rig.now_s)
            assert not cut[FADE:].any()
            assert biggest_step(np.concatenate((before[-PIECE:], cut))) <= SOUND_CLICK
            assert not rig.run(reader, 0.2).any(), "sound and ticks of the old epoch still come, and are nothing"
            assert reader.skew_s is None

    def test_the_new_epoch_is_heard_from_its_own_place(self) -> None:
        rig = Rig()
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
            rig.hub.heard(8, 0, tone(0, 6_400))
            rig.hub.at(rig.now_s, 8, 500.0)
            pcm = np.concatenate([reader.read(PIECE, rig.now_s + 0.02 * i) for i in range(3)])
            assert np.abs(pcm[PIECE:] - tone(500 + PIECE, 2 * PIECE).astype(int)).max() <= 2
            assert reader.jumps == 0, "a beginning is no jump"

    def test_a_stop_fades_and_a_start_goes_on(self) -> None:
        rig = Rig()
        with rig.hub.reader() as reader:
            heard = [rig.run(reader, 0.5)]
            rig.runs = False
            rig.ticks = 0
            heard.append(rig.run(reader, 0.2))
            assert not heard[-1][FADE:].any()
            rig.runs = True
            heard.append(rig.run(reader, 0.2))
            assert heard[-1][-PIECE:].any()
        assert biggest_step(np.concatenate(heard)) <= SOUND_CLICK

    def test_a_gap_is_silence_between_two_fades(self) -> None:
        rig = Rig()
        rig.gap = (16_080, 16_080 + 5 * PIECE)
        with rig.hub.reader() as reader:
            sound = rig.run(reader, 2.0)
        assert not sound[16_000 : 16_000 + 5 * PIECE].any()
        assert np.abs(sound[16_000 - 2 * FADE : 16_000 - FADE]).max() > 0
        assert np.abs(sound[16_000 + 5 * PIECE + FADE :][:PIECE]).max() > LOUD / 2
        assert biggest_step(sound) <= SOUND_CLICK
        assert rig.hub.drain()["sound.missing_samples"] == pytest.approx(5 * PIECE, abs=4)

    def test_sound_that_comes_too_late_is_silence_and_comes_back_in_its_place(self) -> None:
        rig = Rig(ahead=800)
        with rig.hub.reader() as reader:
            heard = [rig.run(reader, 1.0)]
            rig.comes = False
            heard.append(rig.run(reader, 0.2))
            rig.comes = True
            heard.append(rig.run(reader, 0.1))
            due = rig.due
            heard.append(rig.turn(reader))
            assert place_of(heard[-1], due) == pytest.approx(due, abs=1.0)
            assert not heard[1][-5 * PIECE :].any()
        assert biggest_step(np.concatenate(heard)) <= SOUND_CLICK

    def test_what_came_before_is_not_heard_twice(self) -> None:
        hub = SoundHub()
        with hub.tap() as tap:
            hub.heard(1, 0, tone(0, 640))
            hub.heard(1, 320, tone(320, 640))
            hub.heard(1, 0, tone(0, 320))
            hub.heard(0, 960, tone(960, 320))
            assert [(p.epoch, p.first_sample, len(p.pcm)) for p in tap.take()] == [(1, 0, 640), (1, 640, 320)]


class TestTap:
    def test_it_gives_every_piece_as_it_came_and_tells_a_selector(self) -> None:
        hub = SoundHub()
        with hub.tap() as tap:
            poll = select.poll()
            poll.register(tap, select.POLLIN)
            assert poll.poll(0) == []
            hub.heard(3, 100, tone(100, PIECE))
            assert len(poll.poll(0)) == 1
            (piece,) = tap.take()
            assert (piece.epoch, piece.first_sample) == (3, 100)
            assert np.array_equal(piece.pcm, tone(100, PIECE))
            assert tap.take() == []
            assert poll.poll(0) == []
        assert tap.fileno() == -1

    def test_a_new_player_begins_with_the_sound_of_the_picture(self) -> None:
        rig = Rig()
        with rig.hub.reader() as reader:
            rig.run(reader, 1.0)
        rig.hub.at(time.monotonic(), rig.epoch, 15_000.0)
        with rig.hub.tap() as tap:
            (piece,) = tap.take()
        assert 15_000 <= piece.first_sample < rig.end
        assert np.array_equal(piece.pcm, tone(piece.first_sample, rig.end - piece.first_sample))

    def test_a_new_epoch_drops_what_waits(self) -> None:
        hub = SoundHub()
        with hub.tap() as tap:
            hub.heard(1, 0, tone(0, PIECE))
            hub.at(0.0, 2, None)
            assert tap.take() == []
            hub.heard(1, PIECE, tone(PIECE, PIECE))
            hub.heard(2, 0, tone(0, PIECE))
            assert [p.epoch for p in tap.take()] == [2]

    @pytest.mark.parametrize("samples", [PIECE, 16])
    def test_a_player_that_takes_nothing_is_bounded_and_counted(self, samples: int) -> None:
        hub = SoundHub()
        pushed = 2 * max(TAP_SAMPLES, TAP_PIECES * samples)
        with hub.tap() as tap:
            for first in range(0, pushed, samples):
                hub.heard(1, first, tone(first, samples))
            pieces = tap.take()
            kept = sum(len(p.pcm) for p in pieces)
            assert kept == min(TAP_SAMPLES, TAP_PIECES * samples)
            assert pieces[-1].first_sample == pushed - samples, "the newest are kept"
            assert tap.dropped_samples == pushed - kept
        assert hub.drain()["sound.tap_dropped_samples"] == pushed - kept


class TestHub:
    def test_memory_is_bounded_whatever_comes(self) -> None:
        hub = SoundHub()
        piece, hour = tone(0, PIECE), np.zeros(3_600 * 16_000, np.int16)
        hub.heard(1, 0, piece)
        tracemalloc.start()
        try:
            with hub.reader() as reader, hub.tap():
                for i in range(20_000):
                    hub.heard(1, 2 * i * PIECE, piece)  # a gap behind each piece
                    if i % 100 == 0:
                        hub.at(i * 0.04, 1, 2 * i * PIECE - 3_200)
                        reader.read(PIECE, i * 0.04)
                hub.heard(1, 10_000_000_000, hour)
            assert tracemalloc.get_traced_memory()[1] <= SOUND_MEMORY_BYTES
        finally:
            tracemalloc.stop()
        assert hub.stats().kept_s <= 30.0

    @pytest.mark.parametrize("hair", [-1e-12, 0.0, 1e-12])
    def test_before_the_first_sample_it_is_silence(self, hair: float) -> None:
        for place in (0, -PIECE, 1 - PIECE, -PIECE - FADE, 1 - PIECE - FADE):
            hub = SoundHub()
            hub.heard(1, 0, tone(0, 3 * PIECE))
            hub.at(0.0, 1, place + hair)
            with hub.reader() as reader:
                pcm = np.concatenate([reader.read(PIECE, 0.02 * i) for i in range(2)])
            wanted = tone(place, 2 * PIECE) * (np.arange(place, place + 2 * PIECE) >= 0)
            assert np.abs(pcm - wanted)[max(0, -place) + FADE :].max(initial=0) <= 2

    def test_listeners_are_bounded_and_freed(self) -> None:
        hub = SoundHub(1)
        listen: Callable[[], AbstractContextManager[object]]
        for listen in (hub.reader, hub.tap):
            with listen(), pytest.raises(TooManyViewersError, match="1 listeners hear"), listen():
                pass
        assert hub.listeners == 0

    def test_a_closed_hub_gives_silence_and_lets_nobody_in(self) -> None:
        rig = Rig()
        with rig.hub.reader() as reader, rig.hub.tap() as tap:
            rig.run(reader, 0.5)
            rig.hub.close()
            assert reader.closed
            assert not reader.read(PIECE, rig.now_s)[FADE:].any()
            assert not rig.run(reader, 0.1).any(), "what still comes is nothing"
            assert tap.take() == []
        with pytest.raises(HubClosedError), rig.hub.reader():
            pass
        with pytest.raises(HubClosedError), rig.hub.tap():
            pass

    def test_close_wakes_who_waits(self) -> None:
        hub = SoundHub()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(hub.wait_closed, 60.0)
            hub.close()
            assert waiting.result(10)
        assert not SoundHub().wait_closed(-1.0)

    def test_many_threads_hear_the_same(self) -> None:
        hub = SoundHub()
        start = threading.Barrier(7)

        def listen(_: int) -> int:
            good = 0
            with hub.reader() as reader:
                start.wait(10)
                for i in range(300):
                    pcm = reader.read(PIECE, i * 0.02)
                    good += len(pcm) == PIECE and biggest_step(pcm) <= SOUND_CLICK
            return good

        def play(_: int) -> int:
            samples = 0
            with hub.tap() as tap:
                start.wait(10)
                while samples < 300 * PIECE:
                    select.select([tap], [], [], 10)
                    samples += sum(len(p.pcm) for p in tap.take())
            return samples

        with ThreadPoolExecutor(6) as pool:
            readers = [pool.submit(listen, i) for i in range(4)]
            players = [pool.submit(play, i) for i in range(2)]
            start.wait(10)
            for i in range(300):
                hub.heard(1, i * PIECE, tone(i * PIECE, PIECE))
                hub.at(i * 0.02, 1, i * PIECE - 3_200)
            assert [job.result(30) for job in readers] == [300] * 4
            assert [job.result(30) for job in players] == [300 * PIECE] * 2
        assert hub.listeners == 0


@pytest.mark.parametrize("hz", [200.0, 1_000.0, 3_000.0, 7_000.0])
def test_values_between_samples_are_those_of_the_sound(hz: float) -> None:
    sound = np.sin(2 * np.pi * hz * np.arange(4_000) / 16_000).astype(np.float32)
    places = REACH + 0.3 + np.arange(3_000, dtype=np.float64) * 1.02
    wanted = np.sin(2 * np.pi * hz * places / 16_000)
    error = interpolate(sound, places) - wanted
    assert 20 * np.log10(np.std(wanted) / np.std(error)) >= INTERPOLATE_SNR_DB[hz]
