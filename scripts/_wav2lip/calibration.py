"""Faces and voices on which a quantised network is measured: pairs of a face crop and a mel window, drawn at random.

The project's own painted face and synthetic speech are enough. They are varied as photos and recordings differ: pose,
light, colour, sharpness and noise; loudness, pitch, noise and silence. A user's own photos and recordings join them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from services.face_prep.face import FaceError, FaceMaker
from services.face_prep.image import ImageError, decode
from services.face_prep.network import NetworkError
from services.mel_features.mel import HOP, MEL_BANDS, MEL_FLOOR, SAMPLE_RATE_HZ, whole_file

__all__ = ["CalibrationError", "Samples", "samples"]

ROOT: Final = Path(__file__).resolve().parents[2]
DEMO_FACE: Final = ROOT / "services/face_prep/assets/demo_face.png"
DEMO_SPEECH: Final = ROOT / "services/audio_capture/assets/demo_speech.flac"
FACE_MODELS: Final = ROOT / "models/face"
DEMO_BOX: Final = (276, 198, 563, 581)
"""x1, y1, x2, y2 that `FaceMaker` finds on the demo face, px; written here so that no network is needed for it"""

CROP_SIDE: Final = 96
PAD_BELOW: Final = 10
"""px that the published inference script adds below the face box"""
WINDOW_FRAMES: Final = 16
SIDE_FRAMES: Final = 4
"""mel frames cut off before and behind a window, in which the mirrored ends of its piece of sound are heard"""
PIECE_SAMPLES: Final = (WINDOW_FRAMES + 2 * SIDE_FRAMES) * HOP
BLOCK_SAMPLES: Final = 2 * SAMPLE_RATE_HZ
"""Of the blocks of a recording every other one is held out."""
MAX_SOUND_S: Final = 600
"""most that is read of one recording"""

SILENT_SHARE: Final = 0.05
NOISE_SHARE: Final = 0.05
"""of the windows: no sound at all; noise alone"""

Pixels = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
Photo = tuple[Pixels, Box]


class CalibrationError(ValueError):
    """The photos or recordings that were given cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Samples:
    """Pairs of what a network sees and what it hears."""

    crops: Pixels
    """faces, (n, 96, 96, 3), BGR"""
    mels: Float32
    """mel windows, (n, 80, 16), -4..4"""
    left_out: tuple[str, ...] = ()
    """files of the user that could not be used, each with the reason"""


def samples(
    count: int, seed: int, faces: Sequence[Path] = (), voices: Sequence[Path] = (), *, held_out: bool = False
) -> Samples:
    """Draw pairs of a face and a mel window.

    What is held out shares nothing with the rest but the demo face, under other variations: the windows come from
    other blocks of 2 s of each recording, and of the user's photos every second one is held out.

    Args:
        count: how many pairs.
        seed: the same seed, files and ``held_out`` give the same pairs.
        faces: photos, or folders of them.
        voices: recordings, or folders of them.
        held_out: draw from what is kept for measuring.

    Returns:
        the pairs.

    Raises:
        CalibrationError: a path is not there; none of the photos shows a face or none of the recordings can be
            used; or the face models that find the faces are missing.
    """
    random = np.random.default_rng((seed, int(held_out)))
    left_out: list[str] = []
    own_photos = list(_photos(faces, left_out))
    if faces and not own_photos:
        raise CalibrationError(f"no face could be used of the photos given: {'; '.join(left_out) or 'no files'}")
    own_sounds = list(_sounds(voices, left_out))
    if voices and not own_sounds:
        raise CalibrationError(f"none of the recordings given could be used: {'; '.join(left_out) or 'no files'}")
    photos = [(_demo_photo(), DEMO_BOX), *own_photos[int(held_out) :: 2]]
    sounds = [_read_sound(DEMO_SPEECH), *own_sounds]
    blocks = [[sound[at : at + BLOCK_SAMPLES] for at in _block_starts(sound, held_out)] for sound in sounds]
    blocks = [own for own in blocks if own]
    crops = np.stack([_varied_crop(random, *photos[random.integers(len(photos))]) for _ in range(count)])
    mels = np.stack([_varied_mel(random, blocks[random.integers(len(blocks))]) for _ in range(count)])
    return Samples(crops, mels, tuple(left_out))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            yield path
        else:
            raise CalibrationError(f"{path} is not there; give a file or a folder of them")


def _demo_photo() -> Pixels:
    return decode(DEMO_FACE.read_bytes())


def _photos(faces: Sequence[Path], left_out: list[str]) -> Iterator[Photo]:
    if not faces:
        return
    try:
        maker = FaceMaker(FACE_MODELS)
    except NetworkError as error:
        raise CalibrationError(str(error)) from error
    for path in _files(faces):
        try:
            face = maker.make(path.stem, path.read_bytes())
        except (ImageError, FaceError, OSError) as error:
            left_out.append(f"{path.name}: {error}")
        else:
            yield face.photo, face.box


def _sounds(voices: Sequence[Path], left_out: list[str]) -> Iterator[Float32]:
    for path in _files(voices):
        try:
            sound = _read_sound(path)
        except soundfile.LibsndfileError as error:
            left_out.append(f"{path.name}: {error}")
            continue
        if sound.size < BLOCK_SAMPLES:
            left_out.append(f"{path.name}: shorter than {BLOCK_SAMPLES // SAMPLE_RATE_HZ} s")
        elif not np.isfinite(sound).all():
            left_out.append(f"{path.name}: holds numbers that are not finite")
        else:
            yield sound


def _read_sound(path: Path) -> Float32:
    """Read a recording: (n,) float32 within -1..1, 16 kHz mono."""
    with soundfile.SoundFile(path) as file:
        rate_hz = file.samplerate
        channels = file.read(MAX_SOUND_S * rate_hz, dtype="float32", always_2d=True)
    mono: Float32 = channels.mean(axis=1, dtype=np.float32)
    return mono if rate_hz == SAMPLE_RATE_HZ else np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ), np.float32)


def _block_starts(sound: Float32, held_out: bool) -> range:
    return range(int(held_out) * BLOCK_SAMPLES, sound.size - BLOCK_SAMPLES + 1, 2 * BLOCK_SAMPLES)


def _varied_crop(random: np.random.Generator, photo: Pixels, box: Box) -> Pixels:
    """Cut a face out of a photo as another photo of it might show it, (96, 96, 3)."""
    x1, y1, x2, y2 = box[0], box[1], box[2], box[3] + PAD_BELOW
    width, height = x2 - x1, y2 - y1
    scale = random.uniform(0.85, 1.2)
    turn = np.radians(np.clip(random.normal(0.0, 6.0), -15.0, 15.0))
    mirror = random.choice((-1.0, 1.0))
    middle = (
        np.array([x1 + x2, y1 + y2]) / 2
        + random.uniform(-0.07, 0.07, 2) * (width, height)  # a face finder is off by a few hundredths
    )
    # From px of the crop, counted from its middle, to px of the photo.
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = turned @ np.diag([mirror * width, height]) * (scale / CROP_SIDE)
    offset = middle - linear @ np.full(2, (CROP_SIDE - 1) / 2)
    cut = cv2.warpAffine(
        photo,
        np.column_stack([linear, offset]),
        (CROP_SIDE, CROP_SIDE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return _varied_light(random, np.asarray(cut, np.float32))


def _varied_light(random: np.random.Generator, crop: Float32) -> Pixels:
    """Change brightness, contrast, colour, side light, sharpness and noise of a crop."""
    grey = crop.mean(axis=2, keepdims=True)
    coloured = grey + random.uniform(0.0, 1.3) * (crop - grey)
    coloured = coloured * random.uniform(0.92, 1.08, 3) * random.uniform(0.5, 1.2)
    contrasted = (coloured - 128.0) * random.uniform(0.75, 1.2) + 128.0 + random.uniform(-25.0, 20.0)
    along = np.linspace(-1.0, 1.0, CROP_SIDE)
    side, above = random.uniform(-0.2, 0.2, 2)
    lit = contrasted * (1.0 + side * along[None, :, None] + above * along[:, None, None])
    if random.random() < 0.4:
        lit = np.asarray(cv2.GaussianBlur(lit, (0, 0), random.uniform(0.3, 1.5)))
    if random.random() < 0.4:
        lit = lit + random.normal(0.0, random.uniform(1.0, 8.0), lit.shape)
    return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _varied_mel(random: np.random.Generator, blocks: Sequence[Float32]) -> Float32:
    """Mel window of some moment of a recording, as another voice, distance and room might give it, (80, 16)."""
    kind = random.random()
    if kind < SILENT_SHARE:
        return np.full((MEL_BANDS, WINDOW_FRAMES), MEL_FLOOR, np.float32)
    block = blocks[int(random.integers(len(blocks)))]
    rate = random.uniform(0.8, 1.25)  # pitch and pace together
    length = round(PIECE_SAMPLES * rate)
    start = int(random.integers(block.size - length + 1))
    at = np.linspace(0.0, length - 1.0, PIECE_SAMPLES)
    piece = np.interp(at, np.arange(length), block[start : start + length])
    piece *= 10.0 ** (random.uniform(-30.0, 9.0) / 20.0)
    if kind < SILENT_SHARE + NOISE_SHARE:
        piece *= 0.0
    if random.random() < 0.5 or kind < SILENT_SHARE + NOISE_SHARE:
        piece += 10.0 ** (random.uniform(-80.0, -25.0) / 20.0) * _noise(random)
    return whole_file(np.clip(piece, -1.0, 1.0))[:, SIDE_FRAMES : SIDE_FRAMES + WINDOW_FRAMES]


def _noise(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise of full scale, its power falling with frequency by 0 to 6 dB an octave, (n,)."""
    spectrum = np.fft.rfft(random.normal(0.0, 1.0, PIECE_SAMPLES))
    spectrum /= np.maximum(np.arange(spectrum.size), 1.0) ** random.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, PIECE_SAMPLES)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))
