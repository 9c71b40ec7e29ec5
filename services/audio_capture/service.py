"""audio_capture: opens the source of each running session and publishes its sound on the session's time line."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from services.audio_capture.chunks import Chunk, Hole, Source, SourceStatus
from services.audio_capture.devices import microphone_words
from services.audio_capture.pairs import Pairs
from services.audio_capture.sources import DemoSource, FileSource, LiveSource, MicrophoneSource, NetworkSource
from shared.bus import Bus, Delivery, Event
from shared.clock import CHUNK_SAMPLES, frame_of, seconds_of
from shared.messages import Audio, Flush, Gap, Pcm, SessionState, SourceState
from shared.service import Tally
from shared.settings import Settings

__all__ = ["AudioCapture"]

PROBE_S: Final = 30.0
"""how often a microphone is looked for while there is none"""
MOST_EARLY: Final = 512
"""pieces of pushed sound that wait for their session to be told"""
EARLY_S: Final = 2.0
"""for how long they wait; a voice is not kept for a session that has ended"""
SPARE_SESSIONS: Final = 2
"""heard beyond `MOUTHPIECE_MAX_SESSIONS`: the word that one has ended may come after the word of the next one"""
TELL_S: Final = 1.0
"""how often the state of a source is told"""
LIVE: Final = frozenset({"mic", "browser"})
"""sources that go on when their session begins a new epoch"""
SESSION_SILENT_S: Final = 5.0
"""a session that the streamer no longer tells of is closed, so that no microphone stays open unasked"""


@dataclass
class _Open:
    """A source that is open for a session."""

    state: SessionState
    source: Source
    told_s: float
    base: int = 0
    """count of the source at which the epoch began"""
    stream: str = field(default_factory=lambda: secrets.token_hex(6))
    next_sample: int = 0
    """count of the source up to which it was read"""
    pairs: Pairs = field(default_factory=Pairs)
    watched: int = -1
    said: SourceStatus | None = None
    said_s: float = float("-inf")


class AudioCapture:
    """Follows the sessions; holds one source for each that runs."""

    name: Literal["audio_capture"] = "audio_capture"

    def __init__(self, settings: Settings, bus: Bus, tally: Tally) -> None:
        self._settings = settings
        self._bus = bus
        self._tally = tally
        self._open: dict[str, _Open] = {}
        self._early: deque[tuple[float, Pcm | Flush]] = deque(maxlen=MOST_EARLY)
        """when it came, and what"""
        self._probe: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._probe_due_s = time.monotonic()
        self.info: dict[str, str] = {}
        tally.begin("chunks", "gap_overflow", "gap_unplugged", "gap_lost", "gap_late", "gap_pause")
        bus.publishes("audio", "beat")
        bus.receives("session", "ingest")
        bus.subscribe("ingest", "pcm")

    def handle(self, event: Event) -> None:
        """Open, close and restart sources as the sessions say; pass pushed sound on."""
        if not isinstance(event, Delivery):
            return
        if isinstance(event.message, SessionState):
            self._follow(event.message)
        elif isinstance(event.message, Pcm | Flush):
            self._take(event.message, time.monotonic())

    def turn(self, now_s: float) -> float:
        """Publish what the sources have."""
        due_s = now_s + 0.25
        for name, opened in list(self._open.items()):
            if now_s - opened.told_s > SESSION_SILENT_S:
                self._close(name)
                continue
            for piece in opened.source.read():
                self._give(opened, piece, now_s)
            if now_s >= opened.pairs.due_s or opened.source.status.state != "running":
                self._give_rest(opened)
            self._watch(opened)
            next_due = opened.source.next_due()
            if next_due is not None:
                waits = opened.pairs.may_wait(opened.next_sample - opened.base)
                due_s = min(due_s, next_due + (seconds_of(CHUNK_SAMPLES) if waits else 0.0))
            due_s = min(due_s, opened.pairs.due_s)
            self._tell_source(opened, now_s)
        while self._early and now_s - self._early[0][0] > EARLY_S:
            self._early.popleft()
        self._look_for_microphone(now_s)
        states = {opened.source.status.state for opened in self._open.values()}
        self.info["source_state"] = " ".join(sorted(states)) or "closed"
        return due_s

    def _tell_source(self, opened: _Open, now_s: float) -> None:
        status = opened.source.status
        if status == opened.said and now_s - opened.said_s < TELL_S:
            return
        state = opened.state
        if status.state == "failed" and status != opened.said:
            self._tally.drop("source_failed", status.text, session=state.session)
        opened.said, opened.said_s = status, now_s
        told = SourceState(session=state.session, epoch=state.epoch, state=status.state, text=status.text[:1000])
        self._bus.send("audio", told)

    def _follow(self, state: SessionState) -> None:
        opened = self._open.get(state.session)
        if opened is not None:
            if state.ended:
                self._close(state.session)
                return
            if state.epoch < opened.state.epoch:
                return  # an old word; if there is no other one, its clock began anew, and the source is soon closed
            opened.told_s = time.monotonic()
            if opened.state == state:
                return
            if not state.running or state.source != opened.state.source:
                self._close(state.session)
            elif state.epoch > opened.state.epoch:
                if state.source in LIVE:  # its time line begins anew
                    self._give_rest(opened)
                    opened.base, opened.stream = opened.next_sample, secrets.token_hex(6)
                    opened.said = None
                else:
                    self._close(state.session)
            opened.state = state
        if state.running and state.session not in self._open:
            most = self._settings.max_sessions + SPARE_SESSIONS
            if len(self._open) >= most:
                self._tally.drop(
                    "sessions_refused", f"more than {most} sessions; MOUTHPIECE_MAX_SESSIONS", session=state.session
                )
                return
            source = self._source(state.source)
            self._open[state.session] = _Open(state, source, time.monotonic())
            source.start()
        early, self._early = self._early, deque(maxlen=MOST_EARLY)
        for came_s, piece in early:
            self._take(piece, came_s)

    def _source(self, name: str) -> Source:
        if name == "mic":
            return MicrophoneSource(self._settings.mic or None)
        if name == "browser":
            return LiveSource()
        if name == "network":
            return NetworkSource()
        if name == "demo":
            return DemoSource(loop=self._settings.loops(name))
        return FileSource(name.removeprefix("file:"), loop=self._settings.loops(name))

    def _take(self, piece: Pcm | Flush, came_s: float) -> None:
        opened = self._open.get(piece.session)
        if opened is None or opened.state.epoch < piece.epoch:  # it overtook the word that the session listens
            self._early.append((came_s, piece))
            return
        source = opened.source
        listens = isinstance(source, NetworkSource) or (isinstance(source, LiveSource) and isinstance(piece, Pcm))
        if opened.state.epoch > piece.epoch or not listens:
            self._tally.drop(
                "pcm_ignored", "pushed sound came for a session that does not listen", session=piece.session
            )
            return
        if isinstance(piece, Flush):
            if isinstance(source, NetworkSource):
                source.flush(piece.first_sample)
        elif isinstance(source, LiveSource):
            source.push(piece.first_sample, piece.pcm, piece.arrived_ns or time.monotonic_ns())
        elif isinstance(source, NetworkSource) and not source.push(piece.first_sample, piece.pcm):
            self._tally.drop("pcm_refused", "more sound was pushed than is kept", session=piece.session)

    def _give(self, opened: _Open, piece: Chunk | Hole, now_s: float) -> None:
        """Publish what a source gave, chunks in pairs."""
        if isinstance(piece, Chunk):
            opened.next_sample = piece.first_sample + len(piece.pcm)
            self._tally.count("chunks")
            for chunk in opened.pairs.add(piece, piece.first_sample - opened.base, now_s):
                self._publish(opened, chunk)
        else:
            self._give_rest(opened)
            opened.next_sample = piece.first_sample + piece.samples
            self._publish_gap(opened, piece)

    def _give_rest(self, opened: _Open) -> None:
        """Publish a chunk that waits for the next one."""
        for chunk in opened.pairs.flush():
            self._publish(opened, chunk)

    def _publish(self, opened: _Open, piece: Chunk) -> None:
        state = opened.state
        first = piece.first_sample - opened.base
        self._tally.observe("age_heard", time.monotonic() - piece.captured_ns / 1e9)
        if self._tally.tracing:
            end = first + len(piece.pcm)
            told = {"sample": end, "heard_ns": piece.captured_ns}
            self._tally.trace("heard", state.session, state.epoch, frame_of(end - 1), **told)
        self._bus.send(
            "audio",
            Audio(
                session=state.session,
                epoch=state.epoch,
                stream=opened.stream,
                first_sample=first,
                captured_ns=piece.captured_ns,
                pcm=piece.pcm,
                pushed=piece.pushed,
            ),
        )

    def _publish_gap(self, opened: _Open, piece: Hole) -> None:
        state = opened.state
        if piece.reason == "pause":
            self._tally.count("gap_pause")
        else:
            words = f"{piece.samples} samples of sound are missing ({piece.reason})"
            self._tally.drop(f"gap_{piece.reason}", words, session=state.session)
        gap = Gap(
            session=state.session,
            epoch=state.epoch,
            stream=opened.stream,
            first_sample=piece.first_sample - opened.base,
            samples=piece.samples,
            reason=piece.reason,
        )
        self._bus.send("audio", gap)

    def _watch(self, opened: _Open) -> None:
        fd = opened.source.fileno()
        if fd == opened.watched:
            return
        if opened.watched >= 0:
            self._bus.unwatch(opened.watched)
        if fd >= 0:
            self._bus.watch(fd)
        opened.watched = fd

    def _close(self, name: str) -> None:
        opened = self._open.pop(name)
        if opened.watched >= 0:
            self._bus.unwatch(opened.watched)
        opened.source.close()

    def _look_for_microphone(self, now_s: float) -> None:
        """Keep `info["microphone"]` true: at the start and, while there is none, now and then."""
        if not self._probe.empty():
            self.info["microphone"] = self._probe.get()
            missing = self.info["microphone"].startswith("missing:")
            self._probe_due_s = now_s + (PROBE_S if missing else float("inf"))
        elif now_s >= self._probe_due_s:
            self._probe_due_s = float("inf")
            # A thread that the end of the process need not wait for: PortAudio may take seconds to answer.
            threading.Thread(target=lambda: self._probe.put(microphone_words()), daemon=True).start()

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        return {"open": float(len(self._open))}

    def close(self) -> None:
        """Close all sources."""
        for name in list(self._open):
            self._close(name)
