"""One session: what is heard, which face is shown, which frame is due. It belongs to the loop's thread."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from services.streamer.compositor import compose, marked
from services.streamer.mjpeg import Frame, FrameHub
from services.streamer.photos import Photos
from services.streamer.playout import Moving, Playout
from services.streamer.push import Push
from services.streamer.sessions import SessionBook
from services.streamer.sound import SoundHub
from shared.bus import Bus
from shared.clock import FRAME_SAMPLES, SAMPLE_RATE_HZ, sample_of, seconds_of
from shared.messages import Audio, Face, FaceProblem, Flush, Gap, Patch, Pcm, SourceState
from shared.service import Tally

__all__ = ["Session"]

MOST_BEHIND_S: Final = 0.1
"""ticks of the screen that lie further back are left out"""
STILL_S: Final = 1.0
"""how often a picture that does not move is sent"""
TELL_S: Final = 1.0
"""how often the whole state is told"""
PUSH_S: Final = 0.02
"""how often it is looked whether more of the pushed sound is to be passed on"""
OWED_S: Final = 2.0
"""sound that was passed on and has not come back by then was lost on the way, as when audio_capture began anew: it is
passed on once more"""
DRAINED_S: Final = 1.5
"""how long after its last sound a source that ended is stopped"""
LIVE_GONE_S: Final = 10.0
"""the same for a browser's microphone, whose page may come back"""
FALL_DB_PER_S: Final = 75.0
"""how fast a level meter comes down; it goes up at once"""
HEARD_S: Final = 0.12
"""how long the players' word of what was audible at an interrupt is waited for"""
MOST_WORKERS: Final = 16
"""whose last whole patch is kept"""
PLAYER_S: Final = 3.0
"""a player that has reported within this time is there"""


@dataclass
class _Cut:
    """An interrupt whose event waits for the players' word."""

    push: Push
    epoch: int
    heard: int
    """place in what was pushed, as the session itself knows"""
    place_of: Callable[[float], int]
    until_s: float
    told: list[int] = field(default_factory=list)
    """the same places as the players know"""


class Session:
    """Its state, its clock, its pictures, its sound."""

    def __init__(
        self,
        bus: Bus,
        tally: Tally,
        book: SessionBook,
        photos: Photos,
        hubs: tuple[FrameHub, SoundHub],
        mark: tuple[str, str],
    ) -> None:
        self._bus = bus
        self._tally = tally
        self.book = book
        self.name = book.state.session
        self.photos = photos
        self.frames, self.sound = hubs
        self._mark = mark
        self.playout = Playout()
        self.level_db: float | None = None
        self.latency_ms: float | None = None
        self.skew_ms = 0.0
        self.source_state = ""
        self.source_text = ""
        self._photo: npt.NDArray[np.uint8] = photos.demo_picture
        self._shown_face = photos.demo_id
        """whose photo that is"""
        self._frame = Frame(seq=0, image=marked(self._photo, *mark))
        self._moving: Moving | None = None
        self._rest: Moving | None = None
        self._wholes: dict[str, Patch] = {}
        """worker -> its last patch that was laid on the photo: those that follow may be laid on it"""
        self._under: tuple[Patch, npt.NDArray[np.uint8]] | None = None
        """the last patch that was laid on the photo, and its picture, unmarked"""
        self._stream = ""
        self._told_s = float("-inf")
        self._published_s = float("-inf")
        self._tick_s = float("-inf")
        self._heard_s = self._watched_s = time.monotonic()
        self._push: Push | None = None
        self._push_due_s = float("inf")
        self._moved_s = float("-inf")
        """when pushed sound was last passed on while nothing was owed, or came back"""
        self._cut: _Cut | None = None
        self._times: deque[float] = deque(maxlen=64)
        self._counted: Counter[str] = Counter()
        self._skews: deque[float] = deque(maxlen=256)
        """told by players, in their threads"""
        self._audible: deque[tuple[int, int]] = deque(maxlen=64)
        """epoch and sample that players heard last, told at a cut, in their threads"""
        self._player_s = float("-inf")

    # ---- what comes in

    def hear(self, sound: Audio | Gap | SourceState) -> None:
        """Take a piece of sound, or word of its source."""
        state = self.book.state
        if sound.epoch != state.epoch or not state.running:
            return
        if isinstance(sound, SourceState):
            self.source_state, self.source_text = sound.state, sound.text
            return
        if self._stream and sound.stream != self._stream:
            # audio_capture began anew within the epoch: its count no longer fits, so everybody begins anew.
            self._tally.count("time_line_broken")
            self.change()
            return
        self._stream = sound.stream
        self._heard_s = now_s = time.monotonic()
        if isinstance(sound, Gap):
            if sound.reason != "pause":
                self._tally.count("gap_samples", sound.samples)
            return
        self.playout.heard(sound.first_sample + len(sound.pcm), now_s)
        self.sound.heard(sound.epoch, sound.first_sample, sound.pcm)
        if self._push is not None and sound.pushed >= 0:
            self._push.came_back(sound.first_sample, sound.pushed, len(sound.pcm))
            self._moved_s = now_s
        loud = sound.pcm.astype(np.float32)
        power = float(loud @ loud) / (len(loud) * 32768.0**2)
        level = 10.0 * math.log10(max(1e-10, power))
        before = -100.0 if self.level_db is None else self.level_db
        self.level_db = max(level, before - FALL_DB_PER_S * seconds_of(len(sound.pcm)))

    def take(self, patch: Patch) -> None:
        """Take a frame's moving part."""
        state = self.book.state
        if patch.rest and patch.on < 0 and patch.face == self._shown_face:
            self._rest = Moving(patch)  # the mouth at rest is the same in every epoch
        if patch.epoch != state.epoch or not state.running:
            self._tally.count("patch_epoch")
        elif patch.face != self._shown_face:
            self._tally.count("patch_face")
        elif patch.frame or not patch.rest:  # the rest that a worker tells when it comes belongs to no moment
            moving = self._based(patch)
            if moving is None:
                self._tally.count("patch_base")  # the streamer has begun anew, or the line lost it
            else:
                self._queue(moving, time.monotonic())

    def _based(self, patch: Patch) -> Moving | None:
        """A patch with the one on which it is laid; None where that is not here."""
        if patch.on >= 0:
            under = self._wholes.get(patch.worker)
            fits = under is not None and (under.epoch, under.face, under.frame) == (patch.epoch, patch.face, patch.on)
            return Moving(patch, under) if fits else None
        self._wholes.pop(patch.worker, None)
        self._wholes[patch.worker] = patch
        if len(self._wholes) > MOST_WORKERS:
            del self._wholes[next(iter(self._wholes))]
        return Moving(patch)

    def _queue(self, moving: Moving, now_s: float) -> None:
        patch, late = moving.patch, self.playout.counters["late"]
        self.playout.push(moving, now_s)
        if patch.captured_ns and not patch.rest:
            self._tally.observe("age_arrived", now_s - patch.captured_ns / 1e9)
        if self._tally.tracing:
            which = (patch.session, patch.epoch, patch.frame)
            self._tally.trace("arrived", *which, worker=patch.worker, render_ms=patch.render_ms)
            if self.playout.counters["late"] > late:
                self._tally.trace("dropped", *which, reason="late")

    def face_came(self, answer: Face | FaceProblem) -> None:
        """Show a face that was asked for."""
        wanted = self.photos.answered(answer)
        if isinstance(answer, Face) and answer.face == wanted:
            if answer.face != self.book.state.face:
                self.book.change_face(answer.face)
                self.tell_again()
            self._show_photo(answer.face, answer.photo)

    def show_demo(self) -> None:
        """Show the demo face at once, whether face_prep is there or not: nobody else is to be seen any more."""
        self.book.change_face(self.photos.demo_id)
        self.tell_again()
        self._show_photo(self.photos.demo_id, self.photos.demo_picture)
        self._publish(time.monotonic())

    def _show_photo(self, face: str, photo: npt.NDArray[np.uint8]) -> None:
        if face != self._shown_face:
            self.playout.forget()
            self._wholes.clear()
        self._shown_face, self._photo = face, photo
        self._moving = self._rest = self._under = None
        self._renew(None, max(0, int(self._place(time.monotonic()))))

    # ---- what is asked of it

    def change(self, *, running: bool | None = None, source: str | None = None, cut: str = "") -> None:
        """Begin a new epoch.

        Args:
            running: whether it talks from here on; None: as before.
            source: where its sound comes from; None: as before.
            cut: why what was pushed and not heard is given up, for whoever pushed it; empty: it is said in the new
                epoch.
        """
        if self._push is not None:
            if cut:
                self._let_go(cut)
            else:
                self._push.restart()
                self._push_due_s = 0.0
        state = self.book.change(running=running, source=source)
        self._tally.say(f"{'runs' if state.running else 'is stopped'}, epoch {state.epoch} session={state.session}")
        self.count_up()
        self._counted.clear()
        self.playout = Playout()
        self._wholes.clear()
        self._stream = ""
        self.source_state = self.source_text = ""
        self.level_db = self.latency_ms = None
        now_s = time.monotonic()
        self._heard_s = now_s
        self.sound.at(now_s, state.epoch, None)
        self.tell_again()
        self._renew(self._rest if state.running else None)
        self._publish(now_s)

    def interrupt(self) -> None:
        """Fall silent at once; what was pushed and not heard is forgotten."""
        state = self.book.state
        if not state.running:
            return
        push = self._push
        if push is not None:
            now_s = time.monotonic()
            heard = push.place_of(self._place(now_s))
            waits_s = HEARD_S if now_s - self._player_s < PLAYER_S else 0.0
            self._audible.clear()
            self._end_cut()
            self._cut = _Cut(push, state.epoch, heard, push.snapshot(), now_s + waits_s)
            push.forget()
        # A file would begin again, and a demo too: that is no silence.
        goes_on = state.source in {"mic", "browser", "network"}
        self.change(running=goes_on)

    def listen_to(self, push: Push) -> None:
        """Take what a connection pushes, from now on."""
        self.change(
            running=True,
            source="browser" if push.live else "network",
            cut="Another connection speaks for this session now.",
        )
        self._push = push
        self._push_due_s = 0.0

    def pushes(self, push: Push) -> bool:
        """Whether it takes what this connection pushes."""
        return self._push is push

    def pushed(self) -> None:
        """Something was pushed."""
        if self._push is not None:
            self._push_due_s = 0.0

    def note_skew(self, seconds: float) -> None:
        """A player tells its skew; from any thread."""
        self._skews.append(seconds)

    def note_heard(self, epoch: int, sample: int) -> None:
        """A player tells what was audible when an epoch was cut; from any thread."""
        self._audible.append((epoch, sample))

    def tell_again(self) -> None:
        """Tell the whole state at once."""
        self._told_s = float("-inf")

    def close(self, why: str) -> None:
        """End its streams and forget its state on disk."""
        self._let_go(why)
        self.frames.close()
        self.sound.close()
        self.book.close()

    def _let_go(self, why: str) -> None:
        self._end_cut()
        if self._push is not None:
            self._push.replace(why)
            self._push = None
            self._push_due_s = float("inf")

    # ---- what is due

    def turn(self, now_s: float) -> float:
        """Show the frame that is due; tell the state; pass photos and sound on.

        Returns:
            the monotonic time at which something is due again.
        """
        due_s = self._show(now_s)
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            self._bus.send("session", self.book.state)
            self.count_up()
            for photo in self.photos.to_tell():
                self._bus.send("ingest", photo, "photo")
        if self._push is not None and now_s >= self._push_due_s:
            self._pass_on(self._push, now_s)
        while self._audible:
            epoch, sample = self._audible.popleft()
            if self._cut is not None and epoch == self._cut.epoch:
                self._cut.told.append(self._cut.place_of(sample))
        if self._cut is not None and (self._cut.told or now_s >= self._cut.until_s):
            self._end_cut()
        self._end_drained(now_s)
        if now_s - self._heard_s > 0.5:
            self.level_db = None
        while self._skews:
            self._player_s = now_s
            self._tally.observe("player_skew", abs(self._skews.popleft()))
        return min(due_s, self._told_s + TELL_S, self._push_due_s, self._cut.until_s if self._cut else float("inf"))

    def _pass_on(self, push: Push, now_s: float) -> None:
        if not push.owed:
            self._moved_s = now_s
        elif now_s - self._moved_s > OWED_S:
            self._tally.count("push_lost")
            self.change()
            self._moved_s = now_s
        state = self.book.state
        for piece in push.to_send():
            if piece.pcm is None:
                flush = Flush(session=self.name, epoch=state.epoch, first_sample=piece.first_sample)
                self._bus.send("ingest", flush, "pcm")
                continue
            pcm = Pcm(
                session=self.name,
                epoch=state.epoch,
                first_sample=piece.first_sample,
                pcm=piece.pcm,
                arrived_ns=piece.arrived_ns,
            )
            self._bus.send("ingest", pcm, "pcm")
        # More is passed on as it is played; a microphone wakes the loop itself.
        self._push_due_s = float("inf") if push.live else now_s + PUSH_S

    def _end_cut(self) -> None:
        """Tell how far an interrupted sound was heard: as the players say, or as the session itself knows."""
        cut = self._cut
        if cut is None:
            return
        self._cut = None
        cut.push.tell_cut(max(cut.told, default=cut.heard))

    def _end_drained(self, now_s: float) -> None:
        """Stop when the source has told all it has and none is on its way."""
        state = self.book.state
        if not state.running:
            return
        if self._push is not None:
            if not self._push.drained:
                self._heard_s = max(self._heard_s, now_s - DRAINED_S)
            elif now_s - self._heard_s > (LIVE_GONE_S if self._push.live else DRAINED_S):
                self.change(running=False, cut="All was said.")
            return
        ended = self.source_state == "ended" or state.source == "network"
        if ended and now_s - self._heard_s > DRAINED_S:
            self.change(running=False)

    def _show(self, now_s: float) -> float:
        """Publish what is due; give the time at which the next is: 25 a second while it runs, else one."""
        state = self.book.state
        if not state.running:
            if now_s - self._published_s >= STILL_S:
                self.sound.at(now_s, state.epoch, None)
                self._publish(now_s)
            return self._published_s + STILL_S
        if now_s >= self._tick_s:
            if now_s - self._tick_s > MOST_BEHIND_S:  # it was stopped, or the machine slept: no burst of old ticks
                self._tick_s = now_s
            moving = self.playout.take(now_s) or self._rest
            place = self._place(now_s)
            started = self.playout.clock.started
            self.sound.at(now_s, state.epoch, place if started else None)
            if self._push is not None and started:
                self._push.heard(place)
            if moving is not self._moving:
                self._renew(moving, max(0, int(place)))
                if moving is not None and not moving.patch.rest:
                    self._shown(moving.patch, now_s)
            self._publish(now_s)
            self._tick_s = self.playout.next_tick_s(self._tick_s)
        return self._tick_s

    def _place(self, now_s: float) -> float:
        """Media time that is seen and heard, samples; 0 before there is any."""
        if not self.playout.clock.started:
            return 0.0
        return self.playout.clock.sample_at(now_s - self.playout.delay_s)

    def _shown(self, patch: Patch, now_s: float) -> None:
        """Count how old a frame is, and how far from its sound, whose picture was due at `now_s` and is made now."""
        took_s = time.monotonic() - now_s
        lag_ms = now_s * 1000.0 - patch.captured_ns / 1e6
        self.latency_ms = lag_ms if self.latency_ms is None else 0.95 * self.latency_ms + 0.05 * lag_ms
        skew_s = now_s - self.playout.clock.time_of(sample_of(patch.frame)) - self.playout.delay_s
        self.skew_ms += 0.05 * (skew_s * 1000.0 - self.skew_ms)
        self._tally.observe("age_shown", lag_ms / 1000.0)
        self._tally.observe("took_compose", took_s)
        self._tally.observe("skew", abs(skew_s))
        if self._tally.tracing:
            told = {"at_ns": round(now_s * 1e9), "took_ms": took_s * 1000.0, "skew_ms": skew_s * 1000.0}
            self._tally.trace("shown", patch.session, patch.epoch, patch.frame, **told)

    def count_up(self) -> None:
        """Add to the totals what playout and sound counted since the last time; the former's end with the epoch."""
        now = self.playout.counters.copy()
        for name, number in (now - self._counted).items():
            self._tally.count(f"playout.{name}", number)
        self._counted = now
        for name, counted in self.sound.drain().items():
            self._tally.count(name, counted)

    def _renew(self, moving: Moving | None, place: int = 0) -> None:
        """Make the picture to publish from here on."""
        self._moving = moving
        media_time = place - place % FRAME_SAMPLES
        if moving is None:
            picture = self._photo
        else:
            if not moving.patch.rest:
                media_time = sample_of(moving.patch.frame)
            picture = self._laid(moving.patch if moving.under is None else moving.under)
            if moving.under is not None:
                picture = compose(picture, moving.patch)
        self._frame = Frame(
            seq=self._frame.seq + 1,
            image=marked(picture, *self._mark),
            media_time=media_time,
            epoch=self.book.state.epoch,
        )

    def _laid(self, patch: Patch) -> npt.NDArray[np.uint8]:
        """The picture of a patch that is laid on the photo."""
        if self._under is None or self._under[0] is not patch:
            self._under = patch, compose(self._photo, patch)
        return self._under[1]

    def _publish(self, now_s: float) -> None:
        self.frames.publish(self._frame)
        self._published_s = now_s
        self._tally.count("published")
        self._times.append(now_s)

    # ---- what it tells of itself

    def fps(self, now_s: float) -> float:
        """Frames published in the last second."""
        return float(sum(now_s - at < 1.0 for at in self._times))

    def picture_size(self) -> tuple[int, int]:
        """Width and height of the picture, px."""
        return self._photo.shape[1], self._photo.shape[0]

    @property
    def waiting_s(self) -> float:
        """Sound that was pushed and not heard yet, seconds."""
        return 0.0 if self._push is None else self._push.waiting / SAMPLE_RATE_HZ

    def idle_s(self, now_s: float) -> float:
        """For how long nobody has watched, listened, or pushed; seconds."""
        if self.frames.viewers or self.sound.listeners or (self._push is not None and not self._push.finished):
            self._watched_s = now_s
        return now_s - self._watched_s
