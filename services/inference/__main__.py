"""Run one inference worker: `python -m services.inference`."""

from __future__ import annotations

import sys

import cv2

from services.inference import engines
from services.inference.service import Inference
from shared.bus import Bus
from shared.service import Startup, Tally, main
from shared.settings import Settings


def build(settings: Settings, bus: Bus, tally: Tally) -> Inference:
    """Load the engine that the settings name."""
    cv2.setNumThreads(1)  # pictures are small: more threads wait for each other longer than they work
    try:
        engine, told = engines.load(settings)
    except ValueError as error:
        raise Startup(str(error)) from error
    tally.say(f"engine {engine.name}; " + ", ".join(f"{name}: {value}" for name, value in told.items()))
    return Inference(engine, bus, tally, told)


if __name__ == "__main__":
    sys.exit(main("inference", build))
