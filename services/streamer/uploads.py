"""What people send: photos and sound. Read within bounds, refused with words that say what to send instead."""

from __future__ import annotations

import io
import wave
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import numpy as np
from flask import request

from services.streamer.answers import RefusedError
from shared.clock import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = [
    "MAX_PHOTO_BYTES",
    "MAX_SPEECH_S",
    "MAX_WAV_BYTES",
    "TOO_LARGE_PHOTO",
    "TOO_LONG_SPEECH",
    "Box",
    "read_box",
    "read_index",
    "read_photo",
    "read_wav",
    "sent_speech",
]

Box = tuple[int, int, int, int]

MAX_PHOTO_BYTES: Final = 10 * 1024 * 1024
MAX_WAV_BYTES: Final = 20 * 1024 * 1024
MAX_SPEECH_S: Final = 600
TOO_LARGE_PHOTO: Final = "This photo is larger than 10 MB. Make it smaller and try again."
TOO_LONG_SPEECH: Final = f"This sound is too long: at most {MAX_SPEECH_S // 60} minutes. Cut it and try again."


def read_photo() -> tuple[bytes, int, Box | None]:
    """The photo of the present request: the field `image` of a form, or the body itself.

    Returns:
        the bytes of the file; which of its faces, largest first; x1, y1, x2, y2 of the face if it was given.

    Raises:
        RefusedError: there is none, it is too large, or no picture by its first bytes.
    """
    words: Mapping[str, str] = request.form
    if request.mimetype.startswith("image/"):
        data, words = request.get_data(cache=False), request.args
    else:
        file = request.files.get("image")
        if file is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "No photo came with it. Choose one and try again.")
        data = file.stream.read(MAX_PHOTO_BYTES + 1)
    if not data:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "The photo is empty. Choose another one and try again.")
    if len(data) > MAX_PHOTO_BYTES:
        raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TOO_LARGE_PHOTO)
    if not _is_photo(data):
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "This is not a JPEG, PNG or WebP picture, whatever its name says. Save it as one and try again.",
        )
    return data, read_index(words.get("index") or "0"), read_box(words.get("box", ""))


def sent_speech() -> npt.NDArray[np.int16]:
    """The sound that is the body of the present request, as `read_wav` gives it.

    Raises:
        RefusedError: it is another kind of file.
    """
    try:
        return read_wav(request.get_data(cache=False))
    except ValueError as error:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error


def read_wav(data: bytes) -> npt.NDArray[np.int16]:
    """Read a WAV file of the only kind that the page makes: PCM16, 16 kHz, mono, at most `MAX_SPEECH_S` long.

    Returns:
        samples, full scale 32768, (samples,)

    Raises:
        ValueError: it is another kind of file; the text says which kind is wanted.
    """
    wanted = "Send a WAV file with 16-bit samples, 16 kHz, mono."
    try:
        with wave.open(io.BytesIO(data)) as file:
            layout = (file.getsampwidth(), file.getnchannels(), file.getframerate())
            if layout != (2, 1, SAMPLE_RATE_HZ):
                found = f"{8 * layout[0]} bits, {layout[1]} channels and {layout[2]} Hz"
                raise ValueError(f"This sound has {found}. {wanted}")
            told = file.getnframes()
            if told > MAX_SPEECH_S * SAMPLE_RATE_HZ:
                raise ValueError(f"This sound is longer than {MAX_SPEECH_S // 60} minutes. Cut it and try again.")
            raw = file.readframes(told)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"This is not a sound file that can be read here. {wanted}") from error
    if len(raw) != 2 * told:
        raise ValueError("This sound file ends before its end: it was cut off on its way. Try again.")
    if not raw:
        raise ValueError("This sound file holds no sound.")
    return np.frombuffer(raw, "<i2").astype(np.int16)


def read_index(text: str) -> int:
    """Which face of a photo, 0..63.

    Raises:
        RefusedError: it is no such number.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and int(text) < 64):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "index must be a whole number from 0 (the largest face) to 63.")
    return int(text)


def read_box(text: str) -> Box | None:
    """x1, y1, x2, y2 of a face, px; None for an empty text.

    Raises:
        RefusedError: it is no box.
    """
    if not text.strip():
        return None
    words = text.replace(",", " ").split()
    if len(words) == 4 and all(word.isascii() and word.isdecimal() and len(word) < 6 for word in words):
        x1, y1, x2, y2 = (int(word) for word in words)
        if x1 < x2 <= 2**15 and y1 < y2 <= 2**15:
            return x1, y1, x2, y2
    raise RefusedError(
        HTTPStatus.BAD_REQUEST,
        "box must be four whole numbers, left,top,right,bottom of the face in pixels, as in box=120,80,360,400.",
    )


def _is_photo(data: bytes) -> bool:
    """Whether a file begins as JPEG, PNG or WebP files do. What is behind it is looked at by face_prep."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or webp
