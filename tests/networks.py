"""A Wav2Lip with random weights that still draws something, and inputs for it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scripts._wav2lip.network import Block, Wav2Lip

CALIBRATION_FACES = 24
RESIDUAL_GAIN = 0.3
OUTPUT_SPREAD = 1.5
"""standard deviation of the picture before the sigmoid"""


def seeded_wav2lip(seed: int = 0) -> Wav2Lip:
    """The published architecture in eval mode, float32, without gradients.

    Batch normalisation holds the statistics of `seeded_crops` and `seeded_mels`, so that activations neither die nor
    explode; the last layer is scaled so that the picture has dark and bright pixels and hangs on both inputs.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = Wav2Lip()
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.6, 1.4)
                nn.init.normal_(part.bias, 0.0, 0.2)
                part.momentum = None  # the running statistics become those of the one batch below
        for part in module.modules():
            if isinstance(part, Block) and part.residual:
                # As after training, what such a block adds is small; otherwise rounding errors grow with each.
                normalisation = part.conv_block[1]
                assert isinstance(normalisation, nn.BatchNorm2d)
                normalisation.weight.mul_(RESIDUAL_GAIN)
        inputs = (
            torch.from_numpy(seeded_mels(CALIBRATION_FACES, seed)[:, None]),
            torch.from_numpy(stacked(seeded_crops(CALIBRATION_FACES, seed))),
        )
        last = module.output_block[1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        logits: list[torch.Tensor] = []
        handle = last.register_forward_hook(lambda _m, _i, output: logits.append(output))
        module.train()(*inputs)
        module.eval()(*inputs)
        handle.remove()
        scale = OUTPUT_SPREAD / logits[-1].std(dim=(0, 2, 3))
        last.weight.mul_(scale[:, None, None, None])
        last.bias.copy_((last.bias - logits[-1].mean(dim=(0, 2, 3))) * scale)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.1
    return module.requires_grad_(requires_grad=False)


def seeded_crops(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth coloured pictures with an oval in the middle, (count, 96, 96, 3) BGR."""
    draw = np.random.default_rng(seed)
    crops = np.empty((count, 96, 96, 3), np.uint8)
    for crop in crops:
        crop[:] = cv2.resize(
            draw.uniform(20, 235, (5, 5, 3)).astype(np.float32), (96, 96), interpolation=cv2.INTER_CUBIC
        )
        colour = [float(level) for level in draw.uniform(60, 255, 3)]
        axes = tuple(int(length) for length in draw.integers((22, 30), (40, 46)))
        oval = cv2.ellipse(crop.copy(), (48, 48), axes, 0, 0, 360, colour, -1)
        crop[:] = cv2.GaussianBlur(cv2.addWeighted(crop, 0.3, oval, 0.7, 0), (0, 0), 1.0)
    return crops


def seeded_mels(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Windows from silent to loud, smooth in time, (count, 80, 16), within -4..4."""
    draw = np.random.default_rng(seed + 1)
    coarse = draw.normal(0.0, 1.6, (count, 12, 6)).astype(np.float32)
    level = draw.uniform(-4.0, 1.0, (count, 1, 1)).astype(np.float32)
    fine = np.stack([cv2.resize(window, (16, 80), interpolation=cv2.INTER_CUBIC) for window in coarse])
    return np.clip(fine + level + draw.normal(0.0, 0.2, fine.shape), -4.0, 4.0).astype(np.float32)


def stacked(crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Input of the network: lower half black, then whole; (n, 96, 96, 3) uint8 to (n, 6, 96, 96), 0..1."""
    whole: npt.NDArray[Any] = crops.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
    masked = whole.copy()
    masked[:, :, 48:] = 0.0
    return np.concatenate([masked, whole], axis=1)
