"""What the published Wav2Lip inference script computes, in plain NumPy and PyTorch, from its published description.

K R Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In The Wild", ACM Multimedia 2020;
constants of the spectrogram and of the script as published with it. It shares no code with this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import librosa
import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import lfilter

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def published_mel(wav: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """16 kHz sound within -1..1 to (80, n) within -4..4."""
    emphasised = lfilter([1.0, -0.97], [1.0], wav)
    spectrum = np.abs(librosa.stft(emphasised, n_fft=800, hop_length=200, win_length=800, pad_mode="reflect"))
    bank = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55.0, fmax=7600.0)
    floor = np.exp(-100 / 20 * np.log(10))
    decibels = 20 * np.log10(np.maximum(floor, bank @ spectrum)) - 20
    return np.asarray(np.clip(8.0 * ((decibels + 100) / 100) - 4.0, -4.0, 4.0), np.float64)


def published_windows(mel: npt.NDArray[np.floating], fps: float) -> list[npt.NDArray[np.floating]]:
    """One (80, 16) for each video frame; the last one is moved back to end with the sound."""
    windows = []
    step = 80.0 / fps
    number = 0
    while True:
        start = int(number * step)
        if start + 16 > mel.shape[1]:
            windows.append(mel[:, mel.shape[1] - 16 :])
            return windows
        windows.append(mel[:, start : start + 16])
        number += 1


def published_smoothing(boxes: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Boxes (n, 4) of whole pixels, smoothed over five frames in place."""
    out = np.array(boxes, np.int64)
    for k in range(len(out)):
        out[k] = np.mean(out[len(out) - 5 :] if k + 5 > len(out) else out[k : k + 5], axis=0)
    return out


def published_frames(
    module: torch.nn.Module,
    frames: Sequence[Pixels],
    windows: Sequence[npt.NDArray[np.floating]],
    boxes: Sequence[tuple[int, int, int, int]],
) -> list[Pixels]:
    """The frames of the result before encoding.

    ``boxes`` are y1, y2, x1, x2, one for each of ``frames``; frames run again from the start when there are fewer than
    windows.
    """
    made = []
    for number, window in enumerate(windows):
        frame = frames[number % len(frames)].copy()
        y1, y2, x1, x2 = boxes[number % len(frames)]
        face = cv2.resize(frame[y1:y2, x1:x2], (96, 96))
        masked = face.copy()
        masked[48:] = 0
        stacked = np.concatenate((masked, face), axis=2) / 255.0
        with torch.no_grad():
            drawn = module(
                torch.from_numpy(window[None, None].astype(np.float32)),
                torch.from_numpy(stacked.transpose(2, 0, 1)[None].astype(np.float32)),
            )
        picture = (drawn[0].numpy().transpose(1, 2, 0) * 255.0).astype(np.uint8)
        frame[y1:y2, x1:x2] = cv2.resize(picture, (x2 - x1, y2 - y1))
        made.append(frame)
    return made
