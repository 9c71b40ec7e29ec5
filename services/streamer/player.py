"""What a player gets over `/ws/player`: sound as it comes and pictures as they are shown, with one media time.

Sound goes first and whole. Of pictures the player gets the newest, whenever its line has room, in a quality that the
line carries, as the viewers of `/video_feed` do.
"""

from __future__ import annotations

import json
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.streamer.control import SessionControl
from services.streamer.line import TcpLine
from services.streamer.mjpeg import FIRST_RUNG, TRIAL_FRAMES, Frame, Viewer
from services.streamer.sound import SoundTap
from services.streamer.websocket import UNSUPPORTED, WebSocket, words_of
from shared.clock import SAMPLE_RATE_HZ

__all__ = ["Line", "Wants", "play"]

VERSION: Final = 1
FRAME_SAMPLES: Final = SAMPLE_RATE_HZ // 25
HEADER: Final = struct.Struct("<B3xIQQ")
"""kind, running number, epoch, media time"""
SOUND: Final = 1
PICTURE: Final = 2
TICK_S: Final = 0.04
"""pause between two pictures"""
LOOK_S: Final = 0.004
"""no file descriptor tells of a new picture, so from when it is due we look this often"""
STATE_S: Final = 0.1
"""longest time until a change of the state is told that no picture or sound tells of"""
MOST_AT_ONCE: Final = 20
"""messages of the player that are read before anything else is looked at"""
MOST_SKEW_MS: Final = 60_000
"""a player that reports more is not believed"""
MOST_QUEUED_BYTES: Final = 96 * 1024
"""on a line with more under way sound waits here: a picture, and a second of sound"""
MOST_LATE_SAMPLES: Final = 2 * SAMPLE_RATE_HZ
"""sound that had to wait for longer is dropped: nobody wants to hear it any more"""


@dataclass(frozen=True)
class Wants:
    """What a player asked for."""

    frames: bool
    sound: bool


class Line(TcpLine):
    """The line to a player: it is asked for room, never waited for, since sound does not wait for pictures."""

    def has_room(self) -> bool:
        """Whether hardly anything is under way."""
        return self._ready()

    @property
    def queued(self) -> int:
        """Bytes that were sent and are not acknowledged."""
        return self._look().queued


def play(web: WebSocket, session: SessionControl, line: Line, viewer: Viewer | None, tap: SoundTap | None) -> None:
    """Serve a player until it goes.

    Args:
        web: open.
        session: what is played.
        line: of the same socket.
        viewer: its place among the viewers; None: it wants no pictures.
        tap: where its sound comes from; None: it wants none.

    Raises:
        ClosedError: the connection has ended.
        HubClosedError: the session was deleted, or the server stops.
    """
    _Player(web, session, line, viewer, tap).run()


class _Player:
    def __init__(
        self, web: WebSocket, session: SessionControl, line: Line, viewer: Viewer | None, tap: SoundTap | None
    ) -> None:
        self._web = web
        self._session = session
        self._line = line
        self._viewer = viewer
        self._tap = tap
        self._state: tuple[bool, int, str] | None = None
        """running, epoch, source, as told last"""
        self._state_s = 0.0
        """when it was looked at last"""
        self._epoch = 0
        """newest one that was told"""
        self._sounds = 0
        """sent so far"""
        self._last: Frame | None = None
        self._sent_s = 0.0
        """when the last picture was sent"""
        self._room = False
        """whether the line has room for the next one"""
        self._has_sound = tap is not None
        """whether there may be sound to send"""
        self._stuck = False
        """whether it has to wait"""
        self._words = select.poll()
        self._words.register(web, select.POLLIN)
        self._anything = select.poll()
        self._anything.register(web, select.POLLIN)
        if tap is not None:
            self._anything.register(tap, select.POLLIN)
        if viewer is not None:
            viewer.rung = FIRST_RUNG

    def run(self) -> None:
        """Serve until the player goes."""
        self._greet()
        while True:
            self._tell_state()
            self._send_sound()
            self._send_picture()
            self._hear()
            self._rest()

    def _greet(self) -> None:
        status = self._session.status()
        hello = {
            "type": "hello",
            "version": VERSION,
            "session": self._session.name,
            "sample_rate": SAMPLE_RATE_HZ,
            "frame_samples": FRAME_SAMPLES,
            "width": status.width,
            "height": status.height,
            "synthetic": True,
        }
        self._web.send_text(json.dumps(hello))

    def _tell_state(self, epoch: int = 0) -> None:
        """Tell the state if it has changed; an epoch that is newer than the one told is told at once."""
        now_s = time.monotonic()
        if self._state is not None and epoch <= self._epoch and now_s - self._state_s < STATE_S:
            return
        self._state_s = now_s
        self._session.frames.wait(0, 0.0)  # raises HubClosedError
        status = self._session.status()
        self._epoch = max(self._epoch, status.epoch, epoch)
        state = (status.running, self._epoch, status.source)
        if state != self._state:
            self._state = state
            told = {"type": "state", "running": status.running, "epoch": self._epoch, "source": status.source}
            self._web.send_text(json.dumps(told))

    def _send_sound(self) -> None:
        """Send all sound there is; where the line is stuck it waits, and what is too late by then is dropped whole."""
        self._stuck = self._has_sound and self._line.queued > MOST_QUEUED_BYTES
        if self._tap is None or not self._has_sound or self._stuck:
            return
        pieces = self._tap.take()
        for piece in pieces:
            self._tell_state(piece.epoch)
            newest = pieces[-1]
            late = newest.epoch == piece.epoch and newest.first_sample - piece.first_sample > MOST_LATE_SAMPLES
            if piece.epoch == self._epoch and not late:
                head = HEADER.pack(SOUND, self._sounds & 0xFFFFFFFF, piece.epoch, max(0, piece.first_sample))
                self._sounds += 1
                self._web.send_bytes(head + piece.pcm.astype("<i2", copy=False).tobytes())

    def _send_picture(self) -> None:
        viewer, hub = self._viewer, self._session.frames
        if viewer is None:
            return
        # The order is the point: first look for room, then take what is newest by then. And the line is asked from the
        # moment of sending on, not when the next picture comes: it learns from how long the last one took.
        self._room = self._room or self._line.has_room()
        if not self._room or not self._is_due(viewer):
            return
        published = viewer.next(0.0)
        if published is None:
            return
        frame = published.frame
        self._tell_state(frame.epoch)
        new, self._last = frame is not self._last, frame
        self._sent_s = time.monotonic()
        viewer.choose(self._line.rate, first=viewer.sent >= TRIAL_FRAMES and not viewer.settled)
        if frame.epoch < self._epoch:
            return
        jpeg = hub.jpeg(frame, hub.rungs[viewer.rung])
        head = HEADER.pack(PICTURE, frame.seq & 0xFFFFFFFF, frame.epoch, max(0, frame.media_time))
        began_s = time.monotonic()
        self._web.send_bytes(head + jpeg)
        self._room = False
        viewer.count(len(jpeg))
        self._line.sent(len(head) + len(jpeg), began_s)
        if hub.on_pass is not None and new:
            hub.on_pass("sent", frame, time.monotonic() - began_s)

    def _is_due(self, viewer: Viewer) -> bool:
        """Whether there is a picture to send: a new one, or the last one again that is not as sharp as it could be."""
        newest = self._session.frames.latest()
        if newest is not self._last:
            return newest is not None
        since_s = time.monotonic() - self._sent_s
        return since_s > viewer.repeat_s and viewer.rung > 0

    def _hear(self) -> None:
        """Take what the player says."""
        for _ in range(MOST_AT_ONCE):
            message = self._web.receive(0.0)
            if message is None:
                return
            try:
                self._note(words_of(message))
            except ValueError as error:
                self._web.close(UNSUPPORTED, f"{error}; send JSON texts")

    def _note(self, told: Mapping[str, Any]) -> None:
        if told.get("type") == "report":
            skew_ms = told.get("skew_ms")
            if isinstance(skew_ms, bool) or not isinstance(skew_ms, int | float):
                return
            if abs(skew_ms) <= MOST_SKEW_MS:  # never true of NaN
                self._session.note_skew(skew_ms / 1000)
        elif told.get("type") == "heard":
            epoch, sample = told.get("epoch"), told.get("sample")
            if isinstance(epoch, int) and isinstance(sample, int) and epoch >= 0 and sample >= 0:
                self._session.note_heard(epoch, sample)

    def _rest(self) -> None:
        """Wait for sound, for a word of the player, or for the next picture."""
        if self._web.pending:
            return
        wait_s = self._pause_s()
        if self._stuck:
            self._words.poll(1000 * min(wait_s, TICK_S))
            return
        woken = self._anything.poll(1000 * wait_s)
        self._has_sound = any(descriptor != self._web.fileno() for descriptor, _ in woken)

    def _pause_s(self) -> float:
        """How long nothing needs to be looked at that no file descriptor tells of."""
        if self._viewer is None:
            return STATE_S
        late_s = time.monotonic() - self._sent_s - TICK_S
        if not self._room or -LOOK_S <= late_s < TICK_S:
            return LOOK_S
        return -late_s if late_s < 0 else TICK_S
