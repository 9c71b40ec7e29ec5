"""The plain streams: pictures as MJPEG, one picture, and the sound that belongs to them."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

import av
import numpy as np
from flask import Blueprint, Response, request

from services.streamer.answers import NO_STORE, RefusedError, session_of
from services.streamer.line import TcpLine
from services.streamer.mjpeg import CONTENT_TYPE, HubClosedError, TooManyViewersError, parts
from shared.clock import CHUNK_SAMPLES, SAMPLE_RATE_HZ, seconds_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from services.streamer.control import Control
    from services.streamer.guard import Guard
    from services.streamer.mjpeg import Line
    from services.streamer.sound import SoundHub, SoundReader

    Pcm16 = npt.NDArray[np.int16]

__all__ = ["OpusFile", "WavFile", "blueprint", "pieces"]

ENDLESS_BYTES: Final = 0xFFFFFFFF
"""length of a WAV file that has no end, as players and libraries write it"""
OPUS_BITS_PER_S: Final = 32_000
OPUS_EFFORT: Final = 5
"""of 10: more costs processor time and cannot be heard with one voice"""
BEHIND_S: Final = 0.5
"""a listener whose line stood still for longer than this misses what was said meanwhile: its player has run dry, and
would be late by that much for good"""
DELAYS_MS: Final = (-200, 2000)
"""least and most that a listener may ask the sound to be later than the picture"""
LIVE: Final = {**NO_STORE, "X-Accel-Buffering": "no"}


class SoundFile(Protocol):
    """A file without an end, made as it is sent."""

    content_type: str

    def head(self) -> bytes:
        """What the file begins with."""
        ...

    def put(self, pcm: Pcm16) -> bytes:
        """The bytes that are ready after 20 ms more of sound, (320,)."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class WavFile:
    """PCM16, 16 kHz, mono."""

    content_type = "audio/wav"

    def head(self) -> bytes:
        """The chunks RIFF, fmt, LIST (who made it), and the beginning of data, both without a length."""
        rate, words = SAMPLE_RATE_HZ, b"Mouthpiece, synthetic\0"
        info = b"INFOISFT" + struct.pack("<I", len(words)) + words
        return b"".join(
            (
                b"RIFF" + struct.pack("<I", ENDLESS_BYTES) + b"WAVE",
                b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16),
                b"LIST" + struct.pack("<I", len(info)) + info,
                b"data" + struct.pack("<I", ENDLESS_BYTES),
            )
        )

    def put(self, pcm: Pcm16) -> bytes:
        """The samples, little-endian."""
        return pcm.astype("<i2").tobytes()

    def close(self) -> None:
        """Nothing is held."""


class OpusFile:
    """Opus in Ogg (RFC 6716, RFC 7845), one page for each 20 ms."""

    content_type = "audio/ogg; codecs=opus"

    def __init__(self) -> None:
        self._sink = _Sink()
        self._container = av.open(
            self._sink, "w", format="ogg", options={"page_duration": "20000", "flush_packets": "1"}
        )
        self._stream = self._container.add_stream("libopus", rate=SAMPLE_RATE_HZ)
        self._stream.layout = "mono"
        self._stream.metadata["comment"] = "Mouthpiece, synthetic"
        self._stream.bit_rate = OPUS_BITS_PER_S
        self._stream.options = {
            "application": "lowdelay",
            "frame_duration": "20",
            "compression_level": str(OPUS_EFFORT),
        }
        self._samples = 0

    def head(self) -> bytes:
        """The pages OpusHead and OpusTags."""
        self._container.start_encoding()
        return self._sink.taken()

    def put(self, pcm: Pcm16) -> bytes:
        """The pages that are ready."""
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        frame.pts = self._samples
        self._samples += len(pcm)
        self._container.mux(self._stream.encode(frame))
        return self._sink.taken()

    def close(self) -> None:
        """End the file; what is still inside is lost with the connection."""
        self._container.close()


class _Sink:
    """Where the Ogg writer writes: what came since it was last emptied. It cannot be sought in."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self._bytes.write(data)

    def taken(self) -> bytes:
        data = self._bytes.getvalue()
        self._bytes = io.BytesIO()
        return data


FILES: Final[dict[str, type[WavFile | OpusFile]]] = {"wav": WavFile, "opus": OpusFile}


def pieces(hub: SoundHub, reader: SoundReader, line: Line, file: SoundFile) -> Iterator[bytes]:
    """The body of the sound stream, 20 ms at a time by the monotonic clock, until the listener goes or the hub ends.

    Raises:
        ConnectionResetError: the listener takes nothing any more.
    """
    yield file.head()
    due_s = time.monotonic()
    while not hub.wait_closed(due_s - time.monotonic()):
        line.wait()
        now_s = time.monotonic()
        if now_s - due_s > BEHIND_S:
            due_s = now_s
        part = file.put(reader.read(CHUNK_SAMPLES, due_s))
        due_s += seconds_of(CHUNK_SAMPLES)
        if part:
            began_s = time.monotonic()
            yield part
            line.sent(len(part), began_s)


def blueprint(control: Control, _guard: Guard) -> Blueprint:
    """The routes of the streams."""
    routes = Blueprint("feeds", __name__)

    @routes.get("/video_feed")
    def video_feed() -> Response:
        session = session_of(control)
        if request.method == "HEAD":
            return _head(CONTENT_TYPE)
        with ExitStack() as stack:
            with _admitted():
                viewer = stack.enter_context(session.frames.viewer())
            line = _line()
            if line is None:
                return Response(status=HTTPStatus.NO_CONTENT)
            body = _Body(parts(session.frames, viewer, line), stack.pop_all())
        return Response(body, content_type=CONTENT_TYPE, headers=LIVE)

    @routes.get("/audio_feed")
    def audio_feed() -> Response:
        session = session_of(control)
        kind = FILES.get(request.args.get("format", "wav"))
        if kind is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "format must be wav or opus.")
        delay_s = _delay_s(request.args.get("delay_ms", "0"))
        if request.method == "HEAD":
            return _head(kind.content_type)
        with ExitStack() as stack:
            with _admitted():
                reader = stack.enter_context(session.sound.reader(delay_s))
            line = _line()
            if line is None:
                return Response(status=HTTPStatus.NO_CONTENT)
            file = kind()
            stack.callback(file.close)
            body = _Body(pieces(session.sound, reader, line, file), stack.pop_all())
        return Response(body, content_type=kind.content_type, headers=LIVE)

    @routes.get("/snapshot.jpg")
    def snapshot() -> Response:
        session = session_of(control)
        frame = session.frames.latest()
        if frame is None:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "There is no picture yet. Try again in a second.")
        jpeg = session.frames.jpeg(frame, session.frames.rungs[0])
        headers = {**NO_STORE, "X-Frame": str(frame.seq), "X-Media-Time": str(frame.media_time)}
        return Response(jpeg, content_type="image/jpeg", headers=headers)

    return routes


@contextmanager
def _admitted() -> Iterator[None]:
    """Turn what a hub raises into an answer."""
    try:
        yield
    except TooManyViewersError as error:
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
    except HubClosedError as error:
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.") from error


def _head(content_type: str) -> Response:
    """What a stream would begin with. It has no length, and takes no place."""
    response = Response(content_type=content_type, headers=LIVE)
    response.automatically_set_content_length = False
    return response


def _line() -> TcpLine | None:
    """The connection of this request; None when it has gone before it got an answer."""
    sock = request.environ.get("gunicorn.socket")
    if sock is None:
        raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "The stream needs the server that scripts/run starts.")
    try:
        return TcpLine(sock)
    except OSError:
        return None


def _delay_s(text: str) -> float:
    least, most = DELAYS_MS
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) <= 4 and least <= int(text) <= most:
        return int(text) / 1000
    raise RefusedError(HTTPStatus.BAD_REQUEST, f"delay_ms must be a whole number from {least} to {most}.")


class _Body(Iterator[bytes]):
    """The parts of a stream, and what to give back when it ends.

    A generator would not do: one that was never started does not run its `finally`, and the place of a viewer that
    left before the first byte would stay taken.
    """

    def __init__(self, body: Iterator[bytes], stack: ExitStack) -> None:
        self._body = body
        self._stack = stack

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        self._stack.close()
