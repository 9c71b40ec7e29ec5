"""The state of sessions: numbered time lines, and what survives a crash of the streamer."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec

from shared.messages import SessionState

__all__ = ["ForgetList", "SessionBook"]

MOST_FACES: Final = 64
"""of a session, whose pictures are deleted with it"""
FaceId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]

log = logging.getLogger(__name__)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on disk while the streamer runs."""

    running: bool
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    face: FaceId
    used: tuple[FaceId, ...] = ()


class SessionBook:
    """One session, its time line, and its memory.

    The state is written to disk at each change and taken away by `close`: so after a crash the session goes on as it
    was, and after an orderly end nothing (no microphone!) starts by itself.

    Epochs are milliseconds of the monotonic clock, so that a streamer that starts anew is always ahead of what the
    other services remember.
    """

    def __init__(self, path: Path, *, session: str, running: bool, source: str, face: str) -> None:
        self._path = path
        self.recovered = False
        self.used: list[str] = []
        """faces that it asked for, whose pictures leave with it"""
        kept = self._read()
        if kept is not None:
            running, source, face = kept.running, kept.source, kept.face
            self.used = list(kept.used)
            self.recovered = True
        self.state = SessionState(session=session, epoch=0, running=running, source=source, face=face)
        self.change()

    def change(self, *, running: bool | None = None, source: str | None = None) -> SessionState:
        """Begin a new epoch, with what is given changed; what was under way in the old one is dropped everywhere."""
        old = self.state
        self.state = SessionState(
            session=old.session,
            epoch=max(old.epoch + 1, time.monotonic_ns() // 1_000_000),
            running=old.running if running is None else running,
            source=source or old.source,
            face=old.face,
        )
        self._write()
        return self.state

    def change_face(self, face: str) -> SessionState:
        """Take another face; the sound goes on in its epoch."""
        self.state = msgspec.structs.replace(self.state, face=face)
        self._write()
        return self.state

    def use(self, face: str) -> list[str]:
        """Note that a face was asked for; the faces that are too many by now."""
        self.used = [used for used in self.used if used != face] + [face]
        too_many, self.used = self.used[:-MOST_FACES], self.used[-MOST_FACES:]
        self._write()
        return too_many

    def use_none(self) -> list[str]:
        """The faces that were asked for; none of them is noted any more."""
        used, self.used = self.used, []
        self._write()
        return used

    def close(self) -> None:
        """An orderly end: forget."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> _Kept | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            self._path.unlink(missing_ok=True)  # half a state is worth less than none
            return None

    def _write(self) -> None:
        state = self.state
        kept = _Kept(running=state.running, source=state.source, face=state.face, used=tuple(self.used))
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(self._path)
        except OSError as error:  # the disk is full: the session goes on, only not after a crash
            log.warning("the state cannot be kept: %s session=%s", error.strerror, state.session)
            for stale in (fresh, self._path):  # an old state may say that a microphone is open
                with contextlib.suppress(OSError):
                    stale.unlink()


class ForgetList:
    """The faces whose pictures are still to be deleted, on disk: neither a crash nor the end of the server is to keep
    them from it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.faces = msgspec.json.decode(path.read_bytes(), type=tuple[FaceId, ...])
        except (OSError, msgspec.DecodeError):
            self.faces = ()

    def note(self, faces: tuple[str, ...]) -> None:
        """Keep what is to be deleted now."""
        if faces == self.faces:
            return
        self.faces = faces
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(msgspec.json.encode(faces))
            fresh.replace(self._path)
        except OSError as error:
            log.warning("which faces are to be deleted cannot be kept: %s", error.strerror)
