"""Sources that are played in real time by the monotonic clock: a file, the demo speech, and sound pushed by web."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from services.audio_capture.chunks import (
    CHUNK_SAMPLES,
    NS_PER_SAMPLE,
    SAMPLE_RATE_HZ,
    Chunk,
    Hole,
    Pcm16,
    Reason,
    SourceStatus,
    to_pcm16,
)
from shared.resample import StreamResampler

__all__ = ["DemoSource", "FileSource", "NetworkSource", "Playout"]

DEMO_SPEECH: Final = Path(__file__).parent / "assets" / "demo_speech.flac"


@dataclass(slots=True)
class _Piece:
    """Something that waits to be played."""

    samples: int
    """its length"""
    pcm: Pcm16 | None
    """its sound; None: sound is missing"""
    pushed: int
    """place of the first sample in what is pushed; -1 where nothing is"""
    why: Reason = "lost"
    """why sound is missing, where it is"""


class Playout:
    """Play sound in real time: chunk n is due at ``origin + 20 ms x (n + 1)``, by the clock and so without drift.

    Sound that comes up to `JITTER_NS` after it was due is given late, unbroken. After a longer pause the line goes on
    by the monotonic clock: a `Hole` stands for the pause, so that a player's clock stays right; "pause" where the
    utterance before it was over (`finish`), "late" where not. A pause is one only if `take` has missed a chunk, so that
    an owner who looked away for a while finds everything in its place.

    What waits is kept as it came and cut into chunks when they are due; however much it is, a put costs the same.
    """

    JITTER_NS: Final = 100_000_000
    MERGE_SAMPLES: Final = 1_600
    """pieces shorter than this are kept together, so that a crowd of tiny ones costs no memory"""

    def __init__(self) -> None:
        self._pieces: deque[_Piece] = deque()
        self._place = 0
        """first sample of the line that was not given yet"""
        self._padding = False
        self._finished = False
        self._origin_ns: int | None = None
        self.sound_samples = 0
        """sound that is still to be played, samples"""
        self._hole_samples = 0
        self.starved_ns: int | None = None
        """since when a chunk is missing, monotonic ns; None while there is sound"""

    @property
    def begun(self) -> bool:
        """Whether there was sound ever."""
        return self._origin_ns is not None

    @property
    def waiting_samples(self) -> int:
        """Length of what is still to be played, with its holes, samples."""
        return self.sound_samples + self._hole_samples

    def put(self, pcm: Pcm16, now_ns: int, pushed: int = -1) -> None:
        """Add sound.

        Args:
            pcm: 16 kHz mono, int16, (n,); it is kept, not copied.
            now_ns: monotonic ns.
            pushed: place of its first sample in what is pushed, samples.
        """
        if not len(pcm):
            return
        self._go_on(now_ns)
        self._padding = self._finished = False
        self.sound_samples += len(pcm)
        last = self._pieces[-1] if self._pieces else _Piece(0, None, -1)
        follows = pushed == (last.pushed + last.samples if last.pushed >= 0 else -1)
        if last.pcm is not None and follows and last.samples + len(pcm) <= self.MERGE_SAMPLES:
            last.pcm = np.concatenate((last.pcm, pcm))
            last.samples += len(pcm)
        else:
            self._pieces.append(_Piece(len(pcm), pcm, pushed))

    def put_hole(self, samples: int, now_ns: int) -> None:
        """Say that sound is missing here; an unfinished chunk before it is filled with zeros from the hole's length."""
        self._go_on(now_ns)
        self._add_hole(samples, "lost")

    def pad(self) -> None:
        """Fill the last, unfinished chunk (less than 20 ms) with zeros when it is due, unless more comes by then."""
        self._padding = self.sound_samples > 0

    def finish(self) -> None:
        """An utterance is over: `pad`, and what comes later is another one, however much later that is."""
        self.pad()
        self._finished = True

    def take(self, now_ns: int) -> list[Chunk | Hole]:
        """Give what is due."""
        items: list[Chunk | Hole] = []
        while (due_ns := self.due_ns()) is not None and due_ns <= now_ns:
            if not self._ready():
                if self.starved_ns is None:
                    self.starved_ns = now_ns
                break
            items.append(self._cut(due_ns))
        return items

    def due_ns(self) -> int | None:
        """When the next item is or would be due, monotonic ns; None before the first sound."""
        if self._origin_ns is None:
            return None
        ahead = 0 if self._pieces and self._pieces[0].pcm is None else CHUNK_SAMPLES
        return self._origin_ns + (self._place + ahead) * NS_PER_SAMPLE

    def _ready(self) -> bool:
        if not self._pieces:
            return False
        return self._pieces[0].pcm is None or self.waiting_samples >= CHUNK_SAMPLES or self._padding

    def _cut(self, due_ns: int) -> Chunk | Hole:
        """Take the next item off: a hole, or a chunk, which begins with sound and may reach into a hole."""
        first, piece = self._place, self._pieces[0]
        if piece.pcm is None:
            self._pieces.popleft()
            self._hole_samples -= piece.samples
            self._place += piece.samples
            return Hole(first, piece.samples, piece.why)
        pushed = piece.pushed
        sound = np.zeros(CHUNK_SAMPLES, np.int16)
        filled = 0
        while filled < CHUNK_SAMPLES and self._pieces:
            piece = self._pieces[0]
            length = min(piece.samples, CHUNK_SAMPLES - filled)
            if piece.pcm is None:
                self._hole_samples -= length
            else:
                sound[filled : filled + length] = piece.pcm[:length]
                self.sound_samples -= length
            filled += length
            self._shorten(length)
        self._padding = self._padding and self.sound_samples > 0
        self._place += CHUNK_SAMPLES
        return Chunk(first, due_ns, sound, pushed)

    def _shorten(self, samples: int) -> None:
        piece = self._pieces[0]
        if piece.samples == samples:
            self._pieces.popleft()
            return
        piece.samples -= samples
        if piece.pcm is not None:
            piece.pcm = piece.pcm[samples:]
            piece.pushed += samples if piece.pushed >= 0 else 0

    def _go_on(self, now_ns: int) -> None:
        if self._origin_ns is None:
            self._origin_ns = now_ns
        due_ns = self.due_ns()
        if self.starved_ns is not None and due_ns is not None:
            if now_ns - due_ns > self.JITTER_NS:
                away = (now_ns - self._origin_ns) // NS_PER_SAMPLE - self._place - self.waiting_samples
                self._add_hole(away, "pause" if self._finished else "late")
            self.starved_ns = None

    def _add_hole(self, samples: int, why: Reason) -> None:
        if samples > 0:
            self._hole_samples += samples
            self._pieces.append(_Piece(samples, None, -1, why))


class _FileError(Exception):
    """The file cannot be played; the text is for a person."""


class FileSource:
    """Sound of a file, in real time.

    What libsndfile reads (WAV, FLAC, OGG, MP3 and more) is read by it, everything else by ffmpeg, streaming; at most
    2 s are held. All channels are mixed to one. A loop goes on without a gap and the sample count with it.

    Args:
        path: the file.
        loop: begin again at its end.
    """

    AHEAD_BLOCKS: Final = 20
    BLOCK_S: Final = 0.1
    HANG_S: Final = 10.0
    """ffmpeg gives nothing for so long: it hangs"""

    def __init__(self, path: str | Path, *, loop: bool = False) -> None:
        self._path = Path(path)
        self._loop = loop
        self._name = f"the file {self._path.name}"
        self._playout = Playout()
        self._status = SourceStatus("starting", f"Opening {self._name}.")
        self._change = threading.Condition()
        # guarded by _change:
        self._blocks: deque[Pcm16] = deque()
        self._finished = False
        self._problem = ""
        self._closed = False
        self._child: subprocess.Popen[bytes] | None = None
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="file-source", daemon=True)

    @property
    def status(self) -> SourceStatus:
        """How it is."""
        return self._status

    def start(self) -> None:
        """Begin to read the file; nothing waits for it."""
        self._thread.start()

    def fileno(self) -> int:
        """A descriptor that is readable when sound comes after none was there.

        Raises:
            ValueError: the source is closed.
        """
        if self._closed:
            raise ValueError(f"{self._name} is closed")
        return self._wake_fd

    def next_due(self) -> float | None:
        """When the next chunk is due, s of `time.monotonic`; None while the file is the one to wait for."""
        due_ns = self._playout.due_ns()
        if self._status.state in ("ended", "failed") or due_ns is None or self._playout.starved_ns is not None:
            return None
        return due_ns / 1e9

    def read(self) -> list[Chunk | Hole]:
        """Give what is due. Never blocks."""
        if self._closed:
            return []
        with contextlib.suppress(BlockingIOError):  # nothing new is no error
            os.eventfd_read(self._wake_fd)
        if self._status.state in ("ended", "failed"):
            return []
        items: list[Chunk | Hole] = []
        now_ns = time.monotonic_ns()
        while True:
            with self._change:
                finished, problem = self._finished, self._problem
                block = self._blocks.popleft() if self._wants(now_ns) and self._blocks else None
                if block is not None:
                    self._change.notify_all()  # there is room again
                drained = not self._blocks
            if block is not None:
                self._playout.put(block, now_ns)
                self._status = SourceStatus("running", f"Playing {self._name}.")
            elif finished and drained:
                self._playout.pad()
            given = self._playout.take(now_ns)
            items += given
            if block is None and not given:
                break
        if finished and drained and not self._playout.waiting_samples:
            self._status = SourceStatus("failed", problem) if problem else SourceStatus("ended", f"{self._name} ended.")
        return items

    def close(self) -> None:
        """End the reading, and ffmpeg with it. May be called twice."""
        with self._change:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_fd)
            if self._child is not None:
                self._child.kill()
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(0.4)
        if self._status.state != "failed":
            self._status = SourceStatus("ended", f"{self._name} is closed.")

    def _wants(self, now_ns: int) -> bool:
        due_ns = self._playout.due_ns()
        return due_ns is None or (self._playout.waiting_samples < CHUNK_SAMPLES and due_ns <= now_ns)

    # What follows runs in the thread.

    def _run(self) -> None:
        problem = ""
        try:
            self._check()
            with self._reader() as decode:
                again = True
                while again:
                    samples = 0
                    for block in decode():
                        samples += len(block)
                        if not self._give(block):
                            return
                    if not samples:
                        problem = f"{self._name} holds no sound."
                    again = self._loop and not problem
        except _FileError as error:
            problem = str(error)
        except soundfile.LibsndfileError as error:
            problem = f"{self._name} is damaged: {error}"
        except OSError as error:
            problem = f"{self._name} cannot be read: {error.strerror}."
        with self._change:
            self._finished = True
            self._problem = problem[:1].upper() + problem[1:]
            self._signal()

    def _give(self, block: Pcm16) -> bool:
        with self._change:
            while len(self._blocks) >= self.AHEAD_BLOCKS and not self._closed:
                self._change.wait(1.0)
            if self._closed:
                return False
            self._blocks.append(block)
            if len(self._blocks) == 1:
                self._signal()
        return True

    def _signal(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wake_fd, 1)

    def _check(self) -> None:
        if not self._path.exists():
            raise _FileError(f"{self._name} is not there; check the path.")
        if self._path.is_dir():
            raise _FileError(f"{self._path.name} is a directory; name one file in it.")
        if not self._path.is_file():
            raise _FileError(f"{self._path.name} is no ordinary file.")
        with self._path.open("rb") as file:
            if not file.read(1):
                raise _FileError(f"{self._name} is empty.")

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[], Iterator[Pcm16]]]:
        """Give what decodes the file once from its beginning, each time that it is called.

        Where it can, libsndfile goes back in the open file: opened anew for each loop it made the process grow. Its
        MP3 reader finds a damaged frame at the beginning after it has gone back.
        """
        try:
            file = soundfile.SoundFile(self._path)
        except soundfile.LibsndfileError:
            yield self._decode_by_ffmpeg
            return
        with file:
            if file.seekable() and file.format != "MP3":
                yield lambda: self._decode_again(file)
                return
        yield self._decode_anew

    def _decode_again(self, file: soundfile.SoundFile) -> Iterator[Pcm16]:
        file.seek(0)
        yield from self._decode(file)

    def _decode_anew(self) -> Iterator[Pcm16]:
        with soundfile.SoundFile(self._path) as file:
            yield from self._decode(file)

    def _decode(self, file: soundfile.SoundFile) -> Iterator[Pcm16]:
        resampler = None if file.samplerate == SAMPLE_RATE_HZ else StreamResampler(file.samplerate)
        block = np.empty((max(1, round(file.samplerate * self.BLOCK_S)), file.channels), np.float32)
        # Not `read`: it asks for each block's __array_interface__, for which NumPy interns strings that nothing keeps;
        # every 20,000 blocks or so Python then makes a new table of its interned strings, which is 1 MB by now.
        while frames := file.buffer_read_into(block, "float32"):
            mono = block[:frames].mean(axis=1, dtype=np.float32)
            yield to_pcm16(resampler.process(mono) if resampler else mono)
        if resampler:
            yield to_pcm16(resampler.flush())

    def _decode_by_ffmpeg(self) -> Iterator[Pcm16]:
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise _FileError(
                f"{self._name} is in no format that can be read without ffmpeg. Install it (sudo apt-get install "
                "ffmpeg), or give a WAV, FLAC, OGG or MP3 file."
            )
        # Only local files: a playlist must not make ffmpeg fetch addresses.
        command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe,crypto,data"]
        command += ["-i", f"file:{self._path}", "-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ)]
        command += ["-f", "s16le", "pipe:1"]
        with self._change:
            if self._closed:
                return
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._child = child
        try:
            yield from self._pump(child)
        finally:
            with self._change:
                self._child = None
            child.kill()
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
            child.wait()

    def _pump(self, child: subprocess.Popen[bytes]) -> Iterator[Pcm16]:
        said = b""
        rest = b""
        heard = False
        with selectors.DefaultSelector() as selector:
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                events = selector.select(self.HANG_S)
                if not events:
                    raise _FileError(f"ffmpeg does not get on with {self._name}.")
                for key, _ in events:
                    data = os.read(key.fd, 8192)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is child.stderr:
                        said = (said + data)[-2000:]
                    else:
                        rest += data
                        even = len(rest) & ~1
                        heard = True
                        yield np.frombuffer(rest[:even], "<i2")
                        rest = rest[even:]
        if child.wait(self.HANG_S) and not heard:
            words = said.decode(errors="replace")
            if "matches no streams" in words:
                raise _FileError(f"{self._name} has no sound track.")
            raise _FileError(f"{self._name} is no sound or video file that ffmpeg can read.")


class DemoSource(FileSource):
    """The demo speech that comes with the project, over and over."""

    def __init__(self, *, loop: bool = True) -> None:
        super().__init__(DEMO_SPEECH, loop=loop)
        self._name = "the demo speech"


class NetworkSource:
    """Sound that is pushed, played in real time; it may come faster than it is played, and wait up to 10 minutes.

    The first sample of the line is the first one pushed. Silence is never made up: when nothing is left the source
    says "ended" after `end`, or "waiting" after 0.5 s. When sound comes again it goes on, with a `Hole` for
    the pause, because the line follows the monotonic clock (see `Playout`). Each `Chunk` says how much of what was
    pushed lies before it; up to 319 zeros at its end fill the last one of an utterance, and are not counted.
    """

    BUFFER_SAMPLES: Final = 600 * SAMPLE_RATE_HZ
    QUIET_NS: Final = 500_000_000

    def __init__(self) -> None:
        self._playout = Playout()
        self._status = SourceStatus("waiting", "No sound has come from the network yet.")
        self._expected: int | None = None
        self._end_asked = False
        self._closed = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.refused_samples = 0
        """samples that found the buffer full"""

    @property
    def status(self) -> SourceStatus:
        """How it is."""
        return self._status

    @property
    def waiting_samples(self) -> int:
        """Sound that was pushed and not yet given, samples."""
        return self._playout.sound_samples

    def start(self) -> None:
        """Nothing to do: `push` begins it."""

    def push(self, first_sample: int, pcm: Pcm16) -> bool:
        """Add sound.

        Args:
            first_sample: its place in what is pushed, samples. A jump ahead is a `Hole` ("lost"), up to 10 minutes;
                a jump back, or a longer one, is a sender that began anew, and goes on without a hole.
            pcm: 16 kHz mono, int16, (n,).

        Returns:
            whether it was taken; False: more than 10 minutes wait already, and `refused_samples` counts it.

        Raises:
            ValueError: the array has another shape or type, or the source is closed.
        """
        if self._closed:
            raise ValueError("the network source is closed")
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"pushed sound must be int16 of shape (n,), not {pcm.dtype} of shape {pcm.shape}")
        if not len(pcm):
            return True
        jump = 0 if self._expected is None else first_sample - self._expected
        if not 0 <= jump <= self.BUFFER_SAMPLES:
            jump = 0
        if self._playout.sound_samples + len(pcm) > self.BUFFER_SAMPLES:
            self.refused_samples += len(pcm)
            return False
        now_ns = time.monotonic_ns()
        if jump:
            self._playout.put_hole(jump, now_ns)
        self._playout.put(pcm, now_ns, first_sample)
        self._expected = first_sample + len(pcm)
        self._end_asked = False
        self._status = SourceStatus("running", "Playing sound from the network.")
        os.eventfd_write(self._wake_fd, 1)
        return True

    def flush(self, first_sample: int) -> None:
        """An utterance ends: a chunk that is not full is given when it is due, with zeros behind it.

        Args:
            first_sample: place in what is pushed where the next utterance begins, samples. If sound from there on has
                come already nothing is to be done: it follows without a pause.
        """
        if self._closed or self._expected is None or first_sample < self._expected:
            return
        self._playout.finish()
        os.eventfd_write(self._wake_fd, 1)

    def end(self) -> None:
        """No more will be pushed for now: say "ended" after the last sample."""
        if self._closed or self._end_asked:
            return
        self._end_asked = True
        self._expected = None
        self._playout.finish()
        os.eventfd_write(self._wake_fd, 1)

    def fileno(self) -> int:
        """A descriptor that is readable after a push or an end.

        Raises:
            ValueError: the source is closed.
        """
        if self._closed:
            raise ValueError("the network source is closed")
        return self._wake_fd

    def next_due(self) -> float | None:
        """When the next chunk is due or the source counts as waiting, s of `time.monotonic`."""
        due_ns = self._playout.due_ns()
        if due_ns is None or self._status.state != "running":
            return None
        if self._playout.starved_ns is not None:
            due_ns = self._playout.starved_ns + self.QUIET_NS
        return due_ns / 1e9

    def read(self) -> list[Chunk | Hole]:
        """Give what is due. Never blocks."""
        if self._closed:
            return []
        with contextlib.suppress(BlockingIOError):  # nothing new is no error
            os.eventfd_read(self._wake_fd)
        now_ns = time.monotonic_ns()
        items = self._playout.take(now_ns)
        starved_ns = self._playout.starved_ns
        if self._end_asked and not self._playout.waiting_samples:
            self._status = SourceStatus("ended", "The sound from the network ended.")
        elif self._status.state == "running" and starved_ns is not None and now_ns - starved_ns >= self.QUIET_NS:
            self._playout.pad()
            items += self._playout.take(now_ns)
            self._status = SourceStatus("waiting", "No more sound comes from the network.")
        return items

    def close(self) -> None:
        """Forget everything. May be called twice."""
        if self._closed:
            return
        self._closed = True
        os.close(self._wake_fd)
        self._status = SourceStatus("ended", "The network source is closed.")
