"""Wav2Lip from PyTorch to ONNX to OpenVINO."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Final

import openvino as ov
import torch

from scripts._wav2lip.network import AUDIO_SHAPE, FACE_SHAPE, Wav2Lip
from services.inference.wav2lip.split import AUDIO, FACES, OUTPUT

__all__ = ["plain_ir", "write_onnx"]

TRACED_BATCH: Final = 2
"""1 would be taken for a fixed batch"""
OPSET: Final = 18
CHATTER: Final = "torch.onnx._internal.exporter._registration"
"""logger that tells of torchvision's operators, which Wav2Lip has none of"""


def write_onnx(module: Wav2Lip, path: Path) -> None:
    """Export to one ONNX file.

    Inputs ``audio_sequences`` (N, 1, 80, 16) and ``face_sequences`` (N, 6, 96, 96), output ``output`` (N, 3, 96, 96),
    all float32, N as it comes.

    Args:
        module: the network in eval mode.
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    logging.getLogger(CHATTER).setLevel(logging.ERROR)
    batch = {0: torch.export.Dim("n")}
    with warnings.catch_warnings():
        # PyTorch 2.13 compares its own trees in a way that it calls deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # Both inputs have the same batch, as is meant.
        warnings.filterwarnings("ignore", r"# The axis name: n will not be used", UserWarning)
        program = torch.onnx.export(
            module,
            (torch.zeros(TRACED_BATCH, *AUDIO_SHAPE), torch.zeros(TRACED_BATCH, *FACE_SHAPE)),
            input_names=[AUDIO, FACES],
            output_names=[OUTPUT],
            dynamic_shapes={AUDIO: batch, FACES: batch},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("PyTorch's exporter returned nothing")
    program.save(path, external_data=False)


def plain_ir(module: Wav2Lip) -> ov.Model:
    """Convert the whole network.

    Args:
        module: the network in eval mode.

    Returns:
        inputs ``audio_sequences`` (N, 1, 80, 16) and ``face_sequences`` (N, 6, 96, 96), output ``output``
        (N, 3, 96, 96), float32, batch normalisation folded into the convolutions.

    Raises:
        OSError: no room for the ONNX file, 145 MB in the folder for temporary files.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wav2lip.onnx"
        write_onnx(module, path)
        return ov.convert_model(path)
