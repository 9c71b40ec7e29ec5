"""Mouthpiece as the audio output of LiveKit Agents: what the agent says is spoken by a face (Apache-2.0).

Give it to a session in place of the room's audio::

    face = MouthpieceOutput("http://127.0.0.1:8080")
    await face.start()
    session = AgentSession(stt=..., llm=..., tts=...)
    session.output.audio = face
    await session.start(agent, room=ctx.room, room_options=room_io.RoomOptions(audio_output=False))

Each segment (`capture_frame`..., `flush`) is one utterance. `clear_buffer` interrupts; the framework then learns how
much of the segment the listener has really heard, to the sample, and keeps only those words in the conversation.
Written for livekit-agents 1.8; needs mouthpiece_client.py beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass

from livekit import rtc
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from mouthpiece_client import Event, Speaker, SpeakerError

__all__ = ["MouthpieceOutput"]

log = logging.getLogger("mouthpiece")

CUT_S = 2.0
"""an interrupt that is not confirmed by then counts as done"""


@dataclass
class _Segment:
    begin: int
    """its first sample of all that was pushed"""
    end: int | None = None
    """None: not flushed yet"""


class MouthpieceOutput(AudioOutput):
    """Audio output of an agent session.

    Args:
        url: where the page of Mouthpiece is.
        session: which of its sessions speaks.
        token: the operator's token, where one is asked for.
        sample_rate: rate at which sound is sent, Hz; LiveKit brings the TTS to it.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        session: str = "default",
        token: str = "",
        *,
        sample_rate: int = 24_000,
    ) -> None:
        super().__init__(label="Mouthpiece", capabilities=AudioOutputCapabilities(pause=False), sample_rate=sample_rate)
        self._rate = sample_rate
        self._speaker = Speaker(url, session, token, on_event=self._hear)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._segments: deque[_Segment] = deque()
        self._dropping = False
        """whether what comes belongs to a segment that was cut off"""
        self._cut: asyncio.Event | None = None
        """set when the interrupt that is under way is done"""
        self._gone = ""

    async def start(self) -> None:
        """Connect. Raises SpeakerError when the server cannot be reached or refuses."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._speaker.start, self._rate)

    async def aclose(self) -> None:
        """Disconnect; what was pushed is said to its end."""
        await asyncio.to_thread(self._speaker.close)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Push a frame; waits while the server has no room."""
        if self._cut is not None:
            await self._cut.wait()
        await super().capture_frame(frame)
        if self._dropping:
            return
        if not self._segments or self._segments[-1].end is not None:
            self._segments.append(_Segment(self._speaker.pushed_samples))
        if self._gone:
            self._finish_all(self._segments[0].begin)
            return
        mono = bytes(frame.data)
        if frame.num_channels != 1:  # the first channel
            mono = memoryview(frame.data).cast("B").cast("h")[:: frame.num_channels].tobytes()
        with contextlib.suppress(SpeakerError):  # that the connection ended is told by `_take`
            await asyncio.to_thread(self._speaker.push, mono)

    def flush(self) -> None:
        """The segment ends."""
        super().flush()
        self._dropping = False
        if self._segments and self._segments[-1].end is None:
            self._segments[-1].end = self._speaker.pushed_samples
            with contextlib.suppress(SpeakerError):
                self._speaker.flush()

    def clear_buffer(self) -> None:
        """Fall silent."""
        if self._segments and self._cut is None and not self._gone and self._loop is not None:
            self._cut = asyncio.Event()
            self._loop.run_in_executor(None, self._interrupt)
            self._loop.call_later(CUT_S, self._cut_done, self._cut, self._segments[0].begin)

    def _interrupt(self) -> None:
        with contextlib.suppress(SpeakerError):
            self._speaker.interrupt()

    def _hear(self, event: Event) -> None:
        """Runs in the thread of the connection."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        if event.type == "started" and self._segments:
            self.on_playback_started(created_at=time.time())
        elif event.type == "ended":
            while self._segments and (end := self._segments[0].end) is not None and end <= event.sample:
                self._finish(self._segments.popleft(), event.sample, interrupted=False)
        elif event.type == "interrupted":
            self._finish_all(event.sample)
            if self._cut is not None:
                self._cut_done(self._cut, event.sample)
        elif event.type == "gone":
            self._gone = event.fields["text"] or "The connection has ended."
            if event.fields["text"]:
                log.warning("Mouthpiece: %s", self._gone)
            if self._segments:
                self._finish_all(self._segments[0].begin)
            if self._cut is not None:
                self._cut_done(self._cut, 0)

    def _cut_done(self, cut: asyncio.Event, sample: int) -> None:
        if self._cut is cut:
            self._finish_all(sample)
            self._cut = None
            cut.set()

    def _finish_all(self, sample: int) -> None:
        self._dropping = self._dropping or bool(self._segments and self._segments[-1].end is None)
        while self._segments:
            self._finish(self._segments.popleft(), sample, interrupted=True)

    def _finish(self, segment: _Segment, sample: int, *, interrupted: bool) -> None:
        heard = max(0, sample - segment.begin)
        if segment.end is not None:
            heard = min(heard, segment.end - segment.begin)
        self.on_playback_finished(playback_position=heard / self._rate, interrupted=interrupted)
