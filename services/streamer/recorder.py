"""One recording while it is made: frames and sound of a session in, an MP4 file out that is playable at any moment.

Two threads. One keeps the clock: 25 slots a second, each with the newest frame (or the last one again) and the sound
that is heard with it. The other one, niced, encodes H.264 and AAC and writes. Between them lies a short queue; when the
encoder is slow, pictures are left out and counted, sound is not, and the stream notices nothing.

The file is a fragmented MP4 (ISO/IEC 14496-12, 8.8): every 0.24 s a fragment is written that can be read without what
follows. A clean end turns it into a plain one, whose index stands at its end.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av
import cv2
import numpy as np

from services.streamer.mjpeg import HubClosedError
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from services.streamer.mjpeg import Frame, FrameHub
    from services.streamer.sound import SoundHub

__all__ = ["FPS", "MARK", "MOST_S", "RESERVE_BYTES", "Recorder", "boxes", "fit", "free_bytes", "whole_bytes"]

MARK: Final = "Synthetic: made with Mouthpiece"
"""what each file says about itself"""
FPS: Final = 25
SLOT_S: Final = 1 / FPS
SLOT_SAMPLES: Final = SAMPLE_RATE_HZ // FPS
EARLY: Final = 0.7
"""how far a frame may come from the middle of its slot, slots: wide enough that a screen whose ticks fall between two
slots does not swing between them"""
SETTLE: Final = 0.1
"""share by which the moment of the sound follows that of a frame within its slot: it is to follow the screen's ticks,
not the jitter of a thread"""
FRAGMENT_S: Final = 0.24
"""of the file that is written at once"""
KEY_FRAMES: Final = 50
"""pictures from one that stands for itself to the next"""
LATE_SLOTS: Final = 10
"""slots by which the encoder may be late before it leaves out pictures: 0.4 s"""
WAITING_FRAMES: Final = 25
"""pictures that may wait for it"""
WAITING_SLOTS: Final = 250
"""slots of sound that may wait for it"""
QUALITY: Final = "21"
"""constant rate factor of x264: less is better, 18 cannot be told from the original"""
SOUND_BITS: Final = 64_000
"""of AAC, bit/s"""
NICENESS: Final = 10
MOST_S: Final = 4 * 3600
"""longest recording, s"""
RESERVE_BYTES: Final = 50_000_000
"""of the disk that a recording leaves free"""
CHECK_SLOTS: Final = FPS
"""slots from one look at the disk to the next"""

DISK_FULL: Final = "The disk is full, so the recording was ended. Delete some recordings before the next one."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Slot:
    """A 25th of a second."""

    number: int
    image: npt.NDArray[np.uint8] | None
    """BGR; None: left out, the one before stays"""
    pcm: npt.NDArray[np.int16]


class Recorder:
    """Makes one file, from its construction until `stop` or until it ends by itself.

    It watches the frames without being counted as a viewer: it takes the pictures as they are, not as JPEG, and it
    must neither be refused for those who look nor take the place of one.

    Args:
        path: the file to make; must not exist.
        frames: where the pictures are.
        sound: where the sound is.
        first: the first picture; its size is that of the recording.

    Raises:
        OSError: the file cannot be made.
        TooManyViewersError: the sound has as many listeners as it may have.
        HubClosedError: the session ends.
    """

    def __init__(self, path: Path, frames: FrameHub, sound: SoundHub, first: Frame) -> None:
        self.skipped = 0
        """pictures that were left out because the encoder was slow"""
        self.lost = 0
        """slots whose sound was left out as well"""
        self.text = ""
        """why it ended by itself, for a person"""
        self.path = path
        self.slots = 0
        """25ths of a second that were handed to the encoder"""
        self._frames = frames
        self._held: npt.NDArray[np.uint8] = first.image
        self._queue: deque[_Slot] = deque()
        self._ready = threading.Condition()
        self._stopped = threading.Event()
        with ExitStack() as stack:
            self._reader = stack.enter_context(sound.reader())
            self._film = _Film(path, first.image.shape[1], first.image.shape[0])
            self._listening = stack.pop_all()
        self._threads = [
            threading.Thread(target=self._keep_time, name="record-clock", daemon=True),
            threading.Thread(target=self._encode, name="record-encode", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether the file is still being made."""
        return self._threads[-1].is_alive()

    @property
    def seconds(self) -> float:
        """How long it is by now, s."""
        return self.slots * SLOT_S

    def stop(self, timeout_s: float) -> bool:
        """End it, and wait until the file is whole; whether it was within the time."""
        self._stopped.set()
        with self._ready:
            self._ready.notify_all()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not self.running

    def _end(self, text: str) -> None:
        """End by itself."""
        self.text = self.text or text
        self._stopped.set()

    def _keep_time(self) -> None:
        number, seen, phase = 0, 0, 0.0
        began_s = time.monotonic()

        def put() -> None:
            nonlocal number
            due_s = began_s + (number + phase) * SLOT_S
            self._put(number, self._reader.read(SLOT_SAMPLES, due_s))
            number += 1
            if number >= MOST_S * FPS:
                self._end(f"A recording is at most {MOST_S // 3600} hours long, so it was ended.")

        try:
            while not self._stopped.is_set():
                left_s = began_s + (number + EARLY) * SLOT_S - time.monotonic()
                published = self._frames.wait(seen, min(max(0.0, left_s), SLOT_S))
                at = (time.monotonic() - began_s) / SLOT_S
                while at >= number + EARLY:  # no frame came: the one before stays
                    put()
                if published is not None and published.count > seen:
                    seen = published.count
                    self._held = published.frame.image
                    if at >= number - EARLY:
                        phase += (at - number - phase) * SETTLE
                        put()
        except HubClosedError:
            log.debug("the session ends, and its recording with it")
        finally:
            self._stopped.set()
            self._listening.close()
            with self._ready:
                self._ready.notify_all()

    def _put(self, number: int, pcm: npt.NDArray[np.int16]) -> None:
        with self._ready:
            if len(self._queue) >= WAITING_SLOTS:
                self.lost += 1
                return
            self._queue.append(_Slot(number, self._held if len(self._queue) < WAITING_FRAMES else None, pcm))
            self._ready.notify_all()

    def _take(self) -> _Slot | None:
        """The next slot; None after the last one."""
        with self._ready:
            while not self._queue:
                if self._stopped.is_set() and not self._threads[0].is_alive():
                    return None
                self._ready.wait(SLOT_S)
            slot = self._queue.popleft()
            if slot.image is None or len(self._queue) >= LATE_SLOTS:
                self.skipped += 1
                return replace(slot, image=None)
            return slot

    def _encode(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            while (slot := self._take()) is not None:
                self._film.add(slot)
                self.slots = slot.number + 1
                if slot.number % CHECK_SLOTS == 0 and free_bytes(self._film.path.parent) < RESERVE_BYTES:
                    self._end(DISK_FULL)
                if self._film.error is not None:
                    log.error("a recording was cut off: %s", self._film.error)
                    self._end(DISK_FULL if self._film.full else "The recording could not be written, so it was ended.")
                    break
        except (av.FFmpegError, OSError):
            log.exception("a recording cannot be made")
            self._end("The recording could not be made, so it was ended. The log of the streamer says why.")
        finally:
            self._stopped.set()
            self._film.close()
            if self.skipped or self.lost:
                log.warning("a recording lacks %d pictures and %d slots of sound", self.skipped, self.lost)


class _Film:
    """The encoders and the file."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path = path
        self._width, self._height = max(16, width & ~1), max(16, height & ~1)
        self._file = _File(path)
        self._slots = 0
        self._image: npt.NDArray[np.uint8] | None = None
        self._picture: Any = None
        options = {
            "movflags": "delay_moov+default_base_moof+hybrid_fragmented",
            "frag_duration": str(round(FRAGMENT_S * 1e6)),
            "flush_packets": "1",
        }
        self._container = av.open(self._file, "w", format="mp4", options=options)
        self._container.metadata.update({"title": MARK, "comment": MARK})
        coder = {"preset": "veryfast", "tune": "zerolatency", "crf": QUALITY}
        self._video: Any = self._container.add_stream("libx264", rate=FPS, options=coder)
        self._video.width, self._video.height = self._width, self._height
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = Fraction(1, FPS)
        self._video.codec_context.thread_count = 1
        self._video.codec_context.gop_size = KEY_FRAMES
        self._voice: Any = self._container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        self._voice.bit_rate = SOUND_BITS

    @property
    def error(self) -> OSError | None:
        """What the disk answered."""
        return self._file.error

    @property
    def full(self) -> bool:
        """Whether it is full, and not broken."""
        return self._file.full

    def add(self, slot: _Slot) -> None:
        """Append a slot; where some were left out before it, there is silence."""
        silence = np.zeros((slot.number - self._slots) * SLOT_SAMPLES, np.int16)
        pcm = np.concatenate((silence, slot.pcm))
        sound = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        sound.sample_rate = SAMPLE_RATE_HZ
        sound.time_base = Fraction(1, SAMPLE_RATE_HZ)
        sound.pts = self._slots * SLOT_SAMPLES
        self._slots = slot.number + 1
        if slot.image is not None:
            if slot.image is not self._image:
                self._image = slot.image
                planes = cv2.cvtColor(fit(slot.image, self._width, self._height), cv2.COLOR_BGR2YUV_I420)
                self._picture = av.VideoFrame.from_ndarray(planes.astype(np.uint8, copy=False), format="yuv420p")
                self._picture.time_base = Fraction(1, FPS)
            self._picture.pts = slot.number
            self._mux(self._video.encode(self._picture))
        self._mux(self._voice.encode(sound))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self._container.mux(packet)

    def close(self) -> None:
        """Write what is left and the index; after an error, cut off what is not whole."""
        try:
            if self._slots:
                for stream in (self._video, self._voice):
                    self._mux(stream.encode(None))
                self._container.close()
        finally:
            self._file.close()
        if self.error is not None:
            os.truncate(self.path, whole_bytes(self.path))


class _File:
    """A file that goes to the disk write by write. After the first error it takes everything and keeps nothing: the
    muxer comes to its end in peace, and what it wrote before stays as it is."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.name = str(path)
        self.error: OSError | None = None
        self._at = 0

    @property
    def full(self) -> bool:
        return self.error is not None and self.error.errno in {errno.ENOSPC, errno.EDQUOT}

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        at = self._at
        while rest and self.error is None:
            try:
                count = os.pwrite(self._fd, rest, at)
            except OSError as error:
                self.error = error
            else:
                rest, at = rest[count:], at + count
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        with suppress(OSError):  # no room for what the kernel kept back is an error that was met before
            os.fsync(self._fd)
        os.close(self._fd)


def fit(image: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Bring a picture to a size: cut by a pixel, or scaled between black bars where it has another shape.

    Args:
        image: BGR, (h, w, 3).
        width: wanted, px.
        height: wanted, px.

    Returns:
        (height, width, 3)
    """
    tall, wide = image.shape[:2]
    if (wide & ~1, tall & ~1) == (width, height):
        return np.ascontiguousarray(image[:height, :width])
    scale = min(width / wide, height / tall)
    size = (min(width, max(1, round(wide * scale))), min(height, max(1, round(tall * scale))))
    canvas = np.zeros((height, width, 3), np.uint8)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return canvas


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def boxes(path: Path) -> list[tuple[str, int, int]]:
    """The top-level boxes of an MP4 file that are whole: name, place, bytes."""
    found = []
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at + 8 <= end:
            head = os.pread(file.fileno(), 16, at)
            size = int.from_bytes(head[:4], "big")
            if size == 1 and len(head) == 16:
                size = int.from_bytes(head[8:], "big")
            if size < 8 or at + size > end:
                break
            found.append((head[4:8].decode("latin-1"), at, size))
            at += size
    return found


def whole_bytes(path: Path) -> int:
    """Where the last whole fragment of an MP4 file ends."""
    ends = [at + size for name, at, size in boxes(path) if name in {"ftyp", "moov", "mdat"}]
    return max(ends, default=0)
