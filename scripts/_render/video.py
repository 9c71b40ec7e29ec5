"""Pictures in and out through ffmpeg processes, one frame at a time, so that no length of video fills the memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal, Self, cast

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["SYNTHETIC", "Change", "Clip", "Mp4", "RenderError", "Streams", "probe", "run_ffmpeg"]

Pixels = npt.NDArray[np.uint8]

SYNTHETIC: Final = "Synthetic: made with Mouthpiece"
"""what is made says so in its metadata"""
STEADY: Final = 0.005
"""A video whose mean rate is this near to its nominal one has a constant rate, share."""
USUAL_RATES: Final = tuple(
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60")
)
"""Hz; a video of varying rate is laid on the nearest of them, if one is near"""
NEAR_RATE: Final = 0.03
"""share"""
CHUNK_BYTES: Final = 128 * 2**20
"""Most memory for the frames of a stretch that is played backwards."""
LEAST_CHUNK: Final = 8
SEEK_MARGIN: Final = 8
"""frames read before and after a stretch, since containers do not agree on where time begins"""
MARKED_ROWS: Final = 4
"""Every so many rows of a frame go into its checksum."""
PIPE_BYTES: Final = 2**20


class RenderError(ValueError):
    """It cannot be rendered; the text says why and what to do."""


@dataclass(frozen=True)
class Streams:
    """What ffprobe says of a file."""

    video: dict[str, Any] | None
    """its first moving picture, None without one"""
    audio: dict[str, Any] | None
    """its first sound"""


def probe(path: Path) -> Streams:
    """Look into a media file.

    Args:
        path: the file.

    Raises:
        RenderError: there is no such file, no ffprobe, or it is no media file.
    """
    if not path.is_file():
        raise RenderError(f"{path}: no such file")
    command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", f"file:{path}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise RenderError(_missing("ffprobe")) from error
    if done.returncode != 0:
        raise RenderError(f"{path}: neither sound nor video that ffmpeg can read ({_last_line(done.stderr, path)})")
    told = json.loads(done.stdout)
    if told.get("format", {}).get("format_name") == "tty":  # what ffmpeg takes a text for
        raise RenderError(f"{path}: neither sound nor video, but text")
    streams = told.get("streams", [])
    pictures = [
        each
        for each in streams
        if each.get("codec_type") == "video" and not each.get("disposition", {}).get("attached_pic")
    ]
    sounds = [each for each in streams if each.get("codec_type") == "audio"]
    return Streams(pictures[0] if pictures else None, sounds[0] if sounds else None)


def run_ffmpeg(arguments: list[str], errors: IO[bytes], **pipes: Any) -> subprocess.Popen[bytes]:
    """Start ffmpeg, apart from the terminal's Ctrl-C: whoever started it ends it.

    Args:
        arguments: after ``ffmpeg -v error``.
        errors: file that takes what it says.
        pipes: ``stdin`` or ``stdout``.

    Raises:
        RenderError: ffmpeg is not installed.
    """
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-v", "error", *arguments]
    try:
        return subprocess.Popen(
            command,
            stderr=errors,
            start_new_session=True,
            pipesize=PIPE_BYTES,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes},
        )
    except FileNotFoundError as error:
        raise RenderError(_missing("ffmpeg")) from error


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that is no longer needed, whatever it does."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()


def said(process: subprocess.Popen[bytes], errors: IO[bytes], path: Path) -> str:
    """Why a program failed: the last line of what it wrote, without the path that stands before it anyway."""
    if process.returncode < 0:
        return f"ffmpeg was ended by signal {-process.returncode}"
    errors.seek(0)
    return _last_line(errors.read(), path)


def _last_line(output: bytes, path: Path) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].replace(f"file:{path}: ", "") if lines else "ffmpeg does not say why"


def _missing(program: str) -> str:
    return f"{program} is not installed; it reads and writes sound and video (Debian, Ubuntu: apt install ffmpeg)"


@dataclass(frozen=True)
class Change:
    """What is done to each frame first, in this order, as in the published script."""

    resize_factor: int = 1
    """both sides are divided by it"""
    rotate: bool = False
    """by 90 degrees clockwise"""
    crop: tuple[int, int, int, int] = (0, -1, 0, -1)
    """top, bottom, left, right, px; -1: to the end"""

    def apply(self, frame: Pixels) -> Pixels:
        """Change a frame (h, w, 3).

        Raises:
            RenderError: nothing is left of it.
        """
        height, width = frame.shape[:2]
        if self.resize_factor > 1:
            size = (width // self.resize_factor, height // self.resize_factor)
            if min(size) < 1:
                raise RenderError(f"--resize-factor {self.resize_factor} leaves nothing of {width} x {height} pixels")
            frame = np.asarray(cv2.resize(frame, size), np.uint8)
        if self.rotate:
            frame = np.asarray(cv2.rotate(frame, cv2.ROTATE_90_CLOCKWISE), np.uint8)
        top, bottom, left, right = self.crop
        height, width = frame.shape[:2]
        bottom, right = (height if bottom == -1 else bottom), (width if right == -1 else right)
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise RenderError(
                f"--crop {' '.join(map(str, self.crop))} (top bottom left right) leaves nothing, or reaches out of "
                f"the picture, which has {width} x {height} pixels"
            )
        return np.ascontiguousarray(frame[top:bottom, left:right])


class Clip:
    """A video as a source of frames: read forward, or to and fro, without holding more than a stretch of it.

    Args:
        path: the file.
        change: what is done to each frame.

    Raises:
        RenderError: it has no video, or ffprobe does not know its size or rate.
    """

    def __init__(self, path: Path, change: Change) -> None:
        stream = probe(path).video
        if stream is None:
            raise RenderError(f"{path}: has no video; give a photo (JPEG, PNG, WebP) or a video")
        self.path = path
        self._change = change
        self._marks: list[int] = []
        nominal, mean = _fraction(stream.get("r_frame_rate")), _fraction(stream.get("avg_frame_rate"))
        rate = nominal or mean
        width, height = int(stream.get("width", 0)), int(stream.get("height", 0))
        if not rate or not width or not height:
            raise RenderError(f"{path}: ffmpeg cannot tell the size or the frame rate of this video")
        self._filters: list[str] = []
        if mean and abs(float(mean / rate) - 1) > STEADY:
            # Frames that are missing in a video of a usual rate leave holes; else it is a camera that takes its time.
            rate = rate if rate in USUAL_RATES and mean < rate < 2 * mean else _usual(mean)
            self._filters.append(f"fps={rate.numerator}/{rate.denominator}")
        self.rate_hz: Final = rate
        """frames a second"""
        if _turned(stream):
            width, height = height, width
        square = _fraction(str(stream.get("sample_aspect_ratio", "1:1")).replace(":", "/")) or Fraction(1)
        if square != 1:
            width = max(1, round(width * (1 / square if _turned(stream) else square)))
            self._filters.append(f"scale={width}:{height}:flags=bicubic,setsar=1")
        self._shape = (height, width, 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of a frame before the change."""
        return self._shape

    def frames(self, start: int = 0) -> Generator[Pixels]:
        """Decode.

        Args:
            start: number of the frame from which to read, to within some frames; exactly only for 0.

        Yields:
            BGR, (h, w, 3), each its own memory.

        Raises:
            RenderError: the video cannot be decoded.
        """
        seek = ["-ss", f"{float(start / self.rate_hz):.6f}"] if start else []
        filters = ["-vf", ",".join(self._filters)] if self._filters else []
        into = ["-map", "0:V:0", *filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "bgr24", "pipe:1"]
        with tempfile.TemporaryFile() as errors:
            process = run_ffmpeg([*seek, "-i", f"file:{self.path}", *into], errors, stdout=subprocess.PIPE)
            pipe = cast("BufferedReader", process.stdout)
            try:
                while True:
                    frame = np.empty(self._shape, np.uint8)
                    # It fills the whole buffer but at the end.
                    if pipe.readinto(frame.data.cast("B")) != frame.nbytes:
                        break
                    yield self._change.apply(frame)
                if process.wait() != 0:
                    raise RenderError(f"{self.path}: the video cannot be decoded: {said(process, errors, self.path)}")
            finally:
                end(process)

    def first(self) -> Pixels:
        """Decode the first frame.

        Raises:
            RenderError: there is none.
        """
        with contextlib.closing(self.frames()) as frames:
            for frame in frames:
                return frame
        raise RenderError(f"{self.path}: holds no frame that can be decoded")

    def played(self, count: int, loop: Literal["pingpong", "repeat"]) -> Generator[tuple[int, Pixels]]:
        """Decode as many frames as are asked for; a video that is too short runs again.

        Args:
            count: how many frames.
            loop: to and fro (the frames at both ends are shown once), or from the beginning again.

        Yields:
            number of the frame in the video, and the frame.

        Raises:
            RenderError: the video cannot be decoded, or not twice in the same way.
        """
        self._marks = []
        left = count
        frame = None
        with contextlib.closing(self.frames()) as frames:
            for index, frame in enumerate(islice(frames, count)):
                self._marks.append(_mark(frame))
                yield index, frame
                left -= 1
        if frame is None:
            raise RenderError(f"{self.path}: holds no frame that can be decoded")
        last = frame
        while left > 0:
            again = self._again(loop, last)
            with contextlib.closing(again):
                for index, frame in islice(again, left):
                    yield index, frame
                    left -= 1

    def _again(self, loop: Literal["pingpong", "repeat"], last: Pixels) -> Generator[tuple[int, Pixels]]:
        if len(self._marks) == 1:
            yield 0, last.copy()
            return
        if loop == "pingpong":
            yield from self._backward()
        with contextlib.closing(self.frames()) as frames:
            yield from enumerate(islice(frames, len(self._marks)))

    def _backward(self) -> Iterator[tuple[int, Pixels]]:
        """Yield the frames from the last but one back to the second, a stretch at a time."""
        length = max(LEAST_CHUNK, CHUNK_BYTES // int(np.prod(self._shape)))
        for high in range(len(self._marks) - 1, 1, -length):
            low = max(1, high - length)
            stretch = self._stretch(low, high)
            for index in range(high - 1, low - 1, -1):
                yield index, stretch.pop()

    def _stretch(self, low: int, high: int) -> list[Pixels]:
        """Decode frames [low, high) exactly: what a seek brings is compared with the checksums of the first run."""
        wanted = self._marks[low:high]
        start = max(0, low - SEEK_MARGIN)
        if start > 0:
            with contextlib.closing(self.frames(start)) as frames:
                seen = list(islice(frames, high - start + SEEK_MARGIN))
            marks = [_mark(frame) for frame in seen]
            for at in range(len(marks) - len(wanted) + 1):
                if marks[at : at + len(wanted)] == wanted:
                    return seen[at : at + len(wanted)]
            del seen
        with contextlib.closing(self.frames()) as frames:
            stretch = list(islice(frames, low, high))
        if [_mark(frame) for frame in stretch] != wanted:
            raise RenderError(
                f"{self.path}: decodes differently each time, so it cannot run to and fro; take --loop repeat"
            )
        return stretch


class Mp4:
    """Writes H.264 and AAC into an MP4 file, which gets its name only when it is whole.

    Use as a context: an exception inside leaves nothing behind.

    Args:
        path: the file to be; one of that name is replaced at the end.
        shape: rows and columns of a frame; an odd last row or column is left out, as H.264 in 4:2:0 needs it.
        rate_hz: frames a second.
        audio: ffmpeg arguments that read the sound and filter it.

    Raises:
        RenderError: ffmpeg is missing or cannot write, a full disk above all.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], rate_hz: Fraction, audio: tuple[list[str], list[str]]
    ) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        height, width = shape
        if min(height, width) < 2:
            raise RenderError(f"a picture of {width} x {height} pixels cannot be encoded; take a larger one")
        reading, filtering = audio
        picture = f"crop={width // 2 * 2}:{height // 2 * 2}:0:0,scale=out_color_matrix=bt709:out_range=tv"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the encoder
        self._process = run_ffmpeg(
            [
                *["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}"],
                *["-r", f"{rate_hz.numerator}/{rate_hz.denominator}", "-i", "pipe:0", *reading],
                *["-map", "0:v:0", "-map", "1:a:0", "-vf", picture, "-c:v", "libx264", "-preset", "veryfast"],
                *["-crf", "18", "-pix_fmt", "yuv420p", "-sws_flags", "bicubic+accurate_rnd+full_chroma_int"],
                *["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"],
                *[*filtering, "-c:a", "aac", "-b:a", "192k", "-map_metadata", "-1", "-map_chapters", "-1"],
                *["-metadata", f"comment={SYNTHETIC}", "-metadata", f"description={SYNTHETIC}"],
                *["-movflags", "+faststart", "-f", "mp4", "-y", f"file:{self._part}"],
            ],
            self._errors,
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            end(self._process)
            self._errors.close()
            self._part.unlink(missing_ok=True)

    def write(self, frame: Pixels) -> None:
        """Add a frame (h, w, 3).

        Raises:
            RenderError: ffmpeg has given up.
        """
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data.cast("B"))
        except BrokenPipeError as error:
            self._process.wait()
            raise self._failed() from error

    def _finish(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(BrokenPipeError):  # then the exit code is not 0
            self._process.stdin.close()
        if self._process.wait() != 0:
            raise self._failed()
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        self._part.replace(self._path)

    def _failed(self) -> RenderError:
        return RenderError(f"{self._path}: cannot be written: {said(self._process, self._errors, self._part)}")


def _mark(frame: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(frame[::MARKED_ROWS]).data)


def _fraction(text: Any) -> Fraction | None:
    try:
        return Fraction(str(text)) or None
    except (ValueError, ZeroDivisionError):
        return None


def _usual(mean: Fraction) -> Fraction:
    nearest = min(USUAL_RATES, key=lambda rate: abs(float(rate / mean) - 1))
    return nearest if abs(float(nearest / mean) - 1) < NEAR_RATE else Fraction(mean).limit_denominator(1001)


def _turned(stream: dict[str, Any]) -> bool:
    """Whether the player, as ffmpeg does, turns the picture by a quarter."""
    turns = [each["rotation"] for each in stream.get("side_data_list", []) if "rotation" in each]
    turns += [stream["tags"]["rotate"]] if "rotate" in stream.get("tags", {}) else []
    return bool(turns) and round(float(turns[0]) / 90) % 2 == 1
