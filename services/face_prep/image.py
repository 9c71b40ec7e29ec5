"""Safe reading of a photo that somebody sent: what it says of itself is checked before a pixel is decoded.

Only JPEG, PNG and WebP are read, known by their signature and never by a file name. The size is taken from the
header of the file, so a small file that would unfold into gigabytes is refused at no cost. Of a PNG only the chunks
that hold the picture reach the decoder.

Sources: JPEG ISO/IEC 10918-1 B.1 (markers), PNG specification 5 and 11 (chunks), RFC 9649 (WebP), EXIF 2.32 and TIFF
6.0 (orientation).
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["MAX_BYTES", "MAX_PIXELS", "MIN_SIDE_PX", "Header", "ImageError", "decode", "read_header", "turn"]

MAX_BYTES: Final = 10 * 1024 * 1024
MAX_PIXELS: Final = 16_000_000
MIN_SIDE_PX: Final = 64
"""Least length of the shorter side, before and after scaling: there is no face to move in less."""
MAX_SCANS: Final = 100
"""A progressive JPEG with more scans than this was made to keep a decoder busy; cameras and editors write about ten."""

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_KEPT: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
JPEG_FRAMES: Final = frozenset((0xC0, 0xC1, 0xC2))
"""baseline, extended sequential, progressive: all that cameras, editors and browsers write"""
JPEG_OTHER_FRAMES: Final = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
BACKGROUND: Final = 255
"""Grey level under transparent pixels: white, as paper."""
ROWS_AT_ONCE: Final = 256

Code = Literal["bad_image", "too_large"]
Pixels = npt.NDArray[np.uint8]


class ImageError(ValueError):
    """The bytes are no photo that can be used; the text tells a person why and what to do."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code: Final[Code] = code


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    kind: Literal["jpeg", "png", "webp"]
    """its format"""
    width: int
    """columns as stored, before turning, px"""
    height: int
    """rows as stored, px"""
    orientation: int
    """EXIF orientation, 1..8; 1 when there is none"""

    @property
    def turned_size(self) -> tuple[int, int]:
        """Width and height once the orientation is applied, px."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes) -> Header:
    """Read format, size and orientation of a photo without decoding it.

    Args:
        data: the bytes of the file.

    Raises:
        ImageError: it is empty, too large, too small, cut short or of another format.
    """
    if not data:
        raise ImageError("bad_image", "The file is empty. Please choose a photo (JPEG, PNG or WebP).")
    if len(data) > MAX_BYTES:
        raise ImageError(
            "too_large",
            f"The file has {len(data) / 2**20:.1f} MB, at most {MAX_BYTES // 2**20} MB are taken. "
            "Please save the photo smaller.",
        )
    try:
        if data.startswith(b"\xff\xd8\xff"):
            header = _jpeg_header(data)
        elif data.startswith(PNG_SIGNATURE):
            header = _png_header(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _webp_header(data)
        else:
            raise ImageError(
                "bad_image", "This is no JPEG, PNG or WebP picture. Please save the photo in one of these formats."
            )
    except (struct.error, IndexError) as error:
        raise _cut_short() from error
    width, height = header.width, header.height
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"The photo has {width} x {height} pixels, at most {MAX_PIXELS // 1_000_000} megapixels are taken. "
            "Please make it smaller.",
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(
            "bad_image",
            f"The photo has only {width} x {height} pixels; each side needs at least {MIN_SIDE_PX}. "
            "Please choose a larger one.",
        )
    return header


def decode(data: bytes, max_side_px: int = 1280) -> Pixels:
    """Decode a photo that somebody sent.

    EXIF orientation is applied, transparency laid on white, grey made colour and 16 bits made 8. The first picture of
    an animation is taken. A photo whose longer side exceeds ``max_side_px`` is scaled down to it (area average), never
    up.

    Args:
        data: the bytes of the file.
        max_side_px: most pixels of the longer side of the result.

    Returns:
        BGR, (h, w, 3), uint8, C-contiguous.

    Raises:
        ImageError: see `read_header`; or the pixels cannot be decoded.
    """
    header = read_header(data)
    longer, shorter = max(header.width, header.height), min(header.width, header.height)
    scale = min(1.0, max_side_px / longer)
    if shorter * scale < MIN_SIDE_PX:
        raise ImageError("bad_image", "The picture is a narrow strip. Please cut it so that the face fills more of it.")
    flags = cv2.IMREAD_UNCHANGED
    if header.kind == "jpeg":
        flags = cv2.IMREAD_IGNORE_ORIENTATION | _reduction(longer, max_side_px)
    elif header.kind == "png":
        data = PNG_SIGNATURE + b"".join(raw for name, _, raw in _png_chunks(data) if name in PNG_KEPT)
    try:
        with _silent_stderr():
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except (cv2.error, MemoryError) as error:
        raise _unreadable() from error
    # With the IMREAD_REDUCED flags the decoder rounds up; any other difference means that header and picture disagree.
    if pixels is None or pixels.shape[0] > header.height or pixels.shape[1] > header.width:
        raise _unreadable()
    image = _to_bgr(np.asarray(pixels))
    size = (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    if size != (image.shape[1], image.shape[0]):
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return turn(image, header.orientation)


def turn(image: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1..8) to a picture (h, w, 3); the result is C-contiguous."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _cut_short() -> ImageError:
    return ImageError("bad_image", "The picture is cut short or damaged. Please send the file again or save it anew.")


def _unreadable() -> ImageError:
    return ImageError(
        "bad_image", "The picture is damaged and cannot be read. Please open it in a viewer and save it anew."
    )


def _jpeg_header(data: bytes) -> Header:
    at, orientation = 2, 1
    width = height = 0
    while True:
        if data[at] != 0xFF:
            raise _cut_short()
        while data[at] == 0xFF:  # any number of fill bytes may stand before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            continue
        if marker in (0xD8, 0xD9):  # a second start, or an end before any picture
            raise _cut_short()
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2 or at + length > len(data):
            raise _cut_short()
        body = data[at + 2 : at + length]
        if marker in JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", body)
            if not width or not height or bits != 8 or channels not in (1, 3, 4):
                raise _unreadable()
        elif marker in JPEG_OTHER_FRAMES:
            raise ImageError(
                "bad_image", "This kind of JPEG (lossless or arithmetic) is not read. Please save it as a normal JPEG."
            )
        elif marker == 0xE1 and body.startswith(b"Exif\x00\x00"):
            orientation = _exif_orientation(body[6:])
        elif marker == 0xDA:
            break
        at += length
    # Within a scan 0xFF is always followed by 0 or a restart marker, so these byte pairs are markers.
    end = data.find(b"\xff\xd9", at)
    if not width or end < 0:
        raise _cut_short()
    if data.count(b"\xff\xda", at, end) >= MAX_SCANS:
        raise _unreadable()
    return Header("jpeg", width, height, orientation)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, body and the whole of each chunk up to the end mark; each checksum is verified."""
    at, name = len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise _cut_short()
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[at + 4 : end - 4]) != checksum:
            raise _cut_short()
        yield name, data[at + 8 : end - 4], data[at:end]
        at = end


def _png_header(data: bytes) -> Header:
    width = height = 0
    orientation, has_pixels = 1, False
    for number, (name, body, _) in enumerate(_png_chunks(data)):
        if (number == 0) != (name == b"IHDR"):
            raise _unreadable()
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", body)
        elif name == b"eXIf":
            orientation = _exif_orientation(body)
        elif name == b"IDAT":
            has_pixels = True
    if not width or not height or not has_pixels:
        raise _unreadable()
    return Header("png", width, height, orientation)


def _webp_header(data: bytes) -> Header:
    (riff_length,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff_length
    if end > len(data):
        raise _cut_short()
    at, width, height, orientation, has_pixels = 12, 0, 0, 1, False
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if at + 8 + length > end:
            raise _cut_short()
        if name == b"VP8X":
            width = 1 + int.from_bytes(body[4:7], "little")
            height = 1 + int.from_bytes(body[7:10], "little")
        elif name == b"VP8 ":
            has_pixels = True
            if body[3:6] != b"\x9d\x01\x2a":
                raise _unreadable()
            if not width:
                width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", body, 6))
        elif name == b"VP8L":
            has_pixels = True
            (bits,) = struct.unpack_from("<I", body, 1)
            if body[0] != 0x2F:
                raise _unreadable()
            if not width:
                width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"ANMF":
            has_pixels = True
        elif name == b"EXIF":
            orientation = _exif_orientation(body.removeprefix(b"Exif\x00\x00"))
        at += 8 + length + (length & 1)
    if not width or not height or not has_pixels:
        raise _unreadable()
    return Header("webp", width, height, orientation)


def _exif_orientation(tiff: bytes) -> int:
    """Read tag 0x0112 of the first directory. Broken EXIF counts as none: viewers show such photos unturned too."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(min(entries, 512)):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, first + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _reduction(longer: int, max_side_px: int) -> int:
    """Choose the largest reduction inside the JPEG decoder (1/2, 1/4, 1/8) that leaves at least the wanted size."""
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    ):
        if longer >= factor * max_side_px:
            return flag
    return cv2.IMREAD_COLOR


def _to_bgr(pixels: npt.NDArray[Any]) -> Pixels:
    if pixels.dtype == np.uint16:
        pixels = np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257))
    if pixels.dtype != np.uint8:
        raise _unreadable()
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 3:
        return np.asarray(pixels, np.uint8)
    if channels == 1:
        return np.asarray(cv2.cvtColor(np.asarray(pixels, np.uint8), cv2.COLOR_GRAY2BGR), np.uint8)
    if channels != 4:
        raise _unreadable()
    image = np.empty((*pixels.shape[:2], 3), np.uint8)
    for row in range(0, len(pixels), ROWS_AT_ONCE):  # in strips: the 16 bit products of a whole photo take 200 MB
        strip = np.asarray(pixels[row : row + ROWS_AT_ONCE], np.uint16)
        share = strip[..., 3:]
        image[row : row + ROWS_AT_ONCE] = (strip[..., :3] * share + BACKGROUND * (255 - share) + 127) // 255
    return image


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep what C libraries print of a broken picture out of the log.

    libjpeg and libpng write to file descriptor 2 past any log level, one line for each fault, as many as a sender
    likes. The services log to stdout, so nothing else is lost.
    """
    with _stderr_lock, open(os.devnull, "wb") as sink:  # noqa: PTH123 - a device, not a file
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
