"""Checkpoints of Wav2Lip in the published form: read without running anything in them, and told apart from others."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scripts._wav2lip.network import Wav2Lip

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

REMEDY: Final = "wanted is wav2lip.pth or wav2lip_gan.pth of the published Wav2Lip (scripts/fetch_models fetches it)"
PREFIX: Final = "module."
"""what data-parallel training puts before each name"""
COUNTER: Final = ".num_batches_tracked"
"""a count of batch normalisation that plays no part in inference; old files lack it"""
HEAD_BYTES: Final = 4096
NAMED: Final = 3
"""how many layers an error names"""
USUAL_SIZES: Final = (96, 128, 192, 256, 288, 384, 512)
"""sides of the faces for which variants of Wav2Lip have been published, px"""
LEGACY_MAGIC: Final = b"l\xfc\x9cF\xf9 j\xa8P\x19."
"""stands among the first bytes of files in PyTorch's format before 1.6, the published ones among them"""

SIGNATURES: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, a few lines that stand for the real file; fetch the file itself"),
    (b"\x89HDF", "an HDF5 file, as Keras makes them"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)
DAMAGE: Final = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""what PyTorch's readers raise on a damaged file, depending on the byte that is wrong"""

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """The file is no checkpoint of the published Wav2Lip; the text says what it is and what to do."""


def load_checkpoint(path: Path) -> Wav2Lip:
    """Read a checkpoint of the published Wav2Lip.

    Taken are a state_dict, or a dictionary with one under ``state_dict`` and an optimiser or counters beside it, with
    names as published, with or without the prefix ``module.``, in both of PyTorch's file formats, in any float type.
    Only tensors and plain containers are unpickled (``weights_only``).

    Args:
        path: the ``.pth`` file.

    Returns:
        the network in eval mode, float32, without gradients.

    Raises:
        CheckpointError: another kind of file, a damaged one, or one with code in it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; {REMEDY}") from error
    if not size:
        raise CheckpointError(f"{path}: an empty file; {REMEDY}")
    _refuse_other_files(path, head, size)
    state = _state_of(path, _unpickle(path, is_zip=head.startswith(b"PK")))
    with torch.device("meta"):
        module = Wav2Lip()
    _refuse_other_networks(path, state, module)
    module = module.to_empty(device="cpu")
    module.load_state_dict({key: value.float() for key, value in state.items()})
    for name, value in module.named_buffers():
        if name.endswith(COUNTER) and name not in state:
            value.zero_()
    return module.eval().requires_grad_(requires_grad=False)


def save_checkpoint(
    module: Wav2Lip,
    path: Path,
    *,
    optimizer_state: Mapping[str, Any] | None = None,
    global_step: int = 0,
    global_epoch: int = 0,
) -> None:
    """Write a checkpoint in the published form, whole or not at all.

    Args:
        module: the network.
        path: the file; replaced if it is there.
        optimizer_state: ``state_dict()`` of the optimiser, to go on training.
        global_step: batches trained on.
        global_epoch: times that all clips were gone through.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "state_dict": {PREFIX + key: value for key, value in module.state_dict().items()},
        "optimizer": optimizer_state,
        "global_step": global_step,
        "global_epoch": global_epoch,
    }
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _refuse_other_files(path: Path, head: bytes, size: int) -> None:
    """Tell by the first bytes what is no file of PyTorch at all."""
    kind = next((words for sign, words in SIGNATURES if head.startswith(sign)), "")
    if not kind and head.startswith(b"PK"):
        kind = _kind_of_zip(path)
    elif not kind and not head.startswith(b"\x80"):
        kind = _kind_of_bytes(path, head, size)
    elif not kind and LEGACY_MAGIC not in head[:32]:
        kind = "a Python pickle, but not one of PyTorch; unpickling it may run any program, so it was not opened"
    if kind:
        raise CheckpointError(f"{path}: {kind}, no checkpoint; {REMEDY}")


def _kind_of_bytes(path: Path, head: bytes, size: int) -> str:
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] < size):
        return "a safetensors file; load it into the published network and torch.save its state_dict()"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        if b"<net" in head:
            return "an OpenVINO IR, already converted: give it to --from-ir"
        return "a web page (HTML or XML) in place of the file, as a download that failed leaves it"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x3a")):
        return "an ONNX network, already converted: give it to --from-ir"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite network"
    if b"\0" not in head and head.isascii():
        return "a text file"
    return "a file of an unknown kind"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"a file of PyTorch that is cut short or damaged ({error}); fetch it again"
    if bad is not None:
        return f"a file of PyTorch that is damaged (wrong checksum of {bad}); fetch it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program; wanted are the weights alone, the state_dict() of the network"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive; unpack it first"
    return ""


def _unpickle(path: Path, *, is_zip: bool) -> Any:
    """Let PyTorch read it; a zip is mapped, so that the optimiser beside the weights costs no memory."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except DAMAGE as error:
        found = re.search(r"GLOBAL (\S+)|(?:class|function|global) ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error) and found:
            name = found.group(1) or found.group(2)
            raise CheckpointError(
                f"{path}: holds Python objects beside weights ({name}), and unpickling those may run any program, so "
                f"it was not opened; {REMEDY}"
            ) from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{path}: cut short or damaged, or no file of PyTorch ({first}); fetch it again: {REMEDY}"
        ) from error


def _state_of(path: Path, content: Any) -> State:
    """The tensors by their published names."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not the weights of a network; {REMEDY}")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(str(key) for key in list(content)[:NAMED]) or "nothing"
        raise CheckpointError(f"{path}: no dictionary of weights; it holds {keys}; {REMEDY}")
    return {str(key).removeprefix(PREFIX): value for key, value in state.items()}


def _refuse_other_networks(path: Path, state: State, module: Wav2Lip) -> None:
    kind = _kind_of_network(state, {key: tuple(value.shape) for key, value in module.state_dict().items()})
    if kind:
        raise CheckpointError(f"{path}: {kind}; {REMEDY}")
    for key, value in state.items():
        if not (value.is_floating_point() or key.endswith(COUNTER)):
            raise CheckpointError(f"{path}: the weights of {key} are {value.dtype}, not floating point; {REMEDY}")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: numbers that are not finite in {key}, the file is damaged; {REMEDY}")


def _kind_of_network(state: State, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What these weights are, "" if the published Wav2Lip."""
    parts = {key.split(".")[0] for key in state}
    if "binary_pred" in parts:
        return "the discriminator of Wav2Lip, which judges faces and draws none"
    if {"face_encoder", "audio_encoder"} <= parts and "face_decoder_blocks" not in parts:
        return "the SyncNet of Wav2Lip (lip-sync expert), which judges faces and draws none"
    if any(key.startswith("body.stage1") for key in state):
        return "RetinaFace, a face detector (scripts/convert_detector takes it)"
    if "conv1_1" in parts or "L2Norm3_3" in parts:
        return "S3FD, a face detector"
    if "face_decoder_blocks" not in parts:
        return f"weights of another network ({_some(state)})"
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    extra = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and tuple(state[key].shape) != wanted[key]]
    if not (missing or extra or other):
        return ""
    size = _face_px(state)
    if size != USUAL_SIZES[0]:
        return f"a variant of Wav2Lip that seems to be made for faces of {size} x {size}, not 96 x 96"
    if other:
        shape, ours = tuple(state[other[0]].shape), wanted[other[0]]
        return f"a variant of Wav2Lip for 96 x 96 with other layers: {other[0]} is {shape}, published is {ours}"
    what = f"{_some(missing)} is missing" if missing else f"{_some(extra)} is too much"
    return f"a variant of Wav2Lip for 96 x 96, or a part of one: {what}"


def _some(keys: Any) -> str:
    names = list(keys)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _face_px(state: State) -> int:
    """Side of the face for which an encoder is made, from its kernels, as strides are not stored.

    Followed from its end, 1 x 1: a block with a 1 x 1 convolution has no padding and takes the kernel's width more,
    each other block but the first halves, rounding up.
    """
    kernels: dict[int, dict[int, int]] = {}
    for key, value in state.items():
        found = re.fullmatch(r"face_encoder_blocks\.(\d+)\.(\d+)\.conv_block\.0\.weight", key)
        if found and value.ndim == 4:
            kernels.setdefault(int(found.group(1)), {})[int(found.group(2))] = int(value.shape[-1])
    least = most = 1
    for block in sorted(kernels, reverse=True)[:-1]:
        sizes = kernels[block]
        if 1 in sizes.values():
            least, most = least + max(sizes.values()) - 1, most + max(sizes.values()) - 1
        else:
            least, most = 2 * least - 1, 2 * most
    return max((size for size in USUAL_SIZES if least <= size <= most), default=most)
