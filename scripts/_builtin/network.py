"""The network that hears motion in speech, in PyTorch, for training; a service runs its OpenVINO form.

A front end of two-dimensional convolutions, which minds little at what height a voice speaks, then convolutions over
time, dilated by 1, 1, 2, 2, 4, 4, 8, 8, 16 (A. van den Oord et al., "WaveNet", 2016), each added to what it reads. It
sees one window and keeps no state, so any worker can do any frame. Trained on whole sequences, where neighbouring
windows share their work; in a service only the last column is wanted, so there it skips what nobody reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import openvino as ov
import torch
from torch import Tensor, nn

from services.mel_features.mel import MEL_BANDS

__all__ = [
    "AHEAD",
    "BACK",
    "DILATIONS",
    "LENGTH",
    "OUTPUTS",
    "PRESSING_DILATIONS",
    "Dropout",
    "Ensemble",
    "Hearing",
    "length_of",
    "save_network",
    "shares",
]

AHEAD: Final = 7
"""mel frames from the beginning of a video frame on: 75 ms, and 25 ms that the last STFT window reaches further"""
DILATIONS: Final = (1, 1, 2, 2, 4, 4, 8, 8, 16)
PRESSING_DILATIONS: Final = (1, 1, 2, 2, 4, 4, 8, 8)
"""of the network that tells of pressing: p, b and m are heard in the 0.7 s before and the tenth of a second after"""
KERNEL: Final = 3


def length_of(dilations: Sequence[int]) -> int:
    """Mel frames that one result depends on."""
    return KERNEL + (KERNEL - 1) * sum(dilations)


LENGTH: Final = length_of(DILATIONS)
"""mel frames that one result depends on"""
BACK: Final = LENGTH - AHEAD
OUTPUTS: Final = ("open", "width", "raise", "press")
FRONT_CHANNELS: Final = (16, 32)
HEAD_CHANNELS: Final = 64


class Dropout(nn.Module):
    """Leaves values out in training, as `nn.Dropout` does, in a fortieth of its time on a processor.

    One random byte for each value decides, so the share is taken in steps of 1/256.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.below = round(256 * share)

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape."""
        if not self.training or not self.below:
            return values
        drawn = torch.empty(values.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.uint8)[: values.numel()].view(values.shape) >= self.below
        return values * kept * (256 / (256 - self.below))


class _Block(nn.Module):
    """A dilated convolution, added to what it reads."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = nn.Conv1d(channels, channels, KERNEL, bias=False)
        self.normalisation = nn.BatchNorm1d(channels)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor, spacing: int = 1, stride: int = 1) -> Tensor:
        """Read columns that lie `spacing` mel frames apart.

        Returns:
            each `stride`-th column of what is made, the last among them.
        """
        step = self.dilation // spacing
        reach = (KERNEL - 1) * step
        values = values[:, :, (values.shape[2] - reach - 1) % stride :]
        made = nn.functional.conv1d(values, self.convolution.weight, dilation=step, stride=stride)
        made = self.dropout(torch.relu(self.normalisation(made)))
        added: Tensor = values[:, :, reach::stride] + made
        return added


class Hearing(nn.Module):
    """Log-mel to motion.

    Args:
        channels: of the layers over time.
        dropout: share of the values that is left out in training.
        dilations: of the layers over time; with fewer of them it looks less far back.
    """

    def __init__(self, channels: int = 128, dropout: float = 0.1, dilations: Sequence[int] = DILATIONS) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.unheard = LENGTH - length_of(dilations)
        """first mel frames of a window that it does not look at"""
        first, second = FRONT_CHANNELS
        self.front = nn.Sequential(
            nn.Conv2d(1, first, (5, KERNEL), (2, 1), (2, 0), bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, (3, 1), (2, 1), (1, 0), bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        self.mix = nn.Conv1d(second * MEL_BANDS // 4, channels, 1)
        self.blocks = nn.ModuleList(_Block(channels, dilation, dropout) for dilation in dilations)
        self.head = nn.Sequential(
            nn.Conv1d(channels, HEAD_CHANNELS, 1), nn.ReLU(), nn.Conv1d(HEAD_CHANNELS, len(OUTPUTS), 1)
        )

    def forward(self, mel: Tensor) -> Tensor:
        """Hear sequences.

        Args:
            mel: (n, 80, t), -4..4, t >= `LENGTH`.

        Returns:
            (n, 4, t - `LENGTH` + 1): column j hears mel frames j to j + `LENGTH` - 1; of pressing the logit.
        """
        values = self._mixed(mel[:, :, self.unheard :])
        for block in self.blocks:
            values = block(values)
        found: Tensor = self.head(values)
        return found

    def window(self, mel: Tensor) -> Tensor:
        """Hear windows: (n, 80, `LENGTH`) to (n, 4), the same as `forward`."""
        values, spacing = self._mixed(mel[:, :, self.unheard :]), 1
        for block, following in zip(self.blocks, (*self.dilations[1:], 0), strict=True):
            stride = max(1, following // spacing)
            values, spacing = block(values, spacing, stride), spacing * stride
        found: Tensor = self.head(values)
        return found[:, :, -1]

    def _mixed(self, mel: Tensor) -> Tensor:
        values = self.front(mel[:, None])
        # One convolution over all heights: to flatten them first would have OpenVINO lay everything out anew.
        weight = self.mix.weight.view(-1, values.shape[1], values.shape[2], 1)
        mixed: Tensor = torch.relu(nn.functional.conv2d(values, weight, self.mix.bias)[:, :, 0])
        return mixed


def shares(found: Tensor) -> Tensor:
    """Make a share, 0..1, of the logit of pressing: (n, 4, ...) to the same."""
    return torch.cat((found[:, :3], found[:, 3:].sigmoid()), dim=1)


class Ensemble(nn.Module):
    """Several networks' mean, and what another says of pressing, for windows.

    Args:
        networks: whose mean is wanted.
        pressing: which tells of pressing.
        opening: what they say of a usual wide opening; it becomes 1.
        width: what they say of a usual wide mouth; it becomes 1.
    """

    scale: Tensor

    def __init__(self, networks: list[Hearing], pressing: Hearing, opening: float = 1.0, width: float = 1.0) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.pressing = pressing
        self.register_buffer("scale", torch.tensor([1 / opening, 1 / width, 1 / opening]))

    def forward(self, mel: Tensor) -> Tensor:
        """(n, 80, `LENGTH`) to (n, 4)."""
        said = torch.stack([network.window(mel)[:, :3] for network in self.networks])  # type: ignore[operator]
        return torch.cat((said.mean(dim=0) * self.scale, shares(self.pressing.window(mel))[:, 3:]), dim=1)


def save_network(networks: list[Hearing], pressing: Hearing, usual: tuple[float, float], path: Path) -> None:
    """Write the OpenVINO form, weights in 16 bits: input ``mel`` (n, 80, `LENGTH`), output ``motion`` (n, 4).

    Args:
        networks: whose mean is wanted.
        pressing: which tells of pressing.
        usual: what they say of a usual wide opening, and of a usual wide mouth; these become 1.
        path: .xml; the .bin comes beside it.
    """
    ensemble = Ensemble(networks, pressing, *usual).eval()
    example = torch.zeros(2, MEL_BANDS, LENGTH)
    with warnings.catch_warnings():
        # PyTorch 2.13 compares its own trees in a way that it calls deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        exported = torch.export.export(ensemble, (example,), dynamic_shapes=({0: torch.export.Dim("windows")},))
        model = ov.convert_model(exported)
    model.reshape(ov.PartialShape([-1, MEL_BANDS, LENGTH]))
    model.inputs[0].get_tensor().set_names({"mel"})
    model.outputs[0].get_tensor().set_names({"motion"})
    part = path.with_name(f"part-{path.name}")
    ov.save_model(model, part, compress_to_fp16=True)
    part.with_suffix(".bin").replace(path.with_suffix(".bin"))
    part.replace(path)
