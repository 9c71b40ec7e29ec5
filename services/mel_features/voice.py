"""The voice gate: when a voice is heard, as a gain for each moment.

Every 10 ms the power of a 20 ms Hann window is taken in five bands between 300 and 7000 Hz. Below lie direct current,
the hum of the mains and most of a fan; a voice always shows above 300 Hz, but in the closures of b, d and g, and there
the lips or the tongue shut the mouth. Each band has its own noise floor, found by minimum statistics (R. Martin, "Noise
power spectral density estimation based on optimal smoothing and minimum statistics", IEEE Trans. Speech Audio Process.
9(5), 2001): the least smoothed power of the last

- 0.8 s while the level hardly moves (`STEADY_RANGE_DB`) and nothing is periodic: a fan that was switched on is noise
  after a second;
- 3 s otherwise: connected speech and a held vowel stay above their floor. A hum is periodic too and takes that long.

A moment is voiced if the mean excess of the bands over their floors reaches `OPEN_DB` (`STAY_DB` once it is open), and
if it belongs to at least `RUN_NEEDED` such moments among `RUN_LENGTH` in a row: a click fills two or three.

The gain is then shaped around the voiced moments, knowing what comes after as far as sound is there: it is asked for
frames that wait for their look-ahead anyway. It opens before the voice (`LEAD_MS`), holds `HOLD_MS` after it and falls
to 0 within `FALL_MS` more; two stretches of voice no further apart than `BRIDGE_MS` are one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.mel_features.mel import SAMPLE_RATE_HZ, pcm_to_float

__all__ = ["VoiceGate"]

STEP: Final = 160
"""the grid of decisions, samples"""
STEP_MS: Final = 10.0
SPAN: Final = 2 * STEP
"""Hann window, samples"""
BAND_EDGES_HZ: Final = (300.0, 700.0, 1400.0, 2600.0, 4000.0, 7000.0)
BANDS: Final = len(BAND_EDGES_HZ) - 1

OPEN_DB: Final = 4.0
"""mean excess over the floor at which a moment is voiced"""
STAY_DB: Final = 3.0
"""the same while the gate is open"""
EXCESS_LIMIT_DB: Final = 15.0
"""most that one band counts for: a whistle in one band is no voice"""
RUN_LENGTH: Final = 6
RUN_NEEDED: Final = 4

LEAD_MS: Final = 30.0
RISE_MS: Final = 30.0
HOLD_MS: Final = 50.0
FALL_MS: Final = 60.0
BRIDGE_MS: Final = 160.0

LOWEST_FLOOR_DB: Final = -82.0
"""of a band, dBFS: dither and digital zero lie below, the voice of a microphone that peaks at -35 dBFS above"""
FIRST_FLOOR_DB: Final = -40.0
"""highest floor of a band that is believed from the first moment; a file may begin in the middle of a word"""
FLOOR_BIAS_DB: Final = 1.5
"""by which the minimum of a smoothed noise lies below its mean"""
SMOOTHING: Final = 0.6
"""share of the past in the power, each step"""
TAIL_DB: Final = 40.0
"""range below the loudest voice of late in which a band still counts: the room's echo dies away below it"""
TAIL_FADE_DB: Final = 0.1
"""by which that loudest voice is forgotten, each step"""
SHORT_MEMORY: Final = 80
LONG_MEMORY: Final = 300
"""steps"""
STEADY_RANGE_DB: Final = 7.0
"""range of the smoothed level over the short memory within which a sound is a steady noise"""
PERIODIC_CORRELATION: Final = 0.55
PERIODIC_SHARE: Final = 0.5
PITCH_LAGS: Final = (40, 200)
"""80..400 Hz, samples"""
PITCH_SPAN: Final = 640
"""samples; three periods of the lowest voice"""
PITCH_FFT: Final = 1024

HISTORY: Final = 500
"""steps, 5 s, for which the gain is remembered"""


class VoiceGate:
    """Follows one stream of sound and tells the gain of each moment of it.

    Args:
        first_sample: media time at which the sound begins, samples.
    """

    def __init__(self, first_sample: int = 0) -> None:
        window = np.hanning(SPAN + 1)[:-1]
        # Power such that a full-scale sine reads -3 dBFS.
        self._window = window * np.sqrt(2.0 / (SPAN * np.sum(window**2)))
        edges = np.rint(np.array(BAND_EDGES_HZ) * SPAN / SAMPLE_RATE_HZ).astype(int)
        self._edges = edges[:-1]
        self._last_bin = int(edges[-1])
        pitch_bins_hz = np.fft.rfftfreq(PITCH_FFT, 1 / SAMPLE_RATE_HZ)
        pitch_window = np.hanning(PITCH_SPAN + 1)[:-1]
        self._pitch_window = pitch_window
        taper = np.fft.irfft(np.abs(np.fft.rfft(pitch_window, PITCH_FFT)) ** 2)[: PITCH_LAGS[1]]
        self._pitch_scale = taper[0] / taper
        self._pitch_band = (pitch_bins_hz >= BAND_EDGES_HZ[0]) & (pitch_bins_hz <= 2600.0)
        self.start_at(first_sample)

    def start_at(self, sample: int) -> None:
        """Forget everything, the noise floor too, and begin at this sample.

        Args:
            sample: media time of the next sample pushed.

        Raises:
            ValueError: a negative sample.
        """
        if sample < 0:
            raise ValueError(f"media time {sample}: must be 0 or more samples")
        self._origin = sample
        """media time of step 0; step t is centred on ``origin + 160 (t + 1)``"""
        self._steps = 0
        self._missing = 0
        self._sound = np.zeros(0)
        self._past = np.zeros(PITCH_SPAN - SPAN)
        self._open_until = 0
        self._loudest_db = [LOWEST_FLOOR_DB] * BANDS
        self._power: list[float] | None = None
        self._powers_db = np.full((BANDS, LONG_MEMORY), np.inf)
        """smoothed power of each band in each of the last steps, a ring"""
        self._levels_db: deque[float] = deque(maxlen=SHORT_MEMORY)
        """mean of the bands"""
        self._known = 0
        self._periodic: deque[tuple[Callable[[], list[bool]], int]] = deque(maxlen=SHORT_MEMORY)
        """of each of the last steps what finds which steps of its piece have a pitch, where that is asked for, and its
        number in the piece"""
        self._voiced: deque[bool] = deque(maxlen=RUN_LENGTH)
        self._confirmed: deque[bool] = deque(maxlen=HISTORY)
        self._floor_db = [FIRST_FLOOR_DB] * BANDS

    @property
    def floor_dbfs(self) -> float:
        """Noise floor of all bands together, dBFS."""
        return float(10.0 * np.log10(np.sum(10.0 ** (np.array(self._floor_db) / 10.0))))

    def push(self, pcm: npt.NDArray[Any]) -> None:
        """Take the next piece of sound.

        Args:
            pcm: (n,), 16 kHz, int16 or float within -1..1.

        Raises:
            ValueError: sound of a wrong shape or dtype, or not finite.
        """
        sound = pcm_to_float(pcm)
        late = min(self._missing, sound.size)
        self._missing -= late
        self._sound = np.concatenate([self._sound, sound[late:]])
        steps = self._sound.size // STEP - 1
        for at in range(0, steps, HISTORY):
            self._decide(self._sound[at * STEP : (min(at + HISTORY, steps) + 1) * STEP])
        if steps > 0:
            self._sound = self._sound[steps * STEP :].copy()

    def skip(self, samples: int) -> None:
        """Pass over sound that is missing: nobody speaks in it, and the noise floor stays what it was.

        Args:
            samples: how many are missing.

        Raises:
            ValueError: a negative count.
        """
        if samples < 0:
            raise ValueError(f"a gap of {samples} samples: must be 0 or more")
        if samples == 0:
            return
        passed = self._sound.size - self._missing + samples
        steps = -(-passed // STEP)
        self._missing = steps * STEP - passed
        self._sound = self._sound[:0]
        self._past[:] = 0.0
        self._power = None
        self._steps += steps
        self._voiced.extend([False] * min(steps, RUN_LENGTH))
        self._confirmed.extend([False] * min(steps, HISTORY))

    def gain_at(self, sample: int) -> float:
        """Gain of a moment, as far as the sound pushed so far tells.

        Once the sound reaches 100 ms beyond the moment it changes no more, but where a pause of 150 ms or so turns out
        to be within a word.

        Args:
            sample: media time, samples.

        Returns:
            1 in a voice, 0 without one; 0 more than 5 s before the newest sound.
        """
        moment = (sample - self._origin) / STEP - 1.0
        first = self._steps - len(self._confirmed)
        reach = int((HOLD_MS + FALL_MS + BRIDGE_MS) / STEP_MS) + 1
        low = max(0, int(moment) - reach - first)
        near = [first + low + k for k, on in enumerate(islice(self._confirmed, low, low + 2 * reach + 2)) if on]
        since = STEP_MS * min((moment - step for step in near if step <= moment), default=np.inf)
        until = STEP_MS * min((step - moment for step in near if step > moment), default=np.inf)
        if since + until <= BRIDGE_MS:
            return 1.0
        falling = 1.0 - (since - HOLD_MS) / FALL_MS
        rising = 1.0 - (until - LEAD_MS) / RISE_MS
        return float(min(1.0, max(0.0, falling, rising)))

    def _decide(self, sound: npt.NDArray[np.float64]) -> None:
        """Decide the steps of a piece, (160 (n + 1),)."""
        starts = np.arange(0, sound.size - STEP, STEP)[:, None]
        spans = sound[starts + np.arange(SPAN)]
        # Without its mean: the window's side lobes carry a large offset into the lowest band.
        spans = (spans - spans.mean(axis=1, keepdims=True)) * self._window
        spectrum = np.abs(np.fft.rfft(spans, axis=1)[:, : self._last_bin]) ** 2
        powers = np.add.reduceat(spectrum, self._edges, axis=1)
        past = np.concatenate([self._past, sound])
        spans = past[starts + np.arange(PITCH_SPAN)]
        periodic = cache(lambda: self._find_periodic(spans))
        self._past = past[-(PITCH_SPAN - STEP) : -STEP]
        rows: list[list[float]] = powers.tolist()
        smoothed: list[list[float]] = []
        for row in rows:
            past_row = smoothed[-1] if smoothed else self._power or row
            smoothed.append(
                [SMOOTHING * before + (1.0 - SMOOTHING) * now for before, now in zip(past_row, row, strict=True)]
            )
        self._power = smoothed[-1]
        now_db, smoothed_db = np.maximum(10.0 * np.log10(np.array([rows, smoothed]) + 1e-12), LOWEST_FLOOR_DB).tolist()
        for k, (now, steady) in enumerate(zip(now_db, smoothed_db, strict=True)):
            self._step(now, steady)
            self._periodic.append((periodic, k))
            self._follow_floor(steady)

    def _find_periodic(self, spans: npt.NDArray[np.float64]) -> list[bool]:
        spectrum = np.where(
            self._pitch_band, np.abs(np.fft.rfft(spans * self._pitch_window, PITCH_FFT, axis=1)) ** 2, 0.0
        )
        correlation = np.fft.irfft(spectrum, axis=1)[:, : PITCH_LAGS[1]] * self._pitch_scale
        peak = correlation[:, PITCH_LAGS[0] :].max(axis=1)
        periodic: list[bool] = (peak > PERIODIC_CORRELATION * np.maximum(correlation[:, 0], 1e-12)).tolist()
        return periodic

    def _has_pitch(self) -> bool:
        """Whether the sound of the short memory has one for most of its time."""
        return sum(found()[k] for found, k in self._periodic) >= PERIODIC_SHARE * SHORT_MEMORY

    def _step(self, now_db: list[float], smoothed_db: list[float]) -> None:
        """Decide one step, of the power of each band and the same smoothed. NumPy takes longer for five numbers."""
        excess = 0.0
        for band_db, floor_db, loudest_db in zip(now_db, self._floor_db, self._loudest_db, strict=True):
            excess += min(max(band_db - max(floor_db, loudest_db), 0.0), EXCESS_LIMIT_DB)
        excess /= BANDS
        self._voiced.append(excess >= (STAY_DB if self._steps < self._open_until else OPEN_DB))
        self._confirmed.append(False)
        self._steps += 1
        self._loudest_db = [loudest_db - TAIL_FADE_DB for loudest_db in self._loudest_db]
        if sum(self._voiced) >= RUN_NEEDED:
            for back in range(1, min(RUN_LENGTH, len(self._confirmed)) + 1):
                if self._voiced[-back]:
                    self._confirmed[-back] = True
            self._open_until = self._steps + RUN_LENGTH
            self._loudest_db = [
                max(loudest_db, band_db - TAIL_DB)
                for loudest_db, band_db in zip(self._loudest_db, smoothed_db, strict=True)
            ]

    def _follow_floor(self, power_db: list[float]) -> None:
        at = self._known % LONG_MEMORY
        self._powers_db[:, at] = power_db
        self._levels_db.append(sum(power_db) / BANDS)
        self._known += 1
        if (
            self._known >= SHORT_MEMORY
            and max(self._levels_db) - min(self._levels_db) < STEADY_RANGE_DB
            and not self._has_pitch()
        ):
            recent = self._powers_db[:, np.arange(at - SHORT_MEMORY + 1, at + 1)]  # negative indices: the ring's end
            np.maximum(self._powers_db, recent.min(axis=1, keepdims=True), out=self._powers_db)
        highest_db = FIRST_FLOOR_DB if self._known < SHORT_MEMORY else 0.0
        least_db: list[float] = self._powers_db.min(axis=1).tolist()
        self._floor_db = [max(min(band_db + FLOOR_BIAS_DB, highest_db), LOWEST_FLOOR_DB) for band_db in least_db]
