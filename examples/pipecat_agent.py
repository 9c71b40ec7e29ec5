"""Mouthpiece as the output of a Pipecat pipeline: what the bot says is spoken by a face (Apache-2.0).

Put it where `transport.output()` would stand::

    pipeline = Pipeline([transport.input(), stt, user, llm, tts, MouthpieceOutput("http://127.0.0.1:8080"), assistant])

`TTSAudioRawFrame` is pushed as fast as the TTS makes it, `TTSStoppedFrame` ends an utterance, `InterruptionFrame`
interrupts. `BotStartedSpeakingFrame` and `BotStoppedSpeakingFrame` go both ways when the listener really begins and
ends to hear the bot. All else (the text of what is said, above all) is passed on when the sound before it was heard,
and dropped when it was not: the context holds what the listener knows. Written for pipecat-ai 1.14; needs
mouthpiece_client.py beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from mouthpiece_client import Event, Speaker, SpeakerError
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputAudioRawFrame,
    StartFrame,
    SystemFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup

__all__ = ["MouthpieceOutput"]

CUT_S = 2.0
"""an interrupt that is not confirmed by then counts as done"""


class MouthpieceOutput(FrameProcessor):
    """Output of a pipeline.

    Args:
        url: where the page of Mouthpiece is.
        session: which of its sessions speaks.
        token: the operator's token, where one is asked for.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8080", session: str = "default", token: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._speaker = Speaker(url, session, token, on_event=self._hear)
        self._rate = 24_000
        self._resampler = create_stream_resampler(clear_after_secs=None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: asyncio.Queue[Event] = asyncio.Queue()
        self._listener: asyncio.Task[None] | None = None
        self._held: deque[tuple[int, Frame]] = deque()
        """frames that wait until so many samples were heard"""
        self._heard = 0
        """samples heard, as last told"""
        self._since_s: float | None = None
        """since when that is being heard, by the loop's clock; None: silence"""
        self._speaking = False
        self._cutting: asyncio.Event | None = None
        """set when the interrupt that is under way is done"""
        self._finished = asyncio.Event()

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Take the rate of the pipeline."""
        await super().setup(setup)
        self._rate = setup.audio_out_sample_rate

    async def cleanup(self) -> None:
        """Disconnect."""
        await self._close()
        await super().cleanup()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Speak sound, hold what belongs behind it, pass on the rest."""
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(frame, direction)
            await self._begin()
        elif isinstance(frame, EndFrame):
            await self._end()
            await self.push_frame(frame, direction)
        elif isinstance(frame, CancelFrame):
            await self._close()
            await self.push_frame(frame, direction)
        elif isinstance(frame, InterruptionFrame):
            await self.push_frame(frame, direction)
            await self._resampler.reset()
            await self._cut()
        elif isinstance(frame, SystemFrame) or direction == FrameDirection.UPSTREAM:
            await self.push_frame(frame, direction)
        elif isinstance(frame, OutputAudioRawFrame):
            await self._push(await self._resampler.resample(_mono(frame), frame.sample_rate, self._rate))
            await self._hold(frame)
        elif isinstance(frame, TTSStoppedFrame):
            await self._push(await self._resampler.flush())
            await self._say(self._speaker.flush)
            await self._hold(frame)
        else:
            await self._hold(frame)

    @property
    def _is_connected(self) -> bool:
        return self._listener is not None and not self._finished.is_set()

    async def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._speaker.start, self._rate)
        except SpeakerError as error:
            await self.push_error(f"Mouthpiece: {error}", error, force_treat_as_permanent=True)
            return
        self._listener = self.create_task(self._listen())

    async def _say(self, what: Callable[..., object], *arguments: object) -> None:
        """Tell the server, in a thread: it may have to wait. That the connection ended is told by `_take`."""
        if self._cutting is not None:
            await self._cutting.wait()
        if self._is_connected:
            with contextlib.suppress(SpeakerError):
                await asyncio.to_thread(what, *arguments)

    async def _push(self, pcm: bytes) -> None:
        if pcm:
            await self._say(self._speaker.push, pcm)

    async def _cut(self) -> None:
        """Fall silent; what comes after it waits until that is done."""
        if self._cutting is not None or not self._is_connected or self._heard_now() >= self._speaker.pushed_samples:
            return
        self._cutting = cutting = asyncio.Event()
        try:
            with contextlib.suppress(SpeakerError):
                await asyncio.to_thread(self._speaker.interrupt)
            await asyncio.wait_for(cutting.wait(), CUT_S)
        except TimeoutError:
            await self._take(Event("interrupted", sample=self._heard_now()))
        finally:
            self._cutting = None
            cutting.set()

    async def _end(self) -> None:
        """Let everything be heard."""
        await self._say(self._speaker.end)
        if self._is_connected:
            await self._finished.wait()
        await self._close()

    async def _close(self) -> None:
        await asyncio.to_thread(self._speaker.close)
        listener, self._listener = self._listener, None
        if listener is not None:
            await self.cancel_task(listener)

    async def _hold(self, frame: Frame) -> None:
        if self._cutting is not None:
            await self._cutting.wait()
        if self._is_connected:
            self._held.append((self._speaker.pushed_samples, frame))
            self._told.put_nowait(Event("held"))
        else:
            await self.push_frame(frame)

    def _hear(self, event: Event) -> None:
        """Runs in the thread of the connection."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.put_nowait, event)

    async def _listen(self) -> None:
        """Follow what is heard."""
        while not self._finished.is_set():
            await self._release(self._heard_now())
            try:
                await self._take(await asyncio.wait_for(self._told.get(), self._wait_s()))
            except TimeoutError:
                continue

    async def _take(self, event: Event) -> None:
        if event.type == "started":
            self._heard, self._since_s = event.sample, asyncio.get_running_loop().time()
            await self._tell_speaking(True)
        elif event.type == "ended":
            self._heard, self._since_s = event.sample, None
            await self._release(event.sample)
            await self._tell_speaking(False)
        elif event.type == "interrupted":
            await self._release(event.sample)
            self._held = deque((place, frame) for place, frame in self._held if not frame.interruptible)
            self._heard, self._since_s = self._speaker.pushed_samples, None
            await self._tell_speaking(False)
            if self._cutting is not None:
                self._cutting.set()
        elif event.type == "gone":
            self._heard, self._since_s = self._speaker.pushed_samples, None
            await self._release(self._heard)
            await self._tell_speaking(False)
            self._finished.set()
            if self._cutting is not None:
                self._cutting.set()
            if event.fields["text"]:
                await self.push_error(f"Mouthpiece: {event.fields['text']}", force_treat_as_permanent=True)

    def _heard_now(self) -> int:
        """Samples heard by now: as last told, and by the clock since then."""
        if self._since_s is None:
            return self._heard
        passed = int((asyncio.get_running_loop().time() - self._since_s) * self._rate)
        return min(self._heard + passed, self._speaker.pushed_samples - 1)

    def _wait_s(self) -> float | None:
        """Time until the next frame that is held is due."""
        if not self._held or self._since_s is None:
            return None
        return max(0.01, (self._held[0][0] - self._heard_now()) / self._rate)

    async def _release(self, heard: int) -> None:
        while self._held and self._held[0][0] <= heard:
            await self.push_frame(self._held.popleft()[1])

    async def _tell_speaking(self, speaking: bool) -> None:
        if speaking != self._speaking:
            self._speaking = speaking
            await self.broadcast_frame(BotStartedSpeakingFrame if speaking else BotStoppedSpeakingFrame)


def _mono(frame: OutputAudioRawFrame) -> bytes:
    """The first channel."""
    if frame.num_channels == 1:
        return bytes(frame.audio)
    return memoryview(frame.audio).cast("h")[:: frame.num_channels].tobytes()
