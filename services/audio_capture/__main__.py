"""Run audio capture: `python -m services.audio_capture`."""

from __future__ import annotations

import sys

from services.audio_capture.service import AudioCapture
from shared.bus import Bus
from shared.service import Tally, main
from shared.settings import Settings


def build(settings: Settings, bus: Bus, tally: Tally) -> AudioCapture:
    """Sources are opened when a session runs."""
    return AudioCapture(settings, bus, tally)


if __name__ == "__main__":
    sys.exit(main("audio_capture", build))
