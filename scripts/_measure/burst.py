"""Speech in bursts, as a voice agent sends it: nothing lost, memory bounded, and an interrupt that is one."""

from __future__ import annotations

import random
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from shared.bus import Bus, Delivery
from shared.messages import Audio, Gap
from tests.rig.api import PIECE_BYTES, Api, next_of, player, speaker
from tests.rig.stack import Stack, until
from tests.rig.voices import paused_speech

__all__ = ["burst", "interrupts"]

MINUTES: Final = 10
TIMES: Final = 20
"""faster than real time"""
INTERRUPTS: Final = 50
RATE_HZ: Final = 16_000
HEAD: Final = struct.Struct("<B3xIQQ")
AIM_S: Final = 0.15


class _Tap:
    """Hears what audio_capture publishes of a session, as any service does."""

    def __init__(self, stack: Stack, session: str) -> None:
        self._session = session
        self._bus = Bus("mel_features", "127.0.0.1", stack.bus_port)
        self._bus.receives("audio")
        self.pcm: list[npt.NDArray[np.int16]] = []
        self.missing = 0
        self.last: dict[int, float] = {}
        """epoch -> when its last sound came"""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            for event in self._bus.receive(0.2):
                message = event.message if isinstance(event, Delivery) else None
                if isinstance(message, Gap) and message.session == self._session:
                    self.missing += message.samples
                elif isinstance(message, Audio) and message.session == self._session:
                    self.pcm.append(message.pcm)
                    self.last[message.epoch] = time.monotonic()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._bus.close()


def _speech(seconds: float) -> npt.NDArray[np.int16]:
    some = paused_speech()
    return np.tile(some, int(seconds * RATE_HZ / len(some)) + 1)[: int(seconds * RATE_HZ)]


def _memory(stack: Stack) -> float:
    """Of the two services that hold sound, MiB."""
    processes = [*stack.processes("streamer"), *stack.processes("audio_capture")]
    return float(sum(psutil.Process(p.pid).memory_info().rss for p in processes)) / 2**20


def burst() -> Iterator[tuple[str, str]]:
    """Push ten minutes at twenty times real time, and hear all of it."""
    whole = _speech(60.0 * MINUTES)
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "var", _SETTINGS) as stack:
        Api(stack).create("agent")
        tap = _Tap(stack, "agent")
        try:
            with speaker(stack, "agent") as line:
                line.send(whole[: RATE_HZ // 2].tobytes())
                next_of(line, "started", 10.0)
                before = most = _memory(stack)
                took_s = _push_all(line, whole)
                ended: dict[str, Any] = {}
                deadline_s = time.monotonic() + 60.0 * MINUTES + 60.0
                while not ended and time.monotonic() < deadline_s:
                    most = max(most, _memory(stack))
                    try:
                        ended = next_of(line, "ended", 5.0)
                    except TimeoutError:
                        continue
        finally:
            tap.close()
    heard = np.concatenate(tap.pcm)
    same = len(heard) >= len(whole) and bool((heard[: len(whole)] == whole).all())
    exact = "every sample as it was sent" if same else f"{len(heard)} of {len(whole)} samples, not the same"
    said = f"{exact}; {tap.missing} samples missing; told as heard: {ended.get('sample', 'nothing')} of {len(whole)}"
    times = f"{60 * MINUTES / took_s:.0f} times real time"
    grew = f"streamer and audio_capture grew by {most - before:.0f} MiB at most"
    yield f"{MINUTES} minutes of speech pushed in {took_s:.0f} s ({times})", f"{said}; {grew}"


def _push_all(line: ClientConnection, whole: npt.NDArray[np.int16]) -> float:
    """Push all but the first half second; how long it took."""
    data = whole[RATE_HZ // 2 :].tobytes()
    began_s = time.monotonic()
    for at in range(0, len(data), PIECE_BYTES):
        line.send(data[at : at + PIECE_BYTES])
        ahead_s = at / 2 / RATE_HZ / TIMES - (time.monotonic() - began_s)
        if ahead_s > 0.01:
            time.sleep(ahead_s)
    line.send('{"type": "flush"}')
    return time.monotonic() - began_s


class _Watch:
    """Notes when a player got the last of an epoch and the first of the next."""

    def __init__(self, line: ClientConnection) -> None:
        self._line = line
        self.sound: dict[int, float] = {}
        """epoch -> when its last sound came"""
        self.cut: dict[int, float] = {}
        """epoch -> when it was first told of, by picture or word"""
        self.picture: dict[int, float] = {}
        """epoch -> when its first picture came"""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def is_beyond(self, epoch: int) -> bool:
        """Whether a picture of a newer epoch came."""
        return max(self.picture) > epoch

    def _run(self) -> None:
        try:
            for message in self._line:
                now_s = time.monotonic()
                if isinstance(message, str):
                    if '"state"' in message:
                        epoch = int(message.partition('"epoch": ')[2].split(",")[0].rstrip("}"))
                        self.cut.setdefault(epoch, now_s)
                    continue
                kind, _, epoch, _ = HEAD.unpack_from(message)
                if kind == 1:
                    self.sound[epoch] = now_s
                else:
                    self.picture.setdefault(epoch, now_s)
        except ConnectionClosed:
            return


def interrupts() -> Iterator[tuple[str, str]]:
    """Interrupt fifty times at any moment: how soon the mouth is shut and the sound stops, in every stage."""
    chance = random.Random(6)  # noqa: S311  # the same moments each time
    piece = _speech(20.0).tobytes()
    words, pictures, captures, told = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "var", _SETTINGS) as stack:
        api = Api(stack)
        api.create("agent")
        tap = _Tap(stack, "agent")
        try:
            with player(stack, "agent") as screen, speaker(stack, "agent") as line:
                watch = _Watch(screen)
                for _ in range(INTERRUPTS):
                    for at in range(0, len(piece), PIECE_BYTES):
                        line.send(piece[at : at + PIECE_BYTES])
                    next_of(line, "started", 10.0)
                    time.sleep(chance.uniform(0.4, 1.2))
                    old = max(watch.picture)
                    asked_s = time.monotonic()
                    line.send('{"type": "interrupt"}')
                    next_of(line, "interrupted", 5.0)
                    told.append(time.monotonic() - asked_s)
                    until(partial(watch.is_beyond, old), 5.0, "a picture of the new epoch")
                    new = max(watch.picture)
                    words.append(min(at for epoch, at in watch.cut.items() if epoch > old) - asked_s)
                    pictures.append(watch.picture[new] - asked_s)
                    time.sleep(0.2)
                    captures.append(tap.last.get(old, asked_s) - asked_s)
                screen.close()
                watch.thread.join()
        finally:
            tap.close()
    for what, values in (
        ("the player is told to fall silent", words),
        ("the picture with the mouth at rest is at the player", pictures),
        ("the last of the old sound leaves audio_capture", captures),
        ("the sender is told how far it was heard", told),
    ):
        within = sum(value <= AIM_S for value in values)
        figure = f"median {statistics.median(values) * 1000:.0f} ms, at most {max(values) * 1000:.0f} ms"
        yield f"{INTERRUPTS} interrupts: {what}", f"{figure}, {within} of {len(values)} within {AIM_S * 1000:.0f} ms"


_SETTINGS: Final = {"MOUTHPIECE_AUTOSTART": "no"}
