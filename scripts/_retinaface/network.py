"""RetinaFace on a quarter-width MobileNetV1, with the parameter names of the published checkpoints.

Source: Deng et al., "RetinaFace: Single-Shot Multi-Level Face Localisation in the Wild", CVPR 2020; Howard et al.,
"MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017; the context modules are
those of Najibi et al., "SSH: Single Stage Headless Face Detector", ICCV 2017.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RetinaFace"]

LEAK: Final = 0.1
"""Slope below zero."""
STAGES: Final = {
    "stage1": ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)),
    "stage2": ((64, 128, 2), *((128, 128, 1),) * 5),
    "stage3": ((128, 256, 2), (256, 256, 1)),
}
"""Channels in, channels out and stride of the depthwise separable convolutions; their outputs have stride 8, 16, 32."""
WIDTH: Final = 64
"""Channels of the feature pyramid."""
ANCHORS_PER_CELL: Final = 2


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.LeakyReLU(LEAK)) if active else nn.Sequential(*layers)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(LEAK),
        *_convolution(inputs, outputs, kernel=1),
    )


class _Pyramid(nn.Module):
    """Features of three sizes, the finer ones enriched by the coarser."""

    def __init__(self, inputs: tuple[int, int, int]) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_convolution(each, WIDTH, kernel=1) for each in inputs)
        self.merge1, self.merge2 = _convolution(WIDTH, WIDTH), _convolution(WIDTH, WIDTH)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.output1(fine), self.output2(middle), self.output3(coarse)
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return fine, middle, coarse


class _Context(nn.Module):
    """Surroundings of 3, 5 and 7 cells side by side."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = WIDTH // 2, WIDTH // 4
        self.conv3X3 = _convolution(WIDTH, half, active=False)
        self.conv5X5_1 = _convolution(WIDTH, quarter)
        self.conv5X5_2 = _convolution(quarter, quarter, active=False)
        self.conv7X7_2 = _convolution(quarter, quarter)
        self.conv7x7_3 = _convolution(quarter, quarter, active=False)

    def forward(self, features: Tensor) -> Tensor:
        shared = self.conv5X5_1(features)
        wide = self.conv7x7_3(self.conv7X7_2(shared))
        return functional.relu(torch.cat([self.conv3X3(features), self.conv5X5_2(shared), wide], dim=1))


class _Head(nn.Module):
    """Values of one kind for each anchor of a feature map."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self._values = values
        self.conv1x1 = nn.Conv2d(WIDTH, ANCHORS_PER_CELL * values, 1)

    def forward(self, features: Tensor) -> Tensor:
        rows: Tensor = self.conv1x1(features).permute(0, 2, 3, 1)
        return rows.reshape(features.shape[0], -1, self._values)


def _heads(values: int) -> nn.ModuleList:
    return nn.ModuleList(_Head(values) for _ in range(3))


class RetinaFace(nn.Module):
    """The network, without anchors: what it gives is relative to them."""

    def __init__(self) -> None:
        super().__init__()
        stages = {name: nn.Sequential(*(_separable(*each) for each in blocks)) for name, blocks in STAGES.items()}
        stages["stage1"].insert(0, _convolution(3, 8, stride=2))
        self.body = nn.ModuleDict(stages)
        self.fpn = _Pyramid((64, 128, 256))
        self.ssh1, self.ssh2, self.ssh3 = _Context(), _Context(), _Context()
        self.BboxHead, self.ClassHead, self.LandmarkHead = _heads(4), _heads(2), _heads(10)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at pictures.

        Args:
            pictures: BGR less 104, 117, 123, (N, 3, H, W), float32.

        Returns:
            offsets of the boxes (N, A, 4), probabilities of background and face (N, A, 2) and offsets of the five
            points (N, A, 10), float32; A anchors: two in each cell of stride 8, row by row, then of 16, then of 32.
        """
        fine = self.body["stage1"](pictures)
        middle = self.body["stage2"](fine)
        coarse = self.body["stage3"](middle)
        levels = self.fpn(fine, middle, coarse)
        features = [context(level) for context, level in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)]
        boxes, classes, landmarks = (
            torch.cat([head(level) for head, level in zip(heads, features, strict=True)], dim=1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, functional.softmax(classes, dim=-1), landmarks
