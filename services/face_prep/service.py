"""face_prep: turns photos that came by web into prepared faces, keeps them, and answers whoever subscribes to one."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from typing import Final, Literal

from services.face_prep.face import FaceError, FaceMaker
from services.face_prep.image import ImageError
from services.face_prep.store import FaceStore
from shared.bus import Bus, Delivery, Event, Subscribed
from shared.messages import FORGOTTEN, FaceProblem, Forget, Photo
from shared.service import Tally

__all__ = ["FacePrep"]

MOST_PROBLEMS: Final = 100
MOST_TRIES: Final = 2
"""that did not come to an end: the photo ends the process, or hangs it until the watchdog does"""
LISTEN_S: Final = 0.4
"""for how long it still listens at its end"""


class FacePrep:
    """Keeps faces under their id and tells each to those who subscribe to it."""

    name: Literal["face_prep"] = "face_prep"

    def __init__(self, maker: FaceMaker, store: FaceStore, max_side_px: int, bus: Bus, tally: Tally) -> None:
        self._maker = maker
        self._store = store
        self._max_side_px = max_side_px
        self._bus = bus
        self._tally = tally
        self._problems: OrderedDict[str, FaceProblem] = OrderedDict()
        self.info: dict[str, str] = {}
        bus.publishes("face", "beat")
        bus.receives("ingest")
        bus.subscribe("ingest", "photo")

    def handle(self, event: Event) -> None:
        """Answer subscriptions; make faces of photos."""
        match event:
            case Subscribed(topic="face", key=key):
                self._tell(key)
            case Delivery(message=Photo() as photo):
                if not self._tell(photo.face):
                    self._make(photo)
            case Delivery(message=Forget() as forget):
                self._forget(forget)
            case _:
                pass

    def turn(self, now_s: float) -> float:
        """Nothing is due by itself."""
        return now_s + 1.0

    def _tell(self, face_id: str) -> bool:
        """Publish what is known of a face: the face, or why there is none."""
        if face_id in self._problems:
            self._bus.send("face", self._problems[face_id], face_id)
            return True
        try:
            face = self._store.load(face_id)
        except OSError as error:
            self._tally.drop("not_read", f"a face could not be read from disk: {error.strerror}")
            face = None
        if face is None:
            return False
        self._bus.send("face", face, face_id)
        self._tally.count("faces_told")
        return True

    def _forget(self, forget: Forget) -> None:
        """Delete a face, here and in the workers."""
        self._problems.pop(forget.face, None)
        self._bus.send("face", forget, forget.face)
        try:
            if self._store.delete(forget.face):
                self._tally.count("faces_forgotten")
        except OSError as error:
            self._tally.drop("not_deleted", f"a face could not be deleted from disk: {error.strerror}")
        else:
            self._bus.send("face", forget, FORGOTTEN)

    def _make(self, photo: Photo) -> None:
        began_s = time.perf_counter()
        try:
            tries = self._store.begin(photo.face)
        except (OSError, ValueError):
            tries = 0  # a full disk keeps nobody from being seen
        if tries >= MOST_TRIES:
            self._tally.drop("faces_given_up", "a photo ended the process again and again, and is left alone")
            text = "This photo cannot be prepared here. Save it anew as JPEG, or take another one."
            self._refuse(FaceProblem(face=photo.face, code="unknown", text=text))
            return
        try:
            face = self._maker.make(
                photo.face,
                photo.data.tobytes(),
                index=photo.index,
                box=photo.box,
                max_side_px=self._max_side_px,
            )
        except (ImageError, FaceError) as error:
            self._tally.count("faces_refused")
            self._finish(photo.face)
            self._refuse(FaceProblem(face=photo.face, code=error.code, text=str(error)[:1000]))
            return
        self._finish(photo.face)
        self._tally.count("faces_made")
        self._tally.count("make_seconds", time.perf_counter() - began_s)
        self._bus.send("face", face, photo.face)
        try:
            self._store.save(face)
        except OSError as error:
            self._tally.drop("not_stored", f"the face could not be kept on disk: {error.strerror}")

    def _finish(self, face_id: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._store.finish(face_id)

    def _refuse(self, problem: FaceProblem) -> None:
        self._problems[problem.face] = problem
        while len(self._problems) > MOST_PROBLEMS:
            self._problems.popitem(last=False)
        self._bus.send("face", problem, problem.face)

    def gauges(self) -> dict[str, float]:
        """Present values for the beat."""
        return {"problems": float(len(self._problems))}

    def close(self) -> None:
        """Hear what the streamer says at its own end, when everything ends: which pictures are to be deleted."""
        until_s = time.monotonic() + LISTEN_S
        while (left_s := until_s - time.monotonic()) > 0:
            for event in self._bus.receive(left_s):
                if isinstance(event, Delivery) and isinstance(event.message, Forget):
                    self._forget(event.message)
