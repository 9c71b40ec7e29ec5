"""Reading of photos: what is taken, what is refused, and that nothing crashes."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from services.face_prep.image import MAX_BYTES, ImageError, decode, read_header
from shared.identity import face_id
from tests import budgets

Pixels = npt.NDArray[np.uint8]


def astronaut(side: int = 512) -> Pixels:
    rgb = np.asarray(skimage.data.astronaut(), np.uint8)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def encoded(image: npt.NDArray[Any], suffix: str, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return bytes(data.tobytes())


def plainly_decoded(data: bytes) -> Pixels:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def exif(orientation: int, order: str = ">") -> bytes:
    mark = b"MM" if order == ">" else b"II"
    return mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_with_exif(image: Pixels, tiff: bytes) -> bytes:
    plain = encoded(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)
    body = b"Exif\x00\x00" + tiff
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def png_claiming(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "jpeg"), (".png", "png"), (".webp", "webp")])
def test_each_format_is_read_as_the_plain_decoder_does(suffix: str, kind: str) -> None:
    data = encoded(astronaut(), suffix)
    assert read_header(data).kind == kind
    image = decode(data)
    plain = plainly_decoded(data)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, plain)


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, order: str) -> None:
    picture = astronaut()[100:400, :200]
    data = jpeg_with_exif(picture, exif(orientation, order))
    turned = plainly_decoded(data)  # OpenCV applies it by itself
    assert np.array_equal(decode(data), turned)
    assert read_header(data).turned_size == (turned.shape[1], turned.shape[0])


def test_exif_orientation_of_png_and_webp_is_applied() -> None:
    picture = astronaut()[:200, :300]
    png = encoded(picture, ".png")
    at = 8 + 25  # after the signature and IHDR
    assert np.array_equal(decode(png[:at] + chunk(b"eXIf", exif(6)) + png[at:]), np.rot90(picture, -1))
    lossless = encoded(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)[12:]
    extended = struct.pack("<4sIB3x", b"VP8X", 10, 0x08) + (299).to_bytes(3, "little") + (199).to_bytes(3, "little")
    body = b"WEBP" + extended + lossless + struct.pack("<4sI", b"EXIF", 26) + exif(3)
    assert np.array_equal(decode(b"RIFF" + struct.pack("<I", len(body)) + body), picture[::-1, ::-1])


@pytest.mark.parametrize("tiff", [b"", b"MM\x00*", b"II*\x00\xff\xff\xff\xff", exif(9), exif(0), exif(6)[:-8]])
def test_broken_exif_counts_as_none(tiff: bytes) -> None:
    picture = astronaut(128)
    assert np.array_equal(decode(jpeg_with_exif(picture, tiff)), decode(jpeg_with_exif(picture, exif(1))))


def test_transparency_grey_and_16_bits_become_plain_colour() -> None:
    picture = astronaut(128)
    alpha = np.full((128, 128, 1), 255, np.uint8)
    alpha[:, :40], alpha[:, 40:50] = 0, 128
    laid = decode(encoded(np.concatenate([picture, alpha], axis=2), ".png"))
    assert (laid[:, :40] == 255).all()
    assert np.array_equal(laid[:, 50:], picture[:, 50:])
    assert np.abs(laid[:, 40:50].astype(int) - (picture[:, 40:50] / 2 + 127.5)).max() <= 2
    assert np.array_equal(decode(encoded(picture.astype(np.uint16) * 257, ".png")), picture)
    grey = np.asarray(picture[..., 0])
    assert np.array_equal(decode(encoded(grey, ".png")), np.repeat(grey[..., None], 3, axis=2))


def test_large_photos_are_scaled_down_and_small_ones_left() -> None:
    picture = astronaut(1000)[:600]
    for suffix in (".jpg", ".png"):
        small = decode(encoded(picture, suffix), max_side_px=250)
        assert small.shape == (150, 250, 3)
        plain = cv2.resize(picture, (250, 150), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - plain).mean() < budgets.FACE_JPEG_DIFFERENCE
    assert decode(encoded(picture, ".jpg"), max_side_px=4096).shape == (600, 1000, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x04\x00\x00\x00WEBP",
        b"Dear friend, this is a letter, not a photo.jpg" * 20,
        b"GIF89a" + bytes(100),
        b"BM" + bytes(200),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(1000),
    ],
)
def test_what_is_no_photo_is_refused_with_words(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"Please") as caught:
        decode(data)
    assert caught.value.code == "bad_image"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_file_cut_anywhere_is_refused_in_silence(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(astronaut(128), suffix)
    for length in [*range(1, 64), *range(64, len(data) - 1, max(1, len(data) // 60)), len(data) - 2]:
        with pytest.raises(ImageError):
            decode(data[:length])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_damaged_file_gives_a_picture_or_a_clear_error(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(astronaut(96), suffix)
    random = np.random.default_rng(7)
    for _ in range(150):
        broken = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 6)):
            broken[at] = random.integers(0, 256)
        try:
            image = decode(bytes(broken))
        except ImageError:
            continue
        assert image.ndim == 3
        assert image.shape[2] == 3
    assert capfd.readouterr().err == ""


def test_bombs_are_refused_before_a_pixel_is_decoded() -> None:
    webp = b"RIFF" + struct.pack("<I", 40) + b"WEBP" + struct.pack("<4sIB3x", b"VP8X", 10, 0) + b"\xff\xff\x00" * 2
    webp += struct.pack("<4sI", b"VP8 ", 10) + bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF)
    jpeg = bytearray(encoded(astronaut(96), ".jpg"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    tracemalloc.start()
    try:
        for data in (png_claiming(50_000, 50_000), webp, bytes(jpeg), encoded(astronaut(), ".png") + bytes(MAX_BYTES)):
            with pytest.raises(ImageError) as caught:
                decode(data)
            assert caught.value.code == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_jpeg_with_countless_scans_is_refused() -> None:
    data = encoded(astronaut(96), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode(data).shape == (96, 96, 3)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError):
        decode(data[:scan] + data[scan:-2] * 200 + data[-2:])


def test_tiny_pictures_and_narrow_strips_are_refused() -> None:
    for image in (astronaut(32), astronaut()[:70]):
        with pytest.raises(ImageError) as caught:
            decode(encoded(image, ".png"), max_side_px=256)
        assert caught.value.code == "bad_image"


def test_face_id_names_bytes_and_choices() -> None:
    ids = {face_id(b"a", 0, None), face_id(b"b", 0, None), face_id(b"a", 1, None), face_id(b"a", 0, (1, 2, 30, 40))}
    assert len(ids) == 4
    assert face_id(b"a", 0, None) == face_id(b"a", 0, None)
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in ids)
