"""What is measured: a converted Wav2Lip, the same in PyTorch and ONNX, and real inputs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import openvino as ov
import torch
from torch import nn

from scripts._wav2lip.accuracy import stacked
from scripts._wav2lip.calibration import Samples, samples
from scripts._wav2lip.checkpoint import CheckpointError, load_checkpoint
from scripts._wav2lip.convert import write_onnx
from scripts._wav2lip.network import Wav2Lip
from services.inference.wav2lip.files import FACE, GENERATOR, GENERATOR_INT8, PLAIN, Manifest, read_manifest
from services.inference.wav2lip.split import SplitError, split

__all__ = ["GATE_DB", "Subject", "SubjectError", "subject_of"]

SEED: Final = 1
GATE_DB: Final = 38.0
SETTLING: Final = 8
"""frames on which a network with random weights takes its means and variances"""

Say = Callable[[str], None]


class SubjectError(ValueError):
    """What was given cannot be measured; the text says why and what to do."""


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    folder: Path
    """a converted folder, its 8-bit network made on the spot if need be"""
    module: Wav2Lip
    """for PyTorch"""
    onnx: Path
    """the module for ONNX Runtime"""
    same: bool
    """whether the module has the weights of the folder; otherwise random ones: its time counts, not its picture"""
    random: bool
    """whether all weights are random"""
    no_int8: str
    """why there is no 8-bit network; empty if there is one"""
    notes: tuple[str, ...]
    """what a reader of the figures must know"""
    inputs: Samples
    """held-out windows and faces"""


@contextmanager
def subject_of(
    model: Path | None, checkpoint: Path | None, windows: int, quantise_on: tuple[int, int], say: Say
) -> Iterator[Subject]:
    """Make ready what is measured; what had to be made for it goes away in the end.

    Args:
        model: a folder written by ``scripts/convert_model``; None: the checkpoint is converted here.
        checkpoint: the weights for PyTorch; None: random ones. Without a model either, everything has them.
        windows: how many are drawn to compare pictures.
        quantise_on: windows to calibrate and to judge on, if an 8-bit network has to be made.
        say: told what is being done.

    Raises:
        SubjectError: no such folder or checkpoint, or they do not belong together.
        OSError: no room for temporary files, about 500 MB.
    """
    notes = []
    module, found = _module(checkpoint, say)
    if checkpoint is None:
        notes.append(
            f"{'PyTorch and ONNX Runtime have' if model else 'Everything has'} random weights, as no checkpoint was "
            "given: the same work, but not a face."
        )
    manifest = _manifest(model) if model else None
    if manifest and checkpoint and manifest.source == "checkpoint" and manifest.source_sha256 != found:
        raise SubjectError(
            f"{model} was not converted from {checkpoint}: give the checkpoint that it was made from, or convert this "
            "one (scripts/convert_model --out DIR) and give that folder with --model"
        )
    with tempfile.TemporaryDirectory(prefix="mouthpiece-benchmark-") as name:
        folder, onnx = Path(name), Path(name) / "wav2lip.onnx"
        say("PyTorch to ONNX")
        write_onnx(module, onnx)
        random = model is None and checkpoint is None
        if model is None:
            _convert(onnx, folder)
        else:
            _link(model, folder)
        no_int8, told = _with_int8(folder, quantise_on, 0.0 if random else GATE_DB, say)
        if told:
            notes.append(told)
        yield Subject(
            folder=folder,
            module=module,
            onnx=onnx,
            same=model is None or checkpoint is not None,
            random=random,
            no_int8=no_int8,
            notes=tuple(notes),
            inputs=samples(windows, SEED, held_out=True),
        )


def _module(checkpoint: Path | None, say: Say) -> tuple[Wav2Lip, str]:
    """The network for PyTorch, and the SHA-256 of its file."""
    if checkpoint is None:
        return _seeded(), ""
    say(f"reading {checkpoint}")
    try:
        module = load_checkpoint(checkpoint)
    except CheckpointError as error:
        raise SubjectError(str(error)) from error
    with checkpoint.open("rb") as file:
        return module, hashlib.file_digest(file, "sha256").hexdigest()


def _seeded() -> Wav2Lip:
    """Random weights, normalised so that activations neither die nor explode; in eval mode, without gradients."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        module = Wav2Lip().train()
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean over all batches: that of the only one
        seen = samples(SETTLING, SEED)
        module(torch.from_numpy(seen.mels[:, None]), torch.from_numpy(stacked(seen.crops)))
    return module.eval().requires_grad_(requires_grad=False)


def _manifest(model: Path) -> Manifest | None:
    for name in (PLAIN, FACE, GENERATOR):
        if not (model / name).is_file():
            raise SubjectError(
                f"{model} holds no {name}; give a folder that scripts/convert_model wrote, or --checkpoint alone"
            )
    try:
        return read_manifest(model)
    except ValueError as error:
        raise SubjectError(str(error)) from error


def _convert(onnx: Path, folder: Path) -> None:
    plain = ov.convert_model(onnx)
    parts = split(plain)
    for network, name in ((plain, PLAIN), (parts.face, FACE), (parts.generator, GENERATOR)):
        ov.save_model(network, folder / name, compress_to_fp16=False)


def _link(model: Path, folder: Path) -> None:
    for path in model.resolve().iterdir():
        (folder / path.name).symlink_to(path)


def _with_int8(folder: Path, windows: tuple[int, int], gate_db: float, say: Say) -> tuple[str, str]:
    """Make the 8-bit network if there is none; why it could not be made, and what is to be told of it."""
    if (folder / GENERATOR_INT8).is_file():
        return "", ""
    # NNCF takes seconds to load.
    from scripts._wav2lip.quantise import QuantiseError, quantise  # noqa: PLC0415

    say(f"no 8-bit network there: quantising, with {windows[0]} windows")
    calibration, held_out = samples(windows[0], SEED), samples(windows[1], SEED, held_out=True)
    try:
        parts = split(ov.Core().read_model(folder / PLAIN), "added")
        made = quantise(parts.face, parts.generator, calibration, held_out, gate_db)
    except (SplitError, QuantiseError) as error:
        return str(error), ""
    ov.save_model(made.model, folder / GENERATOR_INT8, compress_to_fp16=False)
    if not gate_db:
        return "", "8 bits: all layers, not held to any likeness, as random weights say nothing about that."
    kept = f"{len(made.kept)} layers in 32 bits" if made.kept else "all layers"
    return "", f"8 bits: made for this run, {kept}, worst of {windows[1]} windows {made.worst_psnr_db:.1f} dB."
