"""Wav2Lip as published, in PyTorch; only conversion, training and tests need it.

K R Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In The Wild", ACM Multimedia 2020.
The names of the modules are those of the published checkpoints, so that their weights load as they are.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["AUDIO_SHAPE", "FACE_SHAPE", "OUTPUT_SHAPE", "Block", "Wav2Lip"]

AUDIO_SHAPE: Final = (1, 80, 16)
"""one mel window: channel, band, frame"""
FACE_SHAPE: Final = (6, 96, 96)
"""face with its lower half black, then the reference face, each BGR"""
OUTPUT_SHAPE: Final = (3, 96, 96)


class Block(nn.Module):
    """Convolution, batch normalisation, the input added where `residual`, ReLU."""

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, *, residual: bool = False) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        y: Tensor = self.conv_block(x)
        return torch.relu(y + x if self.residual else y)


class Wav2Lip(nn.Module):
    """The published generator, 36.3 M parameters.

    `forward` takes one mel window and one pair of faces for each frame; the training on sequences, five dimensions,
    is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.face_encoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_conv(6, 16, kernel=7, padding=3)),
                nn.Sequential(_conv(16, 32, stride=2), *_residuals(32, 2)),
                nn.Sequential(_conv(32, 64, stride=2), *_residuals(64, 3)),
                nn.Sequential(_conv(64, 128, stride=2), *_residuals(128, 2)),
                nn.Sequential(_conv(128, 256, stride=2), *_residuals(256, 2)),
                nn.Sequential(_conv(256, 512, stride=2), *_residuals(512, 1)),
                nn.Sequential(_conv(512, 512, padding=0), _conv(512, 512, kernel=1, padding=0)),
            ]
        )
        self.audio_encoder = nn.Sequential(
            _conv(1, 32),
            *_residuals(32, 2),
            _conv(32, 64, stride=(3, 1)),
            *_residuals(64, 2),
            _conv(64, 128, stride=3),
            *_residuals(128, 2),
            _conv(128, 256, stride=(3, 2)),
            *_residuals(256, 1),
            _conv(256, 512, padding=0),
            _conv(512, 512, kernel=1, padding=0),
        )
        self.face_decoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_conv(512, 512, kernel=1, padding=0)),
                nn.Sequential(Block(nn.ConvTranspose2d(1024, 512, 3)), *_residuals(512, 1)),
                nn.Sequential(_twice(1024, 512), *_residuals(512, 2)),
                nn.Sequential(_twice(768, 384), *_residuals(384, 2)),
                nn.Sequential(_twice(512, 256), *_residuals(256, 2)),
                nn.Sequential(_twice(320, 128), *_residuals(128, 2)),
                nn.Sequential(_twice(160, 64), *_residuals(64, 2)),
            ]
        )
        self.output_block = nn.Sequential(_conv(80, 32), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, audio_sequences: Tensor, face_sequences: Tensor) -> Tensor:
        """Draw the faces.

        Args:
            audio_sequences: (N, 1, 80, 16) float32, mel windows within -4..4.
            face_sequences: (N, 6, 96, 96) float32, BGR 0..1.

        Returns:
            (N, 3, 96, 96) float32, BGR 0..1.
        """
        skips: list[Tensor] = []
        x = face_sequences
        for block in self.face_encoder_blocks:
            x = block(x)
            skips.append(x)
        x = self.audio_encoder(audio_sequences)
        for block in self.face_decoder_blocks:
            x = torch.cat([block(x), skips.pop()], dim=1)
        drawn: Tensor = self.output_block(x)
        return drawn


def _conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int | tuple[int, int] = 1, padding: int = 1) -> Block:
    return Block(nn.Conv2d(inputs, outputs, kernel, stride, padding))


def _residuals(channels: int, count: int) -> list[Block]:
    return [Block(nn.Conv2d(channels, channels, 3, padding=1), residual=True) for _ in range(count)]


def _twice(inputs: int, outputs: int) -> Block:
    """Twice the height and width."""
    return Block(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1))
