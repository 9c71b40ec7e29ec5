"""From the published RetinaFace checkpoint to the OpenVINO network that services.face_prep.retinaface reads."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch

from scripts._retinaface.network import RetinaFace

__all__ = ["INPUT", "OUTPUTS", "DetectorError", "largest_difference", "load_detector", "plain_ir", "write_ir"]

WANTED: Final = "What is wanted is RetinaFace on MobileNet x0.25: mobilenet0.25_Final.pth or mobilenet.pth, 1.8 MB."
MOST_BYTES: Final = 64 << 20
"""The published file has 1.8 MB, with an optimiser beside it three times that."""
INPUT: Final = "pictures"
OUTPUTS: Final = ("boxes", "classes", "landmarks")
OPSET: Final = 17
STRANGERS: Final = {
    "body.layer1.": "RetinaFace on ResNet-50",
    "face_decoder_blocks.": "a Wav2Lip checkpoint, which scripts/convert_model converts",
    "vgg.": "an S3FD detector",
    "conv1_1.": "an S3FD detector",
    "body.stage1.": "RetinaFace of another width or form",
}
"""Beginnings of parameter names, and what has them."""


class DetectorError(ValueError):
    """The file is no RetinaFace checkpoint that can be converted; the text says what it is and what to do."""


def load_detector(path: Path) -> RetinaFace:
    """Read a checkpoint in the published form: parameters by name, with or without ``module.`` before each.

    Nothing but tensors is unpickled.

    Args:
        path: the .pth file.

    Returns:
        the network, float32, in evaluation mode.

    Raises:
        DetectorError: it is something else, or damaged.
        OSError: it cannot be read.
    """
    parameters = _parameters(path)
    module = RetinaFace()
    wanted = module.state_dict()
    if wanted.keys() != parameters.keys() or any(parameters[key].shape != wanted[key].shape for key in wanted):
        odd = next(
            (key for key in wanted if key not in parameters or parameters[key].shape != wanted[key].shape),
            next(iter(parameters.keys() - wanted.keys()), "?"),
        )
        known = (name for start, name in STRANGERS.items() if any(key.startswith(start) for key in parameters))
        kind = next(known, "another network")
        raise DetectorError(f"{path} is {kind} (it differs in {odd!r}). {WANTED}")
    for key, values in parameters.items():
        if not bool(torch.isfinite(values).all()):
            raise DetectorError(f"{path} is damaged: {key} holds values that are no numbers. {WANTED}")
    module.load_state_dict(parameters)
    return module.float().eval()


def _parameters(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint by name, without ``module.``."""
    if not path.is_file():
        raise DetectorError(f"{path} is {'a folder' if path.is_dir() else 'missing'}. {WANTED}")
    if path.stat().st_size > MOST_BYTES:
        raise DetectorError(f"{path} has {path.stat().st_size / 1e6:.0f} MB and is something else. {WANTED}")
    data = path.read_bytes()
    kind = _kind(data)
    if kind:
        raise DetectorError(f"{path} is {kind}. {WANTED}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DetectorError(
            f"{path} is no file of weights alone: it is something else, or damaged, or holds code, which is not run. "
            f"{WANTED}"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise DetectorError(f"{path} cannot be read as a PyTorch checkpoint; it may be cut short. {WANTED}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise DetectorError(f"{path} holds no table of parameters. {WANTED}")
    return {str(key).removeprefix("module."): values for key, values in content.items()}


def _kind(data: bytes) -> str:
    """Say what a file is by its beginning when that is no PyTorch checkpoint."""
    head = data[:256].lstrip().lower()
    if not data:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not fetched (git lfs pull)"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or XML, not the weights: the download went wrong"
    if data[8:9] == b"{":
        return "a safetensors file"
    if b"onnx" in head or b"pytorch" in head[:32]:
        return "an ONNX network"
    if zipfile.is_zipfile(io.BytesIO(data)):
        try:
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except zipfile.BadZipFile:
            return "damaged"
        if any(name.endswith("constants.pkl") for name in names):
            return "a TorchScript program, not a checkpoint"
    return ""


def plain_ir(module: RetinaFace) -> ov.Model:
    """Convert by way of ONNX.

    Args:
        module: in evaluation mode.

    Returns:
        input ``pictures`` (N, 3, H, W), outputs ``boxes``, ``classes`` and ``landmarks`` as `RetinaFace.forward` gives
        them; batch, height and width are open.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter that traces keeps three open sizes without being told the relations between them; its own
        # farewell is no news.
        warnings.simplefilter("ignore", DeprecationWarning)
        path = Path(folder) / "retinaface.onnx"
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 64, 96),),
            path,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={INPUT: {0: "pictures", 2: "height", 3: "width"}},
            opset_version=OPSET,
            dynamo=False,
        )
        return ov.convert_model(path)


def largest_difference(module: RetinaFace, model: Any, pictures: Sequence[npt.NDArray[np.float32]]) -> float:
    """Largest absolute difference between the outputs of PyTorch and of OpenVINO in float32.

    Args:
        module: in evaluation mode.
        model: an ``ov.Model`` or the path of one.
        pictures: inputs, each (n, 3, h, w).
    """
    request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    largest = 0.0
    for values in pictures:
        with torch.inference_mode():
            wanted = module(torch.from_numpy(values))
        got = request.infer([values])
        for name, output in zip(OUTPUTS, wanted, strict=True):
            largest = max(largest, float(np.abs(got[name] - output.numpy()).max()))
    return largest


def write_ir(model: ov.Model, path: Path) -> None:
    """Write a network, each of its two files whole or not at all, in float32.

    Args:
        model: what to write.
        path: the .xml; the .bin lies beside it. The folder is made when missing.

    Raises:
        OSError: they cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        fresh = Path(folder) / path.name
        try:
            ov.save_model(model, fresh, compress_to_fp16=False)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written; is the disk full? OpenVINO says: {error}") from error
        for each in (fresh, fresh.with_suffix(".bin")):
            with each.open("rb") as file:
                os.fsync(file.fileno())
        # An old .xml never stands beside a new .bin.
        path.unlink(missing_ok=True)
        fresh.with_suffix(".bin").replace(path.with_suffix(".bin"))
        fresh.replace(path)
