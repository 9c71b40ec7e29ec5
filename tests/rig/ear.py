"""Listening to the virtual microphone beside the project: what was heard, and when."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

__all__ = ["Ear"]

RATE_HZ = 16_000


class Ear:
    """Records the monitor of the virtual microphone through `parec` at 10 ms latency, noting when each piece came."""

    def __init__(self, environment: Mapping[str, str], device: str = "vmic.monitor") -> None:
        command = ["parec", "--raw", "--format=s16le", "--channels=1", f"--rate={RATE_HZ}", "--latency-msec=10"]
        self._process = subprocess.Popen(
            [*command, f"--device={device}"],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._pieces: list[tuple[float, bytes]] = []
        self._line: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
        stdout = self._process.stdout
        assert stdout is not None
        self._thread = threading.Thread(target=self._read, args=(stdout,), name="ear")

    def _read(self, stream: IO[bytes]) -> None:
        while piece := stream.read1(4096):  # type: ignore[attr-defined]  # a pipe's reader is buffered
            self._pieces.append((time.monotonic(), piece))

    def __enter__(self) -> Ear:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(5)
        self._thread.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def sound(self) -> tuple[float, npt.NDArray[np.int16]]:
        """When the first sample was here, monotonic s, and all samples; 16 kHz mono.

        Sound never comes early, so of all pieces the one with the least delay tells the time.
        """
        ends = np.cumsum([len(piece) for _, piece in self._pieces]) / 2 / RATE_HZ
        began_s = min(at - end for (at, _), end in zip(self._pieces, ends, strict=True))
        data = b"".join(piece for _, piece in self._pieces)
        return began_s, np.frombuffer(data[: len(data) // 2 * 2], "<i2")

    def timed(self) -> list[tuple[float, int, npt.NDArray[np.int16]]]:
        """All pieces: when each was here, monotonic s; number of its first sample; samples."""
        found = []
        first = 0
        for at_s, data in self._pieces:
            found.append((at_s, first, np.frombuffer(data, "<i2")))
            first += len(data) // 2
        return found

    def time_of(self, sample: int, span_s: float = 3.0) -> float:
        """When a sample was here, monotonic s, by the least delay of the pieces around it: a card's clock may drift."""
        if self._line is None:
            ends = np.cumsum([len(piece) for _, piece in self._pieces]) / 2 / RATE_HZ
            self._line = ends, np.array([at for at, _ in self._pieces]) - ends
        ends, delays = self._line
        at = sample / RATE_HZ
        near = (ends > at - span_s) & (ends < at + span_s)
        return at + float(delays[near].min())
