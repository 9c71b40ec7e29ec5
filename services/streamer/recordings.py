"""Recordings of a session: MP4 files with sound in step, made in the background, kept until they are deleted."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import av
import cv2

from services.streamer.control import LimitError
from services.streamer.mjpeg import HubClosedError, TooManyViewersError
from services.streamer.recorder import Recorder, boxes, free_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from services.streamer.mjpeg import Frame, FrameHub
    from services.streamer.sound import SoundHub

__all__ = ["ID", "START_BYTES", "Recording", "Recordings", "UnknownRecordingError"]

START_BYTES: Final = 200_000_000
"""free on the disk before a recording begins, at least"""
MOST_KEPT: Final = 500
"""recordings of a session"""
THUMBNAIL_PX: Final = 320
"""of its longer side"""
FINISH_S: Final = 5.0
"""longest wait for a file to become whole"""
CLOSE_S: Final = 0.4
"""the same when the server stops"""
Names = list[str]  # inside the class `list` is a method
ID: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")

log = logging.getLogger(__name__)


class UnknownRecordingError(KeyError):
    """There is no such recording."""

    def __init__(self, recording: str) -> None:
        super().__init__(recording)
        self.text = "There is no such recording here. It may have been deleted."


@dataclass(frozen=True)
class Recording:
    """One recording."""

    id: str
    """when it began and four random digits; sorts by time"""
    started: datetime
    """when it began, UTC"""
    seconds: float
    """how long it is, s"""
    bytes: int
    """of the file"""
    state: Literal["recording", "finished", "unfinished"]
    """unfinished: the program or the disk ended it; it plays up to its last second"""
    text: str = ""
    """why it ended by itself, for a person"""


class Recordings:
    """The recordings of one session. Safe to call from any thread.

    Args:
        folder: where the files lie; made with the first one, for this user alone.
        frames: the session's pictures.
        sound: its sound.
        session: its name, for the log.
    """

    def __init__(self, folder: Path, frames: FrameHub, sound: SoundHub, session: str = "default") -> None:
        self._folder = folder
        self._frames = frames
        self._sound = sound
        self._session = session
        self._lock = threading.Lock()
        self._recorder: Recorder | None = None
        self._closed = False
        self._forgotten = False
        self._texts: dict[str, str] = {}
        self._known: dict[str, tuple[int, float, bool]] = {}

    @property
    def current(self) -> str:
        """Id of the recording that is being made; empty when there is none. Never waits, not even for a slow disk."""
        recorder = self._recorder
        return recorder.path.stem if recorder is not None and recorder.running else ""

    def start(self) -> Recording:
        """Begin a recording.

        Raises:
            LimitError: there are as many as there may be.
            ValueError: one is being made already, there is no picture yet, no room on the disk, or the file cannot be
                made; the text says so.
        """
        with self._lock:
            if self._closed:
                raise ValueError("The session is ending, so nothing is recorded any more.")
            if self._recorder is not None and self._recorder.running:
                raise ValueError("A recording is being made already. Stop it before the next one.")
            self._settle()
            if len(self._ids()) >= MOST_KEPT:
                raise LimitError(f"There are {MOST_KEPT} recordings, which is the most. Delete some and try again.")
            frame = self._frames.latest()
            if frame is None:
                raise ValueError("There is no picture yet. Try again in a second.")
            now = datetime.now(UTC)
            recording = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if free_bytes(self._folder) < START_BYTES:
                    raise ValueError(
                        f"There is less than {START_BYTES // 10**6} MB free on the disk, too little to record. "
                        "Delete some recordings or other files and try again."
                    )
                with ExitStack() as undo:
                    thumbnail = self._folder / f"{recording}.jpg"
                    undo.callback(thumbnail.unlink, missing_ok=True)
                    _write_thumbnail(thumbnail, frame)
                    self._recorder = Recorder(self._movie(recording), self._frames, self._sound, frame)
                    undo.pop_all()
            except TooManyViewersError as error:
                raise LimitError(str(error)) from error
            except HubClosedError as error:
                raise ValueError("The session is ending, so nothing is recorded any more.") from error
            except OSError as error:
                log.error("%s: no recording can be made: %s", self._session, error)  # noqa: TRY400
                raise ValueError(f"The recording cannot be written ({error.strerror}). Nothing was begun.") from error
            return self._look(recording)

    def stop(self) -> Recording | None:
        """End the recording that is being made, and wait until its file is whole; None when there is none."""
        with self._lock:
            if self._recorder is None:
                return None
            if not self._recorder.stop(FINISH_S):
                log.warning("%s: the disk is slow, a recording is not finished yet", self._session)
                return self._look(self._recorder.path.stem)
            recording = self._recorder.path.stem
            self._settle()
            return self._look(recording)

    def list(self) -> list[Recording]:
        """All recordings, newest first."""
        with self._lock:
            self._settle()
            return [self._look(recording) for recording in reversed(self._ids())]

    def get(self, recording: str) -> Recording:
        """One recording.

        Raises:
            UnknownRecordingError: there is none of that id.
        """
        with self._lock:
            self._settle()
            self._find(recording)
            return self._look(recording)

    def path(self, recording: str) -> Path:
        """The MP4 file of a recording; it may still grow.

        Raises:
            UnknownRecordingError: there is none of that id.
        """
        return self._find(recording)

    def thumbnail(self, recording: str) -> Path:
        """The JPEG file that shows how a recording begins.

        Raises:
            UnknownRecordingError: there is none of that id.
        """
        path = self._find(recording).with_suffix(".jpg")
        if not path.is_file():
            raise UnknownRecordingError(recording)
        return path

    def delete(self, recording: str) -> None:
        """Delete a recording for good; one that is being made is ended first.

        Raises:
            UnknownRecordingError: there is none of that id.
        """
        with self._lock:
            movie = self._find(recording)
            if self._recorder is not None and self._recorder.path == movie:
                self._recorder.stop(FINISH_S)
                self._settle()
            movie.unlink(missing_ok=True)
            movie.with_suffix(".jpg").unlink(missing_ok=True)
            self._texts.pop(recording, None)
            self._known.pop(recording, None)

    def close(self) -> None:
        """Finish what is being made; no other one begins. What cannot be finished in time stays playable."""
        # Without the lock: whoever holds it may wait for a slow disk, and the server that stops may not.
        self._closed = True
        recorder = self._recorder
        if recorder is not None and not recorder.stop(CLOSE_S):
            log.warning("%s: a recording could not be finished in time", self._session)

    def forget(self) -> None:
        """Finish and delete all, for good. Once: after that the folder belongs to the next session of this name."""
        with self._lock:
            if self._forgotten:
                return
            self._closed = True
            if self._recorder is not None:
                self._recorder.stop(FINISH_S)
                self._recorder = None
            self._texts.clear()
            self._known.clear()
            if self._folder.is_dir():
                shutil.rmtree(self._folder)
            self._forgotten = True

    def _movie(self, recording: str) -> Path:
        return self._folder / f"{recording}.mp4"

    def _find(self, recording: str) -> Path:
        path = self._movie(recording)
        if ID.fullmatch(recording) is None or not path.is_file():
            raise UnknownRecordingError(recording)
        return path

    def _ids(self) -> Names:
        if not self._folder.is_dir():
            return []
        return sorted(path.stem for path in self._folder.glob("*.mp4") if ID.fullmatch(path.stem))

    def _settle(self) -> None:
        """Keep what a recorder that has ended has to say."""
        if self._recorder is not None and not self._recorder.running:
            self._texts[self._recorder.path.stem] = self._recorder.text
            self._recorder = None

    def _look(self, recording: str) -> Recording:
        """What is known of a recording that is there."""
        path = self._movie(recording)
        started = datetime.strptime(recording[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        size = path.stat().st_size
        if self._recorder is not None and self._recorder.path == path:
            return Recording(recording, started, self._recorder.seconds, size, "recording", self._recorder.text)
        if self._known.get(recording, (-1,))[0] != size:
            self._known[recording] = (size, _seconds(path), _is_finished(path))
        _, seconds, finished = self._known[recording]
        text = self._texts.get(recording, "")
        return Recording(recording, started, seconds, size, "finished" if finished else "unfinished", text)


def _write_thumbnail(path: Path, frame: Frame) -> None:
    height, width = frame.image.shape[:2]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    ok, data = cv2.imencode(".jpg", cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA))
    if not ok:
        raise RuntimeError(f"the JPEG encoder refused a picture of {size}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data.tobytes())


def _seconds(path: Path) -> float:
    """How long a file plays, s; 0.0 where nothing can be read."""
    try:
        with av.open(str(path)) as container:
            lengths = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
    except (av.FFmpegError, OSError):
        return 0.0
    return max(lengths, default=0.0)


def _is_finished(path: Path) -> bool:
    """Whether the index of the whole file stands at its end."""
    names = [name for name, _, _ in boxes(path)]
    return "moov" in names and "moof" not in names
