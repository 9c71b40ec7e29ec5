"""What an engine costs: a program of its own, on one processor with one thread, in which nothing else is loaded.

    python -m scripts._evaluate.cost ENGINE MODEL FILE

MODEL may be empty for the project's own; FILE is what `measure_cost` writes. Prints the fields of `Cost` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from services.inference.engine import Drive, Engine
from shared.messages import Face

__all__ = ["Cost", "CostError", "measure_cost"]

ROOT: Final = Path(__file__).resolve().parents[2]
WARM: Final = 5
PREPARES: Final = 3
TIMEOUT_S: Final = 300.0


class CostError(RuntimeError):
    """It could not be measured; the text says why."""


@dataclass(frozen=True)
class Cost:
    """On one processor, one thread."""

    face_px: int
    """width of the face box"""
    frame_ms: float
    """median, of one frame drawn alone"""
    frame_p95_ms: float
    prepare_ms: float
    """median"""
    load_ms: float
    memory_mib: float
    """proportional set size of the process: Python, engine, prepared face; without sockets"""
    engine_mib: float
    """what of it came with the engine and the face"""


def measure_cost(engine: str, model: Path | None, face: Face, windows: npt.NDArray[np.float32]) -> Cost:
    """Measure in a child process.

    Args:
        engine: builtin or wav2lip.
        model: its folder; None: the project's own.
        face: on which it speaks.
        windows: mel windows, one a frame, (n, 80, length), n > `WARM`.

    Raises:
        CostError: it failed; the text says why.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "subject.npz"
        np.savez(
            file, photo=face.photo, landmarks=face.landmarks, mask=face.mask, boxes=face.boxes, windows=windows,
            places=np.array([face.index, face.mask_x, face.mask_y, *face.box]),
        )  # fmt: skip
        command = [sys.executable, "-m", "scripts._evaluate.cost", engine, str(model.resolve() if model else "")]
        try:
            done = subprocess.run(
                [*command, str(file)],
                cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CostError(f"the cost was not measured within {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise CostError(f"the cost was not measured: {said[-1] if said else f'it ended with {done.returncode}'}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main(engine: str, model: str, file: str) -> Cost:
    """Measure in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(file, allow_pickle=False) as stored:
        index, mask_x, mask_y, *box = (int(place) for place in stored["places"])
        face = Face(
            face="cost", index=index, box=(box[0], box[1], box[2], box[3]), mask_x=mask_x, mask_y=mask_y,
            photo=stored["photo"], landmarks=stored["landmarks"], mask=stored["mask"], boxes=stored["boxes"],
        )  # fmt: skip
        windows = stored["windows"]
    before = _memory_mib()
    started = time.perf_counter()
    loaded = _load(engine, model)
    load_ms = 1000 * (time.perf_counter() - started)
    prepares = []
    for _ in range(PREPARES):
        started = time.perf_counter()
        state = loaded.prepare(face)
        prepares.append(1000 * (time.perf_counter() - started))
    times = []
    for window in windows:
        drive = Drive(np.ascontiguousarray(window), 1.0)
        started = time.perf_counter()
        loaded.render([state], [drive])
        times.append(1000 * (time.perf_counter() - started))
    memory = _memory_mib()
    return Cost(
        face_px=face.box[2] - face.box[0],
        frame_ms=float(np.median(times[WARM:])),
        frame_p95_ms=float(np.percentile(times[WARM:], 95)),
        prepare_ms=float(np.median(prepares)),
        load_ms=load_ms,
        memory_mib=memory,
        engine_mib=memory - before,
    )


def _load(engine: str, model: str) -> Engine[Any]:
    if engine == "wav2lip":
        from services.inference.wav2lip.engine import Wav2LipEngine  # noqa: PLC0415 - its memory counts as the engine's

        return Wav2LipEngine(Path(model) if model else ROOT / "models" / "wav2lip", threads=1)
    import cv2  # noqa: PLC0415 - the same

    from services.inference.builtin.engine import BuiltinEngine  # noqa: PLC0415 - the same

    cv2.setNumThreads(1)
    return BuiltinEngine(Path(model)) if model else BuiltinEngine()


def _memory_mib() -> float:
    return float(psutil.Process().memory_full_info().pss) / 2**20


if __name__ == "__main__":
    print(json.dumps(asdict(main(*sys.argv[1:4]))))
