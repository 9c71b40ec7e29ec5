"""Run face preparation: `python -m services.face_prep`."""

from __future__ import annotations

import sys

import cv2

from services.face_prep.face import FaceMaker
from services.face_prep.network import NetworkError, keep_compiled
from services.face_prep.service import FacePrep
from services.face_prep.store import FaceStore
from shared.bus import Bus
from shared.service import Startup, Tally, main
from shared.settings import Settings


def build(settings: Settings, bus: Bus, tally: Tally) -> FacePrep:
    """Load the detectors and open the store of faces."""
    cv2.setNumThreads(1)
    keep_compiled(settings.state_path / "openvino")
    try:
        maker = FaceMaker(settings.models_path / "face", settings.device, settings.detector)
        store = FaceStore(settings.state_path / "faces")
    except (NetworkError, OSError) as error:
        raise Startup(str(error)) from error
    return FacePrep(maker, store, settings.max_side, bus, tally)


if __name__ == "__main__":
    sys.exit(main("face_prep", build))
