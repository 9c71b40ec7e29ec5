"""Run one inference worker: `python -m services.inference`."""

from __future__ import annotations

import os
import sys
from typing import Any

import cv2

from services.inference.builtin.basis import BasisError
from services.inference.builtin.engine import BuiltinEngine
from services.inference.engine import Engine
from services.inference.service import Inference
from shared.bus import Bus
from shared.service import Startup, Tally, main
from shared.settings import Settings


def build(settings: Settings, bus: Bus, tally: Tally) -> Inference:
    """Load the engine that the settings name."""
    threads = settings.threads or min(4, os.cpu_count() or 1)
    cv2.setNumThreads(threads)
    wav2lip = settings.engine == "wav2lip" or (settings.engine == "auto" and settings.wav2lip_path.is_file())
    engine: Engine[Any]
    try:
        if wav2lip:
            from services.inference.wav2lip.engine import Wav2LipEngine  # noqa: PLC0415  # OpenVINO only where it is used

            engine = Wav2LipEngine(settings.wav2lip_path, settings.device, alignment=settings.alignment)
        else:
            engine = BuiltinEngine(settings.models_path / "builtin")
    except (BasisError, ValueError) as error:
        raise Startup(str(error)) from error
    return Inference(engine, bus, tally, {"device": settings.device if wav2lip else "CPU", "threads": str(threads)})


if __name__ == "__main__":
    sys.exit(main("inference", build))
