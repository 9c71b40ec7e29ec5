"""A network file, read and compiled by OpenVINO for one picture at a time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov

__all__ = ["Network", "NetworkError", "keep_compiled"]

THREADS: Final = 2
"""A photo is prepared now and then beside a live picture: it must not take the whole machine."""


class NetworkError(RuntimeError):
    """A network cannot be loaded; the text says what to do."""

    code: Final = "no_model"


class Network:
    """One network with one input, run synchronously; calls must not overlap."""

    def __init__(self, path: Path, device: str = "CPU", *, input_shape: tuple[int, ...] | None = None) -> None:
        """Load and compile.

        Args:
            path: a TFLite, ONNX or OpenVINO IR file.
            device: OpenVINO device: CPU, GPU, NPU, AUTO.
            input_shape: for a file that leaves the shape of its input open.

        Raises:
            NetworkError: the file is missing or damaged, or the device is not there.
        """
        if not path.is_file():
            raise NetworkError(
                f"{path} is missing. Run `make setup` or scripts/fetch_face_models to fetch the face models."
            )
        # float32 by force: on processors with bfloat16 OpenVINO would take that, and landmarks would move by a pixel.
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if device == "CPU":
            config |= {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": THREADS}
        try:
            core = _core()
            model = core.read_model(path)
            if input_shape is not None:
                model.reshape(input_shape)
            compiled = core.compile_model(model, device, config)
        except RuntimeError as error:
            raise NetworkError(
                f"{path} cannot be loaded on {device}. Delete it and run `make setup` to fetch it again, or choose "
                f"another device; OpenVINO says: {str(error).strip().splitlines()[-1]}",
            ) from error
        self.input_shape: Final = tuple(int(length) for length in compiled.input(0).shape)
        self._request = compiled.create_infer_request()

    def run(self, values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Compute all outputs, in the order of the file; they are copies and stay valid."""
        results = self._request.infer([values])
        return [np.array(result, np.float32) for result in results.values()]


def keep_compiled(folder: Path) -> None:
    """Keep compiled networks in a folder, so that the next start takes a fraction of the time."""
    _core().set_property({"CACHE_DIR": str(folder)})


@functools.cache
def _core() -> Any:
    return ov.Core()
